//! How long and how many the headers of a response may be.

use anyhow::Result;
use shunt_tests::asked::Ask;
use shunt_tests::{Script, Speaks, lab};

use super::rig::{Rig, options, route, simple};

#[test]
fn heads_of_responses() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        for (name, speaks, explicit) in [
            ("h1", Speaks::http1(), "explicit_http_config: { http_protocol_options: {} }"),
            ("h2", Speaks::http2(), "explicit_http_config: { http2_protocol_options: {} }"),
        ] {
            let up = script.backend("up", &speaks)?;
            let limits = [
                ("plain", ""),
                ("short", "max_response_headers_kb: 1"),
                ("long", "max_response_headers_kb: 100"),
                ("few", "max_headers_count: 6"),
            ];
            let routes = limits.map(|(cluster, _)| route(&format!("/{cluster}/"), cluster, ""));
            let mut config = simple(&routes);
            for (cluster, limit) in limits {
                let fields = options(&format!("common_http_protocol_options: {{ {limit} }}, {explicit}"));
                config = config.static_cluster(cluster, &[up], &fields);
            }
            let mut rig = Rig::start(lab, &script, &config)?;
            let big = |length: usize| format!("h:x-big={}", "x".repeat(length));
            let many: Vec<String> = (0..10).map(|n| format!("h:x-{n}={n}")).collect();
            for (cluster, _) in limits {
                for (what, plan) in
                    [("600 bytes", big(600)), ("2000 bytes", big(2_000)), ("ten", many.join(" "))]
                {
                    let ask = Ask::get(&format!("/{cluster}/")).plan(&plan);
                    rig.asks(
                        &format!("{name}: {what} to {cluster}"),
                        &[ask, Ask::get(&format!("/{cluster}/"))],
                    );
                }
            }
            rig.finish()?;
        }
        Ok(())
    })
}

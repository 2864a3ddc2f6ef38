//! Copies of requests for other clusters.

use std::time::Duration;

use anyhow::{Result, ensure};
use shunt_tests::asked::{Ask, Body};
use shunt_tests::{Script, Speaks, lab, until};

use super::retries::HTTP2;
use super::rig::{Rig, hosted, route};

fn mirroring(prefix: &str, policies: &str) -> String {
    route(prefix, "up", &format!("request_mirror_policies: [ {policies} ]"))
}

#[test]
fn requests_are_mirrored() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let (up, shadow) =
            (script.backend("up", &Speaks::http1())?, script.backend("shadow", &Speaks::http1())?);
        let h2 = script.backend("shadow2", &Speaks::http2())?;
        let percent = |of: u32| {
            format!("runtime_fraction: {{ default_value: {{ numerator: {of} }}, runtime_key: none }}")
        };
        let routes = [
            mirroring("/one/", "{ cluster: shadow }"),
            mirroring("/h2/", "{ cluster: shadow2 }"),
            mirroring("/none/", &format!("{{ cluster: shadow, {} }}", percent(0))),
            mirroring("/all/", &format!("{{ cluster: shadow, {} }}", percent(100))),
            mirroring("/header/", "{ cluster_header: x-shadow }"),
            mirroring("/nowhere/", "{ cluster: nowhere }"),
            mirroring("/plain/", "{ cluster: shadow, disable_shadow_host_suffix_append: true }"),
            route("/host/", "up", ""),
        ];
        let config = hosted(&routes, "request_mirror_policies: [ { cluster: shadow2 } ]")
            .static_cluster("up", &[up], "")
            .static_cluster("shadow", &[shadow], "")
            .static_cluster("shadow2", &[h2], HTTP2);
        let mut rig = Rig::start(lab, &script, &config)?;
        let cases: &[(&str, Ask, usize)] = &[
            ("one", Ask::get("/one/?q=1"), 2),
            ("with a port", Ask::get("/one/").host("a.test:8080"), 2),
            ("by HTTP/2", Ask::get("/h2/"), 2),
            ("never", Ask::get("/none/"), 1),
            ("always", Ask::get("/all/"), 2),
            ("by a header", Ask::get("/header/").header("x-shadow", "shadow"), 2),
            ("by a header that is not there", Ask::get("/header/"), 1),
            ("nowhere", Ask::get("/nowhere/"), 1),
            ("of the host", Ask::get("/host/"), 2),
            ("a body", Ask::post("/one/", Body::Sized(5_000)), 2),
            ("a body by HTTP/2", Ask::post("/h2/", Body::Sized(5_000)), 2),
            ("chunks", Ask::post("/one/", Body::Chunked(vec![10, 20])), 2),
            ("a large body", Ask::post("/one/", Body::Sized(300_000)), 2),
            ("behind proxies", Ask::get("/one/").header("x-forwarded-for", "1.2.3.4, 5.6.7.8"), 2),
            ("HEAD", Ask { method: "HEAD".into(), ..Ask::get("/one/") }, 2),
        ];
        for (name, ask, requests) in cases {
            rig.case(&format!("mirror: {name}"), |run| {
                let said = run.ask(ask)?;
                // Which of the two comes first is a matter of chance.
                until("all requests", Duration::from_secs(3), || {
                    let done = run.script.seen().iter().filter(|seen| seen.is_done()).count();
                    ensure!(done <= *requests, "{done} requests");
                    Ok((done == *requests).then_some(()))
                })?;
                run.script.sort();
                Ok(said)
            });
        }
        rig.finish()
    })
}

//! What is spoken to upstreams, and to whom: explicit, as the client, by ALPN; names for TLS; original destinations.

use anyhow::Result;
use serde_json::Value;
use shunt_tests::asked::{Ask, Body, Http2};
use shunt_tests::bootstrap::Bootstrap;
use shunt_tests::ports::nobody;
use shunt_tests::{Leaf, Pki, Script, Speaks, TlsContext, lab};

use super::rig::{Rig, host, manager, options, route, simple};

#[test]
fn as_the_client_speaks() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let (h1, h2) = (script.backend("h1", &Speaks::http1())?, script.backend("h2", &Speaks::http2())?);
        let clusters = ["h1", "h2", "as1", "as2", "only1"];
        let routes = clusters.map(|name| route(&format!("/{name}/"), name, ""));
        let both = options(
            "use_downstream_protocol_config: { http_protocol_options: {}, http2_protocol_options: {} }",
        );
        let only = options("use_downstream_protocol_config: { http_protocol_options: {} }");
        let config = simple(&routes)
            .static_cluster("h1", &[h1], "")
            .static_cluster("h2", &[h2], &options("explicit_http_config: { http2_protocol_options: {} }"))
            .static_cluster("as1", &[h1], &both)
            .static_cluster("as2", &[h2], &both)
            .static_cluster("only1", &[h1], &only);
        let mut rig = Rig::start(lab, &script, &config)?;
        let by1 = ["/h1/", "/h2/", "/as1/", "/only1/"].map(Ask::get);
        rig.asks("protocols: a client of HTTP/1", &by1);
        rig.case("protocols: a client of HTTP/2", |run| {
            let client = Http2::connect(run.at())?;
            let mut asks = ["/h1/", "/h2/", "/as2/", "/only1/"].map(Ask::get).to_vec();
            asks.extend(["/h1/", "/as2/"].map(|path| Ask::post(path, Body::Chunked(vec![10, 20]))));
            asks.extend(["/h2/", "/as2/"].map(|path| Ask::get(path).plan("t:x-trailer=1")));
            asks.push(
                Ask::post("/as2/", Body::Sized(5))
                    .grpc()
                    .plan("t:grpc-status=3 t:grpc-message=no h:content-type=application/grpc"),
            );
            asks.push(Ask::post("/h1/", Body::Sized(5)).grpc().plan("reset"));
            asks.push(Ask::get("/as2/").plan("half-reset"));
            asks.push(Ask::get("/as2/").plan("reset=7"));
            asks.iter().map(|ask| run.by_http2(&client, ask)).collect::<Result<Value>>()
        });
        rig.finish()
    })
}

#[test]
fn by_alpn_and_by_name() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let pki = Pki::new(lab)?;
        let ca = pki.root("ca")?;
        let leaf = ca.issue("backend", &Leaf::new().dns("a.test"))?;
        let tls = |alpn: &[&str]| Speaks::tls(&leaf, alpn);
        let backends = [
            ("both", script.backend("both", &tls(&["h2", "http/1.1"]))?),
            ("one", script.backend("one", &tls(&["http/1.1"]))?),
            ("two", script.backend("two", &tls(&["h2"]))?),
            ("none", script.backend("none", &tls(&[]))?),
        ];
        let auto = "auto_config: { http_protocol_options: {}, http2_protocol_options: {} }";
        let names = "upstream_http_protocol_options: { auto_sni: true, auto_san_validation: true }";
        let explicit = "explicit_http_config: { http2_protocol_options: {} }";
        let explicit1 = "explicit_http_config: { http_protocol_options: {} }";
        let context = TlsContext::new().trust(ca.file()).cluster();
        let alone = TlsContext::new().cluster();
        let mut routes = Vec::new();
        let mut config = Vec::new();
        for (name, at) in backends {
            for (kind, fields) in [("auto", auto), ("named", explicit1), ("two", explicit)] {
                let cluster = format!("{kind}-{name}");
                let fields = if kind == "named" { format!("{names}, {fields}") } else { fields.to_owned() };
                routes.push(route(&format!("/{cluster}/"), &cluster, ""));
                config.push((cluster, at, format!("{}, {context}", options(&fields))));
            }
        }
        let header = "upstream_http_protocol_options: { auto_sni: true, override_auto_sni_header: x-sni }";
        routes.push(route("/header/", "header", ""));
        config.push((
            "header".into(),
            backends[1].1,
            format!("{}, {alone}", options(&format!("{header}, {explicit1}"))),
        ));
        routes.push(route("/rewritten/", "named-one", "host_rewrite_literal: b.test"));
        let mut all = simple(&routes);
        for (name, at, fields) in &config {
            all = all.static_cluster(name, &[*at], fields);
        }
        let mut rig = Rig::start(lab, &script, &all)?;
        // Envoy counts a connection a second time when its protocol is known.
        let twice: &[&str] = &["upstream_cx_total"];
        for kind in ["auto", "two", "named"] {
            for (name, _) in backends {
                let ask = Ask::get(&format!("/{kind}-{name}/"));
                let but = if kind == "auto" { twice } else { &[] };
                rig.case_but(&format!("alpn: {kind} to {name}"), but, |run| {
                    Ok([run.ask(&ask)?, run.ask(&ask)?].into_iter().collect())
                });
            }
        }
        let slow = Ask::get("/auto-both/").plan("wait=200");
        rig.case_but("alpn: three at a time", twice, |run| {
            run.together(&[slow.clone(), slow.clone(), slow.clone()])
        });
        let fresh = Ask::get("/auto-both/").plan("close");
        rig.case_of(
            "alpn: connections, as they are counted",
            &["cluster.auto-both.upstream_cx_total"],
            |run| {
                run.ask(&fresh)?;
                run.ask(&Ask::get("/auto-both/"))
            },
        );
        rig.asks(
            "names",
            &[
                Ask::get("/named-one/"),
                Ask::get("/named-one/").host("a.test:8443"),
                Ask::get("/named-one/").host("b.test"),
                Ask::get("/named-one/").host("127.0.0.1"),
                Ask::get("/named-one/").host("[::1]:80"),
                Ask::get("/rewritten/"),
                Ask::get("/header/"),
                Ask::get("/header/").header("x-sni", "x.test:99"),
                Ask::get("/header/").header("x-sni", "127.0.0.1"),
            ],
        );
        rig.finish()
    })
}

#[test]
fn original_destinations() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let (one, two) = (script.backend("one", &Speaks::http1())?, script.backend("two", &Speaks::http1())?);
        let refusing = nobody()?;
        let original = |fields: &str| {
            format!("type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, original_dst_lb_config: {{ {fields} }}")
        };
        let routes = ["header", "named", "none", "port"].map(|name| route(&format!("/{name}/"), name, ""));
        let config = Bootstrap::new()
            .listener("l", &manager(&[host(&routes, "")], ""))
            .cluster("header", &original("use_http_header: true"))
            .cluster("named", &original("use_http_header: true, http_header_name: x-to"))
            .cluster("none", &original(""))
            .cluster(
                "port",
                &original(&format!("use_http_header: true, upstream_port_override: {}", two.port())),
            );
        let mut rig = Rig::start(lab, &script, &config)?;
        const TO: &str = "x-envoy-original-dst-host";
        let to = |path: &str, name: &str, to: String| Ask::get(path).header(name, &to);
        let asks = [
            to("/header/", TO, one.to_string()),
            to("/header/", TO, two.to_string()),
            to("/header/", TO, one.to_string()),
            to("/header/", TO, "nonsense".into()),
            to("/header/", TO, "127.0.0.1".into()),
            to("/header/", TO, refusing.to_string()),
            Ask::get("/header/"),
            to("/named/", "x-to", one.to_string()),
            to("/named/", TO, one.to_string()),
            to("/none/", TO, one.to_string()),
            to("/port/", TO, one.to_string()),
        ];
        // Envoy has a member for each destination that was asked for.
        let but = ["membership_change", "membership_healthy", "membership_total"];
        rig.case_but("original destinations", &but, |run| asks.iter().map(|ask| run.ask(ask)).collect());
        rig.finish()
    })
}

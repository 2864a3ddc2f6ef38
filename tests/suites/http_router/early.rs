//! Responses that end before their requests, and what of a response to HEAD is on the wire.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use shunt_tests::asked::{Ask, Body, Http2};
use shunt_tests::{Script, Speaks, lab};

use super::rig::{Rig, options, route, simple};

const PLANS: &[&str] = &[
    "",
    "body=0",
    "status=503",
    "last",
    "t:x-trailer=1",
    "h:connection=close",
    "pause=50",
    "half-reset=0",
    "half-reset=2",
    "half-close",
    "reset=0",
];

const PAUSE: Duration = Duration::from_millis(250);

#[test]
fn responses_that_end_before_their_requests() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let (h1, h2) = (script.backend("h1", &Speaks::http1())?, script.backend("h2", &Speaks::http2())?);
        let routes = ["h1", "h2"].map(|name| route(&format!("/{name}/"), name, ""));
        let config = simple(&routes).static_cluster("h1", &[h1], "").static_cluster(
            "h2",
            &[h2],
            &options("explicit_http_config: { http2_protocol_options: {} }"),
        );
        let mut rig = Rig::start(lab, &script, &config)?;
        for upstream in ["h1", "h2"] {
            let path = format!("/{upstream}/");
            // Of a connection that goes away. Envoy resets a stream that its peer has reset already, and finds fault with
            // what comes of it.
            let but: &[&str] = match upstream {
                "h2" => &["http2.tx_reset", "http2.rx_reset", "upstream_cx_protocol_error"],
                _ => &[],
            };
            for plan in PLANS {
                if upstream == "h2" && (plan.contains("connection") || plan.contains("close")) {
                    continue;
                }
                // What is there of the request has gone by then.
                let ask = Ask::post(&path, Body::Stalls(5, 10, PAUSE))
                    .plan(format!("early wait=50 {plan}").trim_end());
                let next = Ask::get(&path);
                rig.case_but(&format!("early: {plan}, {upstream} to a client of HTTP/1"), but, |run| {
                    [&ask, &next].into_iter().map(|ask| run.ask(ask)).collect()
                });
                rig.case_but(&format!("early: {plan}, {upstream} to a client of HTTP/2"), but, |run| {
                    let client = Http2::connect(run.at())?;
                    [&ask, &next].into_iter().map(|ask| run.by_http2(&client, ask)).collect()
                });
            }
        }
        rig.finish()
    })
}

#[test]
fn responses_to_head() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let h2 = script.backend("h2", &Speaks::http2())?;
        let http2 = options("explicit_http_config: { http2_protocol_options: {} }");
        let config = simple(&[route("/", "h2", "")]).static_cluster("h2", &[h2], &http2);
        let mut rig = Rig::start(lab, &script, &config)?;
        let head = |plan: &str| Ask { method: "HEAD".into(), ..Ask::get("/").plan(plan) };
        let asks = [
            head(""),
            head("open"),
            head("h:content-length=100"),
            head("open h:content-length=100"),
            head("status=204 open"),
            head("status=304 h:content-length=100"),
            Ask::get("/").plan("body=0 open"),
            Ask::get("/").plan("status=304 h:content-length=100"),
            Ask::get("/").plan("status=204 open"),
        ];
        rig.asks("head: by HTTP/1", &asks);
        rig.case("head: by HTTP/2", |run| -> Result<Value> {
            let client = Http2::connect(run.at())?;
            asks.iter().map(|ask| run.by_http2(&client, ask)).collect()
        });
        rig.finish()
    })
}

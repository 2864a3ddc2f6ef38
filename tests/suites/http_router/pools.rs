//! Connections upstream: which requests share one, how long they live, how many there may be.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use shunt_tests::asked::{Ask, Body};
use shunt_tests::{Script, Speaks, lab};

use super::rig::{Rig, options, route, simple};

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const HTTP1: &str = "explicit_http_config: { http_protocol_options: {} }";
const EXPLICIT2: &str = "explicit_http_config: { http2_protocol_options: {} }";

#[test]
fn connections_live_as_long_as_they_may() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        for (name, speaks, explicit) in [("h1", Speaks::http1(), HTTP1), ("h2", Speaks::http2(), EXPLICIT2)] {
            let up = script.backend("up", &speaks)?;
            let common =
                |fields: &str| options(&format!("common_http_protocol_options: {{ {fields} }}, {explicit}"));
            let clusters = ["plain", "few", "once", "idle", "long", "stream"];
            let routes = clusters.map(|cluster| route(&format!("/{cluster}/"), cluster, ""));
            let config = simple(&routes)
                .static_cluster("plain", &[up], &common(""))
                .static_cluster("few", &[up], &common("max_requests_per_connection: 2"))
                .static_cluster("once", &[up], &common("max_requests_per_connection: 1"))
                .static_cluster("idle", &[up], &common("idle_timeout: 0.2s"))
                .static_cluster("long", &[up], &common("max_connection_duration: 0.3s"))
                .static_cluster("stream", &[up], &common("max_stream_duration: 0.2s"));
            let mut rig = Rig::start(lab, &script, &config)?;
            let get = |path: &str, plan: &str| Ask::get(path).plan(plan);
            let mut one_by_one = vec![
                get("/plain/", ""),
                get("/plain/", "t:x-trailer=1"),
                Ask::post("/plain/", Body::Sized(20_000)),
                Ask::post("/plain/", Body::Chunked(vec![1, 2])),
                get("/plain/", "body=0"),
                get("/plain/", "body=100000"),
                get("/plain/", "status=204 body=0"),
                get("/plain/", "last"),
                get("/plain/", ""),
                get("/plain/", "half-reset"),
                get("/plain/", ""),
                Ask::post("/plain/", Body::Stalls(5, 10, millis(150))).plan("early"),
                get("/plain/", ""),
            ];
            if name == "h1" {
                one_by_one.push(Ask { method: "HEAD".into(), ..Ask::get("/plain/") });
                one_by_one
                    .extend(["half-close", "", "close", "garbage", ""].map(|plan| get("/plain/", plan)));
            }
            let but: &[&str] =
                if name == "h2" { &["upstream_cx_protocol_error", "http2.tx_reset"] } else { &[] };
            rig.case_but(&format!("{name}: one after the other"), but, |run| {
                one_by_one.iter().map(|ask| run.ask(ask)).collect()
            });
            rig.asks(
                &format!("{name}: a client that goes"),
                &[
                    get("/plain/", "wait=400").leaves(millis(150)),
                    get("/plain/", "pause=400").leaves(millis(150)),
                    get("/plain/", ""),
                ],
            );
            for cluster in ["few", "once"] {
                let ask = Ask::get(&format!("/{cluster}/"));
                rig.case_but(&format!("{name}: requests of a connection, {cluster}"), but, |run| {
                    (0..3).map(|_| run.ask(&ask)).collect()
                });
            }
            for (cluster, pause) in [("idle", 400), ("long", 500)] {
                rig.case(&format!("{name}: time of a connection, {cluster}"), |run| {
                    let ask = Ask::get(&format!("/{cluster}/"));
                    let first = [run.ask(&ask)?, run.ask(&ask)?];
                    sleep(millis(pause));
                    let then = run.ask(&ask)?;
                    sleep(millis(pause));
                    Ok(first.into_iter().chain([then]).collect())
                });
            }
            rig.asks(
                &format!("{name}: time of a stream"),
                &[get("/stream/", "silent"), get("/stream/", "pause=400"), get("/stream/", "wait=50")],
            );
            let slow = get("/plain/", "wait=200");
            let three = [slow.clone(), slow.clone(), slow];
            rig.case(&format!("{name}: three at a time"), |run| {
                Ok([run.together(&three)?, run.ask(&Ask::get("/plain/"))?].into_iter().collect::<Value>())
            });
            rig.finish()?;
        }
        Ok(())
    })
}

#[test]
fn breakers_open() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        for (name, speaks, explicit) in [("h1", Speaks::http1(), HTTP1), ("h2", Speaks::http2(), EXPLICIT2)] {
            let up = script.backend("up", &speaks)?;
            let limits = [
                ("connections", "max_connections: 1"),
                ("pending", "max_connections: 1, max_pending_requests: 1"),
                ("nobody", "max_pending_requests: 0"),
                ("requests", "max_requests: 1"),
                ("remaining", "max_requests: 2, track_remaining: true"),
                ("high", "priority: HIGH, max_requests: 1"),
            ];
            let mut routes: Vec<String> =
                limits.iter().map(|(cluster, _)| route(&format!("/{cluster}/"), cluster, "")).collect();
            routes.push(route("/urgent/", "high", "priority: HIGH"));
            let mut config = simple(&routes);
            for (cluster, limit) in limits {
                let breakers =
                    format!("circuit_breakers: {{ thresholds: [ {{ {limit} }} ] }}, {}", options(explicit));
                config = config.static_cluster(cluster, &[up], &breakers);
            }
            let mut rig = Rig::start(lab, &script, &config)?;
            for cluster in limits.map(|(cluster, _)| cluster).into_iter().chain(["urgent"]) {
                let ask = Ask::get(&format!("/{cluster}/")).plan("wait=250");
                let three = [ask.clone(), ask.clone(), ask];
                rig.case(&format!("{name}: breaker of {cluster}"), |run| run.together(&three));
            }
            let urgent = Ask::get("/urgent/").plan("wait=250");
            let both = [urgent.clone(), Ask::get("/high/"), urgent];
            rig.case(&format!("{name}: breakers of both priorities"), |run| run.together(&both));
            rig.finish()?;
        }
        Ok(())
    })
}

#[test]
fn streams_of_http2() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let two = script.backend("two", &Speaks::http2().max_streams(2))?;
        let many = script.backend("many", &Speaks::http2())?;
        let routes = ["two", "own", "many"].map(|name| route(&format!("/{name}/"), name, ""));
        let own = options("explicit_http_config: { http2_protocol_options: { max_concurrent_streams: 2 } }");
        let config = simple(&routes)
            .static_cluster("two", &[two], &options(EXPLICIT2))
            .static_cluster("own", &[many], &own)
            .static_cluster("many", &[many], &options(EXPLICIT2));
        let mut rig = Rig::start(lab, &script, &config)?;
        for cluster in ["own", "two", "many"] {
            let ask = Ask::get(&format!("/{cluster}/")).plan("wait=300");
            let five = vec![ask; 5];
            rig.case(&format!("streams: {cluster}"), |run| {
                // Its settings are known then.
                let first = run.ask(&Ask::get(&format!("/{cluster}/")))?;
                Ok([first, run.together(&five)?].into_iter().collect())
            });
        }
        let get = |plan: &str| Ask::get("/many/").plan(plan);
        // The backend's second GOAWAY comes when Envoy has closed already.
        let but = ["upstream_cx_protocol_error"];
        rig.case_but("streams: goaway", &but, |run| {
            let asks = [get(""), get("goaway"), get(""), get("goaway body=100000"), get("")];
            asks.iter().map(|ask| run.ask(ask)).collect()
        });
        rig.case_but("streams: goaway under another request", &but, |run| {
            let both = run.together(&[get("wait=300"), get("goaway"), get(""), get("goaway")])?;
            Ok([both, run.ask(&get(""))?].into_iter().collect())
        });
        rig.asks(
            "streams: resets",
            &[
                get("reset=0"),
                get("reset=1"),
                get("reset=5"),
                get("reset=7"),
                get("reset=8"),
                get("reset=11"),
                get("half-reset=0"),
                get("half-reset=2"),
                get("half-reset=7"),
                get("t:x-one=1 t:x-two=2"),
                get("h:connection=close"),
                get("h:upper=1 h:x-bin=%00"),
            ],
        );
        rig.finish()
    })
}

#[test]
fn connections_in_advance() -> Result<()> {
    lab(|lab| {
        let script = Script::new()?;
        let (up, h2) = (script.backend("up", &Speaks::http1())?, script.backend("h2", &Speaks::http2())?);
        let clusters = ["double", "triple", "double2"];
        let routes = clusters.map(|name| route(&format!("/{name}/"), name, ""));
        let ratio = |ratio: &str| format!("preconnect_policy: {{ per_upstream_preconnect_ratio: {ratio} }}");
        let config = simple(&routes)
            .static_cluster("double", &[up], &ratio("2.0"))
            .static_cluster("triple", &[up], &ratio("3.0"))
            .static_cluster("double2", &[h2], &format!("{}, {}", ratio("2.0"), options(EXPLICIT2)));
        let mut rig = Rig::start(lab, &script, &config)?;
        for name in clusters {
            let ask = Ask::get(&format!("/{name}/")).plan("wait=150");
            rig.asks(&format!("preconnect: {name}"), &[ask.clone(), ask.clone()]);
            let three = vec![ask; 3];
            rig.case(&format!("preconnect: {name}, three at a time"), |run| run.together(&three));
        }
        rig.finish()
    })
}

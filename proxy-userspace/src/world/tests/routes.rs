//! RDS.

use std::sync::Arc;
use std::time::Duration;

use proxy_config::xds::Kind;

use super::rig::*;
use crate::http::Hcm;
use crate::net::facts::Facts;
use crate::network::Last;

const SHORT: Duration = Duration::from_millis(100);
const HCM: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

fn manager(routes: &str) -> String {
    let router = r#"{"name": "envoy.filters.http.router", "typed_config": {"@type":
        "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}"#;
    let hcm = format!(
        r#"{{"name": "http", "typed_config": {{"@type": "{HCM}", "stat_prefix": "h", "http_filters": [{router}],
        {routes}}}}}"#
    );
    listener("l", "127.0.0.1:0", &[format!(r#"{{"filters": [{hcm}]}}"#)], "")
}

fn rds() -> String {
    manager(r#""rds": {"route_config_name": "r", "config_source": {"ads": {}}}"#)
}

/// A route configuration with one route to this cluster.
fn to(cluster: &str, more: &str) -> String {
    let route = format!(r#"{{"match": {{"prefix": "/"}}, "route": {{"cluster": "{cluster}"}}}}"#);
    format!(
        r#"{{"name": "r", "virtual_hosts": [{{"name": "v", "domains": ["*"], "routes": [{route}]}}] {more}}}"#
    )
}

fn hcm(rig: &Rig) -> Arc<Hcm> {
    let snapshot = rig.world.snapshot();
    let facts = Facts::new("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
    let listener = snapshot.listeners().into_iter().find(|listener| &*listener.name == "l").unwrap();
    let Last::Http(hcm) = &listener.chain(&facts).unwrap().filters.last else { panic!("no HTTP") };
    hcm.clone()
}

/// The cluster that all requests go to now.
fn cluster_of(hcm: &Hcm) -> Option<String> {
    let routes = hcm.routes.now()?;
    Some(routes.model.clusters().into_iter().next()?.to_string())
}

#[tokio::test]
async fn routes_come_and_change_while_the_listener_stays() {
    let rig = Rig::new("{}", SHORT);
    rig.start();
    rig.until("CDS", || !rig.script.asked(Kind::Cluster).is_empty()).await;
    rig.script.say(Kind::Cluster, "1", &[]).unwrap();
    rig.until("LDS", || !rig.script.asked(Kind::Listener).is_empty()).await;
    rig.script.say(Kind::Listener, "1", &[rds()]).unwrap();
    rig.until("RDS", || rig.script.asked(Kind::Route) == ["r"]).await;
    assert_eq!(rig.world.unready().len(), 1, "the listener waits for its routes");
    rig.script.say(Kind::Route, "1", &[to("a", "")]).unwrap();
    rig.until("the listener", || rig.world.unready().is_empty()).await;
    rig.until("its place", || !rig.world.snapshot().listeners().is_empty()).await;
    let hcm = hcm(&rig);
    assert_eq!(cluster_of(&hcm).as_deref(), Some("a"));
    rig.script.say(Kind::Route, "2", &[to("b", "")]).unwrap();
    assert_eq!(cluster_of(&hcm).as_deref(), Some("b"), "of the same connection manager");
    rig.script.say(Kind::Route, "3", &[to("b", "")]).unwrap();
    rig.script.delta(Kind::Route, "4", &[], &["r"]).unwrap();
    assert_eq!(cluster_of(&hcm).as_deref(), Some("b"));
    let stats = ["config_reload", "update_success", "update_rejected", "update_empty"];
    assert_eq!(stats.map(|name| rig.stat(&format!("http.h.rds.r.{name}"))), [2, 4, 0, 1]);
}

#[tokio::test]
async fn bad_routes_are_refused_and_the_last_good_ones_hold() {
    let rig = Rig::new("{}", SHORT);
    rig.start();
    rig.until("CDS", || !rig.script.asked(Kind::Cluster).is_empty()).await;
    let here = server("here").await;
    rig.script.say(Kind::Cluster, "1", &[cluster("here", here, "")]).unwrap();
    rig.until("LDS", || !rig.script.asked(Kind::Listener).is_empty()).await;
    rig.script.say(Kind::Listener, "1", &[rds()]).unwrap();
    rig.until("RDS", || rig.script.asked(Kind::Route) == ["r"]).await;
    rig.script.say(Kind::Route, "1", &[to("here", "")]).unwrap();
    let twice = r#"{"name": "r", "virtual_hosts": [{"name": "v", "domains": ["a", "a"]}]}"#;
    let missing = r#"{"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{"match":
        {"prefix": "/"}, "direct_response": {"status": 200, "body": {"filename": "/nowhere/at/all"}}}]}]}"#;
    for (routes, why) in [
        (twice, "virtual_hosts[0].domains: Only unique values for domains are permitted."),
        (missing, "r: virtual host v: route 0: /nowhere/at/all: No such file"),
        (&to("gone", r#", "validate_clusters": true"#), "r: route: unknown cluster 'gone'"),
    ] {
        let error = rig.script.say(Kind::Route, "2", &[routes.to_owned()]).unwrap_err();
        assert!(error.contains(why), "{error}");
        let view = &rig.world.dynamic(Kind::Route)[0];
        assert!(view.error.as_ref().unwrap().details.contains(why.trim_start_matches("r: ")));
        assert_eq!(&*view.active.as_ref().unwrap().version, "1");
    }
    rig.until("its place", || !rig.world.snapshot().listeners().is_empty()).await;
    assert_eq!(cluster_of(&hcm(&rig)).as_deref(), Some("here"));
    rig.script.say(Kind::Route, "3", &[to("here", r#", "validate_clusters": true"#)]).unwrap();
    assert!(rig.world.dynamic(Kind::Route)[0].error.is_none());
    assert_eq!(rig.stat("http.h.rds.r.update_rejected"), 3);
}

#[tokio::test]
async fn inline_routes_name_clusters_that_are_there() {
    let rig = Rig::with(&[], &[], SHORT).await;
    let inline = |more: &str| manager(&format!(r#""route_config": {}"#, to("gone", more)));
    let error = rig.script.say(Kind::Listener, "2", &[inline("")]).unwrap_err();
    assert!(error.contains("route: unknown cluster 'gone'"), "{error}");
    rig.script.say(Kind::Listener, "3", &[inline(r#", "validate_clusters": false"#)]).unwrap();
    let here = server("here").await;
    rig.script.say(Kind::Cluster, "2", &[cluster("gone", here, "")]).unwrap();
    rig.script.say(Kind::Listener, "4", &[inline("")]).unwrap();
}

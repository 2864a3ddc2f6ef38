//! ECDS of HTTP filters: swapped in their connection managers, under connections that stay.

use std::sync::Arc;
use std::time::Duration;

use proxy_config::xds::Kind;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::rig::*;
use crate::http::Hcm;
use crate::net::facts::Facts;
use crate::network::Last;
use crate::xds::Failure;

const HCM: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const FAULT: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";
const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const MUTATION: &str = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
const STATS: &str = "extension_config_discovery.http_filter.gate";

/// A filter that comes by ECDS, of those types.
fn discovered(types: &[&str], more: &str) -> String {
    let types: Vec<_> = types.iter().map(|name| format!(r#""type.googleapis.com/{name}""#)).collect();
    format!(
        r#"{{"name": "gate", "config_discovery": {{"config_source": {{"ads": {{}}}},
        "type_urls": [{}] {more}}}}}"#,
        types.join(",")
    )
}

fn router() -> String {
    format!(
        r#"{{"name": "envoy.filters.http.router", "typed_config": {{"@type": "type.googleapis.com/{ROUTER}"}}}}"#
    )
}

/// `/` is answered with 200; `/off` turns the filter off, `/own` configures it.
fn manager(filters: &[String], more: &str) -> String {
    let route = |path: &str, said: &str| {
        format!(
            r#"{{"match": {{"path": "{path}"}}, "direct_response": {{"status": 200, "body": {{"inline_string": "ok"}}}},
            "typed_per_filter_config": {{{said}}}}}"#
        )
    };
    let said = |config: &str| format!(r#""gate": {config}"#);
    let filter_config = "type.googleapis.com/envoy.config.route.v3.FilterConfig";
    let routes = [
        route("/", ""),
        route("/off", &said(&format!(r#"{{"@type": "{filter_config}", "disabled": true}}"#))),
        route("/on", &said(&format!(r#"{{"@type": "{filter_config}", "config": {}}}"#, abort(410)))),
        route("/own", &said(&abort(410))),
    ];
    let hcm = format!(
        r#"{{"name": "http", "typed_config": {{"@type": "{HCM}", "stat_prefix": "h", "http_filters": [{}],
        "route_config": {{"virtual_hosts": [{{"name": "v", "domains": ["*"], "routes": [{}]}}]}} {more}}}}}"#,
        filters.join(","),
        routes.join(",")
    );
    listener("l", "127.0.0.1:0", &[format!(r#"{{"filters": [{hcm}]}}"#)], "")
}

fn abort(status: u16) -> String {
    format!(
        r#"{{"@type": "type.googleapis.com/{FAULT}", "abort": {{"http_status": {status},
        "percentage": {{"numerator": 100}}}}}}"#
    )
}

fn gate(config: &str) -> String {
    format!(r#"{{"name": "gate", "typed_config": {config}}}"#)
}

async fn rig(filters: &[String], more: &str) -> Rig {
    let rig = Rig::with(&[], &[], LONG).await;
    rig.script.say(Kind::Listener, "2", &[manager(filters, more)]).unwrap();
    rig
}

/// With the filter and the router.
async fn gated(more: &str) -> Rig {
    rig(&[discovered(&[FAULT, ROUTER], more), router()], "").await
}

async fn active(rig: &Rig) {
    rig.until("the listener", || rig.stat("listener_manager.total_listeners_active") == 1).await;
}

/// A client that keeps its connection.
struct Client(BufReader<TcpStream>);

impl Client {
    async fn of(rig: &Rig) -> Self {
        Self(BufReader::new(TcpStream::connect(rig.address("l")).await.unwrap()))
    }

    async fn get(&mut self, path: &str) -> u16 {
        self.ask(path, "").await
    }

    async fn ask(&mut self, path: &str, headers: &str) -> u16 {
        let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\n{headers}\r\n");
        self.0.get_mut().write_all(request.as_bytes()).await.unwrap();
        let (mut status, mut length) = (0, 0);
        loop {
            let mut line = String::new();
            timeout(LONG, self.0.read_line(&mut line)).await.unwrap().unwrap();
            assert!(!line.is_empty(), "the connection has ended");
            if line.starts_with("HTTP/1.1 ") {
                status = line.split(' ').nth(1).unwrap().parse().unwrap();
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        self.0.read_exact(&mut vec![0; length]).await.unwrap();
        status
    }
}

fn hcm(rig: &Rig) -> Arc<Hcm> {
    let snapshot = rig.world.snapshot();
    let facts = Facts::new("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
    let listener = snapshot.listeners().into_iter().next().unwrap();
    let Last::Http(hcm) = &listener.chain(&facts).unwrap().filters.last else { panic!("no HTTP") };
    hcm.clone()
}

#[tokio::test]
async fn the_next_request_of_a_connection_sees_what_has_come() {
    let rig = gated("").await;
    assert_eq!(rig.script.asked(Kind::Extension), ["gate"]);
    assert_eq!(rig.stat("listener_manager.total_listeners_warming"), 1);
    assert_eq!(rig.world.unready()[0].targets, ["shared target FilterConfigSubscription init gate"]);
    rig.script.say(Kind::Extension, "1", &[gate(&abort(418))]).unwrap();
    active(&rig).await;
    let (mut client, before) = (Client::of(&rig).await, hcm(&rig));
    assert_eq!(client.get("/").await, 418);
    rig.script.say(Kind::Extension, "2", &[gate(&abort(419))]).unwrap();
    assert_eq!(client.get("/").await, 419, "the same connection, the next request");
    assert_eq!((client.get("/own").await, client.get("/off").await), (410, 200), "what routes say holds");
    assert!(Arc::ptr_eq(&before, &hcm(&rig)), "the connection manager stays");
    // What cannot be here is refused, and changes nothing.
    let other = format!(r#"{{"@type": "type.googleapis.com/{MUTATION}"}}"#);
    let terminal = format!(r#"{{"@type": "type.googleapis.com/{ROUTER}"}}"#);
    let garbage = abort(1000);
    for (config, why) in [
        (other.as_str(), "gate: Error: filter config has type URL"),
        (&terminal, "gate: Error: terminal filter named gate of type"),
        (&garbage, "gate: "),
    ] {
        let refused = rig.script.say(Kind::Extension, "3", &[gate(config)]).unwrap_err();
        assert!(refused.starts_with(why), "{refused}");
        assert_eq!(client.get("/").await, 419);
    }
    let view = &rig.world.dynamic(Kind::Extension)[0];
    assert_eq!(&*view.active.as_ref().unwrap().version, "2");
    assert_eq!(&*view.error.as_ref().unwrap().version, "3");
    let stats = ["config_reload", "config_fail", "update_success", "update_rejected", "config_conflict"];
    assert_eq!(stats.map(|name| rig.stat(&format!("{STATS}.{name}"))), [2, 3, 2, 3, 0]);
    // Said again, it is no change.
    rig.script.say(Kind::Extension, "4", &[gate(&abort(419))]).unwrap();
    assert_eq!(rig.stat(&format!("{STATS}.config_reload")), 2);
    rig.script.say(Kind::Listener, "3", &[]).unwrap();
    rig.until("nobody asks", || rig.script.asked(Kind::Extension).is_empty()).await;
    assert_eq!(client.get("/").await, 419, "until its connection ends");
}

#[tokio::test]
async fn what_is_removed_is_missing_or_the_default_again() {
    let bare = gated("").await;
    bare.script.fail(Kind::Extension, &Failure::TimedOut(Duration::ZERO));
    active(&bare).await;
    let mut client = Client::of(&bare).await;
    assert_eq!((client.get("/").await, client.get("/off").await), (500, 200));
    bare.script.delta(Kind::Extension, "1", &[gate(&abort(418))], &[]).unwrap();
    assert_eq!(client.get("/").await, 418);
    bare.script.delta(Kind::Extension, "2", &[], &["gate"]).unwrap();
    assert_eq!(client.get("/").await, 500);
    assert_eq!(bare.stat(&format!("{STATS}.config_reload")), 2);

    let default = format!(r#", "default_config": {}"#, abort(420));
    let waiting = gated(&default).await;
    assert_eq!(waiting.stat("listener_manager.total_listeners_warming"), 1);
    let at_once = gated(&format!(r#"{default}, "apply_default_config_without_warming": true"#)).await;
    assert_eq!(at_once.stat("listener_manager.total_listeners_warming"), 0);
    let mut client = Client::of(&at_once).await;
    assert_eq!(client.get("/").await, 420);
    at_once.script.delta(Kind::Extension, "1", &[gate(&abort(418))], &[]).unwrap();
    assert_eq!(client.get("/").await, 418);
    at_once.script.delta(Kind::Extension, "2", &[], &["gate"]).unwrap();
    assert_eq!(client.get("/").await, 420);
}

#[tokio::test]
async fn a_filter_that_is_off_but_for_some_routes() {
    let disabled = discovered(&[FAULT], "").replacen('{', r#"{"disabled": true, "#, 1);
    let rig = rig(&[disabled, router()], "").await;
    rig.script.say(Kind::Extension, "1", &[gate(&abort(418))]).unwrap();
    active(&rig).await;
    let mut client = Client::of(&rig).await;
    assert_eq!((client.get("/").await, client.get("/on").await), (200, 410));
}

#[tokio::test]
async fn the_filters_of_an_upgrade_and_the_last_one_are_discovered_too() {
    let upgrade = format!(
        r#", "upgrade_configs": [{{"upgrade_type": "websocket", "filters": [{}, {}]}}]"#,
        discovered(&[FAULT], ""),
        router()
    );
    let rig = rig(&[discovered(&[ROUTER, FAULT], "").replace("gate", "end")], &upgrade).await;
    let mut asked = rig.script.asked(Kind::Extension);
    asked.sort();
    assert_eq!(asked, ["end", "gate"]);
    let end = format!(
        r#"{{"name": "end", "typed_config": {{"@type": "type.googleapis.com/{ROUTER}", "suppress_envoy_headers": true}}}}"#
    );
    rig.script.say(Kind::Extension, "1", &[gate(&abort(418)), end]).unwrap();
    active(&rig).await;
    let mut client = Client::of(&rig).await;
    assert_eq!(client.get("/").await, 200);
    assert!(hcm(&rig).discovered_router().is_some_and(|router| router.suppress_envoy_headers));
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\n";
    assert_eq!(client.ask("/", upgrade).await, 418);
    let refused = rig.script.say(Kind::Extension, "2", &[gate(&abort(418)).replace("gate", "end")]);
    assert!(refused.unwrap_err().contains("non-terminal filter named end"));
}

#[tokio::test]
async fn one_that_does_not_fit_a_new_place_is_not_there() {
    let rig = gated("").await;
    rig.script.say(Kind::Extension, "1", &[gate(&abort(418))]).unwrap();
    active(&rig).await;
    let other = manager(&[discovered(&[MUTATION], ""), router()], "").replace(r#""l""#, r#""m""#);
    let both = [manager(&[discovered(&[FAULT, ROUTER], ""), router()], ""), other];
    rig.script.say(Kind::Listener, "3", &both).unwrap();
    assert_eq!(rig.stat(&format!("{STATS}.config_conflict")), 1);
    assert_eq!(Client::of(&rig).await.get("/").await, 418);
    let mut client = Client(BufReader::new(TcpStream::connect(rig.address("m")).await.unwrap()));
    assert_eq!(client.get("/").await, 500);
}

#[tokio::test]
async fn a_connection_manager_that_comes_itself_names_routes_and_filters() {
    let network = format!(
        r#"{{"filters": [{{"name": "http", "config_discovery": {{"config_source": {{"ads": {{}}}},
        "type_urls": ["{HCM}"]}}}}]}}"#
    );
    let rig = Rig::with(&[], &[], LONG).await;
    rig.script.say(Kind::Listener, "2", &[listener("l", "127.0.0.1:0", &[network], "")]).unwrap();
    assert_eq!(rig.script.asked(Kind::Extension), ["http"]);
    let come = format!(
        r#"{{"name": "http", "typed_config": {{"@type": "{HCM}", "stat_prefix": "h",
        "http_filters": [{}, {}], "rds": {{"route_config_name": "r", "config_source": {{"ads": {{}}}}}}}}}}"#,
        discovered(&[FAULT], ""),
        router()
    );
    rig.script.say(Kind::Extension, "1", &[come]).unwrap();
    assert_eq!(rig.script.asked(Kind::Route), ["r"]);
    active(&rig).await;
    rig.script.delta(Kind::Extension, "2", &[gate(&abort(418))], &[]).unwrap();
    assert_eq!(Client::of(&rig).await.get("/").await, 418);
}

use proxy_config::load::{Options as LoadOptions, bootstrap};

use super::super::testing::{Fake, read};
use super::*;
use crate::cluster::Env;
use crate::net::HostDial;
use crate::network::local_ratelimit::Buckets;
use crate::task::Tasks;
use crate::telemetry::access_log::Sinks;
use crate::telemetry::stats::Stats;
use crate::world::Parts;

fn snapshot(text: &str) -> Snapshot {
    let loaded = bootstrap(text, None, LoadOptions::default()).unwrap();
    let stats = Arc::new(Stats::new());
    let env = Env::new(stats.clone(), Tasks::new(&stats), Arc::new(HostDial), Arc::new(crate::xds::Nowhere));
    let (sinks, buckets) = (Sinks::new(std::time::Duration::from_secs(1), &stats), Buckets::default());
    let http = crate::http::Common::default();
    let parts = Parts { cluster: &env, sinks: &sinks, buckets: &buckets, http: &http };
    let listeners = loaded.bootstrap.listeners.iter().map(|listener| listener.model.clone());
    let clusters = loaded.bootstrap.clusters.iter().map(|cluster| cluster.model.clone());
    Snapshot::build(listeners, clusters, &parts).unwrap()
}

fn listener(name: &str, ip: &str, port: u16, fields: &str, chains: &[String]) -> String {
    format!(
        "  - {{name: {name}, address: {{socket_address: {{address: {ip}, port_value: {port}}}}}, {fields} \
         filter_chains: [{}]}}\n",
        chains.join(", ")
    )
}

fn chain(name: &str, matching: &str, cluster: &str) -> String {
    format!(
        r#"{{name: {name}, filter_chain_match: {{{matching}}}, filters: [{{name: t, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: a, {cluster}}}}}]}}"#
    )
}

fn cluster(name: &str, ports: &[(u16, &str)]) -> String {
    let endpoint = |(port, health): &(u16, &str)| {
        format!(
            "{{health_status: {health}, endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}"
        )
    };
    let endpoints: Vec<_> = ports.iter().map(endpoint).collect();
    format!(
        "  - {{name: {name}, type: STATIC, load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{}]}}]}}}}\n",
        endpoints.join(", ")
    )
}

const INSPECTORS: &str = r#"listener_filters: [{name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}, {name: http, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}],"#;

/// A sidecar in small: virtual listeners, services by address and by port, one of them by SNI.
fn sidecar() -> Arc<dyn View> {
    let virtual_outbound = "use_original_dst: true, traffic_direction: OUTBOUND,";
    let unbound = "bind_to_port: false, traffic_direction: OUTBOUND,";
    let by_name = format!("{unbound} {INSPECTORS}");
    let listeners = [
        listener("virtualOutbound", "0.0.0.0", 15001, virtual_outbound, &[chain("pass", "", "cluster: any")]),
        listener(
            "virtualInbound",
            "0.0.0.0",
            15006,
            "traffic_direction: INBOUND,",
            &[chain("app", "destination_port: 8080", "cluster: app"), chain("rest", "", "cluster: gone")],
        ),
        listener(
            "10.0.0.1_80",
            "10.0.0.1",
            80,
            unbound,
            &[chain(
                "both",
                "",
                "weighted_clusters: {clusters: [{name: app, weight: 3}, {name: down, weight: 1}]}",
            )],
        ),
        listener(
            "0.0.0.0_443",
            "0.0.0.0",
            443,
            &by_name,
            &[
                chain("named", "server_names: [a.example], application_protocols: [istio]", "cluster: app"),
                chain("http", "application_protocols: [http/1.1]", "cluster: down"),
            ],
        ),
    ];
    let any = "  - {name: any, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED}\n";
    let clusters =
        [any, &cluster("app", &[(81, "HEALTHY"), (82, "UNHEALTHY")]), &cluster("down", &[(83, "DRAINING")])];
    let text =
        format!("static_resources:\n  listeners:\n{}  clusters:\n{}", listeners.concat(), clusters.concat());
    Arc::new(Fake { snapshot: Some(Arc::new(snapshot(&text))), ..Fake::default() })
}

async fn ask(view: &Arc<dyn View>, query: &str) -> (u16, String) {
    read(answer(&Params::parse(Some(query)), view.as_ref())).await
}

async fn found(view: &Arc<dyn View>, query: &str) -> Value {
    let (status, body) = ask(view, query).await;
    assert_eq!(status, 200, "{query}: {body}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test]
async fn the_listener_and_the_chain_of_a_destination() {
    let view = sidecar();
    for (query, listener, how, chain, cluster) in [
        ("destination=10.0.0.1:80", "10.0.0.1_80", "exact", "both", "app"),
        ("destination=10.9.9.9:443&sni=A.example&alpn=istio,h2", "0.0.0.0_443", "wildcard", "named", "app"),
        ("destination=10.9.9.9:443&http", "0.0.0.0_443", "wildcard", "http", "down"),
        ("destination=10.0.0.1:81", "virtualOutbound", "passthrough", "pass", "any"),
        ("destination=10.0.0.7:8080&direction=inbound", "virtualInbound", "passthrough", "app", "app"),
        ("destination=10.0.0.7:80&entry=virtualInbound", "virtualInbound", "passthrough", "rest", "gone"),
    ] {
        let found = found(&view, query).await;
        assert_eq!(found["listener"], json!({"name": listener, "found": how}), "{query}");
        assert_eq!(found["chain"]["name"], chain, "{query}");
        assert_eq!(found["clusters"][0]["name"], cluster, "{query}");
    }
    // TLS without the protocol that the chain asks for.
    let none = found(&view, "destination=10.9.9.9:443&sni=a.example").await;
    assert_eq!(none["facts"]["server_name"], "a.example");
    assert!(none.get("chain").is_none());
    assert_eq!(none["problems"], json!(["no filter chain matches: it is closed"]));
}

#[tokio::test]
async fn clusters_and_their_endpoints() {
    let view = sidecar();
    let both = found(&view, "destination=10.0.0.1:80").await;
    let [app, down] = both["clusters"].as_array().unwrap().as_slice() else { panic!("{both}") };
    assert_eq!(
        *app,
        json!({
            "name": "app",
            "type": "STATIC",
            "weight": 3,
            "transport_socket": "raw_buffer",
            "healthy": 1,
            "total": 2,
            "endpoints": [
                {"address": "127.0.0.1:81", "health": [], "weight": 1, "priority": 0, "locality": ""},
                {"address": "127.0.0.1:82", "health": ["failed_eds_health"], "weight": 1, "priority": 0, "locality": ""},
            ],
        })
    );
    assert_eq!((&down["healthy"], &down["weight"]), (&json!(0), &json!(1)));
    assert_eq!(both["problems"], json!(["cluster down has no healthy endpoint, of 1"]));
    let past = found(&view, "destination=[fd00::1]:81").await;
    assert_eq!(
        (&past["source"], &past["clusters"][0]["to"]),
        (&json!("[2001:db8::1]:1"), &json!("[fd00::1]:81"))
    );
    let gone = found(&view, "destination=10.0.0.7:80&direction=inbound").await;
    assert_eq!(gone["problems"], json!(["cluster gone is not there: it is closed"]));
}

#[tokio::test]
async fn without_interception_the_bound_listeners_answer() {
    let text = format!(
        "static_resources:\n  listeners:\n{}  clusters:\n{}",
        listener(
            "gateway",
            "127.0.0.1",
            15443,
            "traffic_direction: OUTBOUND,",
            &[chain("all", "", "cluster: app")]
        ),
        cluster("app", &[(81, "HEALTHY")])
    );
    let view: Arc<dyn View> = Arc::new(Fake { snapshot: Some(Arc::new(snapshot(&text))), ..Fake::default() });
    let there = found(&view, "destination=127.0.0.1:15443").await;
    assert_eq!((&there["entry"], &there["listener"]["found"]), (&Value::Null, &json!("exact")));
    let nobody = found(&view, "destination=10.0.0.1:80").await;
    assert_eq!(nobody["problems"], json!(["no listener accepts connections to 10.0.0.1:80"]));
}

#[tokio::test]
async fn what_cannot_be_answered() {
    let view = sidecar();
    for (query, status, why) in [
        ("", 400, "destination=IP:PORT is missing"),
        ("destination=example:80", 400, "destination=example:80: not IP:PORT"),
        ("destination=10.0.0.1:80&source=x", 400, "source=x: not IP:PORT, and not an IP address"),
        ("destination=10.0.0.1:80&direction=up", 400, "direction=up: neither inbound nor outbound"),
        ("destination=10.0.0.1:80&alpn=,", 400, "alpn=: not 1 to 255 bytes long"),
        ("destination=10.0.0.1:80&sni=a&http", 400, "http is plain text: not with sni, alpn or tls"),
        ("destination=10.0.0.1:80&entry=nosuch", 404, "there is no listener nosuch"),
    ] {
        assert_eq!(ask(&view, query).await, (status, format!("{why}\n")), "{query}");
    }
    let none: Arc<dyn View> = Arc::new(Fake::default());
    assert_eq!(ask(&none, "destination=10.0.0.1:80").await.0, 404);
    assert_eq!(read(listeners(none.as_ref())).await.0, 404);
}

#[tokio::test]
async fn every_listener_with_its_chains() {
    let (status, body) = read(listeners(sidecar().as_ref())).await;
    assert_eq!(status, 200);
    let all: Value = serde_json::from_str(&body).unwrap();
    let [outbound, inbound, exact, named] = all["listeners"].as_array().unwrap().as_slice() else {
        panic!("{body}")
    };
    assert_eq!((&outbound["use_original_dst"], &outbound["bound"]), (&json!(true), &json!(true)));
    assert_eq!(exact["addresses"], json!(["10.0.0.1:80"]));
    assert_eq!(exact["chains"][0]["clusters"], json!(["app", "down"]));
    assert_eq!(inbound["chains"][1]["missing"], json!(["gone"]));
    assert_eq!(
        named["chains"][0],
        json!({
            "name": "named",
            "default": false,
            "match": {"server_names": ["a.example"], "application_protocols": ["istio"]},
            "transport_socket": "raw_buffer",
            "filters": [{"name": "t", "filter": "tcp_proxy"}],
            "clusters": ["app"],
        })
    );
}

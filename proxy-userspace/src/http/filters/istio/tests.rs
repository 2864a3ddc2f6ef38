use std::sync::Arc;
use std::time::Duration;

use proxy_config::model::cluster::{Cluster, Discovery};
use proxy_config::model::http::filters::{GrpcMethods, GrpcStats};
use proxy_config::model::http::istio::{IstioAlpn, IstioStats, PeerDiscovery, PeerMetadata, PeerPropagation};
use proxy_config::model::http::options::UpstreamProtocol;
use proxy_config::model::http::{
    Action, FilterKind, Http2Options, HttpFilter, HttpOptions, RouteConfiguration,
};
use proxy_config::model::metadata::{Metadata, Struct, Value};
use proxy_config::model::packed::Packed;

use crate::http::router::tests::action;
use crate::http::testing::{Rig, any_route, frames, manager, request, respond};
use crate::http::{Stream, UpstreamAlpn};
use crate::istio::Peer;

const ID: &str = "x-envoy-peer-metadata-id";
const METADATA: &str = "x-envoy-peer-metadata";
/// `WORKLOAD_NAME: w`.
const GOOD: &str = "ChQKDVdPUktMT0FEX05BTUUSAxoBdw==";

fn rig(model: PeerMetadata) -> Rig {
    Rig::new(vec![("f", FilterKind::MetadataExchange(Box::new(model)))], any_route())
}

fn workload(peer: Option<&Arc<Peer>>) -> Option<&str> {
    peer.map(|peer| &*peer.workload)
}

#[tokio::test]
async fn a_client_is_told_what_it_has_told() {
    let model = PeerMetadata {
        downstream_discovery: vec![PeerDiscovery::IstioHeaders, PeerDiscovery::Baggage],
        downstream_propagation: vec![PeerPropagation::IstioHeaders { skip_external_clusters: false }],
        ..PeerMetadata::default()
    };
    let rig = rig(model);
    let huge = "A".repeat(100_000);
    for (headers, found, told) in [
        (vec![], None, [false, false]),
        (vec![(ID, "client")], None, [true, false]),
        (vec![(ID, "client"), (METADATA, GOOD)], Some("w"), [true, true]),
        (vec![(METADATA, GOOD.trim_end_matches('='))], Some("w"), [false, true]),
        (vec![(METADATA, "no base64")], None, [false, true]),
        (vec![(METADATA, "AAAA")], None, [false, true]),
        (vec![(METADATA, &huge)], None, [false, true]),
        (vec![("baggage", "k8s.pod.name=p,x=y")], Some("p"), [false, false]),
    ] {
        for _ in 0..2 {
            let mut stream = rig.with("/", &headers);
            let sent = rig
                .exchange(&mut stream, |stream| {
                    for name in [ID, METADATA] {
                        assert!(!stream.request().headers.contains_key(name), "{headers:?} go no further");
                    }
                    respond(stream, 200, &[], "");
                })
                .await
                .unwrap();
            assert_eq!([ID, METADATA].map(|name| sent.header(name).is_some()), told, "{headers:?}");
            assert_eq!(workload(stream.entry.peers.by_key("downstream_peer")), found, "{headers:?}");
            assert_eq!(workload(stream.entry.peers.by_key("wasm.downstream_peer")), found, "{headers:?}");
        }
    }
}

#[tokio::test]
async fn an_upstream_is_told_and_what_it_tells_goes_no_further() {
    let model = PeerMetadata {
        upstream_discovery: vec![PeerDiscovery::IstioHeaders],
        upstream_propagation: vec![
            PeerPropagation::IstioHeaders { skip_external_clusters: false },
            PeerPropagation::Baggage,
        ],
        ..PeerMetadata::default()
    };
    let rig = rig(model);
    let mut stream = rig.get("/");
    let sent = rig
        .exchange(&mut stream, |stream| {
            for name in [ID, METADATA, "baggage"] {
                assert!(stream.request().headers.contains_key(name), "{name}");
            }
            let slot = stream.entry.peers.upstream.clone().unwrap();
            assert!(!slot.is_settled());
            respond(stream, 200, &[(ID, "server"), (METADATA, GOOD)], "");
        })
        .await
        .unwrap();
    assert_eq!([ID, METADATA].map(|name| sent.header(name)), [None, None]);
    assert_eq!(workload(stream.entry.peers.by_key("upstream_peer")), Some("w"));
    assert_eq!(stream.entry.peers.by_key("downstream_peer"), None);
}

/// A stream of which only its client says anything.
#[tokio::test]
async fn messages_of_a_client_are_counted_while_it_goes_on() {
    const MESSAGE: &[u8] = &[0, 0, 0, 0, 1, 7];
    let every = Duration::from_millis(1);
    let peers =
        PeerMetadata { upstream_discovery: vec![PeerDiscovery::IstioHeaders], ..PeerMetadata::default() };
    let messages = GrpcStats {
        emit_filter_state: true,
        enable_upstream_stats: false,
        replace_dots_in_grpc_service_name: false,
        methods: GrpcMethods::Listed(Vec::new()),
    };
    let metrics = IstioStats {
        disable_host_header_fallback: false,
        tcp_reporting_duration: Some(every),
        metrics: Vec::new(),
        definitions: Vec::new(),
        server_gateway: false,
        rotation: None,
    };
    let filters = vec![
        ("peers", FilterKind::MetadataExchange(Box::new(peers))),
        ("messages", FilterKind::GrpcStats(messages)),
        ("metrics", FilterKind::IstioStats(Box::new(metrics))),
    ];
    let rig = Rig::new(filters, any_route());
    let grpc = [("content-type", "application/grpc")];
    let body = || frames(&[MESSAGE, MESSAGE, MESSAGE], None);
    let mut stream = rig.stream(request(http::Method::POST, "/a.S/Put", &grpc), body());
    let mut chain = rig.begin(&stream);
    for filter in &mut chain {
        filter.request(&mut stream).done().await.unwrap();
    }
    let counted = || {
        let text = rig.stats.render_text();
        let line = text.lines().find(|line| line.contains("istio_request_messages_total"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or_default()
    };
    tokio::time::sleep(2 * every).await;
    stream.request_body.frame().await.unwrap().unwrap();
    assert_eq!(counted(), 0, "nobody knows the upstream");
    respond(&mut stream, 200, &[grpc[0], (ID, "server"), (METADATA, GOOD)], "");
    stream.response_body = frames(&[MESSAGE], None);
    for filter in chain.iter_mut().rev() {
        filter.response(&mut stream).done().await.unwrap();
    }
    stream.request_body.frame().await.unwrap().unwrap();
    assert_eq!(counted(), 2);
    while stream.request_body.frame().await.is_some() {}
    chain.iter_mut().for_each(|filter| filter.end(&mut stream));
    assert_eq!(counted(), 3);
}

fn to_it() -> RouteConfiguration {
    let mut routes = any_route();
    routes.virtual_hosts[0].routes[0].action = Action::Route(Box::new(action()));
    routes
}

fn cluster(protocol: UpstreamProtocol, istio: &[(&str, Value)]) -> Cluster {
    let mut cluster = Cluster::new("c", Discovery::Static);
    cluster.http = Some(Box::new(HttpOptions { protocol, ..HttpOptions::default() }));
    let mut fields = Struct::new();
    istio.iter().for_each(|(key, value)| drop(fields.insert((*key).to_owned(), value.clone())));
    let mut metadata = Metadata::default();
    metadata.0.insert("istio".into(), fields);
    cluster.metadata = Packed::from(&metadata);
    cluster
}

#[tokio::test]
async fn alpn_is_of_the_protocol_that_is_spoken_upstream() {
    let one = |name: &str| vec![Arc::from(name)];
    let model = IstioAlpn { http10: one("ten"), http11: one("eleven"), http2: one("two") };
    let http1 = || UpstreamProtocol::Http1(Default::default());
    let http2 = || UpstreamProtocol::Http2(Http2Options::default());
    let down = |http2: bool| UpstreamProtocol::UseDownstream {
        http1: Default::default(),
        http2: http2.then(Http2Options::default),
    };
    let off = [("alpn_override", Value::String("false".into()))];
    for (protocol, istio, version, offered) in [
        (http1(), &[][..], http::Version::HTTP_11, Some("eleven")),
        (http1(), &[][..], http::Version::HTTP_2, Some("eleven")),
        (http2(), &[][..], http::Version::HTTP_11, Some("two")),
        (down(true), &[][..], http::Version::HTTP_2, Some("two")),
        (down(true), &[][..], http::Version::HTTP_10, Some("ten")),
        (http2(), &off[..], http::Version::HTTP_11, None),
    ] {
        let filter =
            HttpFilter { name: "f".into(), disabled: false, kind: FilterKind::IstioAlpn(model.clone()) };
        let rig = Rig::of(&manager(vec![filter], to_it()), [cluster(protocol, istio)]);
        let mut stream: Stream = rig.get("/");
        stream.request_mut().version = version;
        rig.exchange(&mut stream, |stream| respond(stream, 200, &[], "")).await.unwrap();
        let found = stream.extensions.get::<UpstreamAlpn>().map(|alpn| &*alpn.0[0]);
        assert_eq!(found, offered, "{version:?}");
    }
}

use std::sync::Arc;

use http::{Method, StatusCode};
use proxy_config::model::cluster::{Cluster, Discovery};
use proxy_config::model::expression::Expression;
use proxy_config::model::http::istio::{IstioMetric, IstioMetricDefinition, IstioMetricKind, IstioRotation};
use proxy_config::model::metadata::{Metadata, Struct, Value};
use proxy_config::model::packed::Packed;

use super::*;
use crate::http::{RequestHead, ResponseHead};
use crate::istio::local::LocalLabels;
use crate::istio::{Peer, Slot};
use crate::net::facts::Facts;
use crate::telemetry::{HttpEntry, LogType, Origin};
use crate::transport::{Certificate, TlsInfo};

fn text(text: &str) -> Value {
    Value::String(text.into())
}

fn model() -> IstioStats {
    IstioStats {
        disable_host_header_fallback: false,
        tcp_reporting_duration: Some(Duration::from_secs(5)),
        metrics: Vec::new(),
        definitions: Vec::new(),
        server_gateway: false,
        rotation: None,
    }
}

/// The workloads of the tests of Istio's proxy.
fn local(name: &str) -> Arc<Local> {
    let labels = LocalLabels {
        workload: format!("{name}-v1").into(),
        namespace: "default".into(),
        canonical_name: name.into(),
        canonical_revision: "version-1".into(),
        app: name.into(),
        version: "v1".into(),
        cluster: format!("{name}-cluster").into(),
    };
    Arc::new(Local { labels, version: "1.99".into(), ..Local::default() })
}

fn peer(name: &str) -> Arc<Slot> {
    Arc::new(Slot::of(Arc::new(Peer {
        workload: format!("{name}-v1").into(),
        namespace: "default".into(),
        canonical_name: name.into(),
        canonical_revision: "version-1".into(),
        app: name.into(),
        version: "v1".into(),
        cluster: format!("{name}-cluster").into(),
        ..Peer::default()
    })))
}

fn service_metadata() -> Metadata {
    let mut service = Struct::new();
    for (key, value) in
        [("host", "server.default.svc.cluster.local"), ("name", "server"), ("namespace", "default")]
    {
        service.insert(key.into(), text(value));
    }
    let mut istio = Struct::new();
    istio.insert("services".into(), Value::List(vec![Value::Struct(service)]));
    let mut metadata = Metadata::default();
    metadata.0.insert("istio".into(), istio);
    metadata
}

fn entry(direction: Direction) -> Entry {
    let address = "127.0.0.1:80".parse().unwrap();
    let origin =
        Origin { connection_id: 1, workload: None, direction: Some(direction), listener: "l".into() };
    let mut entry = Entry::new(origin, Facts::new(address, address), LogType::TcpConnectionEnd);
    let mut http = HttpEntry::new(RequestHead::new(Method::GET, "asked.test:81", "/"), crate::clock::now());
    http.response = Some(ResponseHead::new(StatusCode::OK));
    entry.http = Some(Box::new(http));
    let mut cluster = Cluster::new("server-outbound-cluster", Discovery::Static);
    cluster.metadata = Packed::from(&service_metadata());
    entry.upstream.cluster_model = Some(Arc::new(cluster));
    entry
}

fn shown(stats: &Stats, recorder: &Recorder, entry: &Entry, shape: Shape, protocol: Protocol) -> Vec<String> {
    let bundle = recorder.bundle(entry, shape, protocol);
    let again = recorder.bundle(entry, shape, protocol);
    assert!(Arc::ptr_eq(&bundle, &again), "what is known is not made again");
    let first = bundle.standard.iter().flatten().next().unwrap();
    assert!(stats.render_text().contains(&**first.name()));
    first.labels().map(|(name, value)| format!("{name}={value}")).collect()
}

/// What Istio's own tests expect of a request from productpage to ratings.
fn expected(reporter: &str, security: &str) -> String {
    format!(
        "reporter={reporter} source_workload=productpage-v1 source_canonical_service=productpage \
         source_canonical_revision=version-1 source_workload_namespace=default source_principal=unknown \
         source_app=productpage source_version=v1 source_cluster=productpage-cluster \
         destination_workload=ratings-v1 destination_workload_namespace=default destination_principal=unknown \
         destination_app=ratings destination_version=v1 destination_service=server.default.svc.cluster.local \
         destination_canonical_service=ratings destination_canonical_revision=version-1 \
         destination_service_name=server destination_service_namespace=default \
         destination_cluster=ratings-cluster request_protocol=http response_code=200 grpc_response_status= \
         response_flags=- connection_security_policy={security}"
    )
}

/// `client_request_total`
#[test]
fn a_request_as_the_clients_sidecar_tells_it() {
    let stats = Arc::new(Stats::new());
    let recorder = Recorder::new(&model(), &local("productpage"), &stats);
    let mut entry = entry(Direction::Outbound);
    entry.peers.upstream = Some(peer("ratings"));
    let labels = shown(&stats, &recorder, &entry, Shape::Http, Protocol::Http);
    assert_eq!(labels.join(" "), expected("source", "unknown"));
    assert!(stats.render_text().contains("istiocustom.istio_build.component.proxy.tag.1.99: 1\n"));
}

/// `server_request_total`, and what changes with mTLS.
#[test]
fn a_request_as_the_servers_sidecar_tells_it() {
    let stats = Arc::new(Stats::new());
    let recorder = Recorder::new(&model(), &local("ratings"), &stats);
    let mut entry = entry(Direction::Inbound);
    entry.peers.downstream = Some(peer("productpage"));
    let labels = shown(&stats, &recorder, &entry, Shape::Http, Protocol::Http);
    assert_eq!(labels.join(" "), expected("destination", "none"));
    let certificate = |name: &str| {
        let uri_sans = vec![format!("spiffe://cluster.local/ns/other/sa/{name}")];
        Some(Arc::new(Certificate { uri_sans, ..Certificate::default() }))
    };
    let tls = TlsInfo { peer: certificate("client"), local: certificate("server"), ..TlsInfo::default() };
    entry.facts.tls = Some(Arc::new(tls));
    let labels = shown(&stats, &recorder, &entry, Shape::Http, Protocol::Http).join(" ");
    for part in [
        "source_principal=spiffe://cluster.local/ns/other/sa/client",
        "source_workload_namespace=other",
        "destination_principal=spiffe://cluster.local/ns/other/sa/server",
        "connection_security_policy=mutual_tls",
    ] {
        assert!(labels.contains(part), "{part}: {labels}");
    }
}

#[test]
fn nobody_told_and_no_service_known() {
    let stats = Arc::new(Stats::new());
    let mut entry = entry(Direction::Outbound);
    entry.upstream.cluster_model = Some(Arc::new(Cluster::new("c", Discovery::Static)));
    let of = |model: &IstioStats, entry: &Entry| {
        let recorder = Recorder::new(model, &local("productpage"), &stats);
        shown(&stats, &recorder, entry, Shape::Http, Protocol::Http).join(" ")
    };
    let labels = of(&model(), &entry);
    for part in [
        "destination_workload=unknown",
        "destination_canonical_revision=latest",
        "destination_service=asked.test:81",
        "destination_service_name=asked.test:81",
        "destination_service_namespace=unknown",
    ] {
        assert!(labels.contains(part), "{part}: {labels}");
    }
    let labels = of(&IstioStats { disable_host_header_fallback: true, ..model() }, &entry);
    assert!(labels.contains("destination_service=unknown"), "{labels}");
    entry.upstream.cluster_model = Some(Arc::new(Cluster::new("PassthroughCluster", Discovery::Static)));
    assert!(of(&model(), &entry).contains("destination_service_name=PassthroughCluster"));
    entry.http.as_mut().unwrap().route = Some("block_all".into());
    assert!(of(&model(), &entry).contains("destination_service_name=BlackHoleCluster"));
    let mut istio = Struct::new();
    istio.insert("workload".into(), text("ratings-v1;default;ratings;version-1;server-cluster"));
    let mut metadata = Metadata::default();
    metadata.0.insert("istio".into(), istio);
    entry.upstream.host_metadata = Some(Arc::new(metadata));
    let labels = of(&model(), &entry);
    for part in
        ["destination_workload=ratings-v1", "destination_app=unknown", "destination_cluster=server-cluster"]
    {
        assert!(labels.contains(part), "{part}: {labels}");
    }
    let labels = of(&IstioStats { server_gateway: true, ..model() }, &entry);
    assert!(labels.starts_with("reporter=waypoint source_workload=unknown"), "{labels}");
}

#[test]
fn grpc_and_tcp() {
    let stats = Arc::new(Stats::new());
    let recorder = Recorder::new(&model(), &local("ratings"), &stats);
    let mut entry = entry(Direction::Inbound);
    entry
        .http
        .as_mut()
        .unwrap()
        .response
        .as_mut()
        .unwrap()
        .headers
        .insert("grpc-status", "7".parse().unwrap());
    let labels = shown(&stats, &recorder, &entry, Shape::Http, Protocol::Grpc).join(" ");
    assert!(labels.contains("request_protocol=grpc response_code=200 grpc_response_status=7"), "{labels}");
    let labels = shown(&stats, &recorder, &entry, Shape::Messages, Protocol::Grpc);
    assert_eq!(labels.len(), 20);
    assert!(labels.last().unwrap().starts_with("destination_cluster="));
    entry.http = None;
    let labels = shown(&stats, &recorder, &entry, Shape::Tcp, Protocol::Tcp).join(" ");
    assert!(
        labels.ends_with("request_protocol=tcp response_flags=- connection_security_policy=none"),
        "{labels}"
    );
    assert!(!labels.contains("response_code"), "{labels}");
}

#[test]
fn overrides_as_istios_proxy_applies_them() {
    let stats = Arc::new(Stats::new());
    let dimensions = |list: &[(&str, &str)]| {
        list.iter().map(|(label, text)| (Arc::from(*label), Expression::parse(text).ok())).collect()
    };
    let metric = |name: &str, list: &[(&str, &str)], gone: &[&str]| IstioMetric {
        name: name.into(),
        dimensions: dimensions(list),
        tags_to_remove: gone.iter().map(|tag| Arc::from(*tag)).collect(),
        drop: false,
    };
    let model = IstioStats {
        definitions: vec![IstioMetricDefinition {
            name: "custom".into(),
            value: Expression::parse("1").unwrap(),
            kind: IstioMetricKind::Counter,
        }],
        metrics: vec![
            IstioMetric { drop: true, ..metric("request_duration_milliseconds", &[], &[]) },
            metric("custom", &[("reporter", "'proxy'")], &[]),
            metric("", &[], &["response_flags", "source_principal"]),
            metric(
                "requests_total",
                &[
                    ("configurable_metric_a", "'gateway'"),
                    ("request_protocol", "request.protocol"),
                    ("destination_app", "cannot _ parse | 1"),
                    ("destination_workload", "cannot_evaluate"),
                    ("unparsed", "|"),
                ],
                &["grpc_response_status"],
            ),
            metric("", &[("source_principal", "'malicious'")], &[]),
        ],
        ..model()
    };
    let recorder = Recorder::new(&model, &local("productpage"), &stats);
    let mut entry = entry(Direction::Outbound);
    entry.peers.upstream = Some(peer("ratings"));
    let labels = shown(&stats, &recorder, &entry, Shape::Http, Protocol::Http).join(" ");
    for part in [
        "source_principal=malicious",
        "destination_workload=unknown",
        "request_protocol=HTTP/1.1",
        "configurable_metric_a=gateway",
    ] {
        assert!(labels.contains(part), "{part}: {labels}");
    }
    for part in ["response_flags", "grpc_response_status", "destination_app", "unparsed"] {
        assert!(!labels.contains(part), "{part}: {labels}");
    }
    let bundle = recorder.bundle(&entry, Shape::Http, Protocol::Http);
    bundle.tell(Metric::Duration, 1);
    bundle.tell(Metric::RequestBytes, 1);
    recorder.end(&bundle, &entry);
    let text = stats.render_text();
    assert!(
        text.contains("istiocustom.istio_custom.reporter.proxy.source_principal.malicious: 1\n"),
        "{text}"
    );
    assert!(!text.contains("istio_request_duration_milliseconds"), "{text}");
    assert!(text.contains("istio_request_bytes"), "{text}");
}

#[test]
fn a_connection_is_opened_once_its_peer_is_known_and_closed_at_its_end() {
    let stats = Arc::new(Stats::new());
    let recorder = Arc::new(Recorder::new(&model(), &local("ratings"), &stats));
    let mut entry = entry(Direction::Inbound);
    entry.http = None;
    entry.peers.downstream = Some(Arc::default());
    let mut report = Report::new(recorder);
    entry.bytes.downstream_rx = 5;
    report.tell(&entry, false);
    assert!(!stats.render_text().contains("istio_tcp"));
    entry.peers.downstream = Some(peer("productpage"));
    report.tell(&entry, false);
    entry.bytes.downstream_rx = 12;
    entry.bytes.downstream_tx = 3;
    report.tell(&entry, true);
    let text = stats.render_text();
    for (name, value) in
        [("connections_opened", 1), ("connections_closed", 1), ("received_bytes", 12), ("sent_bytes", 3)]
    {
        let prefix =
            format!("istiocustom.istio_tcp_{name}_total.reporter.destination.source_workload.productpage-v1");
        let line =
            text.lines().find(|line| line.starts_with(&prefix)).unwrap_or_else(|| panic!("{name}: {text}"));
        assert!(line.ends_with(&format!(": {value}")), "{line}");
    }
}

/// What a connection goes on to count is not lost with what was forgotten.
#[tokio::test(start_paused = true)]
async fn a_connection_counts_on_after_its_series_were_forgotten() {
    let stats = Arc::new(Stats::new());
    let rotation = IstioRotation { interval: Duration::from_secs(10), grace_period: Duration::from_secs(10) };
    let model = IstioStats { rotation: Some(rotation), ..model() };
    let recorder = Arc::new(Recorder::new(&model, &local("ratings"), &stats));
    let mut entry = entry(Direction::Inbound);
    entry.http = None;
    entry.peers.downstream = Some(peer("productpage"));
    let mut report = Report::new(recorder);
    report.tell(&entry, false);
    tokio::time::advance(Duration::from_secs(30)).await;
    assert!(!stats.render_text().contains("istio_tcp"));
    entry.bytes.downstream_tx = 3;
    report.tell(&entry, true);
    let text = stats.render_text();
    let sent = text.lines().find(|line| line.contains("istio_tcp_sent_bytes_total.reporter.destination."));
    assert!(sent.is_some_and(|line| line.ends_with(": 3")), "{text}");
    assert!(text.contains("istio_build"), "{text}");
}

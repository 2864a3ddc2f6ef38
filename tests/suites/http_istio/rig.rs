//! Two sidecars with identities of one mesh, and what they have counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use shunt_tests::bootstrap::{chain, extension, file_log};
use shunt_tests::tls_context::tls_chain;
use shunt_tests::{Bootstrap, Kind, Lab, Proxy, TlsContext, until};

use crate::tls_common::{CLIENT, Mesh, SERVER};

pub(super) const METADATA: &str = "x-envoy-peer-metadata";
pub(super) const METADATA_ID: &str = "x-envoy-peer-metadata-id";

/// An extension of Istio, as istiod sends it.
pub(super) fn istio(name: &str, of_type: &str, value: &str) -> String {
    let fields = format!("type_url: type.googleapis.com/{of_type}, value: {{ {value} }}");
    extension(name, "udpa.type.v1.TypedStruct", &fields)
}

pub(super) fn peer_metadata(value: &str) -> String {
    istio("istio.metadata_exchange", "io.istio.http.peer_metadata.Config", value)
}

pub(super) fn stats(value: &str) -> String {
    istio("istio.stats", "stats.PluginConfig", value)
}

pub(super) fn exchange(protocol: &str) -> String {
    let value = format!("protocol: {protocol}, additional_labels: [ role ]");
    istio("istio.metadata_exchange", "envoy.tcp.metadataexchange.config.MetadataExchange", &value)
}

pub(super) fn inbound() -> String {
    peer_metadata(
        "downstream_discovery: [ { istio_headers: {} } ], downstream_propagation: [ { istio_headers: {} } ]",
    )
}

pub(super) fn outbound() -> String {
    peer_metadata(
        "upstream_discovery: [ { istio_headers: {} } ], \
         upstream_propagation: [ { istio_headers: { skip_external_clusters: true } } ]",
    )
}

/// `istio.alpn`, as istiod configures it.
pub(super) fn alpn() -> String {
    istio(
        "istio.alpn",
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
        "alpn_override: [ { alpn_override: [ istio-http/1.0, istio, http/1.0 ] }, \
         { upstream_protocol: HTTP11, alpn_override: [ istio-http/1.1, istio, http/1.1 ] }, \
         { upstream_protocol: HTTP2, alpn_override: [ istio-h2, istio, h2 ] } ]",
    )
}

/// A connection manager with one route to one cluster.
pub(super) fn manager(filters: &[String], cluster: &str) -> String {
    let log = file_log(
        "log",
        "%RESPONSE_CODE% %FILTER_STATE(downstream_peer:FIELD:workload)% %FILTER_STATE(upstream_peer:FIELD:workload)%",
    );
    let router = extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", "");
    let filters: Vec<_> = filters.iter().cloned().chain([router]).collect();
    let routes = format!(
        "{{ name: r, virtual_hosts: [ {{ name: v, domains: [ \"*\" ], routes: [ {{ name: default, match: {{ prefix: / \
         }}, route: {{ cluster: {cluster:?} }} }} ] }} ] }}"
    );
    extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &format!(
            "stat_prefix: s, access_log: [ {log} ], route_config: {routes}, http_filters: [ {} ]",
            filters.join(", ")
        ),
    )
}

/// A workload as a node of the mesh.
pub(super) fn node(config: Bootstrap, name: &str, app: &str) -> Bootstrap {
    let labels = format!(
        "app: {app}, version: v1, role: {name}, service.istio.io/canonical-name: {app}, \
         service.istio.io/canonical-revision: version-1"
    );
    config.top(&format!(
        "node: {{ id: \"sidecar~127.0.0.1~{name}\", cluster: {app}, metadata: {{ NAME: {app}-v1-abc, NAMESPACE: default, \
         WORKLOAD_NAME: {app}-v1, CLUSTER_ID: {name}-cluster, ISTIO_VERSION: 1.99.0, \
         OWNER: \"kubernetes://apis/apps/v1/namespaces/default/deployments/{app}-v1\", LABELS: {{ {labels} }} }} }}"
    ))
}

pub(super) const SERVICE: &str = "metadata: { filter_metadata: { istio: { services: [ { host: ratings.default.svc.cluster.local, \
                       name: ratings, namespace: default } ] } } }";

/// One line of `/stats/prometheus`.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: f64,
}

pub(super) fn samples(proxy: &Proxy) -> Result<Vec<Sample>> {
    let text = proxy.admin().ok("/stats/prometheus")?;
    text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(sample).collect()
}

pub(super) fn sample(line: &str) -> Result<Sample> {
    let (name, rest) = line.split_once('{').with_context(|| line.to_owned())?;
    let (mut labels, mut rest) = (BTreeMap::new(), rest);
    while !rest.starts_with('}') {
        let (label, value) = rest.split_once("=\"").with_context(|| line.to_owned())?;
        let mut text = String::new();
        let mut chars = value.char_indices();
        let end = loop {
            match chars.next().with_context(|| line.to_owned())? {
                (at, '"') => break at + 1,
                (_, '\\') => text.extend(chars.next().map(|(_, char)| char)),
                (_, char) => text.push(char),
            }
        };
        labels.insert(label.trim_start_matches(',').to_owned(), text);
        rest = &value[end..];
    }
    let value = rest[1..].trim().parse().with_context(|| line.to_owned())?;
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// The only sample of that name and reporter, once it has that value; its labels.
pub(super) fn counted(proxy: &Proxy, name: &str, value: f64) -> Result<BTreeMap<String, String>> {
    let mut last = Vec::new();
    let found = until(&format!("{name} = {value}"), std::time::Duration::from_secs(10), || {
        last = samples(proxy)?;
        last.retain(|sample| sample.name == name);
        Ok((last.len() == 1 && last[0].value == value).then(|| last[0].labels.clone()))
    });
    found.with_context(|| format!("{last:#?}{}", proxy.log()))
}

pub(super) fn expect(labels: &BTreeMap<String, String>, expected: &[(&str, &str)]) -> Result<()> {
    for (label, value) in expected {
        let found = labels.get(*label).map(String::as_str);
        ensure!(found == Some(value), "{label} is {found:?}, not {value:?}: {labels:#?}");
    }
    Ok(())
}

/// What both reporters say of the two workloads.
pub(super) const BOTH: [(&str, &str); 16] = [
    ("source_workload", "productpage-v1"),
    ("source_canonical_service", "productpage"),
    ("source_canonical_revision", "version-1"),
    ("source_app", "productpage"),
    ("source_version", "v1"),
    ("source_cluster", "client-cluster"),
    ("source_principal", CLIENT),
    ("destination_workload", "ratings-v1"),
    ("destination_principal", SERVER),
    ("destination_app", "ratings"),
    ("destination_version", "v1"),
    ("destination_service", "ratings.default.svc.cluster.local"),
    ("destination_canonical_service", "ratings"),
    ("destination_canonical_revision", "version-1"),
    ("destination_service_name", "ratings"),
    ("destination_cluster", "server-cluster"),
];

/// The server's sidecar, and the client's before it.
pub(super) struct Sidecars {
    pub(super) server: Proxy,
    pub(super) client: Proxy,
}

/// `inbound` and `outbound` are the filters of the two listeners, `fields` more of the client's cluster.
pub(super) fn sidecars(
    lab: &Lab,
    mesh: &Mesh<'_>,
    app: SocketAddr,
    protocols: &[&str],
    (inbound, outbound): (&[String], &[String]),
    fields: &str,
) -> Result<Sidecars> {
    let tls = tls_chain("", &mesh.mutual().alpn(protocols).downstream(), inbound);
    let config = Bootstrap::new()
        .static_cluster("inbound|80||", &[app], SERVICE)
        .listener("in", &format!("traffic_direction: INBOUND, filter_chains: [ {tls} ]"));
    let server = Proxy::start(lab, Kind::Shunt, &node(config, "server", "ratings").yaml())?;
    let context = TlsContext::new().certificate(&mesh.client).trust(mesh.root.file()).uri(SERVER);
    let context = context.alpn(protocols).cluster();
    let plain = chain("", outbound);
    let config = Bootstrap::new()
        .static_cluster(
            "outbound|80||ratings",
            &[server.at("in")?],
            &format!("{context}, {SERVICE}, {fields}"),
        )
        .listener("out", &format!("traffic_direction: OUTBOUND, filter_chains: [ {plain} ]"));
    let client = Proxy::start(lab, Kind::Shunt, &node(config, "client", "productpage").yaml())?;
    Ok(Sidecars { server, client })
}

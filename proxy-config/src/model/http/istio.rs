//! Istio's own HTTP filters.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// `istio.alpn`: what is offered to the upstream, by the protocol that it is spoken to in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IstioAlpn {
    pub http10: Vec<Arc<str>>,
    pub http11: Vec<Arc<str>>,
    pub http2: Vec<Arc<str>>,
}

/// `io.istio.http.peer_metadata.Config`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerMetadata {
    /// How the client's is found, in this order.
    pub downstream_discovery: Vec<PeerDiscovery>,
    /// How the upstream's is.
    pub upstream_discovery: Vec<PeerDiscovery>,
    /// Whether the client is told who we are, in the response.
    pub downstream_propagation: Option<PeerPropagation>,
    pub upstream_propagation: Option<PeerPropagation>,
    pub shared_with_upstream: bool,
    /// Labels that are kept beside the usual ones.
    pub additional_labels: Vec<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerDiscovery {
    /// `x-envoy-peer-metadata` and `x-envoy-peer-metadata-id`.
    IstioHeaders { skip_external_clusters: bool },
    /// By the address, of a workload that was discovered.
    Workload,
}

/// By `x-envoy-peer-metadata`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerPropagation {
    /// Clusters outside of the mesh are told nothing.
    pub skip_external_clusters: bool,
}

/// `stats.PluginConfig`, as `istio.stats` and as Wasm's `envoy.wasm.stats`.
#[derive(Clone, Debug, PartialEq)]
pub struct IstioStats {
    /// `destination_service` is that of the host header only where that is known otherwise.
    pub disable_host_header_fallback: bool,
    /// Default 15 s.
    pub tcp_reporting_duration: Duration,
    pub metrics: Vec<IstioMetric>,
    pub definitions: Vec<IstioMetricDefinition>,
    /// SERVER_GATEWAY: the reporter is a gateway of its own.
    pub server_gateway: bool,
    /// How often metrics that are not used any more are forgotten; `None`: never.
    pub rotation: Option<IstioRotation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IstioRotation {
    pub interval: Duration,
    pub grace_period: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IstioMetric {
    /// `requests_total`; empty: all.
    pub name: Arc<str>,
    /// Labels, and the expressions of their values.
    pub dimensions: BTreeMap<Arc<str>, Arc<str>>,
    pub tags_to_remove: Vec<Arc<str>>,
    /// The expression under which all of this holds; empty: always.
    pub condition: Arc<str>,
    pub drop: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IstioMetricDefinition {
    pub name: Arc<str>,
    /// The expression of its value.
    pub value: Arc<str>,
    pub kind: IstioMetricKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IstioMetricKind {
    Counter,
    Gauge,
    Histogram,
}

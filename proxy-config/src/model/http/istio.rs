//! Istio's own HTTP filters.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::model::expression::Expression;

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
    /// How the client is told who we are, in the response.
    pub downstream_propagation: Vec<PeerPropagation>,
    pub upstream_propagation: Vec<PeerPropagation>,
    /// Labels that are kept beside the usual ones.
    pub additional_labels: Vec<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerDiscovery {
    /// `x-envoy-peer-metadata` and `x-envoy-peer-metadata-id`, which go no further.
    IstioHeaders,
    /// Of a client: its `baggage`.
    Baggage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerPropagation {
    /// By `x-envoy-peer-metadata` and its id.
    IstioHeaders {
        /// Clusters outside of the mesh are told nothing.
        skip_external_clusters: bool,
    },
    Baggage,
}

/// `envoy.tcp.metadataexchange.config.MetadataExchange`: who peers are, before their first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataExchange {
    /// ALPN: only those that agree on it tell each other.
    pub protocol: Arc<str>,
    /// As [`PeerMetadata`]'s.
    pub additional_labels: Vec<Arc<str>>,
}

/// `stats.PluginConfig`, as `istio.stats` and as Wasm's `envoy.wasm.stats`.
#[derive(Clone, Debug, PartialEq)]
pub struct IstioStats {
    /// `destination_service` is that of the host header only where that is known otherwise.
    pub disable_host_header_fallback: bool,
    /// How often long connections are reported; `None`: at their end. Default 5 s.
    pub tcp_reporting_duration: Option<Duration>,
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

#[derive(Clone, Debug, PartialEq)]
pub struct IstioMetric {
    /// `requests_total`; empty: all.
    pub name: Arc<str>,
    /// Labels, and the expressions of their values; `None`: one that is not understood. A label of Istio's own goes
    /// then, and no other comes.
    pub dimensions: BTreeMap<Arc<str>, Option<Expression>>,
    pub tags_to_remove: Vec<Arc<str>>,
    pub drop: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct IstioMetricDefinition {
    pub name: Arc<str>,
    pub value: Expression,
    pub kind: IstioMetricKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IstioMetricKind {
    Counter,
    Gauge,
    Histogram,
}

//! Listener filters: what is read of a connection before its filter chain is chosen.

use std::sync::Arc;
use std::time::Duration;

/// A filter with its place in the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerFilterConfig {
    /// The name in the configuration, which Envoy accepts freely.
    pub name: Arc<str>,
    /// Connections that pass the filter by.
    pub filter_disabled: Option<Predicate>,
    pub filter: ListenerFilter,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ListenerFilter {
    OriginalDst,
    TlsInspector(TlsInspector),
    HttpInspector,
    ProxyProtocol(ProxyProtocol),
    OriginalSrc(OriginalSrc),
    LocalRateLimit(LocalRateLimit),
}

/// `ListenerFilterChainMatchPredicate`.
#[derive(Clone, Debug, PartialEq)]
pub enum Predicate {
    Any,
    Not(Box<Predicate>),
    And(Vec<Predicate>),
    Or(Vec<Predicate>),
    /// From, inclusive; to, exclusive.
    DestinationPort(u32, u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsInspector {
    /// At most 16 KiB in Envoy, which is its default.
    pub max_client_hello_size: u32,
    /// Close instead of passing on a connection whose hello is not TLS.
    pub close_connection_on_client_hello_parsing_errors: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProxyProtocol {
    pub rules: Vec<TlvRule>,
    pub allow_requests_without_proxy_protocol: bool,
    /// TLVs that upstream_proxy_protocol may pass on.
    pub pass_through_tlvs: PassThroughTlvs,
    pub disallow_v1: bool,
    pub disallow_v2: bool,
    /// Of `proxy_proto.<prefix>.`
    pub stat_prefix: Arc<str>,
}

/// A TLV that is kept as dynamic metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlvRule {
    pub tlv_type: u8,
    /// Default `envoy.filters.listener.proxy_protocol`.
    pub metadata_namespace: String,
    pub key: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PassThroughTlvs {
    #[default]
    None,
    All,
    Include(Vec<u8>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginalSrc {
    pub bind_port: bool,
    pub mark: u32,
}

/// `envoy.filters.listener.local_ratelimit` and, with a share key, the network filter of that name.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalRateLimit {
    pub stat_prefix: Arc<str>,
    pub token_bucket: TokenBucket,
    pub runtime_enabled: bool,
    /// Of filters with the same key, one bucket is shared.
    pub share_key: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    pub max_tokens: u32,
    pub tokens_per_fill: u32,
    pub fill_interval: Duration,
}

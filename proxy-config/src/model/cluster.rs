//! `config.cluster.v3.Cluster`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::address::{BindConfig, TcpKeepalive};
use super::config_source::ConfigSource;
use super::endpoint::LoadAssignment;
use super::http::HttpOptions;
use super::http::istio::MetadataExchange;
use super::matcher::StringMatcher;
use super::metadata::Struct;
use super::packed::Packed;
use super::{DEFAULT_BUFFER_LIMIT, TransportSocket};

#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    pub name: Arc<str>,
    /// Of `cluster.<name>.`; the name where it has none.
    pub alt_stat_name: Option<Arc<str>>,
    pub discovery: Discovery,
    /// Empty where endpoints come from elsewhere.
    pub load_assignment: Arc<LoadAssignment>,
    pub lb: LbPolicy,
    /// Slow start, of round robin and least request.
    pub slow_start: Option<Box<SlowStart>>,
    pub common_lb: CommonLb,
    pub subset: Option<Box<Subset>>,
    /// Default 5 s.
    pub connect_timeout: Duration,
    /// 0: no limit.
    pub per_connection_buffer_limit_bytes: u32,
    pub circuit_breakers: CircuitBreakers,
    /// How HTTP is spoken to it. `None`: HTTP/1.1, with the defaults.
    pub http: Option<Box<HttpOptions>>,
    pub preconnect: Option<Box<Preconnect>>,
    /// Connections are not shared between connections of clients.
    pub connection_pool_per_downstream_connection: bool,
    pub outlier_detection: Option<Box<OutlierDetection>>,
    pub health_checks: Vec<HealthCheck>,
    pub bind: Option<Box<BindConfig>>,
    pub tcp_keepalive: Option<TcpKeepalive>,
    pub transport_socket: TransportSocket,
    /// The first that an endpoint's `envoy.transport_socket_match` metadata satisfies, else `transport_socket`.
    pub transport_socket_matches: Vec<TransportSocketMatch>,
    pub close_connections_on_host_health_failure: bool,
    pub ignore_health_on_host_removal: bool,
    pub wait_for_warm_on_init: bool,
    /// Its endpoints are asked who they are, and told.
    pub metadata_exchange: Option<Arc<MetadataExchange>>,
    pub metadata: Packed,
}

impl Cluster {
    /// With Envoy's defaults, and no endpoint.
    pub fn new(name: &str, discovery: Discovery) -> Self {
        let lb = match discovery {
            Discovery::OriginalDst(_) => LbPolicy::ClusterProvided,
            Discovery::Static | Discovery::StrictDns(_) | Discovery::LogicalDns(_) | Discovery::Eds(_) => {
                LbPolicy::RoundRobin
            }
        };
        Self {
            name: name.into(),
            alt_stat_name: None,
            discovery,
            load_assignment: Arc::default(),
            lb,
            slow_start: None,
            common_lb: CommonLb::default(),
            subset: None,
            connect_timeout: Duration::from_secs(5),
            per_connection_buffer_limit_bytes: DEFAULT_BUFFER_LIMIT,
            circuit_breakers: CircuitBreakers::default(),
            http: None,
            preconnect: None,
            connection_pool_per_downstream_connection: false,
            outlier_detection: None,
            health_checks: Vec::new(),
            bind: None,
            tcp_keepalive: None,
            transport_socket: TransportSocket::RawBuffer,
            transport_socket_matches: Vec::new(),
            close_connections_on_host_health_failure: false,
            ignore_health_on_host_removal: false,
            wait_for_warm_on_init: true,
            metadata_exchange: None,
            metadata: Packed::default(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Discovery {
    Static,
    StrictDns(Box<Dns>),
    LogicalDns(Box<Dns>),
    Eds(Box<Eds>),
    OriginalDst(OriginalDst),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Dns {
    /// Default 5 s.
    pub refresh_rate: Duration,
    pub failure_refresh_rate: Option<(Duration, Duration)>,
    pub jitter: Duration,
    pub respect_ttl: bool,
    pub family: DnsFamily,
    /// None: the system's.
    pub resolvers: Vec<SocketAddr>,
    pub use_tcp: bool,
    pub no_default_search_domain: bool,
    /// STRICT_DNS of the newer `envoy.clusters.dns` may want one host only.
    pub all_addresses_in_single_endpoint: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsFamily {
    /// IPv6 first, IPv4 where there is none.
    #[default]
    Auto,
    V4Only,
    V6Only,
    V4Preferred,
    All,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Eds {
    /// The cluster's name where `service_name` is not given.
    pub service_name: Arc<str>,
    pub source: ConfigSource,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OriginalDst {
    pub upstream_port_override: Option<u16>,
    /// Whose value, an address with a port, goes before the original destination. Of requests; connections have
    /// none.
    pub http_header: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum LbPolicy {
    RoundRobin,
    LeastRequest {
        choice_count: u32,
        active_request_bias: f64,
    },
    Random,
    RingHash {
        minimum_ring_size: u64,
        maximum_ring_size: u64,
        hash: HashFunction,
    },
    Maglev {
        table_size: u64,
    },
    /// With ORIGINAL_DST only.
    ClusterProvided,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HashFunction {
    #[default]
    XxHash,
    MurmurHash2,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SlowStart {
    pub window: Duration,
    pub aggression: f64,
    pub min_weight_percent: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CommonLb {
    /// In percent; 0 turns panic off. Default 50.
    pub healthy_panic_threshold: f64,
    pub locality: LocalityLb,
    pub ignore_new_hosts_until_first_hc: bool,
    pub close_connections_on_host_set_change: bool,
    pub use_hostname_for_hashing: bool,
    /// In percent, at least 100; `None`: unbounded.
    pub hash_balance_factor: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum LocalityLb {
    #[default]
    None,
    /// Was asked for, and is the same as `None`: a warning has said so.
    ZoneAware,
    Weighted,
}

impl Default for CommonLb {
    fn default() -> Self {
        Self {
            healthy_panic_threshold: 50.0,
            locality: LocalityLb::None,
            ignore_new_hosts_until_first_hc: false,
            close_connections_on_host_set_change: false,
            use_hostname_for_hashing: false,
            hash_balance_factor: None,
        }
    }
}

/// `lb_subset_config`.
#[derive(Clone, Debug, PartialEq)]
pub struct Subset {
    pub fallback_policy: SubsetFallback,
    pub default_subset: Struct,
    pub selectors: Vec<SubsetSelector>,
    pub locality_weight_aware: bool,
    pub scale_locality_weight: bool,
    pub panic_mode_any: bool,
    pub list_as_any: bool,
    pub metadata_fallback_policy: MetadataFallback,
    pub allow_redundant_keys: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SubsetFallback {
    #[default]
    NoFallback,
    AnyEndpoint,
    DefaultSubset,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SubsetSelector {
    pub keys: BTreeSet<String>,
    pub single_host_per_subset: bool,
    pub fallback_policy: SelectorFallback,
    pub fallback_keys_subset: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SelectorFallback {
    /// The cluster's.
    #[default]
    NotDefined,
    NoFallback,
    AnyEndpoint,
    DefaultSubset,
    KeysSubset,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MetadataFallback {
    #[default]
    None,
    FallbackList,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct CircuitBreakers {
    pub default: Thresholds,
    pub high: Thresholds,
    pub per_host_max_connections: Option<u32>,
}

/// Each 1024 by default, retries 3. Pools are not limited.
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds {
    pub max_connections: u32,
    pub max_pending_requests: u32,
    pub max_requests: u32,
    pub max_retries: u32,
    pub track_remaining: bool,
    pub max_connection_pools: u32,
    /// Instead of `max_retries`.
    pub retry_budget: Option<RetryBudget>,
}

/// Retries that may be at once: so many of a hundred requests that are active, and at least some.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// Default 20.
    pub budget_percent: f64,
    /// Default 3.
    pub min_retry_concurrency: u32,
}

/// `preconnect_policy`: connections that are made before they are needed.
#[derive(Clone, Debug, PartialEq)]
pub struct Preconnect {
    /// 1 to 3, of an endpoint. Default 1.
    pub per_upstream: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            track_remaining: false,
            max_connection_pools: u32::MAX,
            retry_budget: None,
        }
    }
}

/// Every number as Envoy has it, with its default in `lower`.
#[derive(Clone, Debug, PartialEq)]
pub struct OutlierDetection {
    pub interval: Duration,
    pub base_ejection_time: Duration,
    pub max_ejection_time: Duration,
    pub max_ejection_time_jitter: Duration,
    pub max_ejection_percent: u32,
    pub always_eject_one_host: bool,
    pub split_external_local_origin_errors: bool,
    pub successful_active_health_check_uneject_host: bool,
    pub consecutive_5xx: Enforced,
    pub consecutive_gateway_failure: Enforced,
    pub consecutive_local_origin_failure: Enforced,
    pub success_rate: SuccessRate,
    pub failure_percentage: FailurePercentage,
}

/// A threshold, and how often in a hundred reaching it ejects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enforced {
    pub threshold: u32,
    pub enforcing: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuccessRate {
    pub enforcing: u32,
    pub enforcing_local_origin: u32,
    pub minimum_hosts: u32,
    pub request_volume: u32,
    /// In thousandths.
    pub stdev_factor: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailurePercentage {
    pub threshold: u32,
    pub enforcing: u32,
    pub enforcing_local_origin: u32,
    pub minimum_hosts: u32,
    pub request_volume: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheck {
    pub timeout: Duration,
    pub interval: Duration,
    pub initial_jitter: Duration,
    pub interval_jitter: Duration,
    pub interval_jitter_percent: u32,
    pub unhealthy_threshold: u32,
    pub healthy_threshold: u32,
    pub alt_port: Option<u16>,
    pub reuse_connection: bool,
    pub no_traffic_interval: Duration,
    pub no_traffic_healthy_interval: Option<Duration>,
    pub unhealthy_interval: Option<Duration>,
    pub unhealthy_edge_interval: Option<Duration>,
    pub healthy_edge_interval: Option<Duration>,
    pub event_log: Option<PathBuf>,
    pub always_log_health_check_failures: bool,
    pub always_log_health_check_success: bool,
    pub checker: HealthChecker,
}

#[derive(Clone, Debug, PartialEq)]
pub enum HealthChecker {
    /// Empty `send`: a connection is enough. `receive`: these, in order, somewhere in what comes.
    Tcp {
        send: Vec<u8>,
        receive: Vec<Vec<u8>>,
    },
    Http(HttpHealthCheck),
    Grpc(GrpcHealthCheck),
}

#[derive(Clone, Debug, PartialEq)]
pub struct HttpHealthCheck {
    /// The cluster's name where empty.
    pub host: String,
    pub path: String,
    /// `GET` by default.
    pub method: String,
    /// Appended, in order; `false` in the third place overwrites.
    pub headers_to_add: Vec<(String, String, bool)>,
    pub headers_to_remove: Vec<String>,
    /// Start, end (exclusive). 200 alone by default.
    pub expected_statuses: Vec<(u32, u32)>,
    pub retriable_statuses: Vec<(u32, u32)>,
    /// As the TCP check's, over the body.
    pub receive: Vec<Vec<u8>>,
    /// By HTTP/2, else HTTP/1.
    pub http2: bool,
    /// What `x-envoy-upstream-healthchecked-cluster` of the response must be.
    pub service_name: Option<StringMatcher>,
}

/// `grpc.health.v1.Health`.
#[derive(Clone, Debug, PartialEq)]
pub struct GrpcHealthCheck {
    pub service_name: String,
    /// The cluster's name where empty.
    pub authority: String,
    /// As `HttpHealthCheck::headers_to_add`.
    pub initial_metadata: Vec<(String, String, bool)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TransportSocketMatch {
    pub name: Arc<str>,
    /// Empty: everything.
    pub match_: Struct,
    pub transport_socket: TransportSocket,
}

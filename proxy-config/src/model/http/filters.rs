//! The configuration of each HTTP filter, but for external authorization, JWT and Istio's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::action::RateLimit;
use super::content::Content;
use super::filter::HttpFilter;
use super::header::{Format, HeaderMatcher, HeaderMutation, HeaderOption};
use crate::model::FractionalPercent;
use crate::model::access_log::{AccessLog, LogFormat};
use crate::model::listener_filter::TokenBucket;
use crate::model::matcher::StringMatcher;
use crate::model::metadata::Struct;
use crate::model::network_filter::RbacRules;

/// `envoy.filters.http.router`.
#[derive(Clone, Debug, PartialEq)]
pub struct Router {
    /// Default true.
    pub dynamic_stats: bool,
    pub start_child_span: bool,
    pub upstream_log: Vec<AccessLog>,
    /// No `x-envoy-…` is added to requests or responses.
    pub suppress_envoy_headers: bool,
    /// A request in which one of them is wrong is refused. In lower case.
    pub strict_check_headers: Vec<Arc<str>>,
    pub respect_expected_rq_timeout: bool,
    pub suppress_grpc_request_failure_code_stats: bool,
    /// Of requests upstream, where their cluster has none of its own.
    pub upstream_http_filters: Vec<HttpFilter>,
}

impl Default for Router {
    fn default() -> Self {
        Self {
            dynamic_stats: true,
            start_child_span: false,
            upstream_log: Vec::new(),
            suppress_envoy_headers: false,
            strict_check_headers: Vec::new(),
            respect_expected_rq_timeout: false,
            suppress_grpc_request_failure_code_stats: false,
            upstream_http_filters: Vec::new(),
        }
    }
}

/// `envoy.filters.http.lua`.
#[derive(Clone, Debug, PartialEq)]
pub struct Lua {
    /// `default_source_code`, or `inline_code`. `None`: only routes have code.
    pub code: Option<Content>,
    /// By the names that routes use.
    pub named: BTreeMap<Arc<str>, Content>,
    /// Of `<http prefix>lua.<stat_prefix>.`
    pub stat_prefix: Arc<str>,
    /// The route is chosen again once headers were changed. Default true.
    pub clear_route_cache: bool,
    pub filter_context: Struct,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LuaPerRoute {
    pub code: LuaOverride,
    pub filter_context: Struct,
}

#[derive(Clone, Debug, PartialEq)]
pub enum LuaOverride {
    /// The filter's own code.
    None,
    Disabled,
    Named(Arc<str>),
    Code(Content),
}

/// `extensions.filters.http.cors.v3.CorsPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct CorsPolicy {
    pub allow_origin: Vec<StringMatcher>,
    pub allow_methods: Arc<str>,
    pub allow_headers: Arc<str>,
    pub expose_headers: Arc<str>,
    pub max_age: Arc<str>,
    /// `None`: not said, as false.
    pub allow_credentials: Option<bool>,
    pub allow_private_network_access: Option<bool>,
    /// Default true.
    pub forward_not_matching_preflights: bool,
    /// Default all.
    pub enabled: FractionalPercent,
    /// Evaluated for statistics only.
    pub shadow_enabled: Option<FractionalPercent>,
}

/// `HTTPFault`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fault {
    pub delay: Option<FaultDelay>,
    pub abort: Option<FaultAbort>,
    pub response_rate_limit: Option<FaultRateLimit>,
    /// Only requests to it.
    pub upstream_cluster: Option<Arc<str>>,
    /// Only requests that match them all.
    pub headers: Vec<HeaderMatcher>,
    /// Only requests whose `x-envoy-downstream-service-node` is one of them.
    pub downstream_nodes: Vec<Arc<str>>,
    pub max_active_faults: Option<u32>,
    pub disable_downstream_cluster_stats: bool,
    /// Set where a fault was injected.
    pub filter_metadata: Struct,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FaultDelay {
    /// Of the header's: at most.
    pub percentage: FractionalPercent,
    pub delay: DelayKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DelayKind {
    Fixed(Duration),
    /// `x-envoy-fault-delay-request`, `x-envoy-fault-delay-request-percentage`.
    Header,
}

#[derive(Clone, Debug, PartialEq)]
pub struct FaultAbort {
    pub percentage: FractionalPercent,
    pub abort: AbortKind,
    /// Empty: `fault filter abort`.
    pub body: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortKind {
    /// 200 to 599.
    Http(u16),
    Grpc(u32),
    /// `x-envoy-fault-abort-request`, `x-envoy-fault-abort-grpc-request`, `…-percentage`.
    Header,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FaultRateLimit {
    pub percentage: FractionalPercent,
    pub limit: RateKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateKind {
    /// Kilobits in a second, at least 1.
    Kbps(u64),
    /// `x-envoy-fault-throughput-response`.
    Header,
}

/// `envoy.filters.http.rbac`.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRbac {
    /// `None`: everyone is allowed.
    pub rules: Option<RbacRules>,
    pub rules_stat_prefix: Arc<str>,
    pub shadow_rules: Option<RbacRules>,
    pub shadow_rules_stat_prefix: Arc<str>,
    pub track_per_rule_stats: bool,
}

/// `envoy.filters.http.grpc_stats`.
#[derive(Clone, Debug, PartialEq)]
pub struct GrpcStats {
    pub emit_filter_state: bool,
    pub enable_upstream_stats: bool,
    pub replace_dots_in_grpc_service_name: bool,
    pub methods: GrpcMethods,
}

/// Those that have statistics of their own; the others share one set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrpcMethods {
    None,
    All,
    /// Service, and its methods.
    Listed(Vec<(Arc<str>, Vec<Arc<str>>)>),
}

/// `envoy.filters.http.local_ratelimit`.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpLocalRateLimit {
    /// Of `<stat_prefix>.http_local_rate_limit.`
    pub stat_prefix: Arc<str>,
    /// 429 unless 400 or more was said.
    pub status: u16,
    /// `None`: no limit (for the whole filter; a route has its own).
    pub token_bucket: Option<TokenBucket>,
    /// `None`: it is off.
    pub filter_enabled: Option<FractionalPercent>,
    pub filter_enforced: Option<FractionalPercent>,
    pub request_headers_to_add_when_not_enforced: Vec<HeaderOption>,
    pub response_headers_to_add: Vec<HeaderOption>,
    pub descriptors: Vec<LocalDescriptor>,
    /// 0 to 10.
    pub stage: u32,
    pub per_connection: bool,
    /// `x-ratelimit-…` of draft 3.
    pub enable_x_ratelimit_headers: bool,
    pub vh_rate_limits: VhRateLimits,
    /// Also where a descriptor's bucket was asked. Default true.
    pub always_consume_default_token_bucket: bool,
    pub rate_limited_as_resource_exhausted: bool,
    /// Instead of the route's.
    pub rate_limits: Vec<RateLimit>,
    /// Of descriptors with a value that is not given. Default 20.
    pub max_dynamic_descriptors: u32,
    pub enable_retry_after_header: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LocalDescriptor {
    /// An empty value: any, each with a bucket of its own.
    pub entries: Vec<(Arc<str>, Arc<str>)>,
    pub token_bucket: TokenBucket,
    /// It is counted and not enforced.
    pub shadow_mode: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VhRateLimits {
    /// The virtual host's where the route has none.
    #[default]
    Override,
    Include,
    Ignore,
}

/// `envoy.filters.http.header_mutation`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MutationsFilter {
    pub mutations: Mutations,
    pub most_specific_wins: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mutations {
    pub request: Vec<HeaderMutation>,
    pub query: Vec<QueryMutation>,
    pub response: Vec<HeaderMutation>,
    pub request_trailers: Vec<HeaderMutation>,
    pub response_trailers: Vec<HeaderMutation>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum QueryMutation {
    Remove(Arc<str>),
    Add { key: Arc<str>, value: Format, append: super::header::AppendAction },
}

/// `envoy.filters.http.health_check`.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheckFilter {
    pub pass_through_mode: bool,
    /// How long an answer is kept, in pass-through mode.
    pub cache_time: Option<Duration>,
    /// By cluster, in percent: else the answer is 503.
    pub cluster_min_healthy_percentages: BTreeMap<Arc<str>, f64>,
    /// Of health checks, all of them.
    pub headers: Vec<HeaderMatcher>,
}

/// `envoy.filters.http.compressor`.
#[derive(Clone, Debug, PartialEq)]
pub struct Compressor {
    pub library: CompressorLibrary,
    /// Of `<http prefix>compressor.<library name>.<library>.`
    pub library_name: Arc<str>,
    /// `None`: requests are not.
    pub request: Option<CompressorDirection>,
    pub response: CompressorDirection,
    pub disable_on_etag_header: bool,
    pub weaken_etag_on_compress: bool,
    pub remove_accept_encoding_header: bool,
    pub uncompressible_response_codes: Vec<u16>,
    /// `x-envoy-compression-status`.
    pub status_header_enabled: bool,
    /// Of filters that the client likes alike.
    pub choose_first: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct CompressorDirection {
    pub enabled: bool,
    /// Default 30.
    pub min_content_length: u32,
    /// Of its media type.
    pub content_type: ContentTypes,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ContentTypes {
    /// Envoy's list of texts.
    Default,
    Exact(Vec<Arc<str>>),
    Matching(Vec<StringMatcher>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressorLibrary {
    Gzip {
        /// 1 to 9; `None`: zlib's own.
        level: Option<u32>,
        /// 9 to 15. Default 12.
        window_bits: u32,
        chunk_size: u32,
    },
    Brotli {
        /// 0 to 11. Default 3.
        quality: u32,
        /// 10 to 24. Default 18.
        window_bits: u32,
        chunk_size: u32,
    },
    Zstd {
        /// Default 3.
        level: u32,
        enable_checksum: bool,
        chunk_size: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressorPerRoute {
    Disabled,
    /// Responses are compressed, with the filter's other settings.
    Enabled {
        remove_accept_encoding_header: Option<bool>,
        library: Option<CompressorLibrary>,
    },
}

/// `envoy.filters.http.buffer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    pub max_request_bytes: u32,
}

/// `envoy.filters.http.set_filter_state`.
#[derive(Clone, Debug, PartialEq)]
pub struct SetFilterState {
    pub on_request_headers: Vec<FilterStateValue>,
    pub clear_route_cache: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct FilterStateValue {
    pub key: Arc<str>,
    pub value: LogFormat,
    pub skip_if_empty: bool,
}

/// `envoy.filters.http.csrf`.
#[derive(Clone, Debug, PartialEq)]
pub struct CsrfPolicy {
    pub enabled: FractionalPercent,
    pub shadow_enabled: Option<FractionalPercent>,
    pub additional_origins: Vec<StringMatcher>,
}

//! What a route does with its requests.

use std::sync::Arc;
use std::time::Duration;

use super::content::Content;
use super::filter::PerFilters;
use super::header::{Format, HeaderEdits, HeaderMutation};
use super::retry::RetryPolicy;
pub use super::template::TemplateRewrite;
use crate::model::FractionalPercent;
use crate::model::access_log::LogFormat;
use crate::model::matcher::RegexSubstitution;
use crate::model::metadata::Metadata;
use crate::model::transport::ProxyVersion;

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Route(Box<RouteAction>),
    Redirect(Box<Redirect>),
    DirectResponse(Box<DirectResponse>),
    /// The filters answer; a request that comes to the router finds no route.
    NonForwarding,
}

/// `RouteAction`.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteAction {
    pub cluster: ClusterSpecifier,
    /// 503, 404 or 500.
    pub cluster_not_found_status: u16,
    /// Of endpoints; a weighted cluster's own goes before it.
    pub metadata_match: Metadata,
    pub path_rewrite: PathRewrite,
    pub host_rewrite: HostRewrite,
    /// A host that was rewritten is kept in `x-forwarded-host`.
    pub append_x_forwarded_host: bool,
    /// Default 15 s; `None`: for ever (`0s`).
    pub timeout: Option<Duration>,
    /// Goes before that of the connection manager. Outer `None`: not given; inner: none (`0s`).
    pub idle_timeout: Option<Option<Duration>>,
    /// As `idle_timeout`, of a response that is written to the client.
    pub flush_timeout: Option<Option<Duration>>,
    /// `None`: the virtual host's.
    pub retry_policy: Option<Arc<RetryPolicy>>,
    /// Empty: the virtual host's, then that of all routes.
    pub mirror: Vec<MirrorPolicy>,
    pub priority: Priority,
    pub hash_policy: Vec<HashPolicy>,
    /// `max_grpc_timeout`, deprecated: gRPC requests have the timeout that they ask for, up to this.
    pub max_grpc_timeout: Option<MaxGrpcTimeout>,
    pub upgrades: Vec<RouteUpgrade>,
    pub internal_redirect: Option<Box<InternalRedirect>>,
    pub max_stream_duration: Option<MaxStreamDuration>,
    pub rate_limits: Vec<RateLimit>,
    pub include_vh_rate_limits: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ClusterSpecifier {
    Cluster(Arc<str>),
    /// The header whose value names it.
    Header(Arc<str>),
    Weighted(Box<WeightedClusters>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct WeightedClusters {
    /// Never empty, and not all of weight 0.
    pub clusters: Vec<WeightedCluster>,
    pub choice: WeightedChoice,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightedChoice {
    Random,
    /// A header with a number; at random where it has none.
    Header(Arc<str>),
    /// The hash of the route's hash policy; at random where it makes none.
    HashPolicy,
}

/// `ClusterWeight`.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedCluster {
    pub cluster: ClusterName,
    pub weight: u32,
    /// The route's is merged in; its own fields win.
    pub metadata_match: Metadata,
    pub headers: HeaderEdits,
    pub per_filter: PerFilters,
    /// Goes before the route's host rewrite.
    pub host_rewrite: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterName {
    Name(Arc<str>),
    Header(Arc<str>),
}

/// What becomes of the path; its query stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum PathRewrite {
    #[default]
    None,
    /// What the match was on is replaced: the prefix, or the whole path.
    Prefix(Arc<str>),
    Regex(RegexSubstitution),
    /// `envoy.path.rewrite.uri_template.uri_template_rewriter`: of a path that a template matched.
    Template(TemplateRewrite),
    /// `path_rewrite`: the whole path, with its query.
    Format(Format),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum HostRewrite {
    #[default]
    None,
    Literal(Arc<str>),
    /// The endpoint's host name.
    Auto,
    /// The value of a header.
    Header(Arc<str>),
    /// The path, substituted.
    PathRegex(RegexSubstitution),
    /// `host_rewrite`: a format.
    Format(Format),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    #[default]
    Default,
    High,
}

/// `RequestMirrorPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct MirrorPolicy {
    pub cluster: ClusterName,
    /// `None`: always.
    pub runtime_fraction: Option<FractionalPercent>,
    /// The host of a copy ends with `-shadow`, unless this is said.
    pub disable_shadow_host_suffix: bool,
    /// Whether the copy's span is told. `None`: as that of the request.
    pub trace_sampled: Option<bool>,
    pub mutations: Vec<HeaderMutation>,
    pub host_rewrite: Option<Arc<str>>,
}

/// `RouteAction.HashPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct HashPolicy {
    pub source: HashSource,
    /// Where it makes a hash, the following ones are not asked.
    pub terminal: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum HashSource {
    Header { name: Arc<str>, rewrite: Option<RegexSubstitution> },
    Cookie(HashCookie),
    SourceIp,
    QueryParameter(Arc<str>),
    FilterState(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashCookie {
    pub name: Arc<str>,
    /// A client without it is given one for so long; `0s`: for its session. `None`: it is not.
    pub ttl: Option<Duration>,
    pub path: Arc<str>,
    pub attributes: Vec<(Arc<str>, Arc<str>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxGrpcTimeout {
    /// `None`: what they ask for (`0s`).
    pub max: Option<Duration>,
    /// Taken from what a request asks for.
    pub offset: Duration,
}

/// `MaxStreamDuration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxStreamDuration {
    /// Goes before that of the connection manager. Outer `None`: not given; inner: none (`0s`).
    pub max: Option<Option<Duration>>,
    /// gRPC requests have the time that they ask for, up to this. Inner `None`: without a limit (`0s`).
    pub grpc_timeout_header_max: Option<Option<Duration>>,
    /// Taken from what a request asks for.
    pub grpc_timeout_header_offset: Duration,
}

/// `RouteAction.UpgradeConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteUpgrade {
    /// In lower case: `websocket`, `connect`.
    pub upgrade_type: Arc<str>,
    pub enabled: bool,
    /// Of `connect`: the tunnel ends here, and its payload goes on by TCP.
    pub connect: Option<ConnectConfig>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ConnectConfig {
    /// The payload begins with such a header.
    pub proxy_protocol: Option<ProxyVersion>,
    /// POST is a tunnel as well.
    pub allow_post: bool,
}

/// `InternalRedirectPolicy`.
#[derive(Clone, Debug, PartialEq)]
pub struct InternalRedirect {
    /// Default 1.
    pub max_internal_redirects: u32,
    /// Of 301, 302, 303, 307 and 308. Default 302.
    pub response_codes: Vec<u16>,
    /// All of them have to agree.
    pub predicates: Vec<RedirectPredicate>,
    pub allow_cross_scheme: bool,
    pub response_headers_to_copy: Vec<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedirectPredicate {
    /// `envoy.internal_redirect_predicates.previous_routes`.
    PreviousRoutes,
    /// `envoy.internal_redirect_predicates.safe_cross_scheme`.
    SafeCrossScheme,
    /// `envoy.internal_redirect_predicates.allow_listed_routes`: by name.
    AllowListedRoutes(Vec<Arc<str>>),
}

/// `RedirectAction`.
#[derive(Clone, Debug, PartialEq)]
pub struct Redirect {
    pub scheme: SchemeRewrite,
    /// Empty: as it was.
    pub host: Arc<str>,
    /// 0: as it was.
    pub port: u16,
    pub path: RedirectPath,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    pub strip_query: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SchemeRewrite {
    #[default]
    None,
    Https,
    Scheme(Arc<str>),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum RedirectPath {
    #[default]
    None,
    /// The whole path, with its query where it has one.
    Path(Arc<str>),
    Prefix(Arc<str>),
    Regex(RegexSubstitution),
    Format(Format),
}

/// `DirectResponseAction`.
#[derive(Clone, Debug, PartialEq)]
pub struct DirectResponse {
    pub status: u16,
    pub body: Content,
    /// What the body is put into.
    pub body_format: Option<BodyFormat>,
}

/// `SubstitutionFormatString` of a body.
#[derive(Clone, Debug, PartialEq)]
pub struct BodyFormat {
    pub format: LogFormat,
    /// `text/plain`, or `application/json` of a JSON format, unless given.
    pub content_type: Arc<str>,
}

/// `config.route.v3.RateLimit`: descriptors of a request, in order; where one of its actions finds nothing there is no
/// descriptor.
#[derive(Clone, Debug, PartialEq)]
pub struct RateLimit {
    pub stage: u32,
    pub disable_key: Arc<str>,
    pub actions: Vec<RateLimitAction>,
    /// What a request costs. Default 1.
    pub hits_addend: Option<u64>,
    pub apply_on_stream_done: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RateLimitAction {
    SourceCluster,
    DestinationCluster,
    RequestHeader {
        name: Arc<str>,
        key: Arc<str>,
        skip_if_absent: bool,
    },
    QueryParameter {
        name: Arc<str>,
        key: Arc<str>,
        skip_if_absent: bool,
    },
    RemoteAddress,
    MaskedRemoteAddress {
        v4_prefix: u8,
        v6_prefix: u8,
    },
    GenericKey {
        key: Arc<str>,
        value: Arc<str>,
    },
    HeaderValueMatch {
        key: Arc<str>,
        value: Arc<str>,
        expect_match: bool,
        headers: Vec<super::header::HeaderMatcher>,
    },
    QueryParameterValueMatch {
        key: Arc<str>,
        value: Arc<str>,
        expect_match: bool,
        parameters: Vec<super::route_match::QueryParameterMatcher>,
    },
    Metadata {
        key: Arc<str>,
        source: MetadataSource,
        filter: Arc<str>,
        path: Vec<Arc<str>>,
        default: Arc<str>,
        skip_if_absent: bool,
    },
}

/// Whose metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataSource {
    Dynamic,
    Route,
    Cluster,
    Host,
}

//! `envoy.filters.network.http_connection_manager`.

use std::sync::Arc;
use std::time::Duration;

use super::action::BodyFormat;
use super::content::Content;
use super::filter::HttpFilter;
use super::header::{HeaderMutation, HeaderOption};
use super::options::{CommonHttpOptions, Http1Options, Http2Options};
use super::route::RouteConfiguration;
use super::tracing::Tracing;
use crate::model::access_log::{AccessLog, AccessLogFilter};
use crate::model::address::Cidr;
use crate::model::network_filter::RouteRef;

#[derive(Clone, Debug, PartialEq)]
pub struct Hcm {
    /// Of `http.<stat_prefix>.`
    pub stat_prefix: Arc<str>,
    pub codec: Codec,
    pub routes: RouteSource,
    /// Ends with the router, and may be empty only where each request is answered otherwise.
    pub filters: Vec<HttpFilter>,
    pub common: CommonHttpOptions,
    pub http1: Http1Options,
    pub http2: Http2Options,
    /// The end of `max_connection_duration` waits for the request that HTTP/1 is at.
    pub http1_safe_max_connection_duration: bool,
    pub identity: Identity,
    pub timeouts: HcmTimeouts,
    /// Default 60.
    pub max_request_headers_kb: u32,
    pub client: ClientAddress,
    pub request_id: RequestId,
    pub client_cert: ClientCert,
    pub path: PathNormalization,
    pub host: HostNormalization,
    pub proxy_100_continue: bool,
    pub upgrades: Vec<UpgradeConfig>,
    pub early_header_mutation: Vec<HeaderMutation>,
    pub local_reply: LocalReplies,
    pub proxy_status: Option<ProxyStatus>,
    pub tracing: Option<Box<Tracing>>,
    pub access_log: Vec<AccessLog>,
    pub access_log_flush_interval: Option<Duration>,
    pub flush_access_log_on_new_request: bool,
    pub flush_log_on_tunnel_successfully_established: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// By ALPN, else by what comes first.
    #[default]
    Auto,
    Http1,
    Http2,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RouteSource {
    Inline(Arc<RouteConfiguration>),
    Rds(RouteRef),
}

/// What is said of the proxy itself, and as which scheme a request came.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// Default `envoy`.
    pub server_name: Arc<str>,
    pub server_header: ServerHeader,
    /// Empty: no such header.
    pub via: Arc<str>,
    pub add_user_agent: bool,
    pub scheme: SchemeHeader,
    pub append_x_forwarded_port: bool,
    pub forward_proto: Option<ForwardProto>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerHeader {
    #[default]
    Overwrite,
    AppendIfAbsent,
    PassThrough,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SchemeHeader {
    /// That of the connection, or of `x-forwarded-proto`.
    #[default]
    AsReceived,
    Overwrite(Arc<str>),
    /// That of the upstream's transport.
    MatchUpstream,
}

/// `x-forwarded-proto` by the port that was connected to, where PROXY protocol has told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardProto {
    pub https_ports: Vec<u16>,
    pub http_ports: Vec<u16>,
}

/// `None`: none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HcmTimeouts {
    /// Default 5 min.
    pub stream_idle: Option<Duration>,
    /// Default `stream_idle`.
    pub stream_flush: Option<Duration>,
    pub request: Option<Duration>,
    /// Default 15 s, where Envoy has none.
    pub request_headers: Option<Duration>,
    /// Default 5 s.
    pub drain: Duration,
    /// In percent of the time, added at random.
    pub drain_jitter: Option<f64>,
    /// Default 1 s.
    pub delayed_close: Option<Duration>,
}

impl Default for HcmTimeouts {
    fn default() -> Self {
        let idle = Some(Duration::from_secs(300));
        Self {
            stream_idle: idle,
            stream_flush: idle,
            request: None,
            request_headers: Some(Duration::from_secs(15)),
            drain: Duration::from_secs(5),
            drain_jitter: None,
            delayed_close: Some(Duration::from_secs(1)),
        }
    }
}

/// Who the client is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClientAddress {
    pub use_remote_address: bool,
    pub xff_num_trusted_hops: u32,
    pub skip_xff_append: bool,
    pub represent_ipv4_as_mapped_ipv6: bool,
    pub internal: InternalAddresses,
    /// The first that finds one; else the connection's own.
    pub detection: Vec<IpDetection>,
}

/// `internal_address_config`. Nobody is internal by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InternalAddresses {
    pub ranges: Vec<Cidr>,
}

/// `original_ip_detection_extensions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IpDetection {
    /// `envoy.http.original_ip_detection.xff`.
    Xff {
        num_trusted_hops: u32,
        /// Instead of a number of hops: the last address that is in none of them.
        trusted: Option<Vec<Cidr>>,
        /// Default true.
        skip_append: bool,
    },
    /// `envoy.http.original_ip_detection.custom_header`.
    CustomHeader {
        name: Arc<str>,
        allow_trusted: bool,
        /// Of a request in which it is no address; `None`: it goes on.
        reject_with: Option<u16>,
    },
}

/// `x-request-id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// Default true.
    pub generate: bool,
    pub preserve_external: bool,
    pub always_set_in_response: bool,
    /// Whether and why it is traced is in the fourteenth digit. Default true.
    pub pack_trace_reason: bool,
    /// Default true.
    pub use_for_trace_sampling: bool,
}

impl Default for RequestId {
    fn default() -> Self {
        Self {
            generate: true,
            preserve_external: false,
            always_set_in_response: false,
            pack_trace_reason: true,
            use_for_trace_sampling: true,
        }
    }
}

/// `x-forwarded-client-cert`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCert {
    pub forward: ForwardClientCert,
    pub subject: bool,
    pub cert: bool,
    pub chain: bool,
    pub dns: bool,
    pub uri: bool,
    pub issuer: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardClientCert {
    #[default]
    Sanitize,
    ForwardOnly,
    AppendForward,
    SanitizeSet,
    AlwaysForwardOnly,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathNormalization {
    pub normalize: bool,
    pub merge_slashes: bool,
    pub escaped_slashes: EscapedSlashes,
}

/// `%2F`, `%2f`, `%5C` and `%5c`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EscapedSlashes {
    #[default]
    KeepUnchanged,
    RejectRequest,
    UnescapeAndRedirect,
    UnescapeAndForward,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostNormalization {
    pub strip_port: StripPort,
    pub strip_trailing_dot: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StripPort {
    #[default]
    Never,
    /// Where it is the listener's own.
    Matching,
    Any,
}

#[derive(Clone, Debug, PartialEq)]
pub struct UpgradeConfig {
    /// In lower case: `websocket`, `connect`.
    pub upgrade_type: Arc<str>,
    /// Default true.
    pub enabled: bool,
    /// `None`: those of every request.
    pub filters: Option<Vec<HttpFilter>>,
}

/// `local_reply_config`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalReplies {
    /// The first whose filter matches.
    pub mappers: Vec<ResponseMapper>,
    /// `None`: `%LOCAL_REPLY_BODY%` as plain text.
    pub body_format: Option<BodyFormat>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ResponseMapper {
    pub filter: AccessLogFilter,
    pub status: Option<u16>,
    pub body: Option<Content>,
    pub body_format: Option<BodyFormat>,
    pub headers_to_add: Vec<HeaderOption>,
}

/// `proxy-status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyStatus {
    pub remove_details: bool,
    pub remove_connection_termination_details: bool,
    pub remove_response_flags: bool,
    pub set_recommended_response_code: bool,
    pub proxy_name: ProxyName,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProxyName {
    /// `server_name`.
    Server,
    NodeId,
    Literal(Arc<str>),
}

//! What is said about the protocol itself, of clients and of upstreams, with Envoy's defaults filled in.

use std::sync::Arc;
use std::time::Duration;

use super::action::{HashPolicy, MirrorPolicy};
use super::filter::HttpFilter;
use super::retry::RetryPolicy;
use crate::model::matcher::StringMatcher;

/// `HttpProtocolOptions` of `config.core.v3`.
#[derive(Clone, Debug, PartialEq)]
pub struct CommonHttpOptions {
    /// Without a request. Default 1 h; `None`: for ever (`0s`).
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    /// In percent of the duration, added at random.
    pub max_connection_duration_jitter: Option<f64>,
    /// Of requests from clients, of responses from upstreams. Default 100.
    pub max_headers_count: u32,
    /// Of upstreams; `None`: 60, or 80 of HTTP/1.
    pub max_response_headers_kb: Option<u32>,
    pub max_stream_duration: Option<Duration>,
    pub headers_with_underscores: HeadersWithUnderscores,
    /// `None`: no limit.
    pub max_requests_per_connection: Option<u32>,
}

impl Default for CommonHttpOptions {
    fn default() -> Self {
        Self {
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            max_connection_duration_jitter: None,
            max_headers_count: 100,
            max_response_headers_kb: None,
            max_stream_duration: None,
            headers_with_underscores: HeadersWithUnderscores::Allow,
            max_requests_per_connection: None,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadersWithUnderscores {
    #[default]
    Allow,
    RejectRequest,
    DropHeader,
}

/// `Http1ProtocolOptions`.
#[derive(Clone, Debug, PartialEq)]
pub struct Http1Options {
    /// Default true.
    pub allow_absolute_url: bool,
    pub accept_http_10: bool,
    pub default_host_for_http_10: Option<Arc<str>>,
    pub header_key_format: HeaderKeyFormat,
    pub enable_trailers: bool,
    /// A message may have Content-Length beside Transfer-Encoding: the length is ignored, and taken away.
    pub allow_chunked_length: bool,
    /// A bad message ends its stream and not its connection, where that is possible.
    pub stream_error_on_invalid_http_message: bool,
    pub send_fully_qualified_url: bool,
    pub allow_custom_methods: bool,
    /// Values of Upgrade that are taken away instead of being refused.
    pub ignore_http_11_upgrade: Vec<StringMatcher>,
}

impl Default for Http1Options {
    fn default() -> Self {
        Self {
            allow_absolute_url: true,
            accept_http_10: false,
            default_host_for_http_10: None,
            header_key_format: HeaderKeyFormat::LowerCase,
            enable_trailers: false,
            allow_chunked_length: false,
            stream_error_on_invalid_http_message: false,
            send_fully_qualified_url: false,
            allow_custom_methods: false,
            ignore_http_11_upgrade: Vec::new(),
        }
    }
}

/// How the names of headers are written on HTTP/1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderKeyFormat {
    #[default]
    LowerCase,
    ProperCaseWords,
    /// `envoy.http.stateful_header_formatters.preserve_case`.
    PreserveCase {
        forward_reason_phrase: bool,
        /// Names that are the proxy's own are in proper case.
        proper_case_own_headers: bool,
    },
}

/// `Http2ProtocolOptions`.
#[derive(Clone, Debug, PartialEq)]
pub struct Http2Options {
    /// Default 4,096.
    pub hpack_table_size: u32,
    /// Default 1,024.
    pub max_concurrent_streams: u32,
    /// Envoy's default is 16 MiB.
    pub initial_stream_window_size: Option<u32>,
    /// Envoy's default is 24 MiB.
    pub initial_connection_window_size: Option<u32>,
    /// Extended CONNECT (RFC 8441).
    pub allow_connect: bool,
    /// Default 1,000.
    pub max_outbound_control_frames: u32,
    /// Default 1.
    pub max_consecutive_inbound_frames_with_empty_payload: u32,
    /// Default 100.
    pub max_inbound_priority_frames_per_stream: u32,
    /// Default 10.
    pub max_inbound_window_update_frames_per_data_frame_sent: u32,
    pub connection_keepalive: Option<Keepalive>,
    /// Default 64.
    pub max_header_field_size_kb: u32,
    pub disallow_obs_text: bool,
    /// Frames RST_STREAM of a peer's.
    pub stream_reset: StreamResetLimit,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            hpack_table_size: 4096,
            max_concurrent_streams: 1024,
            initial_stream_window_size: None,
            initial_connection_window_size: None,
            allow_connect: false,
            max_outbound_control_frames: 1000,
            max_consecutive_inbound_frames_with_empty_payload: 1,
            max_inbound_priority_frames_per_stream: 100,
            max_inbound_window_update_frames_per_data_frame_sent: 10,
            connection_keepalive: None,
            max_header_field_size_kb: 64,
            disallow_obs_text: false,
            stream_reset: StreamResetLimit::default(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamResetLimit {
    /// At once. Default 1,000.
    pub burst: u64,
    /// And then in each second. Default 33.
    pub per_second: u64,
}

impl Default for StreamResetLimit {
    fn default() -> Self {
        Self { burst: 1000, per_second: 33 }
    }
}

/// `KeepaliveSettings`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Keepalive {
    /// Between two PINGs; `None`: there are none.
    pub interval: Option<Duration>,
    pub timeout: Duration,
    /// In percent of the interval, added at random. Default 15.
    pub interval_jitter: f64,
}

/// `extensions.upstreams.http.v3.HttpProtocolOptions`, and the deprecated fields of a cluster: how a cluster is spoken
/// to.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct HttpOptions {
    pub protocol: UpstreamProtocol,
    pub common: CommonHttpOptions,
    /// `auto_sni`: the server name is that of the request's authority.
    pub auto_sni: bool,
    /// The certificate must have that name.
    pub auto_san_validation: bool,
    /// Whose value is the server name, instead of the authority.
    pub override_auto_sni_header: Option<Arc<str>>,
    /// Ends with the codec. Empty: nothing but it.
    pub filters: Vec<HttpFilter>,
    pub mirror: Vec<MirrorPolicy>,
    /// Where the route has none.
    pub hash_policy: Vec<HashPolicy>,
    /// Where the route and its virtual host have none.
    pub retry_policy: Option<Arc<RetryPolicy>>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum UpstreamProtocol {
    Http1(Http1Options),
    Http2(Http2Options),
    /// The client's own.
    UseDownstream {
        http1: Http1Options,
        /// `None`: HTTP/1 also for clients that speak HTTP/2.
        http2: Option<Http2Options>,
    },
    /// What ALPN chooses.
    Auto {
        http1: Http1Options,
        http2: Http2Options,
    },
}

impl Default for UpstreamProtocol {
    fn default() -> Self {
        Self::Http1(Http1Options::default())
    }
}

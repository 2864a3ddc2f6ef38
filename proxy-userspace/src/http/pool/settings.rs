//! How HTTP is spoken to a cluster: its `HttpProtocolOptions`, as codecs and pools need them.

use std::sync::Arc;
use std::time::Duration;

use http::Version;
use proxy_config::model;
use proxy_config::model::http::options::{HeaderKeyFormat, UpstreamProtocol};
use proxy_config::model::http::{CommonHttpOptions, Http1Options, Http2Options, HttpOptions};
use rand::RngExt as _;

use crate::clock::Instant;
use crate::http::{h1, h2};

pub struct Settings {
    pub h1: Arc<h1::Settings>,
    pub h2: h2::Settings,
    pub common: CommonHttpOptions,
    pub auto_sni: bool,
    pub auto_san_validation: bool,
    pub override_auto_sni_header: Option<Arc<str>>,
    choice: Choice,
    /// Connections for each that is needed, in advance.
    pub preconnect: f64,
    /// No request shares a connection with one of another client's connection.
    pub per_connection: bool,
}

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Http1,
    Http2,
    /// What ALPN chooses.
    Auto,
}

enum Choice {
    Always(Protocol),
    /// As the client, where this is true for HTTP/2.
    Downstream(bool),
}

impl Settings {
    pub fn new(cluster: &model::Cluster) -> Self {
        let default = HttpOptions::default();
        let options = cluster.http.as_deref().unwrap_or(&default);
        let (choice, http1, http2) = match &options.protocol {
            UpstreamProtocol::Http1(http1) => (Choice::Always(Protocol::Http1), Some(http1), None),
            UpstreamProtocol::Http2(http2) => (Choice::Always(Protocol::Http2), None, Some(http2)),
            UpstreamProtocol::UseDownstream { http1, http2 } => {
                (Choice::Downstream(http2.is_some()), Some(http1), http2.as_ref())
            }
            UpstreamProtocol::Auto { http1, http2 } => {
                (Choice::Always(Protocol::Auto), Some(http1), Some(http2))
            }
        };
        let common = options.common.clone();
        Self {
            h1: Arc::new(http1_settings(http1.unwrap_or(&Http1Options::default()), &common)),
            h2: http2_settings(http2.unwrap_or(&Http2Options::default()), &common),
            common,
            auto_sni: options.auto_sni,
            auto_san_validation: options.auto_san_validation,
            override_auto_sni_header: options.override_auto_sni_header.clone(),
            choice,
            preconnect: cluster.preconnect.as_ref().map_or(1.0, |preconnect| preconnect.per_upstream),
            per_connection: cluster.connection_pool_per_downstream_connection,
        }
    }

    /// For a client that speaks `version`.
    pub fn protocol(&self, version: Version) -> Protocol {
        match self.choice {
            Choice::Always(protocol) => protocol,
            Choice::Downstream(true) if version == Version::HTTP_2 => Protocol::Http2,
            Choice::Downstream(_) => Protocol::Http1,
        }
    }

    /// As [`Self::protocol`]; what ALPN chooses is hoped to be HTTP/2, as in Envoy.
    pub fn version(&self, version: Version) -> Version {
        match self.protocol(version) {
            Protocol::Http2 | Protocol::Auto => Version::HTTP_2,
            Protocol::Http1
                if matches!(self.choice, Choice::Downstream(_)) && version == Version::HTTP_10 =>
            {
                version
            }
            Protocol::Http1 => Version::HTTP_11,
        }
    }

    /// When a connection has lived as long as it may.
    pub(super) fn expires(&self, since: Instant) -> Option<Instant> {
        let limit = self.common.max_connection_duration?;
        let jitter = self.common.max_connection_duration_jitter.unwrap_or(0.0) / 100.0;
        let factor = 1.0 + rand::rng().random_range(0.0..=jitter.max(0.0));
        since.checked_add(Duration::try_from_secs_f64(limit.as_secs_f64() * factor).ok()?)
    }
}

impl Protocol {
    /// What is offered where the transport socket says nothing of it.
    pub fn alpn(self) -> &'static [&'static str] {
        match self {
            Self::Http1 => &["http/1.1"],
            Self::Http2 => &["h2"],
            Self::Auto => &["h2", "http/1.1"],
        }
    }
}

/// How header names are written, as a codec has it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KeyFormat {
    pub(crate) preserves: bool,
    pub(crate) proper_own: bool,
    pub(crate) reason: bool,
    pub(crate) proper: bool,
}

impl KeyFormat {
    pub(crate) fn new(format: HeaderKeyFormat) -> Self {
        match format {
            HeaderKeyFormat::LowerCase => Self::default(),
            HeaderKeyFormat::ProperCaseWords => Self { proper: true, ..Self::default() },
            HeaderKeyFormat::PreserveCase { forward_reason_phrase, proper_case_own_headers } => Self {
                preserves: true,
                proper_own: proper_case_own_headers,
                reason: forward_reason_phrase,
                proper: false,
            },
        }
    }
}

fn http1_settings(options: &Http1Options, common: &CommonHttpOptions) -> h1::Settings {
    let format = KeyFormat::new(options.header_key_format);
    h1::Settings {
        // Envoy's for upstreams that say nothing.
        max_head_bytes: kib(common.max_response_headers_kb.unwrap_or(80)),
        max_headers: common.max_headers_count as usize,
        preserve_case: format.preserves,
        proper_case_own: format.proper_own,
        keep_reason: format.reason,
        proper_case: format.proper,
        enable_trailers: options.enable_trailers,
        allow_chunked_length: options.allow_chunked_length,
        allow_custom_methods: true,
        send_fully_qualified_url: options.send_fully_qualified_url,
        ..h1::Settings::default()
    }
}

pub(crate) fn http2_settings(options: &Http2Options, common: &CommonHttpOptions) -> h2::Settings {
    let own = h2::Settings::default();
    h2::Settings {
        max_concurrent_streams: options.max_concurrent_streams,
        initial_stream_window_size: options
            .initial_stream_window_size
            .unwrap_or(own.initial_stream_window_size),
        initial_connection_window_size: options
            .initial_connection_window_size
            .unwrap_or(own.initial_connection_window_size),
        hpack_table_size: options.hpack_table_size,
        allow_connect: options.allow_connect,
        max_headers_bytes: u32::try_from(kib(common.max_response_headers_kb.unwrap_or(60)))
            .unwrap_or(u32::MAX),
        max_headers: common.max_headers_count as usize,
        max_field_bytes: kib(options.max_header_field_size_kb),
        disallow_obs_text: options.disallow_obs_text,
        keepalive: options.connection_keepalive.map(|keepalive| h2::Keepalive {
            interval: keepalive.interval,
            timeout: keepalive.timeout,
            interval_jitter: keepalive.interval_jitter,
        }),
        limits: h2::abuse::Limits {
            max_outbound_control_frames: options.max_outbound_control_frames,
            max_consecutive_inbound_frames_with_empty_payload: options
                .max_consecutive_inbound_frames_with_empty_payload,
            max_inbound_priority_frames_per_stream: options.max_inbound_priority_frames_per_stream,
            max_inbound_window_update_frames_per_data_frame_sent: options
                .max_inbound_window_update_frames_per_data_frame_sent,
            stream_reset_burst: options.stream_reset.burst,
            stream_reset_rate: options.stream_reset.per_second,
            ..own.limits
        },
        ..own
    }
}

fn kib(kib: u32) -> usize {
    (kib as usize).saturating_mul(1024)
}

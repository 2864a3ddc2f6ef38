//! `config.core.v3.TransportSocket`: how bytes are wrapped on a connection, in either direction.

use std::sync::Arc;
use std::time::Duration;

use super::FractionalPercent;
pub use super::listener_filter::PassThroughTlvs;
use super::tls::{DownstreamTls, UpstreamTls};

#[derive(Clone, Debug, Default, PartialEq)]
pub enum TransportSocket {
    /// `envoy.transport_sockets.raw_buffer`.
    #[default]
    RawBuffer,
    /// `envoy.transport_sockets.tls` of a filter chain.
    DownstreamTls(Arc<DownstreamTls>),
    /// `envoy.transport_sockets.tls` of a cluster.
    UpstreamTls(Arc<UpstreamTls>),
    /// `envoy.transport_sockets.starttls` of a filter chain: raw until a filter asks for TLS.
    DownstreamStartTls(Arc<DownstreamTls>),
    /// `envoy.transport_sockets.starttls` of a cluster.
    UpstreamStartTls(Arc<UpstreamTls>),
    /// `envoy.transport_sockets.upstream_proxy_protocol`.
    UpstreamProxyProtocol(Box<UpstreamProxyProtocol>),
    /// `envoy.transport_sockets.tap`.
    Tap(Box<Tap>),
    /// `envoy.transport_sockets.tcp_stats`.
    TcpStats(Box<TcpStats>),
}

impl TransportSocket {
    /// What it wraps; none where it is on the socket itself.
    pub fn inner(&self) -> Option<&Self> {
        match self {
            Self::RawBuffer
            | Self::DownstreamTls(_)
            | Self::UpstreamTls(_)
            | Self::DownstreamStartTls(_)
            | Self::UpstreamStartTls(_) => None,
            Self::UpstreamProxyProtocol(outer) => Some(&outer.inner),
            Self::Tap(outer) => Some(&outer.inner),
            Self::TcpStats(outer) => Some(&outer.inner),
        }
    }

    /// Whether it is raw until a filter asks for TLS, itself or what it wraps.
    pub fn is_starttls(&self) -> bool {
        matches!(self, Self::DownstreamStartTls(_) | Self::UpstreamStartTls(_))
            || self.inner().is_some_and(Self::is_starttls)
    }
}

/// `ProxyProtocolUpstreamTransport`.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamProxyProtocol {
    pub version: ProxyVersion,
    /// TLVs of the client's own header that are passed on; V2 only.
    pub pass_through_tlvs: PassThroughTlvs,
    /// V2 only; each goes before one of the same type that is passed on.
    pub added_tlvs: Vec<(u8, Arc<[u8]>)>,
    /// A header may carry an unspecified address.
    pub allow_unspecified_address: bool,
    pub inner: TransportSocket,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyVersion {
    #[default]
    V1,
    V2,
}

/// `extensions.transport_sockets.tcp_stats.v3.Config`.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpStats {
    pub inner: TransportSocket,
    /// How often a live connection's statistics are taken; `None`: at its end only.
    pub update_period: Option<Duration>,
}

/// `extensions.transport_sockets.tap.v3.Tap`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tap {
    pub source: TapSource,
    pub inner: TransportSocket,
    /// Each event of a streamed trace names its connection.
    pub set_connection_per_event: bool,
    /// Of `transport.tap.<prefix>.`; empty: `transport.tap.`.
    pub stats_prefix: Arc<str>,
}

/// `CommonExtensionConfig`.
#[derive(Clone, Debug, PartialEq)]
pub enum TapSource {
    /// `POST /tap` on the admin address says what, under this id.
    Admin {
        config_id: Arc<str>,
    },
    Static(TapConfig),
}

/// `config.tap.v3.TapConfig`: of the configuration, and of a request to `/tap`.
#[derive(Clone, Debug, PartialEq)]
pub struct TapConfig {
    pub predicate: TapPredicate,
    pub output: TapOutput,
    pub enabled: Option<FractionalPercent>,
}

/// `admin.v3.TapRequest`: the body of `POST /tap`.
#[derive(Clone, Debug, PartialEq)]
pub struct TapRequest {
    /// Whose `admin_config` has this id is tapped.
    pub config_id: Arc<str>,
    pub config: TapConfig,
}

#[derive(Clone, Debug, PartialEq)]
pub enum TapPredicate {
    Any,
    Or(Vec<TapPredicate>),
    And(Vec<TapPredicate>),
    Not(Box<TapPredicate>),
    /// A condition of an HTTP stream, which no connection's bytes fulfil.
    Http,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TapOutput {
    pub sink: TapSink,
    pub format: TapFormat,
    /// Of a trace that is written at its end. Default 1,024.
    pub max_buffered_rx_bytes: u32,
    pub max_buffered_tx_bytes: u32,
    /// Events are written as they come.
    pub streaming: bool,
    /// Streamed events are gathered until they have this many bytes; 0: they are not.
    pub min_streamed_sent_bytes: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapSink {
    FilePerTap {
        path_prefix: Arc<str>,
    },
    /// To who asked `/tap`.
    StreamingAdmin,
    /// As that, in one answer.
    BufferedAdmin {
        max_traces: u64,
        timeout: Option<Duration>,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TapFormat {
    #[default]
    JsonBodyAsBytes,
    JsonBodyAsString,
    ProtoBinary,
    ProtoBinaryLengthDelimited,
    ProtoText,
}

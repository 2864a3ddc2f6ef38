//! HTTP/2, by the `h2` crate.
//!
//! A connection is driven by one task: a client's by whoever polls [`Server::next`], an upstream's by a task of its
//! own, since its streams belong to many. The streams' tasks hand their frames to it and are woken by it. Between it
//! and the socket is [`watch`], and what the crate does not limit is counted there, by [`abuse`].

pub mod abuse;
pub mod client;
pub mod head;
pub mod keepalive;
pub mod receive;
pub mod send;
pub mod server;
mod stock;
#[cfg(test)]
mod tests;
pub mod watch;
mod wire;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use h2::Reason;

pub use self::client::{Client, Ended};
pub use self::keepalive::Keepalive;
pub use self::server::{Responder, Server};
pub use self::wire::{Tally, Wire};
use super::{Reset, ResetReason};
use crate::telemetry::Side;
use crate::telemetry::stats::{ClusterStats, stats_block};

/// Envoy's `Http2ProtocolOptions`, and what of the connection manager or the cluster concerns the codec.
#[derive(Clone, Debug)]
pub struct Settings {
    pub max_concurrent_streams: u32,
    pub initial_stream_window_size: u32,
    pub initial_connection_window_size: u32,
    pub hpack_table_size: u32,
    /// Extended `CONNECT` (RFC 8441) is offered.
    pub allow_connect: bool,
    pub max_headers_bytes: u32,
    pub max_headers: usize,
    /// Of a name and its value.
    pub max_field_bytes: usize,
    /// Values are of ASCII (RFC 9110, 5.5).
    pub disallow_obs_text: bool,
    /// The scheme of a request that has none that is known.
    pub https: bool,
    pub keepalive: Option<Keepalive>,
    pub limits: abuse::Limits,
    /// Bytes of one stream that may wait for the socket.
    pub send_buffer: usize,
    pub stats: Arc<Http2Stats>,
    /// Of a cluster, whose connections count their bytes there.
    pub traffic: Option<Arc<ClusterStats>>,
    /// Whether somebody wants to know what each of a client's streams was on the wire. Those to upstreams always count.
    pub tallies: bool,
}

stats_block! {
    /// `http2.` of listeners, `cluster.<name>.http2.` of clusters.
    pub struct Http2Stats {
        counter goaway_sent;
        counter header_overflow;
        counter inbound_empty_frames_flood;
        counter inbound_priority_frames_flood;
        counter inbound_window_update_frames_flood;
        counter keepalive_timeout;
        counter outbound_control_flood;
        counter rx_messaging_error;
        counter rx_reset;
        counter trailers;
        counter tx_flush_timeout;
        counter tx_reset;
        gauge streams_active;
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // Envoy's defaults but for the windows: decision 31.
            max_concurrent_streams: 1024,
            initial_stream_window_size: 256 * 1024,
            initial_connection_window_size: 1024 * 1024,
            hpack_table_size: 4096,
            allow_connect: false,
            max_headers_bytes: 60 * 1024,
            max_headers: 100,
            max_field_bytes: 64 * 1024,
            disallow_obs_text: false,
            https: false,
            keepalive: None,
            limits: abuse::Limits::default(),
            send_buffer: 64 * 1024,
            stats: Arc::default(),
            traffic: None,
            tallies: false,
        }
    }
}

/// How long a stream that was reset is remembered, for frames of it that were on their way.
const RESET_MEMORY: Duration = Duration::from_secs(1);

/// What an error of the crate's is to an exchange.
fn reset_of(error: &h2::Error, side: Side) -> Reset {
    let reason = error.reason();
    if error.is_reset() && error.is_remote() {
        return remote_reset(reason.unwrap_or(Reason::CANCEL), side);
    }
    if error.is_go_away() && error.is_remote() {
        // Only streams that the peer has not touched end by its GOAWAY.
        return Reset::new(side, ResetReason::RemoteRefused, "http2.remote_refuse");
    }
    if error.is_library() {
        // Envoy's words for what its own library refuses.
        return Reset::new(side, ResetReason::Protocol, "http2.violation.of.messaging.rule");
    }
    if error.is_reset() || error.is_go_away() {
        return Reset::new(side, ResetReason::Local, "http2.local_reset");
    }
    if let Some(error) = error.get_io() {
        return lost(error, side);
    }
    Reset::new(side, ResetReason::Local, error.to_string())
}

/// Told as HTTP/1 tells it.
fn lost(error: &io::Error, side: Side) -> Reset {
    log::debug!("a connection by HTTP/2 is lost: {error}");
    // By `Watched`, for what no upstream may send.
    if side == Side::Upstream && error.kind() == io::ErrorKind::InvalidData {
        return Reset::new(side, ResetReason::Protocol, "");
    }
    let details = if side == Side::Downstream { "downstream_remote_disconnect" } else { "" };
    Reset::new(side, ResetReason::ConnectionTermination, details)
}

/// As Envoy's `onStreamClose` names them.
fn remote_reset(reason: Reason, side: Side) -> Reset {
    match reason {
        Reason::REFUSED_STREAM => Reset::new(side, ResetReason::RemoteRefused, "http2.remote_refuse"),
        Reason::CONNECT_ERROR => Reset::new(side, ResetReason::Connect, "http2.remote_reset"),
        Reason::PROTOCOL_ERROR if side == Side::Upstream => Reset::new(side, ResetReason::Protocol, ""),
        _ => Reset::new(side, ResetReason::Remote, "http2.remote_reset"),
    }
}

/// With what a stream is reset because of `reset`.
pub fn reason_of(reset: &Reset) -> Reason {
    match reset.reason {
        ResetReason::LocalRefused => Reason::REFUSED_STREAM,
        ResetReason::Connect => Reason::CONNECT_ERROR,
        // Who waits for it has not done anything wrong where the upstream has.
        ResetReason::Protocol if reset.side == Side::Upstream => Reason::INTERNAL_ERROR,
        ResetReason::Protocol => Reason::PROTOCOL_ERROR,
        ResetReason::Local
        | ResetReason::Remote
        | ResetReason::RemoteRefused
        | ResetReason::ConnectionTimeout
        | ResetReason::ConnectionFailure
        | ResetReason::ConnectionTermination
        | ResetReason::Overflow
        | ResetReason::PayloadTooLarge => match reset.side {
            Side::Downstream => Reason::CANCEL,
            Side::Upstream | Side::Internal => Reason::INTERNAL_ERROR,
        },
    }
}

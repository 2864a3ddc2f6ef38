//! What configuration means, once parsed: the types that the daemon runs on.
//!
//! Nothing here knows protobuf. Durations, ports, prefixes and matchers have been parsed, defaults are filled in,
//! and what Envoy refuses cannot be expressed where that is natural. Everything compares with `==`, which is how
//! an update tells what has changed.

pub mod access_log;
pub mod address;
pub mod bootstrap;
pub mod cluster;
pub mod config_source;
pub mod discovered;
pub mod endpoint;
pub mod expression;
pub mod grpc;
pub mod http;
pub mod listener;
pub mod listener_filter;
pub mod map;
pub mod matcher;
pub mod metadata;
pub mod network_filter;
pub mod packed;
pub mod raw;
pub mod tls;
pub mod transport;

pub use access_log::AccessLog;
pub use address::{Address, Cidr, HostPort, SocketOption, TcpKeepalive};
pub use bootstrap::Bootstrap;
pub use cluster::Cluster;
pub use config_source::ConfigSource;
pub use endpoint::LoadAssignment;
pub use listener::{FilterChain, Listener};
pub use listener_filter::ListenerFilter;
pub use matcher::StringMatcher;
pub use metadata::Metadata;
pub use network_filter::NetworkFilter;
pub use packed::Packed;
pub use raw::Raw;
pub use transport::TransportSocket;

/// A part of a hundred, a million and so on, as `num / den`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FractionalPercent {
    pub numerator: u32,
    pub denominator: u32,
}

/// `config.core.v3.RuntimeUInt32` and its kin: there is no runtime here, so the default is what holds.
pub const DEFAULT_BUFFER_LIMIT: u32 = 1024 * 1024;

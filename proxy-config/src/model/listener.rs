//! `config.listener.v3.Listener`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::access_log::AccessLog;
use super::address::{Address, Cidr, SocketOption, TcpKeepalive};
use super::listener_filter::ListenerFilterConfig;
use super::metadata::Metadata;
use super::network_filter::NetworkFilterConfig;
use super::{DEFAULT_BUFFER_LIMIT, TransportSocket};

#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Envoy gives a nameless listener a UUID; here it is its address.
    pub name: Arc<str>,
    /// Of `listener.<stat_prefix>.`; else the address.
    pub stat_prefix: Option<Arc<str>>,
    /// `address`, then `additional_addresses`. Never empty.
    pub addresses: Vec<ListenAddress>,
    pub bind_to_port: bool,
    /// Hand connections to the listener of their original destination.
    pub use_original_dst: bool,
    pub traffic_direction: TrafficDirection,
    /// One socket per worker (`enable_reuse_port`, on by default; `reuse_port`).
    pub reuse_port: bool,
    /// Soft limit of what is buffered per connection; 0: none.
    pub per_connection_buffer_limit_bytes: u32,
    pub tcp_backlog_size: Option<u32>,
    pub tcp_fast_open_queue_length: Option<u32>,
    pub tcp_keepalive: Option<TcpKeepalive>,
    pub enable_mptcp: bool,
    pub transparent: bool,
    pub freebind: bool,
    pub access_log: Vec<AccessLog>,
    pub listener_filters: Vec<ListenerFilterConfig>,
    /// `None`: for ever (`0s`). Default 15 s.
    pub listener_filters_timeout: Option<Duration>,
    pub continue_on_listener_filters_timeout: bool,
    pub filter_chains: Vec<FilterChain>,
    pub default_filter_chain: Option<FilterChain>,
    /// `%METADATA(LISTENER:…)%`.
    pub metadata: Metadata,
}

impl Listener {
    /// With Envoy's defaults, and no chain.
    pub fn new(name: &str, addresses: Vec<ListenAddress>) -> Self {
        Self {
            name: name.into(),
            stat_prefix: None,
            addresses,
            bind_to_port: true,
            use_original_dst: false,
            traffic_direction: TrafficDirection::Unspecified,
            reuse_port: true,
            per_connection_buffer_limit_bytes: DEFAULT_BUFFER_LIMIT,
            tcp_backlog_size: None,
            tcp_fast_open_queue_length: None,
            tcp_keepalive: None,
            enable_mptcp: false,
            transparent: false,
            freebind: false,
            access_log: Vec::new(),
            listener_filters: Vec::new(),
            listener_filters_timeout: Some(Duration::from_secs(15)),
            continue_on_listener_filters_timeout: false,
            filter_chains: Vec::new(),
            default_filter_chain: None,
            metadata: Metadata::default(),
        }
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self { address: Address::Ip(address), ipv4_compat: false, socket_options: Vec::new() }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct ListenAddress {
    /// Never [`Address::Host`].
    pub address: Address,
    /// `ipv4_compat`: an IPv6 wildcard address that takes IPv4 too.
    pub ipv4_compat: bool,
    /// The listener's, or this address's own instead.
    pub socket_options: Vec<SocketOption>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficDirection {
    #[default]
    Unspecified,
    Inbound,
    Outbound,
}

#[derive(Clone, Debug, PartialEq)]
pub struct FilterChain {
    pub name: Arc<str>,
    /// All conditions absent: matches everything.
    pub filter_chain_match: ChainMatch,
    pub filters: Vec<NetworkFilterConfig>,
    pub transport_socket: TransportSocket,
    /// How long its handshake may take; `None`: for ever (`0s`). Default 15 s, where Envoy has no limit.
    pub transport_socket_connect_timeout: Option<Duration>,
    /// `%METADATA(LISTENER_FILTER_CHAIN:…)%`.
    pub metadata: Metadata,
}

impl FilterChain {
    /// On plain sockets.
    pub fn new(name: &str, filter_chain_match: ChainMatch, filters: Vec<NetworkFilterConfig>) -> Self {
        Self {
            name: name.into(),
            filter_chain_match,
            filters,
            transport_socket: TransportSocket::RawBuffer,
            transport_socket_connect_timeout: Some(HANDSHAKE_TIMEOUT),
            metadata: Metadata::default(),
        }
    }
}

/// Of `transport_socket_connect_timeout`: a client that never ends its hello must not hold a place for ever.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// `FilterChainMatch`, in Envoy's order of precedence. An empty list is no condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainMatch {
    pub destination_port: Option<u16>,
    pub prefix_ranges: Vec<Cidr>,
    /// Lower case; `*.example.com` is a suffix, a bare `*` was dropped.
    pub server_names: Vec<Arc<str>>,
    /// `raw_buffer`, `tls`, …; empty: any.
    pub transport_protocol: Arc<str>,
    pub application_protocols: Vec<Arc<str>>,
    pub direct_source_prefix_ranges: Vec<Cidr>,
    pub source_type: SourceType,
    pub source_prefix_ranges: Vec<Cidr>,
    pub source_ports: Vec<u16>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SourceType {
    #[default]
    Any,
    SameIpOrLoopback,
    External,
}

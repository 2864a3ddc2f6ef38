//! `config.listener.v3.Listener`.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;

use super::core::metadata as metadata_of;
use super::registry::registry;
use super::value::{flag, number};
use super::{Cx, filter_chain};
use crate::model::DEFAULT_BUFFER_LIMIT;
use crate::model::address::{Address, SocketOption};
use crate::model::listener::{ListenAddress, Listener, TrafficDirection};
use crate::model::listener_filter::{ListenerFilter, ListenerFilterConfig, ProxyProtocol};

registry! { pb::Listener, pb::AdditionalAddress, pb::listener::DeprecatedV1 }

const LISTENER_FILTERS_TIMEOUT: Duration = Duration::from_secs(15);

lower! { "envoy.config.listener.v3.Listener" pb::Listener => Listener, cx;
    read {
        name, address, additional_addresses, stat_prefix, filter_chains, use_original_dst, default_filter_chain,
        per_connection_buffer_limit_bytes, metadata, deprecated_v1, listener_filters,
        listener_filters_timeout, continue_on_listener_filters_timeout, transparent, freebind, socket_options,
        tcp_fast_open_queue_length, traffic_direction, enable_reuse_port, access_log, tcp_backlog_size,
        bind_to_port, enable_mptcp, tcp_keepalive
    }
    reject {
        fcds_config: "the discovery of filter chains is not implemented",
        filter_chain_matcher: "matching trees are not implemented: use filter_chain_match",
        udp_listener_config: "UDP is not implemented yet",
        api_listener: "API listeners are not implemented",
        listener_specifier: "internal_listener: internal listeners are not implemented",
    }
    warn {
        stats_matcher: "stats of single listeners are not left out; use stats_config of the bootstrap",
        per_connection_buffer_high_watermark_timeout: "a connection whose buffer is full is kept: reading from its \
            other side pauses",
        connection_balance_config: "connections are balanced by the kernel; those of a listener with one socket go to the worker with the fewest",
        reuse_port: "is the default; turn it off with enable_reuse_port",
        ignore_global_conn_limit: "there is no global connection limit",
        drain_type: "is about HTTP: no failed health check closes a TCP connection",
        max_connections_to_accept_per_socket_event: "connections are accepted one by one, with turns for others",
        bypass_overload_manager: "there is no overload manager",
    }
    {
        let mut filter_chains = filter_chains;
        let use_proxy_proto = filter_chain::take_use_proxy_proto(&mut filter_chains);
        if filter_chains.is_empty() && default_filter_chain.is_none() {
            cx.reject("filter_chains", "no filter chains specified");
        }
        let filter_chains = filter_chain::lower_all(cx, filter_chains);
        let default_filter_chain = default_filter_chain.and_then(|chain| cx.lower("default_filter_chain", chain));
        let options = cx.list("socket_options", socket_options);
        let addresses = addresses(cx, address, additional_addresses, options);
        let use_original_dst = flag(use_original_dst, false);
        let mut listener_filters = cx.list("listener_filters", listener_filters);
        implied_filters(&mut listener_filters, use_original_dst, use_proxy_proto);
        let deprecated = deprecated_v1.and_then(|v1| cx.lower("deprecated_v1", v1));
        if let Some(max) = max_connections_to_accept_per_socket_event {
            cx.ranged("max_connections_to_accept_per_socket_event", max.value, 1..=u32::MAX);
        }
        cx.variant::<pb::listener::DrainType>("drain_type", drain_type);
        let direction = traffic_direction_of(cx, traffic_direction);
        let access_log = cx.list("access_log", access_log).into_iter().flatten().collect();
        let timeout = cx.timeout("listener_filters_timeout", listener_filters_timeout, Some(LISTENER_FILTERS_TIMEOUT));
        let metadata = metadata_of(cx, "metadata", metadata);
        let addresses = addresses?;
        Some(Listener {
            name: name_of(name, &addresses),
            stat_prefix: Some(Arc::<str>::from(stat_prefix)).filter(|prefix| !prefix.is_empty()),
            addresses,
            bind_to_port: flag(bind_to_port, true) && deprecated.unwrap_or(true),
            use_original_dst,
            traffic_direction: direction,
            reuse_port: flag(enable_reuse_port, true),
            per_connection_buffer_limit_bytes: number(per_connection_buffer_limit_bytes)
                .unwrap_or(DEFAULT_BUFFER_LIMIT),
            tcp_backlog_size: number(tcp_backlog_size),
            tcp_fast_open_queue_length: number(tcp_fast_open_queue_length),
            tcp_keepalive: tcp_keepalive.and_then(|keepalive| cx.lower("tcp_keepalive", keepalive)),
            enable_mptcp,
            transparent: flag(transparent, false),
            freebind: flag(freebind, false),
            access_log,
            listener_filters,
            listener_filters_timeout: timeout,
            continue_on_listener_filters_timeout,
            filter_chains,
            default_filter_chain,
            metadata,
        })
    }
}

fn traffic_direction_of(cx: &mut Cx, direction: i32) -> TrafficDirection {
    match cx.variant("traffic_direction", direction) {
        Some(core::TrafficDirection::Inbound) => TrafficDirection::Inbound,
        Some(core::TrafficDirection::Outbound) => TrafficDirection::Outbound,
        Some(core::TrafficDirection::Unspecified) | None => TrafficDirection::Unspecified,
    }
}

/// Envoy puts these after the listener's own filters. Istio asks for the first both ways: once is enough.
fn implied_filters(filters: &mut Vec<ListenerFilterConfig>, original_dst: bool, proxy_protocol: bool) {
    let there =
        |f: &ListenerFilterConfig| f.filter == ListenerFilter::OriginalDst && f.filter_disabled.is_none();
    let original_dst = original_dst && !filters.iter().any(there);
    let mut add = |name: &str, filter| {
        filters.push(ListenerFilterConfig { name: name.into(), filter_disabled: None, filter });
    };
    if original_dst {
        add("envoy.filters.listener.original_dst", ListenerFilter::OriginalDst);
    }
    if proxy_protocol {
        add("envoy.filters.listener.proxy_protocol", ListenerFilter::ProxyProtocol(ProxyProtocol::default()));
    }
}

fn name_of(name: String, addresses: &[ListenAddress]) -> Arc<str> {
    match (name.is_empty(), addresses.first().map(|first| &first.address)) {
        (true, Some(Address::Ip(ip))) => ip.to_string().into(),
        (true, Some(Address::Pipe { path, .. })) => path.display().to_string().into(),
        (true, Some(Address::Host(_)) | None) | (false, _) => name.into(),
    }
}

fn addresses(
    cx: &mut Cx,
    address: Option<core::Address>,
    additional: Vec<pb::AdditionalAddress>,
    options: Vec<SocketOption>,
) -> Option<Vec<ListenAddress>> {
    let Some(address) = address else {
        cx.reject("address", "is required");
        return None;
    };
    let first = listen_address(cx, address);
    let count = additional.len();
    let more = cx.list("additional_addresses", additional);
    let (address, ipv4_compat) = first?;
    let mut addresses = vec![ListenAddress { address, ipv4_compat, socket_options: options.clone() }];
    addresses.extend(more.into_iter().map(|(address, ipv4_compat, own)| ListenAddress {
        address,
        ipv4_compat,
        socket_options: own.unwrap_or_else(|| options.clone()),
    }));
    (addresses.len() == count + 1).then_some(addresses)
}

/// Lowers the field `address` of the message at hand; the flag is `ipv4_compat`, which means something here only.
fn listen_address(cx: &mut Cx, mut address: core::Address) -> Option<(Address, bool)> {
    let ipv4_compat = match &mut address.address {
        Some(core::address::Address::SocketAddress(socket)) => std::mem::take(&mut socket.ipv4_compat),
        Some(core::address::Address::Pipe(_) | core::address::Address::EnvoyInternalAddress(_)) | None => {
            false
        }
    };
    let address = cx.lower("address", address)?;
    match &address {
        Address::Host(host) => {
            cx.reject("address", format!("malformed IP address: {}", host.host));
            return None;
        }
        Address::Ip(ip) if ipv4_compat && !takes_ipv4(ip.ip()) => {
            cx.reject("address", format!("ipv4_compat is for :: and IPv4-mapped addresses, not {ip}"));
        }
        Address::Ip(_) | Address::Pipe { .. } => {}
    }
    Some((address, ipv4_compat))
}

fn takes_ipv4(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V6(v6) => v6 == Ipv6Addr::UNSPECIFIED || v6.to_ipv4_mapped().is_some(),
        IpAddr::V4(_) => false,
    }
}

lower! { "envoy.config.listener.v3.AdditionalAddress"
    pb::AdditionalAddress => (Address, bool, Option<Vec<SocketOption>>), cx;
    read { address, socket_options }
    warn { tcp_keepalive: "the listener's own holds for all its addresses" }
    {
        let own = socket_options.and_then(|options| cx.lower("socket_options", options));
        let Some(address) = address else {
            cx.reject("address", "is required");
            return None;
        };
        let (address, ipv4_compat) = listen_address(cx, address)?;
        Some((address, ipv4_compat, own))
    }
}

lower! { "envoy.config.listener.v3.Listener.DeprecatedV1" pb::listener::DeprecatedV1 => bool, cx;
    read { bind_to_port }
    {
        let _ = cx;
        Some(flag(bind_to_port, true))
    }
}

#[cfg(test)]
mod tests;

//! Prints nanoseconds per filter chain match and per hand-off, with 10,000 chains and 10,000 listeners.
//!
//! `cargo run --release -p proxy-userspace --example bench_match`

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use proxy_config::model::address::Address;
use proxy_config::model::listener::{ChainMatch as Criteria, DrainType, ListenAddress, TrafficDirection};
use proxy_config::model::{Cidr, FilterChain, Listener, Metadata, TransportSocket};
use proxy_userspace::clock;
use proxy_userspace::listener::{ChainMatch, Handoff};
use proxy_userspace::net::facts::Facts;

const MANY: u32 = 10_000;
const RUNS: usize = 11;
const ROUNDS: u32 = 20;

fn main() {
    let by_name = |i| Criteria { server_names: vec![host(i).into()], ..Criteria::default() };
    let by_prefix = |i| Criteria {
        destination_port: Some(80),
        // A mixture of lengths, as services, nodes and networks give.
        prefix_ranges: Cidr::new(ip(i), 32 - (i % 8) as u8).into_iter().collect(),
        ..Criteria::default()
    };
    let wildcard = |i| Criteria {
        server_names: vec![format!("*.{}", host(i)).into()],
        transport_protocol: "tls".into(),
        application_protocols: vec!["istio".into(), "h2".into()],
        ..Criteria::default()
    };
    let cases: [(&str, &dyn Fn(u32) -> Criteria); 3] =
        [("server names", &by_name), ("prefixes", &by_prefix), ("wildcards, tls, alpn", &wildcard)];
    for (what, criteria) in cases {
        for many in [10, MANY] {
            let table = ChainMatch::new(&(0..many).map(|i| chain(criteria(i))).collect::<Vec<_>>());
            let connections: Vec<_> = (0..MANY).map(|i| connection(i % many)).collect();
            let found = connections.iter().filter(|facts| table.find(facts).is_some()).count();
            let ns = median(|| connections.iter().for_each(|facts| _ = black_box(table.find(facts))));
            println!("chain match, {many:>6} chains by {what}: {ns:.0} ns ({found} of {MANY} matched)");
        }
    }
    let listeners: Vec<_> = (0..MANY).map(listener).collect();
    let handoff = Handoff::new(listeners.iter().enumerate());
    let destinations: Vec<_> = (0..MANY).map(|i| SocketAddr::new(ip(i), 80)).collect();
    let ns = median(|| destinations.iter().for_each(|to| _ = black_box(handoff.find(*to))));
    println!("hand-off, {MANY} listeners: {ns:.0} ns");
}

/// Of several runs, in nanoseconds for each of the [`MANY`] that `all` does.
fn median(all: impl Fn()) -> f64 {
    let mut runs: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = clock::now();
            (0..ROUNDS).for_each(|_| all());
            start.elapsed().as_nanos() as f64 / f64::from(ROUNDS * MANY)
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    runs[RUNS / 2]
}

fn ip(i: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 + i * 256).into()
}

fn host(i: u32) -> String {
    format!("service-{i}.namespace-{}.svc.cluster.local", i % 100)
}

fn connection(i: u32) -> Facts {
    let mut facts = Facts::new(SocketAddr::new(ip(i + 77), 40_000), SocketAddr::new(ip(i), 80));
    facts.server_name = Some(match i % 2 {
        0 => host(i).into(),
        _ => format!("www.{}", host(i)).into(),
    });
    facts.transport_protocol = "tls";
    facts.application_protocols = vec![Arc::from("h2")];
    facts
}

fn chain(filter_chain_match: Criteria) -> FilterChain {
    FilterChain {
        name: "".into(),
        filter_chain_match,
        filters: Vec::new(),
        transport_socket: TransportSocket::RawBuffer,
        transport_socket_connect_timeout: None,
        metadata: Metadata::default(),
    }
}

fn listener(i: u32) -> Listener {
    let address = Address::Ip(SocketAddr::new(ip(i), 80));
    Listener {
        name: "".into(),
        stat_prefix: None,
        addresses: vec![ListenAddress { address, ipv4_compat: false, socket_options: Vec::new() }],
        bind_to_port: false,
        use_original_dst: false,
        traffic_direction: TrafficDirection::Outbound,
        reuse_port: true,
        per_connection_buffer_limit_bytes: 1 << 20,
        tcp_backlog_size: None,
        tcp_fast_open_queue_length: None,
        tcp_keepalive: None,
        enable_mptcp: false,
        transparent: false,
        freebind: false,
        max_connections_to_accept_per_socket_event: None,
        access_log: Vec::new(),
        listener_filters: Vec::new(),
        listener_filters_timeout: None,
        continue_on_listener_filters_timeout: false,
        filter_chains: Vec::new(),
        default_filter_chain: None,
        drain_type: DrainType::Default,
        metadata: Metadata::default(),
    }
}

//! Prints nanoseconds per filter chain match and per hand-off to another listener, a line of JSON each.
//!
//! `cargo xtask bench match` runs it, and shows the lines as a table.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use proxy_config::model::listener::{ChainMatch as Criteria, SourceType};
use proxy_config::model::{Cidr, FilterChain, Listener};
use proxy_userspace::clock;
use proxy_userspace::listener::{ChainMatch, Handoff};
use proxy_userspace::net::facts::Facts;

const SIZES: [u32; 5] = [1, 10, 100, 1_000, 10_000];
/// Connections that are looked up in turn: more than the caches of a core hold.
const CONNECTIONS: u32 = 10_000;
const RUNS: usize = 11;
const ROUNDS: u32 = 3;

/// What chains are told apart by.
type Shape = (&'static str, fn(u32) -> Criteria);

const SHAPES: [Shape; 5] = [
    ("chains by server name", by_name),
    ("chains by wildcard name, tls, ALPN", by_wildcard),
    ("chains by prefix of one length", by_address),
    ("chains by prefix of 8 lengths", by_prefix),
    ("chains by port and source prefix", by_source),
];

fn main() {
    for (what, criteria) in SHAPES {
        for many in SIZES {
            let table = ChainMatch::new(&(0..many).map(|i| chain(criteria(i))).collect::<Vec<_>>());
            let connections: Vec<_> = (0..CONNECTIONS).map(|i| connection(i % many)).collect();
            // Else what is timed is a look-up that finds nothing.
            let found = connections.iter().filter(|facts| table.find(facts).is_some()).count();
            assert_eq!(found, connections.len(), "{what}, {many}");
            report(what, many, || connections.iter().for_each(|facts| _ = black_box(table.find(facts))));
        }
    }
    for many in SIZES {
        let listeners: Vec<_> = (0..many).map(listener).collect();
        let mut handoff = Handoff::default();
        for (rank, listener) in listeners.iter().enumerate() {
            handoff.insert(rank as u64, listener, &rank);
        }
        let destinations: Vec<_> = (0..CONNECTIONS).map(|i| SocketAddr::new(ip(i % many), 80)).collect();
        assert!(destinations.iter().all(|to| handoff.find(*to).is_some()), "{many}");
        report("hand-off by destination", many, || {
            destinations.iter().for_each(|to| _ = black_box(handoff.find(*to)));
        });
    }
}

/// The median of several runs, in nanoseconds for each of the [`CONNECTIONS`] that `all` does.
fn report(what: &str, many: u32, all: impl Fn()) {
    let mut runs: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = clock::now();
            (0..ROUNDS).for_each(|_| all());
            start.elapsed().as_nanos() as f64 / f64::from(ROUNDS * CONNECTIONS)
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    println!("{}", serde_json::json!({"what": what, "many": many, "ns": runs[RUNS / 2]}));
}

fn by_name(i: u32) -> Criteria {
    Criteria { server_names: vec![host(i).into()], ..Criteria::default() }
}

fn by_wildcard(i: u32) -> Criteria {
    Criteria {
        server_names: vec![format!("*.namespace-{i}.svc.cluster.local").into()],
        transport_protocol: "tls".into(),
        application_protocols: vec!["istio".into(), "h2".into()],
        ..Criteria::default()
    }
}

fn by_address(i: u32) -> Criteria {
    Criteria { prefix_ranges: Cidr::new(ip(i), 32).into_iter().collect(), ..Criteria::default() }
}

/// A mixture of lengths, as services, nodes and networks give.
fn by_prefix(i: u32) -> Criteria {
    Criteria {
        destination_port: Some(80),
        prefix_ranges: Cidr::new(ip(i), 32 - (i % 8) as u8).into_iter().collect(),
        ..Criteria::default()
    }
}

fn by_source(i: u32) -> Criteria {
    Criteria {
        destination_port: Some(80),
        source_type: SourceType::External,
        source_prefix_ranges: Cidr::new(ip(i + 77), 24).into_iter().collect(),
        ..Criteria::default()
    }
}

fn ip(i: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 + i * 256).into()
}

fn host(i: u32) -> String {
    format!("service-{i}.namespace-{i}.svc.cluster.local")
}

fn connection(i: u32) -> Facts {
    let mut facts = Facts::new(SocketAddr::new(ip(i + 77), 40_000), SocketAddr::new(ip(i), 80));
    facts.server_name = Some(host(i).into());
    facts.transport_protocol = "tls";
    facts.application_protocols = vec![Arc::from("h2")];
    facts
}

fn chain(filter_chain_match: Criteria) -> FilterChain {
    FilterChain::new("", filter_chain_match, Vec::new())
}

fn listener(i: u32) -> Listener {
    Listener { bind_to_port: false, ..Listener::new("", vec![SocketAddr::new(ip(i), 80).into()]) }
}

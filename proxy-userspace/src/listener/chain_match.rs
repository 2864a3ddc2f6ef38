//! Which filter chain serves a connection: `filter_chain_match` in Envoy's order of precedence.
//!
//! Each criterion is one level of nested tables. The most specific entry of a level that fits the connection is
//! taken and never taken back: where the levels below it find nothing, there is no match, although a less
//! specific entry might have led to one. That is Envoy's behaviour at every level, and what makes a look-up cost
//! the number of criteria and not the number of chains.

mod table;
#[cfg(test)]
mod tests;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use foldhash::fast::RandomState;
use proxy_config::model::listener::{ChainMatch as Criteria, SourceType};
use proxy_config::model::{Cidr, FilterChain};

use self::table::Table;
use crate::net::facts::Facts;

/// The table of one listener.
#[derive(Debug, Default)]
pub struct ChainMatch {
    ports: Table<Option<u16>, Prefixes<ServerNames>>,
}

/// An exact name, a suffix with its leading dot, or empty for chains that ask for none.
type ServerNames = Table<Box<str>, Transports>;
/// Empty for any.
type Transports = Table<Arc<str>, Protocols>;
/// Empty for any.
type Protocols = Table<Arc<str>, Prefixes<Sources>>;
/// `None` for any.
type Ports = Table<Option<u16>, usize>;

#[derive(Debug, Default)]
struct Sources {
    any: Option<Box<Prefixes<Ports>>>,
    local: Option<Box<Prefixes<Ports>>>,
    external: Option<Box<Prefixes<Ports>>>,
}

impl ChainMatch {
    /// Of chains that overlap, which the configuration refuses, the first is found.
    pub fn new<'a>(chains: impl IntoIterator<Item = &'a FilterChain>) -> Self {
        let mut table = Self::default();
        for (index, chain) in chains.into_iter().enumerate() {
            table.insert(&chain.filter_chain_match, index);
        }
        table
    }

    /// The index of the chain that serves a connection; `None` leaves it to the default filter chain.
    pub fn find(&self, facts: &Facts) -> Option<usize> {
        let port = facts.local.port();
        // Port 0 is how Envoy writes that there is no condition, and no connection goes there.
        let exact = if port == 0 { None } else { self.ports.get(&Some(port)) };
        let by_address = exact.or_else(|| self.ports.get(&None))?;
        let by_name = by_address.longest(facts.local.ip())?;
        let by_transport = server_name(by_name, facts.server_name.as_deref().unwrap_or_default())?;
        let by_protocol = by_transport.get(facts.transport_protocol).or_else(|| by_transport.get(""))?;
        let by_direct = application_protocol(by_protocol, &facts.application_protocols)?;
        let by_type = by_direct.longest(facts.direct_remote.ip())?;
        let by_source = by_type.of(facts)?;
        let by_port = by_source.longest(facts.remote.ip())?;
        by_port.get(&Some(facts.remote.port())).or_else(|| by_port.get(&None)).copied()
    }

    fn insert(&mut self, criteria: &Criteria, index: usize) {
        let port = criteria.destination_port.filter(|port| *port != 0);
        let by_address = self.ports.entry(port, Prefixes::default);
        for destination in ranges(&criteria.prefix_ranges) {
            for name in or_empty(&criteria.server_names) {
                let name = name.strip_prefix('*').unwrap_or(name);
                let transports = by_address.entry(destination).entry(name.into(), Table::default);
                let protocols = transports.entry(criteria.transport_protocol.clone(), Table::default);
                insert_protocols(protocols, criteria, index);
            }
        }
    }
}

fn insert_protocols(protocols: &mut Protocols, criteria: &Criteria, index: usize) {
    for protocol in or_empty(&criteria.application_protocols) {
        let by_direct = protocols.entry(protocol.into(), Prefixes::default);
        for direct in ranges(&criteria.direct_source_prefix_ranges) {
            let by_source = by_direct.entry(direct).of_type(criteria.source_type);
            for source in ranges(&criteria.source_prefix_ranges) {
                insert_ports(by_source.entry(source), &criteria.source_ports, index);
            }
        }
    }
}

fn insert_ports(by_port: &mut Ports, ports: &[u16], index: usize) {
    if ports.is_empty() {
        by_port.entry(None, || index);
    }
    for port in ports {
        by_port.entry(Some(*port), || index);
    }
}

/// `None` stands for every address.
fn ranges(ranges: &[Cidr]) -> impl Iterator<Item = Option<Cidr>> {
    let any = ranges.is_empty().then_some(None);
    any.into_iter().chain(ranges.iter().copied().map(Some))
}

fn or_empty(texts: &[Arc<str>]) -> impl Iterator<Item = &str> {
    let any = texts.is_empty().then_some("");
    any.into_iter().chain(texts.iter().map(AsRef::as_ref))
}

/// Exactly that name, else its longest suffix that begins with a dot.
fn server_name<'a>(names: &'a ServerNames, name: &str) -> Option<&'a Transports> {
    if let Some(exact) = names.get(name) {
        return Some(exact);
    }
    // A dot at either end of the name begins no suffix.
    let dots = name.char_indices().skip(1).filter(|(at, c)| *c == '.' && at + 1 < name.len());
    let mut suffixes = dots.filter_map(|(at, _)| name.get(at..));
    suffixes.find_map(|suffix| names.get(suffix)).or_else(|| names.get(""))
}

/// The first of the client's protocols that any chain names.
fn application_protocol<'a>(protocols: &'a Protocols, offered: &[Arc<str>]) -> Option<&'a Prefixes<Sources>> {
    offered.iter().find_map(|protocol| protocols.get(protocol)).or_else(|| protocols.get(""))
}

impl Sources {
    fn of(&self, facts: &Facts) -> Option<&Prefixes<Ports>> {
        let specific = if same_ip_or_loopback(facts) { &self.local } else { &self.external };
        specific.as_deref().or(self.any.as_deref())
    }

    fn of_type(&mut self, source_type: SourceType) -> &mut Prefixes<Ports> {
        let slot = match source_type {
            SourceType::Any => &mut self.any,
            SourceType::SameIpOrLoopback => &mut self.local,
            SourceType::External => &mut self.external,
        };
        slot.get_or_insert_default()
    }
}

/// Loopback is, as in Envoy, only the one address that is commonly used, not all of 127.0.0.0/8.
fn same_ip_or_loopback(facts: &Facts) -> bool {
    let remote = facts.remote.ip().to_canonical();
    remote == facts.local.ip().to_canonical()
        || remote == IpAddr::V4(Ipv4Addr::LOCALHOST)
        || remote == IpAddr::V6(Ipv6Addr::LOCALHOST)
}

type ByAddress<K, T> = HashMap<K, T, RandomState>;

/// Longest prefix first. A range of length 0 is more specific than no range, where Envoy takes any of the two.
/// There are few different lengths, so each is a hash table of its own.
#[derive(Debug)]
struct Prefixes<T> {
    v4: Vec<(u8, ByAddress<u32, T>)>,
    v6: Vec<(u8, ByAddress<u128, T>)>,
    any: Option<T>,
}

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Self { v4: Vec::new(), v6: Vec::new(), any: None }
    }
}

impl<T: Default> Prefixes<T> {
    fn longest(&self, ip: IpAddr) -> Option<&T> {
        let found = match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let bits = ip.to_bits();
                self.v4.iter().find_map(|(len, table)| table.get(&(bits & mask_v4(*len))))
            }
            IpAddr::V6(ip) => {
                let bits = ip.to_bits();
                self.v6.iter().find_map(|(len, table)| table.get(&(bits & mask_v6(*len))))
            }
        };
        found.or(self.any.as_ref())
    }

    fn entry(&mut self, range: Option<Cidr>) -> &mut T {
        match range.map(|cidr| (cidr.address, cidr.prefix)) {
            None => self.any.get_or_insert_default(),
            Some((IpAddr::V4(ip), len)) => in_table(&mut self.v4, len, ip.to_bits() & mask_v4(len)),
            Some((IpAddr::V6(ip), len)) => in_table(&mut self.v6, len, ip.to_bits() & mask_v6(len)),
        }
    }
}

fn in_table<K: Eq + Hash, T: Default>(tables: &mut Vec<(u8, ByAddress<K, T>)>, len: u8, key: K) -> &mut T {
    let at = tables.partition_point(|(other, _)| *other > len);
    if tables.get(at).is_none_or(|(other, _)| *other != len) {
        tables.insert(at, (len, HashMap::default()));
    }
    tables[at].1.entry(key).or_default()
}

fn mask_v4(len: u8) -> u32 {
    u32::MAX.checked_shl(32u32.saturating_sub(len.into())).unwrap_or(0)
}

fn mask_v6(len: u8) -> u128 {
    u128::MAX.checked_shl(128u32.saturating_sub(len.into())).unwrap_or(0)
}

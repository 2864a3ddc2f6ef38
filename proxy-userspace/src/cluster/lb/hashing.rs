//! Consistent hashing: a ring or a Maglev table over the usable hosts of a level, with bounded loads on wish.

use std::sync::Arc;

use proxy_config::model::cluster::LbPolicy;
use proxy_config::model::metadata::Value;

use super::balancer::of_health;
use super::{Build, Members, maglev, ring_hash};
use crate::cluster::Cluster;
use crate::cluster::host::{Health, Host, address_text};

/// Points to hosts by their index.
pub(super) struct HashTable {
    hosts: Box<[(Arc<Host>, f64)]>,
    table: Table,
    /// `hash_balance_factor`.
    bound: Option<u32>,
}

enum Table {
    Ring(Box<[(u64, u32)]>),
    Maglev(Box<[u32]>),
}

/// What a host is hashed by, and its share of all weight.
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) weight: f64,
}

impl HashTable {
    pub(super) fn build(build: &Build<'_>, members: &Members, panic: bool, by_locality: bool) -> Self {
        let hosts = normalized(members, panic, by_locality);
        let by_hostname = build.model.common_lb.use_hostname_for_hashing;
        let entry =
            |(host, weight): &(Arc<Host>, f64)| Entry { key: key(host, by_hostname), weight: *weight };
        let entries: Vec<_> = hosts.iter().map(entry).collect();
        let table = match build.model.lb {
            LbPolicy::RingHash { minimum_ring_size, maximum_ring_size, hash } => {
                Table::Ring(ring_hash::ring(&entries, minimum_ring_size, maximum_ring_size, hash))
            }
            LbPolicy::Maglev { table_size } => Table::Maglev(maglev::table(&entries, table_size)),
            LbPolicy::RoundRobin
            | LbPolicy::LeastRequest { .. }
            | LbPolicy::Random
            | LbPolicy::ClusterProvided => Table::Maglev(Box::default()),
        };
        Self { hosts: hosts.into(), table, bound: build.model.common_lb.hash_balance_factor }
    }

    pub(super) fn choose(&self, hash: u64, attempt: u32, cluster: &Cluster) -> Option<Arc<Host>> {
        let index = match &self.table {
            Table::Ring(ring) => ring_hash::find(ring, hash, attempt)?,
            Table::Maglev(table) => maglev::find(table, hash, attempt)?,
        };
        let (host, weight) = self.hosts.get(index as usize)?;
        match self.bound {
            Some(factor) if factor > 0 => {
                let bound = Bound { factor, active: cluster.stats.upstream_rq_active.value() };
                self.bounded(bound, hash, host, *weight)
            }
            Some(_) | None => Some(host.clone()),
        }
    }

    /// The chosen host, or, where that has more than its share already, the first of an order that the hash alone
    /// decides which has not; the least loaded where all have.
    fn bounded(&self, bound: Bound, hash: u64, first: &Arc<Host>, weight: f64) -> Option<Arc<Host>> {
        let load = bound.overload(first, weight);
        if load <= 1.0 {
            return Some(first.clone());
        }
        let mut least = (first, load);
        let mut order: Vec<_> = (0..self.hosts.len()).collect();
        let mut random = Mt19937::new(hash as u32);
        for i in 0..order.len() {
            let offset = random.below((order.len() - i) as u64);
            order.swap(i, i + offset);
            let Some((other, weight)) = order.get(i).and_then(|k| self.hosts.get(*k)) else { continue };
            if Arc::ptr_eq(other, first) {
                continue;
            }
            let load = bound.overload(other, *weight);
            if load <= 1.0 {
                return Some(other.clone());
            }
            if load < least.1 {
                least = (other, load);
            }
        }
        Some(least.0.clone())
    }
}

#[derive(Clone, Copy)]
struct Bound {
    factor: u32,
    active: u64,
}

impl Bound {
    fn overload(self, host: &Host, weight: f64) -> f64 {
        let total = ((self.active + 1) * u64::from(self.factor)).div_ceil(100);
        let slots = (total as f64 * weight).ceil().max(1.0);
        host.stats.rq_active.value() as f64 / slots
    }
}

/// Usable hosts with their shares of the whole, which add up to 1.
fn normalized(members: &Members, panic: bool, by_locality: bool) -> Vec<(Arc<Host>, f64)> {
    let mut out = Vec::new();
    if !by_locality || members.localities.is_empty() {
        let hosts = if panic { members.hosts.clone() } else { of_health(members, Health::Healthy) };
        share(&hosts, 1.0, &mut out);
        return out;
    }
    let sum: u64 = members.groups().map(|(weight, _)| u64::from(weight)).sum();
    for (weight, hosts) in members.groups().filter(|(weight, _)| *weight > 0) {
        let usable = |host: &&Arc<Host>| panic || host.health() == Health::Healthy;
        let hosts: Vec<_> = hosts.iter().filter(usable).cloned().collect();
        share(&hosts, f64::from(weight) / sum as f64, &mut out);
    }
    out
}

fn share(hosts: &[Arc<Host>], of: f64, out: &mut Vec<(Arc<Host>, f64)>) {
    let sum: u64 = hosts.iter().map(|host| u64::from(host.weight())).sum();
    out.extend(hosts.iter().map(|host| (host.clone(), f64::from(host.weight()) * of / sum as f64)));
}

/// `hash_key` of the host's `envoy.lb`, its name, or its address.
fn key(host: &Host, by_hostname: bool) -> String {
    let metadata = host.metadata();
    match metadata.of("envoy.lb").and_then(|lb| lb.get("hash_key")) {
        Some(Value::String(key)) if !key.is_empty() => key.clone(),
        Some(_) | None if by_hostname => host.hostname.to_string(),
        Some(_) | None => address_text(&host.address()),
    }
}

/// The Mersenne Twister of C++'s `std::mt19937`, whose order of hosts Envoy's is.
struct Mt19937 {
    state: [u32; 624],
    index: usize,
}

impl Mt19937 {
    fn new(seed: u32) -> Self {
        let mut state = [0; 624];
        let mut last = seed;
        for (i, word) in (0_u32..).zip(&mut state) {
            if i > 0 {
                last = 1_812_433_253_u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i);
            }
            *word = last;
        }
        Self { state, index: 624 }
    }

    /// Uniform below `k`, by rejection.
    fn below(&mut self, k: u64) -> usize {
        let bucket = (1 << 32) / k.max(1);
        loop {
            let x = u64::from(self.next()) / bucket;
            if x < k {
                return x as usize;
            }
        }
    }

    fn next(&mut self) -> u32 {
        if self.index == 624 {
            self.twist();
        }
        let mut y = self.state[self.index];
        self.index += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..624 {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + 397) % 624] ^ (y >> 1) ^ odd;
        }
        self.index = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_twister_is_the_standards() {
        let mut random = Mt19937::new(5489);
        let last = (0..10_000).map(|_| random.next()).last();
        // The C++ standard gives the 10,000th number of the default seed.
        assert_eq!(last, Some(4_123_659_995));
    }
}

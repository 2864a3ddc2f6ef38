//! Picks a host out of levels: the level by load, then by the cluster's policy within it.

use std::sync::{Arc, PoisonError};

use proxy_config::model::cluster::{LbPolicy, LocalityLb};

use super::hashing::HashTable;
use super::locality::Localities;
use super::pool::Pool;
use super::priority::{Available, Load, Stock, Weights, spread};
use super::{Build, Members, PreviousPriorities};
use crate::cluster::host::{Health, HealthFlag, Host};
use crate::cluster::{Cluster, Want};

/// The whole cluster, or a subset of it.
pub(super) struct Balancer {
    levels: Box<[Level]>,
    /// What each level could take.
    available: Box<[Available]>,
}

struct Level {
    members: Members,
    load: Load,
    picks: Picks,
}

enum Picks {
    /// All hosts where the level panics.
    Flat {
        healthy: Pool,
        degraded: Option<Box<Pool>>,
    },
    Weighted(Box<Weighted>),
    Hash(Box<HashTable>),
}

/// By locality weights, where there are any that count.
struct Weighted {
    healthy: (Option<Localities>, Pool),
    degraded: (Option<Localities>, Pool),
}

impl Balancer {
    pub(super) fn empty() -> Self {
        Self { levels: Box::default(), available: Box::default() }
    }

    /// `by_locality`: locality weights count, where the cluster wants them at all.
    pub(super) fn build(build: &Build<'_>, members: Vec<Members>, by_locality: bool) -> Self {
        let stock: Vec<_> = members.iter().map(|m| stock(build, m)).collect();
        let threshold = build.model.common_lb.healthy_panic_threshold;
        let overprovisioning = build.policy.overprovisioning_factor;
        let loads = spread(&stock, overprovisioning, threshold);
        let available = stock.iter().map(|stock| Available::of(stock, overprovisioning)).collect();
        let by_locality = by_locality && build.model.common_lb.locality == LocalityLb::Weighted;
        let level = |(members, load): (Members, Load)| {
            let picks = Picks::build(build, &members, load.panic, by_locality);
            Level { members, load, picks }
        };
        Self { levels: members.into_iter().zip(loads).map(level).collect(), available }
    }

    pub(super) fn members(&self) -> impl Iterator<Item = &Members> {
        self.levels.iter().map(|level| &level.members)
    }

    pub(super) fn choose(&self, want: &Want<'_>, cluster: &Cluster) -> Option<Arc<Host>> {
        let hash = hashes(&cluster.model.lb).then(|| want.hash.unwrap_or_else(|| cluster.random.next()));
        let mut chosen = self.once(hash, 0, want, cluster)?;
        for attempt in 1..=want.attempts {
            let tried = chosen.socket_address().is_some_and(|address| want.tried.contains(&address));
            if !tried {
                break;
            }
            chosen = self.once(hash, attempt, want, cluster)?;
        }
        Some(chosen)
    }

    fn once(&self, hash: Option<u64>, attempt: u32, want: &Want<'_>, cluster: &Cluster) -> Option<Arc<Host>> {
        let number = hash.unwrap_or_else(|| cluster.random.next());
        let (level, degraded) = match want.untried {
            // Hashing goes to where it goes, as in Envoy.
            Some(untried) if hash.is_none() => {
                self.untried(number, &mut untried.lock().unwrap_or_else(PoisonError::into_inner))?
            }
            Some(_) | None => self.level(number)?,
        };
        if level.load.panic {
            cluster.stats.lb_healthy_panic.inc();
        }
        match &level.picks {
            Picks::Hash(table) => table.choose(hash?, attempt, cluster),
            Picks::Flat { degraded: Some(pool), .. } if degraded => pool.pick(cluster),
            Picks::Flat { healthy, .. } => healthy.pick(cluster),
            Picks::Weighted(weighted) => {
                let (localities, all) = if degraded { &weighted.degraded } else { &weighted.healthy };
                localities.as_ref().map_or_else(|| all.pick(cluster), |l| l.pick(cluster))
            }
        }
    }

    /// The level of a number, and whether it is its degraded hosts' turn.
    fn level(&self, number: u64) -> Option<(&Level, bool)> {
        let healthy = self.levels.iter().map(|level| (level, level.load.healthy));
        point(number, healthy, self.levels.iter().map(|level| (level, level.load.degraded)))
    }

    /// The same for a retry that goes to other levels than before.
    fn untried(&self, number: u64, previous: &mut PreviousPriorities) -> Option<(&Level, bool)> {
        let Some(shares) = previous.shares(&self.available) else { return self.level(number) };
        let healthy = self.levels.iter().zip(shares.iter().map(|share| share.healthy));
        point(number, healthy, self.levels.iter().zip(shares.iter().map(|share| share.degraded)))
    }
}

/// Whose share a number falls into, with all healthy hosts before the degraded ones.
fn point<'l>(
    number: u64,
    healthy: impl Iterator<Item = (&'l Level, u8)>,
    degraded: impl Iterator<Item = (&'l Level, u8)>,
) -> Option<(&'l Level, bool)> {
    let point = u8::try_from(number % 100 + 1).unwrap_or(100);
    let mut sum = 0;
    let all = healthy.map(|one| (one, false)).chain(degraded.map(|one| (one, true)));
    all.into_iter().find_map(|((level, share), degraded)| {
        sum += share;
        (point <= sum).then_some((level, degraded))
    })
}

impl Picks {
    fn build(build: &Build<'_>, members: &Members, panic: bool, by_locality: bool) -> Self {
        if hashes(&build.model.lb) {
            return Self::Hash(Box::new(HashTable::build(build, members, panic, by_locality)));
        }
        if by_locality && !panic && !members.localities.is_empty() {
            let of = |health| {
                (Localities::build(build, members, health), Pool::new(build, of_health(members, health)))
            };
            let (healthy, degraded) = (of(Health::Healthy), of(Health::Degraded));
            return Self::Weighted(Box::new(Weighted { healthy, degraded }));
        }
        let healthy = if panic { members.hosts.clone() } else { of_health(members, Health::Healthy) };
        let degraded = of_health(members, Health::Degraded);
        let degraded = (!panic && !degraded.is_empty()).then(|| Box::new(Pool::new(build, degraded)));
        Self::Flat { healthy: Pool::new(build, healthy), degraded }
    }
}

fn hashes(lb: &LbPolicy) -> bool {
    match lb {
        LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. } => true,
        LbPolicy::RoundRobin
        | LbPolicy::LeastRequest { .. }
        | LbPolicy::Random
        | LbPolicy::ClusterProvided => false,
    }
}

/// Those of that health; the very same list where that is all of them.
pub(super) fn of_health(members: &Members, health: Health) -> Arc<[Arc<Host>]> {
    if members.hosts.iter().all(|host| host.health() == health) {
        return members.hosts.clone();
    }
    members.hosts.iter().filter(|host| host.health() == health).cloned().collect()
}

fn stock(build: &Build<'_>, members: &Members) -> Stock {
    let mut stock = Stock { hosts: members.hosts.len() as u64, ..Stock::default() };
    let mut weights = Weights::default();
    for host in members.hosts.iter() {
        let weight = u64::from(host.weight());
        if host.has(HealthFlag::PENDING_ACTIVE_HC) {
            stock.excluded += 1;
        } else {
            weights.total += weight;
        }
        match host.health() {
            Health::Healthy => {
                (stock.healthy, weights.healthy) = (stock.healthy + 1, weights.healthy + weight)
            }
            Health::Degraded => {
                (stock.degraded, weights.degraded) = (stock.degraded + 1, weights.degraded + weight);
            }
            Health::Unhealthy => {}
        }
    }
    stock.weights = build.policy.weighted_priority_health.then_some(weights);
    stock
}

//! Which endpoint is next.
//!
//! An [`LbState`] is built from the members of a cluster and their health, and replaced as a whole when either
//! changes. [`priority`] spreads load over the levels, [`pool`] picks among equals (round robin, least request,
//! random), [`previous`] has retries spread otherwise, [`locality`] picks a locality first, [`hashing`] is for RING_HASH and MAGLEV, [`subset`] narrows the
//! hosts by metadata before any of it.

mod balancer;
mod edf;
mod hashing;
mod locality;
mod maglev;
mod pool;
mod previous;
mod priority;
mod ring_hash;
mod subset;
#[cfg(test)]
mod subset_tests;

use std::sync::Arc;

use proxy_config::model;
use proxy_config::model::endpoint::AssignmentPolicy;

use self::balancer::Balancer;
pub use self::previous::PreviousPriorities;
use self::subset::Subsets;
use super::host::Host;
use super::{Cluster, NoHost, Random, Want};
use crate::clock::Instant;
use crate::telemetry::stats::ClusterStats;

pub(super) struct LbState {
    all: Balancer,
    subsets: Option<Box<Subsets>>,
    policy: Option<Box<AssignmentPolicy>>,
}

/// The hosts of one priority, by locality in the order of the configuration.
#[derive(Clone, Default)]
pub(super) struct Members {
    pub(super) hosts: Arc<[Arc<Host>]>,
    /// Where each locality ends, and its weight.
    pub(super) localities: Box<[Span]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) end: u32,
    pub(super) weight: u32,
}

impl LbState {
    pub(super) fn empty() -> Self {
        Self { all: Balancer::empty(), subsets: None, policy: None }
    }

    pub(super) fn build(
        cluster: &Cluster,
        levels: Vec<Members>,
        policy: &AssignmentPolicy,
        now: Instant,
    ) -> Self {
        let model = &*cluster.model;
        let build = Build { model, policy, random: cluster.random.as_ref(), now };
        let subsets = model.subset.as_ref().map(|config| Box::new(Subsets::build(&build, config, &levels)));
        let policy = (*policy != AssignmentPolicy::default()).then(|| Box::new(policy.clone()));
        Self { all: Balancer::build(&build, levels, true), subsets, policy }
    }

    pub(super) fn choose(&self, want: &Want<'_>, cluster: &Cluster) -> Result<Arc<Host>, NoHost> {
        match &self.subsets {
            None => self.all.choose(want, cluster).ok_or(NoHost::NoHealthy),
            Some(subsets) => subsets.choose(&self.all, want, cluster),
        }
    }

    pub(super) fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.all.members().flat_map(|members| members.hosts.iter())
    }

    /// Of each host the weight of its locality; 0 where none was given.
    pub(super) fn locality_weights(&self) -> Vec<u32> {
        let spanned = self.all.members().flat_map(|members| {
            let weighted = !members.localities.is_empty();
            members.groups().flat_map(move |(weight, hosts)| {
                std::iter::repeat_n(if weighted { weight } else { 0 }, hosts.len())
            })
        });
        spanned.collect()
    }

    pub(super) fn members(&self) -> Vec<Members> {
        self.all.members().cloned().collect()
    }

    pub(super) fn policy(&self) -> AssignmentPolicy {
        self.policy.as_deref().cloned().unwrap_or_default()
    }

    /// How many priorities there are.
    pub(super) fn depth(&self) -> usize {
        self.all.members().count()
    }

    pub(super) fn same_hosts(&self, other: &Self, priority: usize) -> bool {
        let of = |state: &Self| state.all.members().nth(priority).map(|members| members.hosts.clone());
        match (of(self), of(other)) {
            (Some(a), Some(b)) => same_set(&a, &b),
            (Some(hosts), None) | (None, Some(hosts)) => hosts.is_empty(),
            (None, None) => true,
        }
    }

    /// Nothing that the state was built from has changed but, perhaps, the hosts' own health and weight.
    pub(super) fn same_shape(&self, levels: &[Members], policy: &AssignmentPolicy) -> bool {
        let same = |(a, b): (&Members, &Members)| {
            // The order within a locality means nothing: DNS turns it round with every answer.
            a.localities == b.localities && a.groups().zip(b.groups()).all(|(a, b)| same_set(a.1, b.1))
        };
        self.depth() == levels.len() && self.all.members().zip(levels).all(same) && self.policy() == *policy
    }

    pub(super) fn dropped(&self, random: &dyn Random) -> Option<Arc<str>> {
        let drops = &self.policy.as_ref()?.drop_overloads;
        let hit = drops.iter().find(|(_, part)| {
            let denominator = u64::from(part.denominator.max(1));
            random.next() % denominator < part.numerator.into()
        });
        hit.map(|(category, _)| category.clone())
    }

    /// `lb_subsets_*` after `before` was replaced by this.
    pub(super) fn count_subsets(&self, before: &Self, stats: &ClusterStats) {
        let Some(subsets) = &self.subsets else { return };
        let (created, removed) = subsets.difference(before.subsets.as_deref());
        stats.lb_subsets_created.add(created);
        stats.lb_subsets_removed.add(removed);
        stats.lb_subsets_active.set(subsets.active());
    }
}

/// What is in the same place is not looked at: that is nearly all of them, nearly always.
fn same_set(a: &[Arc<Host>], b: &[Arc<Host>]) -> bool {
    let elsewhere = |hosts: &[Arc<Host>], others: &[Arc<Host>]| {
        let moved = hosts.iter().zip(others).filter(|(one, other)| !Arc::ptr_eq(one, other));
        let mut all: Vec<_> = moved.map(|(one, _)| Arc::as_ptr(one)).collect();
        all.sort_unstable();
        all
    };
    a.len() == b.len() && elsewhere(a, b) == elsewhere(b, a)
}

/// What the parts of a state are built from.
struct Build<'a> {
    model: &'a model::Cluster,
    policy: &'a AssignmentPolicy,
    random: &'a dyn Random,
    now: Instant,
}

impl Members {
    pub(super) fn new(groups: Vec<(u32, Vec<Arc<Host>>)>, spans: bool) -> Self {
        let mut hosts = Vec::with_capacity(groups.iter().map(|(_, hosts)| hosts.len()).sum());
        let mut localities = Vec::new();
        for (weight, group) in groups {
            hosts.extend(group);
            if spans {
                localities.push(Span { end: u32::try_from(hosts.len()).unwrap_or(u32::MAX), weight });
            }
        }
        Self { hosts: hosts.into(), localities: localities.into() }
    }

    /// Those that `keep` wants, in their localities.
    pub(super) fn filter(&self, keep: impl Fn(&Host) -> bool) -> Self {
        let group = |(weight, hosts): (u32, &[Arc<Host>])| {
            (weight, hosts.iter().filter(|host| keep(host)).cloned().collect())
        };
        Self::new(self.groups().map(group).collect(), !self.localities.is_empty())
    }

    /// Weight and hosts of each locality; one group where localities do not matter.
    fn groups(&self) -> impl Iterator<Item = (u32, &[Arc<Host>])> {
        let all = Span { end: u32::try_from(self.hosts.len()).unwrap_or(u32::MAX), weight: 1 };
        let spans = if self.localities.is_empty() { vec![all] } else { self.localities.to_vec() };
        let mut start = 0;
        spans.into_iter().map(move |span| {
            let hosts = self.hosts.get(start..span.end as usize).unwrap_or_default();
            start = span.end as usize;
            (span.weight, hosts)
        })
    }
}

//! Which hosts a cluster has: an update against what is there.
//!
//! Hosts are known by their address: one that is named again keeps its stats, its health and its connections.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};

use foldhash::fast::RandomState;
use proxy_config::model;
use proxy_config::model::address::Address;
use proxy_config::model::cluster::LocalityLb;
use proxy_config::model::endpoint::{AssignmentPolicy, Locality};
use proxy_config::model::metadata::{Metadata, Struct};

use super::host::{Extra, HealthFlag, Host, Spec};
use super::lb::{LbState, Members};
use super::outlier::Monitor;
use super::{Cluster, Health};
use crate::clock;

/// Endpoints of one locality and priority.
#[derive(Clone)]
pub(super) struct Group {
    pub(super) locality: Arc<Locality>,
    pub(super) priority: u32,
    pub(super) weight: u32,
    pub(super) members: Vec<Member>,
    /// For those whose own metadata fits no transport socket.
    pub(super) transport_match: Struct,
}

/// An endpoint in an update.
#[derive(Clone)]
pub(super) enum Member {
    Spec(Box<Spec>),
    /// What an earlier update has made of the same endpoint of the same locality, and what this one has made of it.
    Host(Arc<Host>),
    /// It is another one's address.
    Nobody,
}

/// Priorities beyond are a mistake; each is a level, also an empty one.
const MAX_PRIORITY: u32 = 128;

/// What an update did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Rebuilt,
    /// Only the address behind a name: LOGICAL_DNS.
    Moved,
    Nothing,
}

impl Cluster {
    /// Makes the cluster's hosts what `groups` say, which then say by what hosts.
    pub(super) fn update(&self, groups: &mut [Group], policy: &AssignmentPolicy) -> Change {
        let _updating = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.lb.load_full();
        let mut merge = Merge::new(self, &before, groups);
        let mut levels: Vec<Level> = Vec::new();
        for group in groups {
            let priority = group.priority.min(MAX_PRIORITY) as usize;
            if levels.len() <= priority {
                levels.resize_with(priority + 1, Level::default);
            }
            let hosts = merge.group(group);
            if let Some(level) = levels.get_mut(priority) {
                level.add(&group.locality, group.weight, hosts);
            }
        }
        let removed = merge.finish(&before, &mut levels);
        let weighted = self.model.common_lb.locality == LocalityLb::Weighted;
        let levels: Vec<_> = levels.into_iter().map(|level| level.members(weighted)).collect();
        let changed = merge.changed || removed > 0 || !before.same_shape(&levels, policy);
        if !changed {
            return if merge.moved { Change::Moved } else { Change::Nothing };
        }
        let now = clock::now();
        let after = LbState::build(self, levels, policy, now);
        self.count_changes(&before, &after);
        self.publish(&before, after);
        if removed > 0 {
            let hosts = self.lb.load();
            let there: HashSet<*const Host> = hosts.hosts().map(Arc::as_ptr).collect();
            self.pools.keep(|host| there.contains(&std::ptr::from_ref(host)));
        }
        if let Some(active) = &self.active {
            active.hosts_changed();
        }
        Change::Rebuilt
    }

    /// The same hosts, after the health of some has changed.
    pub(super) fn refresh(&self) {
        let _updating = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.lb.load_full();
        let mut levels = before.members();
        let dropped = drop_pending(&mut levels);
        let after = LbState::build(self, levels, &before.policy(), clock::now());
        if dropped {
            self.count_changes(&before, &after);
        }
        self.publish(&before, after);
        if let Some(active) = self.active.as_ref().filter(|_| dropped) {
            active.hosts_changed();
        }
    }

    fn publish(&self, before: &LbState, after: LbState) {
        let (mut total, mut healthy, mut degraded, mut excluded) = (0, 0, 0, 0);
        for host in after.hosts() {
            total += 1;
            match host.health() {
                Health::Healthy => healthy += 1,
                Health::Degraded => degraded += 1,
                Health::Unhealthy => {}
            }
            excluded += u64::from(host.has(HealthFlag::PENDING_ACTIVE_HC));
        }
        self.stats.membership_total.set(total);
        self.stats.membership_healthy.set(healthy);
        self.stats.membership_degraded.set(degraded);
        self.stats.membership_excluded.set(excluded);
        after.count_subsets(before, &self.stats);
        if let Some(active) = &self.active {
            if let Some(health) = &active.health {
                health.recount(after.hosts());
            }
            if let Some(outlier) = &active.outlier {
                outlier.recount(after.hosts());
            }
        }
        self.lb.store(Arc::new(after));
    }

    /// Envoy counts each priority whose hosts are others than before.
    fn count_changes(&self, before: &LbState, after: &LbState) {
        let mut changes = 0;
        for priority in 0..before.depth().max(after.depth()) {
            changes += u64::from(!before.same_hosts(after, priority));
        }
        self.stats.membership_change.add(changes);
        if changes > 0 && self.model.common_lb.close_connections_on_host_set_change {
            before.hosts().for_each(|host| host.close_connections());
            self.pools.keep(|_| false);
        }
        // Envoy measures it where hosts come and go.
        if self.model.discovery != model::cluster::Discovery::Static {
            self.stats.max_host_weight.set(after.hosts().map(|host| host.weight()).max().unwrap_or(0).into());
        }
    }
}

/// The members of a priority while they are gathered.
#[derive(Default)]
struct Level {
    localities: Vec<(Arc<Locality>, u32, Vec<Arc<Host>>)>,
}

impl Level {
    fn add(&mut self, locality: &Arc<Locality>, weight: u32, hosts: Vec<Arc<Host>>) {
        match self.localities.iter_mut().find(|(known, ..)| known == locality) {
            Some((_, known, all)) => {
                *known = weight;
                all.extend(hosts);
            }
            None => self.localities.push((locality.clone(), weight, hosts)),
        }
    }

    fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.localities.iter().flat_map(|(.., hosts)| hosts)
    }

    /// A host that discovery no longer names.
    fn keep(&mut self, host: Arc<Host>) {
        let locality = host.locality.clone();
        match self.localities.iter_mut().find(|(known, ..)| *known == locality) {
            Some((.., all)) => all.push(host),
            None => self.localities.push((locality, 1, vec![host])),
        }
    }

    /// Spans are only worth their memory where there are several localities, or weights.
    fn members(self, weighted: bool) -> Members {
        let given = self.localities.iter().any(|(_, weight, _)| *weight > 0);
        let spans = weighted || given || self.localities.len() > 1;
        let groups = self.localities.into_iter().map(|(_, weight, hosts)| (weight, hosts)).collect();
        Members::new(groups, spans)
    }
}

/// Hosts that were only kept because they were still healthy, and no longer are.
fn drop_pending(levels: &mut [Members]) -> bool {
    let gone =
        |host: &Host| host.has(HealthFlag::PENDING_DYNAMIC_REMOVAL) && host.health() == Health::Unhealthy;
    let mut any = false;
    for level in levels {
        if level.hosts.iter().any(|host| gone(host)) {
            *level = level.filter(|host| !gone(host));
            any = true;
        }
    }
    any
}

/// Which hosts there were, while the new ones claim theirs.
struct Merge<'a> {
    cluster: &'a Cluster,
    /// Each address that comes with a spec.
    named: HashMap<Address, Named, RandomState>,
    /// How many of the old hosts go on.
    kept: usize,
    changed: bool,
    moved: bool,
}

#[derive(Default)]
struct Named {
    /// Whose address that was.
    old: Option<Arc<Host>>,
    taken: bool,
}

impl<'a> Merge<'a> {
    fn new(cluster: &'a Cluster, before: &LbState, groups: &[Group]) -> Self {
        let members = groups.iter().flat_map(|group| &group.members);
        let specs = members.filter_map(|member| match member {
            Member::Spec(spec) => Some((spec.address.clone(), Named::default())),
            Member::Host(_) | Member::Nobody => None,
        });
        let mut named: HashMap<_, _, RandomState> = specs.collect();
        if !named.is_empty() {
            for host in before.hosts() {
                if let Some(named) = named.get_mut(host.key()) {
                    named.old = Some(host.clone());
                }
            }
        }
        Self { cluster, named, kept: 0, changed: false, moved: false }
    }

    fn group(&mut self, group: &mut Group) -> Vec<Arc<Host>> {
        let mut hosts = Vec::with_capacity(group.members.len());
        for member in &mut group.members {
            let host = match std::mem::replace(member, Member::Nobody) {
                Member::Spec(spec) => self.host(*spec, &group.transport_match),
                Member::Host(host) => self.again(host),
                Member::Nobody => None,
            };
            if let Some(host) = host {
                *member = Member::Host(host.clone());
                hosts.push(host);
            }
        }
        hosts
    }

    /// An endpoint that is as it was; `None` where another one has its address and came first.
    fn again(&mut self, host: Arc<Host>) -> Option<Arc<Host>> {
        if let Some(named) = self.named.get_mut(host.key())
            && std::mem::replace(&mut named.taken, true)
        {
            return None;
        }
        self.kept += 1;
        Some(host)
    }

    /// The host of a spec; `None` for an address that was named before: the first one counts, as in Envoy.
    fn host(&mut self, spec: Spec, of_locality: &Struct) -> Option<Arc<Host>> {
        let dynamic = self.dynamic();
        let named = self.named.get_mut(&spec.address)?;
        if std::mem::replace(&mut named.taken, true) && dynamic {
            return None;
        }
        let model = &self.cluster.model;
        let transport = transport_of(model, &spec.metadata, of_locality);
        if let Some(host) = named.old.take_if(|host| host.can_become(&spec)) {
            self.kept += 1;
            self.changed |= host.become_(&spec, transport);
            self.moved |= host.move_to(spec.at);
            return Some(host);
        }
        self.changed = true;
        match transport.checked_sub(1).and_then(|at| self.cluster.matches.get(at as usize)) {
            Some(matched) => matched.stats.total_match_count.inc(),
            None => self.cluster.stats.default_total_match_count.inc(),
        }
        let check = !model.health_checks.is_empty() && !spec.health_check.disabled;
        let extra = self.extra(&spec);
        let host = Host::new(spec, extra, transport);
        if check {
            host.set(HealthFlag::FAILED_ACTIVE_HC);
            if model.common_lb.ignore_new_hosts_until_first_hc {
                host.set(HealthFlag::PENDING_ACTIVE_HC);
            }
        }
        Some(Arc::new(host))
    }

    fn extra(&self, spec: &Spec) -> Option<Box<Extra>> {
        let model = &self.cluster.model;
        let wanted = !model.health_checks.is_empty()
            || model.outlier_detection.is_some()
            || model.slow_start.is_some()
            || model.close_connections_on_host_health_failure
            || model.common_lb.close_connections_on_host_set_change;
        wanted.then(|| {
            let outlier = model.outlier_detection.as_ref().map(|_| Monitor::default());
            let extra = Extra::new(spec.health_check.clone(), outlier, clock::now());
            if model.health_checks.is_empty() {
                extra.found_healthy(clock::now());
            }
            extra
        })
    }

    /// The files of STATIC clusters may name an address twice; discovery may not.
    fn dynamic(&self) -> bool {
        self.cluster.model.discovery != model::cluster::Discovery::Static
    }

    /// What nobody claimed is removed, or kept while it is healthy. Says how many are gone.
    fn finish(&mut self, before: &LbState, levels: &mut [Level]) -> usize {
        if self.kept == before.hosts().count() {
            return 0;
        }
        let model = &self.cluster.model;
        let keep_healthy = !model.health_checks.is_empty() && !model.ignore_health_on_host_removal;
        let failing =
            |host: &Host| host.has(HealthFlag::FAILED_ACTIVE_HC) || host.has(HealthFlag::FAILED_EDS_HEALTH);
        let claimed: HashSet<_, RandomState> =
            levels.iter().flat_map(Level::hosts).map(Arc::as_ptr).collect();
        let mut removed = 0;
        for host in before.hosts().filter(|host| !claimed.contains(&Arc::as_ptr(host))) {
            let level = levels.get_mut(host.priority() as usize);
            let taken = self.named.contains_key(host.key());
            match level {
                Some(level) if keep_healthy && !taken && !failing(host) => {
                    host.set(HealthFlag::PENDING_DYNAMIC_REMOVAL);
                    level.keep(host.clone());
                }
                // Its connections go on, as in Envoy, whatever the cluster says of failing hosts.
                Some(_) | None => removed += 1,
            }
        }
        removed
    }
}

/// Which of the `transport_socket_matches` an endpoint's metadata satisfies, else that of its locality, plus one.
fn transport_of(model: &model::Cluster, metadata: &Metadata, of_locality: &Struct) -> u32 {
    let empty = Struct::new();
    let own = metadata.of("envoy.transport_socket_match").unwrap_or(&empty);
    let first = |given: &Struct| {
        let fits = |want: &Struct| want.iter().all(|(key, value)| given.get(key) == Some(value));
        model.transport_socket_matches.iter().position(|m| fits(&m.match_))
    };
    let found = first(own).or_else(|| first(of_locality));
    found.map_or(0, |index| u32::try_from(index + 1).unwrap_or(0))
}

//! EDS: endpoints of a source that is followed. What cannot be used leaves the last good ones in force.

use std::sync::{Arc, PoisonError};
use std::time::UNIX_EPOCH;

use proxy_config::diagnostic::problems;
use proxy_config::model::cluster::{Discovery, Eds};
use proxy_config::model::endpoint::{Locality, LocalityEndpoints};
use proxy_config::xds::{Assigned, Assignment, Kind, RawResource, Said};
use xxhash_rust::xxh64::xxh64;

use super::fixed;
use crate::clock;
use crate::cluster::members::{Change, Group, Member};
use crate::cluster::{Cluster, Env, Host};
use crate::xds::{Consumer, Failure, Names, Subscription, Update};

pub(super) fn start(cluster: &Arc<Cluster>, eds: &Eds, env: &Env) -> Subscription {
    let consumer: Arc<dyn Consumer> = cluster.clone();
    // As Envoy: to ask a server is an attempt too; a file is read.
    if !eds.source.is_file() {
        cluster.stats.update_attempt.inc();
    }
    env.sources.subscribe(&eds.source, Kind::Endpoints, Names::One(eds.service_name.clone()), &consumer)
}

impl Consumer for Cluster {
    fn update(&self, update: &Update<'_>) -> Result<(), String> {
        let Discovery::Eds(eds) = &self.model.discovery else { return Ok(()) };
        self.stats.update_attempt.inc();
        let name = &eds.service_name;
        let result = match update.resources.iter().find(|resource| resource.name == *name) {
            Some(resource) => replace(self, resource),
            // As Envoy, which keeps the endpoints of an assignment that is gone.
            None if update.removed.contains(name) || update.response.is_empty() => {
                self.stats.update_empty.inc();
                Ok(())
            }
            None => Err(format!("no assignment for {name}")),
        };
        match &result {
            Ok(()) => applied(self, update.version),
            Err(why) => refused(self, why),
        }
        result
    }

    fn failed(&self, failure: &Failure) {
        let Some(stats) = self.eds_stats() else { return };
        self.stats.update_attempt.inc();
        match failure {
            Failure::Missing(why) | Failure::Unreadable(why) | Failure::Refused(why) => refused(self, why),
            // The source says so, once for all.
            Failure::Disconnected(_) => self.stats.update_failure.inc(),
            Failure::TimedOut(limit) => {
                stats.init_fetch_timeout.inc();
                log::warn!(
                    "cluster {}: no endpoints within {limit:?}: they are not waited for any longer",
                    self.model.name
                );
                warm(self);
            }
        }
    }
}

/// What the last assignment has become, where the next one is worth to be compared with it.
pub(in crate::cluster) struct Applied {
    assigned: Assigned,
    /// The hosts of its endpoints.
    hosts: Vec<Option<Arc<Host>>>,
}

fn replace(cluster: &Cluster, resource: &RawResource) -> Result<(), String> {
    let Some(active) = &cluster.active else { return Ok(()) };
    let mut applied = active.applied.lock().unwrap_or_else(PoisonError::into_inner);
    let before = applied.as_ref().map(|applied| &applied.assigned);
    let assignment = Assignment::read(resource, before).map_err(|found| problems(&found))?;
    if let Some(first) = assignment.warnings.first() {
        let all = assignment.warnings.len();
        log::warn!("cluster {}: endpoints: {first} ({all} warnings in all)", cluster.model.name);
    }
    let known = applied.take().map_or_else(Vec::new, |applied| applied.hosts);
    let mut groups = groups(&assignment.localities, assignment.endpoints, known);
    if cluster.update(&mut groups, &assignment.policy) == Change::Nothing {
        cluster.stats.update_no_rebuild.inc();
    }
    *applied = assignment.assigned.and_then(|assigned| {
        let hosts = hosts(groups)?;
        Some(Box::new(Applied { assigned, hosts }))
    });
    Ok(())
}

fn groups(
    localities: &[LocalityEndpoints],
    endpoints: Vec<Vec<Said>>,
    mut known: Vec<Option<Arc<Host>>>,
) -> Vec<Group> {
    let mut member = |said, of: &LocalityEndpoints, locality: &Arc<Locality>| match said {
        // All of them are there, and none is named twice.
        Said::Again(at) => known.get_mut(at).and_then(Option::take).map_or(Member::Nobody, Member::Host),
        Said::New(endpoint) => fixed::member(&endpoint, of, locality),
    };
    let groups = localities.iter().zip(endpoints).map(|(of, endpoints)| {
        let members = |locality: &_| endpoints.into_iter().map(|said| member(said, of, locality)).collect();
        fixed::group_of(of, members)
    });
    groups.collect()
}

/// `None` where an endpoint has none, because its address is another one's: that may be otherwise the next time.
fn hosts(groups: Vec<Group>) -> Option<Vec<Option<Arc<Host>>>> {
    let members = groups.into_iter().flat_map(|group| group.members);
    let hosts = members.map(|member| match member {
        Member::Host(host) => Some(Some(host)),
        Member::Spec(_) | Member::Nobody => None,
    });
    hosts.collect()
}

/// The start goes on without endpoints rather than not at all.
fn refused(cluster: &Cluster, reason: &str) {
    log::warn!("cluster {}: {reason}; what was known stays", cluster.model.name);
    if let Some(stats) = cluster.eds_stats() {
        stats.update_rejected.inc();
    }
    warm(cluster);
}

fn applied(cluster: &Cluster, version: &str) {
    cluster.stats.update_success.inc();
    cluster.stats.version.set(xxh64(version.as_bytes(), 0));
    let wall = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    if let Some(stats) = cluster.eds_stats() {
        stats.update_time.set(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX));
        stats.version_text.set(version);
    }
    warm(cluster);
}

fn warm(cluster: &Cluster) {
    if let Some(active) = &cluster.active {
        active.endpoints_known();
    }
}

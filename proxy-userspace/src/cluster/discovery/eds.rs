//! EDS: endpoints of a source that is followed. What cannot be used leaves the last good ones in force.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use proxy_config::diagnostic::problems;
use proxy_config::model::LoadAssignment;
use proxy_config::model::cluster::{Discovery, Eds};
use proxy_config::xds::{Decoder, Kind, RawResource};
use xxhash_rust::xxh64::xxh64;

use super::fixed;
use crate::clock;
use crate::cluster::members::Change;
use crate::cluster::{Cluster, Env};
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

fn replace(cluster: &Cluster, resource: &RawResource) -> Result<(), String> {
    let decoded = Decoder::default().decode::<LoadAssignment>(resource).map_err(|found| problems(&found))?;
    if let Some(first) = decoded.warnings.first() {
        let all = decoded.warnings.len();
        log::warn!("cluster {}: endpoints: {first} ({all} warnings in all)", cluster.model.name);
    }
    let assignment = &decoded.resource.model;
    if cluster.update(fixed::groups(assignment), &assignment.policy) == Change::Nothing {
        cluster.stats.update_no_rebuild.inc();
    }
    Ok(())
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
    }
    warm(cluster);
}

fn warm(cluster: &Cluster) {
    if let Some(active) = &cluster.active {
        active.endpoints_known();
    }
}

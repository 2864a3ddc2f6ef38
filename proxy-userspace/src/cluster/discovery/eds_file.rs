//! EDS from a file: a `DiscoveryResponse`, read again whenever its directory changes. What cannot be used leaves
//! the last good one in force.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use proxy_config::model::LoadAssignment;
use proxy_config::model::cluster::{Discovery, Eds};
use proxy_config::model::config_source::ConfigSourceKind;
use xxhash_rust::xxh64::xxh64;

use super::fixed;
use crate::clock;
use crate::cluster::members::Change;
use crate::cluster::{Cluster, EndpointUpdate, Env};
use crate::watch::{Group, Parse, Reader, Unusable};

/// Clusters that name the same file share its reading.
pub(super) fn start(cluster: &Arc<Cluster>, eds: &Eds, env: &Env) -> Option<Arc<Group<Cluster>>> {
    let ConfigSourceKind::File { path, watched_directory } = &eds.source.kind else { return None };
    let source = env.endpoints.clone();
    let parse: Parse<Response> = Arc::new(move |text| source(text).map(Response::new));
    Some(env.eds_files.join((path, watched_directory.as_deref()), cluster, &parse, &env.tasks))
}

/// A response that was read once for all clusters.
pub struct Response {
    version: String,
    assignments: HashMap<Arc<str>, LoadAssignment>,
}

impl Response {
    /// Of two assignments for a cluster, the first counts.
    fn new(update: EndpointUpdate) -> Self {
        let mut assignments = HashMap::with_capacity(update.assignments.len());
        for assignment in update.assignments {
            assignments.entry(assignment.cluster_name.clone()).or_insert(assignment);
        }
        Self { version: update.version, assignments }
    }
}

impl Reader for Cluster {
    type Content = Response;

    fn read(&self, content: Result<&Response, &Unusable>) {
        let Discovery::Eds(eds) = &self.model.discovery else { return };
        let response = match content {
            Ok(response) => response,
            Err(why) => return refuse(self, &why.to_string()),
        };
        match response.assignments.get(&eds.service_name) {
            None if !response.assignments.is_empty() => {
                refuse(self, &format!("no assignment for {}", eds.service_name));
            }
            assignment => {
                self.stats.update_attempt.inc();
                apply(self, &response.version, assignment);
            }
        }
    }
}

/// The start goes on without endpoints rather than not at all.
fn refuse(cluster: &Cluster, reason: &str) {
    log::warn!("cluster {}: {reason}; what was known stays", cluster.model.name);
    cluster.stats.update_attempt.inc();
    if let Some(stats) = cluster.eds_stats() {
        stats.update_rejected.inc();
    }
    warm(cluster);
}

fn apply(cluster: &Cluster, version: &str, assignment: Option<&LoadAssignment>) {
    match assignment {
        Some(assignment) => {
            if cluster.update(fixed::groups(assignment), &assignment.policy) == Change::Nothing {
                cluster.stats.update_no_rebuild.inc();
            }
        }
        None => cluster.stats.update_empty.inc(),
    }
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

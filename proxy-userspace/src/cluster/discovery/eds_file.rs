//! EDS from a file: a `DiscoveryResponse`, read again whenever its directory changes. What cannot be used leaves
//! the last good one in force.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, UNIX_EPOCH};

use proxy_config::model::LoadAssignment;
use proxy_config::model::cluster::{Eds, EdsSource};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use xxhash_rust::xxh64::xxh64;

use super::fixed;
use super::watch::Directories;
use crate::clock;
use crate::cluster::members::Change;
use crate::cluster::{Cluster, EndpointSource, EndpointUpdate, Env, stat_prefix};
use crate::telemetry::stats::EdsStats;

/// A writer that is not atomic sends several events: wait for it to finish.
const SETTLE: Duration = Duration::from_millis(30);

pub(super) fn start(cluster: &Arc<Cluster>, eds: &Eds, env: &Env) -> JoinHandle<()> {
    let EdsSource::File { path, watched_directory } = &eds.source;
    let dir = watched_directory.clone().or_else(|| path.parent().map(Path::to_owned)).unwrap_or_default();
    let dir = if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir };
    let changes = env.directories.watch(&dir, &env.tasks);
    if let Err(error) = &changes {
        log::error!("cluster {}: {} cannot be watched: {error}", cluster.model.name, dir.display());
    }
    let follow = Follow {
        cluster: Arc::downgrade(cluster),
        path: path.clone(),
        service: eds.service_name.clone(),
        stats: env.stats.block(stat_prefix(&cluster.model)),
        parse: env.endpoints.clone(),
        last: None,
        _directories: env.directories.clone(),
    };
    env.tasks.spawn("eds_file", follow.run(changes.ok()))
}

struct Follow {
    cluster: Weak<Cluster>,
    path: PathBuf,
    service: Arc<str>,
    stats: Arc<EdsStats>,
    parse: EndpointSource,
    last: Option<String>,
    /// Keeps the watching alive.
    _directories: Arc<Directories>,
}

impl Follow {
    async fn run(mut self, changes: Option<watch::Receiver<()>>) {
        self.load().await;
        let Some(mut changes) = changes else { return };
        while changes.changed().await.is_ok() {
            sleep(SETTLE).await;
            changes.mark_unchanged();
            if self.cluster.strong_count() == 0 {
                return;
            }
            self.load().await;
        }
    }

    async fn load(&mut self) {
        let text = tokio::fs::read_to_string(&self.path).await;
        let Some(cluster) = self.cluster.upgrade() else { return };
        let text = match text {
            Ok(text) if self.last.as_ref() == Some(&text) => return,
            Ok(text) => text,
            Err(error) => {
                cluster.stats.update_attempt.inc();
                return self.refuse(&cluster, &error.to_string());
            }
        };
        cluster.stats.update_attempt.inc();
        match (self.parse)(&text).and_then(|update| self.find(update)) {
            Ok((version, assignment)) => apply(&cluster, &self.stats, &version, assignment.as_ref()),
            Err(reason) => self.refuse(&cluster, &reason),
        }
        self.last = Some(text);
    }

    /// The assignment for this cluster; none in an empty response.
    fn find(&self, update: EndpointUpdate) -> Result<(String, Option<LoadAssignment>), String> {
        let EndpointUpdate { version, mut assignments } = update;
        if assignments.is_empty() {
            return Ok((version, None));
        }
        match assignments.iter().position(|assignment| assignment.cluster_name == self.service) {
            Some(index) => Ok((version, Some(assignments.swap_remove(index)))),
            None => Err(format!("no assignment for {}", self.service)),
        }
    }

    /// The start goes on without endpoints rather than not at all.
    fn refuse(&self, cluster: &Cluster, reason: &str) {
        log::warn!("cluster {}: {}: {reason}; what was known stays", cluster.model.name, self.path.display());
        self.stats.update_rejected.inc();
        warm(cluster);
    }
}

fn apply(cluster: &Cluster, stats: &EdsStats, version: &str, assignment: Option<&LoadAssignment>) {
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
    stats.update_time.set(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX));
    warm(cluster);
}

fn warm(cluster: &Cluster) {
    if let Some(active) = &cluster.active {
        active.endpoints_known();
    }
}

//! EDS from a file: a `DiscoveryResponse`, read again whenever its directory changes. What cannot be used leaves
//! the last good one in force.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, UNIX_EPOCH};

use proxy_config::model::LoadAssignment;
use proxy_config::model::cluster::{Discovery, Eds};
use proxy_config::model::config_source::ConfigSourceKind;
use tokio::sync::watch;
use tokio::time::sleep;
use xxhash_rust::xxh64::xxh64;

use super::fixed;
use super::watch::Directories;
use crate::clock;
use crate::cluster::members::Change;
use crate::cluster::together::Group;
use crate::cluster::{Cluster, EndpointSource, EndpointUpdate, Env};

/// A writer that is not atomic sends several events: wait for it to finish.
const SETTLE: Duration = Duration::from_millis(30);

/// What clusters of one file have in common: the file, and the directory to watch.
pub(in crate::cluster) type File = (PathBuf, PathBuf);

/// Clusters that name the same file share its reading: each on its own would parse all of it.
pub(super) fn start(cluster: &Arc<Cluster>, eds: &Eds, env: &Env) -> Arc<Group> {
    let ConfigSourceKind::File { path, watched_directory } = &eds.source.kind;
    let dir = watched_directory.clone().or_else(|| path.parent().map(Path::to_owned)).unwrap_or_default();
    let dir = if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir };
    env.eds_files.join((path.clone(), dir.clone()), cluster, |group| {
        let changes = env.directories.watch(&dir, &env.tasks);
        if let Err(error) = &changes {
            log::error!("{} cannot be watched: {error}", dir.display());
        }
        let follow = Follow {
            group,
            path: path.clone(),
            parse: env.endpoints.clone(),
            last: None,
            _directories: env.directories.clone(),
        };
        env.tasks.spawn("eds_file", follow.run(changes.ok())).abort_handle()
    })
}

struct Follow {
    group: Weak<Group>,
    path: PathBuf,
    parse: EndpointSource,
    /// The text that the clusters know, by its length and hash.
    last: Option<(usize, u64)>,
    /// Keeps the watching alive.
    _directories: Arc<Directories>,
}

/// A response that was read once for all clusters.
struct Response {
    version: String,
    assignments: HashMap<Arc<str>, LoadAssignment>,
}

impl Follow {
    /// Ends with the group, whose drop aborts this.
    async fn run(mut self, mut changes: Option<watch::Receiver<()>>) {
        let mut again = true;
        loop {
            let Some(group) = self.group.upgrade() else { return };
            self.load(&group, again).await;
            let joined = group.joined();
            drop(group);
            again = tokio::select! {
                () = joined.notified() => false,
                () = changed(&mut changes) => true,
            };
        }
    }

    /// `again`: not only because clusters have joined.
    async fn load(&mut self, group: &Group, again: bool) {
        let text = tokio::fs::read_to_string(&self.path).await;
        let newcomers = group.newcomers();
        let text = match text {
            Ok(text) => text,
            Err(error) => {
                // The same text again would be news to those that have joined since.
                self.last = None;
                let clusters = if again { group.clusters() } else { newcomers };
                return self.refuse(&clusters, &error.to_string());
            }
        };
        let known = (text.len(), xxh64(text.as_bytes(), 0));
        let clusters = if self.last == Some(known) { newcomers } else { group.clusters() };
        self.last = Some(known);
        if clusters.is_empty() {
            return;
        }
        match (self.parse)(&text) {
            Ok(update) => self.answer(&clusters, &Response::new(update)),
            Err(reason) => self.refuse(&clusters, &reason),
        }
    }

    fn answer(&self, clusters: &[Arc<Cluster>], response: &Response) {
        for cluster in clusters {
            let Discovery::Eds(eds) = &cluster.model.discovery else { continue };
            match response.assignments.get(&eds.service_name) {
                None if !response.assignments.is_empty() => {
                    let reason = format!("no assignment for {}", eds.service_name);
                    self.refuse(std::slice::from_ref(cluster), &reason);
                }
                assignment => {
                    cluster.stats.update_attempt.inc();
                    apply(cluster, &response.version, assignment);
                }
            }
        }
    }

    /// The start goes on without endpoints rather than not at all.
    fn refuse(&self, clusters: &[Arc<Cluster>], reason: &str) {
        for cluster in clusters {
            let name = &cluster.model.name;
            log::warn!("cluster {name}: {}: {reason}; what was known stays", self.path.display());
            cluster.stats.update_attempt.inc();
            if let Some(stats) = cluster.eds_stats() {
                stats.update_rejected.inc();
            }
            warm(cluster);
        }
    }
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

/// Resolves once the directory has changed and come to rest.
async fn changed(changes: &mut Option<watch::Receiver<()>>) {
    if let Some(receiver) = changes
        && receiver.changed().await.is_ok()
    {
        sleep(SETTLE).await;
        receiver.mark_unchanged();
        return;
    }
    *changes = None;
    std::future::pending().await
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

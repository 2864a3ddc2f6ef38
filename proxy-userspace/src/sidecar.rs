//! One configuration as it runs, with all that is its own: statistics, secrets, log files, what the admin API shows.
//!
//! The daemon has one of its own, and one for each workload that brings a bootstrap. They share nothing but the
//! daemon: what one of them knows, another's connections never see.

pub mod bootstrap;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Result;
use proxy_config::load::{self, Loaded};
use proxy_config::model::Bootstrap;

use crate::admin::View as _;
use crate::cluster::Env;
use crate::net::{Dial, ListenerContext, Place, accept};
use crate::network::local_ratelimit::Buckets;
use crate::secret::Secrets;
use crate::task::Tasks;
use crate::telemetry::access_log::Sinks;
use crate::telemetry::stats::Stats;
use crate::watch::Directories;
use crate::world::{Parts, Snapshot, Status, World, bind};
use crate::xds::{Sources, SourcesEnv, Subscribe};

/// One configuration, running; or, where the daemon has none, what it has all the same.
pub struct Sidecar {
    /// None where there is no bootstrap.
    pub world: Option<Arc<World>>,
    pub status: Arc<Status>,
    pub env: Env,
    sinks: Arc<Sinks>,
    buckets: Buckets,
}

/// The configurations that workloads have brought, by workload: what serves, or what is to, where nothing does yet.
#[derive(Default)]
pub struct Sidecars(RwLock<BTreeMap<String, Arc<Sidecar>>>);

impl Sidecars {
    pub fn of(&self, workload: &str) -> Option<Arc<Sidecar>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(workload).cloned()
    }

    pub fn set(&self, workload: &str, sidecar: Option<Arc<Sidecar>>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match sidecar {
            Some(sidecar) => all.insert(workload.to_owned(), sidecar),
            None => all.remove(workload),
        };
    }

    pub fn all(&self) -> Vec<(String, Arc<Sidecar>)> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(name, sidecar)| (name.clone(), sidecar.clone())).collect()
    }
}

/// What all configurations of a daemon are run by.
#[derive(Clone, Default)]
pub struct Common {
    /// How bootstraps are read.
    pub options: load::Options,
    /// Accepting sockets per address of a listener with `reuse_port`.
    pub workers: usize,
    /// How long connections may go on when their listener is let go.
    pub drain_time: Duration,
    /// How long lines of access logs may gather.
    pub log_flush_interval: Duration,
    /// For `/server_info`.
    pub command_line: serde_json::Value,
    /// Watched for all of them: the system allows few instances of inotify.
    pub directories: Arc<Directories>,
    /// The last connection's id: one count for the daemon, so that an id is in one log only.
    pub connections: Arc<AtomicU64>,
}

impl Sidecar {
    /// Builds all of it and starts what follows the outside. Needs a runtime.
    pub fn new(loaded: Option<Loaded>, dial: Arc<dyn Dial>, common: &Common) -> Result<Self> {
        let stats = Arc::new(Stats::new());
        let tasks = Tasks::new(&stats);
        let bootstrap = loaded.as_ref().map(|loaded| &loaded.bootstrap);
        let sources: Arc<dyn Subscribe> = Sources::new(SourcesEnv {
            stats: stats.clone(),
            tasks: tasks.clone(),
            directories: common.directories.clone(),
            node: bootstrap.map(|bootstrap| bootstrap.node.raw.clone()).unwrap_or_default(),
            ads: bootstrap.and_then(|bootstrap| bootstrap.dynamic.ads.clone()),
            dial: dial.clone(),
            connections: common.connections.clone(),
        });
        let mut env = Env::new(stats.clone(), tasks.clone(), dial, sources.clone());
        env.transport.connections = common.connections.clone();
        if let Some(bootstrap) = bootstrap {
            let secrets = Secrets::new(&bootstrap.secrets, (&stats, &tasks), &common.directories, &sources)?;
            env.transport.secrets = Arc::new(secrets);
        }
        let sinks = Arc::new(Sinks::new(common.log_flush_interval, &stats));
        let buckets = Buckets::default();
        let parts = Parts { cluster: &env, sinks: &sinks, buckets: &buckets };
        let world = loaded.as_ref().map(|loaded| world(&loaded.bootstrap, &parts)).transpose()?;
        let (workers, options) = (common.workers, common.command_line.clone());
        let whole = Status::new(
            world.clone(),
            loaded,
            sinks.clone(),
            (tasks, &stats),
            common.drain_time,
            (workers, options),
        );
        Ok(Self { world, status: Arc::new(whole), env, sinks, buckets })
    }

    /// What more of it is built with.
    pub fn parts(&self) -> Parts<'_> {
        Parts { cluster: &self.env, sinks: &self.sinks, buckets: &self.buckets }
    }

    pub fn stats(&self) -> &Arc<Stats> {
        &self.env.stats
    }

    /// How many listeners and clusters it has.
    pub fn size(&self) -> (usize, usize) {
        let snapshot = self.world.as_ref().map(|world| world.snapshot());
        snapshot.map_or((0, 0), |snapshot| (snapshot.listeners().len(), snapshot.clusters().count()))
    }

    /// The id of its node.
    pub fn node(&self) -> String {
        self.status.node().id
    }

    /// What [`Self::warmed`] waits for, in words.
    pub fn waits_for(&self) -> Vec<String> {
        self.world.as_ref().map(|world| world.snapshot().waits_for()).unwrap_or_default()
    }

    /// Waits until every cluster knows its endpoints and no secret is waited for, and says now and then for what.
    /// `whose` begins the lines.
    pub async fn warmed(&self, whose: &str) {
        let Some(snapshot) = self.world.as_ref().map(|world| world.snapshot()) else { return };
        let warmed = snapshot.warmed();
        tokio::pin!(warmed);
        let mut patience = Duration::from_secs(1);
        while tokio::time::timeout(patience, warmed.as_mut()).await.is_err() {
            for line in snapshot.waits_for() {
                log::warn!("{whose}{line}: no connection is accepted yet");
            }
            patience = (patience * 2).min(Duration::from_secs(60));
        }
    }

    /// Serves its listeners that have sockets.
    pub fn accept(&self, bound: Vec<bind::Bound>, place: &Arc<Place>, tasks: &Tasks) {
        self.status.bound(&bound);
        for bind::Bound { listener, socket, local } in bound {
            let watch = self.status.watch(&listener.model);
            let context = ListenerContext::own(place.clone(), listener, local);
            tasks.spawn("accept", accept::run(socket, Arc::new(context), watch));
        }
        self.status.set_warm();
    }

    /// Lets its listeners go and waits for their connections, for so long.
    pub async fn drain(&self, time: Duration) {
        self.status.drain_within(time).await;
    }

    /// Waits until what its logs and taps were told is written.
    pub fn flush(&self, deadline: Duration) {
        self.status.flush(deadline);
        if !self.env.transport.taps.flush(deadline) {
            log::warn!("tap: not everything could be written");
        }
    }
}

fn world(bootstrap: &Bootstrap, parts: &Parts<'_>) -> Result<Arc<World>> {
    let listeners = bootstrap.listeners.iter().map(|resource| resource.model.clone());
    let clusters = bootstrap.clusters.iter().map(|resource| resource.model.clone());
    let snapshot = Snapshot::build(listeners, clusters, parts)?;
    snapshot.start(parts.cluster);
    Ok(Arc::new(World::new(snapshot, parts.cluster.transport.secrets.clone())))
}

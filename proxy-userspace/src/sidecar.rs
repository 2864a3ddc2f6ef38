//! One configuration as it runs, with all that is its own: statistics, secrets, log files, what the admin API shows.
//!
//! The daemon has one of its own, and one for each workload that brings a bootstrap. They share nothing but the
//! daemon: what one of them knows, another's connections never see.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::Result;
use proxy_config::load::Loaded;
use proxy_config::model::Bootstrap;

use crate::cluster::Env;
use crate::net::Dial;
use crate::network::local_ratelimit::Buckets;
use crate::secret::Secrets;
use crate::task::Tasks;
use crate::telemetry::access_log::Sinks;
use crate::telemetry::stats::Stats;
use crate::watch::Directories;
use crate::world::{Parts, Snapshot, Status, World};
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

/// What all configurations of a daemon are run by.
#[derive(Clone, Debug)]
pub struct Common {
    /// Accepting sockets per address of a listener with `reuse_port`.
    pub workers: usize,
    /// How long connections may go on when their listener is let go.
    pub drain_time: Duration,
    /// How long lines of access logs may gather.
    pub log_flush_interval: Duration,
    /// For `/server_info`.
    pub command_line: serde_json::Value,
    /// The last connection's id: one count for the daemon, so that an id is in one log only.
    pub connections: Arc<AtomicU64>,
}

impl Sidecar {
    /// Builds all of it and starts what follows the outside. Needs a runtime.
    pub fn new(loaded: Option<Loaded>, dial: Arc<dyn Dial>, common: &Common) -> Result<Self> {
        let stats = Arc::new(Stats::new());
        let tasks = Tasks::new(&stats);
        let directories = Arc::<Directories>::default();
        let bootstrap = loaded.as_ref().map(|loaded| &loaded.bootstrap);
        let sources: Arc<dyn Subscribe> = Sources::new(SourcesEnv {
            stats: stats.clone(),
            tasks: tasks.clone(),
            directories: directories.clone(),
            node: bootstrap.map(|bootstrap| bootstrap.node.raw.clone()).unwrap_or_default(),
            ads: bootstrap.and_then(|bootstrap| bootstrap.dynamic.ads.clone()),
            dial: dial.clone(),
            connections: common.connections.clone(),
        });
        let mut env = Env::new(stats.clone(), tasks.clone(), dial, sources.clone());
        env.transport.connections = common.connections.clone();
        if let Some(bootstrap) = bootstrap {
            let secrets = Secrets::new(&bootstrap.secrets, (&stats, &tasks), &directories, &sources)?;
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

//! One configuration as it runs, with all that is its own: statistics, secrets, log files, what the admin API shows.
//!
//! The daemon has one of its own, and one for each workload that brings a bootstrap. They share nothing but the
//! daemon: what one of them knows, another's connections never see.

pub mod bootstrap;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use proxy_config::load::{self, Loaded};
use proxy_config::xds::{Decoder, Store};

use crate::admin::View as _;
use crate::cluster::Env;
use crate::drain::Drain;
use crate::http;
use crate::istio::Local;
use crate::net::{Dial, Place};
use crate::network::local_ratelimit::Buckets;
use crate::secret::Secrets;
use crate::task::workers::Crew;
use crate::task::{Tasks, Whose};
use crate::telemetry::access_log::Sinks;
use crate::telemetry::stats::Stats;
use crate::transport::tap::Taps;
use crate::watch::Directories;
use crate::world::history::History;
use crate::world::{self, Parts, Status, World};
use crate::xds::{Clusters, SessionView, Sources, SourcesEnv, Subscribe};

/// One configuration, running; or, where the daemon has none, what it has all the same.
pub struct Sidecar {
    /// None where there is no bootstrap.
    pub world: Option<Arc<World>>,
    pub status: Arc<Status>,
    pub env: Env,
    servers: Arc<Sources>,
    sinks: Arc<Sinks>,
    buckets: Arc<Buckets>,
    http: Arc<http::Common>,
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
    /// The threads that carry connections.
    pub crew: Crew,
    /// How many of them: `--concurrency`.
    pub workers: usize,
    /// How long connections may go on when their listener is let go.
    pub drain_time: Duration,
    /// How long lines of access logs may gather.
    pub log_flush_interval: Duration,
    /// For `/server_info`.
    pub command_line: serde_json::Value,
    /// Watched for all of them: the system allows few instances of inotify.
    pub directories: Arc<Directories>,
    /// Resources that several of them have are kept once.
    pub store: Arc<Store>,
    /// Whose configuration it is, for the log.
    pub whose: Whose,
    /// The last connection's id: one count for the daemon, so that an id is in one log only.
    pub connections: Arc<AtomicU64>,
}

impl Sidecar {
    /// Builds all of it and starts what follows the outside. Needs a runtime.
    pub fn new(loaded: Option<Loaded>, dial: Arc<dyn Dial>, common: &Common) -> Result<Self> {
        let stats = Arc::new(Stats::new());
        let tasks = Tasks::new(&stats).on(common.crew.clone()).of(common.whose.clone());
        let bootstrap = loaded.as_ref().map(|loaded| &loaded.bootstrap);
        let servers = Sources::new(SourcesEnv {
            stats: stats.clone(),
            tasks: tasks.clone(),
            directories: common.directories.clone(),
            node: bootstrap.map(|bootstrap| bootstrap.node.raw.clone()).unwrap_or_default(),
            ads: bootstrap.and_then(|bootstrap| bootstrap.dynamic.ads.clone()),
            dial: dial.clone(),
            connections: common.connections.clone(),
        });
        let sources: Arc<dyn Subscribe> = servers.clone();
        let mut env = Env::new(stats.clone(), tasks.clone(), dial, sources.clone());
        env.count_with(&common.connections);
        let decoder = bootstrap.map(|bootstrap| Decoder::of(bootstrap).with_store(common.store.clone()));
        if let (Some(bootstrap), Some(decoder)) = (bootstrap, &decoder) {
            let secrets = Secrets::new(&bootstrap.secrets, (&stats, &tasks), &common.directories, &sources)?;
            env.transport.secrets = Arc::new(secrets.read_by(decoder));
        }
        if let Some(bootstrap) = bootstrap {
            env.transport.local = Arc::new(Local::new(&bootstrap.node));
            if let Some(interval) = bootstrap.stats.eviction_interval {
                stats.evict_after(interval);
            }
        }
        let sinks = Arc::new(Sinks::new(common.log_flush_interval, &stats));
        let buckets = Arc::<Buckets>::default();
        let http = Arc::new(http::Common::new(bootstrap));
        let world = match bootstrap.zip(decoder) {
            Some((bootstrap, decoder)) => {
                let env = world::Env {
                    cluster: env.clone(),
                    sinks: sinks.clone(),
                    buckets: buckets.clone(),
                    http: http.clone(),
                    sources,
                    decoder,
                    drain_time: common.drain_time,
                    history: History::default(),
                };
                let world = Arc::new(World::new(bootstrap, env)?);
                let clusters: Arc<dyn Clusters> = world.live.clone();
                servers.set_clusters(&clusters);
                world.start();
                Some(world)
            }
            None => None,
        };
        let (workers, options) = (common.workers, common.command_line.clone());
        let whole = Status::new(
            world.clone(),
            loaded,
            sinks.clone(),
            (tasks, &stats),
            common.drain_time,
            (workers, options),
        );
        let whole = whole.telling(http.failing.clone());
        Ok(Self { world, status: Arc::new(whole), env, servers, sinks, buckets, http })
    }

    /// What more of it is built with.
    pub fn parts(&self) -> Parts<'_> {
        Parts { cluster: &self.env, sinks: &self.sinks, buckets: &self.buckets, http: &self.http }
    }

    pub fn stats(&self) -> &Arc<Stats> {
        &self.env.stats
    }

    /// How many listeners and clusters it has.
    pub fn size(&self) -> (usize, usize) {
        let snapshot = self.world.as_ref().map(|world| world.snapshot());
        snapshot.map_or((0, 0), |snapshot| snapshot.size())
    }

    /// The id of its node.
    pub fn node(&self) -> String {
        self.status.node().id
    }

    /// How it stands with its control planes.
    pub fn control_planes(&self) -> Vec<SessionView> {
        self.servers.sessions()
    }

    /// When the last update of a file or a control plane came.
    pub fn updated(&self) -> Option<SystemTime> {
        let last = self.world.as_ref()?.history().after(0).pop()?;
        Some(last.at)
    }

    /// What [`Self::warmed`] waits for, in words.
    pub fn waits_for(&self) -> Vec<String> {
        self.world.as_ref().map(|world| world.waits_for()).unwrap_or_default()
    }

    /// Waits until every cluster knows its endpoints, the first listeners have come and no secret is waited for, and
    /// says now and then for what. `whose` begins the lines.
    pub async fn warmed(&self, whose: &str) {
        if let Some(world) = &self.world {
            world.warmed(whose).await;
        }
    }

    /// Serves its listeners that have sockets, and those that come later.
    pub fn accept(&self, place: Arc<Place>) {
        if let Some(world) = &self.world {
            world.open(self.status.gate(place));
        }
        self.status.set_warm();
    }

    /// What is left of it when nobody has it any more.
    pub fn rest(&self) -> Rest {
        let taps = self.env.transport.taps.clone();
        Rest { drains: self.status.drains(), sinks: self.sinks.clone(), taps }
    }

    /// Waits until what its logs and taps were told is written.
    pub fn flush(&self, deadline: Duration) {
        self.rest().flush(deadline);
    }
}

/// Connections that outlive their configuration, and what they write to.
pub struct Rest {
    drains: [Arc<Drain>; 2],
    sinks: Arc<Sinks>,
    taps: Arc<Taps>,
}

impl Rest {
    /// Closes the listeners.
    pub fn start(&self) {
        self.drains.iter().for_each(|drain| drain.start());
    }

    /// How many connections and listeners there are.
    pub fn live(&self) -> usize {
        self.drains.iter().map(|drain| drain.live()).sum()
    }

    /// Closes the listeners and waits for their connections, for so long.
    pub async fn drain(&self, time: Duration) {
        let [inbound, others] = &self.drains;
        tokio::join!(inbound.drain(time), others.drain(time));
    }

    /// Waits until what was logged and tapped is written.
    pub fn flush(&self, deadline: Duration) {
        if !self.sinks.flush(deadline) {
            log::warn!("access logs: not everything could be written");
        }
        if !self.taps.flush(deadline) {
            log::warn!("tap: not everything could be written");
        }
    }
}

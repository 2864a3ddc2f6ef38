//! Connections upstream that requests of HTTP share.
//!
//! [`Pools`] are a cluster's: those of each worker apart, so that a request takes a connection and gives it back without
//! waiting for another thread. A [`Pool`] is of one endpoint, protocol and transport. A connection of HTTP/1 belongs to
//! one request at a time; one of HTTP/2 has handles for many. Who finds none waits in the pool while a task of its own
//! connects, and takes whichever connection is free first. One task for each pool watches the idle ones.

mod connect;
mod keeper;
mod kept;
mod lease;
mod life;
mod settings;
mod state;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use foldhash::fast::RandomState;
use http::Version;
use proxy_config::model;
use proxy_config::model::cluster::Discovery;
use proxy_config::model::http::Priority;

pub use self::lease::{Attached, Failed, Lease};
pub use self::life::Life;
pub(crate) use self::settings::{KeyFormat, http2_settings};
pub use self::settings::{Protocol, Settings};
pub use self::state::{Pool, Refused};
use super::ConnCx;
use super::router::CodeStats;
pub use super::router::call;
use crate::cluster::{Cluster, Env, Host, Source, stat_prefix};
use crate::net::facts::Facts;
use crate::net::{Dial, Direction};
use crate::task::{Tasks, workers};
use crate::telemetry::stats::Stats;
use crate::transport::Names;

/// Of one cluster.
pub struct Pools {
    model: Arc<model::Cluster>,
    ground: Arc<Ground>,
    /// Most clusters have none.
    made: OnceLock<Box<Made>>,
}

/// What all pools of a configuration stand on.
pub(crate) struct Ground {
    stats: Arc<Stats>,
    tasks: Tasks,
    /// The last connection id.
    connections: Arc<AtomicU64>,
    dial: Arc<dyn Dial>,
}

impl Ground {
    pub(crate) fn new(
        stats: &Arc<Stats>,
        tasks: &Tasks,
        connections: &Arc<AtomicU64>,
        dial: &Arc<dyn Dial>,
    ) -> Self {
        let (stats, tasks) = (stats.clone(), tasks.clone());
        Self { stats, tasks, connections: connections.clone(), dial: dial.clone() }
    }
}

struct Made {
    settings: Arc<Settings>,
    codes: CodeStats,
    workers: Box<[Worker]>,
}

type Worker = Mutex<Work>;

/// What a worker has.
#[derive(Default)]
struct Work {
    pools: HashMap<Key, Arc<Pool>, RandomState>,
    /// Hosts of ORIGINAL_DST by their addresses, while they have a pool.
    hosts: HashMap<SocketAddr, Arc<Host>, RandomState>,
}

/// What connections have to have in common to be each other's substitute.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The pool holds the host and the dial, so that no other can have their addresses.
    host: usize,
    dial: usize,
    protocol: Protocol,
    high: bool,
    more: Option<Arc<More>>,
}

/// What most requests do not ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct More {
    pub names: Names,
    /// Only for requests of that connection.
    pub connection: Option<u64>,
    pub source: Option<SourceKey>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceKey {
    pub address: SocketAddr,
    pub mark: Option<u32>,
}

/// A connection is wanted.
pub struct Demand<'a> {
    pub cluster: &'a Arc<Cluster>,
    pub host: &'a Arc<Host>,
    pub caller: &'a Caller,
    /// Of the client; none of the proxy's own requests.
    pub facts: Option<&'a Facts>,
    /// What the client speaks.
    pub version: Version,
    pub priority: Priority,
    pub source: Source,
    pub more: Option<More>,
}

/// By whose sockets, and on which worker, a request is sent.
#[derive(Clone)]
pub struct Caller {
    pub dial: Arc<dyn Dial>,
    pub worker: workers::Place,
}

impl Caller {
    /// A client's.
    pub fn of(cx: &ConnCx) -> Self {
        let dial = match cx.connection.origin.direction.unwrap_or(Direction::Outbound) {
            Direction::Outbound => &cx.place.dial.outbound,
            Direction::Inbound => &cx.place.dial.inbound,
        };
        Self { dial: dial.clone(), worker: cx.worker }
    }
}

impl Pools {
    pub fn new(model: &Arc<model::Cluster>, env: &Env) -> Self {
        Self { model: model.clone(), ground: env.ground.clone(), made: OnceLock::new() }
    }

    /// What responses are counted as.
    pub fn codes(&self) -> &CodeStats {
        &self.made().codes
    }

    /// For the proxy's own requests.
    pub fn caller(&self) -> Caller {
        Caller { dial: self.ground.dial.clone(), worker: 0 }
    }

    /// How HTTP is spoken to the cluster.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.made().settings
    }

    fn made(&self) -> &Made {
        self.made.get_or_init(|| {
            let workers = (0..self.ground.tasks.crew().len()).map(|_| Worker::default()).collect();
            let prefix = stat_prefix(&self.model);
            let mut settings = Settings::new(&self.model);
            settings.h2.stats = self.ground.stats.block(format!("{prefix}.http2"));
            let codes = CodeStats::new(&self.ground.stats, prefix.into());
            Box::new(Made { settings: Arc::new(settings), codes, workers })
        })
    }

    /// A connection, at once or after a while. Dropped before it has one, the request waits no longer.
    pub async fn acquire(&self, demand: Demand<'_>) -> Result<Lease, Refused> {
        let pool = self.pool(demand)?;
        match pool.take() {
            Some(taken) => {
                if pool.settings().preconnect > 1.0 {
                    pool.connect_as_needed();
                }
                pool.lease(taken)
            }
            None => Box::pin(pool.wait()).await,
        }
    }

    fn pool(&self, demand: Demand<'_>) -> Result<Arc<Pool>, Refused> {
        let made = self.made();
        let Caller { dial, worker: at } = demand.caller;
        let more = demand.more.filter(|more| *more != More::default()).map(Arc::new);
        let key = Key {
            host: Arc::as_ptr(demand.host) as usize,
            dial: Arc::as_ptr(dial).cast::<()>() as usize,
            protocol: made.settings.protocol(demand.version),
            high: demand.priority == Priority::High,
            more,
        };
        let Some(worker) = made.worker(*at) else { return Err(Refused::Gone) };
        let mut work = lock(worker);
        if let Some(pool) = work.pools.get(&key) {
            return Ok(pool.clone());
        }
        let place = demand.cluster.breaker().pool(demand.priority).map_err(Refused::Overflow)?;
        let pool = Pool::new(
            key.clone(),
            state::Of {
                cluster: demand.cluster,
                host: demand.host.clone(),
                dial: dial.clone(),
                source: demand.source,
                facts: demand.facts,
                tasks: self.ground.tasks.clone(),
                connections: self.ground.connections.clone(),
                worker: *at,
                priority: demand.priority,
                settings: made.settings.clone(),
            },
            place,
        );
        work.pools.insert(key, pool.clone());
        if self.is_original()
            && let Some(address) = pool.host().socket_address()
        {
            work.hosts.insert(address, pool.host().clone());
        }
        Ok(pool)
    }

    fn is_original(&self) -> bool {
        match self.model.discovery {
            Discovery::OriginalDst(_) => true,
            Discovery::Static | Discovery::StrictDns(_) | Discovery::LogicalDns(_) | Discovery::Eds(_) => {
                false
            }
        }
    }

    /// Of ORIGINAL_DST, where each choice makes a new host: that which has connections already.
    pub fn known(&self, host: Arc<Host>, caller: &Caller) -> Arc<Host> {
        if !self.is_original() {
            return host;
        }
        let known = self.made.get().and_then(|made| made.worker(caller.worker)).zip(host.socket_address());
        known.and_then(|(worker, address)| lock(worker).hosts.get(&address).cloned()).unwrap_or(host)
    }

    /// Connections to hosts that are gone take no more requests.
    pub fn keep(&self, keep: impl Fn(&Host) -> bool) {
        let Some(made) = self.made.get() else { return };
        for worker in &made.workers {
            let mut gone = Vec::new();
            lock(worker).pools.retain(|_, pool| {
                let keep = keep(pool.host());
                if !keep {
                    gone.push(pool.clone());
                }
                keep
            });
            // What they were is closed without the lock.
            gone.iter().for_each(|pool| pool.drain());
        }
    }

    /// One that nobody used for a while.
    fn forget(&self, pool: &Arc<Pool>) {
        let Some(worker) = self.made().worker(pool.worker()) else { return };
        let mut work = lock(worker);
        if work.pools.get(pool.key()).is_some_and(|known| Arc::ptr_eq(known, pool)) {
            work.pools.remove(pool.key());
            let others = work.pools.values().any(|other| Arc::ptr_eq(other.host(), pool.host()));
            if let Some(address) = pool.host().socket_address().filter(|_| !others) {
                work.hosts.remove(&address);
            }
        }
    }
}

impl Made {
    fn worker(&self, place: usize) -> Option<&Worker> {
        self.workers.get(place).or_else(|| self.workers.first())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

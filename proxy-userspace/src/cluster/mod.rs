//! Clusters at run time: which endpoints there are, how they do, which one is next, and the way to it.
//!
//! A [`Cluster`] holds its endpoints in an immutable state ([`lb`]) that discovery and health swap as a whole, so
//! that [`Cluster::choose`] takes no lock. `discovery` says which endpoints there are, `health` and `outlier` how
//! they do, `breaker` how many connections there may be; [`connect`] makes one.

pub mod breaker;
pub mod connect;
mod discovery;
mod health;
mod host;
mod lb;
mod members;
mod outlier;
mod random;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use proxy_config::model;
use proxy_config::model::cluster::Discovery;
use proxy_config::model::endpoint::AssignmentPolicy;
use proxy_config::model::metadata::Struct;
use tokio::task::AbortHandle;

pub use self::breaker::{Overflow, Permit};
pub use self::connect::{Client, ConnectError, Connected, Io, Source, SourceAddress};
pub use self::host::{Health, HealthFlag, Host, HostStats, address_text};
pub use self::lb::PreviousPriorities;
pub use self::random::{Random, ThreadRandom};

use self::breaker::Breaker;
use self::discovery::resolver::Resolvers;
use self::discovery::{Applied, Part, Warm};
use self::lb::LbState;
use self::outlier::Detector;
use crate::clock::{self, Instant};
use crate::http::filters::UpstreamFilters;
use crate::http::pool::{Ground, Pools};
use crate::istio::Exchange;
use crate::net::Dial;
use crate::secret::Slot;
use crate::task::Tasks;
use crate::telemetry::stats::{ClusterStats, EdsStats, SocketMatchStats, Stats};
use crate::transport::{self, Factory};
use crate::watch::{Group, Together};
use crate::xds::{Subscribe, Subscription};

pub struct Cluster {
    pub model: Arc<model::Cluster>,
    pub stats: Arc<ClusterStats>,
    lb: ArcSwap<LbState>,
    /// Held while the state is replaced: two that update it would lose one's work.
    updating: Mutex<()>,
    breaker: Arc<Breaker>,
    /// Connections for requests of HTTP, once there were any.
    pools: Pools,
    /// Of requests of HTTP to it; none: the router's.
    filters: Option<Box<UpstreamFilters>>,
    /// Makes the transports of connections on the cluster's own socket; none for `raw_buffer`.
    transport: Option<Arc<dyn Factory>>,
    /// Asks its endpoints who they are.
    exchange: Option<Arc<Exchange>>,
    /// Of each of `transport_socket_matches`.
    matches: Box<[SocketMatch]>,
    random: Arc<dyn Random>,
    /// The secrets of its transports that were not there from the start.
    secrets: Box<[Arc<Slot>]>,
    /// Only where something watches: idle static clusters have none.
    active: Option<Box<Active>>,
}

/// Why a cluster cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("transport_socket: {0}")]
    Transport(#[from] transport::BuildError),
    #[error(transparent)]
    Http(#[from] crate::http::BuildError),
}

fn filters(model: &model::Cluster) -> Result<Option<UpstreamFilters>, BuildError> {
    let models = model.http.as_ref().map(|http| &http.filters).filter(|filters| !filters.is_empty());
    Ok(models.map(|filters| UpstreamFilters::new(filters)).transpose()?)
}

/// One of `transport_socket_matches`.
struct SocketMatch {
    stats: Arc<SocketMatchStats>,
    transport: Option<Arc<dyn Factory>>,
}

/// What clusters need of the proxy around them. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    pub stats: Arc<Stats>,
    pub tasks: Tasks,
    pub dial: Arc<dyn Dial>,
    /// Where endpoints come from that are not the cluster's own.
    pub sources: Arc<dyn Subscribe>,
    pub random: Arc<dyn Random>,
    pub transport: transport::Env,
    /// What pools of connections stand on.
    pub(crate) ground: Arc<Ground>,
    resolvers: Arc<Resolvers>,
    intervals: Arc<Together<outlier::Interval, Cluster>>,
    born: Instant,
}

/// What a connection wants of an endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Want<'a> {
    /// Of the hash policy, for consistent hashing; without one the choice is random.
    pub hash: Option<u64>,
    /// `envoy.lb` of the route, for subsets.
    pub metadata_match: Option<&'a Struct>,
    /// Where the client was going, for ORIGINAL_DST.
    pub original_dst: Option<SocketAddr>,
    /// Of an HTTP retry that goes to other priorities than before.
    pub untried: Option<&'a Mutex<PreviousPriorities>>,
    /// Endpoints that an HTTP retry rather avoids; tcp_proxy avoids none, as in Envoy.
    pub tried: &'a [SocketAddr],
    /// How many further choices avoiding them is worth (`host_selection_retry_max_attempts`).
    pub attempts: u32,
}

/// Why there is no endpoint; counted as `upstream_cx_none_healthy`, flag UH.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoHost {
    #[error("no healthy upstream")]
    NoHealthy,
    #[error("no subset of the endpoints matches, and nothing to fall back to")]
    NoSubset,
    #[error("no original destination")]
    NoOriginalDst,
}

/// How it went with a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A TCP connection is there, and that is all that was wanted.
    Connected(Duration),
    /// A TCP connection is there; a protocol above it will say how it goes on.
    ConnectedForRequests(Duration),
    ConnectFailed,
    ConnectTimeout,
    /// A response's status.
    Status(u16),
    /// The upstream reset or broke the protocol before a response was complete.
    RequestFailed,
    /// No answer within the route's time-out.
    RequestTimeout,
}

/// A connection with its place under the circuit breakers.
#[derive(Debug)]
pub struct Upstream {
    pub connected: Connected,
    pub permit: Permit,
}

impl Active {
    /// Discovery has answered for the first time, well or badly.
    fn endpoints_known(&self) {
        self.warm.done(Part::Endpoints);
        self.hosts_changed();
    }

    fn hosts_changed(&self) {
        if let Some(health) = &self.health {
            health.hosts_changed();
        }
    }
}

struct Active {
    warm: Warm,
    /// Of clusters whose endpoints come from a subscription.
    eds: Option<Arc<EdsStats>>,
    /// What the last assignment has become. Held while the next one is applied.
    applied: Mutex<Option<Box<Applied>>>,
    outlier: Option<Detector>,
    health: Option<health::Checkers>,
    tasks: Mutex<Running>,
}

/// What goes on for a cluster.
#[derive(Default)]
struct Running {
    own: Vec<AbortHandle>,
    /// Tasks that it shares.
    groups: Vec<Arc<Group<Cluster>>>,
    /// Where they come from a source.
    _endpoints: Option<Subscription>,
}

impl Env {
    pub fn new(stats: Arc<Stats>, tasks: Tasks, dial: Arc<dyn Dial>, sources: Arc<dyn Subscribe>) -> Self {
        let transport = transport::Env::new(stats.clone(), tasks.clone(), Arc::default());
        Self {
            ground: Arc::new(Ground::new(&stats, &tasks, &transport.connections, &dial)),
            transport,
            stats,
            tasks,
            resolvers: Arc::new(Resolvers::new(dial.clone())),
            dial,
            sources,
            random: Arc::new(ThreadRandom),
            intervals: Arc::default(),
            born: clock::now(),
        }
    }
}

impl Env {
    /// Connections are counted together with those of others.
    pub fn count_with(&mut self, connections: &Arc<AtomicU64>) {
        self.transport.connections = connections.clone();
        self.ground = Arc::new(Ground::new(&self.stats, &self.tasks, connections, &self.dial));
    }
}

impl Cluster {
    /// No task, no I/O. The endpoints of STATIC clusters are there at once.
    pub fn new(model: Arc<model::Cluster>, env: &Env) -> Result<Arc<Self>, BuildError> {
        let prefix: Arc<str> = stat_prefix(&model).into();
        let active = Active::wanted(&model).then(|| Box::new(Active::new(&model, env, &prefix)));
        let build = |socket| transport::build(socket, transport::Side::Upstream, &prefix, &env.transport);
        let matches = model.transport_socket_matches.iter().map(|one| {
            let stats = env.stats.block(format!("{prefix}.{}", one.name.replace(':', "_")));
            Ok(SocketMatch { stats, transport: build(&one.transport_socket)? })
        });
        let stats: Arc<ClusterStats> = env.stats.block(prefix.clone());
        let exchange = model.metadata_exchange.as_ref();
        let exchange = exchange.map(|model| Exchange::new(model, &env.transport.local, &env.stats));
        let mut cluster = Self {
            transport: build(&model.transport_socket)?,
            matches: matches.collect::<Result<_, BuildError>>()?,
            exchange: exchange.map(Arc::new),
            secrets: Box::default(),
            lb: ArcSwap::from_pointee(LbState::empty()),
            updating: Mutex::new(()),
            breaker: Breaker::new(&model, &stats, &env.stats, &prefix),
            pools: Pools::new(&model, env),
            filters: filters(&model)?.map(Box::new),
            stats,
            random: env.random.clone(),
            active,
            model,
        };
        let mut secrets = transport::secrets(cluster.transports());
        secrets.retain(|slot| !slot.is_settled());
        cluster.secrets = secrets.into();
        if cluster.model.discovery == Discovery::Static {
            let assignment = &cluster.model.load_assignment;
            cluster.update(&mut discovery::fixed::groups(assignment), &assignment.policy);
        }
        Ok(Arc::new(cluster))
    }

    /// What requests of HTTP to it pass, if it has such filters of its own.
    pub fn filters(&self) -> Option<&UpstreamFilters> {
        self.filters.as_deref()
    }

    /// Starts discovery, health checks and outlier detection where the model asks for them. They end with the
    /// cluster's last owner.
    pub fn start(self: &Arc<Self>, env: &Env) {
        let Some(active) = &self.active else { return };
        let mut running = discovery::start(self, env);
        if active.outlier.is_some() {
            running.groups.push(outlier::start(self, env));
        }
        if active.health.is_some() {
            running.own.push(health::start(self, env).abort_handle());
        }
        running.own.shrink_to_fit();
        running.groups.shrink_to_fit();
        *active.tasks.lock().unwrap_or_else(PoisonError::into_inner) = running;
    }

    /// Resolves once the first endpoints are known and, where they are checked, judged, and no secret of its
    /// transports is waited for.
    pub async fn warmed(&self) {
        settled(&self.secrets).await;
        if let Some(active) = &self.active {
            active.warm.wait().await;
        }
    }

    pub fn is_warm(&self) -> bool {
        self.active.as_ref().is_none_or(|active| active.warm.is_warm())
            && self.secrets.iter().all(|slot| slot.is_settled())
    }

    /// What is still to come before it is warm, for the log.
    pub fn waits_for(&self) -> Vec<String> {
        let lacks = |part| self.active.as_ref().is_some_and(|active| active.warm.lacks(part));
        let secrets = self.secrets.iter().filter(|slot| !slot.is_settled());
        let secrets = secrets.map(|slot| slot.to_string());
        let endpoints = lacks(Part::Endpoints).then(|| "its endpoints".to_owned());
        let health = lacks(Part::Health).then(|| "its first health checks".to_owned());
        secrets.chain(endpoints).chain(health).collect()
    }

    /// The next endpoint.
    pub fn choose(&self, want: &Want<'_>) -> Result<Arc<Host>, NoHost> {
        let chosen = match &self.model.discovery {
            Discovery::OriginalDst(how) => discovery::original_dst::host(how, want.original_dst),
            Discovery::Static | Discovery::StrictDns(_) | Discovery::LogicalDns(_) | Discovery::Eds(_) => {
                self.lb.load().choose(want, self)
            }
        };
        if chosen.is_err() {
            self.stats.upstream_cx_none_healthy.inc();
        }
        chosen
    }

    /// Every endpoint, by priority.
    pub fn hosts(&self) -> Vec<Arc<Host>> {
        self.lb.load().hosts().cloned().collect()
    }

    /// Of each of [`Self::hosts`] the weight of its locality, and what holds for all of them.
    pub fn assignment(&self) -> (Vec<u32>, AssignmentPolicy) {
        let state = self.lb.load();
        (state.locality_weights(), state.policy())
    }

    /// What makes the transports of connections to a host: of the first of `transport_socket_matches` that its
    /// metadata satisfies, else of the cluster's own socket. None for `raw_buffer`.
    pub fn transport(&self, host: &Host) -> Option<&Arc<dyn Factory>> {
        let index = (host.transport() as usize).checked_sub(1);
        match index.and_then(|index| self.matches.get(index)) {
            Some(matched) => matched.transport.as_ref(),
            None => self.transport.as_ref(),
        }
    }

    /// That socket as it was configured, with the name of its match.
    pub fn transport_socket(&self, host: &Host) -> (Option<&str>, &model::TransportSocket) {
        let index = (host.transport() as usize).checked_sub(1);
        match index.and_then(|index| self.model.transport_socket_matches.get(index)) {
            Some(matched) => (Some(&*matched.name), &matched.transport_socket),
            None => (None, &self.model.transport_socket),
        }
    }

    /// Every factory that a connection may be made by.
    pub fn transports(&self) -> impl Iterator<Item = &Arc<dyn Factory>> {
        self.transport.iter().chain(self.matches.iter().filter_map(|one| one.transport.as_ref()))
    }

    /// The category by whose `drop_overloads` a request is to be refused, by chance; HTTP routers ask, tcp_proxy
    /// does not, as in Envoy.
    pub fn drop_overload(&self) -> Option<Arc<str>> {
        self.lb.load().dropped(self.random.as_ref())
    }

    pub fn breaker(&self) -> &Arc<Breaker> {
        &self.breaker
    }

    pub fn pools(&self) -> &Pools {
        &self.pools
    }

    /// A place under the circuit breakers, or a counted refusal.
    pub fn admit(self: &Arc<Self>, host: &Arc<Host>) -> Result<Permit, Overflow> {
        Permit::new(self, host)
    }

    /// Connects: a place, a socket, a report. What tcp_proxy needs.
    pub async fn connect(
        self: &Arc<Self>,
        host: &Arc<Host>,
        dial: &dyn Dial,
        client: &Client<'_>,
    ) -> Result<Upstream, ConnectError> {
        let mut permit = self.admit(host)?;
        match connect::ready(self, host, dial, client).await {
            Ok(connected) => {
                permit.attach(host);
                self.report(host, Event::Connected(connected.took));
                Ok(Upstream { connected, permit })
            }
            Err(error) => {
                permit.fail();
                let timeout = self.count_failed(&error);
                self.report(host, if timeout { Event::ConnectTimeout } else { Event::ConnectFailed });
                Err(error)
            }
        }
    }

    /// By whom a connection was given up before it was ready. Says whether that was for its time.
    fn count_failed(&self, error: &ConnectError) -> bool {
        // A refusal counts as the other side's close; a peer that is not who it should be, as ours.
        if error.is_local() {
            self.stats.upstream_cx_destroy_local.inc();
        } else {
            self.stats.upstream_cx_destroy_remote.inc();
        }
        matches!(error, ConnectError::Timeout)
    }

    /// A connection for requests has failed. What that says of its host, the requests report that waited for it.
    pub fn connect_failed(&self, host: &Host, error: &ConnectError) {
        let timeout = self.count_failed(error);
        self.count_connect_failure(host, timeout);
    }

    fn count_connect_failure(&self, host: &Host, timeout: bool) {
        self.stats.upstream_cx_connect_fail.inc();
        host.stats.cx_connect_fail.inc();
        self.stats.upstream_cx_destroy.inc();
        if timeout {
            self.stats.upstream_cx_connect_timeout.inc();
        }
    }

    /// Counts what happened, and lets outlier detection judge.
    pub fn report(&self, host: &Arc<Host>, event: Event) {
        match event {
            Event::Connected(took) | Event::ConnectedForRequests(took) => {
                self.stats.upstream_cx_connect_ms.record(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
            }
            Event::ConnectFailed => self.count_connect_failure(host, false),
            Event::ConnectTimeout => self.count_connect_failure(host, true),
            Event::Status(status) if status >= 500 => host.stats.rq_error.inc(),
            Event::Status(_) => host.stats.rq_success.inc(),
            Event::RequestFailed => host.stats.rq_error.inc(),
            Event::RequestTimeout => host.stats.rq_timeout.inc(),
        }
        outlier::report(self, host, event);
    }
}

impl Cluster {
    fn eds_stats(&self) -> Option<&EdsStats> {
        self.active.as_ref()?.eds.as_deref()
    }
}

async fn settled(secrets: &[Arc<Slot>]) {
    for slot in secrets {
        slot.settled().await;
    }
}

/// A colon of a cluster's name is an underscore in its stats.
pub(crate) fn stat_prefix(model: &model::Cluster) -> String {
    let name = model.alt_stat_name.as_ref().unwrap_or(&model.name);
    format!("cluster.{}", name.replace(':', "_"))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some(active) = &mut self.active else { return };
        for task in &active.tasks.get_mut().unwrap_or_else(PoisonError::into_inner).own {
            task.abort();
        }
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("name", &self.model.name).finish_non_exhaustive()
    }
}

impl Active {
    fn wanted(model: &model::Cluster) -> bool {
        let discovers = match model.discovery {
            Discovery::Static | Discovery::OriginalDst(_) => false,
            Discovery::StrictDns(_) | Discovery::LogicalDns(_) | Discovery::Eds(_) => true,
        };
        discovers || model.outlier_detection.is_some() || !model.health_checks.is_empty()
    }

    fn new(model: &model::Cluster, env: &Env, prefix: &Arc<str>) -> Self {
        Self {
            warm: Warm::of(model),
            eds: matches!(model.discovery, Discovery::Eds(_)).then(|| env.stats.block(prefix.clone())),
            applied: Mutex::default(),
            outlier: model.outlier_detection.as_ref().map(|_| Detector::new(&env.stats, prefix)),
            health: (!model.health_checks.is_empty()).then(|| health::Checkers::new(&env.stats, prefix)),
            tasks: Mutex::default(),
        }
    }
}

//! A configuration as it runs: models -> [`Live`], what new connections find, replaced by one swap.
//!
//! [`World`] owns it: the clusters ([`clusters`], CDS), the listeners ([`listeners`], LDS) with their sockets
//! ([`door`]), and what listeners name besides ([`discovered`]). An update is compared with what there is; what is the
//! same is not touched, and what was replaced drains. What captured workloads run on without a configuration of
//! their own is built here too, from the same models: see [`builtin`].

pub mod bind;
pub mod builtin;
pub mod check;
mod clusters;
mod discovered;
mod door;
mod extension;
pub mod history;
mod listener;
mod listeners;
mod live;
mod resource;
mod routes;
mod stages;
mod start;
mod status;
mod subscription;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proxy_config::model;
use proxy_config::model::bootstrap::{Bootstrap, DynamicResources};
use proxy_config::model::listener::ListenAddress;
use proxy_config::xds::{Decoder, Kind};
use socket2::Socket;

pub use self::bind::{BindError, Sockets};
use self::clusters::Clusters;
pub use self::door::{Cell, Gate};
use self::history::History;
pub use self::listener::{Base, Chain, Listener};
use self::listeners::Listeners;
pub(crate) use self::live::enters;
pub use self::live::{Live, Snapshot};
pub use self::status::Status;
use crate::admin::view::{DynamicView, ListenerView, UnreadyView};
use crate::cluster::{self, Cluster};
use crate::http;
use crate::network::local_ratelimit::Buckets;
use crate::secret::Secrets;
use crate::telemetry::access_log::{self, Logger, Sinks};
use crate::transport;
use crate::xds::Subscribe;

/// A running configuration, and whatever changes it. Dropping it closes its listeners and asks for nothing more;
/// connections are not touched.
pub struct World {
    pub secrets: Arc<Secrets>,
    pub live: Arc<Live>,
    env: Arc<Env>,
    clusters: Arc<Clusters>,
    listeners: Arc<Listeners>,
    dynamic: DynamicResources,
}

/// What a configuration is run with.
pub struct Env {
    pub cluster: cluster::Env,
    pub sinks: Arc<Sinks>,
    pub buckets: Arc<Buckets>,
    pub http: Arc<http::Common>,
    /// Where LDS, CDS, RDS and ECDS come from; EDS and SDS too.
    pub sources: Arc<dyn Subscribe>,
    /// What resources may name of the bootstrap.
    pub decoder: Decoder,
    /// How long connections of what was replaced may go on.
    pub drain_time: Duration,
    /// What updates have changed.
    pub history: History,
}

/// What only shows when the parts of a configuration are built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    AccessLog(#[from] access_log::Error),
    #[error("{whose}: transport_socket: {source}")]
    Transport { whose: String, source: transport::BuildError },
    #[error("{whose}: {source}")]
    Cluster { whose: String, source: cluster::BuildError },
    #[error("{whose}: {source}")]
    Http { whose: String, source: http::BuildError },
}

/// What a configuration is built with.
pub struct Parts<'a> {
    pub cluster: &'a cluster::Env,
    pub sinks: &'a Sinks,
    pub buckets: &'a Buckets,
    pub http: &'a http::Common,
}

impl Parts<'_> {
    pub(crate) fn loggers(&self, models: &[model::AccessLog]) -> Result<Arc<[Logger]>, access_log::Error> {
        models.iter().map(|model| Logger::new(model, self.sinks)).collect()
    }
}

impl Env {
    pub fn parts(&self) -> Parts<'_> {
        Parts { cluster: &self.cluster, sinks: &self.sinks, buckets: &self.buckets, http: &self.http }
    }
}

impl World {
    /// Builds everything of the bootstrap; starts nothing.
    pub fn new(bootstrap: &Bootstrap, env: Env) -> Result<Self, BuildError> {
        let (env, live) = (Arc::new(env), Arc::<Live>::default());
        let clusters = Clusters::new(&bootstrap.clusters, &env, &live)?;
        let listeners = Listeners::new(&bootstrap.listeners, &env, &live, &clusters)?;
        Ok(Self {
            secrets: env.cluster.transport.secrets.clone(),
            live,
            clusters,
            listeners,
            dynamic: bootstrap.dynamic.clone(),
            env,
        })
    }

    /// Binds the sockets of the listeners that are there; those that come later have theirs from there too. All
    /// problems at once.
    pub fn bind(&self, sockets: Arc<dyn Sockets>) -> Result<(), Vec<BindError>> {
        self.listeners.bind(sockets)
    }

    /// The only socket of an address that one of its listeners has: it cannot be bound beside itself by the
    /// configuration that takes the place of this one.
    pub fn only_socket(&self, listener: &model::Listener, at: &ListenAddress) -> Option<Socket> {
        self.listeners.only_socket(listener, at)
    }

    /// Connections are accepted from now on, where sockets are bound.
    pub fn open(&self, gate: Gate) {
        self.listeners.open(gate);
    }

    pub fn history(&self) -> &History {
        &self.env.history
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.live.snapshot()
    }

    /// Where listeners listen now; those that wait for a hand-off only would there.
    pub fn listeners(&self) -> Vec<ListenerView> {
        self.listeners.views()
    }

    /// How many that were replaced still have connections, or time.
    pub fn draining(&self) -> usize {
        self.listeners.draining()
    }

    pub fn addresses(&self) -> Vec<(Arc<str>, SocketAddr)> {
        let each = |view: ListenerView| {
            let name = view.name;
            view.addresses.into_iter().map(move |address| (name.clone(), address))
        };
        self.listeners().into_iter().flat_map(each).collect()
    }

    /// Clusters, those that warm for the first time too.
    pub fn cluster_names(&self) -> Vec<Arc<str>> {
        self.clusters.names()
    }

    pub fn is_dynamic(&self, cluster: &str) -> bool {
        self.clusters.is_dynamic(cluster)
    }

    /// What listeners and clusters still wait for.
    pub fn unready(&self) -> Vec<UnreadyView> {
        let mut unready = self.listeners.unready();
        unready.extend(self.clusters.unready());
        unready
    }

    pub fn dynamic(&self, kind: Kind) -> Vec<DynamicView> {
        match kind {
            Kind::Cluster => self.clusters.dynamic(),
            Kind::Listener => self.listeners.dynamic(),
            Kind::Route => self.listeners.hub().routes(),
            // Each is shown with whom it belongs to.
            Kind::Endpoints | Kind::Secret => Vec::new(),
            Kind::Extension => self.listeners.hub().extensions(),
        }
    }

    /// The last version that was taken as a whole.
    pub fn version(&self, kind: Kind) -> Arc<str> {
        match kind {
            Kind::Cluster => self.clusters.subscribed.version(),
            Kind::Listener => self.listeners.subscribed.version(),
            Kind::Route | Kind::Extension | Kind::Endpoints | Kind::Secret => Arc::default(),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.listeners.stop();
        self.clusters.stop();
    }
}

fn build_cluster(model: Arc<model::Cluster>, env: &cluster::Env) -> Result<Arc<Cluster>, BuildError> {
    let name = model.name.clone();
    let built = Cluster::new(model, env);
    built.map_err(|source| BuildError::Cluster { whose: format!("cluster {name}"), source })
}

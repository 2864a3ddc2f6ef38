//! A configuration as it runs: model -> [`Snapshot`] of listeners and clusters, in one swap.
//!
//! A connection takes the snapshot that it finds and keeps it to its end. What captured workloads run on without
//! a configuration of their own is built here too, from the same models: see [`builtin`].

pub mod bind;
pub mod builtin;
pub mod check;
pub mod history;
mod listener;
mod status;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use proxy_config::model::listener::TrafficDirection;
use proxy_config::model::{self, Address};

pub use self::listener::{Chain, Listener};
pub use self::status::Status;
use crate::cluster::{Cluster, Env};
use crate::listener::select::Handoff;
use crate::net::Direction;
use crate::network::local_ratelimit::Buckets;
use crate::secret::Secrets;
use crate::telemetry::access_log::{self, Logger, Sinks};
use crate::transport;

/// A running configuration. Its parts change as a whole.
pub struct World {
    pub secrets: Arc<Secrets>,
    snapshot: ArcSwap<Snapshot>,
}

/// What one connection sees of it.
pub struct Snapshot {
    listeners: Vec<Arc<Listener>>,
    handoff: Handoff,
    /// Listeners that captured connections of a direction and a port enter by.
    captured: HashMap<(Direction, u16), usize>,
    clusters: HashMap<Arc<str>, Arc<Cluster>>,
}

/// What only shows when the parts of a configuration are built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    AccessLog(#[from] access_log::Error),
    #[error("{whose}: transport_socket: {source}")]
    Transport { whose: String, source: transport::BuildError },
}

/// What a configuration is built with.
pub struct Parts<'a> {
    pub cluster: &'a Env,
    pub sinks: &'a Sinks,
    pub buckets: &'a Buckets,
}

impl Parts<'_> {
    fn loggers(&self, models: &[model::AccessLog]) -> Result<Arc<[Logger]>, access_log::Error> {
        models.iter().map(|model| Logger::new(model, self.sinks)).collect()
    }
}

impl World {
    pub fn new(snapshot: Snapshot, secrets: Arc<Secrets>) -> Self {
        Self { secrets, snapshot: ArcSwap::from_pointee(snapshot) }
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }
}

impl Snapshot {
    /// Builds every part; starts none.
    pub fn build(
        listeners: impl IntoIterator<Item = Arc<model::Listener>>,
        clusters: impl IntoIterator<Item = Arc<model::Cluster>>,
        parts: &Parts<'_>,
    ) -> Result<Self, BuildError> {
        let clusters = clusters.into_iter().map(|model| {
            let name = model.name.clone();
            match Cluster::new(model, parts.cluster) {
                Ok(cluster) => Ok((name, cluster)),
                Err(source) => Err(BuildError::Transport { whose: format!("cluster {name}"), source }),
            }
        });
        let clusters = clusters.collect::<Result<_, _>>()?;
        let built = listeners.into_iter().map(|model| Listener::new(model, parts).map(Arc::new));
        let listeners = built.collect::<Result<Vec<_>, _>>()?;
        let handoff = Handoff::new(listeners.iter().map(|listener| listener.model.as_ref()).enumerate());
        let captured = captured(&listeners);
        Ok(Self { listeners, handoff, captured, clusters })
    }

    /// Resolves once nothing of what listeners need at the start is waited for any longer.
    pub async fn warmed(&self) {
        for cluster in self.clusters.values().filter(|cluster| cluster.model.wait_for_warm_on_init) {
            cluster.warmed().await;
        }
        for slot in self.listeners.iter().flat_map(|listener| listener.waits_for()) {
            slot.settled().await;
        }
    }

    /// What [`Self::warmed`] waits for, in words.
    pub fn waits_for(&self) -> Vec<String> {
        let clusters = self.clusters.values().filter(|cluster| cluster.model.wait_for_warm_on_init);
        let of_cluster = |cluster: &Arc<Cluster>| {
            let name = cluster.model.name.clone();
            cluster.waits_for().into_iter().map(move |what| format!("cluster {name} waits for {what}"))
        };
        let of_listener = |listener: &Arc<Listener>| {
            let name = listener.model.name.clone();
            listener.waits_for().into_iter().map(move |slot| format!("listener {name} waits for {slot}"))
        };
        clusters.flat_map(of_cluster).chain(self.listeners.iter().flat_map(of_listener)).collect()
    }

    pub fn start(&self, env: &Env) {
        self.clusters.values().for_each(|cluster| cluster.start(env));
    }

    pub fn listeners(&self) -> &[Arc<Listener>] {
        &self.listeners
    }

    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.values()
    }

    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(name)
    }

    /// The listener of an original destination: of exactly that address, else of its port on a wildcard address.
    pub fn handoff(&self, destination: SocketAddr) -> Option<&Arc<Listener>> {
        self.handoff.find(destination).and_then(|index| self.listeners.get(index))
    }

    /// The listener by which a workload's captured connections enter.
    pub fn captured(&self, direction: Direction, port: u16) -> Option<&Arc<Listener>> {
        self.captured.get(&(direction, port)).and_then(|index| self.listeners.get(*index))
    }
}

/// By what they say of themselves: a direction, or that they hand connections over, which only outbound ones do.
fn captured(listeners: &[Arc<Listener>]) -> HashMap<(Direction, u16), usize> {
    let mut table = HashMap::new();
    for (index, listener) in listeners.iter().enumerate() {
        let direction = match listener.model.traffic_direction {
            TrafficDirection::Outbound => Direction::Outbound,
            TrafficDirection::Inbound => Direction::Inbound,
            TrafficDirection::Unspecified if listener.model.use_original_dst => Direction::Outbound,
            TrafficDirection::Unspecified => continue,
        };
        // An outbound listener of a service is bound to the service's address or not at all.
        if !listener.model.bind_to_port {
            continue;
        }
        for bound in &listener.model.addresses {
            if let Address::Ip(address) = bound.address {
                table.entry((direction, address.port())).or_insert(index);
            }
        }
    }
    table
}

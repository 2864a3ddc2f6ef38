//! What new connections find: the listeners and the clusters of now, replaced by one swap.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use foldhash::fast::RandomState;
use proxy_config::model::listener::TrafficDirection;
use proxy_config::model::{self, Address};
use tokio::runtime::Handle;

use super::{BuildError, Listener, Parts};
use crate::cluster::{Cluster, Env};
use crate::listener::select::Handoff;
use crate::net::Direction;
use crate::task::Tasks;

/// The snapshot of now. A connection asks it for a listener and for a cluster when it needs them, and keeps what it
/// got, not the snapshot.
#[derive(Default)]
pub struct Live {
    snapshot: ArcSwap<Snapshot>,
    /// Held while the snapshot is replaced. Snapshots that somebody may still be reading: who reads is never the one
    /// that has to free thousands of clusters.
    retired: Mutex<Vec<Arc<Snapshot>>>,
}

/// The listeners and clusters of one moment. Cheap to clone.
#[derive(Clone, Default)]
pub struct Snapshot {
    listeners: Arc<Listeners>,
    clusters: Arc<Clusters>,
}

#[derive(Default)]
struct Listeners {
    all: Vec<Arc<Listener>>,
    handoff: Handoff,
    /// Listeners that captured connections of a direction and a port enter by.
    captured: HashMap<(Direction, u16), usize>,
}

/// Its keys are the configuration's: no peer can make them collide.
pub(super) type Clusters = HashMap<Arc<str>, Arc<Cluster>, RandomState>;

/// How long after a swap nobody reads what was there before.
const QUIET: Duration = Duration::from_secs(1);
/// So many may wait for that: an update is in force before what it replaces is freed.
const MOST_RETIRED: usize = 16;

impl Live {
    pub fn of(snapshot: Snapshot) -> Self {
        Self { snapshot: ArcSwap::from_pointee(snapshot), retired: Mutex::default() }
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// For a look that ends at once.
    pub fn now(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    pub fn cluster(&self, name: &str) -> Option<Arc<Cluster>> {
        self.now().cluster(name).cloned()
    }

    pub(super) fn publish_clusters(self: &Arc<Self>, clusters: Clusters, tasks: &Tasks) {
        let clusters = Arc::new(clusters);
        self.publish(|before| Snapshot { clusters, listeners: before.listeners.clone() }, tasks);
    }

    pub(super) fn publish_listeners(self: &Arc<Self>, listeners: Vec<Arc<Listener>>, tasks: &Tasks) {
        let listeners = Arc::new(Listeners::new(listeners));
        self.publish(|before| Snapshot { listeners, clusters: before.clusters.clone() }, tasks);
    }

    fn publish(self: &Arc<Self>, next: impl FnOnce(&Snapshot) -> Snapshot, tasks: &Tasks) {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        let next = Arc::new(next(&self.snapshot.load()));
        retired.push(self.snapshot.swap(next));
        let waiting = retired.len() > 1;
        if retired.len() > MOST_RETIRED {
            retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        }
        // Where the end comes on a thread without a runtime, the last of them go with this.
        if !waiting && !retired.is_empty() && Handle::try_current().is_ok() {
            tasks.spawn("retired snapshots", sweep(self.clone()));
        }
    }

    /// Says whether nothing is left.
    fn free(&self) -> bool {
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        retired.is_empty()
    }
}

async fn sweep(live: Arc<Live>) {
    loop {
        tokio::time::sleep(QUIET).await;
        if live.free() {
            return;
        }
    }
}

impl Listeners {
    fn new(all: Vec<Arc<Listener>>) -> Self {
        let handoff = Handoff::new(all.iter().map(|listener| listener.model.as_ref()).enumerate());
        Self { captured: captured(&all), handoff, all }
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
            Ok((name, super::build_cluster(model, parts.cluster)?))
        });
        let clusters = clusters.collect::<Result<_, BuildError>>()?;
        let built = listeners.into_iter().map(|model| Listener::new(model, parts).map(Arc::new));
        let listeners = Listeners::new(built.collect::<Result<_, _>>()?);
        Ok(Self { listeners: Arc::new(listeners), clusters: Arc::new(clusters) })
    }

    pub fn start(&self, env: &Env) {
        self.clusters.values().for_each(|cluster| cluster.start(env));
    }

    pub fn listeners(&self) -> &[Arc<Listener>] {
        &self.listeners.all
    }

    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.values()
    }

    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(name)
    }

    /// The listener of an original destination: of exactly that address, else of its port on a wildcard address.
    pub fn handoff(&self, destination: SocketAddr) -> Option<&Arc<Listener>> {
        self.listeners.handoff.find(destination).and_then(|index| self.listeners.all.get(index))
    }

    /// The listener by which a workload's captured connections enter.
    pub fn captured(&self, direction: Direction, port: u16) -> Option<&Arc<Listener>> {
        let index = self.listeners.captured.get(&(direction, port))?;
        self.listeners.all.get(*index)
    }
}

/// The direction of captured connections that may enter by a listener, by what it says of itself: a direction, or that
/// it hands connections over, which only outbound ones do.
pub(crate) fn enters(listener: &model::Listener) -> Option<Direction> {
    // An outbound listener of a service is bound to the service's address or not at all.
    if !listener.bind_to_port {
        return None;
    }
    match listener.traffic_direction {
        TrafficDirection::Outbound => Some(Direction::Outbound),
        TrafficDirection::Inbound => Some(Direction::Inbound),
        TrafficDirection::Unspecified => listener.use_original_dst.then_some(Direction::Outbound),
    }
}

fn captured(listeners: &[Arc<Listener>]) -> HashMap<(Direction, u16), usize> {
    let mut table = HashMap::new();
    for (index, listener) in listeners.iter().enumerate() {
        let Some(direction) = enters(&listener.model) else { continue };
        for bound in &listener.model.addresses {
            if let Address::Ip(address) = bound.address {
                table.entry((direction, address.port())).or_insert(index);
            }
        }
    }
    table
}

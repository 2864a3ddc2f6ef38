//! What new connections find: the listeners and the clusters of now, replaced by one swap.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use proxy_config::model::listener::TrafficDirection;
use proxy_config::model::{self, Address};
use tokio::runtime::Handle;

use super::{BuildError, Listener, Parts};
use crate::cluster::{Cluster, Env};
use crate::listener::select::{Claims, Handoff};
use crate::net::Direction;
use crate::shards::Sharded;
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
    listeners: Listeners,
    clusters: Clusters,
}

/// Each table is copied in parts: an update costs what it changes.
#[derive(Clone, Default)]
struct Listeners {
    by_rank: Sharded<u64, Arc<Listener>>,
    handoff: Handoff<Arc<Listener>>,
    /// Listeners that captured connections of a direction and a port enter by.
    captured: Arc<HashMap<(Direction, u16), Claims<Arc<Listener>>>>,
}

type Clusters = Sharded<Arc<str>, Arc<Cluster>>;

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

    /// Clusters that have come, others in the place of those of their names, and names that are gone.
    pub(super) fn publish_clusters(
        self: &Arc<Self>,
        changes: impl IntoIterator<Item = (Arc<str>, Option<Arc<Cluster>>)>,
        tasks: &Tasks,
    ) {
        let next = |before: &Snapshot| {
            let mut next = before.clone();
            for (name, cluster) in changes {
                match cluster {
                    Some(cluster) => next.clusters.insert(name, cluster),
                    None => next.clusters.remove(&name),
                };
            }
            next
        };
        self.publish(next, tasks);
    }

    /// The same of listeners, by rank: of two at one address, the one of the lower rank is found.
    pub(super) fn publish_listeners(
        self: &Arc<Self>,
        changes: impl IntoIterator<Item = (u64, Option<Arc<Listener>>)>,
        tasks: &Tasks,
    ) {
        let next = |before: &Snapshot| {
            let mut next = before.clone();
            for (rank, listener) in changes {
                next.listeners.set(rank, listener);
            }
            next
        };
        self.publish(next, tasks);
    }

    /// No listener is left.
    pub(super) fn end_listeners(self: &Arc<Self>, tasks: &Tasks) {
        self.publish(|before| Snapshot { clusters: before.clusters.clone(), ..Snapshot::default() }, tasks);
    }

    /// No cluster is left.
    pub(super) fn end_clusters(self: &Arc<Self>, tasks: &Tasks) {
        self.publish(|before| Snapshot { listeners: before.listeners.clone(), ..Snapshot::default() }, tasks);
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
    /// What has that rank from now on.
    fn set(&mut self, rank: u64, listener: Option<Arc<Listener>>) {
        let before = match &listener {
            Some(listener) => self.by_rank.insert(rank, listener.clone()),
            None => self.by_rank.remove(&rank),
        };
        if let Some(before) = before {
            self.handoff.remove(rank, &before.model);
            self.capture(&before.model, |claims| claims?.without(rank));
        }
        if let Some(listener) = listener {
            self.handoff.insert(rank, &listener.model, &listener);
            self.capture(&listener.model, |claims| Some(Claims::with(claims, rank, listener.clone())));
        }
    }

    /// Those by which captured connections enter where this one says it does.
    fn capture(
        &mut self,
        model: &model::Listener,
        change: impl Fn(Option<Claims<Arc<Listener>>>) -> Option<Claims<Arc<Listener>>>,
    ) {
        let Some(direction) = enters(model) else { return };
        for bound in &model.addresses {
            let Address::Ip(address) = bound.address else { continue };
            let captured = Arc::make_mut(&mut self.captured);
            let key = (direction, address.port());
            if let Some(claims) = change(captured.remove(&key)) {
                captured.insert(key, claims);
            }
        }
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
        let mut all = Listeners::default();
        for (rank, model) in (0..).zip(listeners) {
            all.set(rank, Some(Arc::new(Listener::new(model, parts)?)));
        }
        Ok(Self { listeners: all, clusters })
    }

    pub fn start(&self, env: &Env) {
        self.clusters.values().for_each(|cluster| cluster.start(env));
    }

    /// In the order in which they came.
    pub fn listeners(&self) -> Vec<&Arc<Listener>> {
        let mut all: Vec<_> = self.listeners.by_rank.iter().collect();
        all.sort_unstable_by_key(|(rank, _)| **rank);
        all.into_iter().map(|(_, listener)| listener).collect()
    }

    /// How many listeners and clusters there are.
    pub fn size(&self) -> (usize, usize) {
        (self.listeners.by_rank.len(), self.clusters.len())
    }

    pub fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.clusters.values()
    }

    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(name)
    }

    /// The listener of an original destination: of exactly that address, else of its port on a wildcard address.
    pub fn handoff(&self, destination: SocketAddr) -> Option<&Arc<Listener>> {
        self.listeners.handoff.find(destination)
    }

    /// The listener by which a workload's captured connections enter.
    pub fn captured(&self, direction: Direction, port: u16) -> Option<&Arc<Listener>> {
        self.listeners.captured.get(&(direction, port))?.first()
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

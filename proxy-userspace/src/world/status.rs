//! What the admin API shows of a running configuration, and what it may do to it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::body::Bytes;
use proxy_config::load::Loaded;
use proxy_config::model::bootstrap::{DynamicResources, Node, Resource, StatsConfig};
use proxy_config::model::listener::TrafficDirection;
use proxy_config::model::{self, Address};
use rustls::pki_types::UnixTime;
use tokio::sync::Notify;

use super::{Snapshot, World, bind};
use crate::admin::view::{
    ClusterView, DrainListeners, Health, HostCounts, HostView, Kind, ListenerView, ResourceView, SecretView,
    State, SuccessRates, UnreadyView,
};
use crate::admin::{Memory, View};
use crate::clock::{self, Start};
use crate::cluster::{HealthFlag, Host};
use crate::drain::{Drain, Watch};
use crate::secret::Slot;
use crate::task::Tasks;
use crate::telemetry::access_log::Sinks;
use crate::telemetry::stats::{ClusterManagerStats, ListenerManagerStats, RuntimeStats, ServerStats, Stats};
use crate::transport::tls::{CertificateSet, certificate};

/// The stats of the server as a whole, under Envoy's names.
struct Blocks {
    server: Arc<ServerStats>,
    listeners: Arc<ListenerManagerStats>,
    clusters: Arc<ClusterManagerStats>,
    runtime: Arc<RuntimeStats>,
}

impl Blocks {
    fn new(stats: &Stats, world: Option<&World>, loaded: Option<&Loaded>, workers: usize) -> Self {
        let blocks = Self {
            server: stats.block("server"),
            listeners: stats.block("listener_manager"),
            clusters: stats.block("cluster_manager"),
            runtime: stats.block("runtime"),
        };
        blocks.server.concurrency.set(workers as u64);
        let layers = loaded.map_or(0, |loaded| loaded.bootstrap.runtime.len());
        blocks.runtime.num_layers.set(layers as u64);
        if let Some(snapshot) = world.map(World::snapshot) {
            let (listeners, clusters) =
                (snapshot.listeners().len() as u64, snapshot.clusters().count() as u64);
            blocks.listeners.listener_added.add(listeners);
            blocks.listeners.listener_create_success.add(listeners);
            blocks.listeners.total_listeners_active.set(listeners);
            blocks.clusters.cluster_added.add(clusters);
            blocks.clusters.active_clusters.set(clusters);
        }
        blocks
    }
}

/// The running configuration as people see it; without one, the daemon alone.
pub struct Status {
    start: Start,
    world: Option<Arc<World>>,
    loaded: Option<Loaded>,
    sinks: Arc<Sinks>,
    tasks: Tasks,
    command_line: serde_json::Value,
    drain_time: Duration,
    bound: Mutex<Vec<ListenerView>>,
    blocks: Blocks,
    /// Listeners of inbound traffic, and the others: `/drain_listeners?inboundonly` ends the first.
    inbound: Drain,
    others: Drain,
    unhealthy: AtomicBool,
    warm: AtomicBool,
    quit: Arc<Notify>,
}

impl Status {
    pub fn new(
        world: Option<Arc<World>>,
        loaded: Option<Loaded>,
        sinks: Arc<Sinks>,
        (tasks, stats): (Tasks, &Stats),
        drain_time: Duration,
        (workers, command_line): (usize, serde_json::Value),
    ) -> Self {
        Self {
            blocks: Blocks::new(stats, world.as_deref(), loaded.as_ref(), workers),
            start: Start::new(),
            warm: AtomicBool::new(false),
            world,
            loaded,
            sinks,
            tasks,
            command_line,
            drain_time,
            bound: Mutex::default(),
            inbound: Drain::new(),
            others: Drain::new(),
            unhealthy: AtomicBool::new(false),
            quit: Arc::default(),
        }
    }

    /// What a listener's sockets and connections follow.
    pub fn watch(&self, listener: &model::Listener) -> Watch {
        match listener.traffic_direction {
            TrafficDirection::Inbound => self.inbound.watch(),
            TrafficDirection::Outbound | TrafficDirection::Unspecified => self.others.watch(),
        }
    }

    pub fn bound(&self, sockets: &[bind::Bound]) {
        let mut by_name: HashMap<Arc<str>, usize> = HashMap::new();
        let mut views: Vec<ListenerView> = Vec::new();
        for socket in sockets {
            let name = &socket.listener.model.name;
            let index = *by_name.entry(name.clone()).or_insert_with(|| {
                views.push(ListenerView { name: name.clone(), addresses: Vec::new() });
                views.len() - 1
            });
            if let Some(view) = views.get_mut(index)
                && !view.addresses.contains(&socket.local)
            {
                view.addresses.push(socket.local);
            }
        }
        // Those that wait for a hand-off, and those that a workload's captured connections enter by, have no socket
        // of their own, but are there.
        let listeners = self.config().map(|config| config.listeners.as_slice()).unwrap_or_default();
        let without = |model: &&Arc<model::Listener>| !by_name.contains_key(&model.name);
        for model in listeners.iter().map(|listener| &listener.model).filter(without) {
            let addresses = model.addresses.iter().filter_map(|at| match at.address {
                Address::Ip(address) => Some(address),
                Address::Host(_) | Address::Pipe { .. } => None,
            });
            views.push(ListenerView { name: model.name.clone(), addresses: addresses.collect() });
        }
        *self.bound.lock().unwrap_or_else(PoisonError::into_inner) = views;
    }

    /// Where the configuration's listeners listen: name and address.
    pub fn addresses(&self) -> Vec<(Arc<str>, SocketAddr)> {
        let each = |view: ListenerView| {
            let name = view.name;
            view.addresses.into_iter().map(move |address| (name.clone(), address))
        };
        self.listeners().into_iter().flat_map(each).collect()
    }

    /// Every cluster knows its endpoints: connections are accepted.
    pub fn set_warm(&self) {
        self.warm.store(true, Ordering::Relaxed);
        self.blocks.listeners.workers_started.set(1);
    }

    /// `/quitquitquit` was asked for: end at once.
    pub async fn quit_asked(&self) {
        self.quit.notified().await;
    }

    /// Lets all listeners go and waits for their connections, no longer than the drain time.
    pub async fn drain(&self) {
        self.drain_within(self.drain_time).await;
    }

    pub async fn drain_within(&self, time: Duration) {
        self.unhealthy.store(true, Ordering::Relaxed);
        let (inbound, others) = tokio::join!(self.inbound.drain(time), self.others.drain(time));
        if inbound + others > 0 {
            log::info!("{} connections were cut after {time:?}", inbound + others);
        }
    }

    /// Waits until what the access logs were told is written.
    pub fn flush(&self, deadline: Duration) {
        if !self.sinks.flush(deadline) {
            log::warn!("access logs: not everything could be written");
        }
    }

    fn draining_listeners(&self) -> u64 {
        let Some(config) = self.config() else { return 0 };
        let drained = |listener: &&Resource<model::Listener>| match listener.model.traffic_direction {
            TrafficDirection::Inbound => self.inbound.is_draining(),
            TrafficDirection::Outbound | TrafficDirection::Unspecified => self.others.is_draining(),
        };
        config.listeners.iter().filter(drained).count() as u64
    }

    /// Of all that `/certs` shows; Envoy's word for never is the greatest number of 32 bits.
    fn days_until_first_expiration(&self) -> u64 {
        let sets = self.certificates();
        let all = sets.iter().flat_map(|set| set.ca.iter().chain(&set.chain));
        let now = UnixTime::since_unix_epoch(clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default());
        let days = all.map(|(_, facts)| certificate::days_until_expiration(facts, now));
        days.min().unwrap_or(u32::MAX.into())
    }

    fn config(&self) -> Option<&model::Bootstrap> {
        self.loaded.as_ref().map(|loaded| &loaded.bootstrap)
    }

    fn static_resource<T>(&self, name: &Arc<str>, resource: &Resource<T>) -> ResourceView {
        ResourceView {
            name: name.clone(),
            raw: resource.raw.clone(),
            version: "".into(),
            updated: self.start.wall,
        }
    }
}

impl Status {
    fn secret(&self, slot: &Slot) -> SecretView {
        let (name, loaded) = (slot.name.clone(), slot.content());
        let resource = match slot.answer() {
            Some(answer) => ResourceView {
                name,
                raw: answer.secret.raw.clone(),
                version: answer.version.clone(),
                updated: answer.received,
            },
            // Envoy's word for what has not come at all.
            None => ResourceView {
                name,
                raw: [].as_slice().into(),
                version: "uninitialized".into(),
                updated: self.start.wall,
            },
        };
        SecretView { resource, loaded }
    }
}

impl View for Status {
    fn state(&self) -> State {
        if self.unhealthy.load(Ordering::Relaxed) {
            State::Draining
        } else if self.warm.load(Ordering::Relaxed) {
            State::Live
        } else {
            State::PreInitializing
        }
    }

    fn uptime(&self) -> Duration {
        clock::now() - self.start.at
    }

    fn listeners(&self) -> Vec<ListenerView> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn cluster_names(&self) -> Vec<Arc<str>> {
        let clusters = self.config().map(|config| config.clusters.as_slice()).unwrap_or_default();
        clusters.iter().map(|cluster| cluster.model.name.clone()).collect()
    }

    fn cluster(&self, name: &str) -> Option<ClusterView> {
        let snapshot = self.world.as_ref()?.snapshot();
        let cluster = snapshot.cluster(name)?;
        let (locality_weights, policy) = cluster.assignment();
        Some(ClusterView {
            model: cluster.model.clone(),
            added_via_api: false,
            locality_weights,
            policy,
            hosts: cluster.hosts().iter().map(view).collect(),
            success_rates: SuccessRates::default(),
        })
    }

    fn bootstrap(&self) -> (Bytes, SystemTime) {
        let raw = self.loaded.as_ref().map(|loaded| loaded.raw.clone());
        (raw.unwrap_or_default(), self.start.wall)
    }

    fn resources(&self, kind: Kind) -> Vec<ResourceView> {
        let Some(config) = self.config() else { return Vec::new() };
        match kind {
            Kind::StaticCluster => {
                config.clusters.iter().map(|c| self.static_resource(&c.model.name, c)).collect()
            }
            Kind::StaticListener => {
                config.listeners.iter().map(|l| self.static_resource(&l.model.name, l)).collect()
            }
            Kind::StaticSecret => {
                config.secrets.iter().map(|s| self.static_resource(&s.model.name, s)).collect()
            }
        }
    }

    fn is_dynamic(&self) -> bool {
        self.config().is_some_and(|config| config.dynamic != DynamicResources::default())
    }

    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.world.as_ref().map(|world| world.snapshot())
    }

    fn secrets(&self) -> Vec<SecretView> {
        let slots = self.world.as_ref().map(|world| world.secrets.dynamic()).unwrap_or_default();
        slots.iter().map(|slot| self.secret(slot)).collect()
    }

    fn unready(&self) -> Vec<UnreadyView> {
        let Some(snapshot) = self.world.as_ref().map(|world| world.snapshot()) else { return Vec::new() };
        let unready = snapshot.listeners().iter().map(|listener| UnreadyView {
            listener: listener.model.name.clone(),
            secrets: listener.waits_for().iter().map(|slot| slot.name.clone()).collect(),
        });
        unready.filter(|listener| !listener.secrets.is_empty()).collect()
    }

    fn certificates(&self) -> Vec<CertificateSet> {
        let Some(snapshot) = self.world.as_ref().map(|world| world.snapshot()) else { return Vec::new() };
        let downstream = snapshot.listeners().iter().flat_map(|listener| listener.transports());
        let mut clusters: Vec<_> = snapshot.clusters().collect();
        clusters.sort_by_key(|cluster| &cluster.model.name);
        let upstream = clusters.into_iter().flat_map(|cluster| cluster.transports());
        let mut found = Vec::new();
        downstream.chain(upstream).for_each(|transport| transport.certificates(&mut found));
        found
    }

    fn node(&self) -> Node {
        self.config().map(|config| config.node.clone()).unwrap_or_default()
    }

    fn stats_config(&self) -> StatsConfig {
        self.config().map(|config| config.stats.clone()).unwrap_or_default()
    }

    fn runtime(&self) -> BTreeMap<String, model::metadata::Struct> {
        self.config().map(|config| config.runtime.clone()).unwrap_or_default()
    }

    fn command_line(&self) -> serde_json::Value {
        self.command_line.clone()
    }

    fn drain_listeners(&self, how: DrainListeners) {
        let (inbound, others) = (self.inbound.starter(), self.others.starter());
        let stop = move || {
            inbound.start();
            if !how.inbound_only {
                others.start();
            }
        };
        if !how.graceful {
            stop();
        } else if !how.skip_exit {
            // Envoy goes on accepting for the drain time.
            let time = self.drain_time;
            self.tasks.spawn("drain listeners", async move {
                tokio::time::sleep(time).await;
                stop();
            });
        }
    }

    fn quit(&self) {
        let quit = self.quit.clone();
        self.tasks.spawn("quit", async move {
            // Whoever asked hears the answer first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            quit.notify_one();
        });
    }

    fn set_healthy(&self, healthy: bool) {
        self.unhealthy.store(!healthy, Ordering::Relaxed);
    }

    fn reopen_logs(&self) {
        self.sinks.reopen();
    }

    fn refresh_stats(&self) {
        let Blocks { server, listeners, clusters, .. } = &self.blocks;
        let state = self.state();
        server.state.set(state.number());
        server.live.set(u64::from(state == State::Live));
        server.uptime.set(self.uptime().as_secs());
        let memory = Memory::read();
        server.memory_allocated.set(memory.data);
        server.memory_heap_size.set(memory.data);
        server.memory_physical_size.set(memory.resident);
        server.total_connections.set((self.inbound.live() + self.others.live()) as u64);
        let Some(snapshot) = self.world.as_ref().map(|world| world.snapshot()) else { return };
        let mut warming = 0;
        for cluster in snapshot.clusters() {
            let is_warming = u64::from(!cluster.is_warm());
            cluster.stats.warming_state.set(is_warming);
            warming += is_warming;
        }
        clusters.warming_clusters.set(warming);
        server.days_until_first_cert_expiring.set(self.days_until_first_expiration());
        listeners.total_listeners_warming.set(0);
        let draining = self.draining_listeners();
        if draining > 0 {
            listeners.total_listeners_draining.set(draining);
        }
    }
}

fn view(host: &Arc<Host>) -> HostView {
    let stats = &host.stats;
    let has = |flag| host.has(flag);
    let locality = &host.locality;
    HostView {
        address: host.address(),
        hostname: host.hostname.clone(),
        health: Health {
            failed_active_hc: has(HealthFlag::FAILED_ACTIVE_HC),
            failed_outlier_check: has(HealthFlag::FAILED_OUTLIER_CHECK),
            failed_eds_health: has(HealthFlag::FAILED_EDS_HEALTH),
            degraded_active_hc: has(HealthFlag::DEGRADED_ACTIVE_HC),
            degraded_eds_health: has(HealthFlag::DEGRADED_EDS_HEALTH),
            pending_dynamic_removal: has(HealthFlag::PENDING_DYNAMIC_REMOVAL),
            pending_active_hc: has(HealthFlag::PENDING_ACTIVE_HC),
            excluded_via_immediate_hc_fail: has(HealthFlag::EXCLUDED_VIA_IMMEDIATE_HC_FAIL),
            active_hc_timeout: has(HealthFlag::ACTIVE_HC_TIMEOUT),
            eds_status_draining: has(HealthFlag::EDS_STATUS_DRAINING),
        },
        weight: host.weight(),
        region: locality.region.clone(),
        zone: locality.zone.clone(),
        sub_zone: locality.sub_zone.clone(),
        canary: host.canary(),
        priority: host.priority(),
        success_rate: host.success_rate(),
        local_origin_success_rate: host.local_origin_success_rate(),
        metadata: Some(host.metadata()).filter(|metadata| !metadata.is_empty()),
        stats: HostCounts {
            cx_connect_fail: stats.cx_connect_fail.value(),
            cx_total: stats.cx_total.value(),
            cx_active: stats.cx_active.value(),
            rq_error: stats.rq_error.value(),
            rq_success: stats.rq_success.value(),
            rq_timeout: stats.rq_timeout.value(),
            rq_total: stats.rq_total.value(),
            rq_active: stats.rq_active.value(),
            rq_pending_active: 0,
        },
    }
}

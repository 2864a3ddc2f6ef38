//! LDS: the listeners that come and go.
//!
//! A listener that is said again is not touched. A changed one is built beside the old one, waits for what it needs,
//! and then takes over its sockets ([`super::door`]): the old one's connections drain. Where nothing but filter chains
//! has changed, the connections of the others go on as if nothing had happened.

mod place;
mod update;

use std::collections::{BTreeMap, HashMap};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use proxy_config::model;
use proxy_config::model::address::Address;
use proxy_config::model::bootstrap::Resource;
use proxy_config::model::config_source::ConfigSource;
use proxy_config::model::listener::ListenAddress;
use proxy_config::xds::Kind;
use socket2::Socket;
use tokio::sync::watch;

use super::bind::{BindError, Sockets};
use super::clusters::Clusters;
use super::discovered::{Hub, Wants};
use super::door::{Door, Doors, Gate};
use super::resource::{self, Origin};
use super::stages::Stages;
use super::subscription::Subscribed;
use super::{BuildError, Env, Listener, Live, routes};
use crate::admin::view::{DynamicView, ErrorView, ListenerView, ResourceView, Unready, UnreadyView};
use crate::http;
use crate::task::Tasks;
use crate::telemetry::stats::ListenerManagerStats;
use crate::xds::{Consumer, Names, Subscription};

pub(super) struct Listeners {
    env: Arc<Env>,
    live: Arc<Live>,
    hub: Arc<Hub>,
    clusters: Arc<Clusters>,
    pub(super) subscribed: Subscribed,
    stats: Arc<ListenerManagerStats>,
    state: Mutex<State>,
    /// Moves whenever a listener takes its place, or goes.
    moved: watch::Sender<u64>,
    me: Weak<Self>,
}

#[derive(Default)]
struct State {
    /// In the order in which they came.
    entries: BTreeMap<u64, Entry>,
    /// Of which another listener has the place, or none, since it was published.
    moved: Vec<u64>,
    by_name: HashMap<Arc<str>, u64>,
    by_address: HashMap<Address, u64>,
    doors: Doors,
    draining: Vec<Draining>,
    errors: HashMap<Arc<str>, ErrorView>,
    /// Where sockets come from; none before the first are bound.
    sockets: Option<Arc<dyn Sockets>>,
    /// There once connections are accepted.
    gate: Option<Gate>,
    /// Of entries and of stages.
    last: u64,
    subscription: Option<Subscription>,
}

struct Entry {
    name: Arc<str>,
    stages: Stages<Stage>,
}

impl Deref for Entry {
    type Target = Stages<Stage>;

    fn deref(&self) -> &Stages<Stage> {
        &self.stages
    }
}

impl DerefMut for Entry {
    fn deref_mut(&mut self) -> &mut Stages<Stage> {
        &mut self.stages
    }
}

struct Stage {
    /// As it was said. What runs may be another: extensions that are discovered are filled in.
    origin: Origin<model::Listener>,
    listener: Arc<Listener>,
    wants: Wants,
    doors: Vec<Arc<Door>>,
}

/// A listener whose connections have until the end of the drain time.
struct Draining {
    generation: u64,
    view: ResourceView,
}

impl Stage {
    fn is_warm(&self) -> bool {
        self.wants.is_settled()
            && self.listener.waits_for().is_empty()
            && !self.listener.documents().any(|document| document.is_awaited())
    }

    fn waits_for(&self) -> Vec<String> {
        let secrets = self.listener.waits_for().into_iter().map(|slot| slot.to_string());
        let documents = self.listener.documents().filter(|document| document.is_awaited());
        let documents = documents.map(|document| document.uri().to_owned());
        secrets.chain(self.wants.waits_for()).chain(documents).collect()
    }
}

impl Listeners {
    /// With the bootstrap's, whose sockets are not bound yet.
    pub(super) fn new(
        fixed: &[Resource<model::Listener>],
        env: &Arc<Env>,
        live: &Arc<Live>,
        clusters: &Arc<Clusters>,
    ) -> Result<Arc<Self>, BuildError> {
        let stats = &env.cluster.stats;
        let this = Arc::new_cyclic(|me: &Weak<Self>| Self {
            env: env.clone(),
            live: live.clone(),
            hub: Hub::new(env, me.clone(), clusters),
            clusters: clusters.clone(),
            subscribed: Subscribed::new("lds".to_owned(), Kind::Listener, stats, "listener_manager.lds"),
            stats: ListenerManagerStats::of(stats),
            state: Mutex::default(),
            moved: watch::Sender::new(0),
            me: me.clone(),
        });
        for resource in fixed {
            this.add_fixed(resource)?;
        }
        this.publish(&mut this.lock());
        Ok(this)
    }

    fn add_fixed(&self, resource: &Resource<model::Listener>) -> Result<(), BuildError> {
        let origin = Origin::new(
            Resource { model: resource.model.clone(), raw: resource.raw.clone() },
            Arc::default(),
        );
        routes::inline(&resource.model, &self.clusters).map_err(|why| BuildError::Http {
            whose: format!("listener {}", resource.model.name),
            source: http::BuildError(why),
        })?;
        let wants = self.hub.wants(&origin.resource.model);
        let listener = Arc::new(Listener::new(wants.effective(&origin.resource.model), &self.env.parts())?);
        let stages = Stages::fixed(Stage { origin, listener, wants, doors: Vec::new() });
        let mut state = self.lock();
        state.insert(Entry { name: resource.model.name.clone(), stages });
        self.stats.listener_added.inc();
        Ok(())
    }

    /// Binds the sockets of those that are there. All problems at once.
    pub(super) fn bind(&self, sockets: Arc<dyn Sockets>) -> Result<(), Vec<BindError>> {
        let mut state = self.lock();
        let State { entries, doors, .. } = &mut *state;
        let mut errors = Vec::new();
        for stage in entries.values_mut().filter_map(|entry| entry.active.as_mut()) {
            match doors.open(&stage.listener, sockets.as_ref()) {
                Ok(open) => stage.doors = open,
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        state.sockets = Some(sockets);
        Ok(())
    }

    pub(super) fn subscribe(self: &Arc<Self>, source: &ConfigSource) {
        self.subscribed.begin(source);
        let consumer: Arc<dyn Consumer> = self.clone();
        let subscription = self.env.sources.subscribe(source, Kind::Listener, Names::All, &consumer);
        self.lock().subscription = Some(subscription);
    }

    /// Connections are accepted from now on.
    pub(super) fn open(&self, gate: Gate) {
        let mut state = self.lock();
        state.gate = Some(gate);
        let stages = state.entries.values().filter_map(|entry| entry.active.as_ref());
        stages.for_each(|stage| self.lead(stage, state.gate.as_ref()));
        self.publish(&mut state);
    }

    /// Closes every socket and lets the source go. Connections are not touched.
    pub(super) fn stop(&self) {
        let mut state = self.lock();
        let ended = std::mem::take(&mut *state);
        self.live.end_listeners(&self.env.cluster.tasks);
        self.published(&state);
        drop(state);
        drop(ended);
    }

    /// Resolves once nothing of what those that are there need is waited for any longer.
    pub(super) async fn warmed(&self) {
        let mut moved = self.moved.subscribe();
        loop {
            moved.borrow_and_update();
            let missing = self.missing();
            if missing.is_empty() {
                return;
            }
            let all = async {
                for (listener, wants) in missing {
                    settled(&listener, &wants, &self.live, &self.env.cluster.tasks).await;
                }
            };
            tokio::select! {
                () = all => {}
                _ = moved.changed() => {}
            }
        }
    }

    fn missing(&self) -> Vec<(Arc<Listener>, Wants)> {
        let state = self.lock();
        let cold = state.entries.values().filter_map(|entry| entry.latest()).filter(|stage| !stage.is_warm());
        cold.map(|stage| (stage.listener.clone(), stage.wants.clone())).collect()
    }

    /// What is still to come before a listener is warm.
    pub(super) fn waits_for(&self) -> Vec<(Arc<str>, Vec<String>)> {
        let state = self.lock();
        let latest = state.entries.values().filter_map(|entry| Some((&entry.name, entry.latest()?)));
        let cold = latest.filter(|(_, stage)| !stage.is_warm());
        cold.map(|(name, stage)| (name.clone(), stage.waits_for())).collect()
    }

    /// The only socket of an address, where one of these listens: for who takes its place.
    pub(super) fn only_socket(&self, listener: &model::Listener, at: &ListenAddress) -> Option<Socket> {
        self.lock().doors.only_socket(listener, at)
    }

    /// What is still to come, for each that waits.
    pub(super) fn unready(&self) -> Vec<UnreadyView> {
        let unready = |(listener, wants): &(Arc<Listener>, Wants)| {
            let secrets = listener.waits_for().into_iter();
            let secrets = secrets.map(|slot| format!("shared target SdsApi {}", slot.name));
            let documents = listener.documents().filter(|document| document.is_awaited());
            let documents = documents.map(|document| format!("Jwks async fetching url={}", document.uri()));
            let targets = wants.targets().chain(secrets).chain(documents).collect();
            UnreadyView { whose: Unready::Listener(listener.name.clone()), targets }
        };
        self.missing().iter().map(unready).collect()
    }

    /// Where they listen, or would.
    pub(super) fn views(&self) -> Vec<ListenerView> {
        let state = self.lock();
        let active = state.entries.values().filter_map(|entry| Some((&entry.name, entry.active.as_ref()?)));
        active
            .map(|(name, stage)| ListenerView { name: name.clone(), addresses: stage.addresses() })
            .collect()
    }

    pub(super) fn dynamic(&self) -> Vec<DynamicView> {
        let state = self.lock();
        let mut views: BTreeMap<Arc<str>, DynamicView> = BTreeMap::new();
        for entry in state.entries.values().filter(|entry| !entry.fixed) {
            let it = views.entry(entry.name.clone()).or_insert_with(|| resource::nothing(&entry.name));
            (it.active, it.warming) = entry.views(|stage| Some(stage.origin.view(&entry.name)));
        }
        for draining in &state.draining {
            let name = &draining.view.name;
            let it = views.entry(name.clone()).or_insert_with(|| resource::nothing(name));
            it.draining = Some(draining.view.clone());
        }
        for (name, error) in &state.errors {
            let it = views.entry(name.clone()).or_insert_with(|| resource::nothing(name));
            it.error = Some(error.clone());
        }
        views.into_values().collect()
    }

    pub(super) fn draining(&self) -> usize {
        self.lock().draining.len()
    }

    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One swap: every listener that has its place.
    fn publish(&self, state: &mut State) {
        let moved = std::mem::take(&mut state.moved);
        let of = |id: &u64| Some(state.entries.get(id)?.active.as_ref()?.listener.clone());
        let changes = moved.into_iter().map(|id| (id, of(&id)));
        self.live.publish_listeners(changes, &self.env.cluster.tasks);
        self.published(state);
    }

    fn published(&self, state: &State) {
        let (active, _) = self.live.now().size();
        let warming = state.entries.values().filter(|entry| entry.warming.is_some()).count();
        self.stats.total_listeners_active.set(active as u64);
        self.stats.total_listeners_warming.set(warming as u64);
        // Envoy has no such gauge before the first that drains.
        if !state.draining.is_empty() || self.stats.total_listeners_draining.value() > 0 {
            self.stats.total_listeners_draining.set(state.draining.len() as u64);
        }
        self.moved.send_modify(|times| *times += 1);
    }
}

impl Stage {
    fn addresses(&self) -> Vec<std::net::SocketAddr> {
        if self.listener.model.bind_to_port {
            let mut addresses: Vec<_> = self.doors.iter().map(|door| door.local).collect();
            addresses.dedup();
            return addresses;
        }
        // Those that wait for a hand-off listen nowhere, but are there.
        let said = self.listener.model.addresses.iter().filter_map(|at| match at.address {
            Address::Ip(address) => Some(address),
            Address::Host(_) | Address::Pipe { .. } => None,
        });
        said.collect()
    }
}

async fn settled(listener: &Listener, wants: &Wants, live: &Arc<Live>, tasks: &Tasks) {
    listener.documents().for_each(|document| document.follow(live, tasks));
    wants.settled().await;
    for slot in listener.waits_for() {
        slot.settled().await;
    }
    for document in listener.documents() {
        document.settled().await;
    }
}

impl State {
    fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(self.by_name.get(name)?)
    }

    fn entry_mut(&mut self, name: &str) -> Option<&mut Entry> {
        self.entries.get_mut(self.by_name.get(name)?)
    }

    /// Before sockets come from anywhere, there are none.
    fn open(&mut self, listener: &Arc<Listener>) -> Result<Vec<Arc<Door>>, BindError> {
        let Some(sockets) = &self.sockets else { return Ok(Vec::new()) };
        self.doors.open(listener, sockets.as_ref())
    }

    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn insert(&mut self, entry: Entry) {
        let id = self.next();
        self.by_name.insert(entry.name.clone(), id);
        self.entries.insert(id, entry);
        self.moved.push(id);
        self.claim(id);
    }

    fn remove(&mut self, name: &str) -> Option<Entry> {
        let id = self.by_name.remove(name)?;
        let entry = self.entries.remove(&id)?;
        self.moved.push(id);
        self.release(&entry, id);
        Some(entry)
    }

    /// Notes the addresses of an entry as taken.
    fn claim(&mut self, id: u64) {
        let Some(entry) = self.entries.get(&id) else { return };
        for at in entry.all().flat_map(|stage| &stage.listener.model.addresses) {
            self.by_address.entry(at.address.clone()).or_insert(id);
        }
    }

    fn release(&mut self, entry: &Entry, id: u64) {
        for at in entry.all().flat_map(|stage| &stage.listener.model.addresses) {
            if self.by_address.get(&at.address) == Some(&id) {
                self.by_address.remove(&at.address);
            }
        }
    }
}

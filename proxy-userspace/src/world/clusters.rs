//! CDS: the clusters that come and go.
//!
//! A cluster that is said again is not touched: its endpoints, their health and its statistics live on. A changed one
//! is built and started beside the old one, and takes its place in the snapshot once it is warm.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use proxy_config::model;
use proxy_config::model::bootstrap::Resource;
use proxy_config::model::config_source::ConfigSource;
use proxy_config::xds::{Kind, RawResource};
use tokio::sync::watch;

use super::history::Change;
use super::resource::{Origin, refusal};
use super::stages::{Stages, Warming};
use super::subscription::{Subscribed, milliseconds};
use super::{BuildError, Env, Live, build_cluster, resource};
use crate::admin::view::{DynamicView, ErrorView, Unready, UnreadyView};
use crate::clock;
use crate::cluster::Cluster;
use crate::task::{self, Abort};
use crate::telemetry::stats::{ClusterManagerStats, ReloadStats};
use crate::xds::{Consumer, Failure, Names, Subscription, Update};

pub(super) struct Clusters {
    env: Arc<Env>,
    live: Arc<Live>,
    pub(super) subscribed: Subscribed,
    stats: Arc<ClusterManagerStats>,
    reloads: OnceLock<Arc<ReloadStats>>,
    state: Mutex<State>,
    /// Moves whenever a cluster takes its place, or goes.
    moved: watch::Sender<u64>,
    me: Weak<Self>,
}

/// From so many resources on an update may take longer than a worker should be away.
pub(super) const MANY: usize = 32;

/// A cluster that is warm takes its place by then.
const SOON: Duration = Duration::from_millis(100);

#[derive(Default)]
struct State {
    entries: HashMap<Arc<str>, Entry>,
    /// Of which another cluster has the place, or none, since it was published.
    moved: Vec<Arc<str>>,
    errors: HashMap<Arc<str>, ErrorView>,
    /// Tells a warming cluster from another one of the same name that came later.
    generation: u64,
    subscription: Option<Subscription>,
}

type Entry = Stages<Stage>;

struct Stage {
    /// None for a cluster of the bootstrap.
    origin: Option<Origin<model::Cluster>>,
    cluster: Arc<Cluster>,
}

/// What an update has to say of one name.
enum News {
    Same,
    Changed(Box<Stage>),
}

impl Clusters {
    /// With the bootstrap's, which are built and not started.
    pub(super) fn new(
        fixed: &[Resource<model::Cluster>],
        env: &Arc<Env>,
        live: &Arc<Live>,
    ) -> Result<Arc<Self>, BuildError> {
        let stats = &env.cluster.stats;
        let mut state = State::default();
        for resource in fixed {
            let cluster = build_cluster(resource.model.clone(), &env.cluster)?;
            let name = resource.model.name.clone();
            state.moved.push(name.clone());
            state.entries.insert(name, Entry::fixed(Stage { origin: None, cluster }));
        }
        let this = Arc::new_cyclic(|me| Self {
            env: env.clone(),
            live: live.clone(),
            subscribed: Subscribed::new("cds".to_owned(), Kind::Cluster, stats, "cluster_manager.cds"),
            stats: ClusterManagerStats::of(stats),
            reloads: OnceLock::new(),
            state: Mutex::new(state),
            moved: watch::Sender::new(0),
            me: me.clone(),
        });
        this.stats.cluster_added.add(fixed.len() as u64);
        this.publish(&mut this.lock());
        Ok(this)
    }

    /// Whether there is one of that name, warm or not.
    pub(super) fn has(&self, name: &str) -> bool {
        self.lock().entries.contains_key(name)
    }

    /// Starts those of the bootstrap.
    pub(super) fn start(&self) {
        self.live.snapshot().start(&self.env.cluster);
    }

    pub(super) fn subscribe(self: &Arc<Self>, source: &ConfigSource) {
        self.subscribed.begin(source);
        let consumer: Arc<dyn Consumer> = self.clone();
        let subscription = self.env.sources.subscribe(source, Kind::Cluster, Names::All, &consumer);
        self.lock().subscription = Some(subscription);
    }

    /// Lets the source go, and with the snapshot every cluster.
    pub(super) fn stop(&self) {
        let mut state = self.lock();
        let ended = std::mem::take(&mut *state);
        self.live.end_clusters(&self.env.cluster.tasks);
        self.published(&state);
        drop(state);
        drop(ended);
    }

    /// Resolves once each that the start waits for is warm and has its place.
    pub(super) async fn warmed(&self) {
        let mut moved = self.moved.subscribe();
        loop {
            moved.borrow_and_update();
            let waited = self.waited_for();
            if waited.is_empty() {
                return;
            }
            let all = async {
                for cluster in waited.iter().filter(|cluster| !cluster.is_warm()) {
                    cluster.warmed().await;
                }
            };
            let placed = tokio::select! {
                () = all => self.waited_for().is_empty(),
                // It may be another, or gone.
                _ = moved.changed() => false,
            };
            if placed {
                return;
            }
            if self.waited_for().iter().all(|cluster| cluster.is_warm()) {
                // About to take its place. The sender is here.
                let _ = tokio::time::timeout(SOON, moved.changed()).await;
            }
        }
    }

    fn waited_for(&self) -> Vec<Arc<Cluster>> {
        let state = self.lock();
        let missing = state.entries.values().filter_map(|entry| match &entry.warming {
            Some(warming) => Some(&warming.stage.cluster),
            None => entry.active.as_ref().map(|stage| &stage.cluster).filter(|cluster| !cluster.is_warm()),
        });
        missing.filter(|cluster| cluster.model.wait_for_warm_on_init).cloned().collect()
    }

    /// What is still to come before each is warm, for the log.
    pub(super) fn waits_for(&self) -> Vec<String> {
        let lines = self.waited_for().into_iter().flat_map(|cluster| {
            let name = cluster.model.name.clone();
            cluster.waits_for().into_iter().map(move |what| format!("cluster {name} waits for {what}"))
        });
        lines.collect()
    }

    /// What is still to come, for each that waits, by name.
    pub(super) fn unready(&self) -> Vec<UnreadyView> {
        let unready = |cluster: Arc<Cluster>| {
            let name = cluster.model.name.clone();
            let waits = cluster.waits_for();
            let targets = waits.iter().map(|what| format!("target {}", what.trim_start_matches("its ")));
            UnreadyView { whose: Unready::Cluster(name), targets: targets.collect() }
        };
        let mut all = self.waited_for();
        all.sort_by(|one, other| one.model.name.cmp(&other.model.name));
        all.into_iter().map(unready).filter(|unready| !unready.targets.is_empty()).collect()
    }

    pub(super) fn dynamic(&self) -> Vec<DynamicView> {
        let state = self.lock();
        let named = state.entries.iter().filter(|(_, entry)| !entry.fixed).map(|(name, entry)| {
            let (active, warming) = entry.views(|stage| Some(stage.origin.as_ref()?.view(name)));
            let error = state.errors.get(name).cloned();
            DynamicView { active, warming, error, ..resource::nothing(name) }
        });
        resource::with_errors(named.collect(), &state.errors)
    }

    pub(super) fn names(&self) -> Vec<Arc<str>> {
        let mut names: Vec<_> = self.lock().entries.keys().cloned().collect();
        names.sort();
        names
    }

    /// Whether it has come by CDS.
    pub(super) fn is_dynamic(&self, name: &str) -> bool {
        self.lock().entries.get(name).is_some_and(|entry| !entry.fixed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One swap: every cluster that has its place.
    fn publish(&self, state: &mut State) {
        let moved = std::mem::take(&mut state.moved);
        let of = |name: &Arc<str>| Some(state.entries.get(name)?.active.as_ref()?.cluster.clone());
        let changes = moved.into_iter().map(|name| {
            let cluster = of(&name);
            (name, cluster)
        });
        self.live.publish_clusters(changes, &self.env.cluster.tasks);
        self.published(state);
    }

    fn published(&self, state: &State) {
        let (_, active) = self.live.now().size();
        self.stats.active_clusters.set(active as u64);
        let warming = state.entries.values().filter(|entry| entry.warming.is_some()).count();
        self.stats.warming_clusters.set(warming as u64);
        self.moved.send_modify(|times| *times += 1);
    }
}

impl Consumer for Clusters {
    fn update(&self, update: &Update<'_>) -> Result<(), String> {
        if update.resources.len() > MANY { task::long(|| self.updated(update)) } else { self.updated(update) }
    }

    fn failed(&self, failure: &Failure) {
        self.subscribed.failed(failure);
    }
}

type Refused<'a> = Vec<(&'a RawResource, String)>;

impl Clusters {
    fn updated(&self, update: &Update<'_>) -> Result<(), String> {
        let began = clock::now();
        let mut change = self.subscribed.change(update.version);
        let (news, refused) = self.read(update);
        let fresh = news.iter().filter_map(|(_, news)| match news {
            News::Same => None,
            News::Changed(stage) => Some(stage.cluster.clone()),
        });
        let fresh: Vec<_> = fresh.collect();
        // Before anybody can see it, and without a lock: whom it asks may have the answer already.
        fresh.iter().for_each(|cluster| cluster.start(&self.env.cluster));
        self.apply(news, self.gone(update), &refused, &mut change);
        if !fresh.is_empty() && refused.is_empty() {
            let stats = &self.env.cluster.stats;
            let reloads = self.reloads.get_or_init(|| stats.block("cluster_manager.cds"));
            reloads.config_reload.inc();
            reloads.config_reload_time_ms.set(milliseconds());
        }
        let lines: Vec<_> = refused.iter().map(|(raw, why)| format!("{}: {why}", raw.name)).collect();
        let why =
            (!lines.is_empty()).then(|| format!("Error adding/updating cluster(s) {}", lines.join(", ")));
        self.subscribed.answered(update.version, why.as_deref(), began);
        change.nack = why.as_deref().map(Arc::from);
        self.env.history.record(change);
        why.map_or(Ok(()), Err)
    }

    /// Builds what has changed. No lock is held while resources are read.
    fn read<'a>(&self, update: &Update<'a>) -> (Vec<(Arc<str>, News)>, Refused<'a>) {
        let (mut news, mut refused) = (Vec::new(), Vec::new());
        let mut seen = HashSet::new();
        for raw in update.resources {
            if !seen.insert(&raw.name) {
                refused.push((raw, format!("duplicate cluster {} found", raw.name)));
                continue;
            }
            match self.read_one(raw) {
                Ok(found) => news.push((raw.name.clone(), found)),
                Err(why) => refused.push((raw, why)),
            }
        }
        (news, refused)
    }

    fn read_one(&self, raw: &RawResource) -> Result<News, String> {
        let known = {
            let state = self.lock();
            let entry = state.entries.get(&raw.name);
            if entry.is_some_and(|entry| entry.fixed) {
                log::debug!("cds: {}: it is the bootstrap's, and stays", raw.name);
                return Ok(News::Same);
            }
            entry.and_then(Entry::latest).and_then(|stage| stage.origin.clone())
        };
        if known.as_ref().is_some_and(|known| known.is(raw)) {
            return Ok(News::Same);
        }
        let resource = self.subscribed.decode::<model::Cluster>(&self.env.decoder, raw)?.resource;
        if resource.model.name != raw.name {
            return Err(format!("the cluster's own name is {}", resource.model.name));
        }
        if known.is_some_and(|known| known.resource.model == resource.model) {
            return Ok(News::Same);
        }
        let cluster = build_cluster(resource.model.clone(), &self.env.cluster).map_err(|e| e.to_string())?;
        let origin = Some(Origin::new(resource, raw.version.clone()));
        Ok(News::Changed(Box::new(Stage { origin, cluster })))
    }

    /// The names that are no longer there.
    fn gone(&self, update: &Update<'_>) -> Vec<Arc<str>> {
        let mut gone = update.removed.to_vec();
        if update.whole {
            let named: HashSet<_> = update.resources.iter().map(|raw| &raw.name).collect();
            let state = self.lock();
            let entries = state.entries.iter().filter(|(name, entry)| !entry.fixed && !named.contains(name));
            gone.extend(entries.map(|(name, _)| name.clone()));
        }
        gone
    }

    fn apply(
        &self,
        news: Vec<(Arc<str>, News)>,
        gone: Vec<Arc<str>>,
        refused: &Refused<'_>,
        change: &mut Change,
    ) {
        let mut state = self.lock();
        // Freed when the lock is not held any longer.
        let mut ended = Vec::new();
        let mut dirty = false;
        for name in gone {
            state.errors.remove(&name);
            if state.entries.get(&name).is_some_and(|entry| !entry.fixed) {
                ended.extend(state.entries.remove(&name));
                change.note(&name, Some(Bytes::new()), None);
                self.stats.cluster_removed.inc();
                state.moved.push(name);
                dirty = true;
            }
        }
        for (name, news) in news {
            state.errors.remove(&name);
            if let News::Changed(stage) = news {
                let bytes = |stage: &Stage| Some(stage.origin.as_ref()?.resource.raw.bytes());
                let before = state.entries.get(&name).and_then(Entry::latest).map(bytes);
                // What is new can be seen where it is.
                let after = if before.is_some() { bytes(&stage) } else { Some(Bytes::new()) };
                change.note(&name, before.flatten(), after);
                ended.extend(self.place(&mut state, name, stage));
                dirty = true;
            }
        }
        let errors = refused.iter().map(|(raw, why)| (raw.name.clone(), refusal(raw, why)));
        state.errors.extend(errors);
        refused.iter().for_each(|(raw, why)| change.refuse(&raw.name, why.as_str()));
        if dirty {
            self.publish(&mut state);
        }
        drop(state);
        drop(ended);
    }

    /// Gives a new or changed cluster its place, or lets it warm first. Returns what it replaces.
    fn place(&self, state: &mut State, name: Arc<str>, stage: Box<Stage>) -> Option<Entry> {
        state.generation += 1;
        let generation = state.generation;
        let entry = state.entries.entry(name.clone()).or_default();
        let known = entry.latest().is_some();
        if known { &self.stats.cluster_modified } else { &self.stats.cluster_added }.inc();
        let mut before = Entry { warming: entry.warming.take(), ..Entry::default() };
        if stage.cluster.is_warm() {
            before.active = entry.active.replace(stage);
            state.moved.push(name);
        } else {
            let (me, cluster) = (self.me.clone(), stage.cluster.clone());
            let task = async move {
                cluster.warmed().await;
                if let Some(this) = me.upgrade() {
                    this.warm(&name, generation);
                }
            };
            let _task = Abort::of(self.env.cluster.tasks.spawn("cluster warming", task));
            entry.warming = Some(Box::new(Warming { stage: *stage, generation, _task }));
        }
        Some(before)
    }

    /// Takes the place of its name.
    fn warm(&self, name: &str, generation: u64) {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(name) else { return };
        let Some(stage) = entry.take_warm(generation) else { return };
        let before = entry.active.replace(Box::new(stage));
        state.moved.push(name.into());
        self.publish(&mut state);
        drop(state);
        drop(before);
    }
}

//! What listeners name and others say: filters (ECDS) and routes (RDS).
//!
//! Each is followed once for all listeners that name it, while one of them is there. A filter that comes is put in its
//! place in the listener: [`Wants::effective`].

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use proxy_config::model;
use proxy_config::model::config_source::ConfigSource;
use proxy_config::model::discovered::{Discovered, Extension};
use proxy_config::model::http::RouteSource;
use proxy_config::model::network_filter::{NetworkFilter, RouteRef};
use proxy_config::xds::{Decoder, Kind, RawResource};

use super::clusters::Clusters;
use super::listeners::Listeners;
use super::resource::{self, Origin, refusal};
use super::routes::Route;
use super::subscription::{Subscribed, milliseconds};
use crate::admin::view::{DynamicView, ErrorView};
use crate::clock;
use crate::task::Tasks;
use crate::telemetry::stats::ExtensionStats;
use crate::xds::{Consumer, Failure, Names, Subscription, Update};

/// Everything that is followed.
pub(super) struct Hub {
    env: Arc<super::Env>,
    listeners: Weak<Listeners>,
    clusters: Arc<Clusters>,
    routes: Mutex<HashMap<RouteRef, Weak<Route>>>,
    extensions: Mutex<HashMap<Key, Weak<Slot>>>,
}

/// An extension's name and source.
type Key = (Arc<str>, ConfigSource);

/// What one listener has named. It is warm once all of it has come, or is not waited for any longer.
#[derive(Clone, Default)]
pub(super) struct Wants {
    routes: Vec<Arc<Route>>,
    /// With whether the listener waits for it.
    extensions: Vec<(Arc<Slot>, bool)>,
}

/// An extension's configuration.
struct Slot {
    name: Arc<str>,
    source: ConfigSource,
    subscribed: Subscribed,
    stats: Arc<ExtensionStats>,
    decoder: Decoder,
    tasks: Tasks,
    listeners: Weak<Listeners>,
    state: Mutex<SlotState>,
}

#[derive(Default)]
struct SlotState {
    origin: Option<Origin<Extension>>,
    error: Option<ErrorView>,
    /// The places that it was asked for: what comes must fit one of them.
    places: Vec<Discovered>,
    subscription: Option<Subscription>,
}

impl Hub {
    pub(super) fn new(
        env: &Arc<super::Env>,
        listeners: Weak<Listeners>,
        clusters: &Arc<Clusters>,
    ) -> Arc<Self> {
        let (routes, extensions) = (Mutex::default(), Mutex::default());
        Arc::new(Self { env: env.clone(), listeners, clusters: clusters.clone(), routes, extensions })
    }

    /// Asks for everything that a template names. No lock of the listeners may be held.
    pub(super) fn wants(&self, template: &model::Listener) -> Wants {
        let chains = template.filter_chains.iter().chain(&template.default_filter_chain);
        let mut wants = Wants::default();
        for config in chains.flat_map(|chain| &chain.filters) {
            match &config.filter {
                NetworkFilter::Http(hcm) => {
                    if let RouteSource::Rds(route) = &hcm.routes {
                        wants.routes.push(self.route(route, &hcm.stat_prefix));
                    }
                }
                NetworkFilter::Discovered(discovered) => {
                    let waits =
                        !(discovered.apply_default_config_without_warming && discovered.default.is_some());
                    wants.extensions.push((self.extension(&config.name, discovered), waits));
                }
                NetworkFilter::TcpProxy(_)
                | NetworkFilter::Unserved(_)
                | NetworkFilter::DirectResponse(_)
                | NetworkFilter::Echo
                | NetworkFilter::Rbac(_)
                | NetworkFilter::SniCluster
                | NetworkFilter::ConnectionLimit(_)
                | NetworkFilter::LocalRateLimit(_)
                | NetworkFilter::MetadataExchange(_)
                | NetworkFilter::IstioStats(_)
                | NetworkFilter::PostgresProxy(_)
                | NetworkFilter::SmtpStarttls(_) => {}
            }
        }
        wants
    }

    fn route(&self, of: &RouteRef, prefix: &str) -> Arc<Route> {
        let make = || Route::new(of, prefix, &self.env, &self.clusters);
        let (route, new) = shared(&self.routes, of, make);
        if new {
            route.follow(of, &self.env);
        }
        route
    }

    fn extension(&self, name: &Arc<str>, of: &Discovered) -> Arc<Slot> {
        let key = (name.clone(), of.source.clone());
        let (slot, new) = shared(&self.extensions, &key, || {
            let stats = &self.env.cluster.stats;
            let prefix = format!("extension_config_discovery.network_filter.{}", name.replace(':', "_"));
            Slot {
                name: name.clone(),
                source: of.source.clone(),
                subscribed: Subscribed::new(format!("ecds {name}"), Kind::Extension, stats, &prefix),
                stats: stats.block(prefix),
                decoder: self.env.decoder.clone(),
                tasks: self.env.cluster.tasks.clone(),
                listeners: self.listeners.clone(),
                state: Mutex::default(),
            }
        });
        let mut state = lock(&slot.state);
        if !state.places.contains(of) {
            state.places.push(of.clone());
        }
        drop(state);
        if new {
            slot.subscribed.begin(&of.source);
            let consumer: Arc<dyn Consumer> = slot.clone();
            let names = Names::One(name.clone());
            let subscription = self.env.sources.subscribe(&of.source, Kind::Extension, names, &consumer);
            lock(&slot.state).subscription = Some(subscription);
        }
        slot
    }

    /// Filters that have come.
    pub(super) fn extensions(&self) -> Vec<DynamicView> {
        let live: Vec<_> = lock(&self.extensions).values().filter_map(Weak::upgrade).collect();
        let views = live.iter().map(|slot| {
            let state = lock(&slot.state);
            let active = state.origin.as_ref().map(|origin| origin.view(&slot.name));
            DynamicView { active, error: state.error.clone(), ..resource::nothing(&slot.name) }
        });
        let mut views: Vec<_> = views.collect();
        views.sort_by(|one, other| one.name.cmp(&other.name));
        views
    }

    /// Route configurations that have come.
    pub(super) fn routes(&self) -> Vec<DynamicView> {
        let live: Vec<_> = lock(&self.routes).values().filter_map(Weak::upgrade).collect();
        let views = live.iter().map(|route| route.view());
        let mut views: Vec<_> = views.collect();
        views.sort_by(|one, other| one.name.cmp(&other.name));
        views
    }
}

impl Wants {
    /// The listener as it runs: with the filters that have come, else their defaults. Where there is none, the place
    /// stays as it is, and closes connections.
    pub(super) fn effective(&self, template: &Arc<model::Listener>) -> Arc<model::Listener> {
        if self.extensions.is_empty() {
            return template.clone();
        }
        let mut listener = template.as_ref().clone();
        let chains = listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain);
        for config in chains.flat_map(|chain| &mut chain.filters) {
            if let NetworkFilter::Discovered(discovered) = &config.filter {
                // Another source may say something else of the same name.
                let asked = |slot: &Slot| slot.name == config.name && slot.source == discovered.source;
                let come = self.extensions.iter().find(|(slot, _)| asked(slot));
                let filter = come.and_then(|(slot, _)| slot.filter(discovered));
                if let Some(filter) = filter.or_else(|| discovered.default.as_deref().cloned()) {
                    config.filter = filter;
                }
            }
        }
        Arc::new(listener)
    }

    pub(super) fn is_settled(&self) -> bool {
        self.unsettled_routes().next().is_none() && self.unsettled_extensions().next().is_none()
    }

    pub(super) async fn settled(&self) {
        for route in &self.routes {
            route.subscribed.settled().await;
        }
        for (slot, _) in self.extensions.iter().filter(|(_, waits)| *waits) {
            slot.subscribed.settled().await;
        }
    }

    pub(super) fn waits_for(&self) -> Vec<String> {
        let routes = self.unsettled_routes().map(|route| format!("route configuration {}", route.name));
        let extensions =
            self.unsettled_extensions().map(|slot| format!("the configuration of filter {}", slot.name));
        routes.chain(extensions).collect()
    }

    /// What is waited for, by Envoy's names of it.
    pub(super) fn targets(&self) -> impl Iterator<Item = String> {
        let routes = self.unsettled_routes();
        let routes =
            routes.map(|route| format!("shared target RdsRouteConfigSubscription RDS init {}", route.name));
        let extensions = self.unsettled_extensions();
        routes.chain(
            extensions.map(|slot| format!("shared target FilterConfigSubscription init {}", slot.name)),
        )
    }

    fn unsettled_routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter().map(AsRef::as_ref).filter(|route| !route.subscribed.is_settled())
    }

    fn unsettled_extensions(&self) -> impl Iterator<Item = &Slot> {
        let unsettled =
            self.extensions.iter().filter(|(slot, waits)| *waits && !slot.subscribed.is_settled());
        unsettled.map(|(slot, _)| slot.as_ref())
    }

    /// Whether it names that filter.
    pub(super) fn names(&self, extension: &str) -> bool {
        self.extensions.iter().any(|(slot, _)| *slot.name == *extension)
    }
}

impl Slot {
    fn filter(&self, place: &Discovered) -> Option<NetworkFilter> {
        let state = lock(&self.state);
        place.accepts(&state.origin.as_ref()?.resource.model).ok().cloned()
    }

    /// Whether it is another one than before.
    fn take(&self, raw: &RawResource) -> Result<bool, String> {
        if lock(&self.state).origin.as_ref().is_some_and(|known| known.is(raw)) {
            return Ok(false);
        }
        let resource = self.subscribed.decode::<Extension>(&self.decoder, raw)?.resource;
        let mut state = lock(&self.state);
        let mut fits = state.places.iter().map(|place| place.accepts(&resource.model).map(|_| ()));
        // Where it is asked for in different ways, it is enough that one can have it.
        if let Some(Err(why)) = fits.next()
            && !fits.any(|fits| fits.is_ok())
        {
            return Err(why);
        }
        let same = state.origin.as_ref().is_some_and(|known| known.resource.model == resource.model);
        state.origin = Some(Origin::new(resource, raw.version.clone()));
        state.error = None;
        Ok(!same)
    }

    /// The listeners that name it are built again. Not from here: whoever asks may hold what they need.
    fn tell(&self) {
        let (listeners, name) = (self.listeners.clone(), self.name.clone());
        self.tasks.spawn("extension", async move {
            if let Some(listeners) = listeners.upgrade() {
                listeners.extension_changed(&name).await;
            }
        });
    }
}

impl Consumer for Slot {
    fn update(&self, update: &Update<'_>) -> Result<(), String> {
        let began = clock::now();
        let taken = match update.resources.iter().find(|raw| raw.name == self.name) {
            Some(raw) => self.take(raw).map_err(|why| {
                lock(&self.state).error = Some(refusal(raw, &why));
                format!("{}: {why}", self.name)
            }),
            // As Envoy: the default holds again.
            None if update.removed.contains(&self.name) => Ok(lock(&self.state).origin.take().is_some()),
            None => Ok(false),
        };
        match &taken {
            Ok(true) => {
                self.stats.config_reload.inc();
                self.stats.config_reload_time_ms.set(milliseconds());
            }
            Ok(false) => {}
            Err(_) => self.stats.config_fail.inc(),
        }
        self.subscribed.answered(update.version, taken.as_ref().err().map(String::as_str), began);
        if taken.as_ref().is_ok_and(|changed| *changed) {
            self.tell();
        }
        taken.map(|_| ())
    }

    fn failed(&self, failure: &Failure) {
        self.subscribed.failed(failure);
        self.stats.config_fail.inc();
    }
}

/// The slot of a key, and whether it was made for this call.
fn shared<K: Clone + Eq + Hash, S>(
    slots: &Mutex<HashMap<K, Weak<S>>>,
    key: &K,
    make: impl FnOnce() -> S,
) -> (Arc<S>, bool) {
    let mut slots = lock(slots);
    if let Some(slot) = slots.get(key).and_then(Weak::upgrade) {
        return (slot, false);
    }
    let slot = Arc::new(make());
    slots.retain(|_, slot| slot.strong_count() > 0);
    slots.insert(key.clone(), Arc::downgrade(&slot));
    (slot, true)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

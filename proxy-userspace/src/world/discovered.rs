//! What listeners name and others say: filters (ECDS) and routes (RDS).
//!
//! Each is followed once for all listeners that name it, while one of them is there. A filter that comes is put in its
//! place in the listener: [`Wants::effective`].

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use proxy_config::model;
use proxy_config::model::config_source::ConfigSource;
use proxy_config::model::http::{FilterKind, Hcm, RouteSource};
use proxy_config::model::network_filter::{NetworkFilter, RouteRef};

use super::clusters::Clusters;
use super::extension::{Asked, Key, Place, Slot};
use super::listeners::Listeners;
use super::routes::Route;
use crate::admin::view::DynamicView;

/// Everything that is followed.
pub(super) struct Hub {
    env: Arc<super::Env>,
    listeners: Weak<Listeners>,
    clusters: Arc<Clusters>,
    routes: Mutex<HashMap<RouteRef, Weak<Route>>>,
    extensions: Mutex<HashMap<Key, Weak<Slot>>>,
    me: Weak<Self>,
}

/// What one listener has named. It is warm once all of it has come, or is not waited for any longer.
#[derive(Clone, Default)]
pub(super) struct Wants {
    routes: Vec<Arc<Route>>,
    extensions: Vec<Asked>,
}

impl Hub {
    pub(super) fn new(
        env: &Arc<super::Env>,
        listeners: Weak<Listeners>,
        clusters: &Arc<Clusters>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            env: env.clone(),
            listeners,
            clusters: clusters.clone(),
            routes: Mutex::default(),
            extensions: Mutex::default(),
            me: me.clone(),
        })
    }

    /// Asks for everything that a template names. No lock of the listeners may be held.
    pub(super) fn wants(&self, template: &model::Listener) -> Wants {
        let chains = template.filter_chains.iter().chain(&template.default_filter_chain);
        let mut wants = Wants::default();
        for config in chains.flat_map(|chain| &chain.filters) {
            self.ask(&config.name, &config.filter, &mut wants);
        }
        wants
    }

    /// What a filter names, that came itself after its listener.
    pub(super) fn wants_of(&self, name: &Arc<str>, filter: &NetworkFilter) -> Wants {
        let mut wants = Wants::default();
        self.ask(name, filter, &mut wants);
        wants
    }

    fn ask(&self, name: &Arc<str>, filter: &NetworkFilter, wants: &mut Wants) {
        match filter {
            NetworkFilter::Http(hcm) => self.ask_http(hcm, wants),
            NetworkFilter::Discovered(discovered) => {
                let waits =
                    !(discovered.apply_default_config_without_warming && discovered.default.is_some());
                let place = Place::Network(discovered.as_ref().clone());
                wants.extensions.push(self.extension(name, &discovered.source, place, waits));
                if let Some(default) = &discovered.default {
                    self.ask(name, default, wants);
                }
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

    fn ask_http(&self, hcm: &Hcm, wants: &mut Wants) {
        if let RouteSource::Rds(route) = &hcm.routes {
            wants.routes.push(self.route(route, &hcm.stat_prefix));
        }
        let of_upgrades = hcm.upgrades.iter().filter_map(|upgrade| upgrade.filters.as_ref()).flatten();
        for filter in hcm.filters.iter().chain(of_upgrades) {
            if let FilterKind::Discovered(discovered) = &filter.kind {
                let waits =
                    !(discovered.apply_default_config_without_warming && discovered.default.is_some());
                let place = Place::Http(discovered.as_ref().clone());
                wants.extensions.push(self.extension(&filter.name, &discovered.source, place, waits));
            }
        }
    }

    fn route(&self, of: &RouteRef, prefix: &str) -> Arc<Route> {
        let make = || Route::new(of, prefix, &self.env, &self.clusters);
        let (route, new) = shared(&self.routes, of, make);
        if new {
            route.follow(of, &self.env);
        }
        route
    }

    fn extension(&self, name: &Arc<str>, source: &ConfigSource, place: Place, waits: bool) -> Asked {
        let key = Key { of: place.of(), name: name.clone(), source: source.clone() };
        let make = || Slot::new(&key, &self.env, self.listeners.clone(), self.me.clone());
        let (slot, new) = shared(&self.extensions, &key, make);
        let place = slot.asked(place);
        if new {
            slot.follow();
        }
        Asked { slot, place, waits }
    }

    /// Filters that have come.
    pub(super) fn extensions(&self) -> Vec<DynamicView> {
        let live: Vec<_> = lock(&self.extensions).values().filter_map(Weak::upgrade).collect();
        let mut views: Vec<_> = live.iter().map(|slot| slot.view()).collect();
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
    /// The listener as it runs: with the network filters that have come, else their defaults. Where there is none, the
    /// place stays as it is, and closes connections. HTTP filters are swapped where they are.
    pub(super) fn effective(&self, template: &Arc<model::Listener>) -> Arc<model::Listener> {
        if !self.extensions.iter().any(|asked| matches!(*asked.place, Place::Network(_))) {
            return template.clone();
        }
        let mut listener = template.as_ref().clone();
        let chains = listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain);
        for config in chains.flat_map(|chain| &mut chain.filters) {
            if let NetworkFilter::Discovered(discovered) = &config.filter {
                // Another source may say something else of the same name.
                let asked = |asked: &&Asked| {
                    asked.slot.name == config.name
                        && matches!(&*asked.place, Place::Network(place) if place == discovered.as_ref())
                };
                let come = self.extensions.iter().find(asked);
                let filter = come.and_then(|asked| asked.slot.filter(discovered));
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
        for asked in self.extensions.iter().filter(|asked| asked.waits) {
            asked.slot.subscribed.settled().await;
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
        let waits = self.extensions.iter().filter(|asked| asked.waits);
        waits.map(|asked| asked.slot.as_ref()).filter(|slot| !slot.subscribed.is_settled())
    }

    /// Whether it names that network filter.
    pub(super) fn names(&self, extension: &str) -> bool {
        let of_network = |asked: &Asked| matches!(*asked.place, Place::Network(_));
        self.extensions.iter().any(|asked| of_network(asked) && *asked.slot.name == *extension)
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

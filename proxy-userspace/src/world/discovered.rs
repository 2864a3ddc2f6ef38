//! What the listeners' templates name and others say: routes (RDS).
//!
//! Each is followed once for all listeners that name it, while one of them is there.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use proxy_config::model;
use proxy_config::model::Raw;
use proxy_config::model::network_filter::{NetworkFilter, RouteRef};
use proxy_config::xds::{Kind, RawResource};

use super::listeners::Listeners;
use super::resource;
use super::subscription::Subscribed;
use crate::admin::view::{DynamicView, ResourceView};
use crate::clock;
use crate::xds::{Consumer, Failure, Names, Subscription, Update};

/// Everything that is followed.
pub(super) struct Hub {
    env: Arc<super::Env>,
    routes: Mutex<HashMap<RouteRef, Weak<Route>>>,
}

/// What one listener has named. It is warm once all of it has come, or is not waited for any longer.
#[derive(Clone, Default)]
pub(super) struct Wants {
    routes: Vec<Arc<Route>>,
}

/// A route configuration. Nothing is served by it yet; a control plane expects to be asked.
struct Route {
    name: Arc<str>,
    subscribed: Subscribed,
    state: Mutex<RouteState>,
}

#[derive(Default)]
struct RouteState {
    view: Option<ResourceView>,
    subscription: Option<Subscription>,
}

impl Hub {
    pub(super) fn new(env: &Arc<super::Env>, _listeners: Weak<Listeners>) -> Arc<Self> {
        Arc::new(Self { env: env.clone(), routes: Mutex::default() })
    }

    /// Asks for everything that a template names. No lock of the listeners may be held.
    pub(super) fn wants(&self, template: &model::Listener) -> Wants {
        let chains = template.filter_chains.iter().chain(&template.default_filter_chain);
        let mut wants = Wants::default();
        for filter in chains.flat_map(|chain| &chain.filters) {
            if let NetworkFilter::Unserved(unserved) = &filter.filter
                && let Some(route) = &unserved.routes
            {
                wants.routes.push(self.route(route));
            }
        }
        wants
    }

    fn route(&self, of: &RouteRef) -> Arc<Route> {
        let (slot, new) = shared(&self.routes, of, || {
            let (stats, prefix) = (&self.env.cluster.stats, format!("rds.{}", of.name.replace(':', "_")));
            Route {
                name: of.name.clone(),
                subscribed: Subscribed::new(format!("rds {}", of.name), Kind::Route, stats, &prefix),
                state: Mutex::default(),
            }
        });
        if new {
            slot.subscribed.begin(&of.source);
            let consumer: Arc<dyn Consumer> = slot.clone();
            let names = Names::One(of.name.clone());
            let subscription = self.env.sources.subscribe(&of.source, Kind::Route, names, &consumer);
            lock(&slot.state).subscription = Some(subscription);
        }
        slot
    }

    /// Route configurations that have come.
    pub(super) fn routes(&self) -> Vec<DynamicView> {
        let live: Vec<_> = lock(&self.routes).values().filter_map(Weak::upgrade).collect();
        let views = live.iter().map(|route| DynamicView {
            active: lock(&route.state).view.clone(),
            ..resource::nothing(&route.name)
        });
        let mut views: Vec<_> = views.collect();
        views.sort_by(|one, other| one.name.cmp(&other.name));
        views
    }
}

impl Wants {
    /// The listener as it runs.
    pub(super) fn effective(&self, template: &Arc<model::Listener>) -> Arc<model::Listener> {
        template.clone()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.routes.iter().all(|route| route.subscribed.is_settled())
    }

    pub(super) async fn settled(&self) {
        for route in &self.routes {
            route.subscribed.settled().await;
        }
    }

    pub(super) fn waits_for(&self) -> Vec<String> {
        self.unsettled().map(|name| format!("route configuration {name}")).collect()
    }

    pub(super) fn unsettled(&self) -> impl Iterator<Item = Arc<str>> {
        let routes = self.routes.iter().filter(|route| !route.subscribed.is_settled());
        routes.map(|route| route.name.clone())
    }
}

impl Consumer for Route {
    fn update(&self, update: &Update<'_>) -> Result<(), String> {
        let began = clock::now();
        if let Some(raw) = update.resources.iter().find(|raw| raw.name == self.name) {
            lock(&self.state).view = Some(view(raw));
        }
        self.subscribed.answered(update.version, None, began);
        Ok(())
    }

    fn failed(&self, failure: &Failure) {
        self.subscribed.failed(failure);
    }
}

fn view(raw: &RawResource) -> ResourceView {
    ResourceView {
        name: raw.name.clone(),
        raw: Raw::from(raw.value.as_ref()),
        version: raw.version.clone(),
        updated: clock::wall(),
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

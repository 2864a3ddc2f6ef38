//! ECDS: one filter that listeners name, and follow until the last of them is gone.
//!
//! A network filter is put in its place by building the listener's chains again: see [`super::discovered`]. An HTTP
//! filter is swapped inside of its connection managers, which stay: the next stream of any connection sees it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use proxy_config::model::config_source::ConfigSource;
use proxy_config::model::discovered::{Discovered, Extension, ExtensionContent};
use proxy_config::model::http::filter::DiscoveredHttpFilter;
use proxy_config::model::network_filter::NetworkFilter;
use proxy_config::xds::{Kind, RawResource};

use super::Env;
use super::discovered::{Hub, Wants};
use super::listeners::Listeners;
use super::resource::{self, Origin, refusal};
use super::subscription::{Subscribed, milliseconds};
use crate::admin::view::{DynamicView, ErrorView};
use crate::clock;
use crate::http::filters::discovered as http;
use crate::telemetry::stats::ExtensionStats;
use crate::xds::{Consumer, Failure, Names, Subscription, Update};

/// What one is known by: both sorts of filters may have the same names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) of: Of,
    pub(super) name: Arc<str>,
    pub(super) source: ConfigSource,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Of {
    Network,
    Http,
}

/// Where it is asked for, and what may come there.
#[derive(Debug, PartialEq)]
pub(super) enum Place {
    Network(Discovered),
    Http(DiscoveredHttpFilter),
}

/// That a listener has asked for it.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) slot: Arc<Slot>,
    pub(super) place: Arc<Place>,
    /// The listener waits for it.
    pub(super) waits: bool,
}

/// An extension's configuration.
pub(super) struct Slot {
    pub(super) name: Arc<str>,
    pub(super) subscribed: Subscribed,
    source: ConfigSource,
    stats: Arc<ExtensionStats>,
    env: Arc<Env>,
    listeners: Weak<Listeners>,
    hub: Weak<Hub>,
    /// Of an HTTP filter: its places in connection managers.
    http: Option<Arc<http::Extension>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    origin: Option<Origin<Extension>>,
    error: Option<ErrorView>,
    /// The places that it is asked for: what comes must fit one of them.
    places: Vec<Weak<Place>>,
    /// What a connection manager names that has come itself.
    inner: Wants,
    subscription: Option<Subscription>,
}

impl Place {
    pub(super) fn of(&self) -> Of {
        match self {
            Self::Network(_) => Of::Network,
            Self::Http(_) => Of::Http,
        }
    }

    fn accepts(&self, extension: &Extension) -> Result<(), String> {
        match self {
            Self::Network(place) => place.accepts(extension).map(|_| ()),
            Self::Http(place) => place.accepts(extension).map(|_| ()),
        }
    }
}

impl Slot {
    pub(super) fn new(key: &Key, env: &Arc<Env>, listeners: Weak<Listeners>, hub: Weak<Hub>) -> Self {
        let Key { of, name, source } = key;
        let sort = match of {
            Of::Network => "network_filter",
            Of::Http => "http_filter",
        };
        let stats = &env.cluster.stats;
        let prefix = format!("extension_config_discovery.{sort}.{}", name.replace(':', "_"));
        Self {
            name: name.clone(),
            source: source.clone(),
            subscribed: Subscribed::new(format!("ecds {name}"), Kind::Extension, stats, &prefix),
            stats: stats.block(prefix),
            http: (*of == Of::Http).then(|| env.http.extensions.follow(name, source)),
            env: env.clone(),
            listeners,
            hub,
            state: Mutex::default(),
        }
    }

    pub(super) fn follow(self: &Arc<Self>) {
        self.subscribed.begin(&self.source);
        let consumer: Arc<dyn Consumer> = self.clone();
        let names = Names::One(self.name.clone());
        let subscription = self.env.sources.subscribe(&self.source, Kind::Extension, names, &consumer);
        self.lock().subscription = Some(subscription);
    }

    /// It is asked for there, until the place is dropped.
    pub(super) fn asked(&self, place: Place) -> Arc<Place> {
        let mut state = self.lock();
        if state.origin.as_ref().is_some_and(|origin| place.accepts(&origin.resource.model).is_err()) {
            self.stats.config_conflict.inc();
        }
        state.places.retain(|known| known.strong_count() > 0);
        if let Some(known) = state.places.iter().filter_map(Weak::upgrade).find(|known| **known == place) {
            return known;
        }
        let place = Arc::new(place);
        state.places.push(Arc::downgrade(&place));
        place
    }

    pub(super) fn filter(&self, place: &Discovered) -> Option<NetworkFilter> {
        let state = self.lock();
        place.accepts(&state.origin.as_ref()?.resource.model).ok().cloned()
    }

    pub(super) fn view(&self) -> DynamicView {
        let state = self.lock();
        let active = state.origin.as_ref().map(|origin| origin.view(&self.name));
        DynamicView { active, error: state.error.clone(), ..resource::nothing(&self.name) }
    }

    /// Whether it is another one than before.
    fn take(&self, raw: &RawResource) -> Result<bool, String> {
        if self.lock().origin.as_ref().is_some_and(|known| known.is(raw)) {
            return Ok(false);
        }
        let resource = self.subscribed.decode::<Extension>(&self.env.decoder, raw)?.resource;
        let same = {
            let state = self.lock();
            state.fits(&resource.model)?;
            state.origin.as_ref().is_some_and(|known| known.resource.model == resource.model)
        };
        if let Some(http) = self.http.as_ref().filter(|_| !same) {
            let published = http.publish(Some(resource.model.clone()), &self.env.parts());
            published.map_err(|error| error.to_string())?;
        }
        let inner = self.inner(&resource.model);
        let mut state = self.lock();
        state.origin = Some(Origin::new(resource, raw.version.clone()));
        state.error = None;
        let before = std::mem::replace(&mut state.inner, inner);
        drop(state);
        // The last who follows something may go with it.
        drop(before);
        Ok(!same)
    }

    /// As Envoy: the default holds again.
    fn give_up(&self) -> bool {
        let mut state = self.lock();
        let (origin, inner) = (state.origin.take(), std::mem::take(&mut state.inner));
        state.error = None;
        drop(state);
        drop(inner);
        if let Some(http) = self.http.as_ref().filter(|_| origin.is_some())
            && let Err(error) = http.publish(None, &self.env.parts())
        {
            log::warn!("ecds {}: {error}; what was known stays", self.name);
        }
        origin.is_some()
    }

    /// What it names in its turn.
    fn inner(&self, extension: &Extension) -> Wants {
        match (&extension.content, self.hub.upgrade()) {
            (ExtensionContent::NetworkFilter(filter), Some(hub)) => hub.wants_of(&self.name, filter),
            (
                ExtensionContent::NetworkFilter(_)
                | ExtensionContent::HttpFilter(_)
                | ExtensionContent::Both(_, _)
                | ExtensionContent::Unserved,
                _,
            ) => Wants::default(),
        }
    }

    /// The listeners that name a network filter are built again. Not from here: whoever asks may hold what they need.
    fn tell(&self) {
        if self.http.is_some() {
            return;
        }
        let (listeners, name) = (self.listeners.clone(), self.name.clone());
        self.env.cluster.tasks.spawn("extension", async move {
            if let Some(listeners) = listeners.upgrade() {
                listeners.extension_changed(&name).await;
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Where it is asked for in different ways, it is enough that one can have it.
    fn fits(&self, extension: &Extension) -> Result<(), String> {
        let places: Vec<_> = self.places.iter().filter_map(Weak::upgrade).collect();
        let mut fits = places.iter().map(|place| place.accepts(extension));
        match fits.next() {
            Some(Err(why)) if !fits.any(|fits| fits.is_ok()) => Err(why),
            Some(_) | None => Ok(()),
        }
    }
}

impl Consumer for Slot {
    fn update(&self, update: &Update<'_>) -> Result<(), String> {
        let began = clock::now();
        let taken = match update.resources.iter().find(|raw| raw.name == self.name) {
            Some(raw) => self.take(raw).map_err(|why| {
                self.lock().error = Some(refusal(raw, &why));
                format!("{}: {why}", self.name)
            }),
            None if update.removed.contains(&self.name) => Ok(self.give_up()),
            None => Ok(false),
        };
        match &taken {
            // As Envoy, which counts that there is none also where there was none.
            Ok(changed) if *changed || update.removed.contains(&self.name) => {
                self.stats.config_reload.inc();
                self.stats.config_reload_time_ms.set(milliseconds());
            }
            Ok(_) => {}
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

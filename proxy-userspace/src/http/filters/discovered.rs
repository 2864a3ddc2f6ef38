//! HTTP filters whose configuration comes by ECDS.
//!
//! A [`Discovered`] stands in its chain for as long as its connection manager is there; what it does is swapped. The
//! next stream of any connection sees what has come, streams that have begun keep what they found, and no connection
//! manager is built again. Who follows the configuration says it to the [`Extension`], which all places share that ask
//! for the same name of the same source: [`Extension::publish`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwap;
use proxy_config::model::config_source::ConfigSource;
use proxy_config::model::discovered as model;
use proxy_config::model::http::FilterKind;
use proxy_config::model::http::filter::DiscoveredHttpFilter;
use proxy_config::model::http::filters::Router;

use super::jwt_authn::Remote;
use super::unserved::Refusing;
use super::{FilterCx, of_kind};
use crate::http::{BuildError, Filter, Stream, StreamFilter};
use crate::world::Parts;

/// What all connection managers of one configuration ask for, by name and source.
#[derive(Default)]
pub struct Extensions(Mutex<HashMap<Key, Weak<Extension>>>);

type Key = (Arc<str>, ConfigSource);

/// One that is asked for.
#[derive(Default)]
pub struct Extension(Mutex<State>);

#[derive(Default)]
struct State {
    come: Option<Arc<model::Extension>>,
    places: Vec<Weak<Discovered>>,
}

/// A filter in one chain.
pub struct Discovered {
    name: Arc<str>,
    /// Of its connection manager's stats.
    prefix: Arc<str>,
    model: DiscoveredHttpFilter,
    default: Arc<Now>,
    now: ArcSwap<Now>,
    /// Kept for those who come after.
    _extension: Arc<Extension>,
}

/// What it does.
enum Now {
    /// Nothing has come, and there is no default.
    Missing(Refusing),
    /// Nothing to any request.
    Nothing,
    Filter(Arc<dyn Filter>),
    /// It ends its chain.
    Router(Arc<Router>),
}

impl Extensions {
    /// For whoever follows it from now on. What those have who are there already stays theirs.
    pub fn follow(&self, name: &Arc<str>, source: &ConfigSource) -> Arc<Extension> {
        let mut all = lock(&self.0);
        all.retain(|_, extension| extension.strong_count() > 0);
        let extension = Arc::<Extension>::default();
        all.insert((name.clone(), source.clone()), Arc::downgrade(&extension));
        extension
    }

    fn of(&self, name: &Arc<str>, source: &ConfigSource) -> Arc<Extension> {
        let known = lock(&self.0).get(&(name.clone(), source.clone())).and_then(Weak::upgrade);
        known.unwrap_or_else(|| self.follow(name, source))
    }
}

impl Extension {
    /// What has come, or that there is nothing any longer: at every place that can have it. Where one of them cannot
    /// be built, all stays as it was.
    pub fn publish(&self, come: Option<Arc<model::Extension>>, parts: &Parts<'_>) -> Result<(), BuildError> {
        let mut state = lock(&self.0);
        state.places.retain(|place| place.strong_count() > 0);
        let mut built = Vec::with_capacity(state.places.len());
        for place in state.places.iter().filter_map(Weak::upgrade) {
            let now = match &come {
                None => Some(place.default.clone()),
                Some(come) => match place.model.accepts(come) {
                    Ok(kind) => Some(Arc::new(Now::of(kind, &place.cx(parts))?)),
                    // Asked for in another way there: what it has stays.
                    Err(_) => None,
                },
            };
            built.extend(now.map(|now| (place, now)));
        }
        for (place, now) in built {
            place.now.store(now);
        }
        state.come = come;
        Ok(())
    }
}

impl Discovered {
    pub(super) fn new(model: &DiscoveredHttpFilter, cx: &FilterCx<'_>) -> Result<Arc<Self>, BuildError> {
        let default = Arc::new(match &model.default {
            Some(kind) => Now::of(kind, cx)?,
            None => Now::Missing(Refusing::missing(cx)),
        });
        let extension = cx.parts.http.extensions.of(cx.name, &model.source);
        let mut state = lock(&extension.0);
        let come = state.come.as_ref().and_then(|come| model.accepts(come).ok());
        let now = come.map(|kind| Now::of(kind, cx).map(Arc::new)).transpose()?;
        let place = Arc::new(Self {
            name: cx.name.clone(),
            prefix: cx.prefix.into(),
            model: model.clone(),
            now: ArcSwap::new(now.unwrap_or_else(|| default.clone())),
            default,
            _extension: extension.clone(),
        });
        state.places.retain(|place| place.strong_count() > 0);
        state.places.push(Arc::downgrade(&place));
        drop(state);
        Ok(place)
    }

    fn cx<'a>(&'a self, parts: &'a Parts<'a>) -> FilterCx<'a> {
        FilterCx { name: &self.name, prefix: &self.prefix, parts }
    }

    /// Of one that ends its chain.
    pub fn router(&self) -> Option<Arc<Router>> {
        match self.now.load().as_ref() {
            Now::Router(router) => Some(router.clone()),
            Now::Missing(_) | Now::Nothing | Now::Filter(_) => None,
        }
    }
}

impl Now {
    fn of(kind: &FilterKind, cx: &FilterCx<'_>) -> Result<Self, BuildError> {
        if let FilterKind::Router(router) = kind {
            return Ok(Self::Router(Arc::new(router.as_ref().clone())));
        }
        Ok(of_kind(kind, cx)?.map_or(Self::Nothing, Self::Filter))
    }
}

impl Filter for Discovered {
    fn begin(&self, stream: &Stream) -> Option<Box<dyn StreamFilter>> {
        match self.now.load().as_ref() {
            Now::Missing(refusing) => refusing.begin(stream),
            Now::Filter(filter) => filter.begin(stream),
            Now::Nothing | Now::Router(_) => None,
        }
    }

    fn documents(&self) -> Vec<Arc<Remote>> {
        match self.now.load().as_ref() {
            Now::Filter(filter) => filter.documents(),
            Now::Missing(_) | Now::Nothing | Now::Router(_) => Vec::new(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

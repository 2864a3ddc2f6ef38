//! RDS: route configurations that connection managers name, each followed once for all that name it.
//!
//! What comes is published into the slot that the connection managers look into: the next request of any connection
//! finds it. A bad one is refused with the place of what is wrong, and the last good one holds.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proxy_config::model;
use proxy_config::model::http::{RouteConfiguration, RouteSource};
use proxy_config::model::network_filter::{NetworkFilter, RouteRef};
use proxy_config::xds::{Decoder, Kind, RawResource};

use super::clusters::Clusters;
use super::history::{Change, History};
use super::resource::{self, Origin, refusal};
use super::subscription::{Subscribed, milliseconds};
use crate::admin::view::{DynamicView, ErrorView};
use crate::clock;
use crate::http::Routes;
use crate::http::route::RouteSlot;
use crate::telemetry::stats::{RdsStats, Stats};
use crate::xds::{Consumer, Failure, Names, Subscription, Update};

/// A followed route configuration.
pub(super) struct Route {
    pub(super) name: Arc<str>,
    pub(super) subscribed: Subscribed,
    stats: Arc<RdsStats>,
    decoder: Decoder,
    slot: Arc<RouteSlot>,
    /// Where its virtual hosts count.
    registry: Arc<Stats>,
    clusters: Arc<Clusters>,
    history: History,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    origin: Option<Origin<RouteConfiguration>>,
    error: Option<ErrorView>,
    subscription: Option<Subscription>,
}

impl Route {
    /// `prefix`: of the stats of the first connection manager that names it, as in Envoy.
    pub(super) fn new(of: &RouteRef, prefix: &str, env: &super::Env, clusters: &Arc<Clusters>) -> Self {
        let prefix = format!("http.{prefix}.rds.{}", of.name.replace(':', "_"));
        let stats = &env.cluster.stats;
        Self {
            name: of.name.clone(),
            subscribed: Subscribed::new(format!("rds {}", of.name), Kind::Route, stats, &prefix),
            stats: stats.block(prefix),
            decoder: env.decoder.clone(),
            slot: env.http.routes.slot(of),
            registry: stats.clone(),
            clusters: clusters.clone(),
            history: env.history.clone(),
            state: Mutex::default(),
        }
    }

    pub(super) fn follow(self: &Arc<Self>, of: &RouteRef, env: &super::Env) {
        self.subscribed.begin(&of.source);
        let consumer: Arc<dyn Consumer> = self.clone();
        let names = Names::One(of.name.clone());
        let subscription = env.sources.subscribe(&of.source, Kind::Route, names, &consumer);
        self.lock().subscription = Some(subscription);
    }

    pub(super) fn view(&self) -> DynamicView {
        let state = self.lock();
        let active = state.origin.as_ref().map(|origin| origin.view(&self.name));
        DynamicView { active, error: state.error.clone(), ..resource::nothing(&self.name) }
    }

    /// Whether it is another one than before, which is noted.
    fn take(&self, raw: &RawResource, change: &mut Change) -> Result<bool, String> {
        if self.lock().origin.as_ref().is_some_and(|known| known.is(raw)) {
            return Ok(false);
        }
        let resource = self.subscribed.decode::<RouteConfiguration>(&self.decoder, raw)?.resource;
        let same = self.lock().origin.as_ref().is_some_and(|known| known.resource.model == resource.model);
        if !same {
            has_clusters(&resource.model, false, &self.clusters)?;
            let routes =
                Routes::new(resource.model.clone(), &self.registry).map_err(|error| error.to_string())?;
            self.slot.publish(Some(routes));
        }
        let mut state = self.lock();
        if !same {
            let before = state.origin.as_ref().map(|origin| origin.resource.raw.bytes());
            change.note(&self.name, before, Some(resource.raw.bytes()));
        }
        state.origin = Some(Origin::new(resource, raw.version.clone()));
        state.error = None;
        Ok(!same)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Consumer for Route {
    /// That a route configuration is gone is no reason to answer its requests with 404: Envoy does not either.
    fn update(&self, update: &Update<'_>) -> Result<(), String> {
        let began = clock::now();
        let mut change = self.subscribed.change(update.version);
        let taken = match update.resources.iter().find(|raw| raw.name == self.name) {
            Some(raw) => self.take(raw, &mut change).map_err(|why| {
                self.lock().error = Some(refusal(raw, &why));
                change.refuse(&self.name, why.as_str());
                format!("{}: {why}", self.name)
            }),
            None => {
                self.stats.update_empty.inc();
                Ok(false)
            }
        };
        if let Ok(true) = taken {
            self.stats.config_reload.inc();
            self.stats.config_reload_time_ms.set(milliseconds());
        }
        self.subscribed.answered(update.version, taken.as_ref().err().map(String::as_str), began);
        change.nack = taken.as_ref().err().map(|why| why.as_str().into());
        self.history.record(change);
        taken.map(|_| ())
    }

    fn failed(&self, failure: &Failure) {
        self.subscribed.failed(failure);
    }
}

/// The routes that stand in a listener itself name clusters that are there, unless they say that they need not.
pub(super) fn inline(listener: &model::Listener, clusters: &Clusters) -> Result<(), String> {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    for config in chains.flat_map(|chain| &chain.filters) {
        if let NetworkFilter::Http(hcm) = &config.filter
            && let RouteSource::Inline(routes) = &hcm.routes
        {
            has_clusters(routes, true, clusters)?;
        }
    }
    Ok(())
}

fn has_clusters(routes: &RouteConfiguration, by_default: bool, clusters: &Clusters) -> Result<(), String> {
    if !routes.validate_clusters.unwrap_or(by_default) {
        return Ok(());
    }
    match routes.clusters().into_iter().find(|name| !clusters.has(name)) {
        Some(name) => Err(format!("route: unknown cluster '{name}'")),
        None => Ok(()),
    }
}

//! A connection manager, as it runs.

use std::sync::Arc;

use proxy_config::model::http as model;
use proxy_config::model::http::filters::Router;

use super::filter::Filter;
use super::filters::{self, UpstreamFilters, discovered::Discovered, jwt_authn::Remote};
use super::manager::Prepared;
use super::route::{RouteSlot, Routes};
use super::{BuildError, Stream, router};
use crate::telemetry::access_log::Logger;
use crate::telemetry::stats::{Stats, stats_block};
use crate::telemetry::trace::{Reason, Tracer};
use crate::world::Parts;

/// `envoy.filters.network.http_connection_manager`.
pub struct Hcm {
    pub model: Arc<model::Hcm>,
    pub stats: Arc<HttpStats>,
    pub access_log: Arc<[Logger]>,
    /// The router's, of requests upstream.
    pub upstream_log: Arc<[Logger]>,
    /// In their order; the router, which ends the chain, is not among them.
    pub filters: Box<[Slot]>,
    /// Upgrades that have filters of their own: see [`Self::slots`].
    upgrades: Box<[(Arc<str>, Box<[Slot]>)]>,
    /// What ends the chain, where it comes by ECDS.
    last: Option<Arc<Discovered>>,
    /// The router's, of requests upstream.
    pub upstream_filters: UpstreamFilters,
    pub routes: Arc<RouteSlot>,
    pub tracer: Option<Arc<Tracer>>,
    pub(crate) traced: Arc<TracedStats>,
    pub(crate) prepared: Prepared,
}

impl Hcm {
    /// `listener`: the prefix of its stats.
    pub fn new(model: &model::Hcm, listener: &str, parts: &Parts<'_>) -> Result<Arc<Self>, BuildError> {
        let stats = HttpStats::of(&parts.cluster.stats, &model.stat_prefix);
        let access_log = parts.loggers(&model.access_log).map_err(|error| BuildError(error.to_string()))?;
        let upstream_log = router::settings_of(model).map(|router| &*router.upstream_log).unwrap_or_default();
        let upstream_log = parts.loggers(upstream_log).map_err(|error| BuildError(error.to_string()))?;
        let router = router::settings_of(model);
        let upstream_filters = router.map(|router| UpstreamFilters::new(&router.upstream_http_filters));
        let upstream_filters = upstream_filters.transpose()?.unwrap_or_default();
        let prefix = format!("http.{}", model.stat_prefix);
        let (filters, last) = slots(&model.filters, &prefix, parts)?;
        let upgrades = model.upgrades.iter().filter_map(|upgrade| {
            let filters = slots(upgrade.filters.as_ref()?, &prefix, parts);
            Some(filters.map(|(filters, _)| (upgrade.upgrade_type.clone(), filters)))
        });
        let upgrades = upgrades.collect::<Result<_, _>>()?;
        let routes = routes(&model.routes, parts)?;
        let prepared = Prepared::new(model, listener, parts)?;
        let tracer = model.tracing.as_ref().map(|tracing| Tracer::new(tracing, parts)).transpose()?;
        let traced = parts.cluster.stats.block(format!("{prefix}.tracing"));
        let model = Arc::new(model.clone());
        Ok(Arc::new(Self {
            model,
            stats,
            access_log,
            upstream_log,
            filters,
            upgrades,
            last,
            upstream_filters,
            routes,
            tracer,
            traced,
            prepared,
        }))
    }

    /// What its filters follow elsewhere.
    pub(crate) fn documents(&self) -> impl Iterator<Item = Arc<Remote>> {
        let upgrades = self.upgrades.iter().flat_map(|(_, filters)| filters);
        self.filters.iter().chain(upgrades).flat_map(|slot| slot.filter.documents())
    }

    /// The filters of a request; those of an upgrade may be others.
    pub fn slots(&self, upgrade: Option<&str>) -> &[Slot] {
        let own = upgrade.and_then(|to| self.upgrades.iter().find(|(kind, _)| kind.eq_ignore_ascii_case(to)));
        own.map_or(&self.filters, |(_, filters)| filters)
    }

    /// The router's settings of now, where they come by ECDS.
    pub(crate) fn discovered_router(&self) -> Option<Arc<Router>> {
        self.last.as_ref()?.router()
    }
}

/// And the last one, if what it does may change.
fn slots(
    models: &[model::HttpFilter],
    prefix: &str,
    parts: &Parts<'_>,
) -> Result<(Box<[Slot]>, Option<Arc<Discovered>>), BuildError> {
    let (mut slots, mut last) = (Vec::new(), None);
    for model in models {
        let built = filters::build(model, prefix, parts);
        let built = built.map_err(|error| BuildError(format!("http filter {}: {error}", model.name)))?;
        last = built.discovered;
        if let Some(filter) = built.filter {
            slots.push(Slot { name: model.name.clone(), filter, disabled: model.disabled });
        }
    }
    Ok((slots.into(), last))
}

fn routes(source: &model::RouteSource, parts: &Parts<'_>) -> Result<Arc<RouteSlot>, BuildError> {
    Ok(match source {
        model::RouteSource::Inline(routes) => {
            RouteSlot::of(Routes::new(routes.clone(), &parts.cluster.stats)?)
        }
        model::RouteSource::Rds(route) => parts.http.routes.slot(route),
    })
}

/// A filter in its place.
pub struct Slot {
    /// By which routes configure it.
    pub name: Arc<str>,
    pub filter: Arc<dyn Filter>,
    /// Of the configuration: a route may enable it.
    pub disabled: bool,
}

impl Slot {
    /// Whether the filter is on for a stream: as its route has it, which is the one that was found before any filter.
    pub fn is_on(&self, stream: &Stream) -> bool {
        let filters = stream.known_route().map(|route| route.filters());
        let disabled =
            filters.filter(|filters| !filters.is_empty()).and_then(|filters| filters.disabled(&self.name));
        !disabled.unwrap_or(self.disabled)
    }
}

stats_block! {
    /// `http.<stat_prefix>.`
    pub struct HttpStats {
        counter downstream_cx_total;
        counter downstream_cx_ssl_total;
        counter downstream_cx_http1_total;
        counter downstream_cx_http2_total;
        counter downstream_cx_http3_total;
        counter downstream_cx_destroy;
        counter downstream_cx_destroy_active_rq;
        counter downstream_cx_destroy_local;
        counter downstream_cx_destroy_local_active_rq;
        counter downstream_cx_destroy_remote;
        counter downstream_cx_destroy_remote_active_rq;
        gauge downstream_cx_active;
        gauge downstream_cx_http1_active;
        gauge downstream_cx_http2_active;
        gauge downstream_cx_ssl_active;
        gauge downstream_cx_upgrades_active;
        gauge downstream_cx_http1_soft_drain;
        gauge downstream_cx_http2_soft_drain;
        counter downstream_cx_upgrades_total;
        counter downstream_cx_protocol_error;
        histogram downstream_cx_length_ms;
        counter downstream_cx_rx_bytes_total;
        gauge downstream_cx_rx_bytes_buffered;
        counter downstream_cx_tx_bytes_total;
        gauge downstream_cx_tx_bytes_buffered;
        counter downstream_cx_drain_close;
        counter downstream_cx_idle_timeout;
        counter downstream_cx_max_duration_reached;
        counter downstream_cx_max_requests_reached;
        counter downstream_cx_overload_disable_keepalive;
        counter downstream_cx_delayed_close_timeout;
        counter downstream_flow_control_paused_reading_total;
        counter downstream_flow_control_resumed_reading_total;
        counter downstream_rq_total;
        counter downstream_rq_http1_total;
        counter downstream_rq_http2_total;
        counter downstream_rq_http3_total;
        gauge downstream_rq_active;
        counter downstream_rq_rejected_via_ip_detection;
        counter downstream_rq_response_before_rq_complete;
        counter downstream_rq_rx_reset;
        counter downstream_rq_tx_reset;
        counter downstream_rq_non_relative_path;
        counter downstream_rq_too_large;
        counter downstream_rq_too_many_premature_resets;
        counter downstream_rq_completed;
        counter downstream_rq_failed_path_normalization;
        counter downstream_rq_redirected_with_normalized_path;
        counter downstream_rq_1xx;
        counter downstream_rq_2xx;
        counter downstream_rq_3xx;
        counter downstream_rq_4xx;
        counter downstream_rq_5xx;
        counter downstream_rq_ws_on_non_ws_route;
        histogram downstream_rq_time;
        counter downstream_rq_idle_timeout;
        counter downstream_rq_max_duration_reached;
        counter downstream_rq_timeout;
        counter downstream_rq_header_timeout;
        counter downstream_rq_overload_close;
        counter rs_too_large;
        counter no_route;
        counter no_cluster;
        counter rq_total;
        counter rq_direct_response;
        counter rq_redirect;
        counter rq_reset_after_downstream_response_started;
        counter passthrough_internal_redirect_bad_location;
        counter passthrough_internal_redirect_unsafe_scheme;
        counter passthrough_internal_redirect_too_many_redirects;
        counter passthrough_internal_redirect_no_route;
        counter passthrough_internal_redirect_predicate;
    }
}

stats_block! {
    /// `http.<stat_prefix>.tracing.`
    pub struct TracedStats {
        counter random_sampling;
        counter service_forced;
        counter client_enabled;
        counter not_traceable;
        counter health_check;
    }
}

impl TracedStats {
    pub(crate) fn charge(&self, reason: Reason) {
        match reason {
            Reason::NotTraceable => self.not_traceable.inc(),
            Reason::Sampling => self.random_sampling.inc(),
            Reason::ServiceForced => self.service_forced.inc(),
            Reason::ClientForced => self.client_enabled.inc(),
        }
    }
}

impl HttpStats {
    pub fn of(stats: &Stats, prefix: &str) -> Arc<Self> {
        stats.block(format!("http.{prefix}"))
    }
}

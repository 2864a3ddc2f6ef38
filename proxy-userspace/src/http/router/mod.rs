//! The router: what ends each filter chain and carries a request to where its route says.
//!
//! [`run`] answers where the route does, or has [`Forward`] send the request: to a host of the cluster, by a connection
//! of its pool, again where the retry policy has it so. `timeouts`, `retry` and `replay` are what it goes by; `charge`
//! counts; `body` watches what is left of the exchange once the response's head is on its way.

mod body;
mod call;
mod charge;
mod forward;
mod mirror;
mod redirect;
mod replay;
mod reply;
mod retry;
mod strict;
mod tally;
#[cfg(test)]
pub(crate) mod tests;
mod timeouts;
mod tunnel;
mod upstream_log;
mod wishes;

use std::sync::Arc;

use proxy_config::model::http::filters::Router;
use proxy_config::model::http::{self as model, FilterKind};

use self::forward::Forward;
use super::filter::Stop;
use super::{Hcm, Stream, route};

pub use self::body::STREAM_DURATION;
pub use self::call::{announce, call, expect_within};
pub use self::charge::CodeStats;
pub(crate) use self::redirect::Followed;
pub(crate) use self::tally::{Tallies, Tally};
pub use self::timeouts::Timer;

/// What the router has made of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// Its head is in the stream's entry, its body in [`Stream::response_body`].
    Response,
    /// Another request, which goes the way of the first from its beginning: see [`redirect`].
    Redirect,
}

/// By the route of now.
pub async fn run(stream: &mut Stream) -> Result<Made, Stop> {
    let hcm = stream.conn.hcm.clone();
    hcm.stats.rq_total.inc();
    let Some(routed) = stream.route() else {
        hcm.stats.no_route.inc();
        return Err(reply::no_route().into());
    };
    let discovered = hcm.discovered_router();
    let router = discovered.as_deref().or_else(|| settings(&hcm));
    let keep_original = router.is_none_or(|router| !router.suppress_envoy_headers);
    if let Some(reply) = route::reply(stream, &routed, keep_original) {
        hcm.stats.rq_direct_response.inc();
        return Err(reply.into());
    }
    let Some(action) = routed.action() else {
        hcm.stats.no_cluster.inc();
        return Err(reply::no_cluster(None).into());
    };
    let tallies = routed.tallies(stream.http_mut());
    let cluster = routed.cluster(stream.request()).and_then(|name| stream.conn.cluster(&name));
    let Some(cluster) = cluster else {
        hcm.stats.no_cluster.inc();
        return Err(reply::no_cluster(Some(action)).into());
    };
    if let Some(reply) =
        router.and_then(|router| strict::check(&router.strict_check_headers, stream.request()))
    {
        return Err(reply.into());
    }
    Forward::new(stream, &hcm, router, (&routed, action, tallies), &cluster).run().await
}

/// None: all defaults.
fn settings(hcm: &Arc<Hcm>) -> Option<&Router> {
    settings_of(&hcm.model)
}

pub(super) fn settings_of(model: &model::Hcm) -> Option<&Router> {
    match &model.filters.last()?.kind {
        FilterKind::Router(router) => Some(router),
        FilterKind::Lua(_)
        | FilterKind::Cors
        | FilterKind::Fault(_)
        | FilterKind::Rbac(_)
        | FilterKind::GrpcStats(_)
        | FilterKind::GrpcWeb
        | FilterKind::ExtAuthz(_)
        | FilterKind::JwtAuthn(_)
        | FilterKind::LocalRateLimit(_)
        | FilterKind::HeaderMutation(_)
        | FilterKind::HealthCheck(_)
        | FilterKind::Compressor(_)
        | FilterKind::Buffer(_)
        | FilterKind::SetFilterState(_)
        | FilterKind::Csrf(_)
        | FilterKind::IstioAlpn(_)
        | FilterKind::MetadataExchange(_)
        | FilterKind::IstioStats(_)
        | FilterKind::UpstreamCodec
        | FilterKind::Discovered(_)
        | FilterKind::Unserved(_) => None,
    }
}

//! The filters, by their configurations.
//!
//! [`build`] makes a filter of its model; what routes say to filters is compiled with the routes, into
//! [`RouteFilters`].

mod per_route;

use std::sync::Arc;

use proxy_config::model::http::{FilterKind, HttpFilter};

pub use self::per_route::{RouteConfig, RouteFilters};
use super::{BuildError, Filter};
use crate::world::Parts;

/// What a filter is built with.
pub struct FilterCx<'a> {
    /// By which routes configure it.
    pub name: &'a Arc<str>,
    /// Of the connection manager's stats: `http.<stat_prefix>`.
    pub prefix: &'a str,
    pub parts: &'a Parts<'a>,
}

/// None: the router, or one that does nothing to any request.
pub fn build(
    model: &HttpFilter,
    prefix: &str,
    parts: &Parts<'_>,
) -> Result<Option<Arc<dyn Filter>>, BuildError> {
    of_kind(&model.kind, &FilterCx { name: &model.name, prefix, parts })
}

fn of_kind(kind: &FilterKind, cx: &FilterCx<'_>) -> Result<Option<Arc<dyn Filter>>, BuildError> {
    let _ = cx;
    Ok(match kind {
        FilterKind::Router(_) | FilterKind::UpstreamCodec => None,
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
        | FilterKind::Discovered(_)
        | FilterKind::Unserved(_) => None,
    })
}

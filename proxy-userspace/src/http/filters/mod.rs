//! The filters, by their configurations.
//!
//! [`build`] makes a filter of its model; what routes say to filters is compiled with the routes, into
//! [`RouteFilters`].

mod buffer;
mod common;
pub mod compressor;
pub mod cors;
pub mod csrf;
pub mod discovered;
mod edits;
pub mod ext_authz;
pub mod fault;
pub mod grpc_stats;
mod grpc_web;
mod header_mutation;
pub mod health_check;
mod istio;
pub mod jwt_authn;
pub mod local_ratelimit;
#[cfg(feature = "lua")]
mod lua;
mod mutation_rules;
mod per_route;
mod rbac;
mod set_filter_state;
#[cfg(test)]
mod tests;
mod unserved;
mod upstream;
mod watch;
mod whole;

use std::sync::Arc;

use proxy_config::model::http::{FilterKind, HttpFilter};

use self::buffer::Buffer;
use self::compressor::Compressor;
use self::cors::Cors;
use self::csrf::Csrf;
use self::discovered::Discovered;
use self::ext_authz::ExtAuthz;
use self::fault::Fault;
use self::grpc_stats::GrpcStats;
use self::grpc_web::GrpcWeb;
use self::header_mutation::HeaderMutation;
use self::health_check::HealthCheck;
use self::jwt_authn::JwtAuthn;
use self::local_ratelimit::LocalRateLimit;
pub use self::per_route::{RouteConfig, RouteFilters};
use self::rbac::Rbac;
use self::set_filter_state::SetFilterState;
use self::unserved::Refusing;
pub use self::upstream::UpstreamFilters;
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

/// A filter, ready for streams.
pub struct Built {
    /// None: the router, or one that does nothing to any request.
    pub filter: Option<Arc<dyn Filter>>,
    /// The same, where what it does may change.
    pub discovered: Option<Arc<Discovered>>,
}

pub fn build(model: &HttpFilter, prefix: &str, parts: &Parts<'_>) -> Result<Built, BuildError> {
    let cx = FilterCx { name: &model.name, prefix, parts };
    if let FilterKind::Discovered(config) = &model.kind {
        let discovered = Discovered::new(config, &cx)?;
        return Ok(Built { filter: Some(discovered.clone()), discovered: Some(discovered) });
    }
    Ok(Built { filter: of_kind(&model.kind, &cx)?, discovered: None })
}

fn of_kind(kind: &FilterKind, cx: &FilterCx<'_>) -> Result<Option<Arc<dyn Filter>>, BuildError> {
    Ok(match kind {
        FilterKind::Router(_) | FilterKind::UpstreamCodec => None,
        FilterKind::Cors => some(Cors::new(cx)),
        FilterKind::Fault(config) => some(Fault::new(config, cx)),
        FilterKind::Rbac(config) => some(Rbac::new(config, cx)),
        FilterKind::HeaderMutation(config) => some(HeaderMutation::new(config, cx)?),
        FilterKind::HealthCheck(config) => some(HealthCheck::new(config, cx)),
        FilterKind::Buffer(config) => some(Buffer::new(*config, cx)),
        FilterKind::SetFilterState(config) => some(SetFilterState::new(config, cx)?),
        FilterKind::Csrf(config) => some(Csrf::new(config, cx)),
        FilterKind::GrpcStats(config) => some(GrpcStats::new(config, cx)),
        FilterKind::GrpcWeb => some(GrpcWeb::new(cx)),
        FilterKind::Compressor(config) => some(Compressor::new(config, cx)),
        FilterKind::JwtAuthn(config) => some(JwtAuthn::new(config, cx)?),
        FilterKind::ExtAuthz(config) => some(ExtAuthz::new(config, cx)?),
        FilterKind::LocalRateLimit(config) => some(LocalRateLimit::new(config, cx)?),
        FilterKind::Unserved(config) => Refusing::unserved(config, cx).and_then(some),
        FilterKind::Discovered(config) => Some(Discovered::new(config, cx)?),
        #[cfg(feature = "lua")]
        FilterKind::Lua(config) => some(lua::Lua::new(config, cx)?),
        // A script may be what keeps somebody out.
        #[cfg(not(feature = "lua"))]
        FilterKind::Lua(_) => some(Refusing::unbuilt("envoy.filters.http.lua", cx)),
        FilterKind::IstioAlpn(config) => some(istio::alpn::Alpn::new(config)),
        FilterKind::MetadataExchange(config) => some(istio::peer_metadata::PeerMetadata::new(config, cx)),
        FilterKind::IstioStats(config) => some(istio::stats::IstioStats::new(config, cx)),
    })
}

#[expect(clippy::unnecessary_wraps, reason = "what each arm of the table is")]
fn some(filter: impl Filter + 'static) -> Option<Arc<dyn Filter>> {
    Some(Arc::new(filter))
}

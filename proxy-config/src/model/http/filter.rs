//! HTTP filters, and what routes say to them.

use std::sync::Arc;

use super::ext_authz::{ExtAuthz, ExtAuthzPerRoute};
use super::filters::{
    Buffer, Compressor, CompressorPerRoute, CorsPolicy, CsrfPolicy, Fault, GrpcStats, HealthCheckFilter,
    HttpLocalRateLimit, HttpRbac, Lua, LuaPerRoute, Mutations, MutationsFilter, Router, SetFilterState,
};
use super::istio::{IstioAlpn, IstioStats, PeerMetadata};
use super::jwt::{JwtAuthn, JwtPerRoute};
use crate::model::config_source::ConfigSource;
use crate::model::discovered::{Extension, ExtensionContent};
use crate::model::map::Map;

/// A filter with its name in the configuration, by which routes speak to it.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpFilter {
    pub name: Arc<str>,
    /// Only routes that say something to it have it.
    pub disabled: bool,
    pub kind: FilterKind,
}

#[derive(Clone, Debug, PartialEq)]
pub enum FilterKind {
    /// `envoy.filters.http.router`, the last one.
    Router(Box<Router>),
    Lua(Box<Lua>),
    /// Its policies are those of routes.
    Cors,
    Fault(Box<Fault>),
    Rbac(Box<HttpRbac>),
    GrpcStats(GrpcStats),
    GrpcWeb,
    ExtAuthz(Box<ExtAuthz>),
    JwtAuthn(Box<JwtAuthn>),
    LocalRateLimit(Box<HttpLocalRateLimit>),
    HeaderMutation(Box<MutationsFilter>),
    HealthCheck(Box<HealthCheckFilter>),
    Compressor(Box<Compressor>),
    Buffer(Buffer),
    SetFilterState(Box<SetFilterState>),
    Csrf(Box<CsrfPolicy>),
    /// `istio.alpn`.
    IstioAlpn(IstioAlpn),
    /// `istio.metadata_exchange`, `envoy.filters.http.peer_metadata`.
    MetadataExchange(Box<PeerMetadata>),
    IstioStats(Box<IstioStats>),
    /// `envoy.filters.http.upstream_codec`: the last one of a cluster's.
    UpstreamCodec,
    /// Its configuration comes by ECDS, under the filter's name.
    Discovered(Box<DiscoveredHttpFilter>),
    /// Accepted from a control plane, and not implemented.
    Unserved(Box<UnservedHttpFilter>),
}

impl FilterKind {
    /// Whether it ends the chain.
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::Router(_) | Self::UpstreamCodec => true,
            Self::Lua(_)
            | Self::Cors
            | Self::Fault(_)
            | Self::Rbac(_)
            | Self::GrpcStats(_)
            | Self::GrpcWeb
            | Self::ExtAuthz(_)
            | Self::JwtAuthn(_)
            | Self::LocalRateLimit(_)
            | Self::HeaderMutation(_)
            | Self::HealthCheck(_)
            | Self::Compressor(_)
            | Self::Buffer(_)
            | Self::SetFilterState(_)
            | Self::Csrf(_)
            | Self::IstioAlpn(_)
            | Self::MetadataExchange(_)
            | Self::IstioStats(_)
            | Self::Discovered(_)
            | Self::Unserved(_) => false,
        }
    }
}

/// `config_discovery` of an HTTP filter.
#[derive(Clone, Debug, PartialEq)]
pub struct DiscoveredHttpFilter {
    pub source: ConfigSource,
    /// Holds where nothing has come in time; without it a request is answered with 500 until something comes.
    pub default: Option<FilterKind>,
    /// The default holds at once; the listener does not wait.
    pub apply_default_config_without_warming: bool,
    /// What may come, without the host. Never empty.
    pub types: Vec<Arc<str>>,
    /// It ends its chain: what comes must do so too.
    pub last: bool,
}

impl DiscoveredHttpFilter {
    /// The filter that has come for this place under its name, or why it cannot be here, in Envoy's words.
    pub fn accepts<'e>(&self, extension: &'e Extension) -> Result<&'e FilterKind, String> {
        let Extension { name, type_name, content } = extension;
        if !self.types.contains(type_name) {
            let types = self.types.join(" or ");
            return Err(format!("Error: filter config has type URL {type_name} but expect {types}."));
        }
        match content {
            ExtensionContent::HttpFilter(kind) | ExtensionContent::Both(_, kind) => {
                self.fits(name, type_name, kind).map(|()| kind.as_ref())
            }
            ExtensionContent::NetworkFilter(_) | ExtensionContent::Unserved => {
                Err(format!("{type_name} is no http filter"))
            }
        }
    }

    pub(crate) fn fits(&self, name: &str, type_name: &str, kind: &FilterKind) -> Result<(), String> {
        match (kind.is_terminal(), self.last) {
            (true, true) | (false, false) => Ok(()),
            (true, false) => Err(format!(
                "Error: terminal filter named {name} of type {type_name} must be the last filter in a http filter \
                 chain."
            )),
            (false, true) => Err(format!(
                "Error: non-terminal filter named {name} of type {type_name} is the last filter in a http filter \
                 chain."
            )),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnservedHttpFilter {
    /// Envoy's own name of the extension.
    pub extension: Arc<str>,
    pub why: Arc<str>,
    /// Requests that come to it are answered with 501; else they pass it by.
    pub fails: bool,
}

/// What a route, a virtual host, a weighted cluster or all routes say to filters, by the filters' names.
pub type PerFilters = Map<PerFilter>;

/// That there is one turns a filter on which is disabled otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct PerFilter {
    /// `config.route.v3.FilterConfig`.
    pub disabled: bool,
    pub config: Option<PerRoute>,
}

/// It is looked for at the weighted cluster, the route, the virtual host, all routes; the first one holds.
#[derive(Clone, Debug, PartialEq)]
pub enum PerRoute {
    Lua(Box<LuaPerRoute>),
    Cors(Box<CorsPolicy>),
    Fault(Box<Fault>),
    /// `None`: there are no rules here.
    Rbac(Option<Box<HttpRbac>>),
    ExtAuthz(Box<ExtAuthzPerRoute>),
    JwtAuthn(JwtPerRoute),
    LocalRateLimit(Box<HttpLocalRateLimit>),
    HeaderMutation(Box<Mutations>),
    Compressor(CompressorPerRoute),
    /// `None`: it is disabled.
    Buffer(Option<Buffer>),
    SetFilterState(Box<SetFilterState>),
    Csrf(Box<CsrfPolicy>),
}

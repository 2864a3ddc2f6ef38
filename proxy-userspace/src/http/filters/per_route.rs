//! What routes say to filters, ready for use.

use std::sync::Arc;

use proxy_config::model::http::filter::{PerFilter, PerFilters, PerRoute};
use proxy_config::model::http::filters::{
    Buffer, CompressorPerRoute, CorsPolicy, CsrfPolicy, Fault, HttpRbac, LuaPerRoute,
};
use proxy_config::model::http::jwt::JwtPerRoute;

use super::ext_authz::PerRoute as ExtAuthzPerRoute;
use super::header_mutation::Mutations;
use super::local_ratelimit::Limit;
use super::set_filter_state::Values;
use crate::http::BuildError;

/// What a route says to filters, with what its virtual host and all routes say. Most say nothing.
#[derive(Clone, Default)]
pub struct RouteFilters(Vec<(Arc<str>, Vec<Level>)>);

/// Of one filter.
#[derive(Clone)]
struct Level {
    disabled: bool,
    config: Option<Arc<RouteConfig>>,
}

/// The configuration of a filter at one level of routes.
pub enum RouteConfig {
    Lua(Box<LuaPerRoute>),
    Cors(Box<CorsPolicy>),
    Fault(Arc<Fault>),
    /// None: there are no rules here.
    Rbac(Option<Box<HttpRbac>>),
    ExtAuthz(ExtAuthzPerRoute),
    JwtAuthn(JwtPerRoute),
    LocalRateLimit(Arc<Limit>),
    HeaderMutation(Box<Mutations>),
    Compressor(CompressorPerRoute),
    /// None: it is disabled.
    Buffer(Option<Buffer>),
    SetFilterState(Box<Values>),
    Csrf(Box<CsrfPolicy>),
}

impl RouteFilters {
    /// Of the least specific level.
    pub fn new(model: &PerFilters) -> Result<Self, BuildError> {
        Self::default().with(model)
    }

    /// The same with a level that is more specific than those that there are.
    pub fn with(&self, model: &PerFilters) -> Result<Self, BuildError> {
        let mut all = self.clone();
        for (name, said) in model {
            let level = Level::new(said)?;
            match all.0.iter_mut().find(|(known, _)| **known == **name) {
                Some((_, levels)) => levels.push(level),
                None => all.0.push((name.as_str().into(), vec![level])),
            }
        }
        Ok(all)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a filter is off for this route, or on where it is off otherwise; none: it is as it is. The most specific
    /// level that names the filter says it.
    pub fn disabled(&self, name: &str) -> Option<bool> {
        self.levels(name).last().map(|level| level.disabled)
    }

    /// Of the most specific level that has one.
    pub fn config(&self, name: &str) -> Option<&RouteConfig> {
        self.levels(name).iter().rev().find_map(|level| level.config.as_deref())
    }

    /// Of each level that has one, the least specific first.
    pub fn configs(&self, name: &str) -> impl DoubleEndedIterator<Item = &RouteConfig> {
        self.levels(name).iter().filter_map(|level| level.config.as_deref())
    }

    fn levels(&self, name: &str) -> &[Level] {
        self.0.iter().find(|(known, _)| **known == *name).map_or(&[], |(_, levels)| levels)
    }
}

impl Level {
    fn new(model: &PerFilter) -> Result<Self, BuildError> {
        let config = model.config.as_ref().map(RouteConfig::new).transpose()?;
        Ok(Self { disabled: model.disabled, config: config.map(Arc::new) })
    }
}

impl RouteConfig {
    fn new(model: &PerRoute) -> Result<Self, BuildError> {
        Ok(match model {
            PerRoute::Lua(lua) => Self::Lua(lua.clone()),
            PerRoute::Cors(policy) => Self::Cors(policy.clone()),
            PerRoute::Fault(fault) => Self::Fault(Arc::new(fault.as_ref().clone())),
            PerRoute::Rbac(rules) => Self::Rbac(rules.clone()),
            PerRoute::ExtAuthz(settings) => Self::ExtAuthz(ExtAuthzPerRoute::new(settings)?),
            PerRoute::JwtAuthn(requirement) => Self::JwtAuthn(requirement.clone()),
            PerRoute::LocalRateLimit(limit) => Self::LocalRateLimit(Arc::new(Limit::new(limit)?)),
            PerRoute::HeaderMutation(mutations) => Self::HeaderMutation(Box::new(Mutations::new(mutations)?)),
            PerRoute::Compressor(settings) => Self::Compressor(*settings),
            PerRoute::Buffer(buffer) => Self::Buffer(*buffer),
            PerRoute::SetFilterState(state) => Self::SetFilterState(Box::new(Values::new(state)?)),
            PerRoute::Csrf(policy) => Self::Csrf(policy.clone()),
        })
    }
}

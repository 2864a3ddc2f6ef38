//! HTTP: the connection manager, its routes and its filters.

pub(super) mod action;
mod action_parts;
mod discovered;
pub(super) mod filter;
pub(super) mod filters;
mod hcm;
mod hcm_parts;
pub(super) mod header;
pub(super) mod options;
mod per_filter;
mod rate_limit;
mod retry;
mod route;
pub(super) mod route_match;
mod tracing;

use super::registry::Message;

pub(super) const ALL_MESSAGES: &[&[Message]] = &[
    action::MESSAGES,
    action_parts::MESSAGES,
    filter::MESSAGES,
    filters::compressor::MESSAGES,
    filters::cors::MESSAGES,
    filters::ext_authz::MESSAGES,
    filters::fault::MESSAGES,
    filters::istio::MESSAGES,
    filters::jwt::MESSAGES,
    filters::local_ratelimit::MESSAGES,
    filters::lua::MESSAGES,
    filters::rbac::MESSAGES,
    filters::router::MESSAGES,
    filters::simple::MESSAGES,
    hcm::MESSAGES,
    hcm_parts::MESSAGES,
    header::MESSAGES,
    options::MESSAGES,
    per_filter::MESSAGES,
    rate_limit::MESSAGES,
    retry::MESSAGES,
    route::MESSAGES,
    route_match::MESSAGES,
    tracing::MESSAGES,
];

#[cfg(test)]
mod tests;

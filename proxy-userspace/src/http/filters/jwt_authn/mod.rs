//! `envoy.filters.http.jwt_authn`: who asks is told by a token, which somebody trusted has signed.

mod effects;
mod find;
mod jwks;
mod keys;
mod provider;
mod requirement;
mod status;
#[cfg(test)]
mod tests;
mod token;

use std::collections::BTreeMap;
use std::sync::Arc;

use http::header::{ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, StatusCode};
use proxy_config::model::http::jwt::{JwtAuthn as Model, JwtPerRoute, JwtRequirement};

pub use self::keys::Remote;
use self::provider::Provider;
use self::status::Status;
use super::{FilterCx, RouteConfig};
use crate::http::filter::{Filter, LocalReply, Step, Stop, StreamFilter};
use crate::http::route::Matcher;
use crate::http::{BuildError, RequestHead, Stream};
use crate::telemetry::Flags;
use crate::telemetry::stats::stats_block;

stats_block! {
    /// `http.<stat_prefix>.jwt_authn.[<stat_prefix>.]`
    pub struct JwtStats {
        counter allowed;
        counter cors_preflight_bypassed;
        counter denied;
        counter jwks_fetch_failed;
        counter jwks_fetch_success;
        counter jwt_cache_hit;
        counter jwt_cache_miss;
    }
}

/// As much of an URL as a refusal repeats.
const LONGEST_REALM: usize = 256;

pub(super) struct JwtAuthn(Arc<Shared>);

struct Shared {
    name: Arc<str>,
    model: Model,
    providers: BTreeMap<Arc<str>, Provider>,
    rules: Box<[(Matcher, Option<JwtRequirement>)]>,
    stats: Arc<JwtStats>,
}

struct One(Arc<Shared>);

/// What holds for a request.
enum Wanted<'a> {
    Nothing,
    Requirement(&'a JwtRequirement),
    /// A route names a requirement that is not there.
    Unknown(&'a str),
}

impl JwtAuthn {
    pub(super) fn new(model: &Model, cx: &FilterCx<'_>) -> Result<Self, BuildError> {
        let prefix = format!("{}.jwt_authn.{}", cx.prefix, model.stat_prefix);
        let stats: Arc<JwtStats> = cx.parts.cluster.stats.block(prefix.trim_end_matches('.'));
        let provider = |(name, model): (&Arc<str>, _)| {
            Provider::new(model, stats.clone())
                .map(|provider| (name.clone(), provider))
                .map_err(|why| BuildError(format!("provider {name}: {why}")))
        };
        let rule = |rule: &proxy_config::model::http::jwt::JwtRule| {
            Ok((Matcher::new(&rule.matcher, false)?, rule.requires.clone()))
        };
        Ok(Self(Arc::new(Shared {
            name: cx.name.clone(),
            providers: model.providers.iter().map(provider).collect::<Result<_, _>>()?,
            rules: model.rules.iter().map(rule).collect::<Result<_, BuildError>>()?,
            model: model.clone(),
            stats,
        })))
    }
}

impl Filter for JwtAuthn {
    fn begin(&self, _: &Stream) -> Option<Box<dyn StreamFilter>> {
        Some(Box::new(One(self.0.clone())))
    }

    fn documents(&self) -> Vec<Arc<Remote>> {
        self.0.providers.values().filter_map(Provider::remote).cloned().collect()
    }
}

impl StreamFilter for One {
    fn request<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let shared = self.0.clone();
        if shared.model.bypass_cors_preflight && is_preflight(stream.request()) {
            shared.stats.cors_preflight_bypassed.inc();
            return Step::Next;
        }
        let route = stream.route();
        let said = route.as_deref().and_then(|route| route.filters().config(&shared.name));
        let requirement = match shared.wanted(said, stream) {
            Wanted::Requirement(requirement) => requirement.clone(),
            Wanted::Nothing => {
                shared.stats.allowed.inc();
                return Step::Next;
            }
            Wanted::Unknown(name) => {
                shared.stats.denied.inc();
                let text = format!("Wrong requirement_name: {name}. Known names are: {}", shared.names());
                let details = details(&text);
                return Step::reply(LocalReply::new(StatusCode::FORBIDDEN, text, Flags::NONE, details));
            }
        };
        Step::wait(async move { shared.check(&requirement, stream).await })
    }
}

impl Shared {
    fn wanted<'a>(&'a self, said: Option<&'a RouteConfig>, stream: &Stream) -> Wanted<'a> {
        match said {
            Some(RouteConfig::JwtAuthn(JwtPerRoute::Disabled)) => return Wanted::Nothing,
            Some(RouteConfig::JwtAuthn(JwtPerRoute::Requirement(name))) => {
                let known = self.model.requirements.get(name);
                return known.map_or(Wanted::Unknown(name), Wanted::Requirement);
            }
            Some(_) | None => {}
        }
        let http = stream.http();
        let rule =
            self.rules.iter().find(|(matcher, _)| matcher.is_match(&stream.entry, http, stream.random));
        if let Some((_, requires)) = rule {
            return requires.as_ref().map_or(Wanted::Nothing, Wanted::Requirement);
        }
        let by_state = self
            .model
            .filter_state_rules
            .as_ref()
            .and_then(|rules| rules.requires.get(http.filter_state.get(&rules.name)?));
        by_state.map_or(Wanted::Nothing, Wanted::Requirement)
    }

    fn names(&self) -> String {
        self.model.requirements.keys().map(|name| &**name).collect::<Vec<_>>().join(",")
    }

    async fn check(&self, requirement: &JwtRequirement, stream: &mut Stream) -> Result<(), Stop> {
        match requirement::meets(self, requirement, stream).await {
            Ok(()) => {
                self.stats.allowed.inc();
                Ok(())
            }
            Err(status) => {
                self.stats.denied.inc();
                Err(self.refusal(status, stream.request()).into())
            }
        }
    }

    fn refusal(&self, status: Status, head: &RequestHead) -> LocalReply {
        let details = details(status.text());
        if self.model.strip_failure_response {
            return LocalReply::new(status.code(), "", Flags::NONE, details);
        }
        let mut reply = LocalReply::new(status.code(), status.text(), Flags::NONE, details);
        let mut path = head.path.as_str();
        while path.len() > LONGEST_REALM || !path.is_char_boundary(path.len()) {
            path = path.char_indices().next_back().map_or("", |(at, _)| &path[..at]);
        }
        let error = if status == Status::Missing { "" } else { ", error=\"invalid_token\"" };
        let told = format!("Bearer realm=\"{}://{}{path}\"{error}", head.scheme.as_str(), head.authority);
        if let Ok(told) = HeaderValue::from_str(&told) {
            reply.headers.insert(WWW_AUTHENTICATE, told);
        }
        reply
    }
}

/// Log lines are split at white space, so there is none in it.
fn details(text: &str) -> String {
    format!("jwt_authn_access_denied{{{}}}", text.replace(' ', "_"))
}

fn is_preflight(head: &RequestHead) -> bool {
    let has = |name| head.headers.get(name).is_some_and(|value: &HeaderValue| !value.is_empty());
    head.method == Method::OPTIONS && has(ORIGIN) && has(ACCESS_CONTROL_REQUEST_METHOD)
}

//! `envoy.filters.http.ext_authz`: a service elsewhere says who may ask for what.
//!
//! What it is asked is `check`'s, how it is reached `grpc`'s and `http`'s, and what its answer does to a request
//! `apply`'s. A request passes only by an answer that lets it pass, unless `failure_mode_allow` is set.

mod apply;
mod check;
mod grpc;
mod http;
mod shadow;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;
use proxy_config::authz::{Answer, Header, Refused, Verdict};
use proxy_config::model::http::ext_authz::{
    AuthzService, BodyToAuthz, CheckSettings, ExtAuthz as Model, ExtAuthzPerRoute,
};
use proxy_config::model::metadata::{Struct, Value};

use self::apply::Rejected;
use super::buffer::too_large;
use super::common::hits;
use super::whole::Whole;
use super::{FilterCx, RouteConfig};
use crate::clock::{self, Instant};
use crate::cluster::{Cluster, stat_prefix};
use crate::http::filter::{Filter, LocalReply, Step, Stop, StreamFilter};
use crate::http::manager::own_address;
use crate::http::pool::Caller;
use crate::http::{Body, BuildError, Request, Reset, Response, Routed, Stream, router};
use crate::network::rbac::value_at;
use crate::telemetry::Flags;
use crate::telemetry::stats::{Counter, Stats, stats_block};

const NAMESPACE: &str = "envoy.filters.http.ext_authz";
const ALLOWED_ANYWAY: HeaderName = HeaderName::from_static("x-envoy-auth-failure-mode-allowed");
const DENIED: &str = "ext_authz_denied";
const ERROR: &str = "ext_authz_error";
const INVALID: &str = "ext_authz_invalid";

stats_block! {
    /// `http.<stat_prefix>.ext_authz.[<stat_prefix>.]`
    pub struct ExtAuthzStats {
        counter denied;
        counter disabled;
        counter error;
        counter failure_mode_allowed;
        counter ignored_dynamic_metadata;
        counter invalid;
        counter ok;
        counter request_header_limits_reached;
        counter shadow_denied;
        counter shadow_error;
    }
}

pub(super) struct ExtAuthz(Arc<Shared>);

struct Shared {
    name: Arc<str>,
    model: Model,
    stats: Arc<ExtAuthzStats>,
    service: Service,
    /// Of the node: told of the destination.
    labels: BTreeMap<String, String>,
    /// Of this machine: who asks on behalf of a client.
    own: IpAddr,
    /// For the stats of the clusters that requests go to.
    all: Arc<Stats>,
    /// The name of filter state by which decisions go that nobody heeds.
    shadow: Arc<str>,
}

/// Whom to ask, ready for use.
enum Service {
    Grpc(Box<grpc::Service>),
    Http(Box<http::Service>),
}

/// What a route has said.
pub struct RouteCheck {
    settings: CheckSettings,
    service: Option<Service>,
}

/// Of one filter, at one level of routes.
pub enum PerRoute {
    Disabled,
    Check(Box<RouteCheck>),
}

struct One {
    shared: Arc<Shared>,
    /// For the response, where the request was let through.
    response: Vec<Header>,
}

/// What is known of a check before it is made.
struct Question {
    context_extensions: BTreeMap<String, String>,
    /// What the service is told of the request's body; none where it is not told of it.
    body: Option<Told>,
}

struct Told {
    data: Bytes,
    /// There is more.
    partial: bool,
    /// How many bytes have come.
    size: usize,
}

impl Service {
    fn new(model: &AuthzService) -> Result<Self, BuildError> {
        Ok(match model {
            AuthzService::Grpc(model) => Self::Grpc(Box::new(grpc::Service::new(model)?)),
            AuthzService::Http(model) => Self::Http(Box::new(http::Service::new(model)?)),
        })
    }
}

impl PerRoute {
    pub(super) fn new(model: &ExtAuthzPerRoute) -> Result<Self, BuildError> {
        Ok(match model {
            ExtAuthzPerRoute::Disabled => Self::Disabled,
            ExtAuthzPerRoute::Check(settings) => Self::Check(Box::new(RouteCheck {
                settings: settings.clone(),
                service: settings.service.as_ref().map(Service::new).transpose()?,
            })),
        })
    }
}

impl ExtAuthz {
    pub(super) fn new(model: &Model, cx: &FilterCx<'_>) -> Result<Self, BuildError> {
        let own = model.stat_prefix.as_deref().unwrap_or_default();
        let prefix = format!("{}.ext_authz.{own}", cx.prefix);
        let all = cx.parts.cluster.stats.clone();
        let labels = model.bootstrap_metadata_labels_key.as_ref();
        let labels = labels.and_then(|key| cx.parts.http.node_metadata.get(key));
        Ok(Self(Arc::new(Shared {
            name: cx.name.clone(),
            stats: all.block(prefix.trim_end_matches('.')),
            service: Service::new(&model.service)?,
            labels: labels.map(texts).unwrap_or_default(),
            own: own_address(),
            shadow: format!("{}.shadow", cx.name).into(),
            model: model.clone(),
            all,
        })))
    }
}

/// As Envoy: what is no text is empty.
fn texts(labels: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::List(_) | Value::Struct(_) => String::new(),
    };
    match labels {
        Value::Struct(fields) => fields.iter().map(|(key, value)| (key.clone(), text(value))).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::List(_) => {
            BTreeMap::new()
        }
    }
}

impl Filter for ExtAuthz {
    fn begin(&self, _: &Stream) -> Option<Box<dyn StreamFilter>> {
        Some(Box::new(One { shared: self.0.clone(), response: Vec::new() }))
    }
}

impl StreamFilter for One {
    fn request<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        // The router will answer that there is no way.
        let Some(route) = stream.route() else { return Step::Next };
        if let Some(RouteConfig::ExtAuthz(PerRoute::Disabled)) = route.filters().config(&self.shared.name) {
            return Step::Next;
        }
        let shared = &*self.shared;
        if !shared.is_enabled(stream) {
            shared.stats.disabled.inc();
            return match shared.model.deny_at_disable {
                true => Step::reply(reply(shared.model.status_on_error, ERROR)),
                false => Step::Next,
            };
        }
        Step::wait(self.check(route, stream))
    }

    fn response<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        apply::response(&self.response, stream);
        Step::Next
    }
}

impl One {
    async fn check(&mut self, route: Arc<Routed>, stream: &mut Stream) -> Result<(), Stop> {
        let shared = self.shared.clone();
        let of_route = match route.filters().config(&shared.name) {
            Some(RouteConfig::ExtAuthz(PerRoute::Check(check))) => Some(&**check),
            Some(_) | None => None,
        };
        let body = told(&shared.model, of_route.map(|check| &check.settings), stream).await?;
        let question = Question { context_extensions: shared.extensions(&route), body };
        let service = of_route.and_then(|check| check.service.as_ref()).unwrap_or(&shared.service);
        let asked = clock::now();
        let answer = match service {
            Service::Http(service) => match http::call(service, &shared, &question, stream) {
                Ok(call) => http::answer(service, call, &question).await,
                Err(failure) => Err(failure),
            },
            Service::Grpc(service) => match grpc::call(service, &shared, &question, stream) {
                Ok(call) => grpc::answer(call).await,
                Err(failure) => Err(failure),
            },
        };
        // What the request goes to, before the answer changes it.
        let target = route.cluster(stream.request()).and_then(|name| stream.conn.cluster(&name));
        let shadow = shared.model.shadow_mode.then(|| shadow::decision(&shared, &answer, asked));
        let heeded = shared.heed(answer, asked, target.as_ref(), stream);
        self.response = match shadow {
            None => heeded?,
            Some(decision) => {
                stream.http_mut().filter_state.insert(shared.shadow.clone(), decision.into());
                heeded.unwrap_or_default()
            }
        };
        Ok(())
    }
}

/// Reads as much of the body as the service is to be told; it goes on as a whole.
async fn told(
    model: &Model,
    of_route: Option<&CheckSettings>,
    stream: &mut Stream,
) -> Result<Option<Told>, Stop> {
    let wanted = of_route.and_then(|settings| settings.with_request_body).or(model.with_request_body);
    let disabled = of_route.is_some_and(|settings| settings.disable_request_body_buffering);
    // The bytes of an upgrade have no end to wait for.
    let skipped = disabled || stream.request().is_upgrade() || stream.request_body.is_end();
    let Some(BodyToAuthz { max_request_bytes, allow_partial_message, .. }) = wanted.filter(|_| !skipped)
    else {
        return Ok(None);
    };
    let limit = max_request_bytes as usize;
    let body = stream.request_body.take();
    let whole = match allow_partial_message {
        true => Whole::begin(body, limit).await?,
        false => Whole::read(body, limit).await?,
    };
    if whole.over {
        stream.request_body = whole.rest;
        return Err(too_large().into());
    }
    let size = whole.data.len();
    let (data, partial) = (whole.data.slice(..size.min(limit)), size > limit);
    stream.request_body = whole.body();
    Ok(Some(Told { data, partial, size }))
}

impl Shared {
    fn is_enabled(&self, stream: &Stream) -> bool {
        let by_metadata = self.model.filter_enabled_metadata.as_ref().is_none_or(|matcher| {
            let value = value_at(matcher, Some(&stream.http().dynamic_metadata));
            matcher.value.is_match(value) != matcher.invert
        });
        self.model.filter_enabled.is_none_or(hits) && by_metadata
    }

    /// Of all levels of the route; the most specific one wins.
    fn extensions(&self, route: &Routed) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for config in route.filters().configs(&self.name) {
            if let RouteConfig::ExtAuthz(PerRoute::Check(check)) = config {
                all.extend(check.settings.context_extensions.clone());
            }
        }
        all
    }

    /// What is left to do with the response, where the request goes on.
    fn heed(
        &self,
        answer: Result<Answer, Failure>,
        asked: Instant,
        target: Option<&Arc<Cluster>>,
        stream: &mut Stream,
    ) -> Result<Vec<Header>, Stop> {
        let count = |what: &str| {
            if let Some(target) = target {
                self.of_cluster(target, what).inc();
            }
        };
        let (verdict, metadata) = match answer {
            Ok(Answer { invalid_action: true, .. }) if self.model.validate_mutations => {
                return Err(self.rejected(count).into());
            }
            Ok(Answer { verdict, metadata, .. }) => (verdict, metadata),
            Err(Failure) => (Verdict::Error(Refused::default()), Struct::new()),
        };
        let took = matches!(verdict, Verdict::Ok(_)).then(|| clock::now() - asked);
        self.note(metadata, took, stream);
        match verdict {
            Verdict::Ok(allowed) => match apply::request(&self.model, allowed, stream) {
                Ok(response) => {
                    count("ok");
                    self.stats.ok.inc();
                    Ok(response)
                }
                Err(Rejected::Invalid) => Err(self.rejected(count).into()),
                Err(Rejected::TooLarge) => {
                    self.stats.request_header_limits_reached.inc();
                    Err(self.rejected(count).into())
                }
            },
            Verdict::Denied(refused) => {
                self.stats.denied.inc();
                count("denied");
                let status = refused.status.unwrap_or(403);
                if let Some(target) = target.filter(|_| self.model.charge_cluster_response_stats) {
                    target.pools().codes().charge_internal(status);
                }
                if self.model.validate_mutations && !refused.headers.iter().all(apply::is_valid) {
                    return Err(self.rejected(count).into());
                }
                Err(self.refusal(refused, status, DENIED).into())
            }
            Verdict::Error(refused) => {
                count("error");
                self.stats.error.inc();
                if self.model.failure_mode_allow && !self.model.shadow_mode {
                    count("failure_mode_allowed");
                    self.stats.failure_mode_allowed.inc();
                    if self.model.failure_mode_allow_header_add {
                        let headers = &mut stream.request_mut().headers;
                        headers.append(ALLOWED_ANYWAY, HeaderValue::from_static("true"));
                    }
                    return Ok(Vec::new());
                }
                if self.model.validate_mutations && !refused.headers.iter().all(apply::is_valid) {
                    return Err(self.rejected(count).into());
                }
                let status = refused.status.unwrap_or(self.model.status_on_error);
                Err(self.refusal(refused, status, ERROR).into())
            }
        }
    }

    fn of_cluster(&self, target: &Cluster, what: &str) -> Arc<Counter> {
        let dot = if self.model.stat_prefix.is_some() { "." } else { "" };
        let own = self.model.stat_prefix.as_deref().unwrap_or_default();
        self.all.counter(format!("{}.ext_authz.{own}{dot}{what}", stat_prefix(&target.model)))
    }

    /// The service's answer cannot be heeded.
    fn rejected(&self, count: impl Fn(&str)) -> LocalReply {
        count("invalid");
        self.stats.invalid.inc();
        reply(500, INVALID)
    }

    fn refusal(&self, refused: Refused, status: u16, details: &'static str) -> LocalReply {
        let mut body = Bytes::from(refused.body);
        if self.model.max_denied_response_body_bytes > 0 {
            body.truncate(self.model.max_denied_response_body_bytes as usize);
        }
        let mut reply = reply(status, details);
        reply.body = body;
        apply::local(&refused.headers, &mut reply.headers);
        reply
    }

    fn note(&self, mut metadata: Struct, took: Option<Duration>, stream: &mut Stream) {
        if metadata.is_empty() {
            return;
        }
        if !self.model.enable_dynamic_metadata_ingestion {
            self.stats.ignored_dynamic_metadata.inc();
            return;
        }
        if let Some(took) = took {
            #[expect(
                clippy::cast_precision_loss,
                reason = "a double is what there is, and holds any time-out"
            )]
            metadata.insert("ext_authz_duration".to_owned(), Value::Number(took.as_millis() as f64));
        }
        let all = stream.http_mut().dynamic_metadata.0.get_or_insert_with(NAMESPACE, Struct::new);
        for (key, value) in metadata.iter() {
            all.insert(key.clone(), value.clone());
        }
    }
}

/// A question on its way.
struct Call {
    cluster: Arc<Cluster>,
    caller: Caller,
    request: Request,
    timeout: Option<Duration>,
}

impl Call {
    /// The same once more.
    fn again(&self, body: Bytes) -> Self {
        let Self { cluster, caller, request, timeout } = self;
        let request = Request { head: request.head.clone(), body: Body::full(body) };
        Self { cluster: cluster.clone(), caller: caller.clone(), request, timeout: *timeout }
    }

    async fn send(self) -> Result<Response, Reset> {
        router::call(&self.cluster, &self.caller, self.request, self.timeout).await
    }
}

/// There is no answer that one could heed.
#[derive(Debug)]
struct Failure;

/// Without a body. What is no status refuses as any other.
fn reply(status: u16, details: &'static str) -> LocalReply {
    let status = StatusCode::from_u16(status).ok().filter(|status| (200..600).contains(&status.as_u16()));
    LocalReply::new(status.unwrap_or(StatusCode::FORBIDDEN), "", Flags::UAEX, details)
}

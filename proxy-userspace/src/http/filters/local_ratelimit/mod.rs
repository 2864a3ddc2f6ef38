//! `envoy.filters.http.local_ratelimit`: so many requests in a time, without asking anyone.

mod descriptors;
mod limiter;

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use http::{HeaderName, HeaderValue, StatusCode};
use proxy_config::model::http::filters::{HttpLocalRateLimit as Model, VhRateLimits};
use proxy_config::model::http::{Action, RouteAction};

pub(super) use self::descriptors::Descriptor;
use self::limiter::{Answer, Limiter};
use super::common::hits;
use super::edits::Edits;
use super::{FilterCx, RouteConfig};
use crate::http::filter::{Filter, LocalReply, Step, StreamFilter};
use crate::http::{BuildError, ConnCx, Routed, Stream};
use crate::listener::TokenBucket;
use crate::telemetry::Flags;
use crate::telemetry::stats::{Stats, stats_block};

stats_block! {
    /// `<stat_prefix>.http_local_rate_limit.`
    pub struct LocalRateLimitStats {
        counter enabled;
        counter enforced;
        counter ok;
        counter rate_limited;
        counter shadow_mode;
    }
}

/// A limit, of the filter or of a route.
pub struct Limit {
    model: Model,
    request_headers: Edits,
    response_headers: Edits,
    limiter: Limiter,
    /// Where each connection has its own.
    connections: Mutex<Vec<(Weak<ConnCx>, Arc<Limiter>)>>,
    stats: OnceLock<Arc<LocalRateLimitStats>>,
}

pub(super) struct LocalRateLimit(Arc<Shared>);

struct Shared {
    name: Arc<str>,
    own: Arc<Limit>,
    all: Arc<Stats>,
    /// The node's cluster.
    cluster: Arc<str>,
}

struct One {
    shared: Arc<Shared>,
    /// The bucket that has decided, to be told about in the response.
    asked: Option<(Arc<Limit>, Arc<TokenBucket>)>,
}

impl Limit {
    pub(super) fn new(model: &Model) -> Result<Self, BuildError> {
        Ok(Self {
            request_headers: Edits::of_options(&model.request_headers_to_add_when_not_enforced)?,
            response_headers: Edits::of_options(&model.response_headers_to_add)?,
            limiter: Limiter::new(model),
            model: model.clone(),
            connections: Mutex::default(),
            stats: OnceLock::new(),
        })
    }

    fn stats(&self, all: &Stats) -> &LocalRateLimitStats {
        self.stats.get_or_init(|| all.block(format!("{}.http_local_rate_limit", self.model.stat_prefix)))
    }

    fn ask(&self, descriptors: &[Descriptor], stream: &Stream) -> Answer {
        if !self.model.per_connection {
            return self.limiter.ask(descriptors);
        }
        self.of_connection(&stream.conn).ask(descriptors)
    }

    fn of_connection(&self, conn: &Arc<ConnCx>) -> Arc<Limiter> {
        let mut all = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, limiter)) =
            all.iter().find(|(known, _)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(conn)))
        {
            return limiter.clone();
        }
        all.retain(|(conn, _)| conn.strong_count() > 0);
        let limiter = Arc::new(Limiter::new(&self.model));
        all.push((Arc::downgrade(conn), limiter.clone()));
        limiter
    }

    /// What a request counts as.
    fn descriptors(&self, stream: &Stream, route: Option<&Routed>, cluster: &str) -> Vec<Descriptor> {
        let model = &self.model;
        if model.descriptors.is_empty() {
            return Vec::new();
        }
        let of = |limits: &[_]| descriptors::of(limits, model.stage, stream, route, cluster);
        if !model.rate_limits.is_empty() {
            return of(&model.rate_limits);
        }
        let Some((action, host)) = route.and_then(|route| Some((action(route)?, route.host()?))) else {
            return Vec::new();
        };
        let mut all = of(&action.rate_limits);
        let include = match model.vh_rate_limits {
            _ if action.include_vh_rate_limits => true,
            VhRateLimits::Include => true,
            VhRateLimits::Override => action.rate_limits.is_empty(),
            VhRateLimits::Ignore => false,
        };
        if include {
            all.extend(of(&host.rate_limits));
        }
        all
    }
}

fn action(route: &Routed) -> Option<&RouteAction> {
    let Action::Route(action) = &route.model()?.action else { return None };
    Some(action)
}

impl LocalRateLimit {
    pub(super) fn new(model: &Model, cx: &FilterCx<'_>) -> Result<Self, BuildError> {
        let own = Arc::new(Limit::new(model)?);
        let all = cx.parts.cluster.stats.clone();
        own.stats(&all);
        let cluster = cx.parts.http.node.cluster.clone();
        Ok(Self(Arc::new(Shared { name: cx.name.clone(), own, all, cluster })))
    }
}

impl Filter for LocalRateLimit {
    fn begin(&self, _: &Stream) -> Option<Box<dyn StreamFilter>> {
        Some(Box::new(One { shared: self.0.clone(), asked: None }))
    }
}

impl StreamFilter for One {
    fn request<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let shared = &*self.shared;
        let route = stream.route();
        let limit = match route.as_deref().and_then(|route| route.filters().config(&shared.name)) {
            Some(RouteConfig::LocalRateLimit(own)) => own,
            Some(_) | None => &shared.own,
        };
        if !limit.model.filter_enabled.is_some_and(hits) {
            return Step::Next;
        }
        let stats = limit.stats(&shared.all);
        stats.enabled.inc();
        let descriptors = limit.descriptors(stream, route.as_deref(), &shared.cluster);
        let answer = limit.ask(&descriptors, stream);
        stats.shadow_mode.add(answer.shadowed);
        let bucket = answer.bucket.clone();
        self.asked = answer.bucket.map(|bucket| (limit.clone(), bucket));
        if answer.allowed {
            stats.ok.inc();
            return Step::Next;
        }
        stats.rate_limited.inc();
        if !limit.model.filter_enforced.is_some_and(hits) {
            limit.request_headers.request(&mut stream.entry);
            return Step::Next;
        }
        stats.enforced.inc();
        Step::reply(refusal(limit, bucket.as_deref(), stream))
    }

    fn response<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let Some((limit, bucket)) = &self.asked else { return Step::Next };
        let Some(head) = stream.response_mut().filter(|_| limit.model.enable_x_ratelimit_headers) else {
            return Step::Next;
        };
        let mut add = |name, value: u64| head.headers.append(HeaderName::from_static(name), value.into());
        add("x-ratelimit-limit", u64::from(bucket.max_tokens()));
        add("x-ratelimit-remaining", bucket.remaining());
        add("x-ratelimit-reset", seconds(bucket));
        Step::Next
    }
}

fn refusal(limit: &Limit, bucket: Option<&TokenBucket>, stream: &Stream) -> LocalReply {
    let status = StatusCode::from_u16(limit.model.status).unwrap_or(StatusCode::TOO_MANY_REQUESTS);
    let mut reply = LocalReply::new(status, "local_rate_limited", Flags::RL, "local_rate_limited");
    limit.response_headers.headers(&mut reply.headers, &stream.entry);
    if let (true, Some(bucket)) = (limit.model.enable_retry_after_header, bucket) {
        reply.headers.insert(http::header::RETRY_AFTER, HeaderValue::from(seconds(bucket)));
    }
    reply.grpc_status = limit.model.rate_limited_as_resource_exhausted.then_some(8);
    reply
}

/// Until there is a token, rounded up.
fn seconds(bucket: &TokenBucket) -> u64 {
    let wait = bucket.until_next();
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

//! `envoy.filters.http.csrf`: what changes something must come from the site itself.

use std::sync::Arc;

use http::header::{ORIGIN, REFERER};
use http::{HeaderName, Method, StatusCode};
use proxy_config::model::http::filters::CsrfPolicy;

use super::common::hits;
use super::{FilterCx, RouteConfig};
use crate::http::filter::{Filter, LocalReply, Step, StreamFilter};
use crate::http::{RequestHead, Stream};
use crate::telemetry::Flags;
use crate::telemetry::stats::stats_block;

stats_block! {
    /// `http.<stat_prefix>.csrf.`
    pub struct CsrfStats {
        counter missing_source_origin;
        counter request_invalid;
        counter request_valid;
    }
}

pub(super) struct Csrf(Arc<Shared>);

struct Shared {
    name: Arc<str>,
    policy: CsrfPolicy,
    stats: Arc<CsrfStats>,
}

struct One(Arc<Shared>);

impl Csrf {
    pub(super) fn new(policy: &CsrfPolicy, cx: &FilterCx<'_>) -> Self {
        let stats = cx.parts.cluster.stats.block(format!("{}.csrf", cx.prefix));
        Self(Arc::new(Shared { name: cx.name.clone(), policy: policy.clone(), stats }))
    }
}

impl Filter for Csrf {
    fn begin(&self, stream: &Stream) -> Option<Box<dyn StreamFilter>> {
        let changes = [Method::POST, Method::PUT, Method::DELETE, Method::PATCH];
        let changes = changes.contains(&stream.request().method);
        changes.then(|| Box::new(One(self.0.clone())) as Box<dyn StreamFilter>)
    }
}

impl StreamFilter for One {
    fn request<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let Shared { name, policy, stats } = &*self.0;
        let route = stream.route();
        let policy = match route.as_deref().and_then(|route| route.filters().config(name)) {
            Some(RouteConfig::Csrf(own)) => own,
            Some(_) | None => policy,
        };
        let enabled = hits(policy.enabled);
        if !enabled && !policy.shadow_enabled.is_some_and(hits) {
            return Step::Next;
        }
        let head = stream.request();
        match source(head) {
            None => stats.missing_source_origin.inc(),
            Some(source) if allows(policy, &source, head) => {
                stats.request_valid.inc();
                return Step::Next;
            }
            Some(_) => stats.request_invalid.inc(),
        }
        if !enabled {
            return Step::Next;
        }
        let reply =
            LocalReply::new(StatusCode::FORBIDDEN, "Invalid origin", Flags::NONE, "csrf_origin_mismatch");
        Step::reply(reply)
    }
}

fn allows(policy: &CsrfPolicy, source: &str, head: &RequestHead) -> bool {
    source == authority(&head.authority)
        || policy.additional_origins.iter().any(|origin| origin.is_match(source))
}

/// Where a request says that it comes from.
fn source(head: &RequestHead) -> Option<String> {
    let of = |name: HeaderName| {
        let value = head.headers.get(name)?.to_str().ok()?;
        (!value.is_empty() && value != "null").then(|| authority(value).to_owned())
    };
    of(ORIGIN).or_else(|| of(REFERER))
}

/// Host and port of a URL; a text that is none is taken as it is.
fn authority(url: &str) -> &str {
    match url.split_once("://") {
        Some((_, rest)) => rest.split(['/', '?', '#']).next().unwrap_or_default(),
        None => url,
    }
}

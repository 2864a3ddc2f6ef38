//! `envoy.filters.http.cors`: answers preflights, and tells a browser who may read a response.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use proxy_config::model::http::filters::CorsPolicy;

use super::common::hits;
use super::{FilterCx, RouteConfig};
use crate::http::filter::{Filter, LocalReply, Step, StreamFilter};
use crate::http::{Routed, Stream};
use crate::telemetry::Flags;
use crate::telemetry::stats::stats_block;

stats_block! {
    /// `http.<stat_prefix>.cors.`
    pub struct CorsStats {
        counter origin_invalid;
        counter origin_valid;
    }
}

pub(super) struct Cors {
    name: Arc<str>,
    stats: Arc<CorsStats>,
}

struct One {
    name: Arc<str>,
    stats: Arc<CorsStats>,
    /// That of a request from an origin that is allowed, with the route whose policies allow it.
    allowed: Option<(HeaderValue, Arc<Routed>)>,
}

impl Cors {
    pub(super) fn new(cx: &FilterCx<'_>) -> Self {
        Self { name: cx.name.clone(), stats: cx.parts.cluster.stats.block(format!("{}.cors", cx.prefix)) }
    }
}

impl Filter for Cors {
    fn begin(&self, stream: &Stream) -> Option<Box<dyn StreamFilter>> {
        stream.request().headers.contains_key(header::ORIGIN).then(|| {
            let one = One { name: self.name.clone(), stats: self.stats.clone(), allowed: None };
            Box::new(one) as Box<dyn StreamFilter>
        })
    }
}

impl StreamFilter for One {
    fn request<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let Some(route) = stream.route() else { return Step::Next };
        let policies = Policies::new(&route, &self.name);
        let (enabled, shadow) = policies.enabled();
        let headers = &stream.request().headers;
        let Some(origin) = headers.get(header::ORIGIN).filter(|origin| !origin.is_empty()) else {
            return Step::Next;
        };
        if !enabled && !shadow {
            return Step::Next;
        }
        let allowed = policies.allow(origin);
        if allowed {
            self.stats.origin_valid.inc()
        } else {
            self.stats.origin_invalid.inc()
        }
        if !enabled {
            return Step::Next;
        }
        let origin = allowed.then(|| origin.clone());
        let preflight = stream.request().method == Method::OPTIONS
            && headers.get(header::ACCESS_CONTROL_REQUEST_METHOD).is_some_and(|method| !method.is_empty());
        let reply = (preflight && (allowed || !policies.forward_not_matching()))
            .then(|| preflight_reply(&policies, origin.as_ref(), headers));
        drop(policies);
        self.allowed = origin.map(|origin| (origin, route));
        reply.map_or(Step::Next, Step::reply)
    }

    fn response<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let (Some((origin, route)), Some(head)) = (&self.allowed, stream.response_mut()) else {
            return Step::Next;
        };
        let policies = Policies::new(route, &self.name);
        let headers = &mut head.headers;
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if policies.said(|policy| policy.allow_credentials) == Some(true) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        set(headers, header::ACCESS_CONTROL_EXPOSE_HEADERS, policies.text(|policy| &policy.expose_headers));
        Step::Next
    }
}

fn preflight_reply(policies: &Policies<'_>, origin: Option<&HeaderValue>, request: &HeaderMap) -> LocalReply {
    let mut reply = LocalReply::new(StatusCode::OK, "", Flags::NONE, "cors_response");
    let headers = &mut reply.headers;
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
    if policies.said(|policy| policy.allow_credentials) == Some(true) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    let mut wanted = |name, text: &str, asked| match text {
        "*" => {
            headers.insert(name, request.get(asked).cloned().unwrap_or(HeaderValue::from_static("")));
        }
        text => set(headers, name, text),
    };
    wanted(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        policies.text(|policy| &policy.allow_methods),
        header::ACCESS_CONTROL_REQUEST_METHOD,
    );
    wanted(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        policies.text(|policy| &policy.allow_headers),
        header::ACCESS_CONTROL_REQUEST_HEADERS,
    );
    set(headers, header::ACCESS_CONTROL_MAX_AGE, policies.text(|policy| &policy.max_age));
    let asks = request.get("access-control-request-private-network").is_some_and(|asks| asks == "true");
    if asks && policies.said(|policy| policy.allow_private_network_access) == Some(true) {
        let name = HeaderName::from_static("access-control-allow-private-network");
        headers.insert(name, HeaderValue::from_static("true"));
    }
    reply
}

fn set(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let (false, Ok(value)) = (text.is_empty(), HeaderValue::from_str(text)) {
        headers.insert(name, value);
    }
}

/// Those of a route, the most specific first: each field is that of the first one which says it.
struct Policies<'a>(Vec<&'a CorsPolicy>);

impl<'a> Policies<'a> {
    fn new(route: &'a Routed, name: &str) -> Self {
        let policies = route.filters().configs(name).rev().filter_map(|config| {
            let RouteConfig::Cors(policy) = config else { return None };
            Some(&**policy)
        });
        Self(policies.collect())
    }

    /// Whether it holds, and whether it is counted: as the first one says.
    fn enabled(&self) -> (bool, bool) {
        let Some(first) = self.0.first() else { return (false, false) };
        (hits(first.enabled), first.shadow_enabled.is_some_and(hits))
    }

    fn allow(&self, origin: &HeaderValue) -> bool {
        let Some(policy) = self.0.iter().find(|policy| !policy.allow_origin.is_empty()) else { return false };
        let origin = String::from_utf8_lossy(origin.as_bytes());
        policy.allow_origin.iter().any(|one| one.is_match("*") || one.is_match(&origin))
    }

    fn forward_not_matching(&self) -> bool {
        self.0.first().is_none_or(|policy| policy.forward_not_matching_preflights)
    }

    fn text(&self, field: fn(&CorsPolicy) -> &str) -> &'a str {
        self.0.iter().map(|policy| field(policy)).find(|text| !text.is_empty()).unwrap_or_default()
    }

    fn said(&self, field: fn(&CorsPolicy) -> Option<bool>) -> Option<bool> {
        self.0.iter().find_map(|policy| field(policy))
    }
}

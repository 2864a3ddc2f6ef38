//! Traces: whether a request is sampled is said in its id; its span goes with the stream.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use crate::http::Stream;
use crate::net::Direction;
use crate::telemetry::trace::reason::Asked;
use crate::telemetry::trace::{OfRoute, Reason, Tracer};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CLIENT_TRACE_ID: HeaderName = HeaderName::from_static("x-client-trace-id");
const FORCE_TRACE: HeaderName = HeaderName::from_static("x-envoy-force-trace");
const DECORATOR: HeaderName = HeaderName::from_static("x-envoy-decorator-operation");

/// What is known of a stream's trace besides its span.
#[derive(Debug, Default)]
pub struct Traced {
    /// None before it has begun.
    reason: Option<Reason>,
    /// What the other side is told that it is called.
    name: Option<Arc<str>>,
    /// By the other side.
    named: bool,
}

/// Once the request has its id, and its route is known. A stream that begins anew is part of a trace if its head says so.
pub(super) fn begin(stream: &mut Stream, first: bool) {
    let conn = stream.conn.clone();
    let Some(tracer) = &conn.hcm.tracer else { return };
    let route = stream.known_route().and_then(|route| route.tracing().cloned());
    let reason = decide(stream, tracer, route.as_deref(), first);
    stream.traced.reason = Some(reason);
    let decorated = !tracer.names(route.as_deref());
    stream.span = tracer.begin(stream, reason.is_traced(), route).map(Box::new);
    if decorated {
        decorate(stream);
        hear(stream);
    }
}

/// The route is another one than when the trace began: it is sampled, tagged and named as that one says. Its context is no
/// other, and who has named it is not told.
pub(in crate::http) fn refresh(stream: &mut Stream) {
    let Some(before) = stream.traced.reason else { return };
    let conn = stream.conn.clone();
    let Some(tracer) = &conn.hcm.tracer else { return };
    let route = stream.known_route().and_then(|route| route.tracing().cloned());
    let reason = decide(stream, tracer, route.as_deref(), true);
    stream.traced.reason = Some(reason);
    if reason.is_traced() != before.is_traced()
        && let Some(span) = &mut stream.span
    {
        span.context.sampled = Some(reason.is_traced());
        stream.http_mut().traced = reason.is_traced();
    }
    let decorated = !tracer.names(route.as_deref());
    if let Some(mut span) = stream.span.take() {
        span.follow(route, &stream.entry);
        stream.span = Some(span);
    }
    if decorated {
        decorate(stream);
    }
}

/// Whether the request is traced, which its id says from then on.
fn decide(stream: &mut Stream, tracer: &Tracer, route: Option<&OfRoute>, first: bool) -> Reason {
    let conn = stream.conn.clone();
    let config = &conn.hcm.model.request_id;
    let headers = &mut stream.request_mut().headers;
    let mut id = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let asked = Asked {
        client_trace_id: headers.contains_key(CLIENT_TRACE_ID),
        force_trace: headers.contains_key(FORCE_TRACE),
        before: if config.pack_trace_reason { Reason::of(&id) } else { Reason::NotTraceable },
    };
    let decided = if first { tracer.sampling(route).decide(&id, asked) } else { Some(Reason::NotTraceable) };
    let reason = match config.use_for_trace_sampling {
        true => decided.unwrap_or(Reason::NotTraceable),
        false => Reason::Sampling,
    };
    let told = decided.filter(|_| first && config.use_for_trace_sampling && config.pack_trace_reason);
    if told.is_some_and(|told| told != asked.before) {
        reason.put(&mut id);
        if let Ok(value) = HeaderValue::try_from(id) {
            headers.insert(REQUEST_ID, value);
        }
    }
    reason
}

/// There is a response to a request.
pub(super) fn charge(stream: &Stream) {
    if let Some(reason) = stream.traced.reason {
        stream.conn.hcm.traced.charge(reason);
    }
}

/// The route names the span; what goes out tells the next hop, what comes in has been told.
fn decorate(stream: &mut Stream) {
    let routed = stream.known_route().cloned();
    let decorator = routed.as_ref().and_then(|routed| routed.model()?.decorator.as_ref());
    if let Some(decorator) = decorator {
        name(stream, &decorator.operation);
    }
    stream.traced.name = decorator.filter(|own| own.propagate).map(|own| own.operation.clone());
    if is_egress(stream) {
        let own = stream.traced.name.as_deref().and_then(|own| HeaderValue::from_str(own).ok());
        if let Some(own) = own {
            stream.request_mut().headers.insert(DECORATOR, own);
        }
    }
}

/// What comes in may have been named by whom it comes from.
fn hear(stream: &mut Stream) {
    if is_egress(stream) {
        return;
    }
    if let Some(told) = stream.request_mut().headers.remove(DECORATOR).filter(|told| !told.is_empty()) {
        name(stream, &String::from_utf8_lossy(told.as_bytes()));
        stream.traced.named = true;
    }
}

/// The other way: a server tells its client how it names such requests.
pub(super) fn respond(stream: &mut Stream) {
    if stream.conn.hcm.tracer.is_none() {
        return;
    }
    if is_egress(stream) {
        let told = stream.response_mut().and_then(|response| response.headers.remove(DECORATOR));
        if let Some(told) = told.filter(|told| !told.is_empty()) {
            name(stream, &String::from_utf8_lossy(told.as_bytes()));
        }
        return;
    }
    // Who has named it need not be told.
    let own = stream.traced.name.take().filter(|_| !stream.traced.named);
    let own = own.and_then(|own| HeaderValue::from_str(&own).ok());
    if let (Some(own), Some(response)) = (own, stream.response_mut()) {
        response.headers.insert(DECORATOR, own);
    }
}

fn is_egress(stream: &Stream) -> bool {
    stream.entry.origin.direction == Some(Direction::Outbound)
}

fn name(stream: &mut Stream, operation: &str) {
    if let Some(span) = &mut stream.span {
        operation.clone_into(&mut span.name);
    }
}

/// The stream is over.
pub(super) fn end(stream: &mut Stream) {
    if let Some(span) = stream.upstream_span.take() {
        span.finish_child(&stream.entry);
    }
    if let Some(span) = stream.span.take() {
        span.finish(&stream.entry);
    }
}

//! Traces: whether a request is sampled is said in its id; its span goes with the stream.

use http::{HeaderName, HeaderValue};

use crate::http::Stream;
use crate::net::Direction;
use crate::telemetry::trace::Reason;
use crate::telemetry::trace::reason::{self, Asked};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CLIENT_TRACE_ID: HeaderName = HeaderName::from_static("x-client-trace-id");
const FORCE_TRACE: HeaderName = HeaderName::from_static("x-envoy-force-trace");
const DECORATOR: HeaderName = HeaderName::from_static("x-envoy-decorator-operation");

/// Once the request has its id, and its route is known.
pub(super) fn begin(stream: &mut Stream) {
    let conn = stream.conn.clone();
    let Some(tracer) = &conn.hcm.tracer else { return };
    let config = &conn.hcm.model.request_id;
    let headers = &mut stream.request_mut().headers;
    let id = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let before = if config.pack_trace_reason { Reason::of(&id) } else { Reason::NotTraceable };
    let asked = Asked {
        client_trace_id: headers.contains_key(CLIENT_TRACE_ID),
        force_trace: headers.contains_key(FORCE_TRACE),
        before,
    };
    let reason = if config.use_for_trace_sampling {
        reason::decide(&tracer.model, &id, asked)
    } else {
        Reason::Sampling
    };
    if config.pack_trace_reason && reason != before {
        let mut id = id;
        reason.put(&mut id);
        if let Ok(value) = HeaderValue::try_from(id) {
            headers.insert(REQUEST_ID, value);
        }
    }
    stream.span = tracer.begin(stream, reason.is_traced());
    decorate(stream);
}

/// The route names the span; what goes out tells the next hop, what comes in has been told.
fn decorate(stream: &mut Stream) {
    let egress = stream.entry.origin.direction == Some(Direction::Outbound);
    let told = stream.request_mut().headers.remove(DECORATOR).filter(|_| !egress);
    let routed = stream.known_route().cloned();
    let decorator = routed.as_ref().and_then(|routed| routed.model()?.decorator.as_ref());
    let own = decorator.map(|decorator| decorator.operation.to_string());
    let told = told.and_then(|told| told.to_str().ok().map(str::to_owned));
    if let (Some(name), Some(span)) = (told.or_else(|| own.clone()), &mut stream.span) {
        span.name = name;
    }
    let propagates = decorator.is_some_and(|decorator| decorator.propagate);
    if let (true, true, Some(own)) = (egress, propagates, own)
        && let Ok(value) = HeaderValue::try_from(own)
    {
        stream.request_mut().headers.insert(DECORATOR, value);
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

//! Traces: whether a request is sampled is said in its id; its span goes with the stream.

use http::{HeaderName, HeaderValue};

use crate::http::Stream;
use crate::net::Direction;
use crate::telemetry::trace::Reason;
use crate::telemetry::trace::reason::Asked;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CLIENT_TRACE_ID: HeaderName = HeaderName::from_static("x-client-trace-id");
const FORCE_TRACE: HeaderName = HeaderName::from_static("x-envoy-force-trace");
const DECORATOR: HeaderName = HeaderName::from_static("x-envoy-decorator-operation");

/// Once the request has its id, and its route is known.
pub(super) fn begin(stream: &mut Stream) {
    let conn = stream.conn.clone();
    let Some(tracer) = &conn.hcm.tracer else { return };
    let route = stream.known_route().and_then(|route| route.tracing().cloned());
    let config = &conn.hcm.model.request_id;
    let headers = &mut stream.request_mut().headers;
    let mut id = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let asked = Asked {
        client_trace_id: headers.contains_key(CLIENT_TRACE_ID),
        force_trace: headers.contains_key(FORCE_TRACE),
        before: if config.pack_trace_reason { Reason::of(&id) } else { Reason::NotTraceable },
    };
    let decided = tracer.sampling(route.as_deref()).decide(&id, asked);
    let reason = match config.use_for_trace_sampling {
        true => decided.unwrap_or(Reason::NotTraceable),
        false => Reason::Sampling,
    };
    let told = decided.filter(|_| config.use_for_trace_sampling && config.pack_trace_reason);
    if told.is_some_and(|told| told != asked.before) {
        reason.put(&mut id);
        if let Ok(value) = HeaderValue::try_from(id) {
            headers.insert(REQUEST_ID, value);
        }
    }
    conn.hcm.traced.charge(reason);
    let decorated = !tracer.names(route.as_deref());
    stream.span = tracer.begin(stream, reason.is_traced(), route);
    if decorated {
        decorate(stream);
    }
}

/// The route names the span; what goes out tells the next hop, what comes in has been told.
fn decorate(stream: &mut Stream) {
    let routed = stream.known_route().cloned();
    let decorator = routed.as_ref().and_then(|routed| routed.model()?.decorator.as_ref());
    if let Some(decorator) = decorator {
        name(stream, &decorator.operation);
        stream.decorated = decorator.propagate.then(|| decorator.operation.clone());
    }
    if is_egress(stream) {
        let own = stream.decorated.as_deref().and_then(|own| HeaderValue::from_str(own).ok());
        if let Some(own) = own {
            stream.request_mut().headers.insert(DECORATOR, own);
        }
    } else if let Some(told) = stream.request_mut().headers.remove(DECORATOR).filter(|told| !told.is_empty())
    {
        name(stream, &String::from_utf8_lossy(told.as_bytes()));
        // Who has named it need not be told.
        stream.decorated = None;
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
    let own = stream.decorated.take().and_then(|own| HeaderValue::from_str(&own).ok());
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

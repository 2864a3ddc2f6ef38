//! Responses of the proxy's own.

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};

use crate::http::filter::LocalReply;
use crate::http::{Body, Reset, ResetReason, ResponseHead, Stream, route};
use crate::telemetry::{Flags, Side};

/// To a request whose body is not what its framing says, while nothing has been answered: as Envoy.
pub(super) fn to_broken_body(reset: &Reset) -> Option<LocalReply> {
    if reset.side != Side::Downstream || reset.reason != ResetReason::Protocol {
        return None;
    }
    let status = match &*reset.details {
        "http1.headers_too_large" | "http1.too_many_headers" => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        _ => StatusCode::BAD_REQUEST,
    };
    Some(LocalReply::new(
        status,
        status.canonical_reason().unwrap_or_default(),
        Flags::DPE,
        reset.details.clone(),
    ))
}

/// Puts it in the place of whatever response there was.
pub(super) fn make(stream: &mut Stream, reply: LocalReply) {
    let LocalReply { status, body, headers, details, flags, grpc_status: _, routed } = reply;
    let mut head = ResponseHead::new(status);
    if !body.is_empty() {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    for (name, value) in headers {
        if let Some(name) = name {
            head.headers.insert(name, value);
        }
    }
    stream.flag(flags);
    stream.details(details);
    stream.local_reply = true;
    stream.response_body = Body::full(body);
    stream.http_mut().response = Some(head);
    if routed && let Some(route) = stream.known_route().cloned() {
        route::finalize_response(stream, &route);
    }
}

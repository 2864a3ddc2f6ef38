//! Responses of the proxy's own.

use http::HeaderValue;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};

use crate::http::filter::LocalReply;
use crate::http::{Body, ResponseHead, Stream, route};

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

//! Responses of the proxy's own.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use proxy_config::model::http as model;
use proxy_config::model::http::Content;
use proxy_config::model::http::action::BodyFormat;

use crate::http::filter::LocalReply;
use crate::http::route::{self, Addition, Whose};
use crate::http::{Body, BuildError, Reset, ResetReason, ResponseHead, Stream};
use crate::telemetry::access_log::http::of_http_status;
use crate::telemetry::access_log::{Filter, Format};
use crate::telemetry::{Flags, Side};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// `local_reply_config`, compiled.
#[derive(Default)]
pub(super) struct Replies {
    mappers: Box<[Mapper]>,
    format: Option<Shape>,
}

struct Mapper {
    filter: Filter,
    status: Option<StatusCode>,
    body: Option<Bytes>,
    shape: Option<Shape>,
    headers: Box<[Addition]>,
}

/// What a body is put into, and what that is.
struct Shape {
    format: Format,
    media: HeaderValue,
}

impl Replies {
    pub(super) fn new(model: &model::hcm::LocalReplies) -> Result<Self, BuildError> {
        Ok(Self {
            mappers: model.mappers.iter().map(Mapper::new).collect::<Result<_, _>>()?,
            format: model.body_format.as_ref().map(Shape::new).transpose()?,
        })
    }

    /// The first mapper that takes it; else it is only put into shape.
    fn rewrite(&self, stream: &mut Stream, body: &mut Bytes) -> Option<HeaderValue> {
        let mapper = self.mappers.iter().find(|mapper| mapper.filter.accepts(&stream.entry));
        if let Some(mapper) = mapper {
            if let Some(own) = &mapper.body {
                body.clone_from(own);
            }
            route::add_headers(&mapper.headers, Whose::Response, &mut stream.entry);
            if let (Some(status), Some(head)) = (mapper.status, stream.response_mut()) {
                head.status = status;
            }
        }
        let shape = mapper.and_then(|mapper| mapper.shape.as_ref()).or(self.format.as_ref())?;
        stream.http_mut().local_reply_body = Some(body.clone());
        *body = shape.format.line(&stream.entry).into();
        Some(shape.media.clone())
    }
}

impl Mapper {
    fn new(model: &model::hcm::ResponseMapper) -> Result<Self, BuildError> {
        let status = model.status.map(StatusCode::from_u16).transpose();
        Ok(Self {
            filter: Filter::new(&model.filter),
            status: status.map_err(|error| BuildError(error.to_string()))?,
            body: model.body.as_ref().map(content).transpose()?,
            shape: model.body_format.as_ref().map(Shape::new).transpose()?,
            headers: model.headers_to_add.iter().map(Addition::new).collect::<Result<_, _>>()?,
        })
    }
}

impl Shape {
    fn new(model: &BodyFormat) -> Result<Self, BuildError> {
        let format = Format::new(&model.format).map_err(|error| BuildError(error.to_string()))?;
        let media = HeaderValue::from_str(&model.content_type);
        let media = media.map_err(|_| BuildError(format!("{:?} is no media type", model.content_type)))?;
        Ok(Self { format, media })
    }
}

fn content(content: &Content) -> Result<Bytes, BuildError> {
    match content {
        Content::Inline(bytes) => Ok(Bytes::copy_from_slice(bytes)),
        Content::File(path) => std::fs::read(path)
            .map(Bytes::from)
            .map_err(|error| BuildError(format!("{}: {error}", path.display()))),
        Content::Environment(name) => std::env::var(&**name)
            .map(Bytes::from)
            .map_err(|_| BuildError(format!("the environment has no variable {name}"))),
    }
}

/// To a request whose body is not what its framing says, while nothing has been answered: as Envoy.
pub(super) fn to_broken_body(reset: &Reset) -> Option<LocalReply> {
    if reset.side != Side::Downstream || reset.reason != ResetReason::Protocol {
        return None;
    }
    let status = match &*reset.details {
        "http1.headers_too_large" | "http1.too_many_headers" => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        _ => StatusCode::BAD_REQUEST,
    };
    if reset.details.starts_with(NO_BASE64) {
        return Some(LocalReply::new(status, NO_BASE64_TEXT, Flags::NONE, reset.details.clone()));
    }
    Some(LocalReply::new(
        status,
        status.canonical_reason().unwrap_or_default(),
        Flags::DPE,
        reset.details.clone(),
    ))
}

/// Of a body that `grpc_web` reads: it is no fault of the codec's.
const NO_BASE64: &str = "grpc_base_64_decode_failed";
const NO_BASE64_TEXT: &str = "Bad gRPC-web request, invalid base64 data.";

/// Puts it in the place of whatever response there was.
pub(super) fn make(stream: &mut Stream, reply: LocalReply) {
    let LocalReply { status, mut body, headers, details, flags, grpc_status, routed } = reply;
    let mut head = ResponseHead::new(status);
    replace(&mut head.headers, headers);
    stream.flag(flags);
    stream.details(details);
    stream.local_reply = true;
    stream.upload = None;
    name_cluster(stream);
    stream.http_mut().response = Some(head);
    if routed && let Some(route) = stream.known_route().cloned() {
        route::finalize_response(stream, &route);
    }
    let conn = stream.conn.clone();
    let media = conn.hcm.prepared.replies.rewrite(stream, &mut body);
    if stream.grpc {
        grpc(stream, &body, grpc_status);
    } else {
        plain(stream, body, media);
    }
    // A log has nothing of it, as in Envoy.
    stream.http_mut().local_reply_body = None;
}

/// Of a request that did not come so far: Envoy's log knows where it would have gone.
fn name_cluster(stream: &mut Stream) {
    if stream.entry.upstream.cluster.is_some() {
        return;
    }
    let name = stream.known_route().and_then(|route| route.cluster(stream.request()));
    if let Some(cluster) = name.and_then(|name| stream.conn.cluster(&name)) {
        stream.entry.upstream.cluster = Some(cluster.model.name.clone());
        stream.entry.upstream.cluster_model = Some(cluster.model.clone());
    }
}

/// Each name's values take the place of those that are there.
fn replace(into: &mut HeaderMap, headers: HeaderMap) {
    let mut name = None;
    for (next, value) in headers {
        match next {
            Some(next) => {
                into.insert(next.clone(), value);
                name = Some(next);
            }
            None => {
                if let Some(name) = &name {
                    into.append(name.clone(), value);
                }
            }
        }
    }
}

fn plain(stream: &mut Stream, body: Bytes, media: Option<HeaderValue>) {
    let is_head = stream.request().method == Method::HEAD;
    let Some(head) = stream.response_mut() else { return };
    if body.is_empty() {
        head.headers.remove(CONTENT_LENGTH);
        head.headers.remove(CONTENT_TYPE);
    } else {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        if media.is_some() || !head.headers.contains_key(CONTENT_TYPE) {
            let media = media.unwrap_or_else(|| HeaderValue::from_static("text/plain"));
            head.headers.insert(CONTENT_TYPE, media);
        }
    }
    stream.response_body = if is_head { Body::empty() } else { Body::full(body) };
}

/// Trailers only: the status in a header, the body as its message.
fn grpc(stream: &mut Stream, body: &Bytes, status: Option<u32>) {
    let Some(head) = stream.response_mut() else { return };
    let status = status.unwrap_or_else(|| of_http_status(head.status.as_u16()));
    head.status = StatusCode::OK;
    let headers = &mut head.headers;
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.remove(CONTENT_LENGTH);
    if headers.get(GRPC_STATUS).is_none_or(HeaderValue::is_empty) {
        headers.insert(GRPC_STATUS, HeaderValue::from(status));
    }
    let message = body.strip_suffix(b"\n").unwrap_or(body);
    if !message.is_empty()
        && headers.get(GRPC_MESSAGE).is_none_or(HeaderValue::is_empty)
        && let Ok(message) = HeaderValue::from_str(&percent_encoded(message))
    {
        headers.insert(GRPC_MESSAGE, message);
    }
    stream.response_body = Body::empty();
}

/// As gRPC has it: what is not printable, and the percent sign.
fn percent_encoded(text: &[u8]) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text {
        match byte {
            b'%' | ..b' ' | b'\x7f'.. => encoded.push_str(&format!("%{byte:02X}")),
            printable => encoded.push(char::from(*printable)),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_grpc_are_encoded() {
        assert_eq!(percent_encoded("a b%c\né~".as_bytes()), "a b%25c%0A%C3%A9~");
    }
}

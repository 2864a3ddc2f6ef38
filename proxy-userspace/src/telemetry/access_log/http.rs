//! Operators that read a stream of HTTP. On a connection they yield nothing, or zero, as in Envoy.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderMap, HeaderName, Version};

use super::value::Value;
use crate::clock::Instant;
use crate::http::Progress;
use crate::http::message::joined;
use crate::telemetry::{Entry, HttpEntry};

#[derive(Debug)]
pub(super) enum Operator {
    Header {
        of: Message,
        name: Name,
        alternative: Option<Name>,
    },
    Path {
        with_query: bool,
        of: PathOf,
    },
    Query {
        name: Option<String>,
    },
    FilterState {
        key: String,
        form: StateForm,
    },
    GrpcStatus(GrpcFormat),
    Field(fn(&Entry, &HttpEntry) -> Value<'static>),
    /// Zero on a connection.
    Count(fn(&Entry, &HttpEntry) -> u64),
    /// A text of the stream's own.
    Text(fn(&HttpEntry) -> Option<&str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Request,
    Response,
    Trailers,
}

/// Parsed once: standard names are then found without hashing a text.
#[derive(Debug)]
pub(super) enum Name {
    Pseudo(String),
    Header(HeaderName),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PathOf {
    /// `x-envoy-original-path`, else the path.
    OriginalOrPath,
    Original,
    Path,
}

/// How an object of filter state is shown.
#[derive(Clone, Debug)]
pub(super) enum StateForm {
    /// As JSON.
    Typed,
    Plain,
    Field(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GrpcFormat {
    Camel,
    Snake,
    Number,
}

impl Operator {
    /// `None`: it is not one of HTTP's.
    pub(super) fn new(name: &str, argument: Option<&str>) -> Result<Option<Self>, String> {
        let text = argument.unwrap_or_default();
        if let Some((_, read)) = FIELDS.iter().find(|(field, _)| *field == name) {
            return Ok(Some(Self::Field(*read)));
        }
        if let Some((_, read)) = COUNTS.iter().find(|(field, _)| *field == name) {
            return Ok(Some(Self::Count(*read)));
        }
        if let Some((_, read)) = TEXTS.iter().find(|(field, _)| *field == name) {
            return Ok(Some(Self::Text(*read)));
        }
        Ok(Some(match name {
            "REQ" | "REQUEST_HEADER" => header(Message::Request, text)?,
            "RESP" | "RESPONSE_HEADER" => header(Message::Response, text)?,
            "TRAILER" | "RESPONSE_TRAILER" => header(Message::Trailers, text)?,
            "PATH" => path(text),
            "QUERY_PARAM" => Self::Query { name: Some(text.to_owned()) },
            "QUERY_PARAMS" => Self::Query { name: None },
            "FILTER_STATE" => {
                let mut parts = text.splitn(3, ':');
                let key = parts.next().unwrap_or_default().to_owned();
                // Of texts, which most are, all show the same.
                let form = match (parts.next(), parts.next()) {
                    (Some("PLAIN"), _) => StateForm::Plain,
                    (Some("FIELD"), Some(field)) => StateForm::Field(field.to_owned()),
                    (_, _) => StateForm::Typed,
                };
                Self::FilterState { key, form }
            }
            "GRPC_STATUS" => Self::GrpcStatus(match text {
                "SNAKE_STRING" => GrpcFormat::Snake,
                "NUMBER" => GrpcFormat::Number,
                _ => GrpcFormat::Camel,
            }),
            "GRPC_STATUS_NUMBER" => Self::GrpcStatus(GrpcFormat::Number),
            _ => return Ok(None),
        }))
    }

    pub(super) fn value<'a>(&'a self, entry: &'a Entry) -> Value<'a> {
        if let Self::FilterState { key, form } = self
            && let Some(peer) = entry.peers.by_key(key)
        {
            return match form {
                StateForm::Plain => Value::text(peer.plain()),
                StateForm::Typed => Value::text(peer.json().to_string()),
                StateForm::Field(field) => Value::option(peer.field(field)),
            };
        }
        let Some(http) = entry.http.as_deref() else {
            return match self {
                Self::Count(_) => Value::Number(0),
                Self::FilterState { key, form: StateForm::Typed } => {
                    let state =
                        entry.facts.extra.as_ref().and_then(|extra| extra.filter_state.get(key.as_str()));
                    state.map_or(Value::Missing, |state| Value::Json(state.clone()))
                }
                Self::Header { .. }
                | Self::Path { .. }
                | Self::Query { .. }
                | Self::FilterState { form: StateForm::Plain | StateForm::Field(_), .. }
                | Self::GrpcStatus(_)
                | Self::Field(_)
                | Self::Text(_) => Value::Missing,
            };
        };
        match self {
            Self::Header { of, name, alternative } => {
                let found = of.find(http, name);
                let found = found.or_else(|| alternative.as_ref().and_then(|name| of.find(http, name)));
                found.map_or(Value::Missing, text)
            }
            Self::Path { with_query, of } => Value::option(of.path(http).map(|path| match with_query {
                true => path,
                false => path.split('?').next().unwrap_or_default(),
            })),
            Self::Query { name: None } => Value::option(http.request.query()),
            Self::Query { name: Some(name) } => Value::option(parameter(http.request.query(), name)),
            Self::FilterState { key, .. } => {
                Value::option(http.filter_state.get(key.as_str()).map(AsRef::as_ref))
            }
            Self::GrpcStatus(format) => grpc_status(http, *format),
            Self::Field(read) => read(entry, http),
            Self::Count(read) => Value::Number(read(entry, http)),
            Self::Text(read) => Value::option(read(http)),
        }
    }
}

fn header(of: Message, argument: &str) -> Result<Operator, String> {
    let mut names = argument.split('?').map(|name| {
        let name = name.to_ascii_lowercase();
        if name.starts_with(':') {
            return Ok(Name::Pseudo(name));
        }
        let parsed = HeaderName::try_from(name.as_str());
        parsed.map(Name::Header).map_err(|_| format!("{name:?} cannot be a header's name"))
    });
    let name = names.next().unwrap_or_else(|| Err("a header's name is missing".to_owned()))?;
    Ok(Operator::Header { of, name, alternative: names.next().transpose()? })
}

/// `WQ` or `NQ`, then `ORIG_OR_PATH`, `ORIG` or `PATH`.
fn path(argument: &str) -> Operator {
    let mut parts = argument.split(':');
    let with_query = parts.next() != Some("NQ");
    let of = match parts.next() {
        Some("ORIG") => PathOf::Original,
        Some("PATH") => PathOf::Path,
        Some(_) | None => PathOf::OriginalOrPath,
    };
    Operator::Path { with_query, of }
}

impl PathOf {
    fn path(self, http: &HttpEntry) -> Option<&str> {
        let original = http.request.headers.get("x-envoy-original-path").and_then(|path| path.to_str().ok());
        match self {
            Self::Original => original,
            Self::OriginalOrPath => Some(original.unwrap_or(&http.request.path)),
            Self::Path => Some(http.request.path.as_str()),
        }
        .filter(|path| !path.is_empty())
    }
}

impl Message {
    /// The first of its values, as in Envoy.
    fn find<'a>(self, http: &'a HttpEntry, name: &Name) -> Option<Cow<'a, [u8]>> {
        let first = |headers: &'a HeaderMap, name: &HeaderName| {
            headers.get(name).map(|value| Cow::Borrowed(value.as_bytes()))
        };
        match (self, name) {
            (Self::Request, Name::Pseudo(name)) => http.request.header(name),
            (Self::Request, Name::Header(name)) if *name == http::header::HOST => http.request.header("host"),
            (Self::Request, Name::Header(name)) if *name == http::header::UPGRADE => {
                http.request.header("upgrade")
            }
            (Self::Request, Name::Header(name)) => first(&http.request.headers, name),
            (Self::Response, Name::Pseudo(name)) => http.response.as_ref()?.header(name),
            (Self::Response, Name::Header(name)) => first(&http.response.as_ref()?.headers, name),
            (Self::Trailers, Name::Header(name)) => first(http.response_trailers.as_ref()?, name),
            (Self::Trailers, Name::Pseudo(_)) => None,
        }
    }
}

/// Of a query: the first of that name.
fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    let pairs = query?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn text(bytes: Cow<'_, [u8]>) -> Value<'_> {
    match bytes {
        Cow::Borrowed(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Value::text(text),
            Err(_) => Value::Text(String::from_utf8_lossy(bytes)),
        },
        Cow::Owned(bytes) => Value::text(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

const FIELDS: &[(&str, fn(&Entry, &HttpEntry) -> Value<'static>)] = &[
    ("PROTOCOL", |_, http| Value::text(protocol(http.request.version))),
    ("UPSTREAM_PROTOCOL", |_, http| Value::option(http.upstream_protocol.map(protocol))),
    ("REQUEST_DURATION", |_, http| since_start(http, http.request_complete)),
    ("REQUEST_TX_DURATION", |_, http| since_start(http, progress(http, |p| p.last_sent()))),
    ("RESPONSE_DURATION", |_, http| since_start(http, progress(http, |p| p.first_received()))),
    ("RESPONSE_TX_DURATION", |_, http| {
        let (first, last) = (progress(http, |p| p.first_received()), http.sent.last_byte);
        match (first, last) {
            (Some(first), Some(last)) => millis(last.saturating_duration_since(first)),
            (None | Some(_), _) => Value::Missing,
        }
    }),
    ("LOCAL_REPLY_BODY", |_, http| {
        let body = http.local_reply_body.as_ref();
        Value::text(body.map(|body| String::from_utf8_lossy(body).into_owned()).unwrap_or_default())
    }),
];

const COUNTS: &[(&str, fn(&Entry, &HttpEntry) -> u64)] = &[
    ("RESPONSE_CODE", |_, http| u64::from(http.response_code())),
    ("BYTES_RECEIVED", |entry, _| entry.bytes.downstream_rx),
    ("REQUEST_HEADERS_BYTES", |_, http| {
        let request = &http.request;
        let pseudo = [":method", ":scheme", ":authority", ":path", ":protocol"];
        let pseudo = pseudo.iter().filter_map(|name| Some(name.len() + request.header(name)?.len()));
        pseudo.sum::<usize>() as u64 + size(&request.headers)
    }),
    ("RESPONSE_HEADERS_BYTES", |_, http| {
        http.response.as_ref().map_or(0, |response| ":status200".len() as u64 + size(&response.headers))
    }),
    ("RESPONSE_TRAILERS_BYTES", |_, http| http.response_trailers.as_ref().map_or(0, size)),
    ("DOWNSTREAM_HEADER_BYTES_RECEIVED", |_, http| match http.sent.wire {
        Some(wire) => wire.received_headers,
        None => http.request.header_bytes as u64,
    }),
    ("DOWNSTREAM_HEADER_BYTES_SENT", |_, http| match http.sent.wire {
        Some(wire) => wire.sent_headers,
        None => http.sent.header_bytes + http.sent.trailer_bytes,
    }),
    ("DOWNSTREAM_WIRE_BYTES_RECEIVED", |entry, http| match http.sent.wire {
        Some(wire) => wire.received,
        None => http.request.size as u64 + entry.bytes.downstream_rx.max(http.sent.request_wire),
    }),
    ("DOWNSTREAM_WIRE_BYTES_SENT", |_, http| {
        let sent = &http.sent;
        let counted = || sent.head_bytes + sent.body_bytes + sent.framing_bytes + sent.trailer_bytes;
        sent.wire.map_or_else(counted, |wire| wire.sent)
    }),
    ("UPSTREAM_HEADER_BYTES_SENT", |_, http| match progress(http, Progress::wire) {
        Some(wire) => wire.sent_headers,
        None => counted(http, |p| &p.request_header),
    }),
    ("UPSTREAM_HEADER_BYTES_RECEIVED", |_, http| match progress(http, Progress::wire) {
        Some(wire) => wire.received_headers,
        None => counted(http, |p| &p.response_header),
    }),
    ("UPSTREAM_WIRE_BYTES_SENT", |_, http| match progress(http, Progress::wire) {
        Some(wire) => wire.sent,
        None => {
            let of_body = counted(http, |p| &p.request_body) + counted(http, |p| &p.request_framing);
            counted(http, |p| &p.request_head) + of_body
        }
    }),
    ("UPSTREAM_WIRE_BYTES_RECEIVED", |_, http| match progress(http, Progress::wire) {
        Some(wire) => wire.received,
        None => {
            let of_body = counted(http, |p| &p.response_body) + counted(http, |p| &p.response_framing);
            counted(http, |p| &p.response_head) + of_body
        }
    }),
];

const TEXTS: &[(&str, fn(&HttpEntry) -> Option<&str>)] = &[
    ("ROUTE_NAME", |http| http.route.as_deref().filter(|name| !name.is_empty())),
    ("VIRTUAL_CLUSTER_NAME", |http| http.virtual_cluster.as_deref()),
    ("TRACE_ID", |http| http.trace_id.as_deref()),
    ("SPAN_ID", |http| http.span_id.as_deref()),
];

pub(crate) fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

/// Names and values, as Envoy counts a header map.
fn size(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>() as u64
}

fn progress<T>(http: &HttpEntry, read: impl Fn(&Progress) -> Option<T>) -> Option<T> {
    http.progress.as_deref().and_then(read)
}

fn counted(http: &HttpEntry, of: impl Fn(&Progress) -> &std::sync::atomic::AtomicU64) -> u64 {
    http.progress.as_deref().map_or(0, |progress| of(progress).load(std::sync::atomic::Ordering::Relaxed))
}

fn since_start(http: &HttpEntry, moment: Option<Instant>) -> Value<'static> {
    moment.map_or(Value::Missing, |at| millis(at.saturating_duration_since(http.start)))
}

fn millis(duration: Duration) -> Value<'static> {
    Value::Number(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// Of the trailers, else of a head that says it all; a response without one has none, unless HTTP says how it went.
pub(crate) fn grpc_code(http: &HttpEntry) -> Option<u32> {
    let of = |headers: &HeaderMap| joined(headers, "grpc-status").map(|value| value.into_owned());
    let response = http.response.as_ref();
    let status = http.response_trailers.as_ref().and_then(of).or_else(|| of(&response?.headers))?;
    std::str::from_utf8(&status).ok()?.trim().parse().ok()
}

/// As [`grpc_code`]; where there is none, what the status of HTTP stands for.
pub(crate) fn grpc_or_http(http: &HttpEntry) -> Option<u32> {
    grpc_code(http)
        .or_else(|| http.response.as_ref().map(|response| of_http_status(response.status.as_u16())))
}

/// As gRPC maps the status of a response that is not its own: a success is UNKNOWN, too.
pub(crate) fn of_http_status(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

fn grpc_status(http: &HttpEntry, format: GrpcFormat) -> Value<'static> {
    let code = if http.request.is_grpc() { grpc_or_http(http) } else { None };
    let Some(code) = code else { return Value::Missing };
    let named = GRPC.get(code as usize);
    match (format, named) {
        (GrpcFormat::Number, _) => Value::Number(u64::from(code)),
        (GrpcFormat::Camel, Some((camel, _))) => Value::text(*camel),
        (GrpcFormat::Snake, Some((_, snake))) => Value::text(*snake),
        (GrpcFormat::Camel | GrpcFormat::Snake, None) => Value::text(code.to_string()),
    }
}

/// By their numbers.
pub(crate) const GRPC: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{HeaderValue, Method, StatusCode};
    use proxy_config::model::access_log::LogFormat;

    use super::*;
    use crate::clock;
    use crate::http::{RequestHead, ResponseHead};
    use crate::istio::{Peer, Slot};
    use crate::telemetry::access_log::Format;

    fn stream() -> Entry {
        let mut request = RequestHead::new(Method::GET, "shop.example:80", "/list?page=2&q=a");
        request.headers.insert("user-agent", HeaderValue::from_static("curl"));
        request.headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        request.headers.append("x-two", HeaderValue::from_static("1"));
        request.headers.append("x-two", HeaderValue::from_static("2"));
        let mut response = ResponseHead::new(StatusCode::NOT_FOUND);
        response.headers.insert("grpc-status", HeaderValue::from_static("5"));
        let mut http = HttpEntry::new(request, clock::now());
        http.response = Some(response);
        http.route = Some("r".into());
        http.filter_state.insert("k".into(), Arc::from("v"));
        let mut entry = super::super::tests::entry();
        entry.http = Some(Box::new(http));
        entry
    }

    fn line(format: &str, entry: &Entry) -> String {
        let model = LogFormat::Text { format: format.into(), omit_empty_values: false };
        String::from_utf8(Format::new(&model).unwrap().line(entry)).unwrap()
    }

    #[test]
    fn of_a_stream_and_of_a_connection() {
        let (stream, connection) = (stream(), super::super::tests::entry());
        let table = [
            ("%REQ(:METHOD)% %REQ(:AUTHORITY)% %REQ(HOST)%", "GET shop.example:80 shop.example:80", "- - -"),
            ("%REQ(X-TWO)% %REQ(NONE?USER-AGENT)% %REQ(NONE)%", "1 curl -", "- - -"),
            ("%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%", "/list?page=2&q=a", "-"),
            ("%PATH% %PATH(NQ)% %PATH(WQ:ORIG)%", "/list?page=2&q=a /list -", "- - -"),
            ("%QUERY_PARAM(q)% %QUERY_PARAM(x)% %QUERY_PARAMS%", "a - page=2&q=a", "- - -"),
            ("%RESPONSE_CODE% %PROTOCOL% %ROUTE_NAME%", "404 HTTP/1.1 r", "0 - -"),
            (
                "%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS_NUMBER%",
                "NotFound NOT_FOUND 5",
                "- - -",
            ),
            ("%FILTER_STATE(k:PLAIN)% %FILTER_STATE(x)%", "v -", "- -"),
            ("%RESP(:STATUS)% %RESP(GRPC-STATUS)%", "404 5", "- -"),
            ("%REQ(USER-AGENT):2%", "cu", "-"),
        ];
        for (format, of_stream, of_connection) in table {
            assert_eq!(line(format, &stream), of_stream, "{format}");
            assert_eq!(line(format, &connection), of_connection, "{format}");
        }
    }

    #[test]
    fn peers_as_objects_of_filter_state() {
        let peer = Peer { workload: "w".into(), namespace: "n".into(), ..Peer::default() };
        let slot = Arc::new(Slot::of(Arc::new(peer)));
        for mut entry in [stream(), super::super::tests::entry()] {
            entry.peers.downstream = Some(slot.clone());
            entry.peers.upstream = Some(Arc::default());
            for (format, expected) in [
                ("%FILTER_STATE(downstream_peer:FIELD:workload)%", "w"),
                ("%FILTER_STATE(downstream_peer_obj:FIELD:type)%", "unknown"),
                ("%FILTER_STATE(wasm.downstream_peer:PLAIN)%", "workload=w,namespace=n"),
                ("%FILTER_STATE(downstream_peer)%", "{\"namespace\":\"n\",\"workload\":\"w\"}"),
                ("%FILTER_STATE(downstream_peer:FIELD:nothing)%", "-"),
                ("%FILTER_STATE(upstream_peer:FIELD:workload)%", "-"),
            ] {
                assert_eq!(line(format, &entry), expected, "{format}");
            }
        }
    }
}

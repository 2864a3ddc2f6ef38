//! What an external authorization service is asked, and what it answers: `envoy.service.auth.v3` as bytes.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::service::auth::v3 as pb;
use envoy_types::pb::google::protobuf as wkt;
use pb::attribute_context as attributes;
use pb::check_response::HttpResponse;
use prost::Message as _;

use crate::lower::structure;
use crate::model::http::header::AppendAction;
use crate::model::metadata::{Metadata, Struct, Value};

/// Who asks for what.
#[derive(Clone, Debug, Default)]
pub struct Check {
    pub source: Peer,
    pub destination: Peer,
    pub request: Request,
    pub context_extensions: BTreeMap<String, String>,
    pub metadata: Metadata,
    pub route_metadata: Metadata,
    /// Where TLS is to be told: the name that the client asked for, or nothing.
    pub server_name: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub struct Peer {
    pub address: Option<SocketAddr>,
    pub service: String,
    pub principal: String,
    /// PEM, with percent signs for what an URL cannot hold.
    pub certificate: String,
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Since 1970.
    pub time: Duration,
    pub id: String,
    pub method: String,
    pub headers: Vec<(String, Vec<u8>)>,
    /// Headers are told one by one, as bytes.
    pub raw_headers: bool,
    pub path: String,
    pub host: String,
    pub scheme: String,
    pub protocol: &'static str,
    /// Of what came of its body so far.
    pub size: i64,
    /// As bytes, or as text.
    pub body: Vec<u8>,
    pub body_as_bytes: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub verdict: Verdict,
    pub metadata: Struct,
    /// Something is to be done with a header that nobody knows how to do.
    pub invalid_action: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Ok(Allowed),
    Denied(Refused),
    /// The service itself has failed, and may say how.
    Error(Refused),
}

/// What is done with a request that may go on, and with its response.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Allowed {
    pub headers: Vec<Header>,
    pub remove: Vec<String>,
    pub response_headers: Vec<Header>,
    pub query_to_set: Vec<(String, String)>,
    pub query_to_remove: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Refused {
    /// None: not said.
    pub status: Option<u16>,
    pub headers: Vec<Header>,
    pub body: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// As the service writes it.
    pub name: String,
    pub value: Vec<u8>,
    pub append: AppendAction,
    /// It goes into the value that there is, and nowhere where there is none.
    pub joined: bool,
}

impl Header {
    pub fn new(name: impl Into<String>, value: impl Into<Vec<u8>>, append: AppendAction) -> Self {
        Self { name: name.into(), value: value.into(), append, joined: false }
    }
}

/// A `CheckRequest`.
pub fn encode(check: Check) -> Vec<u8> {
    let Check { source, destination, request, context_extensions, metadata, route_metadata, server_name } =
        check;
    let attributes = pb::AttributeContext {
        source: Some(peer(source)),
        destination: Some(peer(destination)),
        request: Some(asked(request)),
        context_extensions: context_extensions.into_iter().collect(),
        metadata_context: Some(told(&metadata)),
        route_metadata_context: Some(told(&route_metadata)),
        tls_session: server_name.map(|sni| attributes::TlsSession { sni }),
    };
    pb::CheckRequest { attributes: Some(attributes) }.encode_to_vec()
}

/// A `CheckResponse`.
pub fn decode(bytes: &[u8]) -> Result<Answer, String> {
    let response = pb::CheckResponse::decode(bytes).map_err(|error| error.to_string())?;
    let mut metadata = response.dynamic_metadata;
    if let Some(HttpResponse::OkResponse(allowed)) = &response.http_response {
        #[expect(deprecated, reason = "where it is given it stands for the other")]
        let own = allowed.dynamic_metadata.clone();
        metadata = own.or(metadata);
    }
    let ok = response.status.is_none_or(|status| status.code == 0);
    let mut invalid_action = false;
    let verdict = match (ok, response.http_response) {
        (true, Some(HttpResponse::OkResponse(from))) => Verdict::Ok(allowed(from, &mut invalid_action)),
        (true, Some(HttpResponse::DeniedResponse(_) | HttpResponse::ErrorResponse(_)) | None) => {
            Verdict::Ok(Allowed::default())
        }
        (false, Some(HttpResponse::ErrorResponse(from))) => Verdict::Error(refused(from)),
        (false, Some(HttpResponse::DeniedResponse(from))) => Verdict::Denied(refused(from)),
        (false, Some(HttpResponse::OkResponse(_)) | None) => Verdict::Denied(Refused::default()),
    };
    Ok(Answer { verdict, metadata: metadata.map(structure).unwrap_or_default(), invalid_action })
}

/// As Envoy makes text of bytes: an exclamation mark for each byte that is none.
pub fn text(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return text.into();
    }
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| '!'));
    }
    out.into()
}

fn peer(peer: Peer) -> attributes::Peer {
    let address = peer.address.map(|at| core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: at.ip().to_string(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(at.port().into())),
            ..core::SocketAddress::default()
        })),
    });
    attributes::Peer {
        address,
        service: peer.service,
        labels: peer.labels.into_iter().collect(),
        principal: peer.principal,
        certificate: peer.certificate,
    }
}

fn asked(request: Request) -> attributes::Request {
    let (mut headers, mut header_map) = (HashMap::<String, String>::new(), None);
    if request.raw_headers {
        let all = request.headers.into_iter().map(|(key, raw_value)| core::HeaderValue {
            key,
            raw_value,
            ..core::HeaderValue::default()
        });
        header_map = Some(core::HeaderMap { headers: all.collect() });
    } else {
        for (name, value) in request.headers {
            let value = text(&value);
            match headers.get_mut(&name) {
                Some(before) => {
                    before.push(',');
                    before.push_str(&value);
                }
                None => drop(headers.insert(name, value.into_owned())),
            }
        }
    }
    let (body, raw_body) = match request.body_as_bytes {
        true => (String::new(), request.body),
        false => (text(&request.body).into_owned(), Vec::new()),
    };
    let http = attributes::HttpRequest {
        id: request.id,
        method: request.method,
        headers,
        header_map,
        path: request.path,
        host: request.host,
        scheme: request.scheme,
        size: request.size,
        protocol: request.protocol.to_owned(),
        body,
        raw_body,
        ..attributes::HttpRequest::default()
    };
    let time = wkt::Timestamp {
        seconds: i64::try_from(request.time.as_secs()).unwrap_or_default(),
        nanos: i32::try_from(request.time.subsec_nanos()).unwrap_or_default(),
    };
    attributes::Request { time: Some(time), http: Some(http) }
}

fn told(metadata: &Metadata) -> core::Metadata {
    let each = metadata.0.iter().map(|(name, fields)| (name.clone(), fields_of(fields)));
    core::Metadata { filter_metadata: each.collect(), ..core::Metadata::default() }
}

fn fields_of(fields: &Struct) -> wkt::Struct {
    wkt::Struct { fields: fields.iter().map(|(key, of)| (key.clone(), value(of))).collect() }
}

fn value(of: &Value) -> wkt::Value {
    use wkt::value::Kind;
    let kind = match of {
        Value::Null => Kind::NullValue(0),
        Value::Bool(flag) => Kind::BoolValue(*flag),
        Value::Number(number) => Kind::NumberValue(*number),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::List(list) => Kind::ListValue(wkt::ListValue { values: list.iter().map(value).collect() }),
        Value::Struct(fields) => Kind::StructValue(fields_of(fields)),
    };
    wkt::Value { kind: Some(kind) }
}

fn allowed(from: pb::OkHttpResponse, invalid: &mut bool) -> Allowed {
    let mut headers: Vec<Header> = from.headers.into_iter().filter_map(of_request).collect();
    // As Envoy has it, what is appended is appended to what was set.
    headers.sort_by_key(|header| header.joined);
    let response = from.response_headers_to_add.into_iter();
    Allowed {
        headers,
        remove: from.headers_to_remove,
        response_headers: response.filter_map(|one| of_response(one, invalid)).collect(),
        query_to_set: from.query_parameters_to_set.into_iter().map(|one| (one.key, one.value)).collect(),
        query_to_remove: from.query_parameters_to_remove,
    }
}

fn refused(from: pb::DeniedHttpResponse) -> Refused {
    let status = from.status.map(|status| status.code).filter(|code| *code > 0);
    Refused {
        status: status.map(|code| u16::try_from(code).unwrap_or_default()),
        headers: from.headers.into_iter().filter_map(of_refusal).collect(),
        body: from.body.into_bytes(),
    }
}

/// The deprecated `append` alone says what is done with it.
fn of_request(from: core::HeaderValueOption) -> Option<Header> {
    let joined = deprecated_append(&from) == Some(true);
    let append =
        if joined { AppendAction::AppendIfExistsOrAdd } else { AppendAction::OverwriteIfExistsOrAdd };
    let core::HeaderValue { key, value, .. } = from.header?;
    Some(Header { joined, ..Header::new(key, value, append) })
}

fn of_response(from: core::HeaderValueOption, invalid: &mut bool) -> Option<Header> {
    let append = match (deprecated_append(&from), HeaderAppendAction::try_from(from.append_action)) {
        (Some(true), _) | (None, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => {
            AppendAction::AppendIfExistsOrAdd
        }
        (Some(false), _) | (None, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd)) => {
            AppendAction::OverwriteIfExistsOrAdd
        }
        (None, Ok(HeaderAppendAction::AddIfAbsent)) => AppendAction::AddIfAbsent,
        (None, Ok(HeaderAppendAction::OverwriteIfExists)) => AppendAction::OverwriteIfExists,
        (None, Err(_)) => {
            *invalid = true;
            return None;
        }
    };
    let core::HeaderValue { key, value, .. } = from.header?;
    Some(Header::new(key, value, append))
}

/// All of them are put beside each other; Envoy leaves out those that are to be appended.
fn of_refusal(from: core::HeaderValueOption) -> Option<Header> {
    if deprecated_append(&from) == Some(true) {
        return None;
    }
    let core::HeaderValue { key, value, .. } = from.header?;
    Some(Header::new(key, value, AppendAction::AppendIfExistsOrAdd))
}

fn deprecated_append(from: &core::HeaderValueOption) -> Option<bool> {
    #[expect(deprecated, reason = "services still say it")]
    from.append.map(|append| append.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text() {
        assert_eq!(text(b"plain"), "plain");
        assert_eq!(text(b"a\xff\xfeb\xe2\x82"), "a!!b!!");
    }

    #[test]
    fn answers() {
        let status = |code| Some(envoy_types::pb::google::rpc::Status { code, ..Default::default() });
        let denied = pb::DeniedHttpResponse { body: "no".into(), ..Default::default() };
        for (code, response, expected) in [
            (0, None, Verdict::Ok(Allowed::default())),
            (0, Some(HttpResponse::DeniedResponse(denied.clone())), Verdict::Ok(Allowed::default())),
            (7, None, Verdict::Denied(Refused::default())),
            (
                7,
                Some(HttpResponse::DeniedResponse(denied.clone())),
                Verdict::Denied(Refused { body: b"no".to_vec(), ..Refused::default() }),
            ),
            (
                7,
                Some(HttpResponse::ErrorResponse(denied)),
                Verdict::Error(Refused { body: b"no".to_vec(), ..Refused::default() }),
            ),
        ] {
            let response =
                pb::CheckResponse { status: status(code), http_response: response, ..Default::default() };
            let answer = decode(&response.encode_to_vec()).unwrap();
            assert_eq!(answer.verdict, expected);
        }
        assert!(decode(b"\xff\xff").is_err());
    }

    #[test]
    fn what_is_done_with_a_header() {
        let option = |append: Option<bool>, action| {
            #[expect(deprecated, reason = "it is what is tested")]
            core::HeaderValueOption {
                header: Some(core::HeaderValue { key: "K".into(), value: "v".into(), ..Default::default() }),
                append: append.map(|value| wkt::BoolValue { value }),
                append_action: action,
                ..Default::default()
            }
        };
        let (append, overwrite) = (AppendAction::AppendIfExistsOrAdd, AppendAction::OverwriteIfExistsOrAdd);
        for (said, action, request, response, refusal) in [
            (Some(true), 3, (append, true), Some(append), false),
            (Some(false), 0, (overwrite, false), Some(overwrite), true),
            (None, 0, (overwrite, false), Some(append), true),
            (None, 1, (overwrite, false), Some(AppendAction::AddIfAbsent), true),
            (None, 2, (overwrite, false), Some(overwrite), true),
            (None, 3, (overwrite, false), Some(AppendAction::OverwriteIfExists), true),
            (None, 9, (overwrite, false), None, true),
        ] {
            let asked = of_request(option(said, action)).unwrap();
            assert_eq!((asked.append, asked.joined), request, "{said:?} {action}");
            let mut invalid = false;
            let answered = of_response(option(said, action), &mut invalid);
            assert_eq!(answered.map(|header| header.append), response, "{said:?} {action}");
            assert_eq!(invalid, action == 9);
            assert_eq!(of_refusal(option(said, action)).is_some(), refusal, "{said:?} {action}");
        }
    }
}

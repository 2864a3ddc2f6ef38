//! A service that is asked by gRPC.

use std::sync::Arc;
use std::time::Duration;

use ::http::header::{CONTENT_TYPE, HOST, TE};
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use bytes::{BufMut as _, BytesMut};
use proxy_config::authz::{self, Answer};
use proxy_config::model::grpc::GrpcTarget;
use proxy_config::model::http::ext_authz::AuthzGrpcService;

use super::{Call, Failure, Question, Shared, check};
use crate::http::filters::whole::Whole;
use crate::http::pool::Caller;
use crate::http::{Body, BuildError, Request, RequestHead, Stream, router};

const PATH: &str = "/envoy.service.auth.v3.Authorization/Check";
/// No answer is longer.
const LONGEST: usize = 4 * 1024 * 1024;
/// Of a service without a time-out of its own.
const TIMEOUT: Duration = Duration::from_millis(200);

pub(super) struct Service {
    cluster: Arc<str>,
    authority: String,
    metadata: HeaderMap,
    timeout: Option<Duration>,
    skip_envoy_headers: bool,
}

impl Service {
    pub(super) fn new(model: &AuthzGrpcService) -> Result<Self, BuildError> {
        let AuthzGrpcService { service: model, skip_envoy_headers } = model;
        let GrpcTarget::Cluster { name, authority } = &model.target else {
            return Err(BuildError(format!("{} is called by its own address", model.target)));
        };
        let mut metadata = HeaderMap::new();
        for (name, value) in &model.initial_metadata {
            let header = HeaderName::from_bytes(name.as_bytes()).ok().filter(|name| *name != HOST);
            let (Some(header), Ok(value)) = (header, HeaderValue::from_str(value)) else {
                return Err(BuildError(format!("initial_metadata {name:?} is no header")));
            };
            metadata.append(header, value);
        }
        let timeout = Some(model.timeout.unwrap_or(TIMEOUT)).filter(|timeout| !timeout.is_zero());
        let authority = authority.clone().unwrap_or_else(|| name.to_string());
        let skip_envoy_headers = *skip_envoy_headers;
        Ok(Self { cluster: name.clone(), authority, metadata, timeout, skip_envoy_headers })
    }
}

pub(super) fn call(
    service: &Service,
    shared: &Shared,
    question: &Question,
    stream: &Stream,
) -> Result<Call, Failure> {
    let cluster = stream.conn.cluster(&service.cluster).ok_or(Failure)?;
    let mut head = RequestHead::new(Method::POST, service.authority.clone(), PATH);
    head.version = Version::HTTP_2;
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head.headers.insert(TE, HeaderValue::from_static("trailers"));
    if let Some(timeout) = service.timeout {
        head.headers.insert("grpc-timeout", timeout_of(timeout));
    }
    for (name, value) in &service.metadata {
        head.headers.append(name, value.clone());
    }
    if service.skip_envoy_headers {
        router::expect_within(&mut head, service.timeout);
    } else {
        router::announce(&mut head, Some(shared.own), service.timeout);
    }
    let message = authz::encode(check::of(shared, question, stream));
    let mut body = BytesMut::with_capacity(message.len() + 5);
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).map_err(|_| Failure)?);
    body.extend_from_slice(&message);
    let request = Request { head, body: Body::full(body.freeze()) };
    let caller = Caller::of(&stream.conn);
    Ok(Call { cluster, caller, request, timeout: service.timeout })
}

pub(super) async fn answer(call: Call) -> Result<Answer, Failure> {
    let response = call.send().await.map_err(|_| Failure)?;
    let (status, headers) = (response.head.status, response.head.headers);
    let whole = Whole::read(response.body, LONGEST).await.map_err(|_| Failure)?;
    let told = whole.trailers.as_ref().unwrap_or(&headers).get("grpc-status");
    if status != StatusCode::OK || whole.over || told.is_none_or(|told| told != "0") {
        return Err(Failure);
    }
    message_of(&whole.data).and_then(|message| authz::decode(message).ok()).ok_or(Failure)
}

/// Of a body that has one message, not compressed: nothing else was asked for.
fn message_of(body: &[u8]) -> Option<&[u8]> {
    let (head, message) = body.split_first_chunk::<5>()?;
    let [0, length @ ..] = *head else { return None };
    (u32::from_be_bytes(length) as usize == message.len()).then_some(message)
}

/// Of at most eight digits.
fn timeout_of(timeout: Duration) -> HeaderValue {
    let text = match timeout.as_millis() {
        millis @ 0..100_000_000 => format!("{millis}m"),
        millis => format!("{}S", (millis / 1000).min(99_999_999)),
    };
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("99999999S"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(message_of(b"\0\0\0\0\0"), Some(&b""[..]));
        assert_eq!(message_of(b"\0\0\0\0\x02ab"), Some(&b"ab"[..]));
        for bad in [&b""[..], b"\0\0\0\0", b"\x01\0\0\0\0", b"\0\0\0\0\x01", b"\0\0\0\0\x01ab"] {
            assert_eq!(message_of(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn timeouts() {
        assert_eq!(timeout_of(Duration::from_millis(200)), "200m");
        assert_eq!(timeout_of(Duration::from_secs(200_000)), "200000S");
    }
}

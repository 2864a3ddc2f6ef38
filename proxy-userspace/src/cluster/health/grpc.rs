//! A gRPC check: `grpc.health.v1.Health/Check` of a service, which must be SERVING.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Limited};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use prost::Message;
use proxy_config::model::cluster::GrpcHealthCheck;

use super::client::{Body, To};
use super::http::{add, uri};
use super::judge::Verdict;
use super::session::Kept;

const PATH: &str = "/grpc.health.v1.Health/Check";

/// An answer is a few bytes.
const MOST: usize = 64 * 1024;

const SERVING: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

pub(super) async fn ask(to: &To<'_>, how: &GrpcHealthCheck, limit: Duration, kept: &mut Kept) -> Verdict {
    let wrong = Verdict::Wrong { retriable: false };
    let Some(request) = request(to, how, limit) else { return wrong };
    let Some(mut connection) = to.connect(&mut kept.http).await else { return Verdict::Network };
    let Ok(response) = connection.ask(request).await else { return Verdict::Network };
    let (head, body) = response.into_parts();
    // What is no gRPC needs no reading on.
    if head.status != StatusCode::OK || !is_grpc(&head.headers) {
        kept.http = Some(connection);
        return wrong;
    }
    let Ok(body) = Limited::new(body, MOST).collect().await else { return Verdict::Network };
    kept.http = Some(connection);
    // A response without a message has its status in the head.
    let status = body.trailers().unwrap_or(&head.headers).get("grpc-status").cloned();
    if status.is_some_and(|status| status == "0") && serving(body.to_bytes()) {
        return Verdict::Healthy { degraded: false };
    }
    wrong
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let of_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    of_type.strip_prefix("application/grpc").is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
}

fn request(to: &To<'_>, how: &GrpcHealthCheck, limit: Duration) -> Option<Request<Body>> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(uri(to, to.authority(&how.authority), PATH)?)
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header("grpc-timeout", format!("{}m", limit.as_millis()))
        .header(USER_AGENT, HeaderValue::from_static("Envoy/HC"));
    let mut request = request.body(Body(Some(message(&how.service_name)))).ok()?;
    add(request.headers_mut(), &how.initial_metadata)?;
    Some(request)
}

/// Behind its flag and its length.
fn message(service: &str) -> Bytes {
    let asked = HealthCheckRequest { service: service.to_owned() }.encode_to_vec();
    let mut bytes = BytesMut::with_capacity(5 + asked.len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(asked.len()).unwrap_or(u32::MAX));
    bytes.put_slice(&asked);
    bytes.freeze()
}

/// One message, not compressed, that says so.
fn serving(mut body: Bytes) -> bool {
    let Ok(0) = body.try_get_u8() else { return false };
    let Ok(length) = body.try_get_u32() else { return false };
    u32::try_from(body.len()) == Ok(length)
        && HealthCheckResponse::decode(body).is_ok_and(|response| response.status == SERVING)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(*message(""), [0, 0, 0, 0, 0]);
        assert_eq!(*message("ab"), [0, 0, 0, 0, 4, 10, 2, b'a', b'b']);
        for (body, expected) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], true),
            (&[0, 0, 0, 0, 2, 8, 2], false),
            (&[0, 0, 0, 0, 0], false),
            (&[1, 0, 0, 0, 2, 8, 1], false),
            (&[0, 0, 0, 0, 2, 8, 1, 0], false),
            (&[0, 0, 0, 0, 2, 8, 0xff], false),
            (&[0, 0, 0], false),
            (&[], false),
        ] {
            assert_eq!(serving(Bytes::copy_from_slice(body)), expected, "{body:?}");
        }
    }
}

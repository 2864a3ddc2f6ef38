//! An HTTP check: one request, judged by its status and, on wish, its body.

use http_body_util::{BodyExt as _, Limited};
use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Uri};
use proxy_config::model::cluster::HttpHealthCheck;

use super::client::{Body, To};
use super::judge::Verdict;
use super::session::Kept;
use super::tcp;

/// A body that is longer is not read further.
const MOST: usize = 1 << 20;

pub(super) async fn ask(to: &To<'_>, how: &HttpHealthCheck, kept: &mut Kept) -> Verdict {
    let Some(request) = request(to, how) else { return Verdict::Wrong { retriable: false } };
    let Some(mut connection) = to.connect(&mut kept.http).await else { return Verdict::Network };
    let Ok(response) = connection.ask(request).await else { return Verdict::Network };
    let (head, body) = response.into_parts();
    let status = u32::from(head.status.as_u16());
    let verdict = if within(&how.expected_statuses, status) {
        Verdict::Healthy { degraded: head.headers.contains_key("x-envoy-degraded") }
    } else {
        Verdict::Wrong { retriable: within(&how.retriable_statuses, status) }
    };
    let Ok(body) = Limited::new(body, MOST).collect().await else { return Verdict::Network };
    if matches!(verdict, Verdict::Healthy { .. }) && !tcp::contains(&body.to_bytes(), &how.receive) {
        return Verdict::Wrong { retriable: false };
    }
    kept.http = Some(connection);
    verdict
}

/// `None` where the configuration's text cannot be sent; lowering refuses most of that.
fn request(to: &To<'_>, how: &HttpHealthCheck) -> Option<Request<Body>> {
    let authority = to.authority(&how.host);
    let method = if how.method.is_empty() { "GET" } else { &how.method };
    let request = Request::builder().method(Method::from_bytes(method.as_bytes()).ok()?);
    let request =
        if to.http2 { request.uri(uri(to, authority, &how.path)?) } else { request.uri(&*how.path) };
    let mut request = request.header(USER_AGENT, "Envoy/HC").body(Body::default()).ok()?;
    let headers = request.headers_mut();
    if !to.http2 {
        headers.insert(HOST, HeaderValue::from_str(authority).ok()?);
    }
    for name in &how.headers_to_remove {
        headers.remove(HeaderName::from_bytes(name.as_bytes()).ok()?);
    }
    add(headers, &how.headers_to_add)?;
    Some(request)
}

/// HTTP/2 has the authority there. What is none, such as many a cluster's name, is the endpoint's address then.
pub(super) fn uri(to: &To<'_>, authority: &str, path: &str) -> Option<Uri> {
    let scheme = if to.cluster.transport(to.host).is_some() { "https" } else { "http" };
    let uri =
        |authority: &str| Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
    let address = || to.host.socket_address().map(|address| address.to_string()).unwrap_or_default();
    uri(authority).or_else(|_| uri(&address())).ok()
}

/// Name, value, and whether it is added to those that are there.
pub(super) fn add(headers: &mut HeaderMap, all: &[(String, String, bool)]) -> Option<()> {
    for (name, value, append) in all {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let value = HeaderValue::from_str(value).ok()?;
        if *append {
            headers.append(name, value);
        } else {
            headers.insert(name, value);
        }
    }
    Some(())
}

/// Start inclusive, end exclusive.
fn within(ranges: &[(u32, u32)], status: u32) -> bool {
    ranges.iter().any(|(start, end)| (*start..*end).contains(&status))
}

//! Heads, to and from pseudo-headers.
//!
//! An upgrade is an extended `CONNECT` here (RFC 8441) and a `GET` with `upgrade` everywhere else, its acceptance 200
//! here and 101 elsewhere, as in Envoy.

use h2::ext::Protocol;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, StatusCode, Uri, Version, request, response};

use crate::http::{RequestHead, Reset, ResetReason, ResponseHead, Scheme};
use crate::telemetry::Side;

/// Connection-specific: not of HTTP/2.
const OF_A_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// A client's request. `https`: what it is where it does not say.
pub(super) fn request(parts: request::Parts, https: bool) -> RequestHead {
    let request::Parts { mut method, uri, mut headers, mut extensions, .. } = parts;
    let upgrade = extensions.remove::<Protocol>().map(|to| to.as_str().to_ascii_lowercase());
    if upgrade.is_some() {
        method = Method::GET;
    }
    let host = headers.remove(header::HOST);
    let no_host = uri.authority().is_none() && host.is_none();
    let authority = match (uri.authority(), host) {
        (Some(authority), _) => authority.as_str().to_owned(),
        (None, Some(host)) => String::from_utf8_lossy(host.as_bytes()).into_owned(),
        (None, None) => String::new(),
    };
    let path = match uri.path_and_query() {
        Some(path) if method != Method::CONNECT => path.as_str().to_owned(),
        _ => String::new(),
    };
    let scheme = match uri.scheme_str() {
        Some("https") => Scheme::Https,
        Some("http") => Scheme::Http,
        _ if https => Scheme::Https,
        _ => Scheme::Http,
    };
    join_cookies(&mut headers);
    let pseudo = method.as_str().len() + authority.len() + path.len();
    let size = pseudo + size(&headers);
    RequestHead {
        method,
        scheme,
        authority,
        no_host,
        path,
        upgrade,
        version: Version::HTTP_2,
        headers,
        case: None,
        size,
        header_bytes: size,
    }
}

/// What the crate takes, and RFC 9113 does not: a stream error PROTOCOL_ERROR.
pub(super) fn is_malformed(parts: &request::Parts) -> bool {
    let uri = &parts.uri;
    let is_connect = parts.method == Method::CONNECT;
    let no_authority = uri.authority().is_none();
    // Of an :authority, the scheme is kept; one that is empty is not.
    let no_scheme = !no_authority && uri.scheme_str().is_none_or(str::is_empty);
    let is_plain = is_connect && parts.extensions.get::<Protocol>().is_none();
    (is_connect && no_authority)
        || (!is_plain && no_scheme)
        || uri.authority().is_some_and(|authority| authority.as_str().contains('@'))
        || (uri.path() == "*" && parts.method != Method::OPTIONS)
        || are_malformed(&parts.headers)
}

/// RFC 9113, 8.2.1: white space around a value, as nghttp2 has it.
pub(super) fn are_malformed(headers: &HeaderMap) -> bool {
    let space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    headers.values().any(|value| space(value.as_bytes().first()) || space(value.as_bytes().last()))
}

/// RFC 9110, 5.5: of values that are not in ASCII.
pub(super) fn has_obs_text(headers: &HeaderMap) -> bool {
    headers.values().any(|value| !value.as_bytes().is_ascii())
}

/// Of a name and its value.
pub(super) fn longest(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).max().unwrap_or(0)
}

/// An upstream's response, final or not.
pub(super) fn response(parts: response::Parts, upgrade: bool) -> ResponseHead {
    let response::Parts { status, headers, .. } = parts;
    // The acceptance of an upgrade is 101 everywhere but on this wire.
    let status = if upgrade && status == StatusCode::OK { StatusCode::SWITCHING_PROTOCOLS } else { status };
    let size = 3 + size(&headers);
    ResponseHead { status, version: Version::HTTP_2, headers, case: None, size, header_bytes: size }
}

/// For the client whose request was `upgrade` or not.
pub(super) fn encode_response(head: &ResponseHead, upgrade: bool) -> http::Response<()> {
    let mut response = http::Response::new(());
    *response.status_mut() = match head.status {
        StatusCode::SWITCHING_PROTOCOLS if upgrade => StatusCode::OK,
        status => status,
    };
    *response.version_mut() = Version::HTTP_2;
    *response.headers_mut() = head.headers.clone();
    strip(response.headers_mut());
    response
}

/// For an upstream.
pub(super) fn encode_request(head: &RequestHead) -> Result<http::Request<()>, Reset> {
    let mut request = http::Request::new(());
    *request.headers_mut() = head.headers.clone();
    strip(request.headers_mut());
    *request.uri_mut() = uri(head).ok_or_else(|| {
        Reset::new(Side::Internal, ResetReason::Local, "the target cannot be written in HTTP/2")
    })?;
    *request.version_mut() = if head.authority.is_empty() { Version::HTTP_11 } else { Version::HTTP_2 };
    match &head.upgrade {
        Some(to) => {
            *request.method_mut() = Method::CONNECT;
            request.extensions_mut().insert(Protocol::from(to.as_str()));
        }
        None => *request.method_mut() = head.method.clone(),
    }
    Ok(request)
}

fn uri(head: &RequestHead) -> Option<Uri> {
    let mut parts = http::uri::Parts::default();
    if !head.authority.is_empty() {
        parts.authority = Some(Authority::try_from(head.authority.as_str()).ok()?);
    }
    if head.is_connect() {
        return Uri::from_parts(parts).ok();
    }
    if parts.authority.is_some() {
        parts.scheme = Some(match head.scheme {
            Scheme::Http => http::uri::Scheme::HTTP,
            Scheme::Https => http::uri::Scheme::HTTPS,
        });
    }
    let path = if head.path.is_empty() { "/" } else { head.path.as_str() };
    parts.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
    Uri::from_parts(parts).ok()
}

fn strip(headers: &mut HeaderMap) {
    for name in &OF_A_HOP {
        headers.remove(name);
    }
    if headers.get(header::TE).is_some_and(|te| te != "trailers") {
        headers.remove(header::TE);
    }
}

/// RFC 9113, 8.2.3: crumbs are one header where the message goes on, and so they are for whoever looks at it.
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(_)) = (crumbs.next(), crumbs.next()) else { return };
    let mut all = first.as_bytes().to_vec();
    for crumb in headers.get_all(header::COOKIE).iter().skip(1) {
        all.extend_from_slice(b"; ");
        all.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(cookie) = HeaderValue::from_bytes(&all) {
        headers.insert(header::COOKIE, cookie);
    }
}

/// How many bytes of names and values.
pub(super) fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

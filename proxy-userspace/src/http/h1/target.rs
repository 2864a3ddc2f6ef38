//! A request's method, target and host.

use http::{Method, StatusCode};

use super::{BadRequest, Settings};
use crate::http::Scheme;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    /// None: the `Host` header says.
    pub authority: Option<&'a str>,
    pub scheme: Option<Scheme>,
    pub path: &'a str,
}

/// Those of `http-parser`: Envoy knows no others unless it is told to.
const METHODS: [&str; 35] = [
    "GET",
    "POST",
    "PUT",
    "HEAD",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "CONNECT",
    "TRACE",
    "ACL",
    "BIND",
    "CHECKOUT",
    "COPY",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MOVE",
    "M-SEARCH",
    "NOTIFY",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SOURCE",
    "SUBSCRIBE",
    "UNBIND",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
    "QUERY",
];

pub(super) fn method(text: &str, settings: &Settings) -> Result<Method, BadRequest> {
    if !settings.allow_custom_methods && !METHODS.contains(&text) {
        return Err(BadRequest::codec());
    }
    Method::from_bytes(text.as_bytes()).map_err(|_| BadRequest::codec())
}

pub(super) fn target<'a>(
    text: &'a str,
    method: &Method,
    settings: &Settings,
) -> Result<Target<'a>, BadRequest> {
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(BadRequest::codec());
    }
    if *method == Method::CONNECT {
        return connect(text);
    }
    if text.starts_with('/') || (text == "*" && *method == Method::OPTIONS) {
        return Ok(Target { authority: None, scheme: None, path: text });
    }
    absolute(text, settings)
}

/// Authority form. It has a port, always.
fn connect(text: &str) -> Result<Target<'_>, BadRequest> {
    let (host, port) = text.rsplit_once(':').ok_or(INVALID_URL)?;
    if host.is_empty() || !is_host(text) || port.parse::<u16>().is_err() {
        return Err(INVALID_URL);
    }
    Ok(Target { authority: Some(text), scheme: None, path: "" })
}

/// Its authority goes before the `Host` header, as RFC 9112 (3.2.2) and Envoy have it.
fn absolute<'a>(text: &'a str, settings: &Settings) -> Result<Target<'a>, BadRequest> {
    if text == "*" {
        return Err(INVALID_URL);
    }
    let (scheme, rest) = text.split_once("://").ok_or(BadRequest::codec())?;
    if scheme.is_empty() || !scheme.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Err(BadRequest::codec());
    }
    if !settings.allow_absolute_url {
        return Ok(Target { authority: None, scheme: None, path: text });
    }
    let scheme = match scheme {
        _ if scheme.eq_ignore_ascii_case("http") => Scheme::Http,
        _ if scheme.eq_ignore_ascii_case("https") => Scheme::Https,
        _ => return Err(BadRequest::new(StatusCode::BAD_REQUEST, "http1.invalid_scheme")),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() || !is_host(authority) || !(path.is_empty() || path.starts_with('/')) {
        return Err(INVALID_URL);
    }
    let path = if path.is_empty() { "/" } else { path };
    Ok(Target { authority: Some(authority), scheme: Some(scheme), path })
}

const INVALID_URL: BadRequest = BadRequest::new(StatusCode::BAD_REQUEST, "http1.invalid_url");

/// A name or an address, and perhaps a port; no user. It may be empty, which is for a target without an authority.
pub(super) fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if address.bytes().all(is_address_byte) => (address, port),
            Some(_) | None => return false,
        },
        None => match text.split_once(':') {
            Some((host, _)) => (host, &text[host.len()..]),
            None => (text, ""),
        },
    };
    let port =
        port.strip_prefix(':').map_or(port.is_empty(), |port| port.bytes().all(|b| b.is_ascii_digit()));
    port && (!host.is_empty() || text.is_empty()) && (text.starts_with('[') || host.bytes().all(is_host_byte))
}

/// Of an IPv6 address, perhaps with a zone.
fn is_address_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'.' | b'%' | b'-' | b'_' | b'~')
}

/// RFC 3986's unreserved, percent and sub-delims.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.' | b'_' | b'~' | b'%' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+'
        )
        || matches!(byte, b',' | b';' | b'=')
}

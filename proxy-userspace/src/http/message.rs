//! Requests and responses as the proxy sees them, whatever carried them.
//!
//! What HTTP/2 has as pseudo-headers are fields of a head; [`RequestHead::header`] reads them by their names, so that
//! matchers and formats need not know. After an upgrade (`Upgrade`, `CONNECT`, extended `CONNECT`) both bodies are the
//! raw bytes of either direction.

use std::borrow::Cow;
use std::cell::RefCell;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};

use super::Body;

#[derive(Debug)]
pub struct Request {
    pub head: RequestHead,
    pub body: Body,
}

#[derive(Debug)]
pub struct Response {
    pub head: ResponseHead,
    pub body: Body,
}

#[derive(Clone, Debug)]
pub struct RequestHead {
    pub method: Method,
    pub scheme: Scheme,
    /// `:authority`, or `Host` of HTTP/1, which is never among the headers.
    pub authority: String,
    /// It has none, not even an empty one.
    pub no_host: bool,
    /// `:path`: with its query; empty for a plain `CONNECT`.
    pub path: String,
    /// What is upgraded to: of `Upgrade` in HTTP/1.1, lower case, or `:protocol` of an extended `CONNECT`. The header
    /// itself is not among the headers, nor are `Connection` and what it names: each hop has its own.
    pub upgrade: Option<String>,
    pub version: Version,
    pub headers: HeaderMap,
    /// Where the case of names is to be kept.
    pub case: Option<Box<Case>>,
    /// How many bytes the head was.
    pub size: usize,
    /// How many of them Envoy counts as headers.
    pub header_bytes: usize,
}

#[derive(Clone, Debug)]
pub struct ResponseHead {
    pub status: StatusCode,
    pub version: Version,
    pub headers: HeaderMap,
    pub case: Option<Box<Case>>,
    pub size: usize,
    pub header_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    #[default]
    Http,
    Https,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// How an HTTP/1 peer wrote what it said, where whoever read it was to remember that: it is written so wherever it
/// goes on by HTTP/1, as in Envoy.
#[derive(Clone, Debug, Default)]
pub struct Case {
    /// Header names that are not in lower case.
    pub names: Vec<(HeaderName, Box<str>)>,
    /// Others are written in proper case.
    pub proper: bool,
    /// Of a response.
    pub reason: Option<Box<str>>,
}

impl Case {
    /// What is written for a name in lower case, where that is another.
    pub fn name(&self, lower: &HeaderName) -> Option<&str> {
        self.names.iter().find(|(name, _)| name == lower).map(|(_, written)| &**written)
    }
}

impl RequestHead {
    pub fn new(method: Method, authority: impl Into<String>, path: impl Into<String>) -> Self {
        Self {
            method,
            scheme: Scheme::Http,
            authority: authority.into(),
            no_host: false,
            path: path.into(),
            upgrade: None,
            version: Version::HTTP_11,
            headers: HeaderMap::new(),
            case: None,
            size: 0,
            header_bytes: 0,
        }
    }

    /// A header or pseudo-header by its lower-case name; several values are joined by commas, as in Envoy.
    pub fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        match name {
            ":method" => Some(self.method.as_str().as_bytes().into()),
            ":scheme" => Some(self.scheme.as_str().as_bytes().into()),
            ":authority" | "host" => (!self.no_host).then(|| self.authority.as_bytes().into()),
            ":path" => (!self.path.is_empty()).then(|| self.path.as_bytes().into()),
            ":protocol" | "upgrade" => self.upgrade.as_ref().map(|to| to.as_bytes().into()),
            name => joined(&self.headers, name),
        }
    }

    /// The path without its query and fragment.
    pub fn path_alone(&self) -> &str {
        self.path.split(['?', '#']).next().unwrap_or_default()
    }

    /// Without the question mark; none where there is no query.
    pub fn query(&self) -> Option<&str> {
        self.path.split_once('?').map(|(_, query)| query.split('#').next().unwrap_or_default())
    }

    pub fn is_connect(&self) -> bool {
        self.method == Method::CONNECT && self.upgrade.is_none()
    }

    /// Both bodies become raw bytes where the other side agrees.
    pub fn is_upgrade(&self) -> bool {
        self.upgrade.is_some() || self.method == Method::CONNECT
    }

    pub fn is_grpc(&self) -> bool {
        is_grpc(&self.headers)
    }
}

impl ResponseHead {
    pub fn new(status: StatusCode) -> Self {
        Self {
            status,
            version: Version::HTTP_11,
            headers: HeaderMap::new(),
            case: None,
            size: 0,
            header_bytes: 0,
        }
    }

    pub fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        match name {
            ":status" => Some(self.status.as_str().as_bytes().into()),
            name => joined(&self.headers, name),
        }
    }
}

/// A number as a header's value: the same few come again and again.
pub fn number(n: u64) -> HeaderValue {
    const KNOWN: usize = 32;
    thread_local! {
        static VALUES: RefCell<[(u64, Option<HeaderValue>); KNOWN]> =
            const { RefCell::new([const { (0, None) }; KNOWN]) };
    }
    VALUES.with_borrow_mut(|values| {
        let place = &mut values[(n % KNOWN as u64) as usize];
        if place.0 != n {
            *place = (n, None);
        }
        place.1.get_or_insert_with(|| HeaderValue::from(n)).clone()
    })
}

/// `application/grpc` or `application/grpc+…`.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    match content_type.and_then(|value| value.strip_prefix(b"application/grpc")) {
        Some(rest) => matches!(rest.first(), None | Some(b'+' | b';')),
        None => false,
    }
}

/// All values of a name.
pub fn joined<'a>(headers: &'a HeaderMap, name: &str) -> Option<Cow<'a, [u8]>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.as_bytes();
    let Some(second) = values.next() else { return Some(first.into()) };
    let mut all = first.to_vec();
    for value in std::iter::once(second).chain(values) {
        all.push(b',');
        all.extend_from_slice(value.as_bytes());
    }
    Some(all.into())
}

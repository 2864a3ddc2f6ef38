//! Where a message's body ends: the one question that all on the way must answer alike.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};

use super::{BadRequest, Settings};

/// How the body comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    None,
    Length(u64),
    Chunked,
    /// Until the connection ends.
    Close,
    /// After an upgrade.
    Raw,
}

/// What `Connection` and its like say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Connection {
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade: bool,
}

impl Connection {
    /// Whether the peer wants this connection to go on.
    pub(super) fn persists(self, version: Version) -> bool {
        if version == Version::HTTP_11 { !self.close } else { self.keep_alive && !self.close }
    }
}

/// Of a message that has a body at all, by its headers.
pub(super) fn extent(
    headers: &mut HeaderMap,
    version: Version,
    settings: &Settings,
) -> Result<Option<Extent>, BadRequest> {
    let length = content_length(headers)?;
    if !headers.contains_key(header::TRANSFER_ENCODING) {
        return Ok(length.map(Extent::Length));
    }
    if version != Version::HTTP_11 {
        return Err(bad("http1.transfer_encoding_not_allowed"));
    }
    if length.is_some() && !settings.allow_chunked_length {
        return Err(bad("http1.content_length_and_chunked_not_allowed"));
    }
    // Once, and alone. Envoy's status of a coding that it does not understand.
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let chunked = codings.next().is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if !chunked || codings.next().is_some() {
        return Err(BadRequest::new(StatusCode::NOT_IMPLEMENTED, "http1.invalid_transfer_encoding"));
    }
    if length.is_some() {
        headers.remove(header::CONTENT_LENGTH);
    }
    Ok(Some(Extent::Chunked))
}

/// Of a request, once its headers have said.
pub(super) fn of_request(
    declared: Option<Extent>,
    method: &Method,
    upgrade: &mut Option<String>,
) -> Result<Extent, BadRequest> {
    if *method == Method::CONNECT {
        return match declared {
            None | Some(Extent::Length(0)) => Ok(Extent::Raw),
            Some(Extent::Chunked) => {
                Err(BadRequest::new(StatusCode::NOT_IMPLEMENTED, "http1.invalid_transfer_encoding"))
            }
            Some(Extent::Length(_) | Extent::None | Extent::Close | Extent::Raw) => {
                Err(bad("http1.body_disallowed"))
            }
        };
    }
    if upgrade.is_some() {
        if matches!(declared, None | Some(Extent::Length(0))) {
            return Ok(Extent::Raw);
        }
        // Its body would have to come before what it is upgraded to. Such a request is served as if it had not asked:
        // Envoy passes both on as one, which the upstream may read as another request.
        *upgrade = None;
    }
    Ok(match declared {
        None | Some(Extent::Length(0)) => Extent::None,
        Some(extent) => extent,
    })
}

/// Of a response, once its headers have said: RFC 9112, 6.3.
pub(super) fn of_response(
    declared: Option<Extent>,
    status: StatusCode,
    request: &Method,
) -> Result<Extent, BadRequest> {
    if *request == Method::CONNECT && status.is_success() {
        return Ok(Extent::Raw);
    }
    if status == StatusCode::NO_CONTENT || status.is_informational() {
        return match declared {
            Some(Extent::Chunked) => Err(bad("http1.transfer_encoding_not_allowed")),
            Some(Extent::Length(1..)) => Err(bad("http1.content_length_not_allowed")),
            None | Some(Extent::None | Extent::Length(0) | Extent::Close | Extent::Raw) => Ok(Extent::None),
        };
    }
    if *request == Method::HEAD || status == StatusCode::NOT_MODIFIED {
        return Ok(Extent::None);
    }
    Ok(match declared {
        Some(Extent::Length(0)) => Extent::None,
        Some(extent) => extent,
        None => Extent::Close,
    })
}

/// A header that concerns one hop alone, or how its message is framed there.
pub(super) fn is_of_hop(name: &HeaderName) -> bool {
    // Compared once, by their first letters: most names are none of them.
    match name.as_str().as_bytes().first() {
        Some(b'c') => *name == header::CONNECTION,
        Some(b'k') => *name == KEEP_ALIVE,
        Some(b'p') => *name == PROXY_CONNECTION,
        Some(b't') => *name == header::TRANSFER_ENCODING,
        Some(b'u') => *name == header::UPGRADE,
        Some(b'h') => *name == header::HOST,
        Some(_) | None => false,
    }
}

/// Reads what else there is of `Connection`, and takes off what concerns this hop alone.
pub(super) fn connection(headers: &mut HeaderMap, mut said: Connection) -> Result<Connection, BadRequest> {
    let mut named = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        for token in tokens(value) {
            said.read(token, &mut named)?;
        }
    }
    for value in headers.get_all(&PROXY_CONNECTION) {
        for token in tokens(value) {
            said.read_proxy(token);
        }
    }
    for name in named {
        headers.remove(name);
    }
    for name in [&header::CONNECTION, &KEEP_ALIVE, &PROXY_CONNECTION, &header::TRANSFER_ENCODING] {
        headers.remove(name);
    }
    only_trailers(headers);
    Ok(said)
}

impl Connection {
    /// What is mostly said; whether it was that.
    pub(super) fn read_word(&mut self, value: &HeaderValue) -> bool {
        let value = value.as_bytes();
        let (close, keep_alive) =
            (value.eq_ignore_ascii_case(b"close"), value.eq_ignore_ascii_case(b"keep-alive"));
        self.close |= close;
        self.keep_alive |= keep_alive;
        close || keep_alive
    }

    fn read(&mut self, token: &[u8], named: &mut Vec<HeaderName>) -> Result<(), BadRequest> {
        if token.eq_ignore_ascii_case(b"close") {
            self.close = true;
        } else if token.eq_ignore_ascii_case(b"keep-alive") {
            self.keep_alive = true;
        } else if token.eq_ignore_ascii_case(b"upgrade") {
            self.upgrade = true;
        } else if !token.is_empty() {
            let name = HeaderName::from_bytes(token).map_err(|_| rejected())?;
            if UNNAMEABLE.contains(&name.as_str()) {
                return Err(rejected());
            }
            // It is read first: what frames a message stays until it has been understood.
            if name != header::CONTENT_LENGTH && name != header::TE {
                named.push(name);
            }
        }
        Ok(())
    }

    fn read_proxy(&mut self, token: &[u8]) {
        if token.eq_ignore_ascii_case(b"close") {
            self.close = true;
        } else if token.eq_ignore_ascii_case(b"keep-alive") {
            self.keep_alive = true;
        }
    }
}

/// A proxy's own, which a client may not have it drop: Envoy refuses these too.
const UNNAMEABLE: [&str; 4] = ["host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

fn rejected() -> BadRequest {
    bad("http1.connection_header_rejected")
}

/// `TE` is of one hop, but that trailers are welcome is passed on: gRPC wants it.
fn only_trailers(headers: &mut HeaderMap) {
    let Some(value) = headers.get(header::TE) else { return };
    if value == "trailers" && headers.get_all(header::TE).iter().count() == 1 {
        return;
    }
    let wanted = headers
        .get_all(header::TE)
        .iter()
        .flat_map(tokens)
        .any(|token| token.eq_ignore_ascii_case(b"trailers"));
    headers.remove(header::TE);
    if wanted {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Said once: two that agree are as wrong as two that do not, for Envoy too.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, BadRequest> {
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => length(value).map(Some),
        (Some(_), Some(_)) => Err(BadRequest::codec()),
    }
}

pub(super) fn length(value: &HeaderValue) -> Result<u64, BadRequest> {
    digits(value.as_bytes()).ok_or(BadRequest::codec())
}

/// Digits and nothing else.
pub(super) fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

pub(super) fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

const fn bad(details: &'static str) -> BadRequest {
    BadRequest::new(StatusCode::BAD_REQUEST, details)
}

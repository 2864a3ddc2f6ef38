//! Heads: `httparse` reads them, and what it lets pass but others may read differently is refused here.

use std::mem::MaybeUninit;

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use httparse::{EMPTY_HEADER, Header, ParserConfig};

use super::framing::{self, Connection, Extent};
use super::target::{self, Target};
use super::{BadRequest, Settings};
use crate::http::{Case, RequestHead, ResponseHead, Scheme, spare};

/// What was found out of a head that is not complete: so that no byte is looked at often, however they trickle in.
#[derive(Debug, Default)]
pub(super) struct Scan {
    searched: usize,
    checked: usize,
    checks: u32,
}

pub(super) struct Parsed<H> {
    pub head: H,
    pub extent: Extent,
    pub connection: Connection,
}

/// A request's head off the front of `input`; none: more is needed.
pub(super) fn request(
    input: &mut BytesMut,
    scan: &mut Scan,
    settings: &Settings,
) -> Result<Option<Parsed<RequestHead>>, BadRequest> {
    skip_line_breaks(input);
    let Some(bytes) = take(input, scan, settings, check_request)? else { return Ok(None) };
    with_slots(settings.max_headers, |slots| {
        let mut raw = httparse::Request::new(&mut []);
        // A rest would be a head that ended before its end.
        match ParserConfig::default().parse_request_with_uninit_headers(&mut raw, &bytes, slots) {
            Ok(httparse::Status::Complete(len)) if len == bytes.len() => read_request(&raw, &bytes, settings),
            Ok(_) => Err(BadRequest::codec()),
            Err(error) => Err(refused(error, &bytes)),
        }
    })
    .map(Some)
}

/// As [`request`], of a response to a request with this method.
pub(super) fn response(
    input: &mut BytesMut,
    scan: &mut Scan,
    method: &Method,
    settings: &Settings,
) -> Result<Option<Parsed<ResponseHead>>, BadRequest> {
    if matches!(input.first(), Some(b'\r' | b'\n')) {
        return Err(BadRequest::codec());
    }
    let Some(bytes) = take(input, scan, settings, check_response)? else { return Ok(None) };
    with_slots(settings.max_headers, |slots| {
        let mut raw = httparse::Response::new(&mut []);
        match ParserConfig::default().parse_response_with_uninit_headers(&mut raw, &bytes, slots) {
            Ok(httparse::Status::Complete(len)) if len == bytes.len() => {
                read_response(&raw, &bytes, method, settings)
            }
            Ok(_) => Err(BadRequest::codec()),
            Err(error) => Err(refused(error, &bytes)),
        }
    })
    .map(Some)
}

/// Lines of trailers with the empty one that ends them.
pub(super) fn trailers(bytes: &Bytes, settings: &Settings) -> Result<HeaderMap, BadRequest> {
    let mut slots = vec![EMPTY_HEADER; settings.max_headers];
    let lines = match httparse::parse_headers(bytes, &mut slots) {
        Ok(httparse::Status::Complete((len, lines))) if len == bytes.len() => lines,
        Ok(_) => return Err(BadRequest::codec()),
        Err(error) => return Err(refused(error, bytes)),
    };
    let mut trailers = HeaderMap::with_capacity(lines.len());
    for line in lines {
        let (name, value) = field(line, bytes)?;
        // Whoever merges trailers into headers must not be told another length or host by them.
        if !is_of_head(&name) {
            trailers.try_append(name, value).map_err(|_| TOO_MANY)?;
        }
    }
    Ok(trailers)
}

fn is_of_head(name: &HeaderName) -> bool {
    framing::is_of_hop(name) || [header::CONTENT_LENGTH, header::TE, header::TRAILER].contains(name)
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeadEnd {
    At(usize),
    More,
}

/// Where a head ends: after an empty line. Each line ends with CR and LF: some take a LF alone for one, others not.
pub(super) fn head_end(input: &[u8], searched: &mut usize, max: usize) -> Result<HeadEnd, BadRequest> {
    let mut from = *searched;
    while let Some(at) = input.get(from..).and_then(|rest| memchr::memchr(b'\n', rest)) {
        let lf = from + at;
        if lf == 0 || input.get(lf - 1) != Some(&b'\r') {
            return Err(BadRequest::codec());
        }
        if lf >= max {
            return Err(TOO_LARGE);
        }
        if lf >= 3 && input.get(lf - 3..lf - 1) == Some(b"\r\n") {
            return Ok(HeadEnd::At(lf + 1));
        }
        from = lf + 1;
    }
    *searched = input.len();
    if input.len() > max { Err(TOO_LARGE) } else { Ok(HeadEnd::More) }
}

const TOO_LARGE: BadRequest =
    BadRequest::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "http1.headers_too_large");
const TOO_MANY: BadRequest =
    BadRequest::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "http1.too_many_headers");

/// Empty lines before a request: old clients send one after a body.
fn skip_line_breaks(input: &mut BytesMut) {
    while input.starts_with(b"\r\n") {
        input.advance(2);
    }
}

/// A complete head; of one that is not, whether it can still become one.
fn take(
    input: &mut BytesMut,
    scan: &mut Scan,
    settings: &Settings,
    check: fn(&[u8], usize) -> Result<(), httparse::Error>,
) -> Result<Option<Bytes>, BadRequest> {
    match head_end(input, &mut scan.searched, settings.max_head_bytes)? {
        HeadEnd::At(len) => {
            *scan = Scan::default();
            // All of it, mostly: which needs no count of who shares it.
            let all = len == input.len();
            Ok(Some(if all { std::mem::take(input) } else { input.split_to(len) }.freeze()))
        }
        HeadEnd::More => {
            // What is wrong is said soon, but not looked for anew with each byte.
            if (scan.checks < 16 || input.len() >= scan.checked * 2) && !input.is_empty() {
                scan.checked = input.len();
                scan.checks += 1;
                check(input, settings.max_headers).map_err(|error| refused(error, input))?;
            }
            Ok(None)
        }
    }
}

fn check_request(input: &[u8], max_headers: usize) -> Result<(), httparse::Error> {
    let mut slots = vec![EMPTY_HEADER; max_headers];
    httparse::Request::new(&mut slots).parse(input).map(drop)
}

fn check_response(input: &[u8], max_headers: usize) -> Result<(), httparse::Error> {
    let mut slots = vec![EMPTY_HEADER; max_headers];
    httparse::Response::new(&mut slots).parse(input).map(drop)
}

fn refused(error: httparse::Error, head: &[u8]) -> BadRequest {
    let control = |byte: &u8| byte.is_ascii_control() && !matches!(byte, b'\t' | b'\r' | b'\n');
    if error == httparse::Error::TooManyHeaders {
        TOO_MANY
    } else if head.iter().any(control) {
        BadRequest::new(StatusCode::BAD_REQUEST, "http1.invalid_characters")
    } else {
        BadRequest::codec()
    }
}

/// With room for the fields of a head: on the stack where they are as many as usual.
fn with_slots<'b, R>(max: usize, f: impl FnOnce(&mut [MaybeUninit<Header<'b>>]) -> R) -> R {
    const USUAL: usize = 100;
    if max <= USUAL {
        let mut slots = [const { MaybeUninit::uninit() }; USUAL];
        f(&mut slots[..max])
    } else {
        f(&mut vec![MaybeUninit::uninit(); max])
    }
}

fn read_request(
    raw: &httparse::Request<'_, '_>,
    bytes: &Bytes,
    settings: &Settings,
) -> Result<Parsed<RequestHead>, BadRequest> {
    let version = version(raw.version)?;
    let method = target::method(raw.method.unwrap_or_default(), settings)?;
    if version == Version::HTTP_10 && !settings.accept_http_10 {
        return Err(BadRequest::new(StatusCode::UPGRADE_REQUIRED, "low_version"));
    }
    let target = target::target(raw.path.unwrap_or_default(), &method, settings)?;
    let mut fields = Fields::read(raw.headers, bytes, settings)?;
    let (declared, connection) = fields.framing(version, settings)?;
    let mut upgrade = if fields.special { upgrade(&mut fields.map, connection) } else { None };
    let extent = framing::of_request(declared, &method, &mut upgrade)?;
    let host = host(&mut fields, &target, version, settings)?;
    let no_host = host.is_none();
    let scheme = target.scheme.unwrap_or(if settings.https { Scheme::Https } else { Scheme::Http });
    let head = RequestHead {
        authority: host.unwrap_or_default(),
        no_host,
        path: target.path.to_owned(),
        method,
        scheme,
        upgrade,
        version,
        headers: fields.map,
        case: fields.case,
        size: bytes.len(),
        header_bytes: header_bytes(bytes, raw.headers.len()),
    };
    Ok(Parsed { head, extent, connection })
}

fn read_response(
    raw: &httparse::Response<'_, '_>,
    bytes: &Bytes,
    method: &Method,
    settings: &Settings,
) -> Result<Parsed<ResponseHead>, BadRequest> {
    let version = version(raw.version)?;
    let status = raw.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(BadRequest::codec())?;
    let mut fields = Fields::read(raw.headers, bytes, settings)?;
    if let Some(host) = fields.host.take() {
        fields.map.try_append(header::HOST, host).map_err(|_| TOO_MANY)?;
    }
    let (declared, connection) = fields.framing(version, settings)?;
    let extent = framing::of_response(declared, status, method)?;
    let turns = matches!(status, StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED);
    if fields.special && !turns {
        fields.map.remove(header::UPGRADE);
    }
    if let Some(case) = fields.case.as_mut().filter(|_| settings.keep_reason) {
        case.reason = raw.reason.map(Into::into);
    }
    let head = ResponseHead {
        status,
        version,
        headers: fields.map,
        case: fields.case,
        size: bytes.len(),
        header_bytes: header_bytes(bytes, raw.headers.len()),
    };
    Ok(Parsed { head, extent, connection })
}

/// As Envoy counts them: without the first line, the last one, and the LF of each.
fn header_bytes(head: &[u8], lines: usize) -> usize {
    let first = memchr::memchr(b'\n', head).map_or(0, |at| at + 1);
    head.len().saturating_sub(first + 2 + lines)
}

fn version(minor: Option<u8>) -> Result<Version, BadRequest> {
    match minor {
        Some(1) => Ok(Version::HTTP_11),
        Some(0) => Ok(Version::HTTP_10),
        Some(_) | None => Err(BadRequest::codec()),
    }
}

/// How many fields the proxy adds, mostly.
const ADDED: usize = 4;

/// The fields of a head.
struct Fields {
    map: HeaderMap,
    case: Option<Box<Case>>,
    /// Not among the map's.
    host: Option<HeaderValue>,
    /// What most say of the connection, in a word. It is not among the map's.
    connection: Connection,
    /// The only `content-length`.
    length: Option<HeaderValue>,
    /// More is said of how the message is framed or how the connection goes on, which the map has.
    special: bool,
}

impl Fields {
    fn read(lines: &[Header<'_>], bytes: &Bytes, settings: &Settings) -> Result<Self, BadRequest> {
        let proper = settings.proper_case_own;
        let case = settings.preserve_case.then(|| Box::new(Case { proper, ..Case::default() }));
        let mut fields = Self {
            map: spare::headers(lines.len() + ADDED),
            case,
            host: None,
            connection: Connection::default(),
            length: None,
            special: false,
        };
        for line in lines {
            let (name, value) = field(line, bytes)?;
            if let Some(case) = &mut fields.case
                && line.name.bytes().any(|byte| byte.is_ascii_uppercase())
            {
                case.names.push((name.clone(), line.name.into()));
            }
            if name == header::HOST {
                if fields.host.replace(value).is_some() {
                    return Err(BadRequest::codec());
                }
            } else if name != header::CONNECTION || !fields.connection.read_word(&value) {
                fields.look(&name, &value);
                fields.map.try_append(name, value).map_err(|_| TOO_MANY)?;
            }
        }
        Ok(fields)
    }

    fn look(&mut self, name: &HeaderName, value: &HeaderValue) {
        if *name == header::CONTENT_LENGTH {
            self.special |= self.length.replace(value.clone()).is_some();
        } else {
            self.special |= framing::is_of_hop(name) || *name == header::TE;
        }
    }

    fn framing(
        &mut self,
        version: Version,
        settings: &Settings,
    ) -> Result<(Option<Extent>, Connection), BadRequest> {
        if !self.special {
            let length = self.length.take().map(|length| framing::length(&length)).transpose()?;
            return Ok((length.map(Extent::Length), self.connection));
        }
        let declared = framing::extent(&mut self.map, version, settings)?;
        Ok((declared, framing::connection(&mut self.map, self.connection)?))
    }
}

/// The value stays where it was read.
fn field(line: &Header<'_>, bytes: &Bytes) -> Result<(HeaderName, HeaderValue), BadRequest> {
    let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| BadRequest::codec())?;
    let value = if line.value.is_empty() {
        HeaderValue::from_static("")
    } else {
        HeaderValue::from_maybe_shared(bytes.slice_ref(line.value)).map_err(|_| BadRequest::codec())?
    };
    Ok((name, value))
}

/// What the target says goes before the header. None: nobody has named one, which the connection manager refuses.
fn host(
    fields: &mut Fields,
    target: &Target<'_>,
    version: Version,
    settings: &Settings,
) -> Result<Option<String>, BadRequest> {
    if let Some(host) = fields.host.take() {
        return match std::str::from_utf8(host.as_bytes()) {
            Ok(host) if target::is_host(host) => Ok(Some(target.authority.unwrap_or(host).to_owned())),
            Ok(_) | Err(_) => Err(BadRequest::new(StatusCode::BAD_REQUEST, "http.invalid_authority")),
        };
    }
    let default = settings.default_host.as_deref().filter(|_| version == Version::HTTP_10);
    Ok(target.authority.or(default).map(str::to_owned))
}

/// What a client would turn to; HTTP/2 is not turned to so.
fn upgrade(headers: &mut HeaderMap, connection: Connection) -> Option<String> {
    if !connection.upgrade {
        headers.remove(header::UPGRADE);
        return None;
    }
    let value = headers.remove(header::UPGRADE)?;
    let to = value.to_str().ok()?.to_ascii_lowercase();
    if to == "h2c" {
        headers.remove("http2-settings");
        return None;
    }
    (!to.is_empty()).then_some(to)
}

/// A parser of whatever a client may send, for fuzzing: it ends, without a panic.
pub fn fuzz_request(data: &[u8]) {
    let mut input = BytesMut::from(data);
    let settings = Settings { accept_http_10: true, enable_trailers: true, ..Settings::default() };
    while let Ok(Some(parsed)) = request(&mut input, &mut Scan::default(), &settings) {
        if !fuzz_body(parsed.extent, &mut input, &settings) {
            return;
        }
    }
}

/// As [`fuzz_request`], of an upstream's response.
pub fn fuzz_response(data: &[u8]) {
    let mut input = BytesMut::from(data);
    let settings = Settings { enable_trailers: true, ..Settings::default() };
    while let Ok(Some(parsed)) = response(&mut input, &mut Scan::default(), &Method::GET, &settings) {
        if !fuzz_body(parsed.extent, &mut input, &settings) {
            return;
        }
    }
}

/// Whether it is followed by another message.
fn fuzz_body(extent: Extent, input: &mut BytesMut, settings: &Settings) -> bool {
    use super::reader::{Read, Reader};
    let mut reader = Reader::new(extent);
    loop {
        match reader.read(input, settings) {
            Ok(Read::Frame(_)) => {}
            Ok(Read::End) => return true,
            Ok(Read::More) | Err(_) => return false,
        }
    }
}

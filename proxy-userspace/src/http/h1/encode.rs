//! Messages on their way out.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, Method, StatusCode, Version, header};
use http_body::Frame;

use super::Settings;
use super::framing::{self, is_of_hop};
use crate::http::conn::Conn;
use crate::http::{Case, RequestHead, Reset, ResetReason, ResponseHead};
use crate::telemetry::Side;

/// How a body goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none, whatever the body has.
    None,
    Length(u64),
    Chunked,
    /// As it is: after an upgrade, or until the connection ends.
    Raw,
}

/// What went out of a frame.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wrote {
    pub body: u64,
    pub trailers: u64,
}

/// A body on its way out.
pub(super) struct Writer {
    framing: Framing,
    trailers: bool,
    ended: bool,
    /// What the body's bytes have been wrapped into so far.
    pub(super) wrapping: u64,
}

impl Writer {
    pub(super) fn new(framing: Framing, settings: &Settings) -> Self {
        let ended = matches!(framing, Framing::None | Framing::Length(0));
        Self { framing, trailers: settings.enable_trailers, ended, wrapping: 0 }
    }

    /// There is no body on the wire, but its end is waited for.
    pub(super) fn awaits_end(&mut self) {
        self.ended = false;
    }

    /// All of it has been pushed.
    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Whatever the body has, nothing of it goes out.
    pub(super) fn is_none(&self) -> bool {
        self.framing == Framing::None
    }

    pub(super) fn is_raw(&self) -> bool {
        self.framing == Framing::Raw
    }

    /// `last`: no frame follows. To be called where `conn` has room.
    pub(super) fn frame(&mut self, conn: &mut Conn, frame: Frame<Bytes>, last: bool) -> Result<Wrote, Reset> {
        let mut wrote = Wrote::default();
        match frame.into_data() {
            Ok(data) => {
                wrote.body = if self.framing == Framing::None { 0 } else { data.len() as u64 };
                self.data(conn, data, last)?;
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    wrote.trailers = self.end_with(conn, &trailers)?;
                }
            }
        }
        Ok(wrote)
    }

    fn data(&mut self, conn: &mut Conn, data: Bytes, last: bool) -> Result<(), Reset> {
        if !data.is_empty() {
            match &mut self.framing {
                Framing::None => {}
                Framing::Raw => conn.push(data, b""),
                Framing::Length(left) => {
                    let len = data.len() as u64;
                    *left =
                        left.checked_sub(len).ok_or_else(|| local("the body is longer than its length"))?;
                    conn.push(data, b"");
                    self.ended = *left == 0;
                }
                Framing::Chunked => {
                    let before = conn.output.len();
                    size_line(&mut conn.output, data.len());
                    self.ended = last;
                    let tail: &'static [u8] = if last { b"\r\n0\r\n\r\n" } else { b"\r\n" };
                    self.wrapping += (conn.output.len() - before + tail.len()) as u64;
                    conn.push(data, tail);
                }
            }
        }
        if last { self.end(conn) } else { Ok(()) }
    }

    pub(super) fn end(&mut self, conn: &mut Conn) -> Result<(), Reset> {
        if self.ended {
            return Ok(());
        }
        match self.framing {
            Framing::None | Framing::Raw | Framing::Length(0) => {}
            Framing::Length(_) => return Err(local("the body is shorter than its length")),
            Framing::Chunked => {
                self.wrapping += 5;
                conn.output.extend_from_slice(b"0\r\n\r\n");
            }
        }
        self.ended = true;
        Ok(())
    }

    fn end_with(&mut self, conn: &mut Conn, trailers: &HeaderMap) -> Result<u64, Reset> {
        if self.ended || self.framing != Framing::Chunked || !self.trailers || trailers.is_empty() {
            return self.end(conn).map(|()| 0);
        }
        let out = &mut conn.output;
        out.extend_from_slice(b"0\r\n");
        let start = out.len();
        for (name, value) in trailers {
            if !is_of_hop(name) && name != header::CONTENT_LENGTH && name != header::HOST {
                field(out, name.as_str().as_bytes(), value.as_bytes());
            }
        }
        let len = out.len() - start;
        out.extend_from_slice(b"\r\n");
        self.wrapping += 5;
        self.ended = true;
        Ok(len as u64)
    }
}

/// What the answer depends on.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub method: Method,
    pub version: Version,
    pub upgrade: Option<String>,
    pub keep_alive: bool,
}

impl Asked {
    /// The response turns the connection into raw bytes.
    pub(super) fn is_turned(&self, status: StatusCode) -> bool {
        match &self.upgrade {
            Some(_) => status == StatusCode::SWITCHING_PROTOCOLS,
            None => self.method == Method::CONNECT && status.is_success(),
        }
    }
}

/// `len`: of the body, where it is known. Whether the connection is to be closed after it is decided here for a body that only the connection's end ends.
pub(super) fn response(
    out: &mut BytesMut,
    head: &ResponseHead,
    len: Option<u64>,
    asked: &Asked,
    close: &mut bool,
    settings: &Settings,
) -> Framing {
    status_line(out, head, asked.version);
    let turned = asked.is_turned(head.status);
    let (framing, length) = if turned { (Framing::Raw, None) } else { response_framing(head, len, asked) };
    let names = Names::new(head.case.as_deref(), settings);
    fields(out, &head.headers, length, &names);
    if turned {
        if let Some(to) = &asked.upgrade {
            let to = head.headers.get(header::UPGRADE).map_or(to.as_bytes(), |value| value.as_bytes());
            names.write(out, &header::CONNECTION, b"upgrade");
            names.write(out, &header::UPGRADE, to);
        }
    } else {
        if head.status == StatusCode::UPGRADE_REQUIRED
            && let Some(to) = head.headers.get(header::UPGRADE)
        {
            names.write(out, &header::UPGRADE, to.as_bytes());
        }
        *close |= framing == Framing::Raw;
        if *close {
            names.write(out, &header::CONNECTION, b"close");
        } else if asked.version != Version::HTTP_11 {
            names.write(out, &header::CONNECTION, b"keep-alive");
        }
        // As Envoy: what a GET would have is said of a HEAD, too.
        let untold = framing == Framing::None && length.is_none() && asked.method == Method::HEAD;
        let untold = untold && asked.version == Version::HTTP_11 && head.status != StatusCode::NO_CONTENT;
        if framing == Framing::Chunked || untold {
            names.write(out, &header::TRANSFER_ENCODING, b"chunked");
        }
    }
    out.extend_from_slice(b"\r\n");
    framing
}

/// Of a head that was written: without its first and its last line.
pub(super) fn header_bytes(head: &[u8]) -> u64 {
    let first = memchr::memchr(b'\n', head).map_or(0, |at| at + 1);
    head.len().saturating_sub(first + 2) as u64
}

/// A response that comes before the final one.
pub(super) fn interim(out: &mut BytesMut, head: &ResponseHead, settings: &Settings) {
    status_line(out, head, Version::HTTP_11);
    fields(out, &head.headers, None, &Names::new(head.case.as_deref(), settings));
    out.extend_from_slice(b"\r\n");
}

/// What a head is mostly at most: it then grows in one place.
fn room(headers: &HeaderMap) -> usize {
    256 + headers.len() * 48
}

fn status_line(out: &mut BytesMut, head: &ResponseHead, version: Version) {
    let status = head.status;
    let kept = head.case.as_deref().and_then(|case| case.reason.as_deref());
    let reason = kept.unwrap_or_else(|| reason(status));
    out.reserve(room(&head.headers));
    out.extend_from_slice(if version == Version::HTTP_11 { b"HTTP/1.1 " } else { b"HTTP/1.0 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// In Envoy's words, who does not know all that IANA has.
fn reason(status: StatusCode) -> &'static str {
    match status.as_u16() {
        102 | 103 | 418 => "Unknown",
        599 => "Last Unassigned Server Error Code",
        _ => status.canonical_reason().unwrap_or("Unknown"),
    }
}

fn response_framing(head: &ResponseHead, len: Option<u64>, asked: &Asked) -> (Framing, Option<u64>) {
    let declared = declared(&head.headers);
    let status = head.status;
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        return (Framing::None, None);
    }
    if asked.method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
        return (Framing::None, declared.or(len.filter(|len| *len > 0)));
    }
    match len.or(declared) {
        Some(len) => (Framing::Length(len), Some(len)),
        None if asked.version == Version::HTTP_11 => (Framing::Chunked, None),
        None => (Framing::Raw, None),
    }
}

/// What a head says of its body's length.
fn declared(headers: &HeaderMap) -> Option<u64> {
    framing::digits(headers.get(header::CONTENT_LENGTH)?.as_bytes())
}

/// An error where filters have made of it what no request line can say.
pub(super) fn request(
    out: &mut BytesMut,
    head: &RequestHead,
    len: Option<u64>,
    settings: &Settings,
) -> Result<Framing, Reset> {
    request_line(out, head, settings)?;
    let names = Names::new(head.case.as_deref(), settings);
    names.write(out, &header::HOST, head.authority.as_bytes());
    let (framing, length) = if head.is_upgrade() { (Framing::Raw, None) } else { request_framing(head, len) };
    fields(out, &head.headers, length, &names);
    if let Some(to) = &head.upgrade {
        names.write(out, &header::CONNECTION, b"upgrade");
        names.write(out, &header::UPGRADE, printable(to)?);
    }
    if framing == Framing::Chunked {
        names.write(out, &header::TRANSFER_ENCODING, b"chunked");
    }
    out.extend_from_slice(b"\r\n");
    Ok(framing)
}

fn request_line(out: &mut BytesMut, head: &RequestHead, settings: &Settings) -> Result<(), Reset> {
    let authority = printable(&head.authority)?;
    // An extended CONNECT of HTTP/2 is an upgrade here.
    let method =
        if head.upgrade.is_some() && head.method == Method::CONNECT { &Method::GET } else { &head.method };
    out.reserve(room(&head.headers) + head.path.len() + head.authority.len());
    out.extend_from_slice(method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    if head.is_connect() {
        out.extend_from_slice(authority);
    } else {
        if settings.send_fully_qualified_url {
            out.extend_from_slice(head.scheme.as_str().as_bytes());
            out.extend_from_slice(b"://");
            out.extend_from_slice(authority);
        }
        out.extend_from_slice(if head.path.is_empty() { b"/" } else { printable(&head.path)? });
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    Ok(())
}

/// A line break here would be another request.
fn printable(text: &str) -> Result<&[u8], Reset> {
    if text.bytes().all(|byte| byte > b' ' && byte != 0x7f) {
        Ok(text.as_bytes())
    } else {
        Err(local("the request cannot be said in HTTP/1"))
    }
}

fn request_framing(head: &RequestHead, len: Option<u64>) -> (Framing, Option<u64>) {
    // As Envoy's requestShouldHaveNoBody: others say that they have none.
    let bodiless = matches!(head.method, Method::GET | Method::HEAD | Method::DELETE | Method::TRACE);
    let declared = declared(&head.headers);
    match len.or(declared) {
        Some(0) if bodiless && declared.is_none() => (Framing::None, None),
        Some(len) => (Framing::Length(len), Some(len)),
        None => (Framing::Chunked, None),
    }
}

/// All but those that are of this hop, which are written anew. The length is said where it was said before.
fn fields(out: &mut BytesMut, headers: &HeaderMap, mut length: Option<u64>, names: &Names<'_>) {
    for (name, value) in headers {
        if name == header::CONTENT_LENGTH {
            names.write_length(out, length.take());
        } else if !is_of_hop(name) {
            names.write(out, name, value.as_bytes());
        }
    }
    names.write_length(out, length);
}

/// How header names are written.
struct Names<'a> {
    case: Option<&'a Case>,
    proper: bool,
}

impl<'a> Names<'a> {
    fn new(case: Option<&'a Case>, settings: &Settings) -> Self {
        Self { case, proper: case.map_or(settings.proper_case, |case| case.proper) }
    }

    fn write_length(&self, out: &mut BytesMut, length: Option<u64>) {
        if let Some(length) = length {
            let mut digits = [0; 20];
            self.write(out, &header::CONTENT_LENGTH, decimal(length, &mut digits));
        }
    }

    fn write(&self, out: &mut BytesMut, name: &HeaderName, value: &[u8]) {
        let kept = self.case.and_then(|case| case.name(name));
        let start = out.len();
        field(out, kept.unwrap_or(name.as_str()).as_bytes(), value);
        if self.proper && kept.is_none() {
            proper(&mut out[start..start + name.as_str().len()]);
        }
    }
}

/// As Envoy's `proper_case_words`: the first letter, and each after what is neither letter nor digit.
fn proper(name: &mut [u8]) {
    let mut first = true;
    for byte in name {
        if first {
            byte.make_ascii_uppercase();
        }
        first = !byte.is_ascii_alphanumeric();
    }
}

fn field(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b"0123456789"[(number % 10) as usize];
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}

/// A chunk's size, and the end of its line.
fn size_line(out: &mut BytesMut, size: usize) {
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    for at in (0..digits).rev() {
        out.extend_from_slice(&[b"0123456789abcdef"[size >> (4 * at) & 0xf]]);
    }
    out.extend_from_slice(b"\r\n");
}

fn local(details: &'static str) -> Reset {
    Reset::new(Side::Internal, ResetReason::Local, details)
}

//! `envoy.filters.listener.tls_inspector`: whether a connection begins with a ClientHello, and what it asks for.
//!
//! Judges as Envoy's TLS library does: a record is looked into once it is complete, a hello that the library would
//! refuse is no TLS at all. Unlike it, an SSLv2-style hello is no TLS either.

use std::borrow::Cow;
use std::sync::Arc;

use super::Peek;
use super::reader::Reader;

/// A record's type, version and length.
const HEADER: usize = 5;
/// What a record may hold: 2^14 bytes and what encryption adds, as the library counts it.
const MAX_RECORD: usize = 16_384 + 256 + 64;
/// The longest handshake message that is taken.
const MAX_MESSAGE: usize = 16_384;
const MAX_EMPTY_RECORDS: usize = 32;
const MAX_WARNINGS: usize = 4;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const SUPPORTED_VERSIONS: u16 = 43;

/// What a ClientHello asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// Lower case.
    pub server_name: Option<Arc<str>>,
    pub alpn: Vec<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// `None`: this is not TLS.
    pub hello: Option<Hello>,
    /// Bytes that it took to tell.
    pub bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `max_client_hello_size` bytes, and still no complete hello.
    TooLarge,
    /// The client gave up: `close_notify`.
    Closed,
}

/// `max` is `max_client_hello_size`; of a longer `buf` only that much is looked at.
pub fn inspect(buf: &[u8], max: usize) -> Peek<Inspected, Refusal> {
    let buf = buf.get(..max).unwrap_or(buf);
    match records(buf) {
        Peek::NeedMore(_) if buf.len() >= max => Peek::Refuse(Refusal::TooLarge),
        Peek::NeedMore(total) => Peek::NeedMore(total.min(max)),
        other @ (Peek::Done(_) | Peek::Refuse(_)) => other,
    }
}

/// Walks the records until they hold one whole handshake message.
fn records(buf: &[u8]) -> Peek<Inspected, Refusal> {
    let mut message: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    let (mut empty, mut warnings, mut at) = (0, 0, 0);
    loop {
        let record = match record(buf, at) {
            Ok(record) => record,
            Err(Stop::NeedMore(total)) => return Peek::NeedMore(total),
            Err(Stop::NotTls(bytes)) => return not_tls(bytes),
        };
        at += HEADER + record.body.len();
        match (record.kind, record.body) {
            (HANDSHAKE, []) if empty < MAX_EMPTY_RECORDS => empty += 1,
            (HANDSHAKE, []) => return not_tls(at),
            (HANDSHAKE, body) if message.is_empty() => message = Cow::Borrowed(body),
            (HANDSHAKE, body) => message.to_mut().extend_from_slice(body),
            (ALERT, [1, 0]) => return Peek::Refuse(Refusal::Closed),
            (ALERT, [1, _]) if warnings < MAX_WARNINGS => warnings += 1,
            _ => return not_tls(at),
        }
        if let Some(hello) = handshake(&message) {
            return Peek::Done(Inspected { hello: hello.ok(), bytes: at });
        }
    }
}

fn not_tls(bytes: usize) -> Peek<Inspected, Refusal> {
    Peek::Done(Inspected { hello: None, bytes })
}

struct Record<'a> {
    kind: u8,
    body: &'a [u8],
}

enum Stop {
    NeedMore(usize),
    NotTls(usize),
}

fn record(buf: &[u8], at: usize) -> Result<Record<'_>, Stop> {
    let mut reader = Reader(buf.get(at..).unwrap_or_default());
    let header = reader.array::<HEADER>().ok_or(Stop::NeedMore(at + HEADER))?;
    let [kind, major, _, high, low] = header;
    let len = usize::from(u16::from_be_bytes([high, low]));
    if major != 3 || len > MAX_RECORD {
        return Err(Stop::NotTls(at + HEADER));
    }
    let body = reader.take(len).ok_or(Stop::NeedMore(at + HEADER + len))?;
    Ok(Record { kind, body })
}

/// The hello of a complete handshake message, or that it is none; `None` while it is incomplete.
fn handshake(message: &[u8]) -> Option<Result<Hello, NoHello>> {
    let mut reader = Reader(message);
    let kind = reader.u8()?;
    let len = reader.u24()? as usize;
    if len > MAX_MESSAGE {
        return Some(Err(NoHello));
    }
    let body = reader.take(len)?;
    if kind != CLIENT_HELLO {
        return Some(Err(NoHello));
    }
    Some(client_hello(Reader(body)).ok_or(NoHello))
}

#[derive(Debug)]
struct NoHello;

fn client_hello(mut hello: Reader<'_>) -> Option<Hello> {
    let version = hello.u16()?;
    hello.take(32)?;
    let session_id = hello.vec8()?;
    let ciphers = hello.vec16()?;
    let compressions = hello.vec8()?;
    let sizes = session_id.len() <= 32 && ciphers.len() >= 2 && ciphers.len().is_multiple_of(2);
    // There must be "no compression" among them.
    if !sizes || !compressions.contains(&0) {
        return None;
    }
    let extensions = if hello.is_empty() { &[][..] } else { hello.vec16()? };
    hello.is_empty().then_some(())?;
    of_extensions(Reader(extensions), version)
}

fn of_extensions(mut extensions: Reader<'_>, version: u16) -> Option<Hello> {
    let mut hello = Hello::default();
    let mut seen = Vec::new();
    let mut supported = version >= 0x0301;
    while !extensions.is_empty() {
        let (kind, body) = (extensions.u16()?, extensions.vec16()?);
        if seen.contains(&kind) {
            return None;
        }
        seen.push(kind);
        match kind {
            SERVER_NAME => hello.server_name = Some(server_name(Reader(body))?),
            ALPN => hello.alpn = alpn(Reader(body)).unwrap_or_default(),
            SUPPORTED_VERSIONS => supported = has_version(Reader(body))?,
            _ => {}
        }
    }
    supported.then_some(hello)
}

/// Exactly one name, of the type "host".
fn server_name(mut extension: Reader<'_>) -> Option<Arc<str>> {
    let mut list = Reader(extension.vec16()?);
    let (kind, name) = (list.u8()?, list.vec16()?);
    let whole = list.is_empty() && extension.is_empty();
    if !whole || kind != 0 || name.is_empty() || name.len() > 255 || name.contains(&0) {
        return None;
    }
    // Names that are no text match nothing, but they are names.
    Some(String::from_utf8_lossy(name).to_ascii_lowercase().into())
}

/// `None` where the list is broken: the one who speaks TLS will say so.
fn alpn(mut extension: Reader<'_>) -> Option<Vec<Arc<str>>> {
    let mut list = Reader(extension.vec16()?);
    if !extension.is_empty() {
        return None;
    }
    let mut protocols = Vec::new();
    while !list.is_empty() {
        let protocol = list.vec8()?;
        if protocol.is_empty() {
            return None;
        }
        protocols.push(String::from_utf8_lossy(protocol).into());
    }
    Some(protocols)
}

/// Whether one of TLS 1.0 to 1.3 is offered; `None` where the list is broken.
fn has_version(mut extension: Reader<'_>) -> Option<bool> {
    let mut list = Reader(extension.vec8()?);
    let mut found = false;
    while !list.is_empty() {
        found |= (0x0301..=0x0304).contains(&list.u16()?);
    }
    extension.is_empty().then_some(found)
}

#[cfg(test)]
mod tests;

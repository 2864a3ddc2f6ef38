//! `envoy.filters.listener.http_inspector`: whether a connection begins with an HTTP request line, and of which
//! version.
//!
//! Envoy's rules: any token is a method, any run of blanks and control characters separates, a missing version is
//! HTTP/1.0, and so is every version but 1.1.

use super::Peek;

/// The most that is looked at.
pub const MAX_INSPECT_SIZE: usize = 64 * 1024;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http10,
    Http11,
    /// The preface of HTTP/2, in plain text.
    H2c,
}

impl Protocol {
    /// The name by which `application_protocols` of a filter chain match it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http10 => "http/1.0",
            Self::Http11 => "http/1.1",
            Self::H2c => "h2c",
        }
    }
}

/// There is no end of a line in [`MAX_INSPECT_SIZE`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// `None`: this is not HTTP.
pub fn inspect(buf: &[u8]) -> Peek<Option<Protocol>, TooLong> {
    let buf = buf.get(..MAX_INSPECT_SIZE).unwrap_or(buf);
    if buf.starts_with(PREFACE) {
        return Peek::Done(Some(Protocol::H2c));
    }
    if PREFACE.starts_with(buf) {
        return Peek::NeedMore(buf.len() + 1);
    }
    // No method begins with a control character; the rest of the line is judged when it is there.
    if buf.first().is_some_and(|first| *first <= b' ') {
        return Peek::Done(None);
    }
    match buf.iter().position(|byte| *byte == b'\n') {
        Some(end) => Peek::Done(request_line(buf.get(..end).unwrap_or_default())),
        None if buf.len() >= MAX_INSPECT_SIZE => Peek::Refuse(TooLong),
        None => Peek::NeedMore(buf.len() + 1),
    }
}

fn request_line(line: &[u8]) -> Option<Protocol> {
    let (method, rest) = word(line);
    let (url, rest) = word(rest);
    let version = trim(rest);
    if !is_token(method) || !is_url(url, method == b"CONNECT") {
        return None;
    }
    match version {
        b"HTTP/1.1" => Some(Protocol::Http11),
        [] => Some(Protocol::Http10),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Some(Protocol::Http10)
        }
        _ => None,
    }
}

fn blank(byte: &u8) -> bool {
    *byte <= b' '
}

/// Up to the next blank, and what follows the blanks.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(blank).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let skip = rest.iter().position(|byte| !blank(byte)).unwrap_or(rest.len());
    (word, rest.get(skip..).unwrap_or_default())
}

fn trim(text: &[u8]) -> &[u8] {
    let end = text.iter().rposition(|byte| !blank(byte)).map_or(0, |last| last + 1);
    text.get(..end).unwrap_or_default()
}

fn is_token(method: &[u8]) -> bool {
    let tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !method.is_empty() && method.iter().all(tchar)
}

fn is_url(url: &[u8], is_connect: bool) -> bool {
    if matches!(url.first(), Some(b'/' | b'*')) {
        return is_path(url);
    }
    let authority = if is_connect { Some(url) } else { after_scheme(url) };
    let Some(authority) = authority.filter(|_| !url.is_empty()) else {
        return false;
    };
    let end = authority.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(authority.len());
    let (host, path) = authority.split_at(end);
    let of_host = |byte: &u8| byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=@[]_~".contains(byte);
    host.iter().all(of_host) && !host.windows(2).any(|pair| pair == b"@@") && is_path(path)
}

fn after_scheme(url: &[u8]) -> Option<&[u8]> {
    let of_scheme = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    url.first().filter(|first| first.is_ascii_alphabetic())?;
    let end = url.iter().position(|byte| !of_scheme(byte))?;
    url.get(end..)?.strip_prefix(b"://")
}

fn is_path(path: &[u8]) -> bool {
    path.iter().all(|byte| matches!(byte, b'!'..=b'~'))
}

#[cfg(test)]
mod tests;

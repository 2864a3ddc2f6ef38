//! Paths: without what two readers may read in two ways.
//!
//! Normalization is that of Envoy's URL library: dots are resolved, backslashes become slashes, characters that need not
//! be escaped are not, and those that have to be are.

use proxy_config::model::http::hcm::{EscapedSlashes, PathNormalization};

/// It cannot be normalized, or may not be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused;

/// Whether slashes have been unescaped.
pub(super) fn normalize(path: &mut String, settings: PathNormalization) -> Result<bool, Refused> {
    if path.contains('#') {
        // As Envoy: a fragment is no part of a request's target.
        return Err(Refused);
    }
    let mut unescaped = false;
    if settings.escaped_slashes != EscapedSlashes::KeepUnchanged {
        unescaped = unescape_slashes(path);
        if unescaped && settings.escaped_slashes == EscapedSlashes::RejectRequest {
            return Err(Refused);
        }
    }
    if settings.normalize {
        let (own, query) = split(path);
        if !is_clean(own) {
            *path = canonical(own)? + query;
        }
    }
    if settings.merge_slashes {
        merge_slashes(path);
    }
    Ok(unescaped)
}

/// The path itself, and its query with the question mark.
fn split(path: &str) -> (&str, &str) {
    path.split_at(path.find('?').unwrap_or(path.len()))
}

fn unescape_slashes(path: &mut String) -> bool {
    let (own, query) = split(path);
    if !own.contains('%') {
        return false;
    }
    let decoded = own.replace("%2F", "/").replace("%2f", "/").replace("%5C", "\\").replace("%5c", "\\");
    let found = decoded.len() != own.len();
    if found {
        *path = decoded + query;
    }
    found
}

fn merge_slashes(path: &mut String) {
    let (own, query) = split(path);
    if !own.contains("//") {
        return;
    }
    let mut merged = String::with_capacity(path.len());
    for c in own.chars() {
        if c != '/' || !merged.ends_with('/') {
            merged.push(c);
        }
    }
    *path = merged + query;
}

/// What a character is to a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// As it is; escaped, it stays escaped.
    Pass,
    /// As it is, also where it was escaped.
    Plain,
    /// It has to be escaped.
    Escape,
    /// Nothing may have it.
    Invalid,
}

fn class(byte: u8) -> Class {
    match byte {
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => Class::Plain,
        b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'/' | b':' | b';' | b'=' | b'@'
        | b'[' | b']' | b'\\' | b'%' => Class::Pass,
        0 => Class::Invalid,
        _ => Class::Escape,
    }
}

/// Nothing is to be done with it, as with most of them.
fn is_clean(path: &str) -> bool {
    let mut before = 0;
    path.bytes().all(|byte| {
        let fine = match byte {
            b'.' => before != b'/',
            b'%' | b'\\' => false,
            _ => matches!(class(byte), Class::Plain | Class::Pass),
        };
        before = byte;
        fine
    })
}

fn canonical(path: &str) -> Result<String, Refused> {
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    if bytes.first().is_none_or(|first| !matches!(first, b'/' | b'\\')) {
        out.push(b'/');
    }
    while let Some(&byte) = bytes.get(at) {
        if let Some(len) = dot(bytes, at) {
            at += dots(bytes, at, len, &mut out);
        } else if byte == b'%' {
            at += escaped(bytes, at, &mut out)?;
        } else {
            match (byte, class(byte)) {
                (b'\\', _) => out.push(b'/'),
                (_, Class::Plain | Class::Pass) => out.push(byte),
                (_, Class::Escape) => escape(byte, &mut out),
                (_, Class::Invalid) => return Err(Refused),
            }
            at += 1;
        }
    }
    // Only bytes below 128, as all others were escaped, or were escaped before.
    String::from_utf8(out).map_err(|_| Refused)
}

/// The length of a dot that stands there, perhaps escaped.
fn dot(bytes: &[u8], at: usize) -> Option<usize> {
    match bytes.get(at..)? {
        [b'.', ..] => Some(1),
        [b'%', b'2', b'E' | b'e', ..] => Some(3),
        _ => None,
    }
}

/// A dot and what belongs to it; how long that is.
fn dots(bytes: &[u8], at: usize, len: usize, out: &mut Vec<u8>) -> usize {
    let slash = |at: usize| matches!(bytes.get(at), Some(b'/' | b'\\'));
    let ends = |at: usize| at >= bytes.len();
    if out.last() == Some(&b'/') {
        let after = at + len;
        if slash(after) {
            return len + 1;
        }
        if ends(after) {
            return len;
        }
        if let Some(second) = dot(bytes, after) {
            let after = after + second;
            if slash(after) || ends(after) {
                back(out);
                return len + second + usize::from(slash(after));
            }
        }
    }
    out.push(b'.');
    len
}

/// To behind the slash before the last one.
fn back(out: &mut Vec<u8>) {
    if out.len() > 1 {
        out.pop();
        let slash = out.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        out.truncate(slash + 1);
    }
}

fn escaped(bytes: &[u8], at: usize, out: &mut Vec<u8>) -> Result<usize, Refused> {
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let (Some(high), Some(low)) = (digit(at + 1), digit(at + 2)) else {
        out.push(b'%');
        return Ok(1);
    };
    let value = u8::try_from(high * 16 + low).unwrap_or_default();
    match class(value) {
        Class::Plain => out.push(value),
        Class::Pass | Class::Escape => out.extend_from_slice(bytes.get(at..at + 3).unwrap_or_default()),
        Class::Invalid => return Err(Refused),
    }
    Ok(3)
}

fn escape(byte: u8, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0');
    out.extend_from_slice(&[b'%', digit(byte >> 4), digit(byte & 15)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(path: &str, settings: PathNormalization) -> Result<String, Refused> {
        let mut path = path.to_owned();
        normalize(&mut path, settings).map(|_| path)
    }

    #[test]
    fn dots_backslashes_and_escapes() {
        let settings = PathNormalization { normalize: true, ..PathNormalization::default() };
        for (path, expected) in [
            ("/", "/"),
            ("/a/../b", "/b"),
            ("/../../admin", "/admin"),
            ("/a/./b/.", "/a/b/"),
            ("/a/..", "/"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("/a/.../b", "/a/.../b"),
            ("/a/.b", "/a/.b"),
            ("/a.", "/a."),
            ("/a\\..\\b", "/b"),
            ("/a//b/../c", "/a//c"),
            ("/%41%7e", "/A~"),
            ("/%2fa%2F", "/%2fa%2F"),
            ("/%zz%", "/%zz%"),
            ("/a b", "/a%20b"),
            ("/é", "/%C3%A9"),
            ("/a/../b?c=/../d", "/b?c=/../d"),
        ] {
            assert_eq!(with(path, settings).as_deref(), Ok(expected), "{path}");
        }
        assert_eq!(with("/%00", settings), Err(Refused));
        assert_eq!(with("/a#b", PathNormalization::default()), Err(Refused));
    }

    #[test]
    fn slashes() {
        let merge = PathNormalization { merge_slashes: true, ..PathNormalization::default() };
        for (path, expected) in
            [("//a///b/", "/a/b/"), ("/a//?b=//", "/a/?b=//"), ("//", "/"), ("/a/b", "/a/b")]
        {
            assert_eq!(with(path, merge).as_deref(), Ok(expected), "{path}");
        }
        let escaped = |escaped_slashes| PathNormalization { escaped_slashes, ..PathNormalization::default() };
        let mut path = "/a%2Fb%5c?%2f".to_owned();
        assert_eq!(normalize(&mut path, escaped(EscapedSlashes::UnescapeAndForward)), Ok(true));
        assert_eq!(path, "/a/b\\?%2f");
        assert_eq!(with("/a%2Fb", escaped(EscapedSlashes::RejectRequest)), Err(Refused));
        assert_eq!(with("/a?%2Fb", escaped(EscapedSlashes::RejectRequest)).as_deref(), Ok("/a?%2Fb"));
    }
}

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
    if merged == "/" {
        // As Envoy, to which the first slash and the last one are two.
        merged.push('/');
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
    let stripped = path.contains(".;").then(|| without_parameters(path));
    let bytes = stripped.as_deref().unwrap_or(path).as_bytes();
    let mut output = Output { bytes: Vec::with_capacity(bytes.len()), percent: None };
    let mut at = 0;
    if bytes.first().is_none_or(|first| !matches!(first, b'/' | b'\\')) {
        output.bytes.push(b'/');
    }
    while let Some(&byte) = bytes.get(at) {
        if let Some(len) = dot(bytes, at) {
            at += output.dots(bytes, at, len);
        } else if byte == b'%' {
            at += output.escaped(bytes, at)?;
        } else {
            match (byte, class(byte)) {
                (b'\\', _) => output.bytes.push(b'/'),
                (_, Class::Plain | Class::Pass) => output.bytes.push(byte),
                (_, Class::Escape) => escape(byte, &mut output.bytes),
                (_, Class::Invalid) => return Err(Refused),
            }
            at += 1;
        }
    }
    // Only bytes below 128: all others were escaped.
    String::from_utf8(output.bytes).map_err(|_| Refused)
}

/// Segments of dots lose what follows a semicolon, which some readers do not take for a part of them.
fn without_parameters(path: &str) -> String {
    let segment = |segment: &'_ str| match segment.split_once(';') {
        Some((".", _)) => ".".to_owned(),
        Some(("..", _)) => "..".to_owned(),
        Some(_) | None => segment.to_owned(),
    };
    path.split('/').map(segment).collect::<Vec<_>>().join("/")
}

/// The length of a dot that stands there, perhaps escaped.
fn dot(bytes: &[u8], at: usize) -> Option<usize> {
    match bytes.get(at..)? {
        [b'.', ..] => Some(1),
        [b'%', b'2', b'E' | b'e', ..] => Some(3),
        _ => None,
    }
}

fn escaped_byte(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    u8::try_from(digit(at + 1)? * 16 + digit(at + 2)?).ok()
}

struct Output {
    bytes: Vec<u8>,
    /// Where the last percent sign is that escapes nothing.
    percent: Option<usize>,
}

impl Output {
    /// A dot and what belongs to it; how long that is.
    fn dots(&mut self, bytes: &[u8], at: usize, len: usize) -> usize {
        let slash = |at: usize| matches!(bytes.get(at), Some(b'/' | b'\\'));
        let ends = |at: usize| at >= bytes.len();
        let after = at + len;
        if self.bytes.last() != Some(&b'/') {
            self.bytes.push(b'.');
            return len;
        }
        if slash(after) || ends(after) {
            return len + usize::from(slash(after));
        }
        if let Some(second) = dot(bytes, after)
            && (slash(after + second) || ends(after + second))
        {
            self.back();
            return len + second + usize::from(slash(after + second));
        }
        self.bytes.push(b'.');
        len
    }

    /// To behind the slash before the last one.
    fn back(&mut self) {
        if self.bytes.len() > 1 {
            self.bytes.pop();
            let slash = self.bytes.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            self.bytes.truncate(slash + 1);
            self.percent = self.percent.filter(|percent| *percent < self.bytes.len());
        }
    }

    fn escaped(&mut self, bytes: &[u8], at: usize) -> Result<usize, Refused> {
        let Some(value) = escaped_byte(bytes, at) else {
            self.percent = Some(self.bytes.len());
            self.bytes.push(b'%');
            return Ok(1);
        };
        match class(value) {
            Class::Plain => {
                self.bytes.push(value);
                self.nested(value, bytes.get(at + 3).copied());
            }
            Class::Pass | Class::Escape => {
                self.bytes.extend_from_slice(bytes.get(at..at + 3).unwrap_or_default());
            }
            Class::Invalid => return Err(Refused),
        }
        Ok(3)
    }

    /// What was unescaped may not make an escape of a percent sign before it: `%%41` and `%4%31` stay what they are.
    fn nested(&mut self, value: u8, next: Option<u8>) {
        let Some(percent) = self.percent else { return };
        let (first, second) = match (self.bytes.len().checked_sub(percent), next) {
            (Some(2), Some(next)) => (value, next),
            (Some(3), _) => (self.bytes.get(percent + 1).copied().unwrap_or_default(), value),
            (Some(_) | None, _) => return,
        };
        if escaped_byte(&[b'%', first, second], 0).is_some() {
            self.bytes.insert(percent + 1, b'2');
            self.bytes.insert(percent + 2, b'5');
        }
    }
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
            ("/%%4141", "/%25A41"),
            ("/%4%41", "/%254A"),
            ("/a/..;x/b", "/b"),
            ("/a/.;/b", "/a/b"),
            ("/a/%2e%2e;x/b", "/a/..;x/b"),
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
        for (path, expected) in [
            ("//a///b/", "/a/b/"),
            ("/a//?b=//", "/a/?b=//"),
            ("//", "//"),
            ("///?a", "//?a"),
            ("/", "/"),
            ("/a/b", "/a/b"),
        ] {
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

//! `referer`: one that is no URL, or says too much, goes no further.

use http::HeaderMap;
use http::header::REFERER;

pub(super) fn sanitize(headers: &mut HeaderMap) {
    let mut values = headers.get_all(REFERER).iter();
    let Some(first) = values.next() else { return };
    if values.next().is_some() || !is_valid(first.as_bytes()) {
        headers.remove(REFERER);
    }
}

/// A URL without a fragment and without a user, or a relative one.
fn is_valid(value: &[u8]) -> bool {
    let absolute = value.strip_prefix(b"http://").or_else(|| value.strip_prefix(b"https://"));
    if let Some(rest) = absolute {
        let host = rest.split(|byte| matches!(byte, b'/' | b'?')).next().unwrap_or_default();
        if !host.is_empty() && host.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'@') {
            return !rest.contains(&b'#') && rest.iter().all(u8::is_ascii_graphic);
        }
    }
    let mut slash = false;
    value.iter().all(|byte| {
        slash |= *byte == b'/';
        match byte {
            // In the first part it would be the end of a scheme.
            b':' => slash,
            b'%' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b'-'
            | b'.' | b'_' | b'~' | b'@' | b'/' | b'?' => true,
            other => other.is_ascii_alphanumeric(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (value, valid) in [
            ("http://a.example/b?c=d", true),
            ("https://a:8080", true),
            ("http://a/b#c", false),
            ("http://user@a/", false),
            ("/a/b?c", true),
            ("a/b:c", true),
            ("about:blank", false),
            ("/a b", false),
            ("/a#b", false),
        ] {
            assert_eq!(is_valid(value.as_bytes()), valid, "{value}");
        }
    }
}

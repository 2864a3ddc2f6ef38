//! What an answer does to a request and its response.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ::http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use proxy_config::authz::{Allowed, Header};
use proxy_config::model::http::ext_authz::ExtAuthz;
use proxy_config::model::http::header::AppendAction;

use crate::http::filters::edits::put;
use crate::http::filters::mutation_rules::{Change, Judgement, is_removable, judge};
use crate::http::{RequestHead, Scheme, Stream, message};

/// The answer is none that can be heeded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rejected {
    Invalid,
    /// The request would have more or longer headers than any may have.
    TooLarge,
}

/// What is left for the response.
pub(super) fn request(
    model: &ExtAuthz,
    allowed: Allowed,
    stream: &mut Stream,
) -> Result<Vec<Header>, Rejected> {
    let Allowed { headers, remove, response_headers, query_to_set, query_to_remove } = allowed;
    if model.validate_mutations && !response_headers.iter().all(is_valid) {
        return Err(Rejected::Invalid);
    }
    let query = !query_to_set.is_empty() || !query_to_remove.is_empty();
    let changed = !headers.is_empty() || !remove.is_empty() || query;
    let head = stream.request_mut();
    for header in &headers {
        if may_set(model, header)? {
            set(head, header);
        }
    }
    for name in &remove {
        if may_remove(model, name)? {
            head.headers.remove(&*name.to_ascii_lowercase());
        }
    }
    if model.validate_mutations
        && !query_to_set.iter().all(|(key, value)| is_encoded(key) && is_encoded(value))
    {
        return Err(Rejected::Invalid);
    }
    if query {
        head.path = with_query(&head.path, &query_to_set, &query_to_remove);
    }
    if is_too_large(stream) {
        return Err(Rejected::TooLarge);
    }
    if changed && model.clear_route_cache {
        stream.clear_route();
    }
    Ok(response_headers)
}

fn may_set(model: &ExtAuthz, header: &Header) -> Result<bool, Rejected> {
    if model.validate_mutations && !is_valid(header) {
        return Err(Rejected::Invalid);
    }
    let Some(rules) = &model.mutation_rules else { return Ok(true) };
    let change = if header.joined { Change::Append } else { Change::Set };
    verdict(judge(rules, change, &header.name.to_ascii_lowercase(), &header.value))
}

fn may_remove(model: &ExtAuthz, name: &str) -> Result<bool, Rejected> {
    if model.validate_mutations && !is_name(name) {
        return Ok(false);
    }
    match &model.mutation_rules {
        Some(rules) => verdict(judge(rules, Change::Remove, &name.to_ascii_lowercase(), b"")),
        None => Ok(is_removable(name)),
    }
}

fn verdict(judgement: Judgement) -> Result<bool, Rejected> {
    match judgement {
        Judgement::Allowed => Ok(true),
        Judgement::Ignored => Ok(false),
        Judgement::Failed => Err(Rejected::Invalid),
    }
}

/// A name and a value that a message can have.
pub(super) fn is_valid(header: &Header) -> bool {
    is_name(&header.name) && HeaderValue::from_bytes(&header.value).is_ok()
}

fn is_name(name: &str) -> bool {
    let name = name.strip_prefix(':').unwrap_or(name);
    HeaderName::from_bytes(name.as_bytes()).is_ok()
}

fn set(head: &mut RequestHead, header: &Header) {
    let name = header.name.to_ascii_lowercase();
    let overwrites =
        matches!(header.append, AppendAction::OverwriteIfExists | AppendAction::OverwriteIfExistsOrAdd);
    let text = std::str::from_utf8(&header.value).ok().filter(|text| !text.is_empty());
    match (&*name, text) {
        (":path", Some(text)) if header.joined && is_target(text) => {
            head.path = format!("{},{text}", head.path)
        }
        (":authority" | "host", Some(text)) if header.joined && is_target(text) => {
            head.authority = format!("{},{text}", head.authority);
        }
        (":path", Some(text)) if overwrites && is_target(text) => head.path = text.to_owned(),
        (":authority" | "host", Some(text)) if overwrites && is_target(text) => {
            head.authority = text.to_owned()
        }
        (":method", Some(text)) if overwrites => {
            if let Ok(method) = text.parse::<Method>() {
                head.method = method;
            }
        }
        (":scheme", Some("http")) if overwrites => head.scheme = Scheme::Http,
        (":scheme", Some("https")) if overwrites => head.scheme = Scheme::Https,
        // What is no header of its own is there already, and takes nothing more.
        (name, _) if name.starts_with(':') || name == "host" => {}
        _ => plain(&mut head.headers, header),
    }
}

/// Nothing in it could end the line that it is part of.
fn is_target(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The length and framing of a message are its own.
fn plain(headers: &mut HeaderMap, header: &Header) {
    let name = HeaderName::from_bytes(header.name.as_bytes());
    let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(&header.value)) else { return };
    if name == CONTENT_LENGTH || name == TRANSFER_ENCODING {
        return;
    }
    if !header.joined {
        put(headers, &name, value, header.append);
        return;
    }
    let Some(before) = message::joined(headers, name.as_str()) else { return };
    let all = [&before, &b","[..], value.as_bytes()].concat();
    if let Ok(all) = HeaderValue::from_bytes(&all) {
        headers.insert(name, all);
    }
}

/// Those of a response of the proxy's own.
pub(super) fn local(from: &[Header], into: &mut HeaderMap) {
    from.iter().filter(|header| is_removable(&header.name)).for_each(|header| plain(into, header));
}

/// Those of a request that was let through.
pub(super) fn response(from: &[Header], stream: &mut Stream) {
    let Some(head) = stream.response_mut() else { return };
    for header in from {
        if header.name == ":status" {
            if let Ok(status) = StatusCode::from_bytes(&header.value) {
                head.status = status;
            }
        } else if is_removable(&header.name) {
            plain(&mut head.headers, header);
        }
    }
}

/// As for a request that comes from a client.
fn is_too_large(stream: &Stream) -> bool {
    let (hcm, head) = (&stream.conn.hcm.model, stream.request());
    let pseudo = [(":authority", &head.authority), (":path", &head.path)];
    let pseudo: usize = pseudo.iter().map(|(name, value)| name.len() + value.len()).sum();
    let headers: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    head.headers.len() + 4 > hcm.common.max_headers_count as usize
        || pseudo + headers > hcm.max_request_headers_kb as usize * 1024
}

/// Sorted, as Envoy writes a query that it has changed; nothing is encoded but what no path may have.
fn with_query(path: &str, set: &[(String, String)], remove: &[String]) -> String {
    let (path, fragment) = match path.split_once('#') {
        Some((path, fragment)) => (path, Some(fragment)),
        None => (path, None),
    };
    let (alone, query) = path.split_once('?').unwrap_or((path, ""));
    let mut parameters: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        parameters.entry(key).or_default().push(value);
    }
    for (key, value) in set {
        parameters.insert(key, vec![value]);
    }
    for key in remove {
        parameters.remove(&**key);
    }
    let mut out = alone.to_owned();
    let mut before = '?';
    for (key, values) in parameters {
        for value in values {
            out.push(before);
            out.push_str(&visible(key));
            out.push('=');
            out.push_str(&visible(value));
            before = '&';
        }
    }
    if let Some(fragment) = fragment {
        out.push('#');
        out.push_str(fragment);
    }
    out
}

fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Nothing in it but what stands for itself in a query, and bytes that are written in hexadecimal.
fn is_encoded(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let good = match byte {
            b'%' => bytes.by_ref().take(2).filter(u8::is_ascii_hexdigit).count() == 2,
            byte => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~'),
        };
        if !good {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        for (path, set, remove, expected) in [
            ("/a", &[pair("k", "v")][..], &[][..], "/a?k=v"),
            ("/a?z=1&k=2&k=3", &[pair("k", "v")], &[], "/a?k=v&z=1"),
            ("/a?z=1&k=2", &[], &["z"], "/a?k=2"),
            ("/a?k=2", &[], &["k"], "/a"),
            ("/a?k=2#f", &[pair("b", "x y\r\n")], &[], "/a?b=x%20y%0D%0A&k=2#f"),
        ] {
            let remove: Vec<String> = remove.iter().map(|key| (*key).to_owned()).collect();
            assert_eq!(with_query(path, set, &remove), expected);
        }
    }

    #[test]
    fn encoded_parameters() {
        for good in ["", "a-b_c.d~1", "%20%fF"] {
            assert!(is_encoded(good), "{good}");
        }
        for bad in ["a b", "%2", "%zz", "a&b", "é", "a=b"] {
            assert!(!is_encoded(bad), "{bad}");
        }
    }

    #[test]
    fn headers_of_requests() {
        let mut head = RequestHead::new(Method::GET, "a", "/");
        head.headers.insert("x-there", HeaderValue::from_static("1"));
        let put = |head: &mut RequestHead, name: &str, value: &str, append, joined| {
            set(head, &Header { joined, ..Header::new(name, value, append) });
        };
        let (append, overwrite) = (AppendAction::AppendIfExistsOrAdd, AppendAction::OverwriteIfExistsOrAdd);
        put(&mut head, "X-There", "2", append, true);
        put(&mut head, "x-new", "1", append, false);
        put(&mut head, "x-new", "2", append, false);
        put(&mut head, "bad name", "2", overwrite, false);
        put(&mut head, "x-bad", "a\r\nb: c", overwrite, false);
        put(&mut head, "content-length", "7", overwrite, false);
        put(&mut head, ":path", "/b c", overwrite, false);
        put(&mut head, ":path", "/b", overwrite, false);
        put(&mut head, ":path", "/c", append, false);
        put(&mut head, ":path", "/c", append, true);
        put(&mut head, "x-never", "/c", append, true);
        put(&mut head, "Host", "b", overwrite, false);
        put(&mut head, ":method", "PUT", overwrite, false);
        assert_eq!((&*head.path, &*head.authority, &head.method), ("/b,/c", "b", &Method::PUT));
        assert_eq!(head.header("x-there").as_deref(), Some(&b"1,2"[..]));
        assert_eq!(head.headers.get_all("x-new").iter().count(), 2);
        assert_eq!(head.headers.len(), 3);
    }
}

//! Changes of a path's query.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;

use proxy_config::model::http::filters::QueryMutation;
use proxy_config::model::http::header::AppendAction;

use crate::http::BuildError;
use crate::http::filters::edits::Text;
use crate::telemetry::Entry;

#[derive(Debug)]
pub(super) struct Query(Vec<Change>);

#[derive(Debug)]
enum Change {
    Remove(Box<str>),
    Add { key: Box<str>, value: Text, append: AppendAction },
}

/// By key; each key's values in their order. What came is kept as it was written.
type Parameters<'a> = BTreeMap<String, Vec<(Cow<'a, str>, Cow<'a, str>)>>;

impl Query {
    pub(super) fn new(models: &[QueryMutation]) -> Result<Self, BuildError> {
        let change = |model: &QueryMutation| {
            Ok(match model {
                QueryMutation::Remove(key) => Change::Remove((**key).into()),
                QueryMutation::Add { key, value, append } => {
                    Change::Add { key: (**key).into(), value: Text::new(value)?, append: *append }
                }
            })
        };
        models.iter().map(change).collect::<Result<_, _>>().map(Self)
    }

    /// The parameters are then sorted, as Envoy has them.
    pub(super) fn apply(&self, entry: &mut Entry) {
        if self.0.is_empty() {
            return;
        }
        let Some(head) = entry.http.as_deref().map(|http| &http.request) else { return };
        let (alone, fragment) = (head.path_alone(), head.path.split_once('#').map(|(_, fragment)| fragment));
        let mut parameters = parse(head.query().unwrap_or_default());
        self.0.iter().for_each(|change| change.apply(&mut parameters, entry));
        let path = written(alone, &parameters, fragment);
        if let Some(http) = entry.http.as_deref_mut() {
            http.request.path = path;
        }
    }
}

impl Change {
    fn apply(&self, parameters: &mut Parameters<'_>, entry: &Entry) {
        let (key, value, append) = match self {
            Self::Remove(key) => {
                parameters.remove(&**key);
                return;
            }
            Self::Add { key, value, append } => (key, value, append),
        };
        let there = parameters.contains_key(&**key);
        let pair = || (Cow::Owned(encoded(key.as_bytes())), Cow::Owned(encoded(&value.render(entry))));
        match (append, there) {
            (AppendAction::AppendIfExistsOrAdd, _) | (AppendAction::AddIfAbsent, false) => {
                parameters.entry(key.to_string()).or_default().push(pair());
            }
            (AppendAction::OverwriteIfExistsOrAdd, _) | (AppendAction::OverwriteIfExists, true) => {
                parameters.insert(key.to_string(), vec![pair()]);
            }
            (AppendAction::AddIfAbsent, true) | (AppendAction::OverwriteIfExists, false) => {}
        }
    }
}

fn parse(query: &str) -> Parameters<'_> {
    let mut parameters = Parameters::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let values = parameters.entry(decoded(key)).or_default();
        values.push((Cow::Borrowed(key), Cow::Borrowed(value)));
    }
    parameters
}

fn written(path: &str, parameters: &Parameters<'_>, fragment: Option<&str>) -> String {
    let mut out = path.to_owned();
    let mut before = '?';
    for (key, value) in parameters.values().flatten() {
        // Writing to a String cannot fail.
        let _ = write!(out, "{before}{key}={value}");
        before = '&';
    }
    if let Some(fragment) = fragment {
        out.push('#');
        out.push_str(fragment);
    }
    out
}

fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits =
            after.get(..2).filter(|digits| first == b'%' && digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        out.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// All but what RFC 3986 calls unreserved.
fn encoded(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

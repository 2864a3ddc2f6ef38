//! Hash policies: what a request is kept with an endpoint by.

use std::net::SocketAddr;

use http::HeaderValue;
use proxy_config::model::http::action::{HashCookie, HashPolicy, HashSource};
use proxy_config::model::matcher::RegexSubstitution;
use xxhash_rust::xxh64::xxh64;

use super::header_test::Name;
use super::request::{Parameters, cookie};
use crate::http::BuildError;
use crate::telemetry::{Entry, HttpEntry};

/// A compiled list of `HashPolicy`.
pub struct Hashing(Box<[(Source, bool)]>);

enum Source {
    Header(Name, Option<RegexSubstitution>),
    Cookie(HashCookie),
    Peer,
    Query(Box<str>),
    FilterState(Box<str>),
}

impl Hashing {
    pub fn new(models: &[HashPolicy]) -> Result<Self, BuildError> {
        let one = |model: &HashPolicy| Ok((Source::new(&model.source)?, model.terminal));
        models.iter().map(one).collect::<Result<_, BuildError>>().map(Self)
    }

    /// A cookie that is generated on the way is put to `cookies`; without them there is none.
    pub fn hash(&self, entry: &Entry, mut cookies: Option<&mut Vec<HeaderValue>>) -> Option<u64> {
        let http = entry.http.as_deref()?;
        let mut hash: Option<u64> = None;
        for (source, terminal) in &self.0 {
            if let Some(new) = source.hash(entry, http, cookies.as_deref_mut()) {
                // Turned, so that two that are the same do not cancel each other.
                hash = Some(hash.map_or(0, |old| old.rotate_left(1)) ^ new);
            }
            if *terminal && hash.is_some() {
                break;
            }
        }
        hash
    }
}

impl Source {
    fn new(model: &HashSource) -> Result<Self, BuildError> {
        Ok(match model {
            HashSource::Header { name, rewrite } => Self::Header(Name::new(name)?, rewrite.clone()),
            HashSource::Cookie(cookie) => Self::Cookie(cookie.clone()),
            HashSource::SourceIp => Self::Peer,
            HashSource::QueryParameter(name) => Self::Query((&**name).into()),
            HashSource::FilterState(key) => Self::FilterState((&**key).into()),
        })
    }

    fn hash(&self, entry: &Entry, http: &HttpEntry, cookies: Option<&mut Vec<HeaderValue>>) -> Option<u64> {
        let head = &http.request;
        let text = |text: &str| xxh64(text.as_bytes(), 0);
        match self {
            Self::Header(Name::Pseudo(name), rewrite) => {
                Some(values(&mut [&head.header(name)?], rewrite.as_ref()))
            }
            Self::Header(Name::Header(name), rewrite) => {
                let mut all: Vec<_> = head.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
                (!all.is_empty()).then(|| values(&mut all, rewrite.as_ref()))
            }
            Self::Cookie(model) => match cookie(head, &model.name).filter(|value| !value.is_empty()) {
                Some(value) => Some(text(value)),
                None => generated(model, entry, cookies?),
            },
            Self::Peer => Some(text(&entry.facts.remote.ip().to_string())),
            Self::Query(name) => {
                let (_, value) = Parameters::of(head).find(|(known, _)| *known == &**name)?;
                Some(text(value))
            }
            Self::FilterState(key) => http.filter_state.get(&**key).map(|value| text(value)),
        }
    }
}

/// Whatever their order is.
fn values(all: &mut [&[u8]], rewrite: Option<&RegexSubstitution>) -> u64 {
    let chain = |seed, value: &[u8]| xxh64(value, seed);
    let Some(rewrite) = rewrite else {
        all.sort_unstable();
        return all.iter().fold(0, |seed, value| chain(seed, value));
    };
    let mut rewritten: Vec<_> =
        all.iter().map(|value| rewrite.replace_all(&String::from_utf8_lossy(value))).collect();
    rewritten.sort_unstable();
    rewritten.iter().fold(0, |seed, value| chain(seed, value.as_bytes()))
}

/// The same for all streams of a connection, so that those which race are given one.
fn generated(model: &HashCookie, entry: &Entry, cookies: &mut Vec<HeaderValue>) -> Option<u64> {
    let ttl = model.ttl?;
    let ends = |address: SocketAddr| address.to_string();
    let connection = ends(entry.facts.remote) + &ends(entry.facts.local);
    let value = format!("{:016x}", xxh64(connection.as_bytes(), 0));
    let mut text = format!("{}=\"{value}\"", model.name);
    if ttl.as_secs() > 0 {
        text.push_str(&format!("; Max-Age={}", ttl.as_secs()));
    }
    if !model.path.is_empty() {
        text.push_str(&format!("; Path={}", model.path));
    }
    for (name, value) in &model.attributes {
        text.push_str(&if value.is_empty() { format!("; {name}") } else { format!("; {name}={value}") });
    }
    text.push_str("; HttpOnly");
    cookies.push(HeaderValue::from_bytes(text.as_bytes()).ok()?);
    Some(xxh64(value.as_bytes(), 0))
}

//! What a route matches, compiled.

use proxy_config::model::FractionalPercent;
use proxy_config::model::http::route_match::{
    CookieMatcher, FilterStateMatch, FilterStateMatcher, QueryParameterMatch, QueryParameterMatcher,
    TlsContextMatch,
};
use proxy_config::model::http::{PathMatch, RouteMatch};
use proxy_config::model::matcher::MetadataMatcher;
use proxy_config::model::metadata::{Metadata, Value};

use super::header_test::HeaderTest;
use super::request::{Parameters, cookie};
use crate::http::{BuildError, RequestHead};
use crate::telemetry::{Entry, HttpEntry};

pub(super) struct Matcher {
    path: PathMatch,
    case_sensitive: bool,
    ignore_parameters: bool,
    headers: Box<[HeaderTest]>,
    /// Few routes have any of it.
    more: Option<Box<More>>,
}

struct More {
    fraction: Option<FractionalPercent>,
    grpc: bool,
    query: Vec<QueryParameterMatcher>,
    cookies: Vec<CookieMatcher>,
    tls: Option<TlsContextMatch>,
    metadata: Vec<MetadataMatcher>,
    filter_state: Vec<FilterStateMatcher>,
}

impl Matcher {
    pub(super) fn new(model: &RouteMatch, ignore_parameters: bool) -> Result<Self, BuildError> {
        let RouteMatch {
            path,
            case_sensitive,
            runtime_fraction,
            headers,
            query_parameters,
            cookies,
            grpc,
            tls_context,
            dynamic_metadata,
            filter_state,
        } = model;
        let more = More {
            fraction: *runtime_fraction,
            grpc: *grpc,
            query: query_parameters.clone(),
            cookies: cookies.clone(),
            tls: *tls_context,
            metadata: dynamic_metadata.clone(),
            filter_state: filter_state.clone(),
        };
        Ok(Self {
            path: path.clone(),
            case_sensitive: *case_sensitive,
            ignore_parameters,
            headers: HeaderTest::all(headers)?,
            more: more.is_any().then(|| Box::new(more)),
        })
    }

    /// `random` is the stream's own: a fraction that it is in, it stays in.
    pub(super) fn is_match(&self, entry: &Entry, http: &HttpEntry, random: u64) -> bool {
        let head = &http.request;
        self.is_path(head)
            && self.headers.iter().all(|test| test.is_match(head))
            && self.more.as_ref().is_none_or(|more| more.is_match(entry, http, random))
    }

    fn is_path(&self, head: &RequestHead) -> bool {
        if let PathMatch::Connect = self.path {
            return head.is_connect();
        }
        // A plain CONNECT has no path that could match.
        if head.path.is_empty() {
            return false;
        }
        let path = head.path_alone();
        let known = if self.ignore_parameters { path.split(';').next().unwrap_or_default() } else { path };
        match &self.path {
            PathMatch::Prefix(prefix) => self.begins(known, prefix),
            PathMatch::Path(whole) => known.len() == whole.len() && self.begins(known, whole),
            PathMatch::SafeRegex(regex) => regex.is_match(known),
            PathMatch::PathSeparatedPrefix(prefix) => {
                self.begins(known, prefix) && matches!(known.as_bytes().get(prefix.len()), None | Some(b'/'))
            }
            PathMatch::Connect => false,
            PathMatch::Template(template) => template.is_match(path),
        }
    }

    fn begins(&self, path: &str, prefix: &str) -> bool {
        if self.case_sensitive {
            return path.starts_with(prefix);
        }
        path.as_bytes().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
    }
}

impl More {
    fn is_any(&self) -> bool {
        self.fraction.is_some()
            || self.grpc
            || self.tls.is_some()
            || !self.query.is_empty()
            || !self.cookies.is_empty()
            || !self.metadata.is_empty()
            || !self.filter_state.is_empty()
    }

    fn is_match(&self, entry: &Entry, http: &HttpEntry, random: u64) -> bool {
        let head = &http.request;
        self.fraction.is_none_or(|fraction| is_in(fraction, random))
            && (!self.grpc || head.is_grpc())
            && self.query.iter().all(|matcher| query(matcher, head))
            && self.cookies.iter().all(|matcher| has_cookie(matcher, head))
            && self.tls.is_none_or(|tls| is_tls(tls, entry))
            && self.metadata.iter().all(|matcher| has_metadata(matcher, entry, http))
            && self.filter_state.iter().all(|matcher| has_state(matcher, http))
    }
}

pub(super) fn is_in(fraction: FractionalPercent, random: u64) -> bool {
    let denominator = u64::from(fraction.denominator).max(1);
    random % denominator < u64::from(fraction.numerator)
}

/// Of several parameters of one name the first counts.
pub(super) fn query(matcher: &QueryParameterMatcher, head: &RequestHead) -> bool {
    let value = Parameters::of(head).find(|(name, _)| *name == &*matcher.name).map(|(_, value)| value);
    match &matcher.matches {
        QueryParameterMatch::Present(present) => value.is_some() == *present,
        QueryParameterMatch::String(string) => value.is_some_and(|value| string.is_match(value)),
    }
}

fn has_cookie(matcher: &CookieMatcher, head: &RequestHead) -> bool {
    let value = cookie(head, &matcher.name);
    value.is_some_and(|value| matcher.matches.is_match(value)) != matcher.invert
}

fn is_tls(wanted: TlsContextMatch, entry: &Entry) -> bool {
    let tls = entry.facts.tls.as_deref();
    let presented = tls.is_some_and(|tls| tls.peer.is_some());
    let validated = tls.is_some_and(|tls| tls.peer.is_some() && tls.peer_validated);
    wanted.presented.is_none_or(|wanted| wanted == presented)
        && wanted.validated.is_none_or(|wanted| wanted == validated)
}

/// The stream's own metadata, else that of its connection.
fn has_metadata(matcher: &MetadataMatcher, entry: &Entry, http: &HttpEntry) -> bool {
    let connection = entry.facts.extra.as_deref().map(|extra| &extra.dynamic_metadata);
    let found = value(&http.dynamic_metadata, matcher);
    let found = found.or_else(|| connection.and_then(|metadata| value(metadata, matcher)));
    matcher.value.is_match(found) != matcher.invert
}

fn value<'a>(metadata: &'a Metadata, matcher: &MetadataMatcher) -> Option<&'a Value> {
    let (last, path) = matcher.path.split_last()?;
    let mut fields = metadata.of(&matcher.filter)?;
    for key in path {
        fields = match fields.get(key)? {
            Value::Struct(inner) => inner,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::List(_) => {
                return None;
            }
        };
    }
    fields.get(last)
}

fn has_state(matcher: &FilterStateMatcher, http: &HttpEntry) -> bool {
    let Some(value) = http.filter_state.get(&matcher.key) else { return false };
    match &matcher.matches {
        FilterStateMatch::String(string) => string.is_match(value),
        FilterStateMatch::Address { ranges, invert } => {
            value.parse().is_ok_and(|address| ranges.iter().any(|range| range.contains(address)) != *invert)
        }
    }
}

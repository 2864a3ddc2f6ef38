//! Where requests have their tokens.

use http::HeaderName;
use http::header::{AUTHORIZATION, COOKIE};
use proxy_config::model::http::jwt::JwtProvider;

use crate::http::RequestHead;
use crate::http::message::joined;

/// A token, and what it was in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) text: String,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Header(HeaderName),
    Parameter(String),
    Cookie,
}

const BEARER: &str = "Bearer ";
const PARAMETER: &str = "access_token";

/// All that a provider may have its tokens in.
pub(super) fn tokens(provider: &JwtProvider, head: &RequestHead) -> Vec<Found> {
    let mut found = Vec::new();
    let JwtProvider { from_headers, from_params, from_cookies, .. } = provider;
    let anywhere = from_headers.is_empty() && from_params.is_empty() && from_cookies.is_empty();
    if anywhere {
        in_header(head, AUTHORIZATION, BEARER, &mut found);
        in_query(head, PARAMETER, &mut found);
    }
    for header in from_headers {
        if let Ok(name) = HeaderName::from_bytes(header.name.as_bytes()) {
            in_header(head, name, &header.value_prefix, &mut found);
        }
    }
    from_params.iter().for_each(|name| in_query(head, name, &mut found));
    from_cookies.iter().for_each(|name| in_cookies(head, name, &mut found));
    found
}

fn in_header(head: &RequestHead, name: HeaderName, prefix: &str, found: &mut Vec<Found>) {
    let Some(value) = joined(&head.headers, name.as_str()) else { return };
    let value = String::from_utf8_lossy(&value);
    let after = match prefix {
        "" => Some(&*value),
        prefix => value.find(prefix).map(|at| &value[at + prefix.len()..]),
    };
    if let Some(after) = after {
        // What is no letter of a token ends it.
        let is_of_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '=');
        let text = after.trim_start_matches(|c| !is_of_token(c));
        let end = text.find(|c| !is_of_token(c)).unwrap_or(text.len());
        found.push(Found { text: text[..end].to_owned(), place: Place::Header(name) });
    }
}

fn in_query(head: &RequestHead, name: &str, found: &mut Vec<Found>) {
    let parts = head.query().unwrap_or_default().split('&');
    let value = parts.filter_map(|part| part.split_once('=')).find(|(key, _)| *key == name);
    if let Some((_, value)) = value {
        found.push(Found { text: value.to_owned(), place: Place::Parameter(name.to_owned()) });
    }
}

fn in_cookies(head: &RequestHead, name: &str, found: &mut Vec<Found>) {
    for header in head.headers.get_all(COOKIE) {
        let header = String::from_utf8_lossy(header.as_bytes());
        let value =
            header.split(';').filter_map(|pair| pair.trim().split_once('=')).find(|(key, _)| *key == name);
        if let Some((_, value)) = value {
            found.push(Found { text: value.trim_matches('"').to_owned(), place: Place::Cookie });
            return;
        }
    }
}

impl Found {
    /// It does not go on to the upstream. A cookie stays, as in Envoy.
    pub(super) fn remove(&self, head: &mut RequestHead) {
        match &self.place {
            Place::Header(name) => drop(head.headers.remove(name)),
            Place::Parameter(name) => {
                let Some((path, query)) = head.path.split_once('?') else { return };
                let is_it = |part: &&str| part.split_once('=').is_some_and(|(key, _)| key == name);
                let rest: Vec<_> = query.split('&').filter(|part| !is_it(part)).collect();
                head.path = match rest.is_empty() {
                    true => path.to_owned(),
                    false => format!("{path}?{}", rest.join("&")),
                };
            }
            Place::Cookie => {}
        }
    }
}

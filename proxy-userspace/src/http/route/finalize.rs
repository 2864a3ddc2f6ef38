//! What a route does to a request before it goes upstream, and to its response before it goes back.

use http::HeaderValue;
use http::header::SET_COOKIE;

use super::edit::Whose;
use super::reply::to_tls;
use super::routed::{Answer, Routed};
use crate::http::{LocalReply, Stream};
use crate::telemetry::Entry;

/// Cookies that a hash policy has made for the client.
#[derive(Clone, Default)]
struct Cookies(Vec<HeaderValue>);

/// Envoy's `finalizeRequestHeaders`. `keep_original`: paths and hosts that are rewritten are told in `x-envoy-…`
/// (unless `suppress_envoy_headers`).
pub fn finalize_request(stream: &mut Stream, routed: &Routed, keep_original: bool) {
    request(&mut stream.entry, routed, keep_original);
}

/// Envoy's `finalizeResponseHeaders`, and the cookies of hash policies.
pub fn finalize_response(stream: &mut Stream, routed: &Routed) {
    if let Some(cookies) = stream.extensions.remove::<Cookies>()
        && let Some(head) = stream.response_mut()
    {
        for cookie in cookies.0 {
            head.headers.append(SET_COOKIE, cookie);
        }
    }
    for edit in &routed.response {
        edit.apply(Whose::Response, &mut stream.entry);
    }
}

/// What the route answers by itself; `None` where it forwards, or cannot answer.
pub fn reply(stream: &mut Stream, routed: &Routed, keep_original: bool) -> Option<LocalReply> {
    answer(&mut stream.entry, routed, keep_original)
}

impl Routed {
    /// What the request is kept with an endpoint by, if anything.
    pub fn hash(&self, stream: &mut Stream) -> Option<u64> {
        let hashing = self.route.as_ref()?.hashing.as_ref()?;
        let mut cookies = Vec::new();
        let hash = hashing.hash(&stream.entry, Some(&mut cookies));
        if !cookies.is_empty() {
            stream.extensions.insert(Cookies(cookies));
        }
        hash
    }
}

pub(super) fn request(entry: &mut Entry, routed: &Routed, keep_original: bool) {
    // A weighted cluster's edits are the first, and its host goes before those of the other levels.
    if let (Some(host), Some(http)) = (&routed.cluster_host, entry.http.as_deref_mut()) {
        host.as_ref().clone_into(&mut http.request.authority);
    }
    for edit in &routed.request {
        edit.apply(Whose::Request, entry);
    }
    let Some(route) = &routed.route else { return };
    if let Some(host) = &route.rewrite {
        let append = routed.action().is_some_and(|action| action.append_x_forwarded_host);
        host.apply(entry, append, keep_original);
    }
    if let Some(path) = &route.path {
        path.apply(entry, keep_original);
    }
}

pub(super) fn answer(entry: &mut Entry, routed: &Routed, keep_original: bool) -> Option<LocalReply> {
    let Some(route) = &routed.route else {
        return entry.http.as_deref().map(|http| to_tls(&http.request));
    };
    let answer = route.answer.as_ref()?;
    if let Some(path) = &route.path {
        path.apply(entry, keep_original);
    }
    match answer {
        Answer::Redirect(redirect) => entry.http.as_deref().map(|http| redirect.reply(&http.request)),
        Answer::Direct(direct) => direct.reply(entry),
    }
}

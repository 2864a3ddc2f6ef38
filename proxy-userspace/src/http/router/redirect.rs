//! Redirects of upstreams that are followed instead of told: `internal_redirect_policy`.
//!
//! The request becomes what the response wants it to be, and begins anew: see `manager::again`.

use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode, header};
use proxy_config::model::http::action::{InternalRedirect, RedirectPredicate};

use crate::http::hcm::HttpStats;
use crate::http::{Body, RequestHead, ResponseHead, Scheme, Stream};
use crate::telemetry::stats::Counter;

/// What one request has been through.
#[derive(Clone, Default)]
pub(crate) struct Followed {
    count: u32,
    /// From which route to which.
    routes: Vec<(Arc<str>, Arc<str>)>,
}

/// What counts a redirect that was not followed.
pub(super) type Why = fn(&HttpStats) -> &Counter;

/// Makes the request what the response wants it to be. An error: it stays, and the response goes to the client.
pub(super) fn follow(
    stream: &mut Stream,
    policy: &InternalRedirect,
    response: &ResponseHead,
) -> Result<(), Option<Why>> {
    let Some(location) = response.headers.get(header::LOCATION) else { return Err(None) };
    let location = location.to_str().unwrap_or_default();
    let Some(target) = Target::parse(location) else {
        // Of a scheme that is none of HTTP's, or of none.
        let why: Why = if location.contains("://") && !location.starts_with("http") {
            |stats| &stats.passthrough_internal_redirect_unsafe_scheme
        } else {
            |stats| &stats.passthrough_internal_redirect_bad_location
        };
        return Err(Some(why));
    };
    let secure = stream.entry.facts.tls.is_some();
    if !policy.allow_cross_scheme && secure != (target.scheme == Scheme::Https) {
        return Err(Some(|stats| &stats.passthrough_internal_redirect_unsafe_scheme));
    }
    let mut followed = stream.extensions.get::<Followed>().cloned().unwrap_or_default();
    if followed.count >= policy.max_internal_redirects {
        return Err(Some(|stats| &stats.passthrough_internal_redirect_too_many_redirects));
    }
    let from = stream.known_route().map(|route| route.name().clone()).unwrap_or_default();
    let before = stream.request().clone();
    let original = format!("{}://{}{}", if secure { "https" } else { "http" }, before.authority, before.path);
    target.put(stream.request_mut());
    stream.clear_route();
    if let Err(why) = followed.accept(stream, policy, &from, secure, target.scheme) {
        // What it would have led to stays the stream's route for logs, as in Envoy.
        *stream.request_mut() = before;
        return Err(Some(why));
    }
    followed.count += 1;
    stream.extensions.insert(followed);
    finish(stream, policy, response, &original);
    Ok(())
}

impl Followed {
    fn accept(
        &mut self,
        stream: &mut Stream,
        policy: &InternalRedirect,
        from: &Arc<str>,
        secure: bool,
        scheme: Scheme,
    ) -> Result<(), Why> {
        let Some(route) = stream.route() else {
            return Err(|stats| &stats.passthrough_internal_redirect_no_route);
        };
        let way = (from.clone(), route.name().clone());
        let accepts = |predicate: &RedirectPredicate| match predicate {
            RedirectPredicate::PreviousRoutes => !self.routes.contains(&way),
            RedirectPredicate::SafeCrossScheme => secure || scheme == Scheme::Http,
            RedirectPredicate::AllowListedRoutes(names) => names.contains(&way.1),
        };
        if !policy.predicates.iter().all(accepts) {
            return Err(|stats| &stats.passthrough_internal_redirect_predicate);
        }
        self.routes.push(way);
        Ok(())
    }
}

fn finish(stream: &mut Stream, policy: &InternalRedirect, response: &ResponseHead, original: &str) {
    let head = stream.request_mut();
    for name in &policy.response_headers_to_copy {
        head.headers.remove(&**name);
        for value in response.headers.get_all(&**name) {
            if let Ok(name) = http::HeaderName::from_bytes(name.as_bytes()) {
                head.headers.append(name, value.clone());
            }
        }
    }
    if let Ok(original) = HeaderValue::from_str(original) {
        head.headers.insert("x-envoy-original-url", original);
    }
    // RFC 7231, 6.4.4.
    if response.status == StatusCode::SEE_OTHER && head.method != Method::GET && head.method != Method::HEAD {
        head.method = Method::GET;
        head.headers.remove(header::CONTENT_LENGTH);
        stream.request_body = Body::empty();
    }
}

/// An absolute URL.
struct Target {
    scheme: Scheme,
    authority: String,
    path: String,
}

impl Target {
    fn parse(location: &str) -> Option<Self> {
        let (scheme, rest) = location.split_once("://")?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let slash = if path.starts_with('/') { "" } else { "/" };
        let path = format!("{slash}{path}");
        (!authority.is_empty()).then(|| Self { scheme, authority: authority.to_owned(), path })
    }

    fn put(&self, head: &mut RequestHead) {
        head.scheme = self.scheme;
        head.authority.clone_from(&self.authority);
        head.path.clone_from(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        for (location, expected) in [
            ("http://a.test/b?c#d", Some(("http", "a.test", "/b?c"))),
            ("HTTPS://a.test:8443", Some(("https", "a.test:8443", "/"))),
            ("http://a.test?x", Some(("http", "a.test", "/?x"))),
            ("/relative", None),
            ("ftp://a.test/", None),
            ("http:///x", None),
        ] {
            let found = Target::parse(location);
            let found = found.as_ref().map(|t| (t.scheme.as_str(), &*t.authority, &*t.path));
            assert_eq!(found, expected, "{location}");
        }
    }
}

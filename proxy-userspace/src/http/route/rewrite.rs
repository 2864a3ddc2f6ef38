//! How routes change paths and hosts.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use proxy_config::model::http::action::{HostRewrite, PathRewrite, Redirect, RedirectPath, TemplateRewrite};
use proxy_config::model::http::route_match::PathTemplate;
use proxy_config::model::http::{PathMatch, RouteAction};
use proxy_config::model::matcher::RegexSubstitution;

use super::header_test::Name;
use crate::http::{BuildError, RequestHead};
use crate::telemetry::Entry;
use crate::telemetry::access_log::Text;

pub(super) const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// A compiled `PathRewrite`, or that of a redirect.
pub(super) enum NewPath {
    /// So many bytes are replaced; `None`: the whole path without its query.
    Prefix(Option<usize>, Arc<str>),
    Regex(RegexSubstitution),
    Template(PathTemplate, TemplateRewrite),
    Format(Text),
}

/// A compiled `HostRewrite`; that of endpoints is the router's.
pub(super) enum NewHost {
    Literal(Arc<str>),
    Header(Name),
    PathRegex(RegexSubstitution),
    Format(Text),
}

impl NewPath {
    pub(super) fn of(action: &RouteAction, matched: &PathMatch) -> Result<Option<Self>, BuildError> {
        Ok(match &action.path_rewrite {
            PathRewrite::None => None,
            PathRewrite::Prefix(new) => Some(Self::Prefix(length(matched), new.clone())),
            PathRewrite::Regex(regex) => Some(Self::Regex(regex.clone())),
            PathRewrite::Template(rewrite) => match matched {
                PathMatch::Template(template) => Some(Self::Template(template.clone(), rewrite.clone())),
                // The lowering has refused it.
                PathMatch::Prefix(_)
                | PathMatch::Path(_)
                | PathMatch::SafeRegex(_)
                | PathMatch::PathSeparatedPrefix(_)
                | PathMatch::Connect => None,
            },
            PathRewrite::Format(format) => Some(Self::Format(text(format)?)),
        })
    }

    /// What a redirect does to a path before it is told.
    pub(super) fn of_redirect(redirect: &Redirect, matched: &PathMatch) -> Result<Option<Self>, BuildError> {
        Ok(match &redirect.path {
            RedirectPath::None | RedirectPath::Path(_) => None,
            RedirectPath::Prefix(new) => Some(Self::Prefix(length(matched), new.clone())),
            RedirectPath::Regex(regex) => Some(Self::Regex(regex.clone())),
            RedirectPath::Format(format) => Some(Self::Format(text(format)?)),
        })
    }

    pub(super) fn apply(&self, entry: &mut Entry, keep_original: bool) {
        let Some(new) = self.path(entry) else { return };
        let Some(head) = entry.http.as_deref_mut().map(|http| &mut http.request) else { return };
        if keep_original && let Ok(old) = HeaderValue::from_str(&head.path) {
            head.headers.insert(ORIGINAL_PATH, old);
        }
        head.path = new;
    }

    fn path(&self, entry: &Entry) -> Option<String> {
        let head = &entry.http.as_deref()?.request;
        let alone = head.path_alone();
        let (from, new) = match self {
            Self::Prefix(Some(length), new) => (*length, new.to_string()),
            Self::Prefix(None, new) => (alone.len(), new.to_string()),
            Self::Regex(regex) => (alone.len(), regex.replace_all(alone)),
            Self::Template(template, rewrite) => (alone.len(), rewrite.apply(&template.captures(alone)?)),
            Self::Format(text) => (head.path.len(), text.render(entry)),
        };
        // A filter may have made the path shorter than what was matched.
        Some(new + head.path.get(from..).unwrap_or_default())
    }
}

impl NewHost {
    pub(super) fn of(action: &RouteAction) -> Result<Option<Self>, BuildError> {
        Ok(match &action.host_rewrite {
            HostRewrite::None | HostRewrite::Auto => None,
            HostRewrite::Literal(host) => Some(Self::Literal(host.clone())),
            HostRewrite::Header(name) => Some(Self::Header(Name::new(name)?)),
            HostRewrite::PathRegex(regex) => Some(Self::PathRegex(regex.clone())),
            HostRewrite::Format(format) => Some(Self::Format(text(format)?)),
        })
    }

    pub(super) fn apply(&self, entry: &mut Entry, append: bool, keep_original: bool) {
        let Some(new) = self.host(entry).filter(|host| !host.is_empty()) else { return };
        if let Some(http) = entry.http.as_deref_mut() {
            rewrite_host(&mut http.request, &new, append, keep_original);
        }
    }

    fn host(&self, entry: &Entry) -> Option<String> {
        let head = &entry.http.as_deref()?.request;
        Some(match self {
            Self::Literal(host) => host.to_string(),
            Self::Header(name) => String::from_utf8_lossy(&name.first(head)?).into_owned(),
            Self::PathRegex(regex) => regex.replace_all(head.path_alone()),
            Self::Format(text) => text.render(entry),
        })
    }
}

/// The request goes to another host; who it was for may be kept in headers.
pub fn rewrite_host(head: &mut RequestHead, host: &str, append_forwarded: bool, keep_original: bool) {
    if append_forwarded && !head.authority.is_empty() {
        append_forwarded_host(head);
    }
    if keep_original && let Ok(old) = HeaderValue::from_str(&head.authority) {
        head.headers.insert(ORIGINAL_HOST, old);
    }
    host.clone_into(&mut head.authority);
}

/// Unless it stands there last already.
fn append_forwarded_host(head: &mut RequestHead) {
    let known =
        head.header(FORWARDED_HOST.as_str()).map(|value| String::from_utf8_lossy(&value).into_owned());
    let all = match known {
        Some(known) => {
            if known.rsplit(',').next().is_some_and(|last| last.trim() == head.authority) {
                return;
            }
            format!("{known},{}", head.authority)
        }
        None => head.authority.clone(),
    };
    if let Ok(value) = HeaderValue::from_str(&all) {
        head.headers.insert(FORWARDED_HOST, value);
    }
}

fn length(matched: &PathMatch) -> Option<usize> {
    match matched {
        PathMatch::Prefix(text) | PathMatch::Path(text) | PathMatch::PathSeparatedPrefix(text) => {
            Some(text.len())
        }
        PathMatch::SafeRegex(_) | PathMatch::Connect | PathMatch::Template(_) => None,
    }
}

pub(super) fn text(format: &proxy_config::model::http::Format) -> Result<Text, BuildError> {
    Text::new(format).map_err(|error| BuildError(error.to_string()))
}

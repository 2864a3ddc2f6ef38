//! What routes answer by themselves: redirects and direct responses.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, StatusCode};
use proxy_config::model::http::Content;
use proxy_config::model::http::action::{DirectResponse, Redirect, RedirectPath, SchemeRewrite};

use super::header_test::Name;
use crate::http::{BuildError, LocalReply, RequestHead};
use crate::telemetry::access_log::Format;
use crate::telemetry::{Entry, Flags};

/// A compiled `RedirectAction`.
pub(super) struct Redirection {
    model: Redirect,
    status: StatusCode,
}

/// A compiled `DirectResponseAction`.
pub(super) struct Direct {
    status: StatusCode,
    body: Bytes,
    /// And the media type.
    format: Option<(Format, HeaderValue)>,
}

impl Redirection {
    pub(super) fn new(model: &Redirect) -> Result<Self, BuildError> {
        Ok(Self { model: model.clone(), status: status(model.status)? })
    }

    pub(super) fn reply(&self, head: &RequestHead) -> LocalReply {
        reply(self.status, Bytes::new(), &self.location(head))
    }

    /// Of a path that has been rewritten already where the redirect does that.
    fn location(&self, head: &RequestHead) -> String {
        let Redirect { scheme, host, port, path, strip_query, .. } = &self.model;
        let scheme = match scheme {
            SchemeRewrite::None => head.scheme.as_str(),
            SchemeRewrite::Https => "https",
            SchemeRewrite::Scheme(scheme) => scheme,
        };
        let port = if *port == 0 { String::new() } else { format!(":{port}") };
        let host = if host.is_empty() { host_for(head, scheme, !port.is_empty()) } else { host };
        let (path, its_own_query) = match path {
            RedirectPath::Path(path) if path.contains('?') => (path.to_string(), true),
            RedirectPath::Path(path) => (path.to_string() + with_mark(head), false),
            RedirectPath::None
            | RedirectPath::Prefix(_)
            | RedirectPath::Regex(_)
            | RedirectPath::Format(_) => (head.path.clone(), false),
        };
        let slash = if path.starts_with('/') { "" } else { "/" };
        let stripped = path.split('?').next().filter(|_| *strip_query && !its_own_query);
        format!("{scheme}://{host}{port}{slash}{}", stripped.unwrap_or(&path))
    }
}

impl Direct {
    /// Reads the file that the body is in.
    pub(super) fn new(model: &DirectResponse, most: u32) -> Result<Self, BuildError> {
        let body = content(&model.body)?;
        if body.len() > most as usize {
            return Err(BuildError(format!("response body size is {} bytes; maximum is {most}", body.len())));
        }
        let format = model.body_format.as_ref().map(|model| {
            let format = Format::new(&model.format).map_err(|error| BuildError(error.to_string()))?;
            let media = HeaderValue::from_str(&model.content_type);
            let media =
                media.map_err(|_| BuildError(format!("{:?} is no media type", model.content_type)))?;
            Ok((format, media))
        });
        Ok(Self { status: status(model.status)?, body, format: format.transpose()? })
    }

    pub(super) fn reply(&self, entry: &mut Entry) -> Option<LocalReply> {
        let mut body = self.body.clone();
        let mut media = None;
        if let Some((format, content_type)) = &self.format {
            entry.http.as_deref_mut()?.local_reply_body = Some(body);
            body = format.line(entry).into();
            media = Some(content_type.clone());
        }
        let head = &entry.http.as_deref()?.request;
        // As Envoy: a status that has a location gets the request's own.
        let location = format!("{}://{}{}", head.scheme.as_str(), head.authority, head.path);
        let mut reply = reply(self.status, body, &location);
        reply.headers.extend(media.map(|media| (CONTENT_TYPE, media)));
        Some(reply)
    }
}

/// The same by HTTPS, of a virtual host that asks for it.
pub(super) fn to_tls(head: &RequestHead) -> LocalReply {
    let location = format!("https://{}{}", head.authority, head.path);
    reply(StatusCode::MOVED_PERMANENTLY, Bytes::new(), &location)
}

fn reply(status: StatusCode, body: Bytes, location: &str) -> LocalReply {
    let mut reply = LocalReply::new(status, body, Flags::NONE, "direct_response");
    reply.routed = true;
    if (status == StatusCode::CREATED || status.is_redirection())
        && let Ok(location) = HeaderValue::from_bytes(location.as_bytes())
    {
        reply.headers = HeaderMap::from_iter([(LOCATION, location)]);
    }
    reply
}

/// Without a port that does not go with the new scheme, or that another one takes the place of.
fn host_for<'a>(head: &'a RequestHead, scheme: &str, another_port: bool) -> &'a str {
    let host = head.authority.as_str();
    let Some(start) = super::hosts::port_start(host) else { return host };
    let proto = head.headers.get("x-forwarded-proto").map(HeaderValue::as_bytes);
    let proto = proto.unwrap_or(head.scheme.as_str().as_bytes());
    let its_own = match proto {
        b"https" => host.get(start..) == Some(":443"),
        b"http" => host.get(start..) == Some(":80"),
        _ => false,
    };
    if another_port || (scheme.as_bytes() != proto && its_own) { &host[..start] } else { host }
}

/// The query with its mark.
fn with_mark(head: &RequestHead) -> &str {
    head.path.find('?').map_or("", |mark| &head.path[mark..])
}

fn status(code: u16) -> Result<StatusCode, BuildError> {
    StatusCode::from_u16(code).map_err(|_| BuildError(format!("{code} is no status")))
}

fn content(content: &Content) -> Result<Bytes, BuildError> {
    Ok(match content {
        Content::Inline(bytes) => Bytes::copy_from_slice(bytes),
        Content::File(path) => {
            std::fs::read(path).map_err(|error| BuildError(format!("{}: {error}", path.display())))?.into()
        }
        Content::Environment(name) => std::env::var(&**name)
            .map_err(|error| BuildError(format!("environment variable {name}: {error}")))?
            .into(),
    })
}

/// Which cluster, by a header of the request: the first value, for the client may have sent more.
pub(super) fn named_by(name: &Name, head: &RequestHead) -> Option<std::sync::Arc<str>> {
    name.first(head).map(|value| String::from_utf8_lossy(&value).into())
}

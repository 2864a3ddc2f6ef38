//! What the headers of a message say of compressing it.

use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, VARY};
use http::{HeaderMap, HeaderName, HeaderValue};
use proxy_config::model::http::filters::{Compressor as Model, ContentTypes};

use crate::http::ResponseHead;
use crate::http::message::joined;

const STATUS: HeaderName = HeaderName::from_static("x-envoy-compression-status");

/// Envoy's.
const TYPES: &[&str] = &[
    "text/html",
    "text/plain",
    "text/css",
    "application/javascript",
    "application/x-javascript",
    "text/javascript",
    "text/x-javascript",
    "text/ecmascript",
    "text/js",
    "text/jscript",
    "text/x-js",
    "application/ecmascript",
    "application/x-json",
    "application/xml",
    "application/json",
    "image/svg+xml",
    "text/xml",
    "application/xhtml+xml",
];

/// Why a response is not compressed, whatever its client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Small,
    Type,
    Etag,
    Status,
    Other,
}

/// A body whose length is not known is not small.
pub(super) fn is_small(headers: &HeaderMap, least: u32) -> bool {
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    length.is_some_and(|length| length < u64::from(least))
}

pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = String::from_utf8_lossy(headers.get(CONTENT_TYPE)?.as_bytes());
    Some(value.split(';').next().unwrap_or_default().trim().to_owned())
}

/// One without a type is taken.
pub(super) fn is_type(headers: &HeaderMap, types: &ContentTypes) -> bool {
    media_type(headers).is_none_or(|media_type| fits(&media_type, types))
}

pub(super) fn fits(media_type: &str, types: &ContentTypes) -> bool {
    match types {
        ContentTypes::Default => TYPES.iter().any(|known| known.eq_ignore_ascii_case(media_type)),
        ContentTypes::Exact(list) => list.iter().any(|known| known.eq_ignore_ascii_case(media_type)),
        ContentTypes::Matching(list) => list.iter().any(|known| known.is_match(media_type)),
    }
}

pub(super) fn refused(model: &Model, head: &ResponseHead) -> Option<Refused> {
    let headers = &head.headers;
    let no_transform = joined(headers, CACHE_CONTROL.as_str()).is_some_and(|value| {
        let value = String::from_utf8_lossy(&value);
        value.split(',').any(|token| token.trim().eq_ignore_ascii_case("no-transform"))
    });
    if !is_type(headers, &model.response.content_type) {
        Some(Refused::Type)
    } else if model.disable_on_etag_header && headers.contains_key(ETAG) {
        Some(Refused::Etag)
    } else if model.uncompressible_response_codes.contains(&head.status.as_u16()) {
        Some(Refused::Status)
    } else if no_transform || headers.contains_key(CONTENT_ENCODING) {
        Some(Refused::Other)
    } else {
        None
    }
}

/// A strong tag no longer holds: it goes, or becomes a weak one.
pub(super) fn weaken(headers: &mut HeaderMap, weakens: bool) {
    let Some(tag) = headers.get(ETAG).map(HeaderValue::as_bytes) else { return };
    if tag.starts_with(b"W/") || tag.starts_with(b"w/") {
        return;
    }
    match HeaderValue::from_bytes(&[b"W/", tag].concat()) {
        Ok(weak) if weakens => headers.insert(ETAG, weak),
        Ok(_) | Err(_) => headers.remove(ETAG),
    };
}

/// Caches learn that there is more than one answer.
pub(super) fn vary(headers: &mut HeaderMap) {
    let value = match joined(headers, VARY.as_str()) {
        None => "Accept-Encoding".to_owned(),
        Some(before) => {
            let before = String::from_utf8_lossy(&before);
            if before.to_ascii_lowercase().contains("accept-encoding") {
                return;
            }
            format!("{before}, Accept-Encoding")
        }
    };
    if let Ok(value) = HeaderValue::from_str(&value) {
        headers.insert(VARY, value);
    }
}

/// What `x-envoy-compression-status` says.
pub(super) struct Told {
    pub(super) encoding: &'static str,
    pub(super) compress: bool,
    pub(super) refused: Option<Refused>,
    /// The client would have it.
    pub(super) asked: bool,
}

impl Told {
    pub(super) fn put(&self, headers: &mut HeaderMap, length: Option<&HeaderValue>) {
        let why = match self.refused {
            _ if self.compress => "Compressed",
            Some(Refused::Small) => "ContentLengthTooSmall",
            Some(Refused::Type) if self.asked => "ContentTypeNotAllowed",
            Some(Refused::Etag) if self.asked => "EtagNotAllowed",
            Some(Refused::Status) if self.asked => "StatusCodeNotAllowed",
            Some(Refused::Type | Refused::Etag | Refused::Status | Refused::Other) | None => return,
        };
        let length = length.filter(|_| self.compress).and_then(|length| length.to_str().ok());
        let more = length.map_or(String::new(), |length| format!(";OriginalLength={length}"));
        if let Ok(value) = HeaderValue::from_str(&format!("{};{why}{more}", self.encoding)) {
            headers.append(STATUS, value);
        }
    }
}

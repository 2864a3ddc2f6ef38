//! What the connection manager does with a response after all filters.

use std::borrow::Cow;

use http::header::{DATE, SERVER, VIA};
use http::{HeaderMap, HeaderName, HeaderValue};
use proxy_config::model::http::hcm::ServerHeader;

use super::traced;
use crate::http::message::joined;
use crate::http::{Reset, ResetReason, Stream};
use crate::telemetry::Side;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_ENVOY_FORCE_TRACE: HeaderName = HeaderName::from_static("x-envoy-force-trace");

pub(super) fn finish(stream: &mut Stream) {
    traced::respond(stream);
    let conn = stream.conn.clone();
    let (model, prepared) = (&conn.hcm.model, &conn.hcm.prepared);
    let http = stream.http_mut();
    let Some(response) = http.response.as_mut() else { return };
    let headers = &mut response.headers;
    if !headers.contains_key(DATE) {
        headers.insert(DATE, prepared.date.now());
    }
    let overwrites = match model.identity.server_header {
        ServerHeader::Overwrite => true,
        ServerHeader::AppendIfAbsent => !headers.contains_key(SERVER),
        ServerHeader::PassThrough => false,
    };
    if overwrites {
        headers.insert(SERVER, prepared.server_name.clone());
    }
    let asked = &http.request.headers;
    if (model.request_id.always_set_in_response || asked.contains_key(X_ENVOY_FORCE_TRACE))
        && let Some(id) = asked.get(X_REQUEST_ID)
    {
        headers.insert(X_REQUEST_ID, id.clone());
    }
    if let Some(via) = &prepared.via {
        append(headers, VIA, via, ", ");
    }
    if let Some(status) = &prepared.proxy_status {
        status.tell(stream);
    }
}

/// Behind the values that there are, which become one.
pub(super) fn append(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue, by: &str) {
    let before = joined(headers, name.as_str()).filter(|before| !before.is_empty());
    let Some(before) = before.map(Cow::into_owned) else {
        headers.insert(name, value.clone());
        return;
    };
    let all = [before.as_slice(), by.as_bytes(), value.as_bytes()].concat();
    // Of two values that are good each, and a separator.
    if let Ok(all) = HeaderValue::from_bytes(&all) {
        headers.insert(name, all);
    }
}

/// A filter chain that has made no response, which no configuration should have.
pub(super) fn no_response() -> Reset {
    Reset::new(Side::Internal, ResetReason::Local, "no_response")
}

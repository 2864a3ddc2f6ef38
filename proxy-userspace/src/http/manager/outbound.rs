//! What the connection manager does with a response after all filters.

use http::HeaderValue;
use http::header::SERVER;

use crate::http::Stream;

pub(super) fn finish(stream: &mut Stream) {
    let Some(response) = stream.response_mut() else { return };
    response.headers.insert(SERVER, HeaderValue::from_static("envoy"));
}

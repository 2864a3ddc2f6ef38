//! HTTP/1: our own codec, on `httparse`.
//!
//! One task drives a connection: nothing here spawns, sends through a channel or has a timer. What is read is split and
//! not copied; a head and a small body are written at once.
//!
//! What two implementations might read in two ways is refused, in requests and in responses: then whatever stands
//! before or behind this proxy sees the messages that it sees.

mod chunked;
mod client;
mod encode;
mod framing;
mod parse;
mod reader;
mod server;
mod target;

use http::StatusCode;

pub use self::client::{Client, Failed};
pub use self::parse::{fuzz_request, fuzz_response};
pub use self::server::Server;

/// Of either side; what concerns one alone is without effect on the other.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of a whole head, and of trailers.
    pub max_head_bytes: usize,
    pub max_headers: usize,
    /// Of a client; else it is told to upgrade.
    pub accept_http_10: bool,
    /// Of an HTTP/1.0 request that names none.
    pub default_host: Option<Box<str>>,
    /// Header names of what comes are remembered as they were written.
    pub preserve_case: bool,
    /// With `preserve_case`: what is added to such a message is written as `Proper-Case`.
    pub proper_case_own: bool,
    /// With `preserve_case`: the reason phrase of a response is remembered, too.
    pub keep_reason: bool,
    /// Header names go out as `Proper-Case`, where none is preserved.
    pub proper_case: bool,
    /// `GET http://host/path`: of a client.
    pub allow_absolute_url: bool,
    /// Else trailers are dropped.
    pub enable_trailers: bool,
    /// `Content-Length` beside `Transfer-Encoding: chunked`: the former is dropped. Else refused.
    pub allow_chunked_length: bool,
    /// Methods that no registry knows.
    pub allow_custom_methods: bool,
    /// The request target is sent upstream in absolute form.
    pub send_fully_qualified_url: bool,
    /// The connection is secure: what the scheme of a request is.
    pub https: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_head_bytes: 60 * 1024,
            max_headers: 100,
            accept_http_10: false,
            default_host: None,
            preserve_case: false,
            proper_case_own: false,
            keep_reason: false,
            proper_case: false,
            allow_absolute_url: true,
            enable_trailers: false,
            allow_chunked_length: false,
            allow_custom_methods: false,
            send_fully_qualified_url: false,
            https: false,
        }
    }
}

/// A message that is not understood. To a client it is answered, and its connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{details}")]
pub struct BadRequest {
    pub status: StatusCode,
    /// As `%RESPONSE_CODE_DETAILS%` says it.
    pub details: &'static str,
}

impl BadRequest {
    const fn new(status: StatusCode, details: &'static str) -> Self {
        Self { status, details }
    }

    const fn codec() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "http1.codec_error")
    }
}

#[cfg(test)]
mod tests;

//! `envoy.filters.http.buffer`: a request goes on once it is there as a whole.

use std::sync::Arc;

use http::header::CONTENT_LENGTH;
use http::{HeaderValue, StatusCode};
use proxy_config::model::http::filters::Buffer as Config;

use super::whole::Whole;
use super::{FilterCx, RouteConfig};
use crate::http::Stream;
use crate::http::filter::{Filter, LocalReply, Step, Stop, StreamFilter};
use crate::telemetry::Flags;

pub(super) struct Buffer {
    name: Arc<str>,
    config: Config,
}

struct One {
    name: Arc<str>,
    limit: u32,
}

impl Buffer {
    pub(super) fn new(config: Config, cx: &FilterCx<'_>) -> Self {
        Self { name: cx.name.clone(), config }
    }
}

impl Filter for Buffer {
    fn begin(&self, stream: &Stream) -> Option<Box<dyn StreamFilter>> {
        // The bytes of an upgrade have no end to wait for.
        let whole = stream.request_body.is_end() || stream.request().is_upgrade();
        (!whole).then(|| {
            Box::new(One { name: self.name.clone(), limit: self.config.max_request_bytes })
                as Box<dyn StreamFilter>
        })
    }
}

impl StreamFilter for One {
    fn request<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let limit = match stream.route().as_deref().and_then(|route| route.filters().config(&self.name)) {
            Some(RouteConfig::Buffer(None)) => return Step::Next,
            Some(RouteConfig::Buffer(Some(own))) => own.max_request_bytes,
            Some(_) | None => self.limit,
        };
        Step::wait(read(stream, limit))
    }
}

async fn read(stream: &mut Stream, limit: u32) -> Result<(), Stop> {
    let whole = Whole::read(stream.request_body.take(), limit as usize).await?;
    if whole.over {
        stream.request_body = whole.rest;
        return Err(too_large().into());
    }
    let (length, trailers) = (whole.data.len(), whole.trailers.is_some());
    stream.request_body = whole.body();
    let headers = &mut stream.request_mut().headers;
    if !trailers && !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(())
}

/// What Envoy answers to a body that is longer than it may be.
pub(super) fn too_large() -> LocalReply {
    let status = StatusCode::PAYLOAD_TOO_LARGE;
    LocalReply::new(status, "Payload Too Large", Flags::NONE, "request_payload_too_large")
}

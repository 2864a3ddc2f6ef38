//! What a stream of HTTP adds to an entry.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use proxy_config::model::Metadata;

use crate::clock::Instant;
use crate::http::{Progress, RequestHead, ResponseHead, Sent};

/// A request and what became of it. Heads are kept here while they are worked on, so that a format may be asked at any
/// time.
#[derive(Clone, Debug)]
pub struct HttpEntry {
    pub start: Instant,
    /// As it came, until filters and routes change it; then as it goes upstream.
    pub request: RequestHead,
    /// None before there is a response.
    pub response: Option<ResponseHead>,
    pub response_trailers: Option<HeaderMap>,
    /// The last byte of the request came.
    pub request_complete: Option<Instant>,
    /// How many bytes of its body came, and of its trailers.
    pub request_body: u64,
    pub request_trailers: u64,
    /// To the client.
    pub sent: Sent,
    /// Of the last attempt.
    pub progress: Option<Arc<Progress>>,
    pub route: Option<Arc<str>>,
    pub virtual_host: Option<Arc<str>>,
    pub virtual_cluster: Option<Arc<str>>,
    pub route_metadata: Option<Arc<Metadata>>,
    pub virtual_host_metadata: Option<Arc<Metadata>>,
    /// Of this stream; it goes before the connection's.
    pub dynamic_metadata: Metadata,
    /// By key, as text.
    pub filter_state: BTreeMap<Arc<str>, Arc<str>>,
    /// `x-request-id`, where the proxy knows one.
    pub request_id: Option<Arc<str>>,
    pub trace_id: Option<Arc<str>>,
    pub span_id: Option<Arc<str>>,
    /// The request is one of a health checker (`not_health_check_filter`).
    pub health_check: bool,
    /// A trace is made of it (`traceable_filter`).
    pub traced: bool,
    /// `%LOCAL_REPLY_BODY%`.
    pub local_reply_body: Option<Bytes>,
    /// The upstream's protocol.
    pub upstream_protocol: Option<http::Version>,
}

impl HttpEntry {
    pub fn new(request: RequestHead, start: Instant) -> Self {
        Self {
            start,
            request,
            response: None,
            response_trailers: None,
            request_complete: None,
            request_body: 0,
            request_trailers: 0,
            sent: Sent::default(),
            progress: None,
            route: None,
            virtual_host: None,
            virtual_cluster: None,
            route_metadata: None,
            virtual_host_metadata: None,
            dynamic_metadata: Metadata::default(),
            filter_state: BTreeMap::new(),
            request_id: None,
            trace_id: None,
            span_id: None,
            health_check: false,
            traced: false,
            local_reply_body: None,
            upstream_protocol: None,
        }
    }

    /// The request on its way again: how it came, and nothing of what became of it.
    pub fn renewed(&self) -> Self {
        Self {
            request_complete: self.request_complete,
            request_body: self.request_body,
            request_trailers: self.request_trailers,
            request_id: self.request_id.clone(),
            ..Self::new(self.request.clone(), self.start)
        }
    }

    /// 0 where none was sent.
    pub fn response_code(&self) -> u16 {
        self.response.as_ref().map_or(0, |head| head.status.as_u16())
    }
}

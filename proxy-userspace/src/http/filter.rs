//! HTTP filters: what is done with a stream on its way to the router and back.
//!
//! A [`Filter`] is built once, with its connection manager; it begins a [`StreamFilter`] for each stream that it takes
//! part in. Requests pass the chain in its order, responses in the reverse; the router stands at its end. Heads are at
//! hand when a filter is called, bodies as streams: a filter that wants to see or change a body wraps it, one that
//! needs a whole body reads it and puts back what it has read. A local reply passes all filters on its way to the
//! client, those that have not seen the request too, as in Envoy.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::filters::jwt_authn::Remote;
use super::{Reset, Stream};
use crate::telemetry::Flags;

pub trait Filter: Send + Sync {
    /// None: it takes no part in this stream. The route is not known for certain yet: filters before this one may
    /// still change it.
    fn begin(&self, stream: &Stream) -> Option<Box<dyn StreamFilter>>;

    /// What it follows elsewhere, and its listener may have to wait for.
    fn documents(&self) -> Vec<Arc<Remote>> {
        Vec::new()
    }
}

/// A filter's part in one stream.
pub trait StreamFilter: Send {
    /// The request's head is there, and its body as [`Stream::request_body`].
    fn request<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let _ = stream;
        Step::Next
    }

    /// The response's head is there, and its body as [`Stream::response_body`].
    fn response<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let _ = stream;
        Step::Next
    }

    /// The stream is over, well or badly; the access log follows.
    fn end(&mut self, stream: &mut Stream) {
        let _ = stream;
    }
}

/// How it goes on. What need not wait costs no allocation.
pub enum Step<'a> {
    Next,
    Stop(Stop),
    Wait(Pin<Box<dyn Future<Output = Result<(), Stop>> + Send + 'a>>),
}

impl<'a> Step<'a> {
    pub fn wait(future: impl Future<Output = Result<(), Stop>> + Send + 'a) -> Self {
        Self::Wait(Box::pin(future))
    }

    pub fn reply(reply: LocalReply) -> Self {
        Self::Stop(Stop::Reply(Box::new(reply)))
    }

    pub async fn done(self) -> Result<(), Stop> {
        match self {
            Self::Next => Ok(()),
            Self::Stop(stop) => Err(stop),
            Self::Wait(future) => future.await,
        }
    }
}

/// A stream does not go on.
#[derive(Debug)]
pub enum Stop {
    /// The proxy answers by itself.
    Reply(Box<LocalReply>),
    /// There is nobody to answer, or no way to.
    Reset(Reset),
}

impl From<LocalReply> for Stop {
    fn from(reply: LocalReply) -> Self {
        Self::Reply(Box::new(reply))
    }
}

impl From<Reset> for Stop {
    fn from(reset: Reset) -> Self {
        Self::Reset(reset)
    }
}

/// What the proxy answers by itself. Of gRPC requests the status becomes a `grpc-status`, and the body its message.
#[derive(Debug)]
pub struct LocalReply {
    pub status: StatusCode,
    pub body: Bytes,
    /// Put over the ones of the reply itself.
    pub headers: HeaderMap,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Cow<'static, str>,
    pub flags: Flags,
    /// Instead of the one that goes with `status`.
    pub grpc_status: Option<u32>,
    /// It is the router's: what the route does with the headers of responses is done with its.
    pub routed: bool,
}

impl LocalReply {
    pub fn new(
        status: StatusCode,
        body: impl Into<Bytes>,
        flags: Flags,
        details: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            body: body.into(),
            headers: HeaderMap::new(),
            details: details.into(),
            flags,
            grpc_status: None,
            routed: false,
        }
    }
}

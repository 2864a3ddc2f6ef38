//! Bodies that are read as a whole, and given back.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use crate::http::{Body, Reset};

/// As much of a body as was read.
#[derive(Debug, Default)]
pub(super) struct Whole {
    pub(super) data: Bytes,
    pub(super) trailers: Option<HeaderMap>,
    /// There is more than the limit.
    pub(super) over: bool,
    /// What was not read yet.
    pub(super) rest: Body,
}

impl Whole {
    /// Reads to the end, or until there are more than `limit` bytes.
    pub(super) async fn read(mut body: Body, limit: usize) -> Result<Self, Reset> {
        if body.exact_len().is_some_and(|len| len > limit as u64) {
            return Ok(Self { over: true, rest: body, ..Self::default() });
        }
        let mut first = Bytes::new();
        let mut more = BytesMut::new();
        let mut whole = Self::default();
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) if first.is_empty() => first = data,
                Ok(data) => {
                    if more.is_empty() {
                        more.extend_from_slice(&first);
                    }
                    more.extend_from_slice(&data);
                }
                Err(frame) => whole.trailers = frame.into_trailers().ok(),
            }
            if first.len().max(more.len()) > limit {
                whole.over = true;
                break;
            }
        }
        whole.data = if more.is_empty() { first } else { more.freeze() };
        whole.rest = body;
        Ok(whole)
    }

    /// Reads on until there are `limit` bytes, and no further.
    pub(super) async fn begin(body: Body, limit: usize) -> Result<Self, Reset> {
        let mut whole = Self { rest: body, ..Self::default() };
        let mut data = BytesMut::new();
        while data.len() < limit {
            let Some(frame) = whole.rest.frame().await else { break };
            match frame?.into_data() {
                Ok(more) => data.extend_from_slice(&more),
                Err(frame) => whole.trailers = frame.into_trailers().ok(),
            }
        }
        whole.data = data.freeze();
        Ok(whole)
    }

    /// The body again, as it was.
    pub(super) fn body(self) -> Body {
        if self.rest.is_end() && self.trailers.is_none() {
            return Body::full(self.data);
        }
        let data = (!self.data.is_empty()).then_some(self.data);
        Body::stream(Again { data, rest: self.rest, trailers: self.trailers })
    }
}

/// What was read, then what was not.
struct Again {
    data: Option<Bytes>,
    rest: Body,
    trailers: Option<HeaderMap>,
}

impl http_body::Body for Again {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        let this = self.get_mut();
        if let Some(data) = this.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match this.rest.poll(cx) {
            Poll::Ready(None) => {
                Poll::Ready(this.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
            }
            more @ (Poll::Ready(Some(_)) | Poll::Pending) => more,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.data.as_ref().map_or(0, Bytes::len) as u64;
        match self.rest.exact_len() {
            Some(rest) => SizeHint::with_exact(held + rest),
            None => SizeHint::default(),
        }
    }
}

//! Bodies that are looked at, or changed, on their way.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use crate::http::{Body, Reset};

/// Sees what passes. Data stays as it is; trailers may be changed.
pub(super) trait Watcher: Send + Unpin {
    fn data(&mut self, data: &Bytes) {
        let _ = data;
    }

    fn trailers(&mut self, trailers: &mut HeaderMap) {
        let _ = trailers;
    }
}

pub(super) fn watched(body: Body, watcher: impl Watcher + 'static) -> Body {
    Body::stream(Watched { body, watcher })
}

struct Watched<W> {
    body: Body,
    watcher: W,
}

impl<W: Watcher> http_body::Body for Watched<W> {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        let this = self.get_mut();
        let mut polled = this.body.poll(cx);
        if let Poll::Ready(Some(Ok(frame))) = &mut polled {
            if let Some(data) = frame.data_ref() {
                this.watcher.data(data);
            } else if let Some(trailers) = frame.trailers_mut() {
                this.watcher.trailers(trailers);
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

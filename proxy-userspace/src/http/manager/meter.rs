//! What passes of a stream's bodies: how much, when last, and the trailers.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use crate::clock::{self, Instant};
use crate::http::{Body, Reset};

/// Written by whoever polls the bodies, read by the manager: one task both.
pub(super) struct Meter {
    since: Instant,
    /// In nanoseconds since then, as the next one.
    moved: AtomicU64,
    /// The request is complete; 0: not yet.
    complete: AtomicU64,
    received: AtomicU64,
    received_trailers: AtomicU64,
    /// Of the response's body, to whoever sends it.
    sent: AtomicU64,
    /// All of the response is with whoever sends it.
    buffered: AtomicBool,
    response_trailers: Mutex<Option<HeaderMap>>,
}

impl Meter {
    pub(super) fn new(since: Instant) -> Self {
        let zero = AtomicU64::default;
        Self {
            since,
            moved: zero(),
            complete: zero(),
            received: zero(),
            received_trailers: zero(),
            sent: zero(),
            buffered: AtomicBool::new(false),
            response_trailers: Mutex::default(),
        }
    }

    /// Of a stream whose request is known already: so much of it came.
    pub(super) fn behind(since: Instant, received: (u64, u64), complete: Option<Instant>) -> Self {
        let meter = Self::new(since);
        meter.received.store(received.0, Ordering::Relaxed);
        meter.received_trailers.store(received.1, Ordering::Relaxed);
        if let Some(complete) = complete {
            let nanos = complete.saturating_duration_since(since).as_nanos();
            meter.complete.store(u64::try_from(nanos).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
        }
        meter.touch();
        meter
    }

    /// Something of a message has passed.
    pub(super) fn moved(&self) -> Instant {
        self.since + Duration::from_nanos(self.moved.load(Ordering::Relaxed))
    }

    /// When the last of the request came.
    pub(super) fn complete(&self) -> Option<Instant> {
        match self.complete.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(self.since + Duration::from_nanos(nanos)),
        }
    }

    /// Of the request's body, and of its trailers.
    pub(super) fn received(&self) -> (u64, u64) {
        (self.received.load(Ordering::Relaxed), self.received_trailers.load(Ordering::Relaxed))
    }

    /// Of the response's body.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Nothing of the response is awaited but that its client takes it.
    pub(super) fn is_buffered(&self) -> bool {
        self.buffered.load(Ordering::Relaxed)
    }

    pub(super) fn take_response_trailers(&self) -> Option<HeaderMap> {
        self.response_trailers.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn touch(&self) -> u64 {
        let nanos = clock::lately().saturating_duration_since(self.since).as_nanos();
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX).max(1);
        self.moved.store(nanos, Ordering::Relaxed);
        nanos
    }

    fn end(&self) {
        if self.complete.load(Ordering::Relaxed) == 0 {
            self.complete.store(self.touch(), Ordering::Relaxed);
        }
    }

    /// A request's body as it comes from the client.
    pub(super) fn request(self: &Arc<Self>, body: Body) -> Body {
        Body::stream(Metered { inner: body, meter: self.clone(), of: Message::Request })
    }

    /// A response's body as it goes to the client.
    pub(super) fn response(self: &Arc<Self>, body: Body) -> Body {
        Body::stream(Metered { inner: body, meter: self.clone(), of: Message::Response })
    }

    fn request_frame(&self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.received.fetch_add(data.len() as u64, Ordering::Relaxed);
        } else if let Some(trailers) = frame.trailers_ref() {
            self.received_trailers.store(size(trailers), Ordering::Relaxed);
        }
    }

    fn response_frame(&self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.sent.fetch_add(data.len() as u64, Ordering::Relaxed);
        } else if let Some(trailers) = frame.trailers_ref() {
            let mut kept = self.response_trailers.lock().unwrap_or_else(PoisonError::into_inner);
            *kept = Some(trailers.clone());
        }
    }
}

fn size(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len()) as u64).sum()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Request,
    Response,
}

struct Metered {
    inner: Body,
    meter: Arc<Meter>,
    of: Message,
}

impl http_body::Body for Metered {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        let polled = ready!(self.inner.poll(cx));
        let meter = &self.meter;
        match (&polled, self.of) {
            (Some(Ok(frame)), Message::Request) => {
                meter.touch();
                meter.request_frame(frame);
                if frame.is_trailers() || self.inner.is_end() {
                    meter.end();
                }
            }
            (Some(Ok(frame)), Message::Response) => {
                meter.touch();
                meter.response_frame(frame);
                if frame.is_trailers() || self.inner.is_end() {
                    meter.buffered.store(true, Ordering::Relaxed);
                }
            }
            (None, Message::Request) => meter.end(),
            (None, Message::Response) => meter.buffered.store(true, Ordering::Relaxed),
            (Some(Err(_)), _) => {}
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    struct Frames(VecDeque<Frame<Bytes>>);

    impl http_body::Body for Frames {
        type Data = Bytes;
        type Error = Reset;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }
    }

    #[tokio::test]
    async fn bytes_are_counted_and_the_end_is_known_by_the_trailers() {
        let meter = Arc::new(Meter::new(clock::lately()));
        let trailers = || HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("abc"))]);
        let frames = || Frames([Frame::data(Bytes::from("12345")), Frame::trailers(trailers())].into());
        let mut request = meter.request(Body::stream(frames()));
        request.frame().await.unwrap().unwrap();
        assert_eq!((meter.received(), meter.complete()), ((5, 0), None));
        request.frame().await.unwrap().unwrap();
        assert_eq!(meter.received(), (5, 7));
        assert!(meter.complete().is_some_and(|at| at <= clock::lately()) && meter.moved() > meter.since);
        let mut response = meter.response(Body::stream(frames()));
        while response.frame().await.is_some() {}
        assert_eq!((meter.received(), meter.take_response_trailers()), ((5, 7), Some(trailers())));
        assert_eq!((meter.sent(), meter.is_buffered()), (5, true));
    }
}

//! A body that comes in frames. The peer is given room as the body is polled, so what nobody polls holds the peer back.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::reset_of;
use crate::http::{Body, Reset};
use crate::telemetry::Side;

pub(super) struct Incoming {
    stream: RecvStream,
    side: Side,
    /// Of `content-length`, and not yet here. The crate checks that it is kept.
    left: Option<u64>,
    state: State,
}

#[derive(PartialEq)]
enum State {
    Data,
    Trailers,
    End,
}

impl Incoming {
    pub(super) fn new(stream: RecvStream, headers: &HeaderMap, side: Side) -> Self {
        let left =
            headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        Self { stream, side, left, state: State::Data }
    }

    /// A client's request body.
    pub(super) fn request(stream: RecvStream, headers: &HeaderMap) -> Body {
        if stream.is_end_stream() {
            return Body::empty();
        }
        Body::stream(Self::new(stream, headers, Side::Downstream))
    }

    pub(super) fn is_end(&self) -> bool {
        self.state == State::End || self.stream.is_end_stream()
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        if self.state == State::Data {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only for more than was received.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(self.fail(&error)),
                None => self.state = State::Trailers,
            }
        }
        if self.state == State::End {
            return Poll::Ready(None);
        }
        let trailers = ready!(self.stream.poll_trailers(cx));
        self.state = State::End;
        match trailers {
            Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Ok(None) => Poll::Ready(None),
            Err(error) => Poll::Ready(self.fail(&error)),
        }
    }

    fn fail(&mut self, error: &h2::Error) -> Option<Result<Frame<Bytes>, Reset>> {
        self.state = State::End;
        Some(Err(reset_of(error, self.side)))
    }

    pub(super) fn hint(&self) -> SizeHint {
        match self.left {
            _ if self.is_end() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        self.get_mut().poll(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        self.hint()
    }
}

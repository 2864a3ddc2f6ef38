//! A body that goes out in frames, as far as the peer has room.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;

use super::{head, reason_of, reset_of};
use crate::http::{Body, Reset};
use crate::telemetry::Side;

/// What is left to send of a message whose head went out.
pub(super) struct Outgoing {
    stream: SendStream<Bytes>,
    body: Body,
    /// Of the body's last frame.
    data: Bytes,
    /// Nothing comes after `data`.
    last: bool,
    /// How the body broke, while what came before goes out.
    broken: Option<Reset>,
    /// The peer's.
    side: Side,
    pub(super) data_bytes: u64,
    pub(super) trailer_bytes: u64,
}

/// Why a body was not sent to its end.
pub(super) enum Broken {
    /// The stream takes no more: the peer has reset it, or its connection has gone.
    Stream(Reset),
    /// The body itself broke; the stream is reset.
    Body(Reset),
}

impl Outgoing {
    pub(super) fn new(stream: SendStream<Bytes>, body: Body, side: Side) -> Self {
        Self {
            stream,
            body,
            data: Bytes::new(),
            last: false,
            broken: None,
            side,
            data_bytes: 0,
            trailer_bytes: 0,
        }
    }

    /// Sends all that can be sent; ready when that was all, or when it broke.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if let Some(reset) = self.broken.take() {
            self.stream.send_reset(reason_of(&reset));
            return Poll::Ready(Err(Broken::Body(reset)));
        }
        loop {
            if !self.data.is_empty() {
                ready!(self.poll_data(cx))?;
                if self.last && self.data.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            match self.body.poll(cx) {
                Poll::Pending => {
                    // The body may have nothing for long: a reset is noticed meanwhile.
                    return self.poll_reset(cx).map(|reset| Err(Broken::Stream(reset)));
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        self.last = self.body.is_end();
                        if self.last && data.is_empty() {
                            return Poll::Ready(self.end());
                        }
                        self.data = data;
                    }
                    Err(frame) => {
                        let Ok(trailers) = frame.into_trailers() else { continue };
                        self.trailer_bytes = head::size(&trailers) as u64;
                        return Poll::Ready(self.taken(|stream| stream.send_trailers(trailers)));
                    }
                },
                Poll::Ready(Some(Err(reset))) => {
                    // A reset takes back what waits, the head too where that has only just been handed over. The
                    // connection's task has been woken for it, and is before this one in the queue.
                    self.broken = Some(reset);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(None) => return Poll::Ready(self.end()),
            }
        }
    }

    /// As much of `data` as there is room for.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.stream.reserve_capacity(self.data.len());
        let mut room = self.stream.capacity();
        if room == 0 {
            room = match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(room)) => room,
                Some(Err(error)) => return Poll::Ready(Err(Broken::Stream(reset_of(&error, self.side)))),
                None => return Poll::Ready(Err(Broken::Stream(self.why(cx)))),
            };
        }
        let data = self.data.split_to(room.min(self.data.len()));
        let end = self.last && self.data.is_empty();
        self.data_bytes += data.len() as u64;
        Poll::Ready(self.taken(|stream| stream.send_data(data, end)))
    }

    fn end(&mut self) -> Result<(), Broken> {
        self.taken(|stream| stream.send_data(Bytes::new(), true))
    }

    fn taken(
        &mut self,
        send: impl FnOnce(&mut SendStream<Bytes>) -> Result<(), h2::Error>,
    ) -> Result<(), Broken> {
        send(&mut self.stream).map_err(|error| Broken::Stream(reset_of(&error, self.side)))
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Reset> {
        self.stream.poll_reset(cx).map(|reason| match reason {
            Ok(reason) => super::remote_reset(reason, self.side),
            Err(error) => reset_of(&error, self.side),
        })
    }

    /// Of a stream that has ended.
    fn why(&mut self, cx: &mut Context<'_>) -> Reset {
        match self.poll_reset(cx) {
            Poll::Ready(reset) => reset,
            Poll::Pending => super::remote_reset(h2::Reason::CANCEL, self.side),
        }
    }

    /// What of the body was not handed to the stream.
    pub(super) fn into_body(self) -> Body {
        self.body
    }
}

//! A body that is compressed while it is read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use super::CompressorStats;
use super::encoder::Encoder;
use crate::http::{Body, Reset, ResetReason};
use crate::telemetry::Side;

pub(super) struct Squeezed {
    body: Body,
    /// None once it has made its last bytes.
    encoder: Option<Encoder>,
    trailers: Option<HeaderMap>,
    stats: Arc<CompressorStats>,
}

impl Squeezed {
    pub(super) fn new(body: Body, encoder: Encoder, stats: Arc<CompressorStats>) -> Self {
        Self { body, encoder: Some(encoder), trailers: None, stats }
    }

    /// None: nothing has come of it yet.
    fn data(&mut self, data: &Bytes) -> Option<Result<Frame<Bytes>, Reset>> {
        let last = self.body.is_end();
        let made = match (self.encoder.as_mut(), last) {
            (Some(encoder), false) => encoder.flush(data),
            (Some(_), true) | (None, _) => return self.finish(data),
        };
        self.made(data.len(), made)
    }

    fn finish(&mut self, data: &[u8]) -> Option<Result<Frame<Bytes>, Reset>> {
        let made = self.encoder.take()?.finish(data);
        self.made(data.len(), made)
    }

    fn made(&self, plain: usize, made: io::Result<Bytes>) -> Option<Result<Frame<Bytes>, Reset>> {
        match made {
            Ok(made) => {
                self.stats.passed(plain, &made);
                (!made.is_empty()).then_some(Ok(Frame::data(made)))
            }
            Err(error) => {
                Some(Err(Reset::new(Side::Internal, ResetReason::Local, format!("compressor: {error}"))))
            }
        }
    }
}

impl http_body::Body for Squeezed {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        let this = self.get_mut();
        loop {
            if let Some(trailers) = this.trailers.take() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            let made = match ready!(this.body.poll(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.data(&data),
                    Err(frame) => {
                        this.trailers = frame.into_trailers().ok();
                        this.finish(&[])
                    }
                },
                Some(Err(reset)) => return Poll::Ready(Some(Err(reset))),
                None => match this.finish(&[]) {
                    Some(last) => Some(last),
                    None => return Poll::Ready(None),
                },
            };
            if made.is_some() {
                return Poll::Ready(made);
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.encoder.is_none() && self.trailers.is_none() && self.body.is_end()
    }
}

//! A body in base64, read. Messages may each be encoded by themselves, so padding may stand anywhere.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body::Frame;

use crate::http::{Body, Reset, ResetReason};
use crate::telemetry::Side;

pub(super) struct Decoded {
    body: Body,
    /// Less than four.
    rest: Vec<u8>,
    done: bool,
}

impl Decoded {
    pub(super) fn new(body: Body) -> Self {
        Self { body, rest: Vec::new(), done: false }
    }

    fn decode(&mut self, data: &[u8]) -> Result<Vec<u8>, Reset> {
        self.rest.extend_from_slice(data);
        let whole = self.rest.len() / 4 * 4;
        let out = decoded(&self.rest[..whole]).ok_or_else(|| refused("grpc_base_64_decode_failed"))?;
        self.rest.drain(..whole);
        Ok(out)
    }
}

/// Its client is told 400 with these details.
fn refused(details: &'static str) -> Reset {
    Reset::new(Side::Downstream, ResetReason::Protocol, details)
}

fn decoded(quads: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(quads.len() / 4 * 3);
    let mut rest = quads;
    while !rest.is_empty() {
        // Up to the quad that is padded.
        let end = rest.iter().position(|byte| *byte == b'=').map_or(rest.len(), |at| at / 4 * 4 + 4);
        let (part, after) = rest.split_at_checked(end)?;
        STANDARD.decode_vec(part, &mut out).ok()?;
        rest = after;
    }
    Some(out)
}

impl http_body::Body for Decoded {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        let this = self.get_mut();
        loop {
            let frame = match ready!(this.body.poll(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(reset)) => return Poll::Ready(Some(Err(reset))),
                None if this.rest.is_empty() || this.done => return Poll::Ready(None),
                None => {
                    this.done = true;
                    return Poll::Ready(Some(Err(refused("grpc_base_64_decode_failed_bad_size"))));
                }
            };
            match frame.into_data() {
                Ok(data) => match this.decode(&data) {
                    Ok(out) if out.is_empty() => {}
                    Ok(out) => return Poll::Ready(Some(Ok(Frame::data(out.into())))),
                    Err(reset) => return Poll::Ready(Some(Err(reset))),
                },
                Err(frame) => return Poll::Ready(Some(Ok(frame))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end()
    }
}

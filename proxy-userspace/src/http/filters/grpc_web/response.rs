//! A response with its trailers at the end of its body, in base64 where that is asked for.

use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use crate::http::filters::grpc_stats::Method;
use crate::http::{Body, Reset};

/// What marks the frame of trailers.
const TRAILERS: u8 = 0x80;

pub(super) struct Encoded {
    body: Body,
    encoding: Encoding,
    method: Option<Arc<Method>>,
    done: bool,
}

pub(super) enum Encoding {
    Binary,
    /// Each message by itself, as Envoy has it.
    Text {
        /// Bytes of the message that no three make yet.
        rest: Vec<u8>,
        head: Vec<u8>,
        /// Of the message.
        left: usize,
    },
}

impl Encoding {
    pub(super) fn text() -> Self {
        Self::Text { rest: Vec::new(), head: Vec::new(), left: 0 }
    }

    fn encode(&mut self, data: Bytes) -> Bytes {
        let Self::Text { rest, head, left } = self else { return data };
        let mut out = String::with_capacity(data.len() / 3 * 4 + 8);
        let mut data = &data[..];
        while !data.is_empty() {
            let part;
            if head.len() < 5 {
                (part, data) = data.split_at(data.len().min(5 - head.len()));
                head.extend_from_slice(part);
                if let [_, a, b, c, d] = **head {
                    *left = u32::from_be_bytes([a, b, c, d]) as usize;
                }
            } else {
                (part, data) = data.split_at(data.len().min(*left));
                *left -= part.len();
            }
            rest.extend_from_slice(part);
            let ends = head.len() == 5 && *left == 0;
            let whole = if ends { rest.len() } else { rest.len() / 3 * 3 };
            STANDARD.encode_string(&rest[..whole], &mut out);
            rest.drain(..whole);
            if ends {
                head.clear();
            }
        }
        out.into()
    }

    fn trailers(&self, trailers: &HeaderMap) -> Bytes {
        let mut text = Vec::new();
        for (name, value) in trailers {
            text.extend_from_slice(name.as_str().as_bytes());
            text.push(b':');
            text.extend_from_slice(value.as_bytes());
            text.extend_from_slice(b"\r\n");
        }
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes();
        let frame = [&[TRAILERS][..], &length, &text].concat();
        match self {
            Self::Binary => frame.into(),
            Self::Text { .. } => STANDARD.encode(frame).into(),
        }
    }
}

impl Encoded {
    pub(super) fn new(body: Body, encoding: Encoding, method: Option<Arc<Method>>) -> Self {
        Self { body, encoding, method, done: false }
    }
}

impl http_body::Body for Encoded {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        let this = self.get_mut();
        while !this.done {
            let frame = match ready!(this.body.poll(cx)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            let out = match frame.into_data() {
                Ok(data) => this.encoding.encode(data),
                Err(frame) => {
                    this.done = true;
                    let trailers = frame.into_trailers().unwrap_or_default();
                    if let Some(method) = &this.method {
                        method.ended(&trailers);
                    }
                    this.encoding.trailers(&trailers)
                }
            };
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out))));
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.done || self.body.is_end()
    }
}

/// As gRPC has its messages: all but printable ASCII, and the percent sign.
pub(super) fn percent_encoded(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for &byte in text {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

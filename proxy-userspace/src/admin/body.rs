//! Bodies of answers: whole, or made while they are read.

use std::convert::Infallible;
use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Bytes, Frame, SizeHint};
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use tokio::task::JoinHandle;

use super::updates::Follow;
use crate::transport::tap::admin::Attached;

pub(super) type Answer = Response<Body>;

/// The next piece is made when the one before is on its way: a slow reader costs one piece of memory.
pub(super) enum Body {
    Whole(Option<Bytes>),
    Pieces(Pieces),
    /// What is tapped, as it comes; with this the tapping ends.
    Tap(Box<Attached>),
    /// Updates, as they come.
    Updates(Box<Follow>),
}

type Chunks = Box<dyn Iterator<Item = Bytes> + Send>;

/// Pieces are made on threads that may take their time, so that other answers do not wait for them.
pub(super) enum Pieces {
    Idle(Chunks),
    Busy(JoinHandle<(Chunks, Bytes)>),
    Done,
}

/// Chunks are gathered until a piece is worth its way.
const PIECE: usize = 32 * 1024;

impl Pieces {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            *self = match std::mem::replace(self, Self::Done) {
                Self::Idle(chunks) => Self::Busy(tokio::task::spawn_blocking(move || next(chunks))),
                Self::Busy(mut made) => match Pin::new(&mut made).poll(cx) {
                    Poll::Pending => {
                        *self = Self::Busy(made);
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok((chunks, piece))) if !piece.is_empty() => {
                        *self = Self::Idle(chunks);
                        return Poll::Ready(Some(piece));
                    }
                    // At its end, or the daemon is.
                    Poll::Ready(Ok(_) | Err(_)) => Self::Done,
                },
                Self::Done => return Poll::Ready(None),
            };
        }
    }
}

fn next(mut chunks: Chunks) -> (Chunks, Bytes) {
    let mut piece = Vec::new();
    while piece.len() < PIECE
        && let Some(chunk) = chunks.next()
    {
        piece.extend_from_slice(&chunk);
    }
    (chunks, piece.into())
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take()),
            Self::Pieces(pieces) => pieces.poll(cx),
            Self::Tap(attached) => attached.poll_next(cx),
            Self::Updates(follow) => follow.poll_next(cx),
        };
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None) | Self::Pieces(Pieces::Done))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Pieces(_) | Self::Tap(_) | Self::Updates(_) => SizeHint::default(),
        }
    }
}

pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    reply(status, "text/plain; charset=UTF-8", Body::Whole(Some(body.into())))
}

/// As Envoy prints JSON: one space of indent and a line feed at the end.
pub(super) fn pretty(value: &serde_json::Value) -> Answer {
    json(StatusCode::OK, indented(value, 0) + "\n")
}

pub(super) fn json(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    reply(status, "application/json", Body::Whole(Some(body.into())))
}

pub(super) fn stream(
    content_type: &'static str,
    chunks: impl Iterator<Item = Bytes> + Send + 'static,
) -> Answer {
    reply(StatusCode::OK, content_type, Body::Pieces(Pieces::Idle(Box::new(chunks))))
}

pub(super) const TEXT: &str = "text/plain; charset=UTF-8";
pub(super) const JSON: &str = "application/json";

pub(super) fn reply(status: StatusCode, content_type: &'static str, body: Body) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Indented by one space a level, the first line by nothing.
pub(super) fn indented(value: &serde_json::Value, level: usize) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    // Writing to memory cannot fail.
    let _ = serde::Serialize::serialize(value, &mut serializer);
    let text = String::from_utf8_lossy(&out).into_owned();
    if level == 0 { text } else { text.replace('\n', &format!("\n{}", " ".repeat(level))) }
}

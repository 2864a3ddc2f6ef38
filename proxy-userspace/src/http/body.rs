//! A message's body: a stream of data, then perhaps trailers.
//!
//! Whoever polls a body drives all that it needs: what reads the socket, what decodes, and for a response from upstream
//! also what is still to be sent of its request. Nothing of it runs in another task.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::Reset;

/// Cheap where it is empty or whole.
#[derive(Default)]
pub struct Body(Kind);

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    Stream(Frames),
    Tunnel(Box<Tunnel>),
}

type Frames = Pin<Box<dyn http_body::Body<Data = Bytes, Error = Reset> + Send>>;

/// Sends what is left of a request. Of a tunnel, where it goes on whatever becomes of the response's bytes.
pub type Upload = Pin<Box<dyn Future<Output = Result<(), Reset>> + Send>>;

struct Tunnel {
    frames: Frames,
    upload: Upload,
}

impl Body {
    pub const fn empty() -> Self {
        Self(Kind::Empty)
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::empty() } else { Self(Kind::Full(bytes)) }
    }

    pub fn stream(body: impl http_body::Body<Data = Bytes, Error = Reset> + Send + 'static) -> Self {
        Self(Kind::Stream(Box::pin(body)))
    }

    /// The response's side of a tunnel. Whoever carries it takes the other direction off, and polls both; it is dropped
    /// with this one else.
    pub fn tunnel(
        body: impl http_body::Body<Data = Bytes, Error = Reset> + Send + 'static,
        upload: Upload,
    ) -> Self {
        Self(Kind::Tunnel(Box::new(Tunnel { frames: Box::pin(body), upload })))
    }

    /// The other direction of a tunnel.
    pub fn take_upload(&mut self) -> Option<Upload> {
        match std::mem::take(&mut self.0) {
            Kind::Tunnel(tunnel) => {
                let Tunnel { frames, upload } = *tunnel;
                self.0 = Kind::Stream(frames);
                Some(upload)
            }
            other @ (Kind::Empty | Kind::Full(_) | Kind::Stream(_)) => {
                self.0 = other;
                None
            }
        }
    }

    /// Takes it, and leaves an empty one.
    #[must_use]
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// As [`http_body::Body::poll_frame`], of a body in place.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        match &mut self.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Stream(body) => body.as_mut().poll_frame(cx),
            Kind::Tunnel(tunnel) => tunnel.frames.as_mut().poll_frame(cx),
        }
    }

    /// The next frame; none at the end.
    pub async fn frame(&mut self) -> Option<Result<Frame<Bytes>, Reset>> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    /// It is not here as a whole.
    pub fn is_stream(&self) -> bool {
        matches!(self.0, Kind::Stream(_) | Kind::Tunnel(_))
    }

    /// No frame will come.
    pub fn is_end(&self) -> bool {
        http_body::Body::is_end_stream(self)
    }

    /// How long it is, where that is known before its end.
    pub fn exact_len(&self) -> Option<u64> {
        http_body::Body::size_hint(self).exact()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        self.get_mut().poll(cx)
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(_) => false,
            Kind::Stream(body) => body.is_end_stream(),
            Kind::Tunnel(tunnel) => tunnel.frames.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Stream(body) => body.size_hint(),
            Kind::Tunnel(tunnel) => tunnel.frames.size_hint(),
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Kind::Empty => f.write_str("Body::Empty"),
            Kind::Full(bytes) => write!(f, "Body::Full({} bytes)", bytes.len()),
            Kind::Stream(_) => f.write_str("Body::Stream"),
            Kind::Tunnel(_) => f.write_str("Body::Tunnel"),
        }
    }
}

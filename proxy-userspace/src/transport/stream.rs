//! A socket with its transport, as a stream of the application's bytes: for health checks, and for protocols that
//! bring their own codec.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Transport;
use crate::cluster::Io;

/// Its transport is ready.
pub struct Stream {
    io: Io,
    transport: Option<Box<dyn Transport>>,
}

impl Stream {
    pub fn new(io: Io, transport: Option<Box<dyn Transport>>) -> Self {
        Self { io, transport }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { io, transport } = self.get_mut();
        let space = buf.initialize_unfilled();
        let n = ready!(match transport {
            Some(transport) => transport.poll_read(cx, io.socket(), space),
            None => io.socket().poll_recv(cx, space),
        })?;
        buf.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let Self { io, transport } = self.get_mut();
        match transport {
            Some(transport) => transport.poll_write(cx, io.socket(), data),
            None => io.socket().poll_send(cx, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, transport } = self.get_mut();
        match transport {
            Some(transport) => transport.poll_flush(cx, io.socket()),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, transport } = self.get_mut();
        match transport {
            Some(transport) => transport.poll_shutdown(cx, io.socket()),
            None => Poll::Ready(io.socket().shutdown_write()),
        }
    }
}

//! A connection's bytes, owned by a codec.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::cluster::Connected;
use crate::net::socket::Socket;
use crate::net::wire::Wire;
use crate::transport::{CloseEvent, Transport};

thread_local! {
    /// What is read passes through here: buffers of others would have to be cleared before each read.
    static SPACE: RefCell<Box<[u8]>> = RefCell::new(vec![0; 16 * 1024].into());
}

/// Its transport is ready.
pub enum Io {
    Client {
        /// Shared with whoever accepted it, who resets it where that is called for.
        socket: Arc<TcpStream>,
        transport: Option<Box<dyn Transport>>,
    },
    Upstream(Connected),
}

impl Io {
    pub fn wire(&mut self) -> Wire<'_> {
        match self {
            Self::Client { socket, transport } => Wire::new(Socket::Tcp(socket), transport.as_deref_mut()),
            Self::Upstream(connected) => connected.wire(),
        }
    }

    pub fn socket(&self) -> Socket<'_> {
        match self {
            Self::Client { socket, .. } => Socket::Tcp(socket),
            Self::Upstream(connected) => connected.io.socket(),
        }
    }

    /// Before it is dropped.
    pub fn closed(&mut self, by: CloseEvent) {
        match self {
            Self::Client { socket, transport } => {
                if let Some(transport) = transport {
                    transport.closed(Socket::Tcp(socket), by);
                }
            }
            Self::Upstream(connected) => connected.closed(by),
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        SPACE.with_borrow_mut(|space| {
            let most = space.len().min(buf.remaining());
            let n = ready!(self.get_mut().wire().poll_read(cx, &mut space[..most]))?;
            buf.put_slice(&space[..n]);
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().wire().poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().wire().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().wire().poll_shutdown(cx)
    }
}

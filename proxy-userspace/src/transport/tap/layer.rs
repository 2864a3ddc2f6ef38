//! The layer around a connection's inner transport.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::tapper::Tapper;
use crate::net::socket::Socket;
use crate::transport::{CloseEvent, Failure, TlsInfo, Transport};

pub(super) struct Tapped {
    inner: Box<dyn Transport>,
    tapper: Tapper,
}

impl Tapped {
    pub(super) fn new(inner: Box<dyn Transport>, tapper: Tapper) -> Self {
        Self { inner, tapper }
    }
}

impl Transport for Tapped {
    fn poll_ready(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx, socket)
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        // The end of the stream would have come before this, in the turn of the write.
        self.tapper.settle(false);
        let n = ready!(self.inner.poll_read(cx, socket, buf))?;
        if let Some(read @ [_, ..]) = buf.get(..n) {
            self.tapper.on_read(read);
        }
        Poll::Ready(Ok(n))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(self.inner.poll_write(cx, socket, data))?;
        if let Some(written @ [_, ..]) = data.get(..n) {
            self.tapper.on_write(written);
            if self.tapper.is_streamed() && self.tapper.holds() {
                // Another turn, which begins with a read: who reads the trace does not wait for the next event.
                cx.waker().wake_by_ref();
            }
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_flush(cx, socket)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        self.tapper.settle(true);
        self.inner.poll_shutdown(cx, socket)
    }

    fn start_secure(&mut self) -> bool {
        self.inner.start_secure()
    }

    fn tls(&self) -> Option<&Arc<TlsInfo>> {
        self.inner.tls()
    }

    fn closed(&mut self, socket: Socket<'_>, by: CloseEvent) {
        self.tapper.finish();
        self.inner.closed(socket, by);
    }
}

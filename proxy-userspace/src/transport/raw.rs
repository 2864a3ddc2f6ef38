//! `raw_buffer` as a layer under others.

use std::io;
use std::task::{Context, Poll};

use super::{Factory, Failure, Link, NotReady, Transport};
use crate::net::socket::Socket;

/// The socket's own bytes.
#[derive(Clone, Copy, Debug)]
pub struct Raw;

impl Transport for Raw {
    fn poll_ready(&mut self, _: &mut Context<'_>, _: Socket<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        socket.poll_recv(cx, buf)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        socket.poll_send(cx, data)
    }

    fn poll_flush(&mut self, _: &mut Context<'_>, _: Socket<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket.shutdown_write())
    }

    fn is_raw(&self) -> bool {
        true
    }
}

#[derive(Clone, Copy, Debug)]
pub struct RawFactory;

impl Factory for RawFactory {
    fn create(&self, _: &Link<'_>) -> Result<Box<dyn Transport>, NotReady> {
        Ok(Box::new(Raw))
    }
}

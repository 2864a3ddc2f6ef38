//! One side of a connection: its socket and, where its bytes are wrapped, its transport.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use super::socket::Socket;
use crate::transport::{Failure, Transport};

pub struct Wire<'a> {
    pub socket: Socket<'a>,
    pub transport: Option<&'a mut (dyn Transport + 'static)>,
}

impl<'a> Wire<'a> {
    pub fn new(socket: Socket<'a>, transport: Option<&'a mut (dyn Transport + 'static)>) -> Self {
        // Such as of a tap that does not tap this connection.
        Self { socket, transport: transport.filter(|transport| !transport.is_raw()) }
    }

    /// Its bytes are the socket's own.
    pub fn is_raw(&self) -> bool {
        self.transport.is_none()
    }

    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match &mut self.transport {
            Some(transport) => transport.poll_ready(cx, self.socket),
            None => Poll::Ready(Ok(())),
        }
    }

    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Some(transport) => transport.poll_read(cx, self.socket, buf),
            None => self.socket.poll_recv(cx, buf),
        }
    }

    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Some(transport) => transport.poll_write(cx, self.socket, data),
            None => self.socket.poll_send(cx, data),
        }
    }

    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Some(transport) => transport.poll_flush(cx, self.socket),
            None => Poll::Ready(Ok(())),
        }
    }

    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Some(transport) => transport.poll_shutdown(cx, self.socket),
            None => Poll::Ready(self.socket.shutdown_write()),
        }
    }

    /// Turns to TLS and shakes hands; an error where this side cannot.
    pub async fn secure(&mut self) -> Result<(), Failure> {
        if !self.transport.as_mut().is_some_and(|transport| transport.start_secure()) {
            return Err(Failure::new("the transport socket cannot turn to TLS"));
        }
        poll_fn(|cx| self.poll_ready(cx)).await
    }

    pub async fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read(cx, buf)).await
    }

    /// Writes and flushes all of it.
    pub async fn write_all(&mut self, mut data: &[u8]) -> io::Result<()> {
        poll_fn(|cx| {
            while !data.is_empty() {
                let n = ready!(self.poll_write(cx, data))?;
                data = data.get(n..).unwrap_or_default();
            }
            self.poll_flush(cx)
        })
        .await
    }
}

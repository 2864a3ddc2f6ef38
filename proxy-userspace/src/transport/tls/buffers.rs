//! What rustls reads from and writes to, and what is kept of it.

use std::io::{self, IoSlice, Write};
use std::task::{Context, Poll, ready};

use rustls::Connection;

use crate::net::socket::{Socket, is_again};

/// The socket, as rustls reads from it.
pub(super) struct Incoming<'a, 'b> {
    pub(super) socket: Socket<'a>,
    pub(super) first: Option<&'b mut First>,
}

impl io::Read for Incoming<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.socket.recv(buf)?;
        if let Some(first) = &mut self.first {
            first.see(buf.get(..n).unwrap_or_default());
        }
        Ok(n)
    }
}

/// The socket, as rustls writes to it.
pub(super) struct Outgoing<'a>(pub(super) Socket<'a>);

impl Write for Outgoing<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.send(data)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hands what is encrypted to the socket.
pub(super) fn poll_push(
    connection: &mut Connection,
    cx: &mut Context<'_>,
    socket: Socket<'_>,
) -> Poll<io::Result<()>> {
    poll_drain(cx, socket, |to| if connection.wants_write() { connection.write_tls(to) } else { Ok(0) })
}

/// Writes until nothing is left.
pub(super) fn poll_drain(
    cx: &mut Context<'_>,
    socket: Socket<'_>,
    mut drain: impl FnMut(&mut dyn Write) -> io::Result<usize>,
) -> Poll<io::Result<()>> {
    loop {
        match drain(&mut Outgoing(socket)) {
            Ok(0) => return Poll::Ready(Ok(())),
            Ok(_) => {}
            // tokio knows that it is not ready, and wakes this task once it is.
            Err(e) if is_again(&e) => ready!(socket.poll_write_ready(cx))?,
            Err(e) => return Poll::Ready(Err(e)),
        }
    }
}

/// What the peer began with.
#[derive(Default)]
pub(super) struct First {
    pub(super) bytes: Vec<u8>,
    /// A ClientHello is kept whole, until it is understood.
    pub(super) whole: bool,
}

impl First {
    /// As many bytes as tell plaintext from TLS.
    const HEADER: usize = 5;

    fn see(&mut self, data: &[u8]) {
        let room = Self::HEADER.saturating_sub(self.bytes.len());
        let most = if self.whole { data.len() } else { room.min(data.len()) };
        self.bytes.extend_from_slice(data.get(..most).unwrap_or_default());
    }

    pub(super) fn header(&self) -> &[u8] {
        self.bytes.get(..Self::HEADER).unwrap_or(&self.bytes)
    }

    pub(super) fn understood(&mut self) {
        self.whole = false;
        self.bytes = self.header().to_vec();
    }
}

/// Ciphertext that waits to be processed.
#[derive(Default)]
pub(super) struct Held {
    bytes: Vec<u8>,
    done: usize,
}

impl Held {
    pub(super) fn new(rest: &[u8]) -> Self {
        Self { bytes: rest.to_vec(), done: 0 }
    }

    pub(super) fn rest(&self) -> &[u8] {
        self.bytes.get(self.done..).unwrap_or_default()
    }

    /// With so many bytes left of it.
    pub(super) fn with(mut self, left: usize) -> Self {
        self.done = self.bytes.len().saturating_sub(left);
        if left == 0 { Self::default() } else { self }
    }
}

//! Waiting for bytes without reading them.
//!
//! A peek leaves the socket readable, so waiting for readiness would return at once for ever. The readiness is
//! cleared instead (by claiming that the peek would block), and `SO_RCVLOWAT` keeps the kernel quiet until there is
//! as much as the filter needs: a client that sends one byte at a time wakes nobody in vain.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::sys::sock;

/// The first look: enough for most hellos and request lines.
const FIRST: usize = 2 * 1024;

/// The bytes that wait in a socket.
pub(super) struct Peeked<'a> {
    stream: &'a TcpStream,
    buf: Vec<u8>,
    len: usize,
    lowered: bool,
}

/// The peer has closed, and what it sent is less than was needed.
#[derive(Debug)]
pub(super) struct Closed;

impl<'a> Peeked<'a> {
    pub(super) fn new(stream: &'a TcpStream) -> Self {
        Self { stream, buf: Vec::new(), len: 0, lowered: false }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.buf.get(..self.len).unwrap_or_default()
    }

    /// Until there are `want` bytes.
    pub(super) async fn wait(&mut self, want: usize) -> io::Result<Result<(), Closed>> {
        if self.buf.len() < want.max(FIRST) {
            self.buf.resize(want.max(FIRST).next_power_of_two(), 0);
        }
        loop {
            let closed = self.stream.ready(Interest::READABLE).await?.is_read_closed();
            match self.look(want, closed) {
                Ok(n) => {
                    self.len = n;
                    return Ok(if n < want { Err(Closed) } else { Ok(()) });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.lower(want)?,
                Err(error) => return Err(error),
            }
        }
    }

    fn look(&mut self, want: usize, closed: bool) -> io::Result<usize> {
        let (stream, buf) = (self.stream, &mut self.buf);
        stream.try_io(Interest::READABLE, || {
            match recv(stream.as_raw_fd(), buf, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)? {
                n if n >= want || n == 0 || closed => Ok(n),
                _ => Err(io::ErrorKind::WouldBlock.into()),
            }
        })
    }

    /// Not before the readiness is cleared: setting the mark signals at once where it is already reached.
    fn lower(&mut self, want: usize) -> io::Result<()> {
        if want > 1 || self.lowered {
            sock::set_receive_low_water(self.stream, want)?;
            self.lowered = true;
        }
        Ok(())
    }

    /// Takes the first `n` of the bytes off the connection.
    pub(super) fn consume(&mut self, n: usize) -> io::Result<()> {
        let mut left = n;
        while left > 0 {
            let scratch = self.buf.get_mut(..left).ok_or(io::ErrorKind::InvalidInput)?;
            match self.stream.try_read(scratch)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => left -= read.min(left),
            }
        }
        self.len = 0;
        Ok(())
    }
}

impl Drop for Peeked<'_> {
    fn drop(&mut self) {
        // Whoever reads next must learn of the bytes that were seen here: setting the mark makes the kernel say
        // again that there are some. It fails only where the socket is dead.
        if self.lowered {
            let _ = sock::set_receive_low_water(self.stream, 1);
        }
    }
}

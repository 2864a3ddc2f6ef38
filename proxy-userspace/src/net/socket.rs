//! A stream socket of either kind, as the relay sees it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::task::{Context, Poll, ready};

use nix::sys::socket::{MsgFlags, recv, send};
use socket2::SockRef;
use tokio::io::{Interest, Ready};
use tokio::net::{TcpStream, UnixStream};

/// Borrowed, and passed by value.
#[derive(Clone, Copy, Debug)]
pub enum Socket<'a> {
    Tcp(&'a TcpStream),
    Unix(&'a UnixStream),
}

macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self {
            Socket::Tcp($stream) => $call,
            Socket::Unix($stream) => $call,
        }
    };
}

impl Socket<'_> {
    pub fn poll_read_ready(self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_read_ready(cx))
    }

    pub fn poll_write_ready(self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_write_ready(cx))
    }

    pub fn try_io<R>(self, interest: Interest, f: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
        each!(self, stream => stream.try_io(interest, f))
    }

    /// Reads what is there, or waits for it.
    pub fn poll_recv(self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_read_ready(cx))?;
            match self.recv(buf) {
                Err(error) if is_again(&error) => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Writes what fits, or waits for room.
    pub fn poll_send(self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_write_ready(cx))?;
            match self.send(data) {
                Err(error) if is_again(&error) => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// One read of a socket that is ready. A short count means that it is ready no longer.
    pub fn recv(self, buf: &mut [u8]) -> io::Result<usize> {
        let len = buf.len();
        self.once(Interest::READABLE, len, || Ok(recv(self.as_raw_fd(), buf, MsgFlags::empty())?))
    }

    /// One write to a socket that is ready.
    pub fn send(self, data: &[u8]) -> io::Result<usize> {
        self.once(Interest::WRITABLE, data.len(), || {
            Ok(send(self.as_raw_fd(), data, MsgFlags::MSG_NOSIGNAL)?)
        })
    }

    /// As [`Self::send`], of bytes that lie apart.
    pub fn send_vectored(self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let len = parts.iter().map(|part| part.len()).sum();
        let flags = MsgFlags::MSG_NOSIGNAL.bits();
        self.once(Interest::WRITABLE, len, || SockRef::from(&self).send_vectored_with_flags(parts, flags))
    }

    /// One system call on a ready socket. A short count means that it is ready no longer, and is remembered as
    /// such: epoll is edge-triggered here, and whatever changes after the call is a new edge.
    fn once(
        self,
        interest: Interest,
        len: usize,
        call: impl FnOnce() -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut short = None;
        let result = self.try_io(interest, || match call()? {
            n if 0 < n && n < len => {
                short = Some(n);
                Err(io::ErrorKind::WouldBlock.into())
            }
            n => Ok(n),
        });
        short.map_or(result, Ok)
    }

    pub fn shutdown_write(self) -> io::Result<()> {
        SockRef::from(&self).shutdown(std::net::Shutdown::Write)
    }

    pub async fn ready(self, interest: Interest) -> io::Result<Ready> {
        each!(self, stream => stream.ready(interest).await)
    }

    pub fn take_error(self) -> io::Result<Option<io::Error>> {
        each!(self, stream => stream.take_error())
    }

    /// Closing it will tell the peer of a failure. A unix socket has no reset: it is closed.
    pub fn reset_on_close(self) {
        match self {
            Self::Tcp(stream) => super::conn::reset_on_close(stream),
            Self::Unix(_) => {}
        }
    }
}

/// Nothing was done: the socket was not ready after all.
pub fn is_again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl AsFd for Socket<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        each!(self, stream => stream.as_fd())
    }
}

impl AsRawFd for Socket<'_> {
    fn as_raw_fd(&self) -> RawFd {
        each!(self, stream => stream.as_raw_fd())
    }
}

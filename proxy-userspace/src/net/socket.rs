//! A stream socket of either kind, as the relay sees it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::task::{Context, Poll};

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

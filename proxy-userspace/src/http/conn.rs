//! The bytes of a connection: what was read and not understood yet, what is to be written.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead as _, ReadBuf};

use crate::http::Io;
use crate::net::socket::{Socket, is_again};
use crate::net::turn::{self, Later};
use crate::transport::CloseEvent;

/// Of a head, mostly.
pub(in crate::http) const READ: usize = 4 * 1024;
const READ_MAX: usize = 64 * 1024;
/// Up to this much is copied behind what goes before it; more is written from where it lies.
const COPY: usize = 8 * 1024;
/// Written once it is this much.
const BATCH: usize = 16 * 1024;

thread_local! {
    /// What is short is read here first: its own buffer is then as long as itself, and who waits has none.
    static SHORT: RefCell<[u8; READ]> = const { RefCell::new([0; READ]) };
}

pub(in crate::http) struct Conn {
    pub(in crate::http) io: Io,
    /// Read, and not taken yet.
    pub(in crate::http) input: BytesMut,
    /// The peer sends no more.
    pub(in crate::http) eof: bool,
    /// To be written: this, then `data`, then `tail`.
    pub(in crate::http) output: BytesMut,
    data: Bytes,
    tail: &'static [u8],
    /// How much was ever read.
    pub(in crate::http) read: u64,
    /// How much was ever written, or goes out when it is its turn.
    pub(in crate::http) written: u64,
    /// How much of what is to be written is among it.
    handed: usize,
    turn: Turn,
    unflushed: bool,
    closed: bool,
}

/// Of what was handed on.
enum Turn {
    /// Nothing was, or all of it has gone out.
    None,
    /// It goes out after the tasks that are ready. The waker is of who is told where it does not.
    Waits(Waker),
    /// There was no room: whoever polls the connection writes.
    Stuck,
    /// Nobody has been told yet.
    Failed(io::Error),
}

impl Conn {
    pub(in crate::http) fn new(io: Io, early: Bytes) -> Self {
        Self {
            io,
            read: early.len() as u64,
            input: early.into(),
            eof: false,
            output: BytesMut::new(),
            data: Bytes::new(),
            tail: b"",
            written: 0,
            handed: 0,
            turn: Turn::None,
            unflushed: false,
            closed: false,
        }
    }

    /// Reads more, as much as is worth it where `want` is how much may follow. 0: no more will come.
    pub(in crate::http) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        want: usize,
    ) -> Poll<io::Result<usize>> {
        self.resume(cx);
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        let result = if want > READ { self.poll_fill_long(cx, want) } else { self.poll_fill_short(cx) };
        if let Poll::Ready(Ok(n)) = result {
            self.read += n as u64;
            self.eof = n == 0;
        }
        match self.failure() {
            // What the peer has said before goes first.
            Some(error) if result.is_pending() => Poll::Ready(Err(error)),
            Some(_) | None => result,
        }
    }

    /// Reads past `input`. As [`Self::poll_fill`], whoever reads also writes what has found no room.
    pub(in crate::http) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.resume(cx);
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        match self.failure() {
            Some(error) if result.is_pending() => Poll::Ready(Err(error)),
            Some(_) | None => result,
        }
    }

    /// With what was handed on and has found no room.
    fn resume(&mut self, cx: &mut Context<'_>) {
        if matches!(self.turn, Turn::Stuck)
            && let Poll::Ready(Err(error)) = self.poll_send_now(cx)
        {
            self.turn = Turn::Failed(error);
        }
    }

    /// What has become of what was handed on, where that is no good.
    fn failure(&mut self) -> Option<io::Error> {
        match &mut self.turn {
            Turn::Failed(error) => Some(std::mem::replace(error, io::ErrorKind::BrokenPipe.into())),
            Turn::None | Turn::Waits(_) | Turn::Stuck => None,
        }
    }

    fn poll_fill_short(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        SHORT.with_borrow_mut(|short| {
            let n = ready!(self.io.wire().poll_read(cx, short))?;
            self.input.extend_from_slice(&short[..n]);
            Poll::Ready(Ok(n))
        })
    }

    fn poll_fill_long(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<io::Result<usize>> {
        let mut wire = self.io.wire();
        if self.input.is_empty() && wire.is_raw() {
            // Who waits has no buffer.
            ready!(wire.socket.poll_read_ready(cx))?;
        }
        let (filled, want) = (self.input.len(), want.min(READ_MAX));
        if self.input.capacity() - filled < want / 2 {
            self.input.reserve(want);
        }
        let room = self.input.capacity() - filled;
        self.input.resize(filled + room.min(want), 0);
        let result = wire.poll_read(cx, &mut self.input[filled..]);
        let n = if let Poll::Ready(Ok(n)) = result { n } else { 0 };
        self.input.truncate(filled + n);
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        result
    }

    /// How much of what was read has been taken, ever.
    pub(super) fn taken(&self) -> u64 {
        self.read.saturating_sub(self.input.len() as u64)
    }

    /// There is room for another frame.
    pub(in crate::http) fn has_room(&self) -> bool {
        self.data.is_empty() && self.tail.is_empty() && self.output.len() < BATCH
    }

    /// Behind all else; where there is room.
    pub(in crate::http) fn push(&mut self, data: Bytes, tail: &'static [u8]) {
        debug_assert!(self.has_room());
        if data.len() <= COPY {
            self.output.extend_from_slice(&data);
            self.output.extend_from_slice(tail);
        } else {
            self.data = data;
            self.tail = tail;
        }
    }

    /// How much is to be written.
    fn outstanding(&self) -> usize {
        self.output.len() + self.data.len() + self.tail.len()
    }

    pub(in crate::http) fn has_output(&self) -> bool {
        self.outstanding() > 0
    }

    /// Where among all that is ever written the next byte of `output` will be.
    pub(in crate::http) fn position(&self) -> u64 {
        self.written + self.outstanding().saturating_sub(self.handed) as u64
    }

    /// Writes all that there is to write; what is short goes out when it is its turn, and counts as written. `own`: who
    /// calls [`Self::write_in_turn`] then.
    pub(in crate::http) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        own: impl FnOnce() -> Arc<dyn Later>,
    ) -> Poll<io::Result<()>> {
        let outstanding = self.outstanding();
        // Whoever has handed something on finds room for more.
        let short = outstanding <= turn::SHORT && self.has_room();
        let waits = match self.turn {
            Turn::None => short && outstanding > 0 && turn::later(own),
            Turn::Waits(_) => short,
            Turn::Stuck | Turn::Failed(_) => false,
        };
        if !waits {
            return self.poll_send_now(cx);
        }
        match &mut self.turn {
            Turn::Waits(waker) => waker.clone_from(cx.waker()),
            turn @ (Turn::None | Turn::Stuck | Turn::Failed(_)) => *turn = Turn::Waits(cx.waker().clone()),
        }
        self.written += (outstanding - self.handed) as u64;
        self.handed = outstanding;
        Poll::Ready(Ok(()))
    }

    /// As [`Self::poll_send_now`], but for what goes out when it is its turn.
    pub(in crate::http) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.turn {
            // What is longer has found no room, and nothing more has before it.
            Turn::Waits(_) if self.outstanding() <= turn::SHORT => Poll::Ready(Ok(())),
            Turn::None | Turn::Waits(_) | Turn::Stuck | Turn::Failed(_) => self.poll_send_now(cx),
        }
    }

    /// Behind what is to be written, as much as a buffer is good for.
    pub(in crate::http) fn gather(&mut self, parts: &[IoSlice<'_>]) -> usize {
        let before = self.output.len();
        for part in parts {
            let room = BATCH.saturating_sub(self.output.len()).min(part.len());
            self.output.extend_from_slice(&part[..room]);
        }
        self.output.len() - before
    }

    /// Past `output`, which is empty. Of a plain socket.
    pub(in crate::http) fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        debug_assert!(!self.has_output());
        poll_vectored(self.io.socket(), cx, parts)
    }

    /// Its turn has come.
    pub(in crate::http) fn write_in_turn(&mut self) {
        // What was longer has gone out by itself.
        let Turn::Waits(waker) = std::mem::replace(&mut self.turn, Turn::None) else { return };
        self.turn = match self.poll_send_now(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => {
                if self.input.is_empty() {
                    self.rest();
                }
                return;
            }
            Poll::Ready(Err(error)) => Turn::Failed(error),
            Poll::Pending => Turn::Stuck,
        };
        waker.wake();
    }

    /// Writes all that there is to write.
    pub(in crate::http) fn poll_send_now(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.failure() {
            return Poll::Ready(Err(error));
        }
        while self.has_output() {
            let n = ready!(self.poll_write(cx))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let counted = n.min(self.handed);
            self.handed -= counted;
            self.written += (n - counted) as u64;
            self.unflushed = true;
            self.advance(n);
        }
        if self.unflushed {
            ready!(self.io.wire().poll_flush(cx))?;
            self.unflushed = false;
        }
        if matches!(self.turn, Turn::Stuck) {
            self.turn = Turn::None;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut wire = self.io.wire();
        let parts = [self.output.as_ref(), self.data.as_ref(), self.tail];
        let apart = parts.iter().filter(|part| !part.is_empty()).count() > 1;
        if !apart || !wire.is_raw() {
            let first = parts.into_iter().find(|part| !part.is_empty()).unwrap_or_default();
            return wire.poll_write(cx, first);
        }
        poll_vectored(wire.socket, cx, &parts.map(IoSlice::new))
    }

    fn advance(&mut self, mut n: usize) {
        let of_output = n.min(self.output.len());
        // All of it, mostly: then its room is used again.
        if of_output == self.output.len() {
            self.output.clear();
        } else {
            self.output.advance(of_output);
        }
        n -= of_output;
        let of_data = n.min(self.data.len());
        self.data.advance(of_data);
        n -= of_data;
        self.tail = self.tail.get(n..).unwrap_or_default();
    }

    pub(in crate::http) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send_now(cx))?;
        self.io.wire().poll_shutdown(cx)
    }

    /// Between messages: who waits has no buffers.
    pub(in crate::http) fn rest(&mut self) {
        if self.output.is_empty() {
            self.output = BytesMut::new();
        }
    }

    /// Tells the transport, once, before the connection is dropped.
    pub(in crate::http) fn close(&mut self, by: CloseEvent) {
        if !self.closed {
            self.closed = true;
            self.write_in_turn();
            self.io.closed(by);
        }
    }
}

fn poll_vectored(socket: Socket<'_>, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_write_ready(cx))?;
        match socket.send_vectored(parts) {
            Err(error) if is_again(&error) => {}
            result => return Poll::Ready(result),
        }
    }
}

impl Later for Mutex<Conn> {
    fn write(&self) {
        self.lock().unwrap_or_else(PoisonError::into_inner).write_in_turn();
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.close(if self.eof { CloseEvent::Remote } else { CloseEvent::Local });
    }
}

#[cfg(test)]
mod tests;

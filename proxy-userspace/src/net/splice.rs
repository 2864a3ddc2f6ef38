//! Bulk bytes without a copy: `splice(2)` from socket to pipe to socket moves pages, not bytes.
//!
//! A pipe costs two descriptors and some system calls, so only a direction that has proven to be bulk gets one,
//! only as many as [`Pipes`] allows, and it is given back once the direction turns small.
//!
//! `splice` has no `MSG_NOSIGNAL`: the process must ignore SIGPIPE, as every Rust program does from its start.

use std::io;
use std::os::fd::OwnedFd;

use super::socket::Socket;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

use std::sync::Arc;

use crate::telemetry::stats::{Held, OwnStats};

/// The most that is moved at once, and so the most that waits in a pipe.
pub const MOST: usize = 256 * 1024;
/// What a direction has to move in one go to be bulk.
const BULK: usize = 32 * 1024;
/// This many bulky moves in a row make a direction bulk, and as many that are not make it small again.
const STREAK: u8 = 4;

/// The pipes of one proxy.
#[derive(Debug)]
pub struct Pipes {
    most: u64,
    own: Arc<OwnStats>,
}

impl Pipes {
    pub fn new(most: usize, own: Arc<OwnStats>) -> Self {
        Self { most: most as u64, own }
    }

    /// A pipe, unless there are enough of them or the system has none to give.
    fn take(&self) -> Option<Pipe> {
        // Several threads may pass here at once: the limit is a matter of size, not of exactness.
        if self.own.splice_active.value() >= self.most {
            return None;
        }
        let held = Held::new(&self.own, |s| &s.splice_active);
        let (read, write) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).ok()?;
        // Refused where the user's pipe budget is used up; the default size works, too.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(MOST as i32));
        self.own.splice_total.inc();
        Some(Pipe { read, write, waiting: 0, _held: held })
    }
}

/// A pipe that belongs to one direction.
#[derive(Debug)]
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    waiting: usize,
    _held: Held<OwnStats>,
}

impl Pipe {
    /// From the socket. Only an empty pipe is filled: so EAGAIN always speaks of the socket.
    pub(super) fn fill(&mut self, from: Socket<'_>) -> io::Result<usize> {
        let n = splice(from, None, &self.write, None, MOST, flags())?;
        self.waiting = n;
        Ok(n)
    }

    /// To the socket.
    pub(super) fn empty(&mut self, to: Socket<'_>) -> io::Result<usize> {
        let n = splice(&self.read, None, to, None, self.waiting, flags())?;
        self.waiting = self.waiting.saturating_sub(n);
        Ok(n)
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}

/// Decides by the sizes of a direction's moves whether it is bulk.
#[derive(Debug, Default)]
pub(super) struct Bulk {
    /// Moves in a row that spoke against the present way.
    streak: u8,
}

impl Bulk {
    /// Takes note of a move, and swaps the way where that is due. No `pipes`: a pipe would hold more than may wait.
    pub(super) fn moved(&mut self, n: usize, pipe: &mut Option<Pipe>, pipes: Option<&Pipes>) {
        let Some(pipes) = pipes else { return };
        let otherwise = (n >= BULK) != pipe.is_some();
        self.streak = if otherwise { self.streak + 1 } else { 0 };
        if self.streak < STREAK {
            return;
        }
        self.streak = 0;
        *pipe = match pipe {
            None => pipes.take(),
            // What is in it goes first.
            Some(used) if used.waiting() > 0 => return,
            Some(_) => None,
        };
    }
}

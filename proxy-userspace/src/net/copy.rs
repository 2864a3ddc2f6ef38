//! The relay: bytes both ways between two sockets, with their ends and their failures.
//!
//! Where a side has a transport, its bytes go through that and not through the socket itself; the socket is still
//! watched and reset.
//!
//! - **Half-close**: FIN from one side becomes `shutdown(Write)` on the other; the other way goes on.
//! - **Reset**: a failure of one socket ends the relay, and the caller resets the other. A socket that is not
//!   being read (its bytes do not get through, or it has said FIN) is watched for errors, so that its RST is
//!   seen at once and not when the other side moves.
//! - **Back-pressure**: nothing is read while bytes wait for the other socket. At most [`CHUNK`] bytes wait per
//!   direction (spliced: [`super::splice::MOST`]), and none of it is allocated while a direction flows or is idle: bytes are read into one scratch
//!   buffer per thread and written from there; only what the other socket did not take is kept.
//! - **System calls**: as many as a plain epoll loop makes. A read or write that comes back short has emptied or
//!   filled the socket, so the call that would only say EAGAIN is spared.
//!
//! - **Bulk** goes through a pipe instead where both sides are raw, see [`super::splice`].
//!
//! TCP's urgent byte is not carried, as in Envoy.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::AsRawFd;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;
use tokio::time::sleep_until;

use super::socket::{Socket, is_again};
use super::splice::{self, Bulk, Pipe, Pipes};
use super::timers::{Limits, Moved, Timers};
use super::wire::Wire;
use crate::clock;
use crate::cluster::Host;
use crate::drain::Guard;
use crate::network::starttls::Leftover;
use crate::network::{Close, Gates, Verdict};
use crate::telemetry::stats::{ClusterStats, Counter, TcpStats};
use crate::telemetry::{Bytes, ConnRecord, Side};

/// The largest read, and so the most that waits in one direction.
pub const CHUNK: usize = 64 * 1024;
/// What is read of a wrapped connection before its gatekeepers are asked.
const FIRST: usize = 16 * 1024;
/// Reads of one direction before other connections get their turn.
const ROUNDS: usize = 8;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

/// How a relay ended.
#[derive(Debug)]
pub enum End {
    /// Both sides said FIN; this one first.
    Closed(Side),
    /// The socket of this side failed, by RST or otherwise.
    Failed { side: Side, error: io::Error },
    /// No byte has moved for an idle timeout: of this side, or of both.
    Idle(Option<Side>),
    /// A gatekeeper has refused the client's first bytes.
    Refused(Close),
    /// The connection has lived as long as it may.
    MaxDuration,
    /// The endpoint has failed its health checks, and its cluster wants its connections closed.
    HostFailed,
    /// A drain's deadline has passed.
    Cut,
}

/// Whether the peer broke the connection off. EPIPE is a reset that came after the peer's FIN.
pub fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// What a relay needs beside its sockets.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    pub cluster: &'a ClusterStats,
    pub tcp: &'a TcpStats,
    pub pipes: &'a Pipes,
    pub limits: &'a Limits,
    pub guard: &'a Guard,
    /// Asked before the client's first byte is read.
    pub gates: Option<&'a Gates>,
    /// Closes connections of an endpoint that has failed.
    pub host: Option<&'a Host>,
}

/// Relays until both sides have closed, one has failed, or a limit is reached. The record's bytes are exact
/// whenever the future is not running, also where it is dropped.
pub async fn relay(
    down: Wire<'_>,
    up: Wire<'_>,
    leftover: Option<Box<Leftover>>,
    record: &mut ConnRecord,
    terms: Terms<'_>,
) -> End {
    let (down_socket, up_socket) = (down.socket, up.socket);
    let mut relay = Relay::new(down, up, leftover, record, &terms);
    let mut down_error = None;
    let mut up_error = None;
    let mut timers = Timers::new(terms.limits, clock::now());
    let mut sleep = pin!(timers.next().map(sleep_until));
    let mut failed = terms.host.map(|host| Box::pin(host.closing()));
    poll_fn(|cx| {
        if let Poll::Ready(Verdict::Close(close)) = relay.poll_gates(cx) {
            return Poll::Ready(End::Refused(close));
        }
        let polled = relay.poll(cx);
        let moved = relay.account();
        if polled.is_ready() {
            return polled;
        }
        let watch = || down_socket.ready(Interest::ERROR);
        if poll_watch(&mut down_error, relay.to_up.is_blind(), watch, cx).is_ready() {
            return Poll::Ready(died(down_socket, Side::Downstream));
        }
        let watch = || up_socket.ready(Interest::ERROR);
        if poll_watch(&mut up_error, relay.to_down.is_blind(), watch, cx).is_ready() {
            return Poll::Ready(died(up_socket, Side::Upstream));
        }
        if let Some(sleep) = sleep.as_mut().as_pin_mut()
            && let Poll::Ready(end) = timers.poll(sleep, moved, cx, |due| due.tell(relay.record))
        {
            return Poll::Ready(end);
        }
        if let Some(failed) = &mut failed
            && failed.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(End::HostFailed);
        }
        terms.guard.poll_cut(cx).map(|()| End::Cut)
    })
    .await
}

/// Both directions, and what they have moved.
struct Relay<'a> {
    down: Wire<'a>,
    up: Wire<'a>,
    to_up: Flow,
    to_down: Flow,
    /// Who said FIN first.
    first: Option<Side>,
    record: &'a mut ConnRecord,
    terms: Terms<'a>,
}

impl<'a> Relay<'a> {
    fn new(
        down: Wire<'a>,
        up: Wire<'a>,
        leftover: Option<Box<Leftover>>,
        record: &'a mut ConnRecord,
        terms: &Terms<'a>,
    ) -> Self {
        let before = record.entry.bytes;
        let leftover = leftover.map(|leftover| *leftover).unwrap_or_default();
        let to_up = Flow::new(leftover.to_upstream, before.downstream_rx, before.upstream_tx);
        let to_down = Flow::new(leftover.to_downstream, before.upstream_rx, before.downstream_tx);
        Self { down, up, to_up, to_down, first: None, record, terms: *terms }
    }

    /// Asks the gatekeepers once the client's first bytes or its FIN have come. Pending keeps those bytes where they are.
    fn poll_gates(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        let Some(gates) = self.terms.gates else { return Poll::Ready(Verdict::Continue) };
        if !self.down.is_raw() || self.to_up.is_held() {
            ready!(self.to_up.poll_prefetch(cx, &mut self.down));
            self.terms.gates = None;
            return Poll::Ready(gates.on_first_byte(&mut self.record.entry.facts));
        }
        // A failed socket is readable; the relay finds out.
        let _ = ready!(self.down.socket.poll_read_ready(cx));
        match peek(self.down.socket) {
            Err(error) if is_again(&error) => {
                // The readiness was stale, and is cleared now: ask to be woken.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Err(_) => {}
            // A client that ends without a byte is judged, too.
            Ok(_) => {
                self.terms.gates = None;
                return Poll::Ready(gates.on_first_byte(&mut self.record.entry.facts));
            }
        }
        self.terms.gates = None;
        Poll::Ready(Verdict::Continue)
    }

    /// Moves what can be moved now.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        SCRATCH.with_borrow_mut(|scratch| {
            let most = self.terms.limits.buffer.clamp(1, CHUNK);
            let scratch = scratch.get_mut(..most).unwrap_or_default();
            let splices = self.terms.limits.buffer >= splice::MOST && self.down.is_raw() && self.up.is_raw();
            let means = &mut Means { pipes: splices.then_some(self.terms.pipes), scratch };
            let to_up = match self.terms.gates {
                None => self.to_up.poll(cx, (&mut self.down, &mut self.up), true, means),
                Some(_) => Poll::Pending,
            };
            // What a failing upstream said last is already here, and still goes to the client. But its end is
            // then no FIN: the caller resets.
            let healthy = !matches!(to_up, Poll::Ready(Err(_)));
            let to_down = self.to_down.poll(cx, (&mut self.up, &mut self.down), healthy, means);
            self.ended(to_up, to_down)
        })
    }

    fn ended(&mut self, to_up: Poll<Result<(), Broken>>, to_down: Poll<Result<(), Broken>>) -> Poll<End> {
        self.first = self.first.or_else(|| self.to_up.eof.then_some(Side::Downstream));
        self.first = self.first.or_else(|| self.to_down.eof.then_some(Side::Upstream));
        let failed = |side, error| Poll::Ready(End::Failed { side, error });
        match (to_up, to_down) {
            (Poll::Ready(Err(Broken::Source(error))), _) => failed(Side::Downstream, error),
            (Poll::Ready(Err(Broken::Sink(error))), _) => failed(Side::Upstream, error),
            (_, Poll::Ready(Err(Broken::Source(error)))) => failed(Side::Upstream, error),
            (_, Poll::Ready(Err(Broken::Sink(error)))) => failed(Side::Downstream, error),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                Poll::Ready(End::Closed(self.first.unwrap_or(Side::Downstream)))
            }
            (Poll::Pending, _) | (_, Poll::Pending) => Poll::Pending,
        }
    }

    /// Adds what moved since the last time to the record and to the stats; says on which side anything did.
    fn account(&mut self) -> Moved {
        let now = Bytes {
            downstream_rx: self.to_up.rx,
            upstream_tx: self.to_up.tx,
            upstream_rx: self.to_down.rx,
            downstream_tx: self.to_down.tx,
        };
        let before = std::mem::replace(&mut self.record.entry.bytes, now);
        let Terms { cluster, tcp, .. } = self.terms;
        let add = |counter: &Counter, now: u64, before: u64| {
            if now != before {
                counter.add(now - before);
            }
            now != before
        };
        let downstream = [
            add(&tcp.downstream_cx_rx_bytes_total, now.downstream_rx, before.downstream_rx),
            add(&tcp.downstream_cx_tx_bytes_total, now.downstream_tx, before.downstream_tx),
        ];
        let upstream = [
            add(&cluster.upstream_cx_rx_bytes_total, now.upstream_rx, before.upstream_rx),
            add(&cluster.upstream_cx_tx_bytes_total, now.upstream_tx, before.upstream_tx),
        ];
        Moved { downstream: downstream.contains(&true), upstream: upstream.contains(&true) }
    }
}

/// Which socket of a direction failed.
enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

/// What directions move bytes with.
struct Means<'a> {
    pipes: Option<&'a Pipes>,
    scratch: &'a mut [u8],
}

/// One direction.
#[derive(Default)]
struct Flow {
    /// Read, and not taken by the sink so far. Empty and unallocated in all but a stalled direction.
    held: Vec<u8>,
    /// How much of `held` has been written.
    written: usize,
    /// The sink's transport has taken bytes that its socket may not have.
    unflushed: bool,
    /// There while the direction is bulk.
    pipe: Option<Pipe>,
    bulk: Bulk,
    /// The source has said FIN.
    eof: bool,
    /// The sink has been told.
    done: bool,
    rx: u64,
    tx: u64,
}

impl Flow {
    /// With what was read before the relay, and the bytes that were counted before.
    fn new(held: Vec<u8>, rx: u64, tx: u64) -> Self {
        Self { held, rx, tx, ..Self::default() }
    }

    /// Reads the first bytes or the end, and holds them. A failure shows again where the relay reads.
    fn poll_prefetch(&mut self, cx: &mut Context<'_>, from: &mut Wire<'_>) -> Poll<()> {
        if self.is_held() {
            return Poll::Ready(());
        }
        let mut first = vec![0; FIRST];
        match ready!(from.poll_read(cx, &mut first)) {
            Ok(0) => self.eof = true,
            Ok(n) => {
                first.truncate(n);
                self.held = first;
                self.written = 0;
                self.rx += n as u64;
            }
            Err(_) => {}
        }
        Poll::Ready(())
    }

    /// Moves bytes until one of the sockets has to be waited for; ready once FIN is passed on.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        (from, to): (&mut Wire<'_>, &mut Wire<'_>),
        pass_fin: bool,
        means: &mut Means<'_>,
    ) -> Poll<Result<(), Broken>> {
        for _ in 0..ROUNDS {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_flush(cx, to)).map_err(Broken::Sink)?;
            if !self.eof {
                ready!(self.poll_move(cx, from, to, means))?;
            } else if pass_fin {
                ready!(to.poll_shutdown(cx)).map_err(Broken::Sink)?;
                self.pipe = None;
                self.done = true;
            } else {
                return Poll::Ready(Ok(()));
            }
        }
        // There is more to do; let others go first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes out what is held.
    fn poll_flush(&mut self, cx: &mut Context<'_>, to: &mut Wire<'_>) -> Poll<io::Result<()>> {
        while self.is_held() {
            if to.is_raw() {
                ready!(to.socket.poll_write_ready(cx))?;
                self.push(to.socket)?;
            } else {
                let data = self.held.get(self.written..).unwrap_or_default();
                let n = ready!(to.poll_write(cx, data))?;
                self.written += n;
                self.tx += n as u64;
                self.unflushed = true;
            }
        }
        if self.written > 0 {
            self.held = Vec::new();
            self.written = 0;
        }
        if self.unflushed {
            ready!(to.poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// One read, and one write of what it gave.
    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Wire<'_>,
        to: &mut Wire<'_>,
        means: &mut Means<'_>,
    ) -> Poll<Result<(), Broken>> {
        let n = match self.poll_pull(cx, from, means.scratch) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(read) => read,
        };
        let n = match n {
            Ok(0) => {
                self.eof = true;
                return Poll::Ready(Ok(()));
            }
            Ok(n) => n,
            Err(error) if is_again(&error) => return Poll::Ready(Ok(())),
            Err(error) => return Poll::Ready(Err(Broken::Source(error))),
        };
        self.rx += n as u64;
        if self.pipe.is_some() {
            self.push(to.socket).map_err(Broken::Sink)?;
        } else {
            let data = means.scratch.get(..n).unwrap_or_default();
            let sent = self.poll_push(cx, to, data).map_err(Broken::Sink)?;
            self.held.extend_from_slice(data.get(sent..).unwrap_or_default());
        }
        self.bulk.moved(n, &mut self.pipe, means.pipes);
        Poll::Ready(Ok(()))
    }

    /// Into the pipe, or else into `scratch`.
    fn poll_pull(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Wire<'_>,
        scratch: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Some(pipe) = &mut self.pipe else {
            if !from.is_raw() {
                return from.poll_read(cx, scratch);
            }
            ready!(from.socket.poll_read_ready(cx))?;
            return Poll::Ready(from.socket.recv(scratch));
        };
        ready!(from.socket.poll_read_ready(cx))?;
        // A short count may as well be a full pipe: only EAGAIN says that the socket is empty.
        Poll::Ready(from.socket.try_io(Interest::READABLE, || pipe.fill(from.socket)))
    }

    /// Writes what the sink takes at once.
    fn poll_push(&mut self, cx: &mut Context<'_>, to: &mut Wire<'_>, data: &[u8]) -> io::Result<usize> {
        if to.is_raw() {
            return self.sent(to.socket.send(data));
        }
        let mut sent = 0;
        while let Some(rest) = data.get(sent..).filter(|rest| !rest.is_empty()) {
            match to.poll_write(cx, rest) {
                Poll::Ready(n) => sent += n?,
                Poll::Pending => break,
            }
        }
        self.tx += sent as u64;
        self.unflushed |= sent > 0;
        Ok(sent)
    }

    /// One write of what is held.
    fn push(&mut self, to: Socket<'_>) -> io::Result<()> {
        // Copied bytes come first: they were read before the pipe was there.
        let result = match (self.held.get(self.written..), &mut self.pipe) {
            (Some(data), _) if !data.is_empty() => to.send(data),
            (_, Some(pipe)) => to.try_io(Interest::WRITABLE, || pipe.empty(to)),
            (_, None) => Ok(0),
        };
        let copied = self.written < self.held.len();
        let sent = self.sent(result)?;
        if copied {
            self.written += sent;
        }
        Ok(())
    }

    /// Counts what a write took; a full sink took nothing.
    fn sent(&mut self, result: io::Result<usize>) -> io::Result<usize> {
        let sent = match result {
            Err(error) if is_again(&error) => 0,
            result => result?,
        };
        self.tx += sent as u64;
        Ok(sent)
    }

    fn is_held(&self) -> bool {
        self.written < self.held.len() || self.pipe.as_ref().is_some_and(|pipe| pipe.waiting() > 0)
    }

    /// Whether the source is not being read, so that its failure would go unseen.
    fn is_blind(&self) -> bool {
        self.eof || self.is_held() || self.unflushed
    }
}

/// Polls a future that exists only while it is wanted: a flow that is read does not pay for its watch.
fn poll_watch<F: Future>(
    slot: &mut Option<Pin<Box<F>>>,
    wanted: bool,
    watch: impl FnOnce() -> F,
    cx: &mut Context<'_>,
) -> Poll<()> {
    if !wanted {
        *slot = None;
        return Poll::Pending;
    }
    slot.get_or_insert_with(|| Box::pin(watch())).as_mut().poll(cx).map(|_| ())
}

fn died(stream: Socket<'_>, side: Side) -> End {
    let error = stream.take_error().unwrap_or_else(Some);
    // A write may have taken the error from the socket; only a reset is told twice.
    End::Failed { side, error: error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()) }
}

fn peek(stream: Socket<'_>) -> io::Result<usize> {
    stream.try_io(Interest::READABLE, || Ok(recv(stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK)?))
}

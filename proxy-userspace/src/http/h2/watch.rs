//! A connection's bytes on their way to the crate and from it.
//!
//! Frames are handed over one at a time, and their heads are looked at: [`super::abuse`] counts them, and of the one
//! that the crate found fault with, [`blame`] tells what the fault was. The crate calls most of them PROTOCOL_ERROR;
//! its GOAWAY goes out with the code that RFC 9113 and RFC 7541 have for them, as Envoy's does.

pub(super) mod blame;
pub(super) mod frames;
mod huffman;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::frames::{Frames, Head};
use super::Settings;
use super::abuse::{Counts, Violation};
use super::wire::Streams;
use crate::http::Io;
use crate::http::conn::Conn;
use crate::net::turn::SHORT;
use crate::telemetry::stats::ClusterStats;
use crate::transport::CloseEvent;

/// What was seen on a connection, for whoever holds it.
#[derive(Debug, Default)]
pub struct Seen {
    /// The peer went too far: nothing more of it is read.
    pub violation: OnceLock<Violation>,
    /// The peer has said GOAWAY.
    pub going_away: AtomicBool,
    /// The peer has closed or reset the connection.
    pub closed: AtomicBool,
    /// So many bytes have come, and gone.
    pub read: AtomicU64,
    pub written: AtomicU64,
    /// What they were to each stream, where that is of interest.
    pub(super) streams: Option<Arc<Streams>>,
}

/// Which end of the connection is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Server,
    Client,
}

pub struct Watched {
    /// Whoever writes for all of a worker's tasks holds it for a moment, too.
    conn: Arc<Mutex<Conn>>,
    /// Its transport is none.
    raw: bool,
    /// Was read, and not handed over.
    waiting: Bytes,
    inbound: Frames,
    outbound: Frames,
    counts: Counts,
    end: End,
    seen: Arc<Seen>,
    traffic: Option<Arc<ClusterStats>>,
}

impl Watched {
    /// `early`: was read before the connection was known to be HTTP/2.
    pub fn new(mut io: Io, early: Bytes, end: End, settings: &Settings) -> Self {
        let seen = Arc::new(Seen {
            read: AtomicU64::new(early.len() as u64),
            streams: (settings.tallies || end == End::Client).then(Arc::default),
            ..Seen::default()
        });
        Self {
            raw: io.wire().is_raw(),
            conn: Arc::new(Mutex::new(Conn::new(io, Bytes::new()))),
            waiting: early,
            inbound: Frames::inbound(end == End::Server),
            outbound: Frames::outbound(end == End::Client),
            counts: Counts::new(settings, end),
            end,
            seen,
            traffic: settings.traffic.clone(),
        }
    }

    pub fn seen(&self) -> &Arc<Seen> {
        &self.seen
    }

    /// Of what waits, up to the end of a frame.
    fn hand_over(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        let most = self.waiting.len().min(buf.remaining());
        let Self { inbound, counts, seen, waiting, .. } = self;
        let n = inbound.step(waiting.get(..most).unwrap_or_default(), |head| received(counts, seen, head));
        buf.put_slice(&waiting.split_to(n));
        self.look();
        Ok(())
    }

    /// Of what was read into `buf` after `before`, up to the end of a frame; the rest waits.
    fn cut(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        let data = buf.filled().get(before..).unwrap_or_default();
        let Self { inbound, counts, seen, .. } = self;
        let n = inbound.step(data, |head| received(counts, seen, head));
        if let Some(rest) = data.get(n..).filter(|rest| !rest.is_empty()) {
            self.waiting = Bytes::copy_from_slice(rest);
        }
        buf.set_filled(before + n);
        self.look();
    }

    /// At trailers, whose pseudo-headers the crate would drop.
    fn look(&mut self) {
        if self.end == End::Server
            && self.counts.violation.is_none()
            && self.inbound.is_between()
            && let Some(head) = self.inbound.current()
            && blame::is_trailers(head, self.counts.place)
            && blame::has_pseudo(head, self.inbound.payload())
        {
            self.counts.refuse(Violation::Trailers);
        }
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.waiting.is_empty() {
            return Poll::Ready(self.hand_over(buf));
        }
        let before = buf.filled().len();
        let read = ready!(lock(&self.conn).poll_read(cx, buf));
        if read.is_err() || buf.filled().len() == before {
            self.seen.closed.store(true, Ordering::Relaxed);
        }
        let n = (buf.filled().len() - before) as u64;
        self.seen.read.fetch_add(n, Ordering::Relaxed);
        if let Some(traffic) = &self.traffic {
            traffic.upstream_cx_rx_bytes_total.add(n);
        }
        self.cut(buf, before);
        Poll::Ready(read)
    }

    /// What is short goes out when it is its turn. Of a transport each write is a record, and none should be for the head
    /// of a frame alone.
    fn poll_parts(&self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut conn = lock(&self.conn);
        // What has found no room goes first.
        ready!(conn.poll_flush(cx))?;
        if self.raw && parts.iter().map(|part| part.len()).sum::<usize>() > SHORT {
            ready!(conn.poll_send_now(cx))?;
            let mut some = parts.iter().filter(|part| !part.is_empty());
            let alone = some.next().filter(|_| some.next().is_none());
            return match alone.and_then(|alone| self.corrected(alone)) {
                Some(corrected) => conn.poll_write_vectored(cx, &[IoSlice::new(&corrected)]),
                None => conn.poll_write_vectored(cx, parts),
            };
        }
        let before = conn.output.len();
        let n = conn.gather(parts);
        if let Some(corrected) = self.corrected(conn.output.get(before..).unwrap_or_default()) {
            conn.output.truncate(before);
            conn.output.extend_from_slice(&corrected);
        }
        let sent = match self.counts.violation {
            // Who breaks the rules is told at once.
            Some(_) => conn.poll_send_now(cx),
            None => conn.poll_send(cx, || self.conn.clone()),
        };
        match sent {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // What has not gone out is in the buffer.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(n)),
        }
    }

    fn sent(&mut self, data: &[u8]) {
        let Self { outbound, counts, seen, traffic, .. } = self;
        outbound.feed(data, |head| {
            counts.sent(head);
            if let Some(streams) = &seen.streams {
                streams.sent(head);
            }
        });
        seen.written.fetch_add(data.len() as u64, Ordering::Relaxed);
        if let Some(traffic) = traffic {
            traffic.upstream_cx_tx_bytes_total.add(data.len() as u64);
        }
    }

    /// `data`, where it ends in a GOAWAY that blames the peer with a code that is too general.
    fn corrected(&self, data: &[u8]) -> Option<Vec<u8>> {
        let goaway = data.len().checked_sub(GOAWAY_LEN)?;
        let (before, last) = data.split_at(goaway);
        if !last.starts_with(&GOAWAY_HEAD) || !last.ends_with(&PROTOCOL_ERROR) {
            return None;
        }
        // Such bytes may be content as well.
        let mut outbound = self.outbound.clone();
        outbound.feed(before, |_| {});
        let reason = outbound.is_between().then(|| self.blame())??;
        let (code, mut corrected) = (u32::from(reason).to_be_bytes(), data.to_vec());
        corrected.truncate(data.len() - code.len());
        corrected.extend_from_slice(&code);
        Some(corrected)
    }

    fn blame(&self) -> Option<Reason> {
        let head = self.inbound.current().filter(|_| self.counts.violation.is_none())?;
        blame::reason(head, self.inbound.payload(), self.counts.place)
    }
}

fn received(counts: &mut Counts, seen: &Seen, head: Head) {
    counts.received(head, seen);
    if let Some(streams) = &seen.streams {
        streams.received(head);
    }
}

/// RFC 9113, 6.8, without debug data.
const GOAWAY_LEN: usize = 17;
const GOAWAY_HEAD: [u8; 9] = [0, 0, 8, 7, 0, 0, 0, 0, 0];
const PROTOCOL_ERROR: [u8; 4] = [0, 0, 0, 1];

fn lock(conn: &Mutex<Conn>) -> MutexGuard<'_, Conn> {
    conn.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Watched {
    fn drop(&mut self) {
        let remote = self.seen.closed.load(Ordering::Relaxed);
        lock(&self.conn).close(if remote { CloseEvent::Remote } else { CloseEvent::Local });
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.counts.violation.is_none() {
            let before = buf.filled().len();
            ready!(this.poll_bytes(cx, buf))?;
            if this.counts.violation.is_none() {
                return Poll::Ready(Ok(()));
            }
            buf.set_filled(before);
        }
        let Some(violation) = this.counts.violation else { return Poll::Pending };
        let _ = this.seen.violation.set(violation);
        match this.end {
            // Whoever polls the connection looks for it then, and says GOAWAY.
            End::Server => Poll::Pending,
            End::Client => Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, violation.name()))),
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(this.poll_parts(cx, parts))?;
        let mut left = written;
        for part in parts {
            let n = left.min(part.len());
            this.sent(part.get(..n).unwrap_or_default());
            left -= n;
        }
        Poll::Ready(Ok(written))
    }

    /// Told once, when the connection begins: the crate then copies less.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.conn).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.conn).poll_shutdown(cx)
    }
}

//! Both sides of a connection, as a driver speaks with them.

use std::borrow::Cow;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::timeout;

use super::{Leftover, Stop};
use crate::net::wire::Wire;
use crate::telemetry::{Bytes, Side};

/// Read at once.
const CHUNK: usize = 4096;

/// Said behind a wish for TLS, or beside the answer to it.
pub(super) const PLAINTEXT_BEHIND: &str = "unencrypted data after the switch to TLS was agreed on";

/// One side, and what it has said that nobody has taken yet.
pub(super) struct Half<'a> {
    pub(super) heard: Vec<u8>,
    pub(super) side: Side,
    wire: Wire<'a>,
    rx: &'a mut u64,
    tx: &'a mut u64,
}

pub(super) struct Dialogue<'a> {
    pub(super) down: Half<'a>,
    pub(super) up: Half<'a>,
    /// How long a TLS handshake may take.
    handshake: Duration,
}

impl<'a> Dialogue<'a> {
    pub(super) fn new(
        down: &'a mut Wire<'_>,
        up: &'a mut Wire<'_>,
        bytes: &'a mut Bytes,
        handshake: Duration,
    ) -> Self {
        let Bytes { downstream_rx, downstream_tx, upstream_rx, upstream_tx } = bytes;
        let half = |side, wire, rx, tx| Half { heard: Vec::new(), side, wire, rx, tx };
        let (down, up) = (borrowed(down), borrowed(up));
        Self {
            down: half(Side::Downstream, down, downstream_rx, downstream_tx),
            up: half(Side::Upstream, up, upstream_rx, upstream_tx),
            handshake,
        }
    }

    /// Waits for either side to say something.
    pub(super) async fn listen(&mut self) -> Result<Side, Stop> {
        poll_fn(|cx| {
            for half in [&mut self.down, &mut self.up] {
                if let Poll::Ready(heard) = half.poll_hear(cx) {
                    return Poll::Ready(half.spoke(heard).map(|()| half.side));
                }
            }
            Poll::Pending
        })
        .await
    }

    pub(super) async fn secure_downstream(&mut self) -> Result<(), Stop> {
        self.down.secure(self.handshake).await
    }

    pub(super) async fn secure_upstream(&mut self) -> Result<(), Stop> {
        self.up.secure(self.handshake).await
    }

    /// What was heard and not taken is the relay's.
    pub(super) fn leave(&mut self) -> Leftover {
        Leftover {
            to_upstream: std::mem::take(&mut self.down.heard),
            to_downstream: std::mem::take(&mut self.up.heard),
        }
    }
}

fn borrowed<'a>(wire: &'a mut Wire<'_>) -> Wire<'a> {
    Wire::new(wire.socket, wire.transport.as_deref_mut())
}

impl Half<'_> {
    /// More of what this side says: how much, and 0 at its end.
    pub(super) fn poll_hear(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Stop>> {
        let mut chunk = [0; CHUNK];
        let Ok(n) = ready!(self.wire.poll_read(cx, &mut chunk)) else {
            return Poll::Ready(Err(Stop::Gone(self.side)));
        };
        *self.rx += n as u64;
        self.heard.extend_from_slice(chunk.get(..n).unwrap_or_default());
        Poll::Ready(Ok(n))
    }

    pub(super) async fn hear(&mut self) -> Result<(), Stop> {
        let heard = poll_fn(|cx| self.poll_hear(cx)).await;
        self.spoke(heard)
    }

    /// In the middle of what a driver does, a side's end is everyone's.
    fn spoke(&self, heard: Result<usize, Stop>) -> Result<(), Stop> {
        if heard? == 0 { Err(Stop::Gone(self.side)) } else { Ok(()) }
    }

    /// Takes the first `len` bytes of what was heard.
    pub(super) fn take(&mut self, len: usize) -> Vec<u8> {
        let rest = self.heard.split_off(len.min(self.heard.len()));
        std::mem::replace(&mut self.heard, rest)
    }

    /// Some of `data`.
    pub(super) fn poll_say(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Stop>> {
        match ready!(self.wire.poll_write(cx, data)) {
            Ok(n) => {
                *self.tx += n as u64;
                Poll::Ready(Ok(n))
            }
            Err(_) => Poll::Ready(Err(Stop::Gone(self.side))),
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        self.wire.poll_flush(cx).map_err(|_| Stop::Gone(self.side))
    }

    /// All of `data`, on its way when this is done.
    pub(super) async fn say(&mut self, mut data: &[u8]) -> Result<(), Stop> {
        poll_fn(|cx| {
            while !data.is_empty() {
                let n = ready!(self.poll_say(cx, data))?;
                data = data.get(n..).unwrap_or_default();
            }
            self.poll_flush(cx)
        })
        .await
    }

    /// Refuses bytes behind what was taken, where TLS is to begin next.
    pub(super) fn expect_silence(&self) -> Result<(), Stop> {
        if self.heard.is_empty() {
            return Ok(());
        }
        Err(self.insecure(PLAINTEXT_BEHIND))
    }

    pub(super) fn insecure(&self, reason: impl Into<Cow<'static, str>>) -> Stop {
        Stop::Insecure { side: self.side, reason: reason.into() }
    }

    async fn secure(&mut self, limit: Duration) -> Result<(), Stop> {
        self.expect_silence()?;
        match timeout(limit, self.wire.secure()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(failure)) if failure.remote && failure.reason.is_empty() => Err(Stop::Gone(self.side)),
            Ok(Err(failure)) => Err(self.insecure(failure.reason)),
            Err(_) => Err(self.insecure("the TLS handshake took too long")),
        }
    }
}

//! `tcp_stats`: what the kernel knows of a connection (`TCP_INFO`), added up for its listener or cluster.
//!
//! It is asked every `update_period` while the connection lives, and once more at its end. Bytes and segments are
//! those on the wire: with what an inner TLS adds, with headers before it, with what was sent again.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use proxy_config::model::transport as model;
use tokio::time::{Sleep, sleep_until};

use super::tls::CertificateSet;
use super::{CloseEvent, Env, Factory, Failure, Link, NotReady, TlsInfo, Transport};
use crate::clock;
use crate::net::socket::Socket;
use crate::secret::Slot;
use crate::sys::tcp_info::TcpInfo;
use crate::telemetry::stats::{Counter, Share, stats_block};

stats_block! {
    /// `listener.<address>.` or `cluster.<name>.`
    pub struct TcpSocketStats in "tcp_stats" {
        counter cx_tx_segments;
        counter cx_rx_segments;
        counter cx_tx_data_segments;
        counter cx_rx_data_segments;
        counter cx_tx_retransmitted_segments;
        counter cx_rx_bytes_received;
        counter cx_tx_bytes_sent;
        gauge cx_tx_unsent_bytes;
        gauge cx_tx_unacked_segments;
        histogram cx_tx_percent_retransmitted_segments;
        histogram cx_rtt_us;
        histogram cx_rtt_variance_us;
    }
}

pub struct TcpStats {
    update_period: Option<Duration>,
    stats: Arc<TcpSocketStats>,
    inner: Arc<dyn Factory>,
}

impl TcpStats {
    pub fn new(model: &model::TcpStats, inner: Arc<dyn Factory>, prefix: &Arc<str>, env: &Env) -> Self {
        Self { update_period: model.update_period, stats: env.stats.block(prefix.clone()), inner }
    }
}

impl Factory for TcpStats {
    fn create(&self, link: &Link<'_>) -> Result<Box<dyn Transport>, NotReady> {
        let inner = self.inner.create(link)?;
        Ok(Box::new(Measured::new(self.update_period, &self.stats, inner)))
    }

    fn is_of_one_client(&self) -> bool {
        self.inner.is_of_one_client()
    }

    fn secrets(&self, found: &mut Vec<Arc<Slot>>) {
        self.inner.secrets(found);
    }

    fn certificates(&self, found: &mut Vec<CertificateSet>) {
        self.inner.certificates(found);
    }
}

struct Measured {
    account: Account,
    timer: Option<Timer>,
    inner: Box<dyn Transport>,
}

impl Measured {
    fn new(update_period: Option<Duration>, stats: &Arc<TcpSocketStats>, inner: Box<dyn Transport>) -> Self {
        Self { account: Account::new(stats), timer: update_period.map(Timer::new), inner }
    }

    /// Asks the kernel where it is time to. Whatever else the task waits for, it is woken for the next time, too: a
    /// connection without traffic is in a call of [`Transport::poll_read`] or [`Transport::poll_ready`].
    fn tick(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) {
        if let Some(timer) = &mut self.timer
            && timer.poll(cx).is_ready()
        {
            self.account.take(socket);
        }
    }
}

impl Transport for Measured {
    fn poll_ready(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<Result<(), Failure>> {
        self.tick(cx, socket);
        self.inner.poll_ready(cx, socket)
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.tick(cx, socket);
        self.inner.poll_read(cx, socket, buf)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.tick(cx, socket);
        self.inner.poll_write(cx, socket, data)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        self.tick(cx, socket);
        self.inner.poll_flush(cx, socket)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        self.tick(cx, socket);
        self.inner.poll_shutdown(cx, socket)
    }

    fn start_secure(&mut self) -> bool {
        self.inner.start_secure()
    }

    fn tls(&self) -> Option<&Arc<TlsInfo>> {
        self.inner.tls()
    }

    fn closed(&mut self, socket: Socket<'_>, by: CloseEvent) {
        self.timer = None;
        self.account.take(socket);
        self.account.end();
        self.inner.closed(socket, by);
    }
}

/// When the kernel is asked next.
struct Timer {
    period: Duration,
    /// From the first call on: a timer needs the runtime that it is polled on.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    fn new(period: Duration) -> Self {
        Self { period, sleep: None }
    }

    /// Ready once for each period; leaves the task's waker for the next.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let next = || clock::now() + self.period;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(next())));
        if sleep.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        sleep.as_mut().reset(next());
        if sleep.as_mut().poll(cx).is_ready() {
            // A period so short that it is over already: the task's other work comes in between.
            cx.waker().wake_by_ref();
        }
        Poll::Ready(())
    }
}

/// What of a connection is in the statistics already.
struct Account {
    stats: Arc<TcpSocketStats>,
    last: TcpInfo,
    unsent: Share<TcpSocketStats>,
    unacked: Share<TcpSocketStats>,
}

impl Account {
    fn new(stats: &Arc<TcpSocketStats>) -> Self {
        Self {
            stats: stats.clone(),
            last: TcpInfo::default(),
            unsent: Share::new(stats, |stats| &stats.cx_tx_unsent_bytes),
            unacked: Share::new(stats, |stats| &stats.cx_tx_unacked_segments),
        }
    }

    /// A unix socket has no such facts.
    fn take(&mut self, socket: Socket<'_>) {
        match TcpInfo::of(&socket) {
            Ok(info) => self.add(info),
            Err(error) => log::debug!("TCP_INFO: {error}"),
        }
    }

    fn add(&mut self, now: TcpInfo) {
        let (stats, last) = (&self.stats, std::mem::replace(&mut self.last, now));
        let sent = now.data_segs_out.saturating_sub(last.data_segs_out);
        if sent > 0
            && let Some(again) = now.total_retrans.checked_sub(last.total_retrans)
        {
            let millionths = u64::from(again) * 1_000_000 / u64::from(sent);
            stats.cx_tx_percent_retransmitted_segments.record_millionths(millionths);
        }
        for (counter, now, last) in [
            (&stats.cx_tx_segments, now.segs_out, last.segs_out),
            (&stats.cx_rx_segments, now.segs_in, last.segs_in),
            (&stats.cx_tx_data_segments, now.data_segs_out, last.data_segs_out),
            (&stats.cx_rx_data_segments, now.data_segs_in, last.data_segs_in),
            (&stats.cx_tx_retransmitted_segments, now.total_retrans, last.total_retrans),
        ] {
            // The kernel's own counters go round at 2^32.
            grow(counter, now.wrapping_sub(last).into());
        }
        grow(&stats.cx_rx_bytes_received, now.bytes_received.saturating_sub(last.bytes_received));
        grow(&stats.cx_tx_bytes_sent, now.bytes_sent.saturating_sub(last.bytes_sent));
        self.unsent.set(now.notsent_bytes.into());
        self.unacked.set(now.unacked.into());
        stats.cx_rtt_us.record(now.rtt.into());
        stats.cx_rtt_variance_us.record(now.rttvar.into());
    }

    /// Nothing is on its way any more, whatever the kernel said last.
    fn end(&mut self) {
        self.unsent.set(0);
        self.unacked.set(0);
    }
}

/// A counter that has not moved stays unused.
fn grow(counter: &Counter, by: u64) {
    if by > 0 {
        counter.add(by);
    }
}

#[cfg(test)]
mod tests;

//! An open tunnel: bytes both ways, until both ends have closed, one has failed, or a limit is reached.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Version};
use http_body::Frame;
use tokio::io::Interest;
use tokio::time::sleep_until;

use super::Tunnel;
use super::open::Opened;
use crate::clock::{self, Instant};
use crate::cluster::Host;
use crate::http::pool::Attached;
use crate::http::raw::{Passed, Raw};
use crate::http::{Body, Progress, Reset, ResetReason, Upload};
use crate::net::conn::reset_on_close;
use crate::net::copy::End;
use crate::net::timers::{Limits, Moved, Timers};
use crate::network::tcp_proxy::{TcpProxy, buffers_used, least, outcome};
use crate::network::{self, Conn, Verdict};
use crate::telemetry::stats::{ClusterStats, TcpStats};
use crate::telemetry::{Bytes as Counted, ConnRecord, Outcome, Side};

pub(super) async fn run(
    conn: &mut Conn<'_>,
    proxy: &TcpProxy,
    tunnel: &Tunnel,
    (opened, client): (Box<Opened>, Raw),
    deadline: Option<Instant>,
) -> Outcome {
    let Opened { cluster, host, body, upload, attached, progress, .. } = *opened;
    let model = &cluster.model;
    let buffer = least([conn.listener.buffer_limit, model.per_connection_buffer_limit_bytes]);
    let limits = proxy.limits(deadline, conn.record.report_every(), buffer);
    let closes = model.close_connections_on_host_health_failure
        || model.common_lb.close_connections_on_host_set_change;
    buffers_used(&cluster.stats, &proxy.stats);
    let mut relay = Relay {
        client,
        body,
        upload,
        first: None,
        trailers: None,
        passed: Passed::default(),
        carried: (0, 0),
        progress: &progress,
        cluster: &cluster.stats,
        tcp: &proxy.stats,
    };
    let end = carry(conn, &mut relay, &limits, closes.then_some(&host)).await;
    if let Some(trailers) = relay.trailers.take() {
        tunnel.note_trailers(&trailers, &mut conn.record.entry);
    }
    settle(conn, proxy, (relay, attached), &end);
    match end {
        End::Refused(close) => Box::pin(network::refuse(conn, close)).await,
        end @ (End::Closed(_)
        | End::Failed { .. }
        | End::Idle(_)
        | End::MaxDuration
        | End::HostFailed
        | End::Cut) => outcome(&end, proxy),
    }
}

/// Until the tunnel ends, or something ends it.
async fn carry(conn: &mut Conn<'_>, relay: &mut Relay<'_>, limits: &Limits, host: Option<&Arc<Host>>) -> End {
    let (guard, stream) = (conn.guard, conn.stream);
    let mut timers = Timers::new(limits, clock::now());
    let mut sleep = pin!(timers.next().map(sleep_until));
    let mut failed = host.map(|host| Box::pin(host.closing()));
    // A client that is not read because nobody takes what it says may go all the same.
    let mut gone = Box::pin(stream.ready(Interest::ERROR));
    poll_fn(|cx| {
        if let Poll::Ready(Verdict::Close(close)) = relay.poll_gates(conn, cx) {
            return Poll::Ready(End::Refused(close));
        }
        let polled = relay.poll(cx, conn.gates.is_none());
        let moved = relay.account(conn.record);
        if polled.is_ready() {
            return polled;
        }
        if gone.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Failed { side: Side::Downstream, error: broken() });
        }
        if let Some(sleep) = sleep.as_mut().as_pin_mut()
            && let Poll::Ready(end) = timers.poll(sleep, moved, cx, |due| due.tell(conn.record))
        {
            return Poll::Ready(end);
        }
        if let Some(failed) = &mut failed
            && failed.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(End::HostFailed);
        }
        guard.poll_cut(cx).map(|()| End::Cut)
    })
    .await
}

/// Both sides are told how it ended: the exchange first, then its client's connection.
fn settle(conn: &Conn<'_>, proxy: &TcpProxy, (relay, mut attached): (Relay<'_>, Attached), end: &End) {
    // No one may take a broken stream for a complete one.
    let cut = matches!(end, End::Cut) && conn.guard.resets();
    if cut || matches!(end, End::Failed { side: Side::Upstream, .. } | End::HostFailed) {
        reset_on_close(conn.stream);
    }
    let http2 = attached.life().version == Version::HTTP_2;
    match end {
        End::Closed(first) => {
            attached.complete();
            if *first == Side::Upstream {
                proxy.stats.upstream_flush_total.inc();
            }
        }
        End::Failed { side: Side::Upstream, .. } => {
            attached.broke(&Reset::new(Side::Upstream, ResetReason::ConnectionTermination, ""));
        }
        End::Failed { .. } if http2 => relay.cluster.upstream_rq_tx_reset.inc(),
        End::Idle(_) => relay.cluster.upstream_cx_idle_timeout.inc(),
        End::Failed { .. } | End::Refused(_) | End::MaxDuration | End::HostFailed | End::Cut => {}
    }
}

struct Relay<'a> {
    client: Raw,
    body: Body,
    /// None: it has come to its end.
    upload: Option<Upload>,
    /// Who ended first.
    first: Option<Side>,
    trailers: Option<HeaderMap>,
    passed: Passed,
    /// To and from the upstream.
    carried: (u64, u64),
    progress: &'a Progress,
    cluster: &'a ClusterStats,
    tcp: &'a TcpStats,
}

impl Relay<'_> {
    /// Asks the gatekeepers once the client's first bytes or its FIN have come.
    fn poll_gates(&mut self, conn: &mut Conn<'_>, cx: &mut Context<'_>) -> Poll<Verdict> {
        let Some(gates) = conn.gates else { return Poll::Ready(Verdict::Continue) };
        if self.client.poll_first(cx).is_pending() {
            return Poll::Pending;
        }
        conn.gates = None;
        Poll::Ready(gates.on_first_byte(&mut conn.record.entry.facts))
    }

    fn poll(&mut self, cx: &mut Context<'_>, judged: bool) -> Poll<End> {
        if judged
            && let Some(upload) = &mut self.upload
            && let Poll::Ready(done) = upload.as_mut().poll(cx)
        {
            self.upload = None;
            if let Err(reset) = done
                && reset.side == Side::Downstream
            {
                return Poll::Ready(End::Failed { side: Side::Downstream, error: broken() });
            }
        }
        let Self { client, body, trailers, .. } = self;
        let keep = |frame: &Frame<Bytes>| {
            if let Some(found) = frame.trailers_ref() {
                *trailers = Some(found.clone());
            }
        };
        let told = client.poll_tell(cx, body, keep);
        if self.first.is_none() {
            let ended = if self.client.has_ended() { Some(Side::Downstream) } else { None };
            self.first = ended.or_else(|| matches!(told, Poll::Ready(Ok(()))).then_some(Side::Upstream));
        }
        match told {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(reset)) => {
                let side = if reset.side == Side::Downstream { Side::Downstream } else { Side::Upstream };
                Poll::Ready(End::Failed { side, error: broken() })
            }
            Poll::Ready(Ok(())) if self.upload.is_some() => Poll::Pending,
            Poll::Ready(Ok(())) => Poll::Ready(End::Closed(self.first.unwrap_or(Side::Downstream))),
        }
    }

    /// Adds what moved since the last time to the record and to the stats.
    fn account(&mut self, record: &mut ConnRecord) -> Moved {
        let load = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
        let progress = self.progress;
        let sent = load(&progress.request_head) + load(&progress.request_body);
        let received = load(&progress.response_head) + load(&progress.response_body);
        let passed = self.client.passed();
        let before = std::mem::replace(&mut self.passed, passed);
        let (sent_before, received_before) = std::mem::replace(&mut self.carried, (sent, received));
        record.entry.bytes = Counted {
            downstream_rx: passed.read,
            downstream_tx: passed.written,
            upstream_tx: sent,
            upstream_rx: received,
        };
        self.tcp.downstream_cx_rx_bytes_total.add(passed.read - before.read);
        self.tcp.downstream_cx_tx_bytes_total.add(passed.written - before.written);
        if progress.wire().is_none() {
            self.cluster.upstream_cx_tx_bytes_total.add(sent - sent_before);
            self.cluster.upstream_cx_rx_bytes_total.add(received - received_before);
        }
        Moved { downstream: passed != before, upstream: (sent, received) != (sent_before, received_before) }
    }
}

fn broken() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

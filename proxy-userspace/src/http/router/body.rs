//! What is left of an exchange once its response's head is on its way: watched to its end, and counted.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::charge::Origin;
use super::reply::{self, Broken};
use super::retry::grpc_to_http;
use super::tally::Tallies;
use super::timeouts::{Alarm, Reached};
use super::tunnel::Hold;
use super::upstream_log::Line;
use crate::clock;
use crate::cluster::{Cluster, Event, Host};
use crate::http::hcm::HttpStats;
use crate::http::{Body, Progress, Reset, ResetReason};
use crate::telemetry::{Flags, Side};

/// A response's body, and what waits for its end.
pub(super) struct Watched {
    inner: Body,
    alarm: Alarm,
    ledger: Option<Ledger>,
}

/// Who is told how an exchange ends.
pub(super) struct Ledger {
    pub(super) cluster: Arc<Cluster>,
    pub(super) host: Arc<Host>,
    /// Of the client's connection manager.
    pub(super) stats: Option<Arc<HttpStats>>,
    pub(super) origin: Origin,
    /// None: nothing is counted by codes.
    pub(super) dynamic: bool,
    pub(super) tallies: Tallies,
    /// A gRPC status is still to come, in trailers.
    pub(super) grpc: bool,
    pub(super) hold: Hold,
    /// For the log of requests upstream.
    pub(super) line: Option<Box<Line>>,
}

impl Watched {
    pub(super) fn over(inner: Body, alarm: Alarm, ledger: Ledger) -> Body {
        Body::stream(Self { inner, alarm, ledger: Some(ledger) })
    }

    fn broken(&mut self, reset: Reset) -> Reset {
        // What it holds goes before anybody is told.
        self.inner = Body::empty();
        match self.ledger.take() {
            Some(ledger) => ledger.broken(reset, self.alarm.progress()),
            None => reset,
        }
    }

    fn late(&mut self, reached: Reached) -> Reset {
        self.inner = Body::empty();
        if let Some(ledger) = self.ledger.take() {
            ledger.late(reached, self.alarm.progress());
        }
        Reset::new(Side::Upstream, ResetReason::ConnectionTimeout, details(reached))
    }
}

/// Of the cluster's `max_stream_duration`; the flag is UMSDR.
pub const STREAM_DURATION: &str = "upstream_max_stream_duration_reached";

/// `%RESPONSE_CODE_DETAILS%`.
pub(super) fn details(reached: Reached) -> &'static str {
    match reached {
        Reached::Global => "response_timeout",
        Reached::PerTry => "upstream_per_try_timeout",
        Reached::PerTryIdle => "upstream_per_try_idle_timeout",
        Reached::Stream => STREAM_DURATION,
    }
}

impl Ledger {
    /// All of the response is there.
    pub(super) fn complete(mut self, alarm: &Alarm, trailers: Option<u32>) {
        self.hold.complete();
        if alarm.complete().is_none() {
            self.hold.cut(alarm.progress());
        }
        if self.grpc {
            let code = trailers.map_or(500, grpc_to_http);
            self.cluster.report(&self.host, Event::Status(code));
        }
        if self.dynamic
            && let Some(complete) = alarm.complete()
        {
            let took = clock::lately().saturating_duration_since(complete);
            self.cluster.pools().codes().time(took, self.origin);
            self.tallies.time(took);
        }
        self.bytes(alarm.progress());
        self.log(Flags::NONE, alarm.progress());
    }

    fn broken(mut self, reset: Reset, progress: &Arc<Progress>) -> Reset {
        self.bytes(progress);
        self.hold.broke(&reset);
        if reset.side == Side::Downstream {
            self.log(Flags::DC, progress);
            return reset;
        }
        self.log(reply::flags(reset.reason), progress);
        self.cluster.report(&self.host, Event::RequestFailed);
        self.count_late();
        let broken = Broken { reset, local: false };
        let details = reply::details("upstream_reset_after_response_started", &broken);
        Reset { details, ..broken.reset }
    }

    fn late(mut self, reached: Reached, progress: &Arc<Progress>) {
        self.bytes(progress);
        self.log(if reached == Reached::Stream { Flags::UMSDR } else { Flags::UT }, progress);
        self.count_late();
        let stats = &self.cluster.stats;
        match reached {
            Reached::Global => {
                stats.upstream_rq_timeout.inc();
                self.tallies.each(|stats| stats.upstream_rq_timeout.inc());
            }
            Reached::PerTry => stats.upstream_rq_per_try_timeout.inc(),
            Reached::PerTryIdle => stats.upstream_rq_per_try_idle_timeout.inc(),
            Reached::Stream => stats.upstream_rq_max_duration_reached.inc(),
        }
    }

    /// Envoy counts those whose gRPC status was still to come.
    fn count_late(&self) {
        if self.grpc
            && let Some(stats) = &self.stats
        {
            self.host.stats.rq_error.inc();
            stats.rq_reset_after_downstream_response_started.inc();
        }
    }

    fn log(&mut self, flags: Flags, progress: &Arc<Progress>) {
        if let Some(line) = self.line.take() {
            line.write(flags, Some(progress));
        }
    }

    fn bytes(&self, progress: &Progress) {
        bytes(&self.cluster, progress);
    }
}

/// What went over the connection. One of many streams has counted that by itself.
pub(super) fn bytes(cluster: &Cluster, progress: &Progress) {
    if progress.wire().is_some() {
        return;
    }
    let sum = |counts: [&AtomicU64; 3]| counts.into_iter().map(|count| count.load(Ordering::Relaxed)).sum();
    let sent = [&progress.request_head, &progress.request_body, &progress.request_framing];
    cluster.stats.upstream_cx_tx_bytes_total.add(sum(sent));
    let received = [&progress.response_head, &progress.response_body, &progress.response_framing];
    cluster.stats.upstream_cx_rx_bytes_total.add(sum(received));
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        let this = self.get_mut();
        match this.inner.poll(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.alarm.moved();
                if this.inner.is_end()
                    && let Some(ledger) = this.ledger.take()
                {
                    let status = frame.trailers_ref().and_then(super::retry::grpc_status);
                    this.inner = Body::empty();
                    ledger.complete(&this.alarm, status);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(reset))) => Poll::Ready(Some(Err(this.broken(reset)))),
            Poll::Ready(None) => {
                this.inner = Body::empty();
                if let Some(ledger) = this.ledger.take() {
                    ledger.complete(&this.alarm, None);
                }
                Poll::Ready(None)
            }
            Poll::Pending if this.ledger.is_some() => match this.alarm.poll(cx) {
                Poll::Ready(reached) => Poll::Ready(Some(Err(this.late(reached)))),
                Poll::Pending => Poll::Pending,
            },
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.inner)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Whoever wanted it has gone: first the connection, then what is told of it.
        if let Some(mut ledger) = self.ledger.take() {
            self.inner = Body::empty();
            ledger.bytes(self.alarm.progress());
            ledger.log(Flags::DC, self.alarm.progress());
        }
    }
}

//! What may end a stream while it is being served: its client, its limits in time, the end of a drain.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::StatusCode;
use proxy_config::model::http::hcm::HcmTimeouts;
use rand::RngExt as _;

use super::Peer;
use super::alarm::Alarm;
use super::meter::Meter;
use super::periodic::Periodic;
use crate::clock::{self, Instant};
use crate::drain::Guard;
use crate::http::hcm::HttpStats;
use crate::http::{Hcm, LocalReply, Reset};
use crate::telemetry::Flags;
use crate::telemetry::stats::Held;

/// Why a stream does not go on.
#[derive(Debug)]
pub(super) enum Broken {
    /// The client has gone, or has reset the stream.
    Gone(Reset),
    Expired(Expiry),
    /// The deadline of a drain has passed.
    Cut,
    /// What makes the response has failed, and there is nothing to say about it.
    Reset(Reset),
}

/// A limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expiry {
    Headers,
    Request,
    Idle,
    Duration,
    /// The response is complete, and its client does not take what is left of it.
    Flush,
}

impl Expiry {
    pub(super) fn count(self, stats: &HttpStats) {
        match self {
            Self::Headers => stats.downstream_rq_header_timeout.inc(),
            Self::Request => stats.downstream_rq_timeout.inc(),
            Self::Idle => stats.downstream_rq_idle_timeout.inc(),
            Self::Duration => stats.downstream_rq_max_duration_reached.inc(),
            // The codec's own.
            Self::Flush => {}
        }
    }

    pub(super) fn flags(self) -> Flags {
        match self {
            Self::Idle => Flags::SI,
            Self::Headers | Self::Request | Self::Duration | Self::Flush => Flags::NONE,
        }
    }

    /// In Envoy's words, as the reply's.
    pub(super) fn details(self) -> &'static str {
        match self {
            Self::Headers => "request_header_timeout",
            Self::Request => "request_overall_timeout",
            Self::Idle | Self::Flush => "stream_idle_timeout",
            Self::Duration => "max_duration_timeout",
        }
    }

    /// `complete`: the request has come as a whole, so that the client is not to blame.
    pub(super) fn reply(self, complete: bool) -> LocalReply {
        let status = if complete { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT };
        let text = match self {
            Self::Headers => "request header timeout",
            Self::Request => "request timeout",
            Self::Idle | Self::Flush => "stream timeout",
            Self::Duration => "downstream duration timeout",
        };
        let mut reply = LocalReply::new(status, text, self.flags(), self.details());
        if self == Self::Duration {
            // DEADLINE_EXCEEDED.
            reply.grpc_status = Some(4);
        }
        reply
    }
}

/// The limits of one stream in time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    /// Nothing of a message has passed.
    pub(super) idle: Option<Duration>,
    /// In place of `idle`, once all of the response is on its way.
    pub(super) flush: Option<Duration>,
    /// By when the request is to be complete.
    pub(super) request: Option<Instant>,
    pub(super) end: Option<Instant>,
}

/// Where a stream stands, for its limits.
pub(super) struct Standing<'a> {
    pub(super) limits: Limits,
    /// The last thing that is known of without the meter.
    pub(super) mark: Instant,
    /// None: the request is complete, and nothing of the response is on its way.
    pub(super) meter: Option<&'a Meter>,
    /// All of the response is here, and on its way.
    pub(super) buffered: bool,
}

impl Standing<'_> {
    fn ends(&self) -> [(Option<Instant>, Expiry); 3] {
        let moved = self.meter.map_or(self.mark, |meter| meter.moved().max(self.mark));
        let incomplete = self.meter.is_some_and(|meter| meter.complete().is_none());
        [
            (self.limits.end, Expiry::Duration),
            (self.limits.request.filter(|_| incomplete), Expiry::Request),
            if self.buffered || self.meter.is_some_and(Meter::is_buffered) {
                (self.limits.flush.and_then(|flush| moved.checked_add(flush)), Expiry::Flush)
            } else {
                (self.limits.idle.and_then(|idle| moved.checked_add(idle)), Expiry::Idle)
            },
        ]
    }

    fn next(&self) -> Option<Instant> {
        self.ends().into_iter().filter_map(|(at, _)| at).min()
    }

    fn reached(&self, now: Instant) -> Option<Expiry> {
        self.ends().into_iter().find_map(|(at, expiry)| (at? <= now).then_some(expiry))
    }
}

/// Whether a connection takes more requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// Until then, for those that are on their way.
    Draining(Instant),
    Closing,
}

/// Of a connection that has one stream after another, or of one stream beside others.
pub(super) struct Watch<'a> {
    pub(super) alarm: Alarm,
    /// None: the connection's task looks after it.
    pub(super) guard: Option<&'a Guard>,
    pub(super) phase: Phase,
    /// It was noticed between two requests that the connection is to drain: no response says so yet.
    pub(super) untold: bool,
    /// The next response is the connection's last one, and until then there is no hurry.
    pub(super) soft: Option<Held<HttpStats>>,
    /// Lines about the stream that is served.
    pub(super) periodic: Option<Periodic>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(guard: Option<&'a Guard>) -> Self {
        Self { alarm: Alarm::default(), guard, phase: Phase::Open, untold: false, soft: None, periodic: None }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.guard.is_some_and(Guard::is_draining)
    }

    pub(super) fn drain(&mut self, timeouts: &HcmTimeouts) {
        if self.phase == Phase::Open {
            let jitter = timeouts.drain_jitter.unwrap_or(0.0).max(0.0) / 100.0;
            let time = timeouts.drain.mul_f64(1.0 + rand::rng().random_range(0.0..=jitter));
            self.phase = Phase::Draining(clock::now() + time);
        }
    }

    /// A response is about to go out: whether it is the connection's last one.
    pub(super) fn closing(&mut self, hcm: &Hcm) -> bool {
        let leaving = self.guard.is_some() && hcm.prepared.is_failing();
        if self.phase == Phase::Open && (leaving || self.is_draining()) {
            hcm.stats.downstream_cx_drain_close.inc();
            self.drain(&hcm.model.timeouts);
        } else if std::mem::take(&mut self.untold) {
            hcm.stats.downstream_cx_drain_close.inc();
        }
        self.phase != Phase::Open || self.soft.is_some()
    }

    /// Has `work` done, which is pinned by who makes it for its size, unless something ends the stream before. `peer` is watched where `work` does not.
    pub(super) async fn over<F: Future, P: Peer>(
        &mut self,
        mut work: Pin<&mut F>,
        mut peer: Option<&mut P>,
        standing: &Standing<'_>,
    ) -> Result<F::Output, Broken> {
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            if let Some(peer) = &mut peer
                && let Poll::Ready(reset) = peer.poll_gone(cx)
            {
                return Poll::Ready(Err(Broken::Gone(reset)));
            }
            self.poll(cx, standing).map(Err)
        })
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>, standing: &Standing<'_>) -> Poll<Broken> {
        if self.guard.is_some_and(|guard| guard.poll_cut(cx).is_ready()) {
            return Poll::Ready(Broken::Cut);
        }
        loop {
            let line = self.periodic.as_ref().map(Periodic::next);
            let next = standing.next().into_iter().chain(line).min();
            ready!(self.alarm.poll(next, cx));
            let now = clock::now();
            if let Some(expiry) = standing.reached(now) {
                return Poll::Ready(Broken::Expired(expiry));
            }
            if let Some(periodic) = &mut self.periodic {
                periodic.tick(now, standing.meter);
            }
        }
    }
}

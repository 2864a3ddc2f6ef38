//! A client's connection by HTTP/2: streams side by side, each in a task on the connection's worker.
//!
//! The connection's task moves its bytes, brings its streams, and knows when it has to end; what a stream does, and how
//! long it may take, is the stream's own task's.

use std::future::poll_fn;
use std::mem::take;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;

use super::active::Active;
use super::alarm::Alarm;
use super::hands::Hands;
use super::watch::{Broken, Expiry, Phase, Watch};
use super::{Peer, Served, closed, finish};
use crate::clock::{self, Instant};
use crate::http::h2::{Responder, Server, reason_of};
use crate::http::router::Timer;
use crate::http::{Body, ConnCx, Io, Request, Reset, ResetReason, ResponseHead, Sent};
use crate::telemetry::{Flags, Outcome, Side};

/// How often the end of a drain is looked for, where streams take longer than that.
const LOOK: Duration = Duration::from_secs(1);

impl Peer for Responder {
    const HTTP1: bool = false;

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Reset> {
        Self::poll_gone(self, cx)
    }

    fn inform(&mut self, head: &ResponseHead) {
        Self::inform(self, head);
    }

    async fn respond(
        &mut self,
        head: &ResponseHead,
        body: Body,
        _: bool,
        sent: &mut Sent,
    ) -> Result<(), Reset> {
        Self::respond(self, head, body, sent).await
    }
}

/// How a connection ends.
enum End {
    /// In good order, by either side.
    Done(Side),
    Broken(Reset),
    /// Of a client that has not even said its preface in time.
    Late,
    Cut,
}

pub(super) async fn serve(served: &mut Served<'_>, io: Io, early: Bytes) -> Outcome {
    let secure = served.cx.connection.facts.tls.is_some();
    let settings = served.cx.hcm.prepared.http2(secure);
    let end = match start(served, Server::start(io, early, settings)).await {
        Ok(server) => Connection::new(served, server).run().await,
        Err(end) => end,
    };
    conclude(served, end)
}

/// The preface has to come in the time of a request's head.
async fn start(
    served: &Served<'_>,
    work: impl Future<Output = Result<Server, Reset>>,
) -> Result<Server, End> {
    let mut watch = Watch::new(Some(served.guard));
    let limit = served.cx.hcm.model.timeouts.request_headers;
    let until = limit.and_then(|limit| clock::now().checked_add(limit));
    let mut work = pin!(work);
    poll_fn(|cx| {
        if let Poll::Ready(started) = work.as_mut().poll(cx) {
            return Poll::Ready(started.map_err(End::Broken));
        }
        if served.guard.poll_cut(cx).is_ready() {
            return Poll::Ready(Err(End::Cut));
        }
        ready!(watch.alarm.poll(until, cx));
        Poll::Ready(Err(End::Late))
    })
    .await
}

struct Connection<'a, 'g> {
    served: &'a mut Served<'g>,
    server: Server,
    watch: Watch<'g>,
    /// `max_connection_duration`.
    ends: Option<Instant>,
    requests: u32,
    last: Arc<Last>,
    hands: Arc<Hands<Work>>,
}

/// Boxed: it passes through several hands.
type Work = Box<(Request, Responder)>;

/// When the last stream ended.
struct Last {
    since: Instant,
    nanos: AtomicU64,
}

impl Last {
    fn now(&self) {
        let nanos = clock::now().saturating_duration_since(self.since).as_nanos();
        self.nanos.store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn at(&self) -> Instant {
        self.since + Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }
}

enum Next {
    Stream(Work),
    End(End),
}

impl<'a, 'g> Connection<'a, 'g> {
    fn new(served: &'a mut Served<'g>, server: Server) -> Self {
        let ends = super::deadline(&served.cx.hcm.model.common);
        let watch = Watch::new(Some(served.guard));
        let last = Arc::new(Last { since: clock::now(), nanos: AtomicU64::default() });
        Self { served, server, watch, ends, requests: 0, last, hands: Arc::default() }
    }

    async fn run(mut self) -> End {
        let end = loop {
            match poll_fn(|cx| self.poll(cx)).await {
                Next::Stream(stream) => self.spawn(stream),
                Next::End(end) => break end,
            }
        };
        self.count();
        self.served.account.streams = self.server.streams();
        if let End::Broken(_) | End::Cut = &end {
            self.farewell(&end).await;
        }
        end
    }

    /// Its bytes until now.
    fn count(&mut self) {
        let seen = self.server.seen();
        let (read, written) = (seen.read.load(Ordering::Relaxed), seen.written.load(Ordering::Relaxed));
        self.served.account.passed(read, written);
    }

    /// What is still to be said goes out, if it can at once.
    async fn farewell(&mut self, end: &End) {
        if let End::Cut = end {
            self.server.abort(::h2::Reason::NO_ERROR);
        }
        poll_fn(|cx| {
            let _ = self.server.poll_next(cx);
            Poll::Ready(())
        })
        .await;
        self.count();
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let next = self.server.poll_next(cx);
        self.count();
        match next {
            Poll::Ready(Some(Ok(stream))) => return Poll::Ready(Next::Stream(Box::new(stream))),
            Poll::Ready(Some(Err(reset))) => return Poll::Ready(Next::End(End::Broken(reset))),
            Poll::Ready(None) => {
                let side = if self.watch.phase == Phase::Open { Side::Downstream } else { Side::Internal };
                return Poll::Ready(Next::End(End::Done(side)));
            }
            Poll::Pending => {}
        }
        if self.served.guard.poll_cut(cx).is_ready() {
            return Poll::Ready(Next::End(End::Cut));
        }
        let failing = self.requests > 0 && self.served.cx.hcm.prepared.is_failing();
        if self.watch.phase == Phase::Open && (failing || self.watch.is_draining()) {
            self.served.account.stats.downstream_cx_drain_close.inc();
            self.drain(cx);
        }
        self.poll_limits(cx).map(Next::End)
    }

    fn drain(&mut self, cx: &mut Context<'_>) {
        if self.watch.phase == Phase::Open {
            let hcm = self.served.cx.hcm.clone();
            self.watch.drain(&hcm.model.timeouts);
            self.server.goaway();
            // So that it is written.
            cx.waker().wake_by_ref();
        }
    }

    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let (at, limit) = self.next();
            ready!(self.watch.alarm.poll(at, cx));
            let stats = self.served.account.stats.clone();
            match limit {
                Limit::Look => {}
                Limit::Drained if self.server.streams() == 0 => {
                    return Poll::Ready(End::Done(Side::Internal));
                }
                Limit::Drained => self.watch.phase = Phase::Closing,
                Limit::Idle => {
                    stats.downstream_cx_idle_timeout.inc();
                    self.drain(cx);
                }
                Limit::Duration => {
                    stats.downstream_cx_max_duration_reached.inc();
                    self.ends = None;
                    self.drain(cx);
                }
            }
        }
    }

    fn next(&self) -> (Option<Instant>, Limit) {
        let now = clock::now();
        match self.watch.phase {
            Phase::Draining(until) => return (Some(until), Limit::Drained),
            Phase::Closing if self.server.streams() == 0 => return (Some(now), Limit::Drained),
            Phase::Closing => return (now.checked_add(LOOK), Limit::Look),
            Phase::Open => {}
        }
        let idle = self.served.cx.hcm.model.common.idle_timeout;
        let (since, limit) = if self.server.streams() == 0 {
            (self.last.at(), Limit::Idle)
        } else {
            // Nobody tells when they have ended.
            (now, Limit::Look)
        };
        let idle = idle.and_then(|idle| since.checked_add(idle));
        match (self.ends, idle) {
            (Some(ends), Some(idle)) if ends <= idle => (Some(ends), Limit::Duration),
            (ends, None) => (ends, Limit::Duration),
            (_, idle) => (idle, limit),
        }
    }

    fn spawn(&mut self, work: Work) {
        let hcm = &self.served.cx.hcm;
        hcm.stats.downstream_rq_http2_total.inc();
        self.served.account.requests += 1;
        self.requests = self.requests.saturating_add(1);
        if hcm.model.common.max_requests_per_connection.is_some_and(|most| self.requests >= most) {
            hcm.stats.downstream_cx_max_requests_reached.inc();
            if self.watch.phase == Phase::Open {
                self.watch.drain(&hcm.model.timeouts);
                self.server.goaway();
            }
        }
        if let Err(first) = self.hands.give(work) {
            let cx = self.served.cx.clone();
            let tasks = &self.served.cx.shared().tasks;
            tasks.spawn_on(cx.worker, "stream", streams(cx, first, self.hands.clone(), self.last.clone()));
        }
    }
}

impl Drop for Connection<'_, '_> {
    fn drop(&mut self) {
        self.hands.close();
    }
}

/// One after the other, for as long as there are any.
async fn streams(cx: Arc<ConnCx>, first: Work, hands: Arc<Hands<Work>>, last: Arc<Last>) {
    let (mut next, mut timers) = (Some(first), Timers::default());
    while let Some(work) = next.take() {
        stream(&cx, work, &mut timers, &last).await;
        next = hands.wait(&mut timers.own).await;
    }
}

/// What a task keeps from one stream to the next.
#[derive(Default)]
struct Timers {
    own: Alarm,
    router: Timer,
}

async fn stream(cx: &Arc<ConnCx>, work: Work, timers: &mut Timers, last: &Last) {
    let (request, mut responder) = *work;
    let mut active = Active::new(cx, request);
    active.stream.timer = timers.router.take();
    let mut watch = Watch { alarm: take(&mut timers.own), ..Watch::new(None) };
    let result = active.serve(&mut responder, &mut watch).await;
    (timers.own, timers.router) = (watch.alarm, active.stream.timer.take());
    if let Err(broken) = &result {
        if let Broken::Expired(Expiry::Flush) = broken {
            let secure = cx.connection.facts.tls.is_some();
            cx.hcm.prepared.http2(secure).stats.tx_flush_timeout.inc();
        }
        let reason = match broken {
            Broken::Reset(reset) => Some(reason_of(reset)),
            Broken::Expired(_) => Some(::h2::Reason::INTERNAL_ERROR),
            Broken::Cut => Some(::h2::Reason::NO_ERROR),
            Broken::Gone(_) => None,
        };
        if let Some(reason) = reason {
            responder.reset(reason);
        }
    }
    if cx.hcm.prepared.logs_wire && active.sent.complete {
        // What was handed over last goes out meanwhile: the connection's task is before this one in the queue, and waits
        // for its turn once.
        for _ in 0..2 {
            tokio::task::yield_now().await;
        }
    }
    active.sent.wire = responder.wire();
    drop(responder);
    last.now();
    finish::run(active, result.as_ref().err());
}

#[derive(Clone, Copy)]
enum Limit {
    /// Whether something has come to an end.
    Look,
    Idle,
    Duration,
    Drained,
}

fn conclude(served: &mut Served<'_>, end: End) -> Outcome {
    let account = &served.account;
    let outcome = match end {
        End::Done(side) => closed(side, "closed"),
        End::Late => closed(Side::Internal, "request_header_timeout"),
        End::Cut => closed(Side::Internal, "drain_timeout"),
        End::Broken(reset) if reset.reason == ResetReason::Protocol => {
            account.stats.downstream_cx_protocol_error.inc();
            Outcome::new(Side::Internal, Flags::DPE, reset.details)
        }
        End::Broken(reset) => Outcome::new(reset.side, Flags::NONE, reset.details),
    };
    account.ended(outcome.side, account.streams);
    outcome
}

//! A client's connection by HTTP/1: one stream after another.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method};
use proxy_config::model::http::hcm;

use super::active::{Active, After};
use super::watch::{Broken, Expiry, Phase, Watch};
use super::{Peer, Served, closed, finish};
use crate::clock::{self, Instant};
use crate::http::h1::{BadRequest, Server};
use crate::http::router::Timer;
use crate::http::{Body, Io, LocalReply, Request, RequestHead, Reset, ResetReason, ResponseHead, Sent};
use crate::net::conn::reset_on_close;
use crate::net::socket::Socket;
use crate::telemetry::stats::Held;
use crate::telemetry::{Flags, Outcome, Side};
use crate::transport::CloseEvent;

impl Peer for Server {
    const HTTP1: bool = true;

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Reset> {
        pin!(self.gone()).poll(cx)
    }

    fn inform(&mut self, head: &ResponseHead) {
        Self::inform(self, head);
    }

    async fn respond(
        &mut self,
        head: &ResponseHead,
        body: Body,
        close: bool,
        sent: &mut Sent,
    ) -> Result<(), Reset> {
        Self::respond(self, head, body, close, sent).await
    }
}

/// How a connection ends.
enum End {
    /// By the client.
    Gone,
    /// By the proxy, all being well.
    Close(&'static str),
    /// In the middle of a message.
    Broken(&'static str),
    /// The deadline of a drain has passed.
    Cut,
}

pub(super) async fn serve(served: &mut Served<'_>, io: Io, early: Bytes) -> Outcome {
    let secure = served.cx.connection.facts.tls.is_some();
    let settings = served.cx.hcm.prepared.http1(secure);
    let mut connection = Connection::new(served, Server::new(io, early, settings));
    let end = connection.run().await;
    connection.close(end).await
}

struct Connection<'a, 'g> {
    served: &'a mut Served<'g>,
    server: Server,
    watch: Watch<'g>,
    /// `max_connection_duration`.
    ends: Option<Instant>,
    requests: u32,
    active: usize,
    /// The router's, between two requests.
    timer: Timer,
}

/// What comes next on a connection.
#[expect(
    clippy::large_enum_variant,
    reason = "the large one comes with each request, and a box would cost each"
)]
enum Next {
    Request(Request),
    Bad(BadRequest),
    /// The head of a request has not come in time.
    Late(Expiry),
    /// The client has gone; `begun`: with half a head.
    Gone {
        begun: bool,
    },
    End(End),
}

impl<'a, 'g> Connection<'a, 'g> {
    fn new(served: &'a mut Served<'g>, server: Server) -> Self {
        let ends = super::deadline(&served.cx.hcm.model.common);
        let watch = Watch::new(Some(served.guard));
        Self { served, server, watch, ends, requests: 0, active: 0, timer: None }
    }

    async fn run(&mut self) -> End {
        loop {
            let end = match self.next().await {
                Next::Request(request) => self.exchange(request).await,
                Next::Bad(bad) => Some(self.bad(bad).await),
                Next::Late(expiry) => Some(self.late(expiry).await),
                Next::Gone { begun: true } => Some(self.half()),
                Next::Gone { begun: false } => Some(End::Gone),
                Next::End(end) => Some(end),
            };
            self.served.account.passed(self.server.read(), self.server.written());
            if let Some(end) = end {
                return end;
            }
        }
    }

    async fn next(&mut self) -> Next {
        let (mut idle_since, mut begun) = (clock::lately(), None);
        poll_fn(|cx| {
            let next = pin!(self.server.next()).poll(cx);
            match next {
                Poll::Ready(Ok(Some(request))) => return Poll::Ready(Next::Request(request)),
                Poll::Ready(Ok(None)) => {
                    return Poll::Ready(Next::Gone { begun: begun.is_some() || self.server.started() });
                }
                Poll::Ready(Err(bad)) => return Poll::Ready(Next::Bad(bad)),
                Poll::Pending => {}
            }
            if begun.is_none() && self.server.started() {
                begun = Some(clock::lately());
            }
            if let Some(end) = self.poll_idle(cx, &mut idle_since, begun) {
                return Poll::Ready(end);
            }
            Poll::Pending
        })
        .await
    }

    /// Limits that hold between requests, and while a head comes.
    fn poll_idle(
        &mut self,
        cx: &mut Context<'_>,
        idle_since: &mut Instant,
        begun: Option<Instant>,
    ) -> Option<Next> {
        if self.served.guard.poll_cut(cx).is_ready() {
            return Some(Next::End(End::Cut));
        }
        let hcm = self.served.cx.hcm.clone();
        loop {
            if self.watch.is_draining() {
                self.watch.untold |= self.watch.phase == Phase::Open;
                self.watch.drain(&hcm.model.timeouts);
            }
            let limits = self.limits(&hcm.model, *idle_since, begun);
            let next = limits.iter().filter_map(|(at, _)| *at).min();
            if self.watch.alarm.poll(next, cx).is_pending() {
                return None;
            }
            let now = clock::now();
            let reached = limits.into_iter().find(|(at, _)| at.is_some_and(|at| at <= now));
            match reached.map(|(_, limit)| limit) {
                Some(Limit::Expiry(expiry)) => return Some(Next::Late(expiry)),
                Some(Limit::Drained) => {
                    return Some(Next::End(End::Close("drained")));
                }
                Some(Limit::Idle) => {
                    hcm.stats.downstream_cx_idle_timeout.inc();
                    *idle_since = now;
                    self.watch.drain(&hcm.model.timeouts);
                }
                Some(Limit::Duration) => self.outlived(&hcm),
                None => {}
            }
        }
    }

    fn outlived(&mut self, hcm: &crate::http::Hcm) {
        hcm.stats.downstream_cx_max_duration_reached.inc();
        self.ends = None;
        if hcm.model.http1_safe_max_connection_duration {
            let soft = Held::new(&hcm.stats, |s| &s.downstream_cx_http1_soft_drain);
            self.watch.soft = Some(soft);
        } else {
            self.watch.drain(&hcm.model.timeouts);
        }
    }

    fn limits(
        &self,
        model: &hcm::Hcm,
        idle_since: Instant,
        begun: Option<Instant>,
    ) -> [(Option<Instant>, Limit); 7] {
        let after = |since: Option<Instant>, limit: Option<std::time::Duration>| since?.checked_add(limit?);
        let timeouts = &model.timeouts;
        let drained = match (self.watch.phase, begun) {
            (Phase::Draining(until), None) => Some(until),
            (Phase::Closing, None) => Some(idle_since),
            (Phase::Open, _) | (_, Some(_)) => None,
        };
        let open = self.watch.phase == Phase::Open;
        let idle = if begun.is_none() && open { Some(idle_since) } else { None };
        [
            (after(begun, timeouts.request_headers), Limit::Expiry(Expiry::Headers)),
            (after(begun, timeouts.request), Limit::Expiry(Expiry::Request)),
            (after(begun, timeouts.stream_idle), Limit::Expiry(Expiry::Idle)),
            (after(begun, model.common.max_stream_duration), Limit::Expiry(Expiry::Duration)),
            (drained, Limit::Drained),
            (self.ends.filter(|_| open), Limit::Duration),
            (after(idle, model.common.idle_timeout), Limit::Idle),
        ]
    }

    /// None: another request may follow.
    async fn exchange(&mut self, request: Request) -> Option<End> {
        let hcm = self.served.cx.hcm.clone();
        hcm.stats.downstream_rq_http1_total.inc();
        self.count();
        if self.watch.phase == Phase::Open && self.ends.is_some_and(|ends| ends <= clock::now()) {
            self.outlived(&hcm);
        }
        let mut active = Active::new(&self.served.cx, request);
        active.stream.timer = self.timer.take();
        let result = active.serve(&mut self.server, &mut self.watch).await;
        self.timer = active.stream.timer.take();
        self.watch.periodic = None;
        finish::run(active, result.as_ref().err());
        self.after(result)
    }

    /// A stream begins.
    fn count(&mut self) {
        let hcm = &self.served.cx.hcm;
        self.active = 1;
        self.served.account.requests += 1;
        self.requests = self.requests.saturating_add(1);
        if hcm.model.common.max_requests_per_connection.is_some_and(|most| self.requests >= most) {
            hcm.stats.downstream_cx_max_requests_reached.inc();
            self.watch.phase = Phase::Closing;
        }
    }

    fn after(&mut self, result: Result<After, Broken>) -> Option<End> {
        match result {
            Ok(after) => {
                self.active = 0;
                let keeps = after == After::Keep && self.server.reusable();
                (!keeps).then_some(End::Close("connection_close"))
            }
            Err(Broken::Gone(reset)) if reset.reason == ResetReason::Protocol => {
                self.served.account.stats.downstream_cx_protocol_error.inc();
                Some(End::Broken("downstream_protocol_error"))
            }
            Err(Broken::Gone(_)) => Some(End::Gone),
            Err(Broken::Expired(expiry)) => {
                // The stream is no more when its connection goes.
                self.active = 0;
                Some(End::Broken(expiry.details()))
            }
            Err(Broken::Reset(_)) => {
                self.active = 0;
                Some(End::Broken("stream_reset"))
            }
            Err(Broken::Cut) => Some(End::Cut),
        }
    }

    /// The head cannot be understood: as in Envoy that is a stream, of a request that nothing is known of.
    async fn bad(&mut self, bad: BadRequest) -> End {
        self.served.account.stats.downstream_cx_protocol_error.inc();
        let text = bad.status.canonical_reason().unwrap_or_default();
        self.refuse(LocalReply::new(bad.status, text, Flags::DPE, bad.details)).await
    }

    async fn late(&mut self, expiry: Expiry) -> End {
        expiry.count(&self.served.account.stats);
        self.refuse(expiry.reply(false)).await
    }

    async fn refuse(&mut self, reply: LocalReply) -> End {
        let mut active = self.unknown();
        let result = active.refuse(reply, &mut self.server, &mut self.watch).await;
        finish::run(active, result.as_ref().err());
        self.after(result).unwrap_or(End::Close("refused"))
    }

    /// A client that has gone in the middle of a head.
    fn half(&mut self) -> End {
        let active = self.unknown();
        let details = "downstream_remote_disconnect";
        let reset = Reset::new(Side::Downstream, ResetReason::ConnectionTermination, details);
        finish::run(active, Some(&Broken::Gone(reset)));
        End::Gone
    }

    fn unknown(&mut self) -> Active {
        self.served.cx.hcm.stats.downstream_rq_http1_total.inc();
        self.count();
        // Nothing is known: a log has `-` for each of them.
        let method = Method::from_bytes(b"-").unwrap_or_default();
        let head = RequestHead { headers: HeaderMap::new(), ..RequestHead::new(method, "-", "") };
        let request = Request { head, body: Body::empty() };
        Active::partial(&self.served.cx, request)
    }

    async fn close(mut self, end: End) -> Outcome {
        let (mut side, details) = match &end {
            End::Gone => (Side::Downstream, "downstream_closed"),
            End::Close(details) | End::Broken(details) => (Side::Internal, *details),
            End::Cut => (Side::Internal, "drain_timeout"),
        };
        match end {
            End::Gone => {}
            End::Close(_) => side = self.delay().await,
            End::Broken(_) => self.reset(),
            // An idle connection loses nothing.
            End::Cut if self.active == 0 || !self.served.guard.resets() => {}
            End::Cut => self.reset(),
        }
        let by = if side == Side::Downstream { CloseEvent::Remote } else { CloseEvent::Local };
        self.server.closed(by);
        self.served.account.ended(side, self.active);
        self.served.account.passed(self.server.read(), self.server.written());
        closed(side, details)
    }

    /// A response that has not come as a whole may not look as if it had.
    fn reset(&self) {
        self.server.with_io(|io| {
            if let Socket::Tcp(socket) = io.socket() {
                reset_on_close(socket);
            }
        });
    }

    /// Leaves the client the time to read, and to close by itself. Says who closes.
    async fn delay(&mut self) -> Side {
        let limit = self.served.cx.hcm.model.timeouts.delayed_close;
        let until = clock::now().checked_add(limit.unwrap_or_default());
        let (guard, stats) = (self.served.guard, self.served.account.stats.clone());
        let (server, alarm) = (&mut self.server, &mut self.watch.alarm);
        let work = async {
            if server.shutdown().await.is_ok() {
                server.drain().await;
            }
        };
        let mut work = pin!(work);
        poll_fn(|cx| {
            if work.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Side::Downstream);
            }
            if guard.poll_cut(cx).is_ready() {
                return Poll::Ready(Side::Internal);
            }
            if alarm.poll(until, cx).is_pending() {
                return Poll::Pending;
            }
            if limit.is_some() {
                stats.downstream_cx_delayed_close_timeout.inc();
            }
            Poll::Ready(Side::Internal)
        })
        .await
    }
}

#[derive(Clone, Copy)]
enum Limit {
    Expiry(Expiry),
    Idle,
    Duration,
    Drained,
}

//! A stream while it is served, whatever the protocol: from its request's head until its last line is written.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use http::header::EXPECT;
use http::{HeaderValue, Method, StatusCode};

use super::exchange::{self, Chain, Upgrade};
use super::meter::Meter;
use super::periodic::Periodic;
use super::watch::{Broken, Limits, Standing, Watch};
use super::{Peer, finish, limits, local_reply, outbound, traced};
use crate::clock::{self, Instant};
use crate::http::filter::Stop;
use crate::http::hcm::HttpStats;
use crate::http::router::Made;
use crate::http::{
    Body, ConnCx, Hcm, LocalReply, Request, RequestHead, Reset, ResetReason, ResponseHead, Sent, Stream,
    Upload,
};
use crate::telemetry::stats::Held;
use crate::telemetry::{Flags, LogType, Side};

pub(super) struct Active {
    pub(super) stream: Stream,
    pub(super) chain: Chain,
    pub(super) sent: Sent,
    pub(super) meter: Option<Arc<Meter>>,
    pub(super) limits: Limits,
    /// Its connection serves no other, where streams have one of their own.
    close: bool,
    /// Its request will never be complete: it was not understood, or did not come.
    partial: bool,
    /// The last thing that has happened to it, but for its bodies.
    pub(super) mark: Instant,
    /// 1xx of the upstream, to be told to the client.
    interims: Option<Interims>,
    _counted: Held<HttpStats>,
    /// An upgrade that was let through.
    upgraded: Option<Held<HttpStats>>,
}

type Interims = Arc<Mutex<Vec<ResponseHead>>>;

/// What becomes of a stream's connection, where streams have one of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    Keep,
    Close,
}

impl Active {
    pub(super) fn new(cx: &Arc<ConnCx>, request: Request) -> Self {
        let Request { head, body } = request;
        let stats = &cx.hcm.stats;
        stats.downstream_rq_total.inc();
        let counted = Held::new(stats, |s| &s.downstream_rq_active);
        let mut stream = Stream::new(cx.clone(), head, Body::empty());
        let start = stream.start.at;
        let meter = if body.is_stream() {
            let meter = Arc::new(Meter::new(start));
            stream.request_body = meter.request(body);
            Some(meter)
        } else {
            // It is here already.
            let http = stream.http_mut();
            http.request_body = body.exact_len().unwrap_or(0);
            http.request_complete = Some(start);
            stream.request_body = body;
            None
        };
        let mut active = Self {
            stream,
            chain: Chain::new(),
            sent: Sent::default(),
            meter,
            limits: Limits::default(),
            close: false,
            partial: false,
            mark: start,
            interims: None,
            _counted: counted,
            upgraded: None,
        };
        active.limits = active.first_limits(start);
        active
    }

    /// Those of the connection manager, until the route is known.
    pub(super) fn first_limits(&self, start: Instant) -> Limits {
        let model = &self.stream.conn.hcm.model;
        Limits {
            idle: model.timeouts.stream_idle,
            flush: model.timeouts.stream_flush,
            request: model.timeouts.request.and_then(|limit| start.checked_add(limit)),
            end: model.common.max_stream_duration.and_then(|limit| start.checked_add(limit)),
        }
    }

    /// Of a request that is not complete, and will not be.
    pub(super) fn partial(cx: &Arc<ConnCx>, request: Request) -> Self {
        Self { partial: true, ..Self::new(cx, request) }
    }

    /// The request is complete.
    pub(super) fn is_complete(&self) -> bool {
        // What the codec would have found is not in Envoy.
        let understood = !self.partial && !self.stream.entry.outcome.flags.contains(Flags::DPE);
        understood && self.meter.as_ref().is_none_or(|meter| meter.complete().is_some())
    }

    /// Serves it to its end. An error: the client has no response, or not all of it.
    pub(super) async fn serve<P: Peer>(
        &mut self,
        peer: &mut P,
        watch: &mut Watch<'_>,
    ) -> Result<After, Broken> {
        self.expect(peer);
        let (upgrade, begun) = exchange::begin(&mut self.stream, &mut self.chain);
        self.begun(upgrade);
        watch.periodic = Periodic::new(&self.stream);
        match begun {
            Ok(()) => self.request(peer, watch).await?,
            Err(Stop::Reply(reply)) => local_reply::make(&mut self.stream, *reply),
            Err(Stop::Reset(reset)) => return Err(Broken::Reset(reset)),
        }
        self.respond(peer, watch).await
    }

    /// The route is known, if there is one.
    fn begun(&mut self, upgrade: Upgrade) {
        let stats = &self.stream.conn.hcm.stats;
        match upgrade {
            Upgrade::None => {}
            Upgrade::Taken => {
                stats.downstream_cx_upgrades_total.inc();
                self.upgraded = Some(Held::new(stats, |s| &s.downstream_cx_upgrades_active));
            }
            // What follows may be of another protocol, and no request at all.
            Upgrade::Refused => self.close = true,
        }
        limits::of_route(&mut self.limits, &self.stream, self.stream.start.at);
        if self.stream.conn.hcm.model.flush_access_log_on_new_request {
            finish::interim(&mut self.stream, LogType::DownstreamStart);
        }
    }

    /// Answers without asking anybody: a request that cannot be understood, or that has not come in time.
    pub(super) async fn refuse<P: Peer>(
        &mut self,
        reply: LocalReply,
        peer: &mut P,
        watch: &mut Watch<'_>,
    ) -> Result<After, Broken> {
        self.close = true;
        local_reply::make(&mut self.stream, reply);
        self.respond(peer, watch).await
    }

    /// `Expect: 100-continue` is the manager's own to answer, unless upstreams are asked.
    fn expect(&mut self, peer: &mut impl Peer) {
        if self.stream.conn.hcm.model.proxy_100_continue {
            let interims = Interims::default();
            let queue = interims.clone();
            self.interims = Some(interims);
            self.stream.interim = Some(Box::new(move |head| {
                queue.lock().unwrap_or_else(PoisonError::into_inner).push(head);
            }));
            return;
        }
        let expects = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        let headers = &mut self.stream.request_mut().headers;
        if headers.get(EXPECT).is_some_and(expects) {
            headers.remove(EXPECT);
            let head = ResponseHead::new(StatusCode::CONTINUE);
            finish::charge(&self.stream.conn.hcm, head.status.as_u16());
            peer.inform(&head);
        }
    }

    async fn request<P: Peer>(&mut self, peer: &mut P, watch: &mut Watch<'_>) -> Result<(), Broken> {
        loop {
            let stop = match self.pass(peer, watch).await? {
                Ok(Made::Response) => return Ok(()),
                Ok(Made::Redirect) => {
                    let begun = self.again();
                    watch.periodic = Periodic::new(&self.stream);
                    match begun {
                        Ok(()) => continue,
                        Err(stop) => stop,
                    }
                }
                Err(stop) => stop,
            };
            return self.stopped::<P>(stop);
        }
    }

    /// Once through the filters and the router.
    async fn pass<P: Peer>(
        &mut self,
        peer: &mut P,
        watch: &mut Watch<'_>,
    ) -> Result<Result<Made, Stop>, Broken> {
        let Self { stream, chain, limits, mark, interims, meter, .. } = self;
        let standing = Standing { limits: *limits, mark: *mark, meter: meter.as_deref(), buffered: false };
        let made = match interims {
            None => watch.over(pin!(exchange::request(stream, chain)), Some(peer), &standing).await,
            Some(interims) => {
                let hcm = stream.conn.hcm.clone();
                let mut telling = Telling { peer, interims, hcm: &hcm };
                watch.over(pin!(exchange::request(stream, chain)), Some(&mut telling), &standing).await
            }
        };
        self.tell(peer);
        match made {
            Ok(made) => Ok(made),
            Err(Broken::Expired(expiry)) => {
                expiry.count(&self.stream.conn.hcm.stats);
                Ok(Err(expiry.reply(self.is_complete()).into()))
            }
            Err(broken @ (Broken::Gone(_) | Broken::Cut | Broken::Reset(_))) => Err(broken),
        }
    }

    fn stopped<P: Peer>(&mut self, stop: Stop) -> Result<(), Broken> {
        match stop {
            Stop::Reply(reply) => local_reply::make(&mut self.stream, *reply),
            Stop::Reset(reset) => {
                let reply = local_reply::to_broken_body(&reset).filter(|_| P::HTTP1);
                let Some(reply) = reply else {
                    let gone = reset.side == Side::Downstream;
                    return Err(if gone { Broken::Gone(reset) } else { Broken::Reset(reset) });
                };
                self.close = true;
                local_reply::make(&mut self.stream, reply);
            }
        }
        Ok(())
    }

    fn tell(&self, peer: &mut impl Peer) {
        if let Some(interims) = &self.interims {
            tell(peer, interims, &self.stream.conn.hcm);
        }
    }

    async fn respond<P: Peer>(&mut self, peer: &mut P, watch: &mut Watch<'_>) -> Result<After, Broken> {
        self.mark = clock::lately();
        let Self { stream, chain, limits, mark, meter, .. } = self;
        let standing = Standing { limits: *limits, mark: *mark, meter: meter.as_deref(), buffered: false };
        let passed = watch.over(pin!(exchange::response(stream, chain)), Some(peer), &standing).await?;
        passed.map_err(Broken::Reset)?;
        outbound::finish(&mut self.stream);
        if let Some(periodic) = &mut watch.periodic {
            periodic.look(&self.stream);
        }
        self.send(peer, watch).await
    }

    async fn send<P: Peer>(&mut self, peer: &mut P, watch: &mut Watch<'_>) -> Result<After, Broken> {
        let complete = self.is_complete();
        let Self { stream, limits, mark, meter, sent, close, upgraded, .. } = self;
        let mut body = stream.response_body.take();
        let upload = stream.upload.take();
        let buffered = !body.is_stream();
        if !buffered {
            let meter = meter.get_or_insert_with(|| {
                let http = stream.http();
                let received = (http.request_body, http.request_trailers);
                let whole = complete.then(|| http.request_complete.unwrap_or(stream.start.at));
                Arc::new(Meter::behind(stream.start.at, received, whole))
            });
            body = meter.response(body);
        }
        let hcm = stream.conn.hcm.clone();
        let stats = &hcm.stats;
        if !complete {
            stats.downstream_rq_response_before_rq_complete.inc();
        }
        let Some(head) = stream.response() else { return Err(Broken::Reset(outbound::no_response())) };
        finish::charge(&stream.conn.hcm, head.status.as_u16());
        traced::charge(stream);
        let agreed = head.status.is_success() || head.status == StatusCode::SWITCHING_PROTOCOLS;
        if agreed && upgraded.is_some() && stream.conn.hcm.model.flush_log_on_tunnel_successfully_established
        {
            finish::interim(stream, LogType::DownstreamTunnelSuccessfullyEstablished);
        }
        let Some(head) = stream.response() else { return Err(Broken::Reset(outbound::no_response())) };
        // As Envoy: something was wrong with the message, and who knows where the next one begins.
        let bad = P::HTTP1
            && stream.local_reply
            && head.status == StatusCode::BAD_REQUEST
            && !stream.conn.hcm.model.http1.stream_error_on_invalid_http_message;
        let refused = P::HTTP1 && upgraded.is_some() && is_refused(stream.request(), head);
        let close = watch.closing(&stream.conn.hcm) || *close || bad || refused;
        let standing = Standing { limits: *limits, mark: *mark, meter: meter.as_deref(), buffered };
        let work = pin!(both_ways(peer.respond(head, body, close, sent), upload));
        let written = watch.over::<_, P>(work, None, &standing).await;
        match written {
            // As Envoy: of HTTP/1, what was upgraded ends with the client's end of it.
            Ok(Ok(()))
                if P::HTTP1
                    && upgraded.is_some()
                    && head.status == StatusCode::SWITCHING_PROTOCOLS
                    && meter.as_ref().is_some_and(|meter| meter.complete().is_some()) =>
            {
                Err(Broken::Gone(Reset::new(
                    Side::Downstream,
                    ResetReason::ConnectionTermination,
                    "downstream_remote_disconnect",
                )))
            }
            Ok(Ok(())) => Ok(if close { After::Close } else { After::Keep }),
            Ok(Err(reset)) if reset.side == Side::Downstream => Err(Broken::Gone(reset)),
            Ok(Err(reset)) => Err(Broken::Reset(reset)),
            Err(broken) => {
                if let Broken::Expired(expiry) = &broken {
                    expiry.count(stats);
                }
                Err(broken)
            }
        }
    }
}

/// Nobody has agreed to an upgrade, whose bytes may follow all the same.
fn is_refused(request: &RequestHead, head: &ResponseHead) -> bool {
    request.method != Method::CONNECT && head.status != StatusCode::SWITCHING_PROTOCOLS
}

/// A tunnel's other direction goes on beside the response, and after it.
async fn both_ways(
    responding: impl Future<Output = Result<(), Reset>>,
    upload: Option<Upload>,
) -> Result<(), Reset> {
    let Some(mut upload) = upload else { return responding.await };
    let mut responding = pin!(responding);
    let (mut sent, mut responded) = (false, false);
    poll_fn(|cx| {
        if !sent {
            match upload.as_mut().poll(cx) {
                Poll::Pending => {}
                Poll::Ready(Err(reset)) if reset.side == Side::Downstream => return Poll::Ready(Err(reset)),
                // An upstream that takes no more may still have something to say.
                Poll::Ready(Ok(()) | Err(_)) => sent = true,
            }
        }
        if !responded {
            ready!(responding.as_mut().poll(cx))?;
            responded = true;
        }
        if sent { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

fn tell(peer: &mut impl Peer, interims: &Interims, hcm: &Hcm) {
    let heads = std::mem::take(&mut *interims.lock().unwrap_or_else(PoisonError::into_inner));
    for head in heads {
        finish::charge(hcm, head.status.as_u16());
        peer.inform(&head);
    }
}

/// A client that is told what the upstream says before its response.
struct Telling<'a, P> {
    peer: &'a mut P,
    interims: &'a Interims,
    hcm: &'a Hcm,
}

impl<P: Peer> Peer for Telling<'_, P> {
    const HTTP1: bool = P::HTTP1;

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Reset> {
        tell(self.peer, self.interims, self.hcm);
        self.peer.poll_gone(cx)
    }

    fn inform(&mut self, head: &ResponseHead) {
        self.peer.inform(head);
    }

    async fn respond(
        &mut self,
        head: &ResponseHead,
        body: Body,
        close: bool,
        sent: &mut Sent,
    ) -> Result<(), Reset> {
        self.peer.respond(head, body, close, sent).await
    }
}

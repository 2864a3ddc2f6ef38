//! A request on its way: to a host, by a connection, again if need be, until there is a response.

mod pick;
mod verdict;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, StatusCode};
use proxy_config::model::http::RouteAction;
use proxy_config::model::http::filters::Router;

use super::Made;
use super::body::{self, Ledger, Watched};
use super::charge::{self, Origin};
use super::mirror;
use super::replay::{Payload, Replay};
use super::reply::{self, Broken};
use super::retry::{Retry, grpc_status};
use super::tally::Tallies;
use super::timeouts::{Alarm, Reached, Timeouts};
use super::tunnel::{self, Hold};
use super::upstream_log::Line;
use super::wishes;
use crate::clock;
use crate::cluster::{Cluster, Host, Overflow};
use crate::http::filter::Stop;
use crate::http::message::number;
use crate::http::pool::{Caller, Demand, Failed, Life, Refused};
use crate::http::{
    Body, Hcm, LocalReply, Observer, Progress, RequestHead, Reset, ResetReason, Response, ResponseHead,
    Routed, Stream, route,
};
use crate::telemetry::Side;
use crate::transport::Names;

const ATTEMPTS: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const IS_TIMEOUT_RETRY: HeaderName = HeaderName::from_static("x-envoy-is-timeout-retry");
const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

pub(super) struct Forward<'a> {
    stream: &'a mut Stream,
    hcm: &'a Arc<Hcm>,
    router: Option<&'a Router>,
    routed: &'a Arc<Routed>,
    action: &'a RouteAction,
    tallies: Tallies,
    cluster: &'a Arc<Cluster>,
    retry: Option<Box<Retry>>,
    alarm: Alarm,
    hash: Option<u64>,
    /// Whom the upstream's TLS is asked for.
    names: Option<Names>,
    attempts: u32,
    /// The last attempt has taken too long.
    timed_out: bool,
    /// This attempt's begin.
    begun: clock::Instant,
    /// Hosts of former attempts, where some are to be avoided.
    tried: Vec<SocketAddr>,
    started: clock::Instant,
}

/// An attempt without a response.
enum End {
    Broken {
        broken: Broken,
        sent: bool,
    },
    Late(Reached),
    /// The client's own doing.
    Client(Reset),
}

impl<'a> Forward<'a> {
    pub(super) fn new(
        stream: &'a mut Stream,
        hcm: &'a Arc<Hcm>,
        router: Option<&'a Router>,
        (routed, action, tallies): (&'a Arc<Routed>, &'a RouteAction, Tallies),
        cluster: &'a Arc<Cluster>,
    ) -> Self {
        Self {
            alarm: Alarm::new(Timeouts::default(), None),
            started: clock::lately(),
            hash: None,
            names: None,
            retry: None,
            attempts: 0,
            timed_out: false,
            begun: clock::lately(),
            tried: Vec::new(),
            stream,
            hcm,
            router,
            routed,
            action,
            tallies,
            cluster,
        }
    }

    pub(super) async fn run(&mut self) -> Result<Made, Stop> {
        let upstream = &mut self.stream.entry.upstream;
        upstream.cluster = Some(self.cluster.model.name.clone());
        // Envoy counts the first from the start.
        upstream.attempts = 1;
        upstream.cluster_model = Some(self.cluster.model.clone());
        if self.cluster.drop_overload().is_some() {
            return Err(self.refuse(reply::drop_overload()));
        }
        self.hash = self.routed.hash(self.stream);
        let mut host = self.host()?;
        let mut source = self.prepare();
        loop {
            let Some(body) = source.next() else { return Err(self.exhausted()) };
            self.begin(&host);
            self.trace();
            match self.attempt(&host, body).await {
                Ok((response, hold)) if self.judge(&response, &host, &source) => {
                    self.retried(response, hold);
                }
                Ok((response, hold)) if self.follows(&response, &source) => {
                    self.redirected(response, hold);
                    return Ok(Made::Redirect);
                }
                Ok((response, hold)) => {
                    self.respond(response, hold, host);
                    return Ok(Made::Response);
                }
                Err(End::Client(reset)) => return Err(reset.into()),
                Err(End::Late(reached)) => self.late(reached, &host, &source)?,
                Err(End::Broken { broken, sent }) => self.broke(broken, sent, &host, &source)?,
            }
            self.pause().await?;
            host = self.host()?;
        }
    }

    /// What is done once, before the first attempt.
    fn prepare(&mut self) -> Payload {
        let (routed, action, router) = (self.routed, self.action, self.router);
        let host = routed.host();
        let settings = self.cluster.pools().settings();
        let of_cluster = self.cluster.model.http.as_ref().and_then(|http| http.retry_policy.as_ref());
        let of_host = host.and_then(|host| host.retry_policy.as_ref());
        let policy = action.retry_policy.as_ref().or(of_host).or(of_cluster);
        let stream_limit = settings.common.max_stream_duration;
        let http = self.stream.http_mut();
        let head = &mut http.request;
        let mut timeouts = Timeouts::of(action, policy, head, router);
        timeouts.stream = stream_limit;
        timeouts.tell(action, head, router, Duration::ZERO);
        self.retry = Retry::of(policy, &mut head.headers, action.priority, &self.tallies);
        let complete = self.stream.request_body.is_end().then_some(self.started);
        let timer = self.stream.timer.take();
        self.alarm.set(timeouts, complete, timer);
        if host.is_some_and(|host| host.include_request_attempt_count) {
            self.stream.request_mut().headers.insert(ATTEMPTS, HeaderValue::from_static("1"));
        }
        route::finalize_request(self.stream, routed, !self.suppresses());
        self.names = wishes::names(self.stream, settings);
        let body = self.stream.request_body.take();
        let mirrors = mirror::policies(routed, self.cluster);
        let again = self.retry.is_some() || action.internal_redirect.is_some() || !mirrors.is_empty();
        let payload = match body.is_end() {
            true => Payload::Empty,
            false if again => Payload::Again(Replay::new(body, self.buffer(), self.cluster.stats.clone())),
            false => Payload::Once(body),
        };
        mirror::send(self.stream, mirrors, timeouts.global, || payload.copy());
        payload
    }

    fn suppresses(&self) -> bool {
        self.router.is_some_and(|router| router.suppress_envoy_headers)
    }

    /// How much of a request is kept for retries.
    fn buffer(&self) -> usize {
        let of_route = self.routed.model().and_then(|route| route.request_body_buffer_limit);
        let of_host = || self.routed.host().and_then(|host| host.request_body_buffer_limit);
        match of_route.or_else(of_host) {
            Some(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
            None => match self.stream.conn.listener.buffer_limit {
                0 => usize::MAX,
                limit => limit as usize,
            },
        }
    }

    /// Tells the upstream which trace its request is of.
    fn trace(&mut self) {
        if let Some(span) = self.stream.upstream_span.take() {
            span.finish_child(&self.stream.entry);
        }
        let Some(span) = &self.stream.span else { return };
        let asked = self.router.is_some_and(|router| router.start_child_span);
        let child = span.child(&self.stream.entry, &self.cluster.model, self.attempts, asked).map(Box::new);
        let span = self.stream.span.take();
        if let Some(telling) = child.as_deref().or(span.as_deref()) {
            telling.inject(self.stream.request_mut());
        }
        (self.stream.span, self.stream.upstream_span) = (span, child);
    }

    /// Sends it, until there is the head of a response.
    async fn attempt(&mut self, host: &Arc<Host>, body: Body) -> Result<(Response, Hold), End> {
        let Self { stream, alarm, cluster, action, names, tallies, hcm, .. } = self;
        let stream: &mut Stream = stream;
        let filters = cluster.filters().unwrap_or(&hcm.upstream_filters);
        let body = filters.request(stream, body);
        if let Some(config) = tunnel::config(action, stream.request()) {
            let progress = alarm.progress().clone();
            let open = tunnel::open(stream, (cluster, host), names, config, body, progress);
            return match guarded(alarm, Box::pin(open).as_mut()).await {
                Ok(Ok(response)) => {
                    alarm.connected();
                    tallies.each(|stats| stats.upstream_rq_total.inc());
                    Ok((response, Hold::Own))
                }
                Ok(Err(error)) => {
                    Err(End::Broken { broken: unconnected(Refused::from(&error)), sent: false })
                }
                Err(reached) => Err(End::Late(reached)),
            };
        }
        let caller = Caller::of(&stream.conn);
        let (source, more) = wishes::of(stream, cluster, host, names);
        let demand = Demand {
            cluster,
            host,
            caller: &caller,
            facts: Some(&stream.entry.facts),
            version: stream.request().version,
            priority: action.priority,
            source: source.unwrap_or_default(),
            more,
        };
        let acquired = guarded(alarm, pin!(cluster.pools().acquire(demand))).await;
        let lease = match acquired {
            Ok(Ok(lease)) => lease,
            Ok(Err(Refused::Overflow(overflow @ Overflow::Pending))) => {
                // Not even a connection was asked for.
                stream.entry.upstream.host = None;
                return Err(End::Broken { broken: unconnected(overflow.into()), sent: false });
            }
            Ok(Err(refused)) => return Err(End::Broken { broken: unconnected(refused), sent: false }),
            Err(reached) => return Err(End::Late(reached)),
        };
        alarm.connected();
        tallies.each(|stats| stats.upstream_rq_total.inc());
        tell_connection(stream, lease.life());
        let observer = Observer {
            progress: alarm.progress().clone(),
            interim: stream.interim.take(),
            tunnel: stream.request().is_upgrade(),
        };
        let sent = guarded(alarm, pin!(lease.send(stream.request(), body, observer))).await;
        match sent {
            Ok(Ok((response, attached))) => Ok((filters.response(stream, response), Hold::Pooled(attached))),
            Ok(Err(Failed { reset, .. })) if reset.side == Side::Downstream => Err(End::Client(reset)),
            Ok(Err(Failed { reset, .. })) => {
                body::bytes(cluster, alarm.progress());
                let sent = alarm.progress().first_sent().is_some();
                Err(End::Broken { broken: Broken { reset, local: false }, sent })
            }
            Err(reached) => {
                body::bytes(cluster, alarm.progress());
                Err(End::Late(reached))
            }
        }
    }

    /// Before an attempt.
    fn begin(&mut self, host: &Arc<Host>) {
        self.attempts += 1;
        self.begun = clock::lately();
        let again = self.attempts > 1;
        let timed_out = std::mem::take(&mut self.timed_out);
        let told = again && self.routed.host().is_some_and(|host| host.include_is_timeout_retry_header);
        let progress = if again { Arc::<Progress>::default() } else { self.alarm.progress().clone() };
        self.alarm.begin(progress.clone());
        let counted = again && self.routed.host().is_some_and(|host| host.include_request_attempt_count);
        let http = self.stream.http_mut();
        http.progress = Some(progress);
        if counted {
            http.request.headers.insert(ATTEMPTS, HeaderValue::from(self.attempts));
        }
        if told {
            let value = HeaderValue::from_static(if timed_out { "true" } else { "false" });
            http.request.headers.insert(IS_TIMEOUT_RETRY, value);
        }
        if again {
            let elapsed = clock::lately() - self.started;
            self.alarm.timeouts.tell(self.action, &mut http.request, self.router, elapsed);
        }
        if route::is_auto(self.action) && !host.hostname.is_empty() {
            let (append, keep) = (self.action.append_x_forwarded_host, !self.suppresses());
            route::rewrite_host(&mut self.stream.http_mut().request, &host.hostname, append, keep);
        }
        self.stream.entry.outcome.upstream_failure = None;
        let upstream = &mut self.stream.entry.upstream;
        upstream.host = host.socket_address();
        upstream.hostname = Some(host.hostname.clone()).filter(|name| !name.is_empty());
        upstream.attempts = self.attempts;
        upstream.host_metadata = Some(host.metadata()).filter(|metadata| !metadata.is_empty());
        if let Some(retry) = &mut self.retry {
            retry.attempted(host);
            upstream.attempted.extend(host.socket_address());
            if !retry.policy.host_predicates.is_empty() {
                self.tried.extend(host.socket_address());
            }
        }
    }

    fn charge(&self, code: u16, host: Option<&Host>) {
        let response = self.stream.response().map(|head| &head.headers);
        let origin = charge::origin(&self.stream.request().headers, response, host);
        self.charge_of(code, origin);
    }

    fn charge_of(&self, code: u16, origin: Origin) {
        if !self.is_dynamic() {
            return;
        }
        let codes = self.cluster.pools().codes();
        let suppressed = self.router.is_some_and(|router| router.suppress_grpc_request_failure_code_stats);
        if suppressed && self.stream.request().is_grpc() {
            codes.charge_origin(code, origin);
        } else {
            codes.charge(code, origin);
        }
        self.tallies.charge(code);
    }

    /// Whether responses are counted by their codes.
    fn is_dynamic(&self) -> bool {
        self.router.is_none_or(|router| router.dynamic_stats) && !self.stream.http().health_check
    }

    fn refuse(&self, mut reply: LocalReply) -> Stop {
        if self.routed.host().is_some_and(|host| host.include_attempt_count_in_response) {
            reply.headers.insert(ATTEMPTS, HeaderValue::from(self.attempts.max(1)));
        }
        reply.into()
    }

    /// The response goes to the client.
    fn respond(&mut self, response: Response, hold: Hold, host: Arc<Host>) {
        let Response { mut head, mut body } = response;
        self.stream.upload = body.take_upload();
        let refused = is_refused(self.stream.request(), &head);
        if refused {
            // As Envoy: of who does not become a WebSocket the head is all that is of interest.
            (self.stream.upload, body) = (None, Body::empty());
            head.headers.remove(TRANSFER_ENCODING);
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        if !self.suppresses()
            && let Some(complete) = self.alarm.complete()
        {
            let took = clock::lately().saturating_duration_since(complete).as_millis();
            head.headers.insert(SERVICE_TIME, number(u64::try_from(took).unwrap_or(u64::MAX)));
        }
        let origin = charge::origin(&self.stream.request().headers, Some(&head.headers), Some(&host));
        self.charge_of(head.status.as_u16(), origin);
        let grpc = self.stream.request().is_grpc()
            && head.status == StatusCode::OK
            && grpc_status(&head.headers).is_none();
        let ledger = Ledger {
            cluster: self.cluster.clone(),
            host,
            stats: Some(self.hcm.stats.clone()),
            origin,
            dynamic: self.is_dynamic(),
            tallies: self.tallies.clone(),
            grpc,
            hold,
            line: Line::of(self.stream, self.begun, Some(&head)),
        };
        let counted = self.routed.host().is_some_and(|host| host.include_attempt_count_in_response);
        self.stream.http_mut().response = Some(head);
        route::finalize_response(self.stream, self.routed);
        if counted && let Some(head) = self.stream.response_mut() {
            head.headers.insert(ATTEMPTS, HeaderValue::from(self.attempts));
        }
        self.stream.details(if refused { "websocket_handshake_unsuccessful" } else { "via_upstream" });
        self.alarm.headed();
        let whole = body.is_end() || self.alarm.progress().last_received().is_some();
        self.stream.response_body = if whole {
            ledger.complete(&self.alarm, None);
            self.stream.timer = self.alarm.take_timer();
            body
        } else {
            let alarm = std::mem::replace(&mut self.alarm, Alarm::new(Timeouts::default(), None));
            Watched::over(body, alarm, ledger)
        };
    }
}

fn is_refused(request: &RequestHead, head: &ResponseHead) -> bool {
    let websocket = request.upgrade.as_deref().is_some_and(|to| to.eq_ignore_ascii_case("websocket"));
    websocket && head.status != StatusCode::SWITCHING_PROTOCOLS
}

/// Until it is done, or a limit is reached. It is pinned by who makes it: it is large.
pub(super) async fn guarded<F: Future>(
    alarm: &mut Alarm,
    mut future: Pin<&mut F>,
) -> Result<F::Output, Reached> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Ok(done)),
        Poll::Pending => alarm.poll(cx).map(Err),
    })
    .await
}

fn tell_connection(stream: &mut Stream, life: &Life) {
    let upstream = &mut stream.entry.upstream;
    upstream.local = life.local;
    upstream.connection_id = life.id;
    upstream.tls.clone_from(&life.tls);
    upstream.connected_after = Some(life.took);
    stream.http_mut().upstream_protocol = Some(life.version);
}

/// Without a connection.
pub(super) fn unconnected(refused: Refused) -> Broken {
    let reset = |reason, details: String| Reset::new(Side::Upstream, reason, details);
    match refused {
        Refused::Overflow(overflow) => {
            Broken { reset: reset(ResetReason::Overflow, overflow.to_string()), local: true }
        }
        Refused::Failed { reason, local, details } => {
            Broken { reset: reset(reason, details.to_string()), local }
        }
        Refused::Gone => Broken { reset: reset(ResetReason::ConnectionFailure, String::new()), local: true },
    }
}

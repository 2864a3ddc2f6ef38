//! What an attempt's end comes to: another attempt, another route, or an answer.

use std::pin::pin;
use std::sync::Arc;

use http::StatusCode;

use super::{Forward, guarded};
use crate::cluster::{Event, Host};
use crate::http::filter::Stop;
use crate::http::router::body;
use crate::http::router::redirect;
use crate::http::router::replay::Payload;
use crate::http::router::reply::{self, Broken};
use crate::http::router::retry::{Verdict, grpc_status, grpc_to_http};
use crate::http::router::timeouts::Reached;
use crate::http::router::tunnel::{self, Hold};
use crate::http::router::upstream_log::Line;
use crate::http::{Body, Reset, ResetReason, Response};
use crate::telemetry::{Flags, Side};

impl Forward<'_> {
    /// Whether a response's request is sent again instead.
    pub(super) fn judge(&mut self, response: &Response, host: &Arc<Host>, source: &Payload) -> bool {
        let head = &response.head;
        let status = match grpc_status(&head.headers).filter(|_| self.stream.request().is_grpc()) {
            Some(status) => Some(grpc_to_http(status)),
            // It is in the trailers.
            None if self.stream.request().is_grpc() && head.status == StatusCode::OK => None,
            None => Some(head.status.as_u16()),
        };
        if let Some(status) = status {
            self.cluster.report(host, Event::Status(status));
        }
        let Some(retry) = &mut self.retry else { return false };
        if source.is_lost() {
            return false;
        }
        let verdict = retry.after_response(head, self.cluster);
        self.heed(verdict)
    }

    /// Says whether to go on.
    pub(super) fn heed(&mut self, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Again => return true,
            Verdict::No => {}
            Verdict::Exhausted => self.stream.flag(Flags::RETRIED),
            Verdict::Overflow => self.stream.flag(Flags::UO),
        }
        false
    }

    /// A response that nobody will see.
    pub(super) fn retried(&mut self, response: Response, mut hold: Hold) {
        self.cluster.pools().codes().charge_retry(response.head.status.as_u16());
        body::bytes(self.cluster, self.alarm.progress());
        if let Some(line) = Line::of(self.stream, self.begun, Some(&response.head)) {
            line.write(Flags::NONE, Some(self.alarm.progress()));
        }
        if self.alarm.progress().last_received().is_some() || response.body.is_end() {
            hold.complete();
        }
        self.set_aside(&response);
        drop(response);
    }

    /// It goes to nobody, which the span of its attempt says where there was more of it.
    fn set_aside(&mut self, response: &Response) {
        if let Some(span) = self.stream.upstream_span.take() {
            span.drop_child(&self.stream.entry, response.head.status.as_u16(), response.body.is_end());
        }
    }

    /// A limit was reached. Only that of one try leaves room for another.
    pub(super) fn late(&mut self, reached: Reached, host: &Arc<Host>, source: &Payload) -> Result<(), Stop> {
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
        self.cluster.report(host, Event::RequestTimeout);
        self.timed_out = matches!(reached, Reached::PerTry | Reached::PerTryIdle);
        self.log(if reached == Reached::Stream { Flags::UMSDR } else { Flags::UT });
        let details = body::details(reached);
        self.untraced(if reached == Reached::Stream { Flags::UMSDR } else { Flags::UT }, "");
        let flag = match reached {
            Reached::Global => Flags::UT,
            Reached::Stream => Flags::UMSDR,
            Reached::PerTry | Reached::PerTryIdle => {
                let reset = Reset::new(Side::Upstream, ResetReason::Local, details);
                if self.goes_on(&reset, true, source) {
                    host.stats.rq_error.inc();
                    return Ok(());
                }
                Flags::UT
            }
        };
        host.stats.rq_error.inc();
        let mut reply = reply::timeout(flag, details);
        if reached == Reached::Stream {
            // Which Envoy does not count among the cluster's responses.
            if self.alarm.complete().is_none() {
                reply.status = StatusCode::REQUEST_TIMEOUT;
            }
        } else {
            self.charge(504, Some(host));
        }
        Err(self.refuse(reply))
    }

    /// The span of an attempt that has no response ends.
    fn untraced(&mut self, flags: Flags, why: &'static str) {
        if let Some(span) = self.stream.upstream_span.take() {
            span.fail_child(&self.stream.entry, flags, why);
        }
    }

    pub(super) fn broke(
        &mut self,
        broken: Broken,
        sent: bool,
        host: &Arc<Host>,
        source: &Payload,
    ) -> Result<(), Stop> {
        self.untraced(reply::flags(broken.reset.reason), broken.words());
        let overflow = broken.reset.reason == ResetReason::Overflow;
        // What connects by itself has told of it.
        let told = tunnel::config(self.action, self.stream.request()).is_some() && !sent;
        if overflow || told {
            host.stats.rq_error.inc();
        } else {
            self.cluster.report(host, Event::RequestFailed);
        }
        self.log(reply::flags(broken.reset.reason));
        let failure = broken.failure();
        self.stream.entry.outcome.upstream_failure = Some(failure.to_owned()).filter(|why| !why.is_empty());
        if self.goes_on(&broken.reset, sent, source) {
            return Ok(());
        }
        let reply = reply::reset(&broken, self.attempts, self.suppresses());
        self.charge(reply.status.as_u16(), Some(host));
        Err(self.refuse(reply))
    }

    /// An attempt without a response.
    fn log(&self, flags: Flags) {
        if let Some(line) = Line::of(self.stream, self.begun, None) {
            line.write(flags, Some(self.alarm.progress()));
        }
    }

    pub(super) fn goes_on(&mut self, reset: &Reset, sent: bool, source: &Payload) -> bool {
        let Some(retry) = &mut self.retry else { return false };
        if source.is_lost() {
            return false;
        }
        let verdict = retry.after_reset(reset, sent, self.cluster);
        self.heed(verdict)
    }

    /// A retry would have followed, but its body is gone.
    pub(super) fn exhausted(&mut self) -> Stop {
        self.charge(503, None);
        let reset = Reset::new(Side::Upstream, ResetReason::Local, "");
        let reply = reply::reset(&Broken { reset, local: true }, self.attempts, self.suppresses());
        self.refuse(reply)
    }

    /// Until the next attempt. Where the time is over before, nothing upstream was waited for, and nothing is counted of
    /// the cluster.
    pub(super) async fn pause(&mut self) -> Result<(), Stop> {
        let Some(retry) = &mut self.retry else { return Ok(()) };
        let pause = retry.pause();
        if !pause.is_zero() {
            self.alarm.rest();
            if let Err(reached) = guarded(&mut self.alarm, pin!(tokio::time::sleep(pause))).await {
                return Err(self.refuse(reply::timeout(Flags::UT, body::details(reached))));
            }
        }
        retry.waited(&self.cluster.stats);
        Ok(())
    }

    /// Whether the router goes after the response's location, instead of the client.
    pub(super) fn follows(&mut self, response: &Response, source: &Payload) -> bool {
        let Some(policy) = &self.action.internal_redirect else { return false };
        if !policy.response_codes.contains(&response.head.status.as_u16()) {
            return false;
        }
        let stats = &self.cluster.stats;
        // A request that still comes in is not one that could be sent again.
        let body = source.again().filter(|_| self.alarm.complete().is_some());
        let Some(body) = body else {
            stats.upstream_internal_redirect_failed_total.inc();
            return false;
        };
        self.stream.request_body = body;
        match redirect::follow(self.stream, policy, &response.head) {
            Ok(()) => {
                stats.upstream_internal_redirect_succeeded_total.inc();
                true
            }
            Err(why) => {
                if self.stream.known_route().is_none() {
                    self.stream.entry.upstream.cluster = None;
                }
                if let Some(why) = why {
                    why(&self.hcm.stats).inc();
                }
                stats.upstream_internal_redirect_failed_total.inc();
                self.stream.request_body = Body::empty();
                false
            }
        }
    }

    /// A response that was followed: the stream's first pass ends with it.
    pub(super) fn redirected(&mut self, response: Response, mut hold: Hold) {
        body::bytes(self.cluster, self.alarm.progress());
        if self.alarm.progress().last_received().is_some() || response.body.is_end() {
            hold.complete();
        }
        self.set_aside(&response);
        // As Envoy, whose stream is by its new route already.
        let led = self.stream.known_route().and_then(|route| route.cluster(self.stream.request()));
        let led = led.and_then(|name| self.stream.conn.cluster(&name));
        self.stream.entry.upstream.cluster = led.map(|cluster| cluster.model.name.clone());
        self.stream.http_mut().response = Some(response.head);
    }
}

//! How long a request may take: by its route, by its headers.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use proxy_config::model::http::filters::Router;
use proxy_config::model::http::{RetryPolicy, RouteAction};
use tokio::time::{Sleep, sleep_until};

use crate::clock::{self, Instant};
use crate::http::manager::limits::longest;
use crate::http::message::number;
use crate::http::{Progress, RequestHead};

pub(super) const EXPECTED: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");
const PER_TRY: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms");
const GRPC: HeaderName = HeaderName::from_static("grpc-timeout");

/// None: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Timeouts {
    /// From the end of the request to the end of the response.
    pub(super) global: Option<Duration>,
    /// From the end of the request, or a retry's begin, to the response's head.
    pub(super) per_try: Option<Duration>,
    /// Without a byte in either direction.
    pub(super) per_try_idle: Option<Duration>,
    /// Of the cluster: of one attempt, from its begin to the end of its response.
    pub(super) stream: Option<Duration>,
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    Global,
    PerTry,
    PerTryIdle,
    Stream,
}

impl Timeouts {
    /// Envoy's `finalTimeout`: also takes from the request what it says of time.
    pub(super) fn of(
        action: &RouteAction,
        retry: Option<&Arc<RetryPolicy>>,
        head: &mut RequestHead,
        router: Option<&Router>,
    ) -> Self {
        let mut timeouts = Self {
            // A route that limits the whole stream has no other limit.
            global: if action.max_stream_duration.is_some() { None } else { action.timeout },
            per_try: retry.and_then(|retry| retry.per_try_timeout),
            per_try_idle: retry.and_then(|retry| retry.per_try_idle_timeout),
            stream: None,
        };
        if let Some(grpc) = grpc(action, head) {
            timeouts.global = grpc;
        }
        // One look at all is cheaper than one for each.
        if head.headers.keys().any(|name| name.as_str().starts_with("x-envoy-")) {
            timeouts.of_headers(&mut head.headers, router);
        }
        // Which is no limit of its own.
        if timeouts.global.is_some_and(|global| timeouts.per_try.is_some_and(|per_try| per_try >= global)) {
            timeouts.per_try = None;
        }
        timeouts
    }

    fn of_headers(&mut self, headers: &mut HeaderMap, router: Option<&Router>) {
        let respects = router.is_some_and(|router| router.respect_expected_rq_timeout);
        if respects && headers.contains_key(EXPECTED) {
            if let Some(given) = millis(headers, &EXPECTED) {
                self.global = given;
            }
        } else if let Some(given) = millis(headers, &TIMEOUT) {
            self.global = given;
            headers.remove(TIMEOUT);
        }
        if headers.contains_key(PER_TRY) {
            if let Some(given) = millis(headers, &PER_TRY) {
                self.per_try = given;
            }
            headers.remove(PER_TRY);
        }
    }

    /// Tells the upstream how long it is waited for.
    pub(super) fn tell(
        &self,
        action: &RouteAction,
        head: &mut RequestHead,
        router: Option<&Router>,
        elapsed: Duration,
    ) {
        if let Some(duration) =
            action.max_stream_duration.as_ref().filter(|_| elapsed.is_zero() && head.is_grpc())
            && let Some(limit) = longest(duration, &head.headers, None)
        {
            put_grpc(head, limit.as_millis());
        }
        let global = self.global.map(|global| global.saturating_sub(elapsed));
        let Some(expected) = self.per_try.into_iter().chain(global).min() else { return };
        let expected = expected.as_millis();
        let suppressed = router.is_some_and(|router| router.suppress_envoy_headers);
        let respected = router.is_some_and(|router| router.respect_expected_rq_timeout)
            && head.headers.contains_key(EXPECTED);
        if expected == 0 {
            return;
        }
        if !suppressed && !respected {
            head.headers.insert(EXPECTED, number(u64::try_from(expected).unwrap_or(u64::MAX)));
        }
        if action.max_stream_duration.is_none() && action.max_grpc_timeout.is_some() && head.is_grpc() {
            put_grpc(head, expected);
        }
    }
}

fn put_grpc(head: &mut RequestHead, millis: u128) {
    // gRPC allows for eight digits.
    let value = match millis {
        small @ 0..100_000_000 => format!("{small}m"),
        large => format!("{}S", (large / 1000).min(99_999_999)),
    };
    if let Ok(value) = HeaderValue::try_from(value) {
        head.headers.insert(GRPC, value);
    }
}

/// What a gRPC request asks for, within what its route allows. Outer `None`: the route says nothing of that.
fn grpc(action: &RouteAction, head: &RequestHead) -> Option<Option<Duration>> {
    let allowed = action.max_grpc_timeout.as_ref()?;
    if action.max_stream_duration.is_some() || !head.is_grpc() {
        return None;
    }
    let mut asked = head.headers.get(GRPC).and_then(|value| grpc_timeout(value.as_bytes()));
    if let Some(timeout) = &mut asked
        && allowed.offset < *timeout
    {
        *timeout -= allowed.offset;
    }
    let asked = asked.filter(|timeout| !timeout.is_zero());
    Some(asked.into_iter().chain(allowed.max).min())
}

/// Up to eight digits and a unit.
pub(super) fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        // Envoy rounds up to milliseconds.
        b'u' => Duration::from_millis(n.div_ceil(1000)),
        b'n' => Duration::from_millis(n.div_ceil(1_000_000)),
        _ => return None,
    })
}

/// 0: no limit. Outer `None`: not there, or no number.
fn millis(headers: &HeaderMap, name: &HeaderName) -> Option<Option<Duration>> {
    let millis: u64 = headers.get(name)?.to_str().ok()?.parse().ok()?;
    Some((millis > 0).then(|| Duration::from_millis(millis)))
}

/// A connection keeps it from one request to the next: to set one anew costs more than to look at one that fires early.
pub type Timer = Option<Pin<Box<Sleep>>>;

/// One attempt's limits, and one timer for all of them. It is set when something is waited for, and moved only when it
/// fires too early.
pub(super) struct Alarm {
    pub(super) timeouts: Timeouts,
    /// When the request was complete, where it was from the start.
    complete: Option<Instant>,
    /// This attempt's begin, once it has a connection.
    begun: Option<Instant>,
    progress: Arc<Progress>,
    sleep: Timer,
    /// The response's head is there.
    headed: bool,
    /// When something moved in the response last.
    moved: Option<Instant>,
}

impl Alarm {
    pub(super) fn new(timeouts: Timeouts, complete: Option<Instant>) -> Self {
        let (progress, sleep) = (Arc::default(), None);
        Self { timeouts, complete, begun: None, progress, sleep, headed: false, moved: None }
    }

    /// Before it is first polled. `timer`: one that may have been set for a request before this one.
    pub(super) fn set(&mut self, timeouts: Timeouts, complete: Option<Instant>, timer: Timer) {
        (self.timeouts, self.complete, self.sleep) = (timeouts, complete, timer);
        if timeouts.per_try.is_some() || timeouts.per_try_idle.is_some() || timeouts.stream.is_some() {
            self.sleep = None;
        } else if let (Some(sleep), Some(global)) = (&self.sleep, timeouts.global)
            && complete.is_none_or(|complete| sleep.deadline() > complete + global)
        {
            self.sleep = None;
        }
    }

    /// For another request.
    pub(super) fn take_timer(&mut self) -> Timer {
        self.sleep.take()
    }

    /// For the next attempt.
    pub(super) fn begin(&mut self, progress: Arc<Progress>) {
        self.complete = self.complete();
        self.begun = None;
        self.moved = None;
        self.progress = progress;
    }

    /// Between two attempts.
    pub(super) fn rest(&mut self) {
        (self.begun, self.moved) = (None, None);
    }

    pub(super) fn connected(&mut self) {
        let Timeouts { per_try, per_try_idle, stream, .. } = self.timeouts;
        if per_try.is_some() || per_try_idle.is_some() || stream.is_some() {
            self.begun = Some(clock::now());
            // These may be earlier than what has been set.
            self.sleep = None;
        }
    }

    /// The response's head is there: no attempt follows.
    pub(super) fn headed(&mut self) {
        self.headed = true;
        self.moved();
    }

    pub(super) fn moved(&mut self) {
        if self.timeouts.per_try_idle.is_some() {
            self.moved = Some(clock::now());
        }
    }

    /// When the whole request was there.
    pub(super) fn complete(&self) -> Option<Instant> {
        self.complete.or_else(|| self.progress.last_sent())
    }

    pub(super) fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Ready once a limit is reached.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Reached> {
        if self.timeouts == Timeouts::default() {
            return Poll::Pending;
        }
        loop {
            // What has been set is early enough: limits only move away.
            if let Some(sleep) = &mut self.sleep
                && !sleep.is_elapsed()
            {
                ready!(sleep.as_mut().poll(cx));
            }
            let now = clock::now();
            let Some((at, reached)) = self.next(now) else { return Poll::Pending };
            if at <= now {
                return Poll::Ready(reached);
            }
            match &mut self.sleep {
                Some(sleep) => sleep.as_mut().reset(at),
                None => self.sleep = Some(Box::pin(sleep_until(at))),
            }
        }
    }

    /// The next limit. One that does not run yet is looked at again after as long as it would take.
    fn next(&self, now: Instant) -> Option<(Instant, Reached)> {
        let complete = self.complete();
        let Timeouts { global, per_try, per_try_idle, stream } = self.timeouts;
        let after = |since: Option<Instant>, limit: Option<Duration>, reached| {
            since.zip(limit).map(|(since, limit)| (since + limit, reached))
        };
        let tried = self.begun.map(|begun| complete.map_or(now, |complete| complete.max(begun)));
        let moved = self.begun.map(|begun| {
            let (sent, last) = (self.progress.first_sent(), self.progress.last_sent());
            [self.moved, sent, last].into_iter().flatten().fold(begun, Instant::max)
        });
        let limits = [
            after(Some(complete.unwrap_or(now)), global, Reached::Global),
            after(tried, per_try.filter(|_| !self.headed), Reached::PerTry),
            after(moved, per_try_idle, Reached::PerTryIdle),
            after(self.begun, stream, Reached::Stream),
        ];
        limits.into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts() {
        for (text, expected) in [
            ("1H", Some(3_600_000)),
            ("2M", Some(120_000)),
            ("3S", Some(3_000)),
            ("99999999m", Some(99_999_999)),
            ("1500u", Some(2)),
            ("1n", Some(1)),
            ("100000000m", None),
            ("m", None),
            ("1", None),
            ("1x", None),
            ("-1S", None),
            ("", None),
        ] {
            assert_eq!(grpc_timeout(text.as_bytes()), expected.map(Duration::from_millis), "{text}");
        }
    }
}

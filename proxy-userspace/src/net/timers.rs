//! The limits of a relay in time: one timer for all of them.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Sleep;

use super::copy::End;
use crate::clock::{self, Instant};
use crate::telemetry::{ConnRecord, Side};

/// What ends a relay, and what it may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Nothing moved on either side.
    pub idle: Option<Duration>,
    pub downstream_idle: Option<Duration>,
    pub upstream_idle: Option<Duration>,
    /// The end of the connection's time.
    pub deadline: Option<Instant>,
    /// A periodic access log line.
    pub flush_every: Option<Duration>,
    /// Whoever counts connections while they live is told.
    pub report_every: Option<Duration>,
    /// Bytes that may wait in one direction.
    pub buffer: usize,
}

/// What is due while a relay goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Line,
    Report,
}

impl Due {
    pub(crate) fn tell(self, record: &mut ConnRecord) {
        match self {
            Self::Line => record.periodic(),
            Self::Report => record.report(),
        }
    }
}

/// On which side bytes have moved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moved {
    pub(crate) downstream: bool,
    pub(crate) upstream: bool,
}

pub(crate) struct Timers<'a> {
    limits: &'a Limits,
    downstream: Instant,
    upstream: Instant,
    flush: Option<Instant>,
    report: Option<Instant>,
    /// Whether the timer has been polled, and so will wake the task.
    armed: bool,
}

impl<'a> Timers<'a> {
    pub(crate) fn new(limits: &'a Limits, now: Instant) -> Self {
        let flush = limits.flush_every.map(|every| now + every);
        let report = limits.report_every.map(|every| now + every);
        Self { limits, downstream: now, upstream: now, flush, report, armed: false }
    }

    /// When the next limit is reached if nothing moves; `None` where there is no limit.
    pub(crate) fn next(&self) -> Option<Instant> {
        let ends = self.ends().into_iter().filter_map(|(at, _)| at);
        ends.chain(self.flush).chain(self.report).min()
    }

    /// Ends the relay where a limit is reached; calls `due` for what else there is to be done.
    ///
    /// The timer is not moved at each byte, only when it fires too early.
    pub(crate) fn poll(
        &mut self,
        mut sleep: Pin<&mut Sleep>,
        moved: Moved,
        cx: &mut Context<'_>,
        mut due: impl FnMut(Due),
    ) -> Poll<End> {
        if moved.downstream || moved.upstream {
            let now = clock::now();
            self.downstream = if moved.downstream { now } else { self.downstream };
            self.upstream = if moved.upstream { now } else { self.upstream };
            // Every limit only moves away, so the timer that is set still fires in time.
            if self.armed && now < sleep.deadline() {
                return Poll::Pending;
            }
        }
        self.armed = true;
        loop {
            ready!(sleep.as_mut().poll(cx));
            let now = clock::now();
            if let Some(end) = self.reached(now) {
                return Poll::Ready(end);
            }
            let limits = self.limits;
            for (at, every, what) in [
                (&mut self.flush, limits.flush_every, Due::Line),
                (&mut self.report, limits.report_every, Due::Report),
            ] {
                if let Some(every) = every
                    && at.is_some_and(|at| at <= now)
                {
                    *at = Some(now + every);
                    due(what);
                }
            }
            let Some(next) = self.next() else { return Poll::Pending };
            sleep.as_mut().reset(next);
        }
    }

    fn reached(&self, now: Instant) -> Option<End> {
        let reached = |(at, end): (Option<Instant>, End)| at.is_some_and(|at| at <= now).then_some(end);
        self.ends().into_iter().find_map(reached)
    }

    fn ends(&self) -> [(Option<Instant>, End); 4] {
        let after = |since: Instant, limit: Option<Duration>| limit.map(|limit| since + limit);
        let Limits { idle, downstream_idle, upstream_idle, deadline, .. } = *self.limits;
        [
            (deadline, End::MaxDuration),
            (after(self.downstream.max(self.upstream), idle), End::Idle(None)),
            (after(self.downstream, downstream_idle), End::Idle(Some(Side::Downstream))),
            (after(self.upstream, upstream_idle), End::Idle(Some(Side::Upstream))),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use tokio::time::sleep_until;

    use super::*;

    /// The longest duration that a configuration can give.
    const LONGEST: Duration = Duration::from_secs(315_576_000_000);

    #[tokio::test]
    async fn the_longest_limits_are_only_far_away() {
        let now = clock::now();
        let limits = Limits {
            idle: Some(LONGEST),
            downstream_idle: Some(LONGEST),
            upstream_idle: Some(LONGEST),
            deadline: Some(now + LONGEST.mul_f64(2.0)),
            flush_every: Some(LONGEST),
            report_every: Some(LONGEST),
            buffer: 0,
        };
        let mut timers = Timers::new(&limits, now);
        let mut sleep = pin!(sleep_until(timers.next().unwrap()));
        let moved = Moved { downstream: true, upstream: false };
        let mut poll =
            |cx: &mut Context<'_>| timers.poll(sleep.as_mut(), moved, cx, |_| panic!("a line is due"));
        assert!(poll_fn(|cx| Poll::Ready(poll(cx).is_pending())).await);
    }
}

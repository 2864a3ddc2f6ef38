//! Pings that tell whether the peer is still there: Envoy's `connection_keepalive`.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Sleep, sleep_until};

use crate::clock;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Keepalive {
    /// None: only after idleness.
    pub interval: Option<Duration>,
    pub timeout: Duration,
    /// Percent of the interval.
    pub interval_jitter: f64,
}

/// Of one connection.
pub(super) struct Pinger {
    settings: Keepalive,
    pings: PingPong,
    sleep: Pin<Box<Sleep>>,
    waiting: bool,
}

impl Pinger {
    /// None where there is nothing to do.
    pub(super) fn new(settings: Option<Keepalive>, pings: Option<PingPong>) -> Option<Self> {
        let settings = settings?;
        let interval = settings.interval?;
        let sleep = Box::pin(sleep_until(clock::now() + interval));
        Some(Self { settings, pings: pings?, sleep, waiting: false })
    }

    /// Ready once a ping has not been answered in its time.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.waiting && self.pings.poll_pong(cx).is_ready() {
                self.waiting = false;
                let interval = self.interval();
                self.sleep.as_mut().reset(clock::now() + interval);
            }
            ready!(self.sleep.as_mut().poll(cx));
            if self.waiting {
                return Poll::Ready(());
            }
            if self.pings.send_ping(Ping::opaque()).is_err() {
                // The connection has ended, and says so itself.
                return Poll::Pending;
            }
            self.waiting = true;
            self.sleep.as_mut().reset(clock::now() + self.settings.timeout);
        }
    }

    fn interval(&self) -> Duration {
        let interval = self.settings.interval.unwrap_or(Duration::MAX / 4);
        let jitter = self.settings.interval_jitter.clamp(0.0, 100.0) / 100.0 * rand::random::<f64>();
        interval.mul_f64(1.0 + jitter)
    }
}

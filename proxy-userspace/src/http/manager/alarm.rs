//! The timer of a connection: one for all of its limits.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Sleep, sleep_until};

use crate::clock::{self, Instant};

/// Set when somebody first waits, and moved only where it would fire too late, or has fired too early.
#[derive(Default)]
pub(super) struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
    /// It has been polled since it was set, and so will wake its task.
    armed: bool,
}

impl Alarm {
    /// Ready once `at` has come. All calls are of one task.
    pub(super) fn poll(&mut self, at: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = at else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if sleep.deadline() > at {
            sleep.as_mut().reset(at);
            self.armed = false;
        }
        if self.armed && !sleep.is_elapsed() {
            return Poll::Pending;
        }
        loop {
            self.armed = true;
            ready!(sleep.as_mut().poll(cx));
            if clock::now() >= at {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_fires_at_the_moment_that_is_asked_for_last() {
        let (mut alarm, start) = (Alarm::default(), clock::now());
        let after = |millis| Some(start + Duration::from_millis(millis));
        // Set, moved away, moved nearer, gone.
        for at in [after(10), after(1_000), after(500), None] {
            assert!(poll_fn(|cx| Poll::Ready(alarm.poll(at, cx))).await.is_pending());
        }
        poll_fn(|cx| alarm.poll(after(800), cx)).await;
        assert_eq!((clock::now() - start).as_millis(), 800);
        poll_fn(|cx| alarm.poll(after(900), cx)).await;
        assert_eq!((clock::now() - start).as_millis(), 900);
    }
}

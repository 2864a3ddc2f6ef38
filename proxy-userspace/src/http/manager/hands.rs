//! Tasks that serve the streams of a connection, one after another.
//!
//! A stream's future is large, and a new task copies it several times: on a busy connection that was a third of all
//! that a request costs. A task that has served one waits a little for the next.

use std::future::{Future as _, poll_fn};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;

use super::alarm::Alarm;
use crate::clock;

/// How long it waits.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many wait at most.
const WAITING: usize = 16;

pub(super) struct Hands<W>(Mutex<State<W>>);

struct State<W> {
    /// Who has waited shortest is asked first, so that the others lose their patience.
    waiting: Vec<oneshot::Sender<W>>,
    closed: bool,
}

impl<W> Default for Hands<W> {
    fn default() -> Self {
        Self(Mutex::new(State { waiting: Vec::new(), closed: false }))
    }
}

impl<W> Hands<W> {
    /// Gives it to a task that waits; gives it back where there is none.
    pub(super) fn give(&self, mut work: W) -> Result<(), W> {
        let mut state = self.lock();
        while let Some(hand) = state.waiting.pop() {
            match hand.send(work) {
                Ok(()) => return Ok(()),
                // It has lost its patience.
                Err(back) => work = back,
            }
        }
        Err(work)
    }

    /// None: nothing has come for a while, others wait already, or nothing will come.
    pub(super) async fn wait(&self, alarm: &mut Alarm) -> Option<W> {
        let work = {
            let mut state = self.lock();
            if state.closed {
                return None;
            }
            state.waiting.retain(|hand| !hand.is_closed());
            if state.waiting.len() >= WAITING {
                return None;
            }
            let (hand, work) = oneshot::channel();
            state.waiting.push(hand);
            work
        };
        let mut work = std::pin::pin!(work);
        let until = clock::lately().checked_add(PATIENCE);
        let given = poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(work) => Poll::Ready(Some(work.ok())),
            Poll::Pending => alarm.poll(until, cx).map(|()| None),
        });
        match given.await {
            Some(work) => work,
            None => {
                // It may have come in this very moment.
                work.close();
                work.try_recv().ok()
            }
        }
    }

    /// Nothing comes any more.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.waiting.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_given_work_and_who_has_waited_long_is_not() {
        let hands = Hands::<u32>::default();
        assert_eq!(hands.give(1), Err(1));
        let mut alarm = Alarm::default();
        let (first, ()) = tokio::join!(hands.wait(&mut alarm), async { assert_eq!(hands.give(2), Ok(())) });
        assert_eq!(first, Some(2));
        let start = clock::now();
        assert_eq!(hands.wait(&mut alarm).await, None);
        assert_eq!(clock::now() - start, PATIENCE);
        assert_eq!(hands.give(3), Err(3));
        let (second, ()) = tokio::join!(hands.wait(&mut alarm), async { hands.close() });
        assert_eq!(second, None);
        assert_eq!(hands.wait(&mut alarm).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn not_all_of_many_wait() {
        let hands = Hands::<u32>::default();
        let mut alarms: Vec<_> = (0..WAITING + 4).map(|_| Alarm::default()).collect();
        let mut waiting: Vec<_> = alarms.iter_mut().map(|alarm| Box::pin(hands.wait(alarm))).collect();
        let mut served = 0;
        poll_fn(|cx| {
            waiting.iter_mut().for_each(|hand| served += usize::from(hand.as_mut().poll(cx).is_ready()));
            Poll::Ready(())
        })
        .await;
        assert_eq!(served, 4);
        assert_eq!((0..).take_while(|n| hands.give(*n).is_ok()).count(), WAITING);
    }
}

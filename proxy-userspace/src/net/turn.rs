//! Short writes wait for their turn.
//!
//! A write to an idle peer on another CPU wakes it, which costs the writer more than all else that a write does, most of
//! all on a virtual machine. Where what is short goes out only after all tasks that were ready have run, the first wakes
//! the peer, and the others find it awake. Nobody waits where nobody else is ready.
//!
//! Who has something to write is put into its worker's queue ([`later`]), and its task goes on as if it had been written;
//! [`run`] empties the queue. To poll each task once more instead is as easy, and up to a tenth of a request's time: by then
//! others have been in the caches.

use std::cell::RefCell;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Poll, Waker};

/// More than this is worth a wake-up of its own.
pub const SHORT: usize = 4 * 1024;

/// Has something to write.
pub trait Later: Send + Sync {
    /// It is its turn. What comes of it is told to its own task.
    fn write(&self);
}

#[derive(Default)]
struct Queue {
    /// None: nobody empties it.
    runner: Option<Waker>,
    waiting: Vec<Arc<dyn Later>>,
}

thread_local! {
    static QUEUE: RefCell<Queue> = RefCell::default();
}

/// Whether it will be told when it is its turn. False on a thread that has no queue.
pub fn later(who: impl FnOnce() -> Arc<dyn Later>) -> bool {
    QUEUE.with_borrow_mut(|queue| {
        let Some(runner) = &queue.runner else { return false };
        if queue.waiting.is_empty() {
            // Behind the tasks that are ready now.
            runner.wake_by_ref();
        }
        queue.waiting.push(who());
        true
    })
}

/// Has those write who wait on this thread. For as long as it is polled.
pub(crate) async fn run() {
    let all = poll_fn(|cx| {
        let mut waiting = QUEUE.with_borrow_mut(|queue| {
            queue.runner.get_or_insert_with(|| cx.waker().clone()).clone_from(cx.waker());
            std::mem::take(&mut queue.waiting)
        });
        for who in waiting.drain(..) {
            // The others have their turn all the same. Nobody uses what was left broken.
            if catch_unwind(AssertUnwindSafe(|| who.write())).is_err() {
                log::error!("a connection panicked when it was its turn to write");
            }
        }
        QUEUE.with_borrow_mut(|queue| {
            // Its memory is used again, unless somebody has come meanwhile.
            if queue.waiting.is_empty() {
                queue.waiting = waiting;
            }
        });
        Poll::<()>::Pending
    });
    // However many they are, each has its turn.
    tokio::task::unconstrained(all).await;
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::net::rig::LONG;
    use crate::task::Tasks;
    use crate::telemetry::stats::Stats;

    struct Writer(u8, Arc<Mutex<Vec<u8>>>);

    impl Later for Writer {
        fn write(&self) {
            self.1.lock().unwrap().push(self.0);
            assert_ne!(self.0, 1, "a panic is its own alone");
            if self.0 == 0 {
                // One that has more to say.
                assert!(later(|| Arc::new(Self(9, self.1.clone()))));
            }
        }
    }

    #[tokio::test]
    async fn those_who_wait_write_after_the_tasks_that_were_ready() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let writer = |n| Arc::new(Writer(n, seen.clone()));
        assert!(!later(|| writer(7)), "there is no queue");
        let tasks = Tasks::new(&Stats::new());
        let runner = tasks.spawn("queue", run());
        tokio::task::yield_now().await;
        let writers = [1, 0, 2].map(|n| {
            let (writer, seen) = (writer(n), seen.clone());
            tasks.spawn("writer", async move {
                assert!(later(|| writer) && seen.lock().unwrap().is_empty());
            })
        });
        for writer in writers {
            writer.await.unwrap();
        }
        let all = async {
            while seen.lock().unwrap().len() < 4 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, all).await.unwrap();
        assert_eq!(*seen.lock().unwrap(), [1, 0, 2, 9]);
        runner.abort();
    }
}

//! Short writes wait for their turn.
//!
//! A write to an idle peer on another CPU wakes it, which costs the writer more than all else that a write does, most of
//! all on a virtual machine. Where what is short goes out only after all tasks that were ready have run, the first wakes
//! the peer, and the others find it awake. Nobody waits where nobody else is ready.

use std::cell::Cell;
use std::task::{Context, Poll};

/// More than this is worth a wake-up of its own.
pub const SHORT: usize = 4 * 1024;

thread_local! {
    /// Of the task that is polled: it waits for its turn. None: no task of ours is.
    static WAITS: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Whether a connection's write has let the others go first.
#[derive(Debug, Default)]
pub struct Turn {
    waited: bool,
}

impl Turn {
    /// Pending once, and the task is polled again after those that are ready. To be polled by a task that writes
    /// whenever it is polled.
    pub fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.waited {
            return Poll::Ready(());
        }
        self.waited = true;
        WAITS.with(|waits| waits.set(waits.get().map(|_| true)));
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// What there was to write has gone out.
    pub fn over(&mut self) {
        self.waited = false;
    }
}

/// This task is polled again in a moment: it need not see to it that anything else wakes it.
pub fn is_waiting() -> bool {
    WAITS.get() == Some(true)
}

/// Polls a task.
pub(crate) fn polling<R>(poll: impl FnOnce() -> R) -> R {
    let before = WAITS.replace(Some(false));
    let result = poll();
    WAITS.set(before);
    result
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_task_waits_once_for_each_write() {
        let (mut turn, cx) = (Turn::default(), Context::from_waker(Waker::noop()));
        // Nobody polls a task here.
        assert!(turn.poll(&cx).is_pending() && !is_waiting());
        assert!(turn.poll(&cx).is_ready());
        turn.over();
        polling(|| {
            assert!(!is_waiting() && turn.poll(&cx).is_pending() && is_waiting());
            polling(|| assert!(!is_waiting()));
            assert!(is_waiting());
        });
        polling(|| assert!(!is_waiting() && turn.poll(&cx).is_ready() && !is_waiting()));
        assert!(!is_waiting());
    }
}

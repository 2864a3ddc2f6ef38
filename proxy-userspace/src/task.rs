//! The only place that spawns: every task has a name, and a panic in one is logged and counted.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::task::{AbortHandle, JoinHandle};

use crate::telemetry::stats::{Counter, Stats};

/// Spawns onto the current runtime.
#[derive(Clone, Debug)]
pub struct Tasks {
    panics: Arc<Counter>,
}

impl Tasks {
    pub fn new(stats: &Stats) -> Self {
        Self { panics: stats.counter("server.task_panics") }
    }

    /// Starts `future`. The handle resolves when it ended, however it ended, and may be dropped.
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(Named { future, name, panics: self.panics.clone() })
    }
}

/// Ends a task when it is dropped.
#[derive(Debug)]
pub struct Abort(AbortHandle);

impl Abort {
    pub fn of(task: JoinHandle<()>) -> Self {
        Self(task.abort_handle())
    }
}

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pin_project! {
    /// A wrapper by projection: an `async` block around `future` would hold it twice.
    struct Named<F> {
        #[pin]
        future: F,
        name: &'static str,
        panics: Arc<Counter>,
    }
}

impl<F: Future<Output = ()>> Future for Named<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let future = this.future;
        // Not polled again after a panic, so no broken invariant is observed.
        match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
            Ok(poll) => poll,
            Err(panic) => {
                this.panics.inc();
                log::error!("task {} panicked: {}", this.name, message(panic.as_ref()));
                Poll::Ready(())
            }
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_counted_and_ends_only_its_task() {
        let stats = Stats::new();
        let tasks = Tasks::new(&stats);
        tasks.spawn("doomed", async { panic!("on purpose") }).await.unwrap();
        tasks.spawn("fine", async {}).await.unwrap();
        assert!(stats.render_text().contains("server.task_panics: 1\n"));
    }
}

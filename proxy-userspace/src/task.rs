//! The only place that spawns: every task has a name, and a panic in one is logged and counted.

pub mod workers;

use std::any::Any;
use std::cell::Cell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::{AbortHandle, JoinHandle};

pub use self::workers::Workers;
use self::workers::{Crew, Place, Seat};
use crate::clock;
use crate::telemetry::stats::{Counter, Stats};

/// Spawns onto the current runtime, or onto a worker's.
#[derive(Clone, Debug)]
pub struct Tasks {
    panics: Arc<Counter>,
    crew: Crew,
    whose: Whose,
}

/// `workload NAME`; `None` for the daemon's own.
pub type Whose = Option<Arc<str>>;

thread_local! {
    /// On whose behalf this thread works now: the log says it of each line.
    static WHOSE: Cell<Whose> = const { Cell::new(None) };
}

impl Tasks {
    /// Without workers.
    pub fn new(stats: &Stats) -> Self {
        Self { panics: stats.counter("server.task_panics"), crew: Crew::default(), whose: None }
    }

    /// On whose behalf they work.
    #[must_use]
    pub fn of(self, whose: Whose) -> Self {
        Self { whose, ..self }
    }

    pub fn on(self, crew: Crew) -> Self {
        Self { crew, ..self }
    }

    pub fn crew(&self) -> &Crew {
        &self.crew
    }

    /// Starts `future`. The handle resolves when it ended, however it ended, and may be dropped.
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(self.named(name, None, future))
    }

    /// Starts `future` on a worker: the sockets that it makes are that worker's.
    pub fn spawn_on<F>(&self, place: Place, name: &'static str, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.place(place, self.named(name, None, future))
    }

    /// Starts a connection's task where it has its seat, which is free again once the task has ended.
    pub fn spawn_seated<F>(&self, seat: Seat, name: &'static str, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.place(seat.place(), self.named(name, Some(seat), future))
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    fn place<F>(&self, place: Place, future: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        match self.crew.handle(place) {
            Some(worker) => worker.spawn(future),
            None => tokio::spawn(future),
        }
    }

    fn named<F>(&self, name: &'static str, seat: Option<Seat>, future: F) -> Named<F> {
        Named { future, name, whose: self.whose.clone(), panics: self.panics.clone(), _seat: seat }
    }
}

/// Runs what may take long. The other tasks of this worker go on elsewhere meanwhile, where its runtime has others.
pub fn long<R>(work: impl FnOnce() -> R) -> R {
    let flavor = Handle::try_current().map(|runtime| runtime.runtime_flavor());
    let multiple = matches!(flavor, Ok(RuntimeFlavor::MultiThread));
    let result = if multiple { tokio::task::block_in_place(work) } else { work() };
    clock::refresh();
    result
}

/// Does something on somebody's behalf.
pub fn on_behalf<R>(whose: Whose, work: impl FnOnce() -> R) -> R {
    let before = WHOSE.replace(whose);
    let result = work();
    WHOSE.set(before);
    result
}

/// On whose behalf this thread works now.
pub fn whose() -> Whose {
    let whose = WHOSE.take();
    WHOSE.set(whose.clone());
    whose
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
        whose: Whose,
        panics: Arc<Counter>,
        _seat: Option<Seat>,
    }
}

impl<F: Future<Output = ()>> Future for Named<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let future = this.future;
        // Moved there and back: no counter of references is touched.
        let before = WHOSE.replace(this.whose.take());
        // Not polled again after a panic, so no broken invariant is observed.
        let polled = catch_unwind(AssertUnwindSafe(|| clock::polling(|| future.poll(cx))));
        *this.whose = WHOSE.replace(before);
        match polled {
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
    async fn a_task_knows_on_whose_behalf_it_is_polled() {
        let tasks = Tasks::new(&Stats::new());
        let look = |tasks: Tasks, expected: &'static [Option<&str>]| async move {
            for expected in expected {
                assert_eq!(whose().as_deref(), *expected);
                tokio::task::yield_now().await;
            }
            drop(tasks);
        };
        let of = |name: &str| tasks.clone().of(Some(name.into()));
        let both = [
            of("a").spawn("a", look(tasks.clone(), &[Some("a"), Some("a"), Some("a")])),
            of("b").spawn("b", look(tasks.clone(), &[Some("b"), Some("b"), Some("b")])),
            tasks.spawn("nobody", look(tasks.clone(), &[None, None])),
        ];
        for task in both {
            task.await.unwrap();
        }
        assert_eq!(on_behalf(Some("c".into()), whose).as_deref(), Some("c"));
        assert_eq!((whose(), tasks.panics.value()), (None, 0));
    }

    #[tokio::test]
    async fn a_panic_is_counted_and_ends_only_its_task() {
        let stats = Stats::new();
        let tasks = Tasks::new(&stats);
        tasks.spawn("doomed", async { panic!("on purpose") }).await.unwrap();
        tasks.spawn("fine", async {}).await.unwrap();
        assert!(stats.render_text().contains("server.task_panics: 1\n"));
    }
}

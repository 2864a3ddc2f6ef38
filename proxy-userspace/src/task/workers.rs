//! Threads that carry connections, each with a runtime of its own: what one has accepted it carries to its end, and
//! no task is waited for, woken or stolen by another thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};

use tokio::runtime::{self, EnterGuard, Handle};
use tokio::sync::oneshot;

use crate::net::turn;

/// The threads. They end with this, and with them the tasks that they still have.
#[derive(Debug)]
pub struct Workers {
    crew: Crew,
    threads: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    /// Dropped to end it.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Workers {
    /// At least one.
    pub fn start(count: usize) -> io::Result<Self> {
        let (mut workers, mut threads) = (Vec::new(), Vec::new());
        for n in 0..count.max(1) {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            workers.push(Worker { handle: runtime.handle().clone(), connections: AtomicUsize::new(0) });
            let (stop, stopped) = oneshot::channel::<()>();
            let run = move || {
                runtime.spawn(turn::run());
                // An error is the sender's drop, which is all that is waited for.
                let _ = runtime.block_on(stopped);
            };
            let thread = Builder::new().name(format!("worker-{n}")).spawn(run)?;
            threads.push(Thread { stop: Some(stop), thread: Some(thread) });
        }
        Ok(Self { crew: Crew { workers: workers.into(), next: Arc::default() }, threads })
    }

    pub fn crew(&self) -> Crew {
        self.crew.clone()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.threads.iter_mut().for_each(|thread| drop(thread.stop.take()));
        for thread in self.threads.iter_mut().filter_map(|thread| thread.thread.take()) {
            if thread.join().is_err() {
                log::error!("a worker has panicked");
            }
        }
    }
}

/// What is placed on workers is placed by this. Without workers everything is the current runtime's, which is
/// enough for what carries no connections, and for tests.
#[derive(Clone, Debug, Default)]
pub struct Crew {
    workers: Arc<[Worker]>,
    next: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Worker {
    handle: Handle,
    /// How many have a [`Seat`] there.
    connections: AtomicUsize,
}

/// The number of a worker.
pub type Place = usize;

impl Crew {
    pub fn len(&self) -> usize {
        self.workers.len().max(1)
    }

    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Each in turn, for what is as well on one as on another.
    pub fn next(&self) -> Place {
        self.next.fetch_add(1, Ordering::Relaxed) % self.len()
    }

    /// Sockets that are made while this is held are that worker's.
    pub fn enter(&self, place: Place) -> Option<EnterGuard<'_>> {
        self.handle(place).map(Handle::enter)
    }

    pub(super) fn handle(&self, place: Place) -> Option<&Handle> {
        self.workers.get(place).map(|worker| &worker.handle)
    }

    /// Room for a connection there.
    pub fn seat(&self, place: Place) -> Seat {
        if let Some(worker) = self.workers.get(place) {
            worker.connections.fetch_add(1, Ordering::Relaxed);
        }
        Seat { crew: self.clone(), place }
    }

    /// Room for a connection on the worker that has the fewest; `here` where no other has fewer.
    pub fn emptiest(&self, here: Place) -> Seat {
        let load = |worker: &Worker| worker.connections.load(Ordering::Relaxed);
        let own = self.workers.get(here).map_or(0, load);
        let fewest = self.workers.iter().enumerate().map(|(n, worker)| (load(worker), n)).min();
        match fewest {
            Some((fewest, place)) if fewest < own => self.seat(place),
            Some(_) | None => self.seat(here),
        }
    }
}

/// A connection's room on a worker, as long as it lasts.
#[derive(Debug)]
pub struct Seat {
    crew: Crew,
    place: Place,
}

impl Seat {
    pub fn place(&self) -> Place {
        self.place
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(worker) = self.crew.workers.get(self.place) {
            worker.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use crate::task::Tasks;
    use crate::telemetry::stats::Stats;

    use super::*;

    #[test]
    fn a_task_stays_where_it_was_placed_and_ends_with_the_workers() {
        let workers = Workers::start(2).unwrap();
        let tasks = Tasks::new(&Stats::new()).on(workers.crew());
        let (names, seen) = mpsc::channel();
        for place in [1, 0, 1] {
            let names = names.clone();
            let handle = tasks.spawn_on(place, "named", async move {
                tokio::task::yield_now().await;
                names.send(thread::current().name().unwrap().to_owned()).unwrap();
                std::future::pending::<()>().await;
            });
            assert_eq!(seen.recv().unwrap(), format!("worker-{place}"));
            assert!(!handle.is_finished());
        }
        drop(names);
        drop(workers);
        // The tasks are gone, and with them what they held.
        assert!(seen.recv().is_err());
    }

    #[test]
    fn a_seat_is_taken_where_the_fewest_are() {
        let workers = Workers::start(3).unwrap();
        let crew = workers.crew();
        let first = crew.emptiest(1);
        assert_eq!(first.place(), 1);
        let (second, third) = (crew.emptiest(1), crew.emptiest(1));
        assert_eq!((second.place(), third.place()), (0, 2));
        // All are equal again: here.
        assert_eq!(crew.emptiest(1).place(), 1);
        drop(third);
        assert_eq!(crew.emptiest(1).place(), 2);
        assert_eq!([crew.next(), crew.next(), crew.next(), crew.next()], [0, 1, 2, 0]);
    }

    #[tokio::test]
    async fn without_workers_all_is_the_current_runtimes() {
        let tasks = Tasks::new(&Stats::new());
        assert_eq!((tasks.crew().len(), tasks.crew().next(), tasks.crew().emptiest(5).place()), (1, 0, 5));
        tasks.spawn_on(7, "here", async {}).await.unwrap();
    }
}

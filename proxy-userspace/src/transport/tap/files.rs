//! `file_per_tap`: the files of traces, which one thread writes.
//!
//! The thread begins with the first trace. The data path leaves traces in a queue of bounded size and goes on; where
//! the queue is full, a trace is lost from there on to its end. A file is opened with the first bytes of its trace,
//! as in Envoy, and closed with its connection. It holds what TLS would have hidden, so only its owner may read it.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use proxy_config::model::transport::TapFormat;
use proxy_config::tap::{self, Trace};

use super::TapStats;

/// What may wait for the disk.
const LIMIT: usize = 16 * 1024 * 1024;

/// The writer of all files of one proxy. Cheap to clone; the thread ends with the last of these, and of the traces.
#[derive(Clone, Default)]
pub(super) struct Files {
    queue: Arc<Queue>,
}

/// The end of the queue that is written to.
#[derive(Default)]
struct Queue {
    shared: Arc<Shared>,
    next: AtomicU64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// To the thread: there is something to do.
    wake: Condvar,
    /// From the thread: there is nothing more to do.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Of the jobs.
    bytes: usize,
    running: bool,
    /// The thread has a job.
    busy: bool,
    /// Nothing more will come.
    closed: bool,
    /// Traces that lost something since it was last said.
    dropped: u64,
}

enum Job {
    Write { target: Arc<Target>, trace: Trace },
    Close(u64),
}

/// One trace's file.
struct Target {
    key: u64,
    path: PathBuf,
    format: TapFormat,
    stats: Arc<TapStats>,
}

/// Where the traces of one connection go.
pub(super) struct FileTrace {
    target: Arc<Target>,
    queue: Arc<Queue>,
    begun: bool,
    lost: bool,
}

impl Files {
    pub(super) fn trace(&self, prefix: &str, id: u64, format: TapFormat, stats: Arc<TapStats>) -> FileTrace {
        let path = PathBuf::from(format!("{prefix}_{id}{}", tap::file_extension(format)));
        let key = self.queue.next.fetch_add(1, Ordering::Relaxed);
        let target = Arc::new(Target { key, path, format, stats });
        FileTrace { target, queue: self.queue.clone(), begun: false, lost: false }
    }

    pub(super) fn flush(&self, deadline: Duration) -> bool {
        let shared = &self.queue.shared;
        let state = lock(&shared.state);
        let working = |state: &mut State| state.busy || !state.jobs.is_empty();
        let waited = shared.idle.wait_timeout_while(state, deadline, working);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(state);
        !timeout.timed_out()
    }
}

impl FileTrace {
    /// Never waits for the disk.
    pub(super) fn submit(&mut self, trace: Trace) {
        if self.lost {
            return;
        }
        let job = Job::Write { target: self.target.clone(), trace };
        if self.queue.push(job) {
            self.begun = true;
        } else {
            self.lost = true;
            self.target.stats.trace_dropped.inc();
        }
    }
}

impl Drop for FileTrace {
    fn drop(&mut self) {
        if self.begun {
            // It costs nothing, so it always fits.
            self.queue.push(Job::Close(self.target.key));
        }
    }
}

impl Job {
    fn cost(&self) -> usize {
        match self {
            Self::Write { trace, .. } => trace.cost(),
            Self::Close(_) => 0,
        }
    }
}

impl Queue {
    /// False where there is no room.
    fn push(&self, job: Job) -> bool {
        let cost = job.cost();
        let mut state = lock(&self.shared.state);
        if cost > 0 && state.bytes.saturating_add(cost) > LIMIT {
            state.dropped += 1;
            return false;
        }
        if !state.running {
            state.running = self.start();
            if !state.running {
                return false;
            }
        }
        state.bytes += cost;
        state.jobs.push_back(job);
        drop(state);
        self.shared.wake.notify_one();
        true
    }

    fn start(&self) -> bool {
        let shared = self.shared.clone();
        let started = thread::Builder::new().name("tap".into()).spawn(move || shared.run());
        started.inspect_err(|error| log::error!("tap: the thread that writes files: {error}")).is_ok()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        lock(&self.shared.state).closed = true;
        self.shared.wake.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        let mut writer = Writer::default();
        while let Some(job) = self.next() {
            writer.work(job);
        }
    }

    /// Waits for the next job. None once nothing more will come.
    fn next(&self) -> Option<Job> {
        let mut state = lock(&self.state);
        state.busy = false;
        if state.dropped > 0 {
            let dropped = std::mem::take(&mut state.dropped);
            log::warn!("tap: {dropped} traces are incomplete: the disk is too slow");
        }
        loop {
            if let Some(job) = state.jobs.pop_front() {
                state.bytes -= job.cost();
                state.busy = true;
                return Some(job);
            }
            self.idle.notify_all();
            if state.closed {
                return None;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The open files.
#[derive(Default)]
struct Writer {
    /// None where the file has failed.
    open: HashMap<u64, Option<File>>,
    /// The last trace failed, and that was said.
    failing: bool,
}

impl Writer {
    fn work(&mut self, job: Job) {
        match job {
            Job::Close(key) => {
                if self.open.remove(&key).flatten().is_some() {
                    self.failing = false;
                }
            }
            Job::Write { target, trace } => {
                let file = match self.open.remove(&target.key) {
                    Some(known) => known,
                    None => self.checked(&target, create(&target)),
                };
                let written = file.and_then(|mut file| {
                    let written = file.write_all(&tap::encode(&trace, target.format));
                    self.checked(&target, written.map(|()| file))
                });
                self.open.insert(target.key, written);
            }
        }
    }

    /// A full disk is reported once, not once a connection.
    fn checked(&mut self, target: &Target, result: io::Result<File>) -> Option<File> {
        result
            .inspect_err(|error| {
                target.stats.trace_write_failed.inc();
                if !std::mem::replace(&mut self.failing, true) {
                    log::error!("tap: {}: {error}", target.path.display());
                }
            })
            .ok()
    }
}

fn create(target: &Target) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&target.path)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

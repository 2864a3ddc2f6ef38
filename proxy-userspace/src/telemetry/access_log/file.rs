//! Log files: lines gather in memory and one thread per path writes them.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use proxy_config::model::access_log::LogSink;

use super::Error;
use crate::clock;
use crate::telemetry::stats::{Counter, Gauge, Stats};

/// Envoy's: this much is written without waiting for the flush interval.
const GATHER: usize = 64 * 1024;

/// What may wait for a sink that does not take it; more is dropped.
const LIMIT: usize = 8 * 1024 * 1024;

/// All log files of one proxy.
#[derive(Debug)]
pub struct Sinks {
    files: Mutex<HashMap<PathBuf, Weak<File>>>,
    interval: Duration,
    counters: Arc<Counters>,
}

/// Envoy's `filesystem.` stats, and ours of what was lost.
#[derive(Debug)]
struct Counters {
    buffered: Arc<Counter>,
    completed: Arc<Counter>,
    failed: Arc<Counter>,
    flushed_by_timer: Arc<Counter>,
    reopen_failed: Arc<Counter>,
    total_buffered: Arc<Gauge>,
    /// What the gauge says.
    waiting: AtomicU64,
    dropped: Arc<Counter>,
}

impl Counters {
    fn buffer(&self, bytes: u64) {
        self.buffered.inc();
        self.total_buffered.set(self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes);
    }

    fn written(&self, bytes: u64) {
        self.total_buffered.set(self.waiting.fetch_sub(bytes, Ordering::Relaxed).saturating_sub(bytes));
    }
}

impl Sinks {
    /// `interval`: `--file-flush-interval-msec`.
    pub fn new(interval: Duration, stats: &Stats) -> Self {
        let counter = |name: &str| stats.counter(name);
        let counters = Counters {
            buffered: counter("filesystem.write_buffered"),
            completed: counter("filesystem.write_completed"),
            failed: counter("filesystem.write_failed"),
            flushed_by_timer: counter("filesystem.flushed_by_timer"),
            reopen_failed: counter("filesystem.reopen_failed"),
            total_buffered: stats.gauge("filesystem.write_total_buffered"),
            waiting: AtomicU64::new(0),
            dropped: counter("access_log_file.write_dropped"),
        };
        Self { files: Mutex::default(), interval, counters: Arc::new(counters) }
    }

    /// The file of a sink; opened by its first logger, closed with its last.
    pub fn open(&self, sink: &LogSink) -> Result<Arc<File>, Error> {
        let path = match sink {
            LogSink::File(path) => path.clone(),
            LogSink::Stdout => PathBuf::from("/dev/stdout"),
            LogSink::Stderr => PathBuf::from("/dev/stderr"),
        };
        let mut files = lock(&self.files);
        files.retain(|_, file| file.strong_count() > 0);
        if let Some(file) = files.get(&path).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let failed = |source| Error::Open { path: path.display().to_string(), source };
        let out = Out::open(&path).map_err(failed)?;
        let file = File::start(out, path.clone(), self.interval, self.counters.clone()).map_err(failed)?;
        files.insert(path.clone(), Arc::downgrade(&file));
        Ok(file)
    }

    /// Opens every file anew before its next write: `/reopen_logs` and SIGUSR1, after a rotation.
    pub fn reopen(&self) {
        for file in self.live() {
            lock(&file.shared.state).reopen = true;
            file.shared.wake.notify_one();
        }
    }

    /// Waits until what was logged so far is written. False if `deadline` passed first. Blocks the caller.
    pub fn flush(&self, deadline: Duration) -> bool {
        let until = clock::now() + deadline;
        self.live().iter().all(|file| file.flush(until.saturating_duration_since(clock::now())))
    }

    fn live(&self) -> Vec<Arc<File>> {
        lock(&self.files).values().filter_map(Weak::upgrade).collect()
    }
}

/// One open log.
#[derive(Debug)]
pub struct File {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    /// To the thread: there is something to do.
    wake: Condvar,
    /// From the thread: everything is written.
    written: Condvar,
    counters: Arc<Counters>,
    /// Dropped and not yet reported.
    dropped: AtomicU64,
    failing: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<u8>,
    /// The thread is writing what it took.
    writing: bool,
    flush: bool,
    reopen: bool,
    closed: bool,
}

impl File {
    fn start(out: Out, path: PathBuf, interval: Duration, counters: Arc<Counters>) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            path,
            state: Mutex::default(),
            wake: Condvar::new(),
            written: Condvar::new(),
            counters,
            dropped: AtomicU64::new(0),
            failing: AtomicBool::new(false),
        });
        let thread = shared.clone();
        thread::Builder::new().name("access-log".into()).spawn(move || thread.run(out, interval))?;
        Ok(Arc::new(Self { shared }))
    }

    /// Adds a line, which brings its own line feed. Never waits for the sink.
    pub fn write(&self, line: &[u8]) {
        let shared = &self.shared;
        let mut state = lock(&shared.state);
        if state.lines.len() + line.len() > LIMIT {
            shared.counters.dropped.inc();
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        state.lines.extend_from_slice(line);
        let full = state.lines.len() >= GATHER && !state.writing;
        // Before anybody can write it, who counts it as written.
        shared.counters.buffer(line.len() as u64);
        drop(state);
        if full {
            shared.wake.notify_one();
        }
    }

    fn flush(&self, deadline: Duration) -> bool {
        let mut state = lock(&self.shared.state);
        state.flush = true;
        self.shared.wake.notify_one();
        let busy = |state: &mut State| state.writing || !state.lines.is_empty();
        let waited = self.shared.written.wait_timeout_while(state, deadline, busy);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(state);
        !timeout.timed_out()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        lock(&self.shared.state).closed = true;
        self.shared.wake.notify_one();
    }
}

impl Shared {
    fn run(&self, mut out: Out, interval: Duration) {
        let mut taken = Vec::new();
        while self.take(&mut taken, &mut out, interval) {
            if let Err(error) = out.write(&taken) {
                self.failure(&error);
            } else {
                self.failing.store(false, Ordering::Relaxed);
                self.counters.completed.inc();
            }
            self.counters.written(taken.len() as u64);
            let dropped = self.dropped.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                log::warn!("access log {}: {dropped} lines dropped, it is too slow", self.path.display());
            }
            taken.clear();
            lock(&self.state).writing = false;
            self.written.notify_all();
        }
    }

    /// Waits for enough lines or the interval, then takes them. False once the last logger is gone.
    fn take(&self, taken: &mut Vec<u8>, out: &mut Out, interval: Duration) -> bool {
        let mut state = lock(&self.state);
        loop {
            if std::mem::take(&mut state.reopen) {
                self.reopen(out);
            }
            let flush = std::mem::take(&mut state.flush);
            if state.lines.len() >= GATHER || (flush || state.closed) && !state.lines.is_empty() {
                break;
            }
            if state.closed {
                return false;
            }
            let waited = self.wake.wait_timeout(state, interval.max(Duration::from_millis(1)));
            let (next, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = next;
            if timeout.timed_out() {
                self.counters.flushed_by_timer.inc();
                state.flush = true;
            }
        }
        std::mem::swap(&mut state.lines, taken);
        state.writing = true;
        true
    }

    /// The old file stays in use where the new one cannot be opened.
    fn reopen(&self, out: &mut Out) {
        match Out::open(&self.path) {
            Ok(new) => *out = new,
            Err(error) => {
                self.counters.reopen_failed.inc();
                log::error!("access log {}: {error}", self.path.display());
            }
        }
    }

    /// A full disk is reported once, not once a line.
    fn failure(&self, error: &io::Error) {
        self.counters.failed.inc();
        if !self.failing.swap(true, Ordering::Relaxed) {
            log::error!("access log {}: {error}", self.path.display());
        }
    }
}

/// Where bytes go. The standard streams are not opened by path: they may be sockets.
enum Out {
    Stdout,
    Stderr,
    File(std::fs::File),
}

impl Out {
    fn open(path: &std::path::Path) -> io::Result<Self> {
        match path.to_str() {
            Some("/dev/stdout" | "-") => Ok(Self::Stdout),
            Some("/dev/stderr") => Ok(Self::Stderr),
            Some(_) | None => {
                std::fs::OpenOptions::new().create(true).append(true).open(path).map(Self::File)
            }
        }
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(data)?;
                out.flush()
            }
            Self::Stderr => io::stderr().write_all(data),
            Self::File(file) => file.write_all(data),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The built-in access log: a bounded queue in front of one writing thread, and a ring of the latest records.
//!
//! The data path never waits for it: a line that finds the queue full is counted and dropped, and the writer
//! says how many were lost once it is through.

use std::collections::VecDeque;
use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::telemetry::record::Entry;
use crate::telemetry::stats::{Counter, Stats};

/// Lines that may wait for the writer.
const QUEUE: usize = 8_192;

/// How long the writer lets lines gather. While it sleeps here a sender has nobody to wake, which would cost the
/// data path more than all else that it does for the log.
const GATHER: Duration = Duration::from_millis(20);

/// Where lines go.
pub type Sink = Box<dyn Write + Send>;

/// Opens a log file for appending; `-` and `/dev/stdout` are the standard output.
pub fn open(path: &str) -> io::Result<Sink> {
    if matches!(path, "-" | "/dev/stdout") {
        return Ok(Box::new(io::stdout()));
    }
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    Ok(Box::new(file))
}

/// A handle; clones write to the same log.
#[derive(Clone, Debug)]
pub struct AccessLog {
    shared: Arc<Shared>,
}

impl AccessLog {
    /// Starts the writing thread, unless there is no sink, and keeps the last `ring` records in memory.
    pub fn start(sink: Option<Sink>, ring: usize, stats: &Stats) -> io::Result<Self> {
        Self::with_queue(sink, ring, QUEUE, stats)
    }

    fn with_queue(sink: Option<Sink>, ring: usize, queue: usize, stats: &Stats) -> io::Result<Self> {
        let dropped = Arc::new(AtomicU64::new(0));
        let queue = match sink {
            None => None,
            Some(sink) => {
                let (sender, lines) = sync_channel(queue);
                let writer = Writer {
                    out: BufWriter::new(sink),
                    dropped: dropped.clone(),
                    completed: stats.counter("access_log_file.write_completed"),
                    failed: stats.counter("access_log_file.write_failed"),
                    failing: false,
                };
                thread::Builder::new().name("access-log".into()).spawn(move || writer.run(&lines))?;
                Some(sender)
            }
        };
        let latest = Mutex::new(VecDeque::with_capacity(ring.min(1_024)));
        let write_dropped = stats.counter("access_log_file.write_dropped");
        Ok(Self { shared: Arc::new(Shared { queue, dropped, write_dropped, ring, latest }) })
    }

    /// The latest records, oldest first.
    pub fn snapshot(&self) -> Vec<Arc<Entry>> {
        self.shared.latest().iter().cloned().collect()
    }

    /// Waits until everything logged so far has reached the sink. False if `deadline` passed first: the sink may
    /// be a pipe that nobody reads. Blocks the calling thread.
    pub fn flush(&self, deadline: Duration) -> bool {
        let Some(queue) = &self.shared.queue else { return true };
        let (done, flushed) = sync_channel(1);
        // A full queue has no room for the request; it is not worth waiting longer than one deadline for both.
        queue.try_send(Message::Flush(done)).is_ok() && flushed.recv_timeout(deadline).is_ok()
    }

    pub(in crate::telemetry) fn push(&self, entry: &Entry) {
        if self.shared.queue.is_none() && self.shared.ring == 0 {
            return;
        }
        self.send(Arc::new(entry.clone()));
    }

    /// As [`Self::push`], of what nobody needs any longer.
    pub(crate) fn keep(&self, entry: Box<Entry>) {
        if self.shared.queue.is_some() || self.shared.ring > 0 {
            self.send(Arc::from(entry));
        }
    }

    fn send(&self, entry: Arc<Entry>) {
        if let Some(queue) = &self.shared.queue {
            match queue.try_send(Message::Line(entry.clone())) {
                Ok(()) => {}
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                    self.shared.write_dropped.inc();
                    self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        if self.shared.ring > 0 {
            let mut latest = self.shared.latest();
            if latest.len() == self.shared.ring {
                latest.pop_front();
            }
            latest.push_back(entry);
        }
    }
}

#[derive(Debug)]
struct Shared {
    queue: Option<SyncSender<Message>>,
    /// Dropped and not yet reported.
    dropped: Arc<AtomicU64>,
    write_dropped: Arc<Counter>,
    ring: usize,
    latest: Mutex<VecDeque<Arc<Entry>>>,
}

impl Shared {
    fn latest(&self) -> MutexGuard<'_, VecDeque<Arc<Entry>>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
enum Message {
    Line(Arc<Entry>),
    Flush(SyncSender<()>),
}

struct Writer {
    out: BufWriter<Sink>,
    dropped: Arc<AtomicU64>,
    completed: Arc<Counter>,
    failed: Arc<Counter>,
    /// Whether the last write failed: a full disk is reported once, not once a line.
    failing: bool,
}

impl Writer {
    fn run(mut self, lines: &Receiver<Message>) {
        while let Ok(message) = self.next(lines) {
            match message {
                Message::Line(entry) => self.write(&entry),
                Message::Flush(done) => {
                    self.flush();
                    // The one who asked may have given up.
                    let _ = done.try_send(());
                }
            }
        }
    }

    /// The next message; flushes before it sleeps, so a quiet proxy's log is complete.
    fn next(&mut self, lines: &Receiver<Message>) -> Result<Message, RecvError> {
        if let Ok(message) = lines.try_recv() {
            return Ok(message);
        }
        self.flush();
        thread::sleep(GATHER);
        lines.recv()
    }

    fn write(&mut self, entry: &Entry) {
        let line = entry.json().map_err(io::Error::from);
        let result = line.and_then(|line| writeln!(self.out, "{line}"));
        match result {
            Ok(()) => self.completed.inc(),
            Err(error) => self.failure(&error),
        }
    }

    fn flush(&mut self) {
        match self.out.flush() {
            Ok(()) => self.failing = false,
            Err(error) => self.failure(&error),
        }
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            log::warn!("access log: {dropped} lines dropped, the sink is too slow");
        }
    }

    fn failure(&mut self, error: &io::Error) {
        self.failed.inc();
        if !self.failing {
            log::error!("access log: {error}");
        }
        self.failing = true;
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::mpsc;

    use super::*;
    use crate::net::Direction;
    use crate::net::facts::Facts;
    use crate::telemetry::{ConnRecord, Flags, Origin, Outcome, Side};

    /// Passes on what is written; each write waits for a permit, if there is a gate.
    struct Pipe {
        out: mpsc::Sender<Vec<u8>>,
        gate: Option<Receiver<()>>,
    }

    impl Write for Pipe {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            if let Some(gate) = &self.gate {
                gate.recv().map_err(io::Error::other)?;
            }
            self.out.send(data.to_vec()).map_err(io::Error::other)?;
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn record(log: &AccessLog) -> ConnRecord {
        let remote: SocketAddr = "10.0.0.1:4000".parse().unwrap();
        let origin = Origin {
            connection_id: 1,
            workload: Some("w".into()),
            direction: Some(Direction::Outbound),
            listener: "virtualOutbound".into(),
        };
        ConnRecord::new(log.clone(), origin, Facts::new(remote, remote))
    }

    #[test]
    fn a_line_has_envoys_fields() {
        let (out, written) = mpsc::channel();
        let log = AccessLog::start(Some(Box::new(Pipe { out, gate: None })), 2, &Stats::new()).unwrap();
        let mut first = record(&log);
        first.entry.original_dst = Some("[2001:db8::1]:80".parse().unwrap());
        first.finish(Outcome::new(Side::Upstream, Flags::UF | Flags::URX, "upstream_connect_refused"));
        assert!(log.flush(Duration::from_secs(10)));
        let line: serde_json::Value = serde_json::from_slice(&written.recv().unwrap()).unwrap();
        assert_eq!(line["original_dst"], "[2001:db8::1]:80");
        assert_eq!(line["downstream_local_address"], line["original_dst"]);
        assert_eq!(line["downstream_remote_address"], "10.0.0.1:4000");
        assert_eq!(line["listener"], "virtualOutbound");
        assert_eq!(line["response_flags"], "UF,URX");
        assert_eq!(line["termination_source"], "Upstream");
        assert!(line["upstream_host"].is_null());
    }

    #[test]
    fn the_ring_keeps_the_latest_and_a_dropped_record_is_logged() {
        let log = AccessLog::start(None, 2, &Stats::new()).unwrap();
        record(&log).finish(Outcome::new(Side::Internal, Flags::NONE, "first"));
        record(&log).finish(Outcome::new(Side::Internal, Flags::NONE, "second"));
        drop(record(&log));
        let details: Vec<_> = log.snapshot().iter().map(|entry| entry.outcome.details.to_string()).collect();
        assert_eq!(details, ["second", "aborted"]);
    }

    #[test]
    fn a_stuck_sink_costs_lines_and_never_blocks() {
        let stats = Stats::new();
        let (out, written) = mpsc::channel();
        let (permit, gate) = mpsc::channel();
        let sink: Sink = Box::new(Pipe { out, gate: Some(gate) });
        let log = AccessLog::with_queue(Some(sink), 0, 4, &stats).unwrap();
        for _ in 0..100 {
            drop(record(&log));
        }
        let dropped = stats.value("access_log_file.write_dropped").unwrap();
        // Four wait, and the writer may have buffered some more before it got stuck.
        assert!((70..=96).contains(&dropped), "{dropped}");
        assert!(!log.flush(Duration::from_millis(1)));
        (0..100).for_each(|_| permit.send(()).unwrap());
        while !log.flush(Duration::from_secs(10)) {}
        let lines: usize = written.try_iter().map(|data| data.iter().filter(|b| **b == b'\n').count()).sum();
        assert_eq!(lines as u64, 100 - dropped);
    }
}

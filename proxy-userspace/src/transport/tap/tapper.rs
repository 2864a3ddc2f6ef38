//! The events of one connection, as Envoy's `PerSocketTapperImpl` makes them.
//!
//! - Buffered: each event carries what still fits below its direction's limit. The event that does not fit whole is
//!   marked, so is the trace, and that direction makes no events any more.
//! - Streamed: each event is a trace, cut to the limit by itself. `seq_num` counts bytes of both directions from 1.
//! - Gathered (`min_streamed_sent_bytes`): events wait until they have so many bytes, and are not cut.
//!
//! Envoy learns of the end of a stream together with the last bytes, if they came together; here the end is a call
//! of its own. So a write is held until something else happens: if that is the end, it is the write's.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proxy_config::tap::{Body, Buffered, Connection, Event, Piece, Trace, What};

use super::plan::{Handle, Mode, Plan};
use super::{TapStats, Traced};
use crate::clock;

/// Envoy's `DefaultBufferedAgedDuration`: gathered events that span as many seconds are not held back.
const AGED: Duration = Duration::from_secs(15);

pub(super) struct Tapper {
    plan: Arc<Plan>,
    traced: Traced,
    per_event: bool,
    stats: Arc<TapStats>,
    /// None once the trace has ended.
    handle: Option<Handle>,
    /// The last write, which the end of the stream may belong to.
    held: Option<Event>,
    whole: Buffered,
    rx: usize,
    tx: usize,
    seq_num: u64,
    gathered: Vec<Event>,
    gathered_bytes: usize,
}

impl Tapper {
    pub(super) fn new(plan: Arc<Plan>, mut traced: Traced, per_event: bool, stats: Arc<TapStats>) -> Self {
        let handle = Some(plan.handle(&traced, &stats));
        let first = std::mem::take(&mut traced.at_first);
        let mut tapper = Self {
            plan,
            traced,
            per_event,
            stats,
            handle,
            held: None,
            whole: Buffered::default(),
            rx: 0,
            tx: 0,
            seq_num: 1,
            gathered: Vec::new(),
            gathered_bytes: 0,
        };
        if tapper.is_streamed() {
            tapper.submit(Piece::Connection(first));
        }
        tapper
    }

    /// Whether somebody may be waiting for events as they come.
    pub(super) fn is_streamed(&self) -> bool {
        match self.plan.mode {
            Mode::Buffered { .. } => false,
            Mode::Streamed { .. } | Mode::Gathered { .. } => true,
        }
    }

    /// A write is held.
    pub(super) fn holds(&self) -> bool {
        self.held.is_some()
    }

    pub(super) fn on_read(&mut self, bytes: &[u8]) {
        self.settle(false);
        let body = match self.plan.mode {
            Mode::Buffered { .. } if self.whole.read_truncated => return,
            Mode::Buffered { rx: limit, .. } => {
                let body = cut(bytes, limit.saturating_sub(self.rx));
                self.rx += body.bytes.len();
                self.whole.read_truncated = body.truncated;
                body
            }
            Mode::Streamed { rx: limit, .. } => cut(bytes, limit),
            Mode::Gathered { .. } => cut(bytes, usize::MAX),
        };
        let event = self.event(What::Read(body), bytes.len());
        self.emit(event);
    }

    pub(super) fn on_write(&mut self, bytes: &[u8]) {
        self.settle(false);
        let body = match self.plan.mode {
            Mode::Buffered { .. } if self.whole.write_truncated => return,
            Mode::Buffered { tx: limit, .. } => {
                let body = cut(bytes, limit.saturating_sub(self.tx));
                self.tx += body.bytes.len();
                self.whole.write_truncated = body.truncated;
                body
            }
            Mode::Streamed { tx: limit, .. } => cut(bytes, limit),
            Mode::Gathered { .. } => cut(bytes, usize::MAX),
        };
        self.held = Some(self.event(What::Write { body, end_stream: false }, bytes.len()));
    }

    /// The held write is all there was to it, or it was the last.
    pub(super) fn settle(&mut self, last: bool) {
        let Some(mut event) = self.held.take() else { return };
        if let What::Write { end_stream, .. } = &mut event.what {
            *end_stream = last;
        }
        self.emit(event);
    }

    /// The connection ends. What is called after this has no effect.
    pub(super) fn finish(&mut self) {
        if self.handle.is_none() {
            return;
        }
        self.settle(false);
        match self.plan.mode {
            Mode::Buffered { .. } => {
                let connection = self.traced.connection.clone();
                let whole = Buffered { connection, ..std::mem::take(&mut self.whole) };
                self.submit(Piece::Buffered(whole));
            }
            Mode::Streamed { .. } => {
                let event = self.closed();
                self.submit(Piece::Event(event));
            }
            Mode::Gathered { .. } => {
                let event = self.closed();
                self.gathered.push(event);
                self.submit_gathered();
            }
        }
        self.handle = None;
    }

    fn closed(&mut self) -> Event {
        self.seq_num += 1;
        self.event(What::Closed, 0)
    }

    fn event(&mut self, what: What, bytes: usize) -> Event {
        let at = clock::wall();
        if !self.is_streamed() {
            return Event { at, what, connection: None, seq_num: 0 };
        }
        let seq_num = self.seq_num;
        self.seq_num = seq_num.saturating_add(bytes as u64);
        let connection: Option<Connection> = self.per_event.then(|| self.traced.connection.clone());
        Event { at, what, connection, seq_num }
    }

    fn emit(&mut self, event: Event) {
        match self.plan.mode {
            // After the end nothing reads them.
            _ if self.handle.is_none() => {}
            Mode::Buffered { .. } => self.whole.events.push(event),
            Mode::Streamed { .. } => self.submit(Piece::Event(event)),
            Mode::Gathered { bytes } => {
                self.gathered_bytes += event.bytes();
                self.gathered.push(event);
                if self.gathered_bytes >= bytes || self.is_aged() {
                    self.submit_gathered();
                }
            }
        }
    }

    /// By whole seconds, as Envoy counts.
    fn is_aged(&self) -> bool {
        let second =
            |event: &Event| event.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        match self.gathered.as_slice() {
            [first, .., last] => second(last).saturating_sub(second(first)) >= AGED.as_secs(),
            _ => false,
        }
    }

    fn submit_gathered(&mut self) {
        self.gathered_bytes = 0;
        let events = std::mem::take(&mut self.gathered);
        self.submit(Piece::Events(events));
    }

    fn submit(&mut self, piece: Piece) {
        let counter = match piece {
            Piece::Buffered(_) => &self.stats.buffered_submit,
            Piece::Connection(_) | Piece::Event(_) | Piece::Events(_) => &self.stats.streamed_submit,
        };
        counter.inc();
        let trace = Trace { id: self.traced.id, piece, sample_rate: self.plan.enabled };
        match &mut self.handle {
            Some(Handle::File(file)) => file.submit(trace),
            Some(Handle::Admin(admin)) => admin.submit(trace),
            None => {}
        }
    }
}

impl Drop for Tapper {
    /// A connection that nobody has ended: its task was.
    fn drop(&mut self) {
        self.finish();
    }
}

fn cut(bytes: &[u8], limit: usize) -> Body {
    let kept = bytes.get(..limit).unwrap_or(bytes);
    Body { bytes: kept.to_vec(), truncated: kept.len() < bytes.len() }
}

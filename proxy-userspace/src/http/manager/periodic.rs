//! Lines about a stream while it lasts: `access_log_flush_interval`.

use std::sync::Arc;
use std::time::Duration;

use super::meter::Meter;
use crate::clock::{self, Instant};
use crate::http::{Hcm, Stream};
use crate::telemetry::{Entry, LogType};

pub(super) struct Periodic {
    hcm: Arc<Hcm>,
    every: Duration,
    start: Instant,
    next: Instant,
    /// The stream as it was when it was looked at last: whoever serves it has it meanwhile.
    entry: Box<Entry>,
}

impl Periodic {
    /// None: no such lines are wanted.
    pub(super) fn new(stream: &Stream) -> Option<Self> {
        let hcm = stream.conn.hcm.clone();
        let every = hcm.model.access_log_flush_interval.filter(|_| !hcm.access_log.is_empty())?;
        let next = clock::lately().checked_add(every)?;
        Some(Self { every, start: stream.start.at, next, entry: stream.entry.clone(), hcm })
    }

    /// What is known of it by now.
    pub(super) fn look(&mut self, stream: &Stream) {
        self.entry.clone_from(&stream.entry);
    }

    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Writes a line, if it is time.
    pub(super) fn tick(&mut self, now: Instant, meter: Option<&Meter>) {
        if now < self.next {
            return;
        }
        self.next = now + self.every;
        let entry = &mut self.entry;
        entry.log_type = LogType::DownstreamPeriodic;
        entry.duration = now - self.start;
        if let Some(meter) = meter {
            entry.bytes.downstream_rx = meter.received().0;
            entry.bytes.downstream_tx = meter.sent();
        }
        self.hcm.access_log.iter().for_each(|logger| logger.log(entry));
    }
}

//! What the crate does not limit: frames that cost the peer little and us much. They are counted between the socket
//! and the crate, by their heads alone; a peer that goes too far loses its connection, as Envoy's
//! `ProtocolConstraints` have it.

use std::sync::atomic::Ordering;

use h2::Reason;

use super::watch::blame::Place;
use super::watch::frames::{Head, Kind};
use super::watch::{End, Seen};
use crate::clock::{self, Instant};

/// Of Envoy's `Http2ProtocolOptions`, with its defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Frames that ask for an answer (PING, SETTINGS) and were not earned by other traffic.
    pub max_outbound_control_frames: u32,
    pub max_consecutive_inbound_frames_with_empty_payload: u32,
    pub max_inbound_priority_frames_per_stream: u32,
    pub max_inbound_window_update_frames_per_data_frame_sent: u32,
    /// Envoy's `overload.premature_reset_total_stream_count`: of so many streams, half may be reset young.
    pub premature_resets: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_outbound_control_frames: 1000,
            max_consecutive_inbound_frames_with_empty_payload: 1,
            max_inbound_priority_frames_per_stream: 100,
            max_inbound_window_update_frames_per_data_frame_sent: 10,
            premature_resets: 500,
        }
    }
}

/// How a peer went too far. Named as Envoy's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    EmptyFrames,
    Priority,
    WindowUpdate,
    /// Envoy counts the answers that wait, this counts what asks for them.
    Control,
    PrematureResets,
    /// The connection does not begin with SETTINGS.
    Preface,
}

impl Violation {
    pub fn name(self) -> &'static str {
        match self {
            Self::EmptyFrames => "inbound_empty_frames_flood",
            Self::Priority => "inbound_priority_frames_flood",
            Self::WindowUpdate => "inbound_window_update_frames_flood",
            Self::Control => "outbound_control_flood",
            Self::PrematureResets => "too_many_premature_resets",
            Self::Preface => "protocol_error",
        }
    }

    /// What the peer is told.
    pub fn reason(self) -> Reason {
        match self {
            Self::EmptyFrames
            | Self::Priority
            | Self::WindowUpdate
            | Self::Control
            | Self::PrematureResets => Reason::ENHANCE_YOUR_CALM,
            Self::Preface => Reason::PROTOCOL_ERROR,
        }
    }
}

/// A stream that is reset within this of its beginning was never meant: Envoy's
/// `overload.premature_reset_min_stream_lifetime_seconds`.
const YOUNG_SECS: u64 = 1;

pub(super) struct Counts {
    limits: Limits,
    end: End,
    pub(super) violation: Option<Violation>,
    /// A frame has come.
    begun: bool,
    /// The stream of a header block that goes on.
    block: Option<u32>,
    /// Of the last frame.
    pub(super) place: Place,
    streams: u64,
    data_sent: u64,
    empty: u32,
    priority: u64,
    window_update: u64,
    control: Control,
    resets: Resets,
}

impl Counts {
    pub(super) fn new(limits: Limits, end: End, table: usize) -> Self {
        let control = Control::new(limits.max_outbound_control_frames);
        Self {
            limits,
            end,
            violation: None,
            begun: false,
            block: None,
            place: Place { table, ..Place::default() },
            streams: 0,
            data_sent: 0,
            empty: 0,
            priority: 0,
            window_update: 0,
            control,
            resets: Resets::default(),
        }
    }

    pub(super) fn received(&mut self, head: Head, seen: &Seen) {
        if !std::mem::replace(&mut self.begun, true) {
            // RFC 9113, 3.4, which the crate does not check.
            self.check(head.kind != Kind::Settings || head.is_ack(), Violation::Preface);
        }
        self.follow(head);
        match head.kind {
            Kind::Headers | Kind::Continuation | Kind::Data => self.message(head),
            Kind::Priority => {
                self.priority += 1;
                let per_stream = u64::from(self.limits.max_inbound_priority_frames_per_stream);
                self.check(self.priority > per_stream * (1 + self.streams), Violation::Priority);
            }
            Kind::WindowUpdate => {
                self.window_update += 1;
                let per_data = u64::from(self.limits.max_inbound_window_update_frames_per_data_frame_sent);
                let limit = 5 + 2 * (self.streams + per_data * self.data_sent);
                self.check(self.window_update > limit, Violation::WindowUpdate);
            }
            Kind::Ping | Kind::Settings if !head.is_ack() => {
                let spent = !self.control.take();
                self.check(spent, Violation::Control);
            }
            Kind::Reset => {
                seen.rx_resets.fetch_add(1, Ordering::Relaxed);
                if self.end == End::Server {
                    let many = self.resets.many(head.stream, self.streams, self.limits.premature_resets);
                    self.check(many, Violation::PrematureResets);
                }
            }
            Kind::GoAway => seen.going_away.store(true, Ordering::Relaxed),
            Kind::Ping | Kind::Settings | Kind::PushPromise | Kind::Unknown => {}
        }
    }

    fn follow(&mut self, head: Head) {
        let goes_on = (head.kind == Kind::Continuation).then_some(head.stream);
        self.place.in_order = self.block == goes_on;
        if head.kind != Kind::Continuation {
            self.place.last = self.resets.last;
        }
        let is_block = matches!(head.kind, Kind::Headers | Kind::Continuation);
        self.block = (is_block && !head.is_end_headers()).then_some(head.stream);
    }

    fn message(&mut self, head: Head) {
        if head.kind != Kind::Data && head.is_end_headers() {
            self.streams += 1;
            self.resets.opened(head.stream);
        }
        if head.payload == Some(0) && !head.is_end_stream() {
            self.empty += 1;
            let limit = self.limits.max_consecutive_inbound_frames_with_empty_payload;
            self.check(self.empty > limit, Violation::EmptyFrames);
        } else {
            self.empty = 0;
        }
        self.control.earn(1);
    }

    pub(super) fn sent(&mut self, head: Head, seen: &Seen) {
        match head.kind {
            Kind::Data => {
                self.data_sent += 1;
                self.control.earn(1);
            }
            Kind::Reset => {
                seen.tx_resets.fetch_add(1, Ordering::Relaxed);
            }
            // An upstream's windows are its own affair: each stream that we open may have some.
            Kind::Headers if self.end == End::Client => self.streams += 1,
            Kind::Headers
            | Kind::Continuation
            | Kind::Priority
            | Kind::WindowUpdate
            | Kind::Ping
            | Kind::Settings
            | Kind::GoAway
            | Kind::PushPromise
            | Kind::Unknown => {}
        }
    }

    fn check(&mut self, violated: bool, violation: Violation) {
        if violated && self.violation.is_none() {
            self.violation = Some(violation);
        }
    }
}

/// Answers that a peer may ask for: a stock that other traffic and time fill again.
struct Control {
    most: u64,
    left: u64,
    at: Instant,
}

/// What time gives back each second, of the whole stock: a tenth.
const PER_SECOND: u64 = 10;

impl Control {
    fn new(most: u32) -> Self {
        let most = u64::from(most);
        Self { most, left: most, at: clock::now() }
    }

    fn earn(&mut self, n: u64) {
        self.left = (self.left + n).min(self.most);
    }

    fn take(&mut self) -> bool {
        if self.left == 0 {
            let now = clock::now();
            let millis = u64::try_from((now - self.at).as_millis()).unwrap_or(u64::MAX);
            self.left = (self.most.saturating_mul(millis) / 1000 / PER_SECOND).min(self.most);
            self.at = now;
        }
        let some = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some
    }
}

/// Streams that the peer opened only to reset them (CVE-2023-44487).
#[derive(Default)]
struct Resets {
    premature: u64,
    /// The last stream that was opened.
    last: u32,
    /// Streams above the first were opened after the second moment, and so on: two marks, each a second old at least
    /// when it is replaced.
    old: u32,
    mark: Option<(Instant, u32)>,
}

impl Resets {
    fn opened(&mut self, stream: u32) {
        self.last = self.last.max(stream);
    }

    /// Counts a reset; whether they are too many. As Envoy's `maybeDrainDueToPrematureResets`.
    fn many(&mut self, stream: u32, streams: u64, limit: u64) -> bool {
        let now = clock::now();
        match self.mark {
            Some((at, last)) if (now - at).as_secs() >= YOUNG_SECS => {
                self.old = last;
                self.mark = Some((now, self.last));
            }
            Some(_) => {}
            None => self.mark = Some((now, self.last)),
        }
        if stream <= self.old {
            return false;
        }
        self.premature += 1;
        let of = if streams < limit { limit } else { streams };
        self.premature * 2 >= of
    }
}

//! What the crate does not limit: frames that cost the peer little and us much. They are counted between the socket
//! and the crate, by their heads alone; a peer that goes too far loses its connection, as Envoy's
//! `ProtocolConstraints` have it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use h2::Reason;

use super::stock::{Allowance, Control};
use super::watch::blame::Place;
use super::watch::frames::{Head, Kind};
use super::watch::{End, Seen};
use super::{Http2Stats, Settings};
use crate::clock::{self, Instant};

/// Of Envoy's `Http2ProtocolOptions`, with its defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Frames that ask for an answer (PING, SETTINGS) and were not earned by other traffic.
    pub max_outbound_control_frames: u32,
    pub max_consecutive_inbound_frames_with_empty_payload: u32,
    pub max_inbound_priority_frames_per_stream: u32,
    pub max_inbound_window_update_frames_per_data_frame_sent: u32,
    /// Frames RST_STREAM at once, and in each second: Envoy's `stream_reset_burst` and `stream_reset_rate`.
    pub stream_reset_burst: u64,
    pub stream_reset_rate: u64,
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
            stream_reset_burst: 1000,
            stream_reset_rate: 33,
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
    /// More than are allowed in that time, of streams young or old.
    Resets,
    /// The connection does not begin with SETTINGS.
    Preface,
    /// With pseudo-headers.
    Trailers,
}

impl Violation {
    pub fn name(self) -> &'static str {
        match self {
            Self::EmptyFrames => "inbound_empty_frames_flood",
            Self::Priority => "inbound_priority_frames_flood",
            Self::WindowUpdate => "inbound_window_update_frames_flood",
            Self::Control => "outbound_control_flood",
            Self::PrematureResets => "too_many_premature_resets",
            Self::Resets => "stream_reset_flood",
            Self::Preface | Self::Trailers => "protocol_error",
        }
    }

    /// What the peer is told.
    pub fn reason(self) -> Reason {
        match self {
            Self::EmptyFrames
            | Self::Priority
            | Self::WindowUpdate
            | Self::Control
            | Self::PrematureResets
            | Self::Resets => Reason::ENHANCE_YOUR_CALM,
            Self::Preface | Self::Trailers => Reason::PROTOCOL_ERROR,
        }
    }
}

/// A stream that is reset within this of its beginning was never meant: Envoy's
/// `overload.premature_reset_min_stream_lifetime_seconds`.
const YOUNG_SECS: u64 = 1;

pub(super) struct Counts {
    limits: Limits,
    end: End,
    stats: Arc<Http2Stats>,
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
    /// Of frames RST_STREAM.
    allowance: Allowance,
}

impl Counts {
    pub(super) fn new(settings: &Settings, end: End) -> Self {
        let (limits, table) = (settings.limits.clone(), settings.hpack_table_size as usize);
        let control = Control::new(limits.max_outbound_control_frames);
        let allowance = Allowance::new(limits.stream_reset_burst, limits.stream_reset_rate);
        Self {
            limits,
            end,
            stats: settings.stats.clone(),
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
            allowance,
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
                self.stats.rx_reset.inc();
                if self.end == End::Server {
                    let spent = !self.allowance.take();
                    self.check(spent, Violation::Resets);
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

    pub(super) fn sent(&mut self, head: Head) {
        match head.kind {
            Kind::Data => {
                self.data_sent += 1;
                self.control.earn(1);
            }
            Kind::Reset => {
                self.stats.tx_reset.inc();
            }
            Kind::GoAway => self.stats.goaway_sent.inc(),
            // An upstream's windows are its own affair: each stream that we open may have some.
            Kind::Headers if self.end == End::Client => self.streams += 1,
            Kind::Headers
            | Kind::Continuation
            | Kind::Priority
            | Kind::WindowUpdate
            | Kind::Ping
            | Kind::Settings
            | Kind::PushPromise
            | Kind::Unknown => {}
        }
    }

    fn check(&mut self, violated: bool, violation: Violation) {
        if violated && self.violation.is_none() {
            self.refuse(violation);
        }
    }

    /// Once.
    pub(super) fn refuse(&mut self, violation: Violation) {
        self.violation = Some(violation);
        match violation {
            Violation::EmptyFrames => self.stats.inbound_empty_frames_flood.inc(),
            Violation::Priority => self.stats.inbound_priority_frames_flood.inc(),
            Violation::WindowUpdate => self.stats.inbound_window_update_frames_flood.inc(),
            Violation::Control => self.stats.outbound_control_flood.inc(),
            Violation::PrematureResets | Violation::Resets => {}
            Violation::Preface | Violation::Trailers => self.stats.rx_messaging_error.inc(),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;

    fn frame(kind: Kind, flags: u8, stream: u32, payload: usize) -> Head {
        Head { kind, flags, stream, len: payload, payload: Some(payload) }
    }

    fn server() -> Counts {
        let mut settings = Settings::default();
        // What each second allows has a test of its own.
        settings.limits.stream_reset_burst = u64::MAX;
        let mut counts = Counts::new(&settings, End::Server);
        counts.received(frame(Kind::Settings, 0, 0, 0), &Seen::default());
        counts
    }

    /// Which frame is one too many, of those that `make` makes.
    fn limit(counts: &mut Counts, make: impl Fn(u32) -> Head) -> (u32, Option<Violation>) {
        for n in 0..100_000 {
            counts.received(make(n), &Seen::default());
            if counts.violation.is_some() {
                return (n, counts.violation);
            }
        }
        (100_000, None)
    }

    fn open(stream: u32) -> Head {
        frame(Kind::Headers, END_HEADERS, stream, 10)
    }

    #[tokio::test(start_paused = true)]
    async fn each_flood_ends_where_it_does_in_envoy() {
        let one = |kind, flags, payload| move |_: u32| frame(kind, flags, 1, payload);
        for (what, (n, violation), expected) in [
            ("PING", limit(&mut server(), one(Kind::Ping, 0, 8)), (999, Violation::Control)),
            ("SETTINGS", limit(&mut server(), one(Kind::Settings, 0, 0)), (999, Violation::Control)),
            ("PRIORITY", limit(&mut server(), one(Kind::Priority, 0, 5)), (100, Violation::Priority)),
            (
                "WINDOW_UPDATE",
                limit(&mut server(), one(Kind::WindowUpdate, 0, 4)),
                (5, Violation::WindowUpdate),
            ),
            ("empty DATA", limit(&mut server(), one(Kind::Data, 0, 0)), (1, Violation::EmptyFrames)),
            (
                "empty CONTINUATION",
                limit(&mut server(), one(Kind::Continuation, 0, 0)),
                (1, Violation::EmptyFrames),
            ),
        ] {
            assert_eq!((n, violation), (expected.0, Some(expected.1)), "{what}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_earned_is_no_flood() {
        for (what, frames) in [
            ("ACKs", [frame(Kind::Ping, 1, 0, 8), frame(Kind::Settings, 1, 0, 0)]),
            ("a PING for each DATA", [frame(Kind::Ping, 0, 0, 8), frame(Kind::Data, 0, 1, 10)]),
            ("empty DATA between others", [frame(Kind::Data, 0, 1, 0), frame(Kind::Data, 0, 1, 10)]),
            (
                "empty DATA at the end",
                [frame(Kind::Data, END_STREAM, 1, 0), frame(Kind::Data, END_STREAM, 3, 0)],
            ),
            ("PRIORITY for each stream", [open(1), frame(Kind::Priority, 0, 1, 5)]),
            ("WINDOW_UPDATE for each stream", [open(1), frame(Kind::WindowUpdate, 0, 1, 4)]),
        ] {
            let of = |n: u32| frames[n as usize % 2];
            assert_eq!(limit(&mut server(), of).1, None, "{what}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn data_that_is_sent_earns_window_updates() {
        let mut counts = server();
        for _ in 0..10 {
            counts.sent(frame(Kind::Data, 0, 1, 10));
        }
        let update = |_| frame(Kind::WindowUpdate, 0, 1, 4);
        assert_eq!(limit(&mut counts, update), (205, Some(Violation::WindowUpdate)));
    }

    #[tokio::test(start_paused = true)]
    async fn time_gives_pings_back() {
        let mut counts = server();
        let ping = frame(Kind::Ping, 0, 0, 8);
        for _ in 0..20 {
            for _ in 0..100 {
                counts.received(ping, &Seen::default());
            }
            tokio::time::advance(std::time::Duration::from_secs(1)).await;
        }
        assert_eq!(counts.violation, None);
    }

    /// Opens streams, and resets each that `reset` says.
    fn streams(n: u32, counts: &mut Counts, reset: impl Fn(u32) -> bool) -> Option<u32> {
        for at in 0..n {
            let stream = counts.resets.last + if counts.resets.last == 0 { 1 } else { 2 };
            counts.received(open(stream), &Seen::default());
            if reset(at) {
                counts.received(frame(Kind::Reset, 0, stream, 4), &Seen::default());
            }
            if counts.violation.is_some() {
                assert_eq!(counts.violation, Some(Violation::PrematureResets));
                return Some(at);
            }
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_five_hundred_streams_may_be_reset_young() {
        assert_eq!(streams(5_000, &mut server(), |_| true), Some(249));
        assert_eq!(streams(5_000, &mut server(), |n| n % 3 == 0), None);
        // Never closed but by the count of what follows.
        assert_eq!(streams(5_000, &mut server(), |n| n >= 1_000), Some(1_999));
    }

    #[tokio::test(start_paused = true)]
    async fn resets_of_old_streams_are_no_abuse() {
        let mut counts = server();
        for round in 0..20 {
            streams(100, &mut counts, |_| false);
            for n in 0..3 {
                // The moments that were marked move on with the resets.
                tokio::time::advance(std::time::Duration::from_secs(2)).await;
                let old = frame(Kind::Reset, 0, 1 + 200 * round + 2 * n, 4);
                counts.received(old, &Seen::default());
            }
            for n in 3..100 {
                counts.received(frame(Kind::Reset, 0, 1 + 200 * round + 2 * n, 4), &Seen::default());
            }
        }
        assert_eq!(counts.violation, None);
    }

    #[tokio::test(start_paused = true)]
    async fn resets_have_an_allowance() {
        let mut settings = Settings::default();
        (settings.limits.stream_reset_burst, settings.limits.stream_reset_rate) = (3, 2);
        let mut counts = Counts::new(&settings, End::Server);
        counts.received(frame(Kind::Settings, 0, 0, 0), &Seen::default());
        let reset = |n: u32| frame(Kind::Reset, 0, 1 + 2 * n, 4);
        for n in 0..3 {
            counts.received(reset(n), &Seen::default());
        }
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        for n in 3..5 {
            counts.received(reset(n), &Seen::default());
        }
        assert_eq!(counts.violation, None);
        counts.received(reset(5), &Seen::default());
        assert_eq!(counts.violation, Some(Violation::Resets));
    }

    #[test]
    fn a_connection_begins_with_settings() {
        let mut counts = Counts::new(&Settings::default(), End::Server);
        counts.received(frame(Kind::Ping, 0, 0, 8), &Seen::default());
        assert_eq!(counts.violation, Some(Violation::Preface));
    }
}

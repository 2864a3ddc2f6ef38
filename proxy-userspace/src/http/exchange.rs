//! What codecs tell of an exchange while it goes on: bytes, moments, and responses that come before the final one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::ResponseHead;
use super::h2::{Tally, Wire};
use crate::clock::{self, Instant};

/// What a client was sent of its response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// The final head went out, at least into a buffer: no other response can take its place.
    pub head: bool,
    pub head_bytes: u64,
    /// Of the head, without its first and its last line.
    pub header_bytes: u64,
    /// What the body's bytes were wrapped into.
    pub framing_bytes: u64,
    /// What the request's body was on its way here, with what it was wrapped into; 0 where nobody knows.
    pub request_wire: u64,
    pub body_bytes: u64,
    pub trailer_bytes: u64,
    pub first_byte: Option<Instant>,
    pub last_byte: Option<Instant>,
    /// Of HTTP/2, what the whole stream was on its connection.
    pub wire: Option<Wire>,
    /// All of it went out.
    pub complete: bool,
}

/// Is handed each 1xx but 101.
pub type Interim = Box<dyn FnMut(ResponseHead) + Send>;

/// Goes with a request upstream.
#[derive(Default)]
pub struct Observer {
    pub progress: Arc<Progress>,
    /// None: 1xx are dropped.
    pub interim: Option<Interim>,
    /// The request's bytes go on whatever becomes of the response's: see [`super::Body::take_upload`].
    pub tunnel: bool,
}

/// Of one attempt at one upstream. Counted by whoever polls, read by whoever logs: one task both.
#[derive(Debug)]
pub struct Progress {
    since: Instant,
    pub request_head: AtomicU64,
    /// Of the head, what Envoy counts as headers.
    pub request_header: AtomicU64,
    /// What the body's bytes were wrapped into, with the trailers.
    pub request_framing: AtomicU64,
    pub request_body: AtomicU64,
    pub response_head: AtomicU64,
    pub response_header: AtomicU64,
    pub response_framing: AtomicU64,
    pub response_body: AtomicU64,
    first_sent: AtomicU64,
    last_sent: AtomicU64,
    first_received: AtomicU64,
    last_received: AtomicU64,
    closes: AtomicBool,
    /// Of a stream on a connection of many, which counts its bytes by itself.
    stream: OnceLock<Arc<Tally>>,
}

impl Default for Progress {
    fn default() -> Self {
        let zero = AtomicU64::default;
        Self {
            since: clock::lately(),
            request_head: zero(),
            request_header: zero(),
            request_framing: zero(),
            request_body: zero(),
            response_head: zero(),
            response_header: zero(),
            response_framing: zero(),
            response_body: zero(),
            first_sent: zero(),
            last_sent: zero(),
            first_received: zero(),
            last_received: zero(),
            closes: AtomicBool::new(false),
            stream: OnceLock::new(),
        }
    }
}

impl Progress {
    /// The response has said that its connection ends with it.
    pub(super) fn closes(&self) {
        self.closes.store(true, Ordering::Relaxed);
    }

    pub fn has_closed(&self) -> bool {
        self.closes.load(Ordering::Relaxed)
    }

    /// Its connection is not its own.
    pub(super) fn shares(&self, tally: Arc<Tally>) {
        // One attempt has one stream.
        let _ = self.stream.set(tally);
    }

    /// Of a stream among others.
    pub fn wire(&self) -> Option<Wire> {
        self.stream.get().map(|tally| tally.wire())
    }

    /// The request's first bytes went out.
    pub fn sending(&self) {
        self.mark(&self.first_sent);
    }

    /// The request is complete.
    pub fn sent(&self) {
        self.mark(&self.last_sent);
    }

    /// The first bytes of the final response came.
    pub fn receiving(&self) {
        self.mark(&self.first_received);
    }

    /// The response is complete.
    pub fn received(&self) {
        self.mark(&self.last_received);
    }

    pub fn first_sent(&self) -> Option<Instant> {
        self.moment(&self.first_sent)
    }

    pub fn last_sent(&self) -> Option<Instant> {
        self.moment(&self.last_sent)
    }

    pub fn first_received(&self) -> Option<Instant> {
        self.moment(&self.first_received)
    }

    pub fn last_received(&self) -> Option<Instant> {
        self.moment(&self.last_received)
    }

    /// The whole request is on its way: nothing of it is left to send.
    pub fn is_sent(&self) -> bool {
        self.last_sent.load(Ordering::Relaxed) > 0
    }

    fn mark(&self, at: &AtomicU64) {
        let nanos = clock::lately().saturating_duration_since(self.since).as_nanos();
        // 0 is not yet.
        at.store(u64::try_from(nanos).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
    }

    fn moment(&self, at: &AtomicU64) -> Option<Instant> {
        match at.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(self.since + Duration::from_nanos(nanos)),
        }
    }
}

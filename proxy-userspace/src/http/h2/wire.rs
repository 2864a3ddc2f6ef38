//! What each stream had on the wire, by the heads of its frames: as Envoy's bytes meters count.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::watch::frames::{HEAD, Head, Kind};

/// Of one stream, with the heads of its frames.
#[derive(Debug, Default)]
pub struct Tally {
    received: Count,
    sent: Count,
}

#[derive(Debug, Default)]
struct Count {
    all: AtomicU64,
    headers: AtomicU64,
}

/// What a [`Tally`] says at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wire {
    pub received: u64,
    pub received_headers: u64,
    pub sent: u64,
    pub sent_headers: u64,
}

impl Tally {
    pub fn wire(&self) -> Wire {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Wire {
            received: load(&self.received.all),
            received_headers: load(&self.received.headers),
            sent: load(&self.sent.all),
            sent_headers: load(&self.sent.headers),
        }
    }
}

impl Count {
    fn add(&self, head: Head) {
        let len = (HEAD + head.len) as u64;
        self.all.fetch_add(len, Ordering::Relaxed);
        if matches!(head.kind, Kind::Headers | Kind::Continuation) {
            self.headers.fetch_add(len, Ordering::Relaxed);
        }
    }
}

/// More streams than this are not told apart: those that never come to anybody, who would let go of them.
const MOST: usize = 4096;

/// Those of a connection that are counted.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    tallies: BTreeMap<u32, Arc<Tally>>,
    /// The last one that was opened: what follows of one before it that is not there is nobody's.
    last: u32,
}

impl Streams {
    pub(super) fn received(&self, head: Head) {
        self.count(head, |tally| &tally.received);
    }

    pub(super) fn sent(&self, head: Head) {
        self.count(head, |tally| &tally.sent);
    }

    fn count(&self, head: Head, side: impl Fn(&Tally) -> &Count) {
        if head.stream == 0 {
            return;
        }
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if head.kind == Kind::Headers && head.stream > open.last {
            open.last = head.stream;
            side(&open.open(head.stream)).add(head);
        } else if let Some(tally) = open.tallies.get(&head.stream) {
            side(tally).add(head);
        }
    }

    /// Whoever handles the stream lets go of it in the end.
    pub(super) fn hold(self: &Arc<Self>, stream: u32) -> Hold {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let tally = match open.tallies.get(&stream) {
            Some(tally) => tally.clone(),
            // The frame that opens it goes out yet; or there have been too many.
            None => open.open(stream),
        };
        Hold { streams: self.clone(), stream, tally }
    }
}

impl Open {
    fn open(&mut self, stream: u32) -> Arc<Tally> {
        if self.tallies.len() >= MOST {
            self.tallies.pop_first();
        }
        self.tallies.entry(stream).or_default().clone()
    }
}

/// A stream that is counted for as long as this lives.
pub(super) struct Hold {
    streams: Arc<Streams>,
    stream: u32,
    tally: Arc<Tally>,
}

impl Hold {
    pub(super) fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut open = self.streams.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.tallies.remove(&self.stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: Kind, stream: u32, len: usize) -> Head {
        Head { kind, flags: 0, stream, len, payload: Some(len) }
    }

    #[test]
    fn frames_count_for_their_streams() {
        let streams = Arc::<Streams>::default();
        streams.received(frame(Kind::Headers, 1, 20));
        streams.received(frame(Kind::Continuation, 1, 10));
        streams.received(frame(Kind::Settings, 0, 6));
        let hold = streams.hold(1);
        streams.received(frame(Kind::Data, 1, 100));
        streams.received(frame(Kind::Data, 7, 100));
        streams.sent(frame(Kind::Headers, 1, 5));
        streams.sent(frame(Kind::WindowUpdate, 1, 4));
        let tally = hold.tally().clone();
        let all = Wire { received: 157, received_headers: 48, sent: 27, sent_headers: 14 };
        assert_eq!(tally.wire(), all);
        drop(hold);
        streams.received(frame(Kind::Headers, 1, 20));
        assert_eq!(tally.wire(), all);
        assert!(streams.0.lock().unwrap().tallies.is_empty(), "what comes late opens nothing");
    }

    #[test]
    fn a_stream_may_be_held_before_its_first_frame() {
        let streams = Arc::<Streams>::default();
        let hold = streams.hold(3);
        streams.sent(frame(Kind::Headers, 3, 1));
        assert_eq!(hold.tally().wire().sent_headers, 10);
    }

    #[test]
    fn streams_that_nobody_takes_are_not_many() {
        let streams = Streams::default();
        for stream in 0..10_000 {
            streams.received(frame(Kind::Headers, 2 * stream + 1, 1));
        }
        assert_eq!(streams.0.lock().unwrap().tallies.len(), MOST);
    }
}

//! `tracing.verbose`: when the first and the last bytes of a request and of its response came and went.

use std::time::SystemTime;

use crate::clock::Instant;
use crate::telemetry::{Entry, HttpEntry};

/// A moment of a span, by Envoy's name.
pub(super) type Note = (SystemTime, &'static str);

type Moment = (Option<Instant>, &'static str);

/// Of a request.
pub(super) fn of_request(entry: &Entry) -> Vec<Note> {
    let Some(http) = entry.http.as_deref() else { return Vec::new() };
    let received = [(http.request_complete, "last_downstream_rx_byte_received")];
    let sent = [
        (http.sent.first_byte, "first_downstream_tx_byte_sent"),
        (http.sent.last_byte, "last_downstream_tx_byte_sent"),
    ];
    noted(entry, http, received.into_iter().chain(upstream(http)).chain(sent))
}

/// Of an attempt: nothing of the client's side.
pub(super) fn of_attempt(entry: &Entry) -> Vec<Note> {
    let Some(http) = entry.http.as_deref() else { return Vec::new() };
    noted(entry, http, upstream(http).into_iter())
}

fn upstream(http: &HttpEntry) -> [Moment; 4] {
    let progress = http.progress.as_deref();
    [
        (progress.and_then(|progress| progress.first_sent()), "first_upstream_tx_byte_sent"),
        (progress.and_then(|progress| progress.last_sent()), "last_upstream_tx_byte_sent"),
        (progress.and_then(|progress| progress.first_received()), "first_upstream_rx_byte_received"),
        (progress.and_then(|progress| progress.last_received()), "last_upstream_rx_byte_received"),
    ]
}

fn noted(entry: &Entry, http: &HttpEntry, moments: impl Iterator<Item = Moment>) -> Vec<Note> {
    let note = |(at, name): Moment| Some((entry.start + at?.saturating_duration_since(http.start), name));
    moments.filter_map(note).collect()
}

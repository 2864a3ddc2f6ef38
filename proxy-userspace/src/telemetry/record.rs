//! One record per connection: begun when it is accepted, finished exactly once.
//!
//! A record that is dropped unfinished (its task panicked, or the runtime stopped) still reaches the log, so no
//! connection ends without a line.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::AccessLog;
use crate::clock::{self, Start};
use crate::net::Direction;

/// Who ended a connection, or caused its failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Side {
    Downstream,
    Upstream,
    Internal,
}

impl Side {
    pub fn name(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
            Self::Internal => "internal",
        }
    }
}

/// Bytes that crossed each socket. They differ when a connection breaks with data on its way through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Read from the client: Envoy's `%BYTES_RECEIVED%`.
    pub downstream_rx: u64,
    /// Written to the client: Envoy's `%BYTES_SENT%`.
    pub downstream_tx: u64,
    pub upstream_rx: u64,
    pub upstream_tx: u64,
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Envoy's response flags, comma-separated; empty where none applies.
    pub flags: &'static str,
    pub details: Cow<'static, str>,
    pub side: Side,
    /// Envoy's `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub upstream_failure: Option<String>,
}

impl Outcome {
    pub fn new(side: Side, flags: &'static str, details: impl Into<Cow<'static, str>>) -> Self {
        Self { flags, details: details.into(), side, upstream_failure: None }
    }
}

/// A connection's facts while it lives. Fields are filled in as they become known.
#[must_use = "a connection's record must be finished"]
#[derive(Debug)]
pub struct ConnRecord {
    pub entry: Entry,
    start: Start,
    log: Option<AccessLog>,
}

impl ConnRecord {
    pub fn new(log: AccessLog, workload: Arc<str>, direction: Direction, remote: SocketAddr) -> Self {
        let start = Start::new();
        let entry = Entry {
            start: start.wall,
            workload,
            direction,
            downstream_remote: remote,
            original_dst: None,
            upstream_cluster: None,
            upstream_host: None,
            upstream_local: None,
            bytes: Bytes::default(),
            duration: Duration::ZERO,
            outcome: Outcome::new(Side::Internal, "", "aborted"),
        };
        Self { entry, start, log: Some(log) }
    }

    /// Writes the line.
    pub fn finish(mut self, outcome: Outcome) {
        self.entry.outcome = outcome;
    }
}

impl Drop for ConnRecord {
    fn drop(&mut self) {
        if let Some(log) = self.log.take() {
            self.entry.duration = clock::now() - self.start.at;
            log.push(self.entry.clone());
        }
    }
}

/// A finished connection.
#[derive(Clone, Debug)]
pub struct Entry {
    pub start: SystemTime,
    pub workload: Arc<str>,
    pub direction: Direction,
    pub downstream_remote: SocketAddr,
    /// Where the client was going. Its own view of the connection, so also Envoy's
    /// `%DOWNSTREAM_LOCAL_ADDRESS%`.
    pub original_dst: Option<SocketAddr>,
    pub upstream_cluster: Option<&'static str>,
    pub upstream_host: Option<SocketAddr>,
    pub upstream_local: Option<SocketAddr>,
    pub bytes: Bytes,
    pub duration: Duration,
    pub outcome: Outcome,
}

impl Entry {
    /// One line of JSON with the field names of Envoy and of Istio's default log.
    pub fn json(&self) -> serde_json::Result<String> {
        let outcome = &self.outcome;
        serde_json::to_string(&Line {
            start_time: clock::rfc3339(self.start),
            workload: &self.workload,
            direction: self.direction,
            listener: self.direction.listener(),
            protocol: "TCP",
            downstream_remote_address: self.downstream_remote,
            downstream_local_address: self.original_dst,
            original_dst: self.original_dst,
            upstream_host: self.upstream_host,
            upstream_local_address: self.upstream_local,
            upstream_cluster: self.upstream_cluster,
            bytes_received: self.bytes.downstream_rx,
            bytes_sent: self.bytes.downstream_tx,
            duration: u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX),
            response_flags: self.flags(),
            connection_termination_details: &outcome.details,
            // Envoy's logs have no space in it either.
            upstream_transport_failure_reason: outcome
                .upstream_failure
                .as_ref()
                .map(|why| why.replace(' ', "_")),
            termination_source: outcome.side,
        })
    }

    /// The response flags as Envoy shows them: `-` where none applies.
    pub fn flags(&self) -> &'static str {
        if self.outcome.flags.is_empty() { "-" } else { self.outcome.flags }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    start_time: String,
    workload: &'a str,
    direction: Direction,
    listener: &'a str,
    protocol: &'a str,
    downstream_remote_address: SocketAddr,
    downstream_local_address: Option<SocketAddr>,
    original_dst: Option<SocketAddr>,
    upstream_host: Option<SocketAddr>,
    upstream_local_address: Option<SocketAddr>,
    upstream_cluster: Option<&'a str>,
    bytes_received: u64,
    bytes_sent: u64,
    duration: u64,
    response_flags: &'a str,
    connection_termination_details: &'a str,
    upstream_transport_failure_reason: Option<String>,
    termination_source: Side,
}

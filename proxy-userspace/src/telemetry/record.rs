//! One record per connection: begun when it is accepted, finished exactly once.
//!
//! A record that is dropped unfinished (its task panicked, or the runtime stopped) still reaches the log, so no
//! connection ends without a line.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use proxy_config::model::{Cluster, Metadata};
use serde::Serialize;

use super::access_log::Logger;
use super::access_log::http::{grpc_code, protocol};
use super::{AccessLog, Flags, HttpEntry};
use crate::clock::{self, Start};
use crate::istio::{Peers, Report};
use crate::net::Direction;
use crate::net::facts::Facts;
use crate::transport::TlsInfo;

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
    pub flags: Flags,
    /// In our own words: who ended it and how.
    pub details: Cow<'static, str>,
    pub side: Side,
    /// Envoy's `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub upstream_failure: Option<String>,
    /// Envoy's `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub downstream_failure: Option<String>,
    /// Envoy's `%RESPONSE_CODE_DETAILS%`.
    pub response_code_details: Option<Cow<'static, str>>,
    /// Envoy's `%CONNECTION_TERMINATION_DETAILS%`.
    pub termination_details: Option<Cow<'static, str>>,
}

impl Outcome {
    pub fn new(side: Side, flags: Flags, details: impl Into<Cow<'static, str>>) -> Self {
        Self {
            flags,
            details: details.into(),
            side,
            upstream_failure: None,
            downstream_failure: None,
            response_code_details: None,
            termination_details: None,
        }
    }
}

/// A connection's facts while it lives. Fields are filled in as they become known.
#[must_use = "a connection's record must be finished"]
#[derive(Debug)]
pub struct ConnRecord {
    /// Boxed: ten thousand idle connections hold one each.
    pub entry: Box<Entry>,
    start: Start,
    log: AccessLog,
    /// The loggers of the configuration: of the listener, and of the filter that carried it.
    loggers: Vec<Arc<[Logger]>>,
    /// Those who count it while it lives.
    reports: Vec<Report>,
    /// The built-in log knows what it carried.
    told: bool,
}

impl ConnRecord {
    pub fn new(log: AccessLog, origin: Origin, facts: Facts) -> Self {
        let start = Start::new();
        let entry = Entry { start: start.wall, ..Entry::new(origin, facts, LogType::TcpConnectionEnd) };
        Self { entry: Box::new(entry), start, log, loggers: Vec::new(), reports: Vec::new(), told: false }
    }

    /// What it carried has lines of its own in the built-in log: it needs none.
    pub fn told(&mut self) {
        self.told = true;
    }

    /// Has these loggers write its lines, too.
    pub fn add(&mut self, loggers: Arc<[Logger]>) {
        self.loggers.push(loggers);
    }

    /// Has it counted.
    pub fn count(&mut self, report: Report) {
        self.reports.push(report);
    }

    /// How often it is to be counted while it lives.
    pub fn report_every(&self) -> Option<Duration> {
        self.reports.iter().filter_map(Report::every).min()
    }

    pub fn report(&mut self) {
        self.reports.iter_mut().for_each(|report| report.tell(&self.entry, false));
    }

    /// Writes a line about the connection as it stands, by the loggers that were added last: those of the filter
    /// that carries it.
    pub fn interim(&mut self, log_type: LogType) {
        let Some(loggers) = self.loggers.last() else { return };
        self.entry.log_type = log_type;
        self.entry.duration = clock::now() - self.start.at;
        loggers.iter().for_each(|logger| logger.log(&self.entry));
        self.entry.log_type = LogType::TcpConnectionEnd;
    }

    pub fn periodic(&mut self) {
        self.interim(LogType::TcpPeriodic);
    }

    /// Writes the line.
    pub fn finish(mut self, outcome: Outcome) {
        self.entry.outcome = outcome;
    }
}

impl Drop for ConnRecord {
    fn drop(&mut self) {
        self.entry.duration = clock::now() - self.start.at;
        self.reports.iter_mut().for_each(|report| report.tell(&self.entry, true));
        // The filter's before the listener's, as Envoy has them.
        for logger in self.loggers.iter().rev().flat_map(|loggers| loggers.iter()) {
            logger.log(&self.entry);
        }
        if !self.told {
            self.log.push(&self.entry);
        }
    }
}

/// Where a connection came in.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Counts from 1: Envoy's `%CONNECTION_ID%`.
    pub connection_id: u64,
    /// The intercepted workload; none on a listener of the daemon's own.
    pub workload: Option<Arc<str>>,
    /// Which way it crosses the workload's border; none where the listener does not say.
    pub direction: Option<Direction>,
    /// The name of the listener that serves it, after a hand-off.
    pub listener: Arc<str>,
}

/// What became of it upstream.
#[derive(Clone, Debug, Default)]
pub struct Upstream {
    pub cluster: Option<Arc<str>>,
    /// The endpoint that was chosen last.
    pub host: Option<SocketAddr>,
    /// Its name, where it was resolved from one.
    pub hostname: Option<Arc<str>>,
    pub local: Option<SocketAddr>,
    /// `%UPSTREAM_REQUEST_ATTEMPT_COUNT%`.
    pub attempts: u32,
    /// From the first attempt to the connection.
    pub connected_after: Option<Duration>,
    /// From the connection's start to the first attempt.
    pub connect_started: Option<Duration>,
    /// `%UPSTREAM_CONNECTION_ID%`; 0 where there is none.
    pub connection_id: u64,
    /// What TLS has agreed on with the endpoint.
    pub tls: Option<Arc<TlsInfo>>,
    /// The endpoints that were tried, in order; empty where `host` is all there was.
    pub attempted: Vec<SocketAddr>,
    /// The cluster's own configuration: its metadata, and its name in stats.
    pub cluster_model: Option<Arc<Cluster>>,
    /// The endpoint's metadata.
    pub host_metadata: Option<Arc<Metadata>>,
}

/// Why a line is written: Envoy's `%ACCESS_LOG_TYPE%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogType {
    TcpUpstreamConnected,
    TcpPeriodic,
    TcpConnectionStart,
    TcpConnectionEnd,
    DownstreamStart,
    DownstreamPeriodic,
    DownstreamEnd,
    DownstreamTunnelSuccessfullyEstablished,
    UpstreamPoolReady,
    UpstreamPeriodic,
    UpstreamEnd,
    NotSet,
}

impl LogType {
    /// Envoy's name, in `%ACCESS_LOG_TYPE%` and in filters.
    pub fn name(self) -> &'static str {
        match self {
            Self::TcpUpstreamConnected => "TcpUpstreamConnected",
            Self::TcpPeriodic => "TcpPeriodic",
            Self::TcpConnectionStart => "TcpConnectionStart",
            Self::TcpConnectionEnd => "TcpConnectionEnd",
            Self::DownstreamStart => "DownstreamStart",
            Self::DownstreamPeriodic => "DownstreamPeriodic",
            Self::DownstreamEnd => "DownstreamEnd",
            Self::DownstreamTunnelSuccessfullyEstablished => "DownstreamTunnelSuccessfullyEstablished",
            Self::UpstreamPoolReady => "UpstreamPoolReady",
            Self::UpstreamPeriodic => "UpstreamPeriodic",
            Self::UpstreamEnd => "UpstreamEnd",
            Self::NotSet => "NotSet",
        }
    }
}

/// A connection, finished or as it stands.
#[derive(Clone, Debug)]
pub struct Entry {
    pub start: SystemTime,
    pub origin: Origin,
    pub facts: Facts,
    /// Where the client was going, whatever a PROXY header says.
    pub original_dst: Option<SocketAddr>,
    pub filter_chain: Option<Arc<str>>,
    /// `%METADATA(LISTENER:…)%`.
    pub listener_metadata: Option<Arc<Metadata>>,
    /// `%METADATA(LISTENER_FILTER_CHAIN:…)%`.
    pub filter_chain_metadata: Option<Arc<Metadata>>,
    pub upstream: Upstream,
    pub bytes: Bytes,
    pub duration: Duration,
    pub log_type: LogType,
    pub outcome: Outcome,
    /// Who they are, where they have told.
    pub peers: Peers,
    /// Of a stream of HTTP; none of a connection.
    pub http: Option<Box<HttpEntry>>,
}

impl Entry {
    /// Of which nothing more is known, not even when it began.
    pub fn new(origin: Origin, facts: Facts, log_type: LogType) -> Self {
        Self {
            start: SystemTime::UNIX_EPOCH,
            origin,
            facts,
            original_dst: None,
            filter_chain: None,
            listener_metadata: None,
            filter_chain_metadata: None,
            upstream: Upstream::default(),
            bytes: Bytes::default(),
            duration: Duration::ZERO,
            log_type,
            outcome: Outcome::new(Side::Internal, Flags::NONE, "aborted"),
            peers: Peers::default(),
            http: None,
        }
    }

    /// One line of JSON with the field names of Envoy and of Istio's default log.
    pub fn json(&self) -> serde_json::Result<String> {
        let outcome = &self.outcome;
        serde_json::to_string(&Line {
            start_time: clock::rfc3339(self.start),
            workload: self.origin.workload.as_deref(),
            direction: self.origin.direction,
            listener: &self.origin.listener,
            protocol: self.http.as_deref().map_or("TCP", |http| protocol(http.request.version)),
            http: self.http.as_deref().map(|http| HttpLine::new(self, http)),
            downstream_remote_address: self.facts.remote,
            downstream_local_address: self.original_dst,
            original_dst: self.original_dst,
            upstream_host: self.upstream.host,
            upstream_local_address: self.upstream.local,
            upstream_cluster: self.upstream.cluster.as_deref(),
            bytes_received: self.bytes.downstream_rx,
            bytes_sent: self.bytes.downstream_tx,
            duration: u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX),
            response_flags: self.outcome.flags.to_string(),
            connection_termination_details: &outcome.details,
            // Envoy's logs have no space in it either.
            upstream_transport_failure_reason: outcome
                .upstream_failure
                .as_ref()
                .map(|why| why.replace(' ', "_")),
            downstream_transport_failure_reason: outcome
                .downstream_failure
                .as_ref()
                .map(|why| why.replace(' ', "_")),
            downstream_tls_version: self.facts.tls.as_deref().map(|tls| tls.version),
            downstream_peer_uri_san: self.facts.tls.as_deref().and_then(peer_uri_san),
            termination_source: outcome.side,
        })
    }
}

#[derive(Serialize)]
struct Line<'a> {
    start_time: String,
    workload: Option<&'a str>,
    direction: Option<Direction>,
    listener: &'a str,
    protocol: &'a str,
    #[serde(flatten)]
    http: Option<HttpLine<'a>>,
    downstream_remote_address: SocketAddr,
    downstream_local_address: Option<SocketAddr>,
    original_dst: Option<SocketAddr>,
    upstream_host: Option<SocketAddr>,
    upstream_local_address: Option<SocketAddr>,
    upstream_cluster: Option<&'a str>,
    bytes_received: u64,
    bytes_sent: u64,
    duration: u64,
    response_flags: String,
    connection_termination_details: &'a str,
    upstream_transport_failure_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    downstream_transport_failure_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    downstream_tls_version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    downstream_peer_uri_san: Option<String>,
    termination_source: Side,
}

/// What only a stream of HTTP has, by the names of Istio's default log.
#[derive(Serialize)]
struct HttpLine<'a> {
    method: &'a str,
    path: Option<Cow<'a, str>>,
    authority: &'a str,
    response_code: u16,
    response_code_details: Option<&'a str>,
    route_name: Option<&'a str>,
    request_id: Option<Cow<'a, str>>,
    user_agent: Option<Cow<'a, str>>,
    x_forwarded_for: Option<Cow<'a, str>>,
    upstream_service_time: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u32>,
}

impl<'a> HttpLine<'a> {
    fn new(entry: &'a Entry, http: &'a HttpEntry) -> Self {
        let (request, response) = (&http.request, http.response.as_ref());
        let asked = |name: &str| request.headers.get(name).map(text);
        // As it came, whatever a route has made of it.
        let path = asked("x-envoy-original-path").unwrap_or_else(|| Cow::Borrowed(&request.path));
        Self {
            method: request.method.as_str(),
            path: (!path.is_empty()).then_some(path),
            authority: &request.authority,
            response_code: http.response_code(),
            response_code_details: entry.outcome.response_code_details.as_deref(),
            route_name: http.route.as_deref().filter(|name| !name.is_empty()),
            request_id: asked("x-request-id"),
            user_agent: asked("user-agent"),
            x_forwarded_for: asked("x-forwarded-for"),
            upstream_service_time: response
                .and_then(|head| head.headers.get("x-envoy-upstream-service-time"))
                .map(text),
            grpc_status: grpc_code(http),
        }
    }
}

fn text(value: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

fn peer_uri_san(tls: &TlsInfo) -> Option<String> {
    let names = &tls.peer.as_deref()?.uri_sans;
    (!names.is_empty()).then(|| names.join(","))
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode, Version};

    use super::*;
    use crate::http::{RequestHead, ResponseHead};

    #[test]
    fn a_line_about_a_request() {
        let mut head = RequestHead::new(Method::POST, "a.test", "/after?q=1");
        head.version = Version::HTTP_2;
        for (name, value) in
            [("x-envoy-original-path", "/before"), ("user-agent", "curl"), ("x-request-id", "id")]
        {
            head.headers.insert(name, HeaderValue::from_static(value));
        }
        let mut http = HttpEntry::new(head, clock::now());
        let mut response = ResponseHead::new(StatusCode::SERVICE_UNAVAILABLE);
        response.headers.insert("x-envoy-upstream-service-time", HeaderValue::from_static("7"));
        http.response = Some(response);
        let mut entry = super::super::access_log::tests::entry();
        let of_connection: serde_json::Value = serde_json::from_str(&entry.json().unwrap()).unwrap();
        assert_eq!((of_connection["protocol"].as_str(), of_connection.get("method")), (Some("TCP"), None));
        entry.http = Some(Box::new(http));
        entry.outcome.response_code_details = Some("no_healthy_upstream".into());
        let line: serde_json::Value = serde_json::from_str(&entry.json().unwrap()).unwrap();
        for (name, expected) in [
            ("protocol", "HTTP/2"),
            ("method", "POST"),
            ("path", "/before"),
            ("authority", "a.test"),
            ("response_code_details", "no_healthy_upstream"),
            ("user_agent", "curl"),
            ("request_id", "id"),
            ("upstream_service_time", "7"),
        ] {
            assert_eq!(line[name], expected, "{line}");
        }
        assert_eq!((line["response_code"].as_u64(), line.get("grpc_status")), (Some(503), None));
    }
}

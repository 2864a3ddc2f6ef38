//! `upstream_log`: a line for each request upstream, whatever becomes of the client's.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{self, Instant};
use crate::http::{Progress, ResponseHead, Stream};
use crate::telemetry::access_log::Logger;
use crate::telemetry::{Entry, Flags, LogType};

/// What is to be told of one, once it has ended.
pub(super) struct Line {
    loggers: Arc<[Logger]>,
    entry: Box<Entry>,
    begun: Instant,
}

impl Line {
    /// None: there is no such log. With the response's head where there is one.
    pub(super) fn of(stream: &Stream, begun: Instant, response: Option<&ResponseHead>) -> Option<Box<Self>> {
        let loggers = &stream.conn.hcm.upstream_log;
        if loggers.is_empty() {
            return None;
        }
        let mut entry = stream.entry.clone();
        entry.log_type = LogType::UpstreamEnd;
        // Which attempt it is, only the client's request knows.
        entry.upstream.attempts = 0;
        entry.outcome.flags = Flags::NONE;
        entry.outcome.response_code_details = Some("via_upstream".into());
        if let Some(http) = entry.http.as_deref_mut() {
            http.response = response.cloned();
        }
        Some(Box::new(Self { loggers: loggers.clone(), entry, begun }))
    }

    pub(super) fn write(mut self, flags: Flags, progress: Option<&Arc<Progress>>) {
        self.entry.outcome.flags = flags;
        self.entry.duration = clock::lately().saturating_duration_since(self.begun).max(Duration::ZERO);
        if let (Some(http), Some(progress)) = (self.entry.http.as_deref_mut(), progress) {
            http.progress = Some(progress.clone());
        }
        self.loggers.iter().for_each(|logger| logger.log(&self.entry));
    }
}

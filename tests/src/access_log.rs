//! The daemon's access log, read while it is written.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::probe::Report;
use crate::wait::until;

pub struct AccessLog {
    path: PathBuf,
}

impl AccessLog {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// How many lines there are, to look only at later ones.
    pub fn mark(&self) -> usize {
        self.lines().len()
    }

    /// The first line after a mark that `wanted` accepts.
    pub fn wait(
        &self,
        what: &str,
        mark: usize,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        until(&format!("access log line of {what}"), limit, || {
            Ok(self.lines().into_iter().skip(mark).find(|line| wanted(line)))
        })
        .with_context(|| {
            format!("lines there are: {:?}", self.lines().iter().skip(mark).take(5).collect::<Vec<_>>())
        })
    }

    /// The line of a client's connection, which its own source address tells.
    pub fn of(&self, report: &Report, direction: &str) -> Result<Value> {
        self.from(report.local()?, direction)
    }

    /// The line of the connection from an address.
    pub fn from(&self, source: SocketAddr, direction: &str) -> Result<Value> {
        let source = source.to_string();
        self.wait(&format!("{direction} from {source}"), 0, Duration::from_secs(5), |line| {
            line["direction"] == direction && line["downstream_remote_address"] == source.as_str()
        })
    }

    /// Whether there is a line of a client's connection by now. Give it a moment: the log lags behind.
    pub fn has(&self, source: SocketAddr) -> bool {
        let source = source.to_string();
        self.lines().iter().any(|line| line["downstream_remote_address"] == source.as_str())
    }
}

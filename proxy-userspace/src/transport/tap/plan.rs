//! A tap's configuration, ready for connections.

use std::sync::Arc;

use proxy_config::model::FractionalPercent;
use proxy_config::model::transport::{TapConfig, TapFormat, TapOutput, TapPredicate, TapSink};

use super::admin::Session;
use super::files::{FileTrace, Files};
use super::{TapStats, Traced};
use crate::transport::BuildError;

/// What connections are tapped by.
pub(super) struct Plan {
    /// Of connections: no condition of HTTP comes true on one, and nothing else depends on it.
    pub(super) matches: bool,
    pub(super) enabled: Option<FractionalPercent>,
    pub(super) mode: Mode,
    sink: Sink,
}

/// How events become traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// One trace of a connection, at its end, with as many bytes of each direction.
    Buffered { rx: usize, tx: usize },
    /// A trace of each event, with as many bytes.
    Streamed { rx: usize, tx: usize },
    /// Traces of events that have so many bytes together.
    Gathered { bytes: usize },
}

enum Sink {
    Files { path_prefix: Arc<str>, format: TapFormat, files: Files },
    Admin(Arc<Session>),
}

/// Where the traces of one connection go.
pub(super) enum Handle {
    File(FileTrace),
    Admin(super::admin::AdminTrace),
}

impl Plan {
    pub(super) fn of_configuration(config: &TapConfig, files: &Files) -> Result<Self, BuildError> {
        let sink = match &config.output.sink {
            TapSink::FilePerTap { path_prefix } => Sink::files(path_prefix, config.output.format, files),
            TapSink::StreamingAdmin => return Err(unattached("StreamingAdmin")),
            TapSink::BufferedAdmin { .. } => return Err(unattached("BufferedAdmin")),
        };
        Ok(Self::new(config, sink))
    }

    /// Of a request to `/tap`.
    pub(super) fn of_request(config: &TapConfig, session: &Arc<Session>, files: &Files) -> Self {
        let sink = match &config.output.sink {
            TapSink::FilePerTap { path_prefix } => Sink::files(path_prefix, config.output.format, files),
            TapSink::StreamingAdmin | TapSink::BufferedAdmin { .. } => Sink::Admin(session.clone()),
        };
        Self::new(config, sink)
    }

    fn new(config: &TapConfig, sink: Sink) -> Self {
        let mode = Mode::of(&config.output);
        Self { matches: matches(&config.predicate), enabled: config.enabled, mode, sink }
    }

    pub(super) fn is_sampled(&self) -> bool {
        self.enabled.is_none_or(|FractionalPercent { numerator, denominator }| {
            denominator > 0 && rand::random_range(0..denominator) < numerator
        })
    }

    pub(super) fn handle(&self, traced: &Traced, stats: &Arc<TapStats>) -> Handle {
        match &self.sink {
            Sink::Files { path_prefix, format, files } => {
                Handle::File(files.trace(path_prefix, traced.id, *format, stats.clone()))
            }
            Sink::Admin(session) => Handle::Admin(session.trace(stats.clone())),
        }
    }
}

impl Sink {
    fn files(path_prefix: &Arc<str>, format: TapFormat, files: &Files) -> Self {
        Self::Files { path_prefix: path_prefix.clone(), format, files: files.clone() }
    }
}

fn unattached(sink: &str) -> BuildError {
    let why = "requires that the admin output will be configured via admin";
    BuildError(format!("tap: Output sink type {sink} {why}"))
}

impl Mode {
    fn of(output: &TapOutput) -> Self {
        let (rx, tx) = (output.max_buffered_rx_bytes as usize, output.max_buffered_tx_bytes as usize);
        match (output.streaming, output.min_streamed_sent_bytes) {
            (false, _) => Self::Buffered { rx, tx },
            (true, 0) => Self::Streamed { rx, tx },
            (true, least) => Self::Gathered { bytes: least as usize },
        }
    }
}

fn matches(predicate: &TapPredicate) -> bool {
    match predicate {
        TapPredicate::Any => true,
        TapPredicate::Http => false,
        TapPredicate::Or(list) => list.iter().any(matches),
        TapPredicate::And(list) => list.iter().all(matches),
        TapPredicate::Not(inner) => !matches(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_condition_of_http_is_true_of_a_connection() {
        use TapPredicate::{And, Any, Http, Not, Or};
        for (predicate, expected) in [
            (Any, true),
            (Http, false),
            (Not(Http.into()), true),
            (Not(Any.into()), false),
            (Or(vec![Http, Any]), true),
            (Or(vec![Http, Not(Any.into())]), false),
            (And(vec![Any, Http]), false),
            (And(vec![Any, Not(Or(vec![Http, Http]).into())]), true),
        ] {
            assert_eq!(matches(&predicate), expected, "{predicate:?}");
        }
    }
}

//! What the consumers of LDS, CDS, ECDS and RDS have in common: their statistics, whether they have been answered, and
//! in which version.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::UNIX_EPOCH;

use proxy_config::diagnostic::Diagnostic;
use proxy_config::model::config_source::{ConfigSource, ConfigSourceKind};
use proxy_config::xds::{Decoded, Decoder};
use proxy_config::xds::{Discover, Kind, RawResource};
use tokio::sync::watch;
use xxhash_rust::xxh64::xxh64;

use super::history::{self, Change};
use crate::clock::{self, Instant};
use crate::telemetry::stats::{Stats, SubscriptionStats};
use crate::xds::Failure;

pub(super) struct Subscribed {
    /// For the log: `cds`, or `ecds NAME`.
    name: String,
    kind: Kind,
    /// What its statistics are called; they are there from its beginning on, as in Envoy.
    prefix: String,
    all: Arc<Stats>,
    stats: OnceLock<Arc<SubscriptionStats>>,
    /// Where it comes from: what `self` says in it.
    source: OnceLock<ConfigSourceKind>,
    /// The first answer has come, or is not waited for any longer.
    settled: watch::Sender<bool>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    source: Option<Arc<str>>,
    /// Of the last update that was taken as a whole.
    version: Option<Arc<str>>,
    /// Of the last update, also one that was refused in part: what Envoy shows.
    seen: Option<Arc<str>>,
    /// Warnings that were said: thousands of resources may say the same, again with each update.
    said: HashSet<String>,
}

/// So many different warnings are said; there is always one more resource.
const WARNINGS: usize = 100;

impl Subscribed {
    pub(super) fn new(name: String, kind: Kind, all: &Arc<Stats>, prefix: &str) -> Self {
        let (stats, source) = (OnceLock::new(), OnceLock::new());
        let (all, prefix, settled) = (all.clone(), prefix.to_owned(), watch::Sender::new(false));
        Self { name, kind, prefix, all, stats, source, settled, state: Mutex::default() }
    }

    fn stats(&self) -> &SubscriptionStats {
        self.stats.get_or_init(|| SubscriptionStats::of(&self.all, &self.prefix))
    }

    /// A stream's first request is an attempt, as in Envoy; a file's is its first reading.
    pub(super) fn begin(&self, source: &ConfigSource) {
        self.lock().source = Some(history::source(source));
        // It begins once.
        let _ = self.source.set(source.kind.clone());
        let stats = self.stats();
        if !source.is_file() {
            stats.update_attempt.inc();
        }
    }

    /// What an update does, before anything of it is known.
    pub(super) fn change(&self, version: &str) -> Change {
        let state = self.lock();
        let (source, from) = (state.source.clone(), state.version.clone());
        Change::new(self.kind, source.unwrap_or_default(), from.unwrap_or_default(), version.into())
    }

    /// An update was looked at.
    pub(super) fn answered(&self, version: &str, refused: Option<&str>, began: Instant) {
        self.stats().update_attempt.inc();
        self.lock().seen = Some(version.into());
        let took = clock::now() - began;
        match refused {
            None => {
                self.stats().update_success.inc();
                self.stats().version.set(xxh64(version.as_bytes(), 0));
                self.stats().version_text.set(version);
                self.stats().update_time.set(milliseconds());
                self.stats().update_duration.record(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
                self.lock().version = Some(version.into());
                log::debug!("{}: version {version:?} in {took:?}", self.name);
            }
            Some(why) => {
                self.stats().update_rejected.inc();
                log::warn!("{}: version {version:?}: {why}; what was known stays", self.name);
            }
        }
        self.settled.send_replace(true);
    }

    pub(super) fn failed(&self, failure: &Failure) {
        self.stats().update_attempt.inc();
        match failure {
            // As for Envoy, an answer that is none goes on being waited for.
            Failure::Missing(_) | Failure::Disconnected(_) => self.stats().update_failure.inc(),
            Failure::Unreadable(_) => {
                self.stats().update_failure.inc();
                self.settled.send_replace(true);
            }
            Failure::Refused(_) => {
                self.stats().update_rejected.inc();
                self.settled.send_replace(true);
            }
            Failure::TimedOut(_) => {
                self.stats().init_fetch_timeout.inc();
                self.settled.send_replace(true);
            }
        }
        log::warn!("{}: {failure}; what was known stays", self.name);
    }

    pub(super) fn is_settled(&self) -> bool {
        *self.settled.borrow()
    }

    pub(super) async fn settled(&self) {
        // The sender is here.
        let _ = self.settled.subscribe().wait_for(|settled| *settled).await;
    }

    /// Of the last update.
    pub(super) fn version(&self) -> Arc<str> {
        self.lock().seen.clone().unwrap_or_default()
    }

    pub(super) fn decode<T: Discover>(
        &self,
        decoder: &Decoder,
        raw: &RawResource,
    ) -> Result<Decoded<T>, String> {
        let decoded = match self.source.get() {
            Some(source) => decoder.coming_from(source).decode::<T>(raw),
            None => decoder.decode::<T>(raw),
        };
        let decoded = decoded.map_err(|found| joined(&found))?;
        self.warn(&raw.name, &decoded.warnings);
        Ok(decoded)
    }

    fn warn(&self, resource: &str, warnings: &[Diagnostic]) {
        for warning in warnings {
            let text = warning.to_string();
            let mut state = self.lock();
            if state.said.len() < WARNINGS && state.said.insert(text.clone()) {
                log::warn!("{}: {resource}: {text}", self.kind.service());
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn joined(found: &[Diagnostic]) -> String {
    let lines: Vec<_> = found.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

/// Since 1970, of the wall clock.
pub(super) fn milliseconds() -> u64 {
    let now = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

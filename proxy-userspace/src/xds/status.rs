//! How it stands with a server: for the log, for stats, for people.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proxy_config::xds::Kind;
use serde::Serialize;

use crate::telemetry::stats::{Held, stats_block};

stats_block! {
    /// `control_plane.` of ADS; of a type that has a stream of its own, below that of its subscription.
    pub struct ControlPlane {
        gauge connected_state;
        gauge pending_requests;
        counter rate_limit_enforced;
        text identifier;
    }
}

/// Of one session. What is logged is logged once for each change, not for each attempt.
pub(super) struct Status {
    /// `ADS of cluster xds-grpc`.
    pub(super) name: String,
    stats: Arc<ControlPlane>,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    connected: Option<Held<ControlPlane>>,
    /// Why the last attempt failed.
    why: Option<String>,
    identifier: Option<String>,
    limited: bool,
    /// The last refusals, by type.
    refused: Vec<(Kind, String)>,
}

/// A server, as people want to see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SessionView {
    /// `ADS of cluster xds-grpc`.
    pub name: String,
    pub connected: bool,
    /// Why there is no stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// `control_plane.identifier`: what the server calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identifier: Option<String>,
}

impl Status {
    pub(super) fn new(name: String, stats: Arc<ControlPlane>) -> Self {
        Self { name, stats, now: Mutex::default() }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn connected(&self) {
        let mut now = self.now();
        now.connected = Some(Held::new(&self.stats, |stats| &stats.connected_state));
        now.why = None;
        log::info!("{}: connected", self.name);
    }

    pub(super) fn disconnected(&self, why: &str, next: Duration) {
        let mut now = self.now();
        let was = now.connected.take().is_some();
        let news = was || now.why.as_deref() != Some(why);
        let what = if was { "disconnected" } else { "cannot be reached" };
        let line = format_args!("{}: {what}: {why}; the next attempt is in {next:?}", self.name);
        if news {
            log::warn!("{line}; what is known stays");
        } else {
            log::debug!("{line}");
        }
        now.why = Some(why.to_owned());
    }

    /// It has said something.
    pub(super) fn heard(&self, identifier: Option<&str>) {
        let mut now = self.now();
        if identifier.is_some() && identifier != now.identifier.as_deref() {
            log::info!("{}: the server is {}", self.name, identifier.unwrap_or_default());
            self.stats.identifier.set(identifier.unwrap_or_default());
            now.identifier = identifier.map(str::to_owned);
        }
    }

    pub(super) fn pending(&self, requests: usize) {
        self.stats.pending_requests.set(u64::try_from(requests).unwrap_or(u64::MAX));
        if requests == 0 {
            self.now().limited = false;
        }
    }

    /// Requests wait for the rate limit.
    pub(super) fn limited(&self) {
        let mut now = self.now();
        if !std::mem::replace(&mut now.limited, true) {
            self.stats.rate_limit_enforced.inc();
            log::debug!("{}: requests wait for the rate limit", self.name);
        }
    }

    /// A response was answered.
    pub(super) fn judged(&self, kind: Kind, version: &str, refused: Option<&str>) {
        let service = kind.service();
        let mut now = self.now();
        let before = now.refused.iter().position(|(of, _)| *of == kind);
        match refused {
            Some(why) => {
                let known = before.and_then(|at| now.refused.get(at)).is_some_and(|(_, last)| last == why);
                if !known {
                    log::warn!("{}: {service} version {version:?} is refused: {why}", self.name);
                    now.refused.retain(|(of, _)| *of != kind);
                    now.refused.push((kind, why.to_owned()));
                }
            }
            None => {
                log::debug!("{}: {service} version {version:?} is in use", self.name);
                if let Some(at) = before {
                    log::info!("{}: {service} version {version:?} is accepted again", self.name);
                    now.refused.remove(at);
                }
            }
        }
    }

    pub(super) fn view(&self) -> SessionView {
        let now = self.now();
        SessionView {
            name: self.name.clone(),
            connected: now.connected.is_some(),
            why: now.why.clone(),
            identifier: now.identifier.clone(),
        }
    }
}

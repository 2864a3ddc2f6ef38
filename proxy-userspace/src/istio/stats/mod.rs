//! `istio.stats`: requests and connections, counted by who their peers are.
//!
//! A [`Recorder`] is one filter. What it counts of one set of labels is a [`Bundle`], found by a hash of the labels'
//! values: nothing is put together as text but the first time.

mod labels;
mod plan;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use proxy_config::model::http::istio::IstioStats;
use xxhash_rust::xxh64::Xxh64;

use self::labels::Labels;
pub use self::labels::{Protocol, Reporter};
use self::plan::{METRICS, Origin, Plan, Tags};
pub use self::plan::{Metric, Shape};
use super::Local;
use super::expression::Scope;
use crate::net::Direction;
use crate::telemetry::Entry;
use crate::telemetry::stats::{Kind, Series, Stats};

/// Sets of labels that one filter keeps at hand; after so many it begins anew.
const MOST: usize = 4096;

/// How much of the host that a client asks for makes a label, and so of any other value.
const LONGEST: usize = 512;

pub struct Recorder {
    stats: Arc<Stats>,
    local: Arc<Local>,
    plan: Plan,
    host_fallback: bool,
    waypoint: bool,
    /// How often long streams and connections are reported.
    pub every: Option<Duration>,
    /// How long a series may be idle.
    idle: Option<Duration>,
    known: RwLock<HashMap<u64, Arc<Bundle>>>,
}

/// The series of one set of labels.
pub struct Bundle {
    /// What they are of, to tell apart those whose hash is one.
    shape: Shape,
    values: Box<[Box<str>]>,
    /// When none of them had been forgotten.
    era: u64,
    standard: [Option<Arc<Series>>; METRICS.len()],
    custom: Box<[Option<Arc<Series>>]>,
}

impl Recorder {
    pub fn new(model: &IstioStats, local: &Arc<Local>, stats: &Arc<Stats>) -> Self {
        let version = if local.version.is_empty() { "unknown" } else { &local.version };
        let build = [("component", "proxy"), ("tag", version)];
        if let Some(build) = stats.series(Kind::Gauge, "istio_build", &build, Some(Duration::MAX)) {
            build.tell(1);
        }
        let idle = model.rotation.map(|rotation| rotation.interval.saturating_add(rotation.grace_period));
        Self {
            stats: stats.clone(),
            local: local.clone(),
            plan: Plan::new(model),
            host_fallback: !model.disable_host_header_fallback,
            waypoint: model.server_gateway,
            every: model.tcp_reporting_duration,
            idle,
            known: RwLock::default(),
        }
    }

    fn reporter(&self, entry: &Entry) -> Reporter {
        match (self.waypoint, entry.origin.direction) {
            (true, _) => Reporter::Waypoint,
            (false, Some(Direction::Inbound)) => Reporter::Destination,
            (false, Some(Direction::Outbound) | None) => Reporter::Source,
        }
    }

    /// Whether it is known who the other side is, or that it will not tell.
    pub fn knows_peer(&self, entry: &Entry) -> bool {
        let slot = match self.reporter(entry) {
            Reporter::Source => &entry.peers.upstream,
            Reporter::Destination | Reporter::Waypoint => &entry.peers.downstream,
        };
        slot.as_ref().is_some_and(|slot| slot.is_settled())
    }

    /// The series that what is known now belongs to.
    pub fn bundle(&self, entry: &Entry, shape: Shape, protocol: Protocol) -> Arc<Bundle> {
        let labels = labels::of(entry, &self.local, self.reporter(entry), self.host_fallback, protocol);
        let scope = Scope { entry, local: &self.local };
        let evaluated: Vec<_> = self
            .plan
            .expressions
            .iter()
            .map(|expression| scope.text(expression).unwrap_or(Cow::Borrowed("unknown")))
            .collect();
        self.find(shape, &labels, &evaluated)
    }

    fn find(&self, shape: Shape, labels: &Labels<'_>, evaluated: &[Cow<'_, str>]) -> Arc<Bundle> {
        let values = || labels.iter().chain(evaluated).enumerate();
        // What a metric of that shape does not show tells nothing apart.
        let values =
            || values().filter(|(at, _)| *at >= labels.len() || shape.has(*at)).map(|(_, value)| cut(value));
        let mut hasher = Xxh64::new(shape as u64);
        for value in values() {
            hasher.update(value.as_bytes());
            hasher.update(&[0xff]);
        }
        let hash = hasher.digest();
        let era = self.stats.era();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&hash).cloned();
        if let Some(known) = known
            && known.era == era
            && known.shape == shape
            && known.values.iter().map(|value| &**value).eq(values())
        {
            return known;
        }
        let values: Box<[Box<str>]> = values().map(Box::from).collect();
        let made = Arc::new(self.make(shape, era, values, labels, evaluated));
        let mut all = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(hash, made.clone());
        made
    }

    /// The same, where some of its series may have been forgotten since.
    fn again(&self, bundle: &Arc<Bundle>) -> Arc<Bundle> {
        if bundle.era == self.stats.era() {
            return bundle.clone();
        }
        let mut values = bundle.values.iter().map(|value| Cow::Borrowed(&**value));
        let mut labels = [const { Cow::Borrowed("") }; labels::COUNT];
        for (_, label) in labels.iter_mut().enumerate().filter(|(at, _)| bundle.shape.has(*at)) {
            *label = values.next().unwrap_or_default();
        }
        let evaluated: Vec<_> = values.collect();
        self.find(bundle.shape, &labels, &evaluated)
    }

    fn make(
        &self,
        shape: Shape,
        era: u64,
        values: Box<[Box<str>]>,
        labels: &Labels<'_>,
        evaluated: &[Cow<'_, str>],
    ) -> Bundle {
        let series = |kind: Kind, name: &str, tags: &Tags| {
            let tags = tags.iter().map(|(name, origin)| {
                let value = match origin {
                    Origin::Standard(at) => labels.get(*at),
                    Origin::Expression(at) => evaluated.get(*at),
                };
                (&**name, value.map_or("", |value| cut(value)))
            });
            self.stats.series(kind, name, &tags.collect::<Vec<_>>(), self.idle)
        };
        let mut tags = self.plan.standard.iter();
        let standard = METRICS.map(|metric| {
            let tags = tags.next()?.as_ref().filter(|_| metric.shape() == shape)?;
            series(metric.kind(), &format!("istio_{}", metric.name()), tags)
        });
        let custom = self.plan.custom.iter().filter(|_| shape != Shape::Messages);
        let custom = custom.map(|custom| series(custom.kind, &custom.name, &custom.tags)).collect();
        Bundle { shape, values, era, standard, custom }
    }

    /// A stream or a connection is over.
    pub fn end(&self, bundle: &Bundle, entry: &Entry) {
        let scope = Scope { entry, local: &self.local };
        for (custom, series) in self.plan.custom.iter().zip(&bundle.custom) {
            if let Some(series) = series {
                series.tell(scope.amount(&custom.value));
            }
        }
    }
}

impl Bundle {
    pub fn tell(&self, metric: Metric, value: u64) {
        if let Some(Some(series)) = self.standard.get(metric as usize) {
            series.tell(value);
        }
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

/// One connection's part in a recorder, from its beginning to its end.
pub struct Report {
    recorder: Arc<Recorder>,
    /// Once it is known who the other side is, or at the end: what was true then stays.
    opened: Option<Arc<Bundle>>,
    sent: u64,
    received: u64,
}

impl Report {
    pub fn new(recorder: Arc<Recorder>) -> Self {
        Self { recorder, opened: None, sent: 0, received: 0 }
    }

    pub fn every(&self) -> Option<Duration> {
        self.recorder.every
    }

    /// What is new since the last time.
    pub fn tell(&mut self, entry: &Entry, end: bool) {
        let recorder = &self.recorder;
        let bundle = match &self.opened {
            Some(bundle) => recorder.again(bundle),
            None if end || recorder.knows_peer(entry) => {
                let bundle = recorder.bundle(entry, Shape::Tcp, Protocol::Tcp);
                bundle.tell(Metric::Opened, 1);
                self.opened.insert(bundle).clone()
            }
            None => return,
        };
        let (sent, received) = (entry.bytes.downstream_tx, entry.bytes.downstream_rx);
        bundle.tell(Metric::Sent, sent.saturating_sub(self.sent));
        bundle.tell(Metric::Received, received.saturating_sub(self.received));
        (self.sent, self.received) = (sent, received);
        if end {
            bundle.tell(Metric::Closed, 1);
            recorder.end(&bundle, entry);
        }
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report")
            .field("sent", &self.sent)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

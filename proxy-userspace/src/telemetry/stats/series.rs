//! Metrics that are told apart by labels: Istio's, which no name of a block could hold.
//!
//! A series is found by its labels once; who counts keeps it, and does not look it up again. How many there are is
//! bounded, since peers choose some of the labels. One that was not used for as long as it may be idle is forgotten
//! when stats are shown, or when there is no room for another: who keeps it sees that by [`Stats::era`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Counter, Gauge, Histogram, Kind, Metric, Stats, lock};
use crate::clock::{self, Instant};

/// How many there are at most: some twenty megabytes.
const MOST: usize = 16_384;

/// How much of a label's value is kept.
const LONGEST: usize = 512;

/// What Envoy calls a custom namespace: it is part of the name, and Prometheus does not see it.
const NAMESPACE: &str = "istiocustom";

/// How many were refused, for want of room.
const REFUSED: &str = "shunt.stats_series_refused";

/// One metric with its labels.
#[derive(Debug)]
pub struct Series {
    /// As `/stats` shows it: the metric, then each label and its value.
    name: Arc<str>,
    /// The end of the metric's name.
    metric: usize,
    labels: Box<[(Range<u32>, Range<u32>)]>,
    value: Value,
    /// When it was made, and used last, in milliseconds since.
    born: Instant,
    used: AtomicU64,
    /// How long it may be idle.
    idle: Option<Duration>,
}

#[derive(Debug)]
enum Value {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

/// All of one proxy, by name.
pub(super) type Known = BTreeMap<Arc<str>, Arc<Series>>;

impl Series {
    fn new(
        kind: Kind,
        (name, metric): (String, usize),
        labels: Box<[Label]>,
        idle: Option<Duration>,
    ) -> Self {
        let value = match kind {
            Kind::Gauge => Value::Gauge(Gauge::default()),
            Kind::Histogram => Value::Histogram(Histogram::default()),
            Kind::Counter | Kind::Text => Value::Counter(Counter::default()),
        };
        let (born, used) = (clock::now(), AtomicU64::new(0));
        Self { name: name.into(), metric, labels, value, born, used, idle }
    }

    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// With its namespace.
    pub(super) fn metric_name(&self) -> &str {
        self.name.get(..self.metric).unwrap_or_default()
    }

    /// As Prometheus knows it.
    pub(super) fn plain_name(&self) -> &str {
        self.metric_name().strip_prefix(NAMESPACE).map_or("", |name| name.trim_start_matches('.'))
    }

    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        let text = |range: &Range<u32>| self.name.get(range.start as usize..range.end as usize);
        self.labels
            .iter()
            .map(move |(name, value)| (text(name).unwrap_or_default(), text(value).unwrap_or_default()))
    }

    pub(super) fn metric(&self) -> Metric<'_> {
        match &self.value {
            Value::Counter(counter) => Metric::Counter(counter),
            Value::Gauge(gauge) => Metric::Gauge(gauge),
            Value::Histogram(histogram) => Metric::Histogram(histogram),
        }
    }

    /// Adds to a counter, sets a gauge, records in a histogram.
    pub fn tell(&self, value: u64) {
        self.used.store(millis(self.born.elapsed()), Ordering::Relaxed);
        match &self.value {
            Value::Counter(counter) => counter.add(value),
            Value::Gauge(gauge) => gauge.set(value),
            Value::Histogram(histogram) => histogram.record(value),
        }
    }

    fn is_idle(&self) -> bool {
        let used = self.used.load(Ordering::Relaxed);
        self.idle.is_some_and(|idle| millis(self.born.elapsed()).saturating_sub(used) > millis(idle))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

type Label = (Range<u32>, Range<u32>);

/// As Envoy joins them: what is empty has no place in a name.
fn named(metric: &str, labels: &[(&str, &str)]) -> ((String, usize), Box<[Label]>) {
    let mut name = format!("{NAMESPACE}.{metric}");
    let end = name.len();
    let mut add = |text: &str| {
        if text.is_empty() {
            return 0..0;
        }
        name.push('.');
        let start = name.len();
        name.push_str(cut(text));
        // It is much shorter than that.
        u32::try_from(start).unwrap_or(0)..u32::try_from(name.len()).unwrap_or(0)
    };
    let labels = labels.iter().map(|(label, value)| (add(label), add(value))).collect();
    ((name, end), labels)
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

impl Stats {
    /// The series of those labels, made where there is none. `None`: there are too many already.
    pub fn series(
        &self,
        kind: Kind,
        metric: &str,
        labels: &[(&str, &str)],
        idle: Option<Duration>,
    ) -> Option<Arc<Series>> {
        let (name, labels) = named(metric, labels);
        let full = {
            let mut series = lock(&self.series);
            if let Some(known) = series.get(name.0.as_str()) {
                return Some(known.clone());
            }
            if series.len() >= MOST {
                self.forget_idle(&mut series);
            }
            if series.len() < MOST {
                let made = Arc::new(Series::new(kind, name, labels, idle.or(self.idle.get().copied())));
                series.insert(made.name.clone(), made.clone());
                return Some(made);
            }
            REFUSED
        };
        self.counter(full).inc();
        None
    }

    /// From now on, for series that say nothing of it: `stats_eviction_interval`.
    pub fn evict_after(&self, idle: Duration) {
        // It is set once, when the proxy starts.
        let _ = self.idle.set(idle);
    }

    /// Changes where a series may have been forgotten.
    pub fn era(&self) -> u64 {
        self.era.load(Ordering::Acquire)
    }

    pub(super) fn live_series(&self) -> Vec<Arc<Series>> {
        let mut series = lock(&self.series);
        self.forget_idle(&mut series);
        series.values().cloned().collect()
    }

    fn forget_idle(&self, series: &mut Known) {
        let before = series.len();
        series.retain(|_, series| !series.is_idle());
        if series.len() < before {
            self.era.fetch_add(1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::prometheus::Prometheus;
    use super::super::tags::Extractor;
    use super::super::{Buckets, Query};
    use super::*;

    fn prometheus(stats: &Stats) -> String {
        let extractor = Extractor::new(&proxy_config::model::bootstrap::StatsConfig::default());
        let snapshot = stats.snapshot(&Query::default());
        let chunks = Prometheus::new(snapshot, extractor, Buckets::default(), false);
        chunks.map(|chunk| String::from_utf8_lossy(&chunk).into_owned()).collect()
    }

    #[test]
    fn names_as_envoy_joins_them_and_labels_as_prometheus_wants_them() {
        let stats = Stats::new();
        let labels =
            [("reporter", "source"), ("grpc_response_status", ""), ("destination_service", "a.b.c\"\n")];
        let total = stats.series(Kind::Counter, "istio_requests_total", &labels, None).unwrap();
        total.tell(2);
        let again = stats.series(Kind::Counter, "istio_requests_total", &labels, None).unwrap();
        again.tell(1);
        let text = stats.render_text();
        let name =
            "istiocustom.istio_requests_total.reporter.source.grpc_response_status.destination_service.a.b.c";
        assert!(text.contains(name), "{text}");
        let bytes = stats.series(Kind::Histogram, "istio_request_bytes", &labels[..1], None).unwrap();
        bytes.tell(700);
        let text = prometheus(&stats);
        let line = "istio_requests_total{reporter=\"source\",grpc_response_status=\"\",\
                    destination_service=\"a.b.c\\\"\\n\"} 3\n";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("# TYPE istio_requests_total counter\n"), "{text}");
        assert!(text.contains("# TYPE istio_request_bytes histogram\n"), "{text}");
        assert!(text.contains("istio_request_bytes_bucket{reporter=\"source\",le=\"1000\"} 1\n"), "{text}");
        assert!(text.contains("istio_request_bytes_count{reporter=\"source\"} 1\n"), "{text}");
    }

    #[test]
    fn there_are_so_many_at_most_and_the_rest_is_counted() {
        let stats = Stats::new();
        for i in 0..MOST + 3 {
            let host = format!("host-{i}");
            let series = stats.series(Kind::Counter, "istio_requests_total", &[("host", &host)], None);
            assert_eq!(series.is_some(), i < MOST);
        }
        assert_eq!(stats.value(REFUSED), Some(3));
        let long = "é".repeat(10_000);
        assert!(cut(&long).len() <= LONGEST);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_idle_is_forgotten() {
        let stats = Stats::new();
        let idle = Some(Duration::from_secs(60));
        let series = |name: &str| stats.series(Kind::Counter, name, &[("a", "b")], idle).unwrap();
        let (kept, lost) = (series("istio_kept"), series("istio_lost"));
        lost.tell(1);
        let era = stats.era();
        tokio::time::advance(Duration::from_secs(50)).await;
        kept.tell(1);
        tokio::time::advance(Duration::from_secs(50)).await;
        let text = stats.render_text();
        assert!(text.contains("istio_kept.a.b: 1") && !text.contains("istio_lost"), "{text}");
        assert_ne!(stats.era(), era);
        tokio::time::advance(Duration::from_secs(11)).await;
        assert!(!stats.render_text().contains("istio_kept"));
    }
}

//! `/stats/prometheus`: counters, gauges, histograms, each grouped by the name without its tags.

use std::collections::HashMap;
use std::fmt::Write;

use bytes::Bytes;

use super::snapshot::QUANTILES;
use super::tags::{Extractor, Tag};
use super::text::CHUNK;
use super::{Bins, Buckets, Kind, Snapshot};

/// The answer, in chunks. Tags are extracted here, and again for each line: nobody keeps them.
pub struct Prometheus {
    snapshot: Snapshot,
    extractor: Extractor,
    buckets: Buckets,
    /// Quantiles instead of buckets.
    summary: bool,
    /// Rows in the order of the answer, each with its group.
    order: Vec<(u32, u32)>,
    at: usize,
}

impl Prometheus {
    pub fn new(snapshot: Snapshot, extractor: Extractor, buckets: Buckets, summary: bool) -> Self {
        let order = order(&snapshot, &extractor);
        Self { snapshot, extractor, buckets, summary, order, at: 0 }
    }

    fn line(&self, (row, group): (u32, u32), out: &mut String) {
        let Some(row) = self.snapshot.rows.get(row as usize) else { return };
        let mut name = String::new();
        self.snapshot.name(row, &mut name);
        let (metric, tags) = match self.snapshot.series(row) {
            Some(series) => (series.plain_name().to_owned(), self.extractor.with_fixed(series.labels())),
            None => {
                let (plain, tags) = self.extractor.extract(&name);
                (sanitized(&plain), tags)
            }
        };
        let first = self.at.checked_sub(1).is_none_or(|before| self.order[before].1 != group);
        if first {
            let _ = writeln!(out, "# TYPE {metric} {}", self.kind(row.kind));
        }
        let tags = labels(&tags);
        match row.kind {
            Kind::Counter | Kind::Gauge => {
                let _ = writeln!(out, "{metric}{{{tags}}} {}", row.value);
            }
            // Not in the order.
            Kind::Text => {}
            Kind::Histogram => self.histogram(&name, &metric, &tags, self.snapshot.bins(row), out),
        }
    }

    fn kind(&self, kind: Kind) -> &'static str {
        match kind {
            Kind::Counter => "counter",
            Kind::Gauge | Kind::Text => "gauge",
            Kind::Histogram if self.summary => "summary",
            Kind::Histogram => "histogram",
        }
    }

    fn histogram(&self, name: &str, metric: &str, tags: &str, bins: Option<&Bins>, out: &mut String) {
        let none = Bins::default();
        let all = bins.unwrap_or(&none);
        let comma = if tags.is_empty() { "" } else { "," };
        if self.summary {
            for q in QUANTILES {
                let (q, value) = (q / 100.0, all.quantile(q / 100.0));
                let _ = writeln!(out, "{metric}{{{tags}{comma}quantile=\"{q}\"}} {value}");
            }
        } else {
            for bound in self.buckets.of(name) {
                let below = all.below(*bound);
                let _ = writeln!(out, "{metric}_bucket{{{tags}{comma}le=\"{bound}\"}} {below}");
            }
            let _ = writeln!(out, "{metric}_bucket{{{tags}{comma}le=\"+Inf\"}} {}", all.count());
        }
        let _ = writeln!(out, "{metric}_sum{{{tags}}} {}", all.sum());
        let _ = writeln!(out, "{metric}_count{{{tags}}} {}", all.count());
    }
}

impl Iterator for Prometheus {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut out = String::new();
        while out.len() < CHUNK {
            let Some(place) = self.order.get(self.at).copied() else { break };
            self.line(place, &mut out);
            self.at += 1;
        }
        (!out.is_empty()).then(|| out.into())
    }
}

/// By kind, then by the name without tags, then by the full name, in which the rows come. Without texts, as in Envoy
/// that is not asked for them.
fn order(snapshot: &Snapshot, extractor: &Extractor) -> Vec<(u32, u32)> {
    let mut groups: HashMap<(Kind, String), u32> = HashMap::new();
    let mut order = Vec::with_capacity(snapshot.rows.len());
    let mut name = String::new();
    for (at, row) in snapshot.rows.iter().enumerate().filter(|(_, row)| row.kind != Kind::Text) {
        name.clear();
        snapshot.name(row, &mut name);
        let next = groups.len() as u32;
        let plain = match snapshot.series(row) {
            Some(series) => series.metric_name().to_owned(),
            None => extractor.extract(&name).0,
        };
        let group = *groups.entry((row.kind, plain)).or_insert(next);
        order.push((at as u32, group));
    }
    let mut sorted: Vec<_> = groups.into_iter().collect();
    sorted.sort();
    let mut ranks = vec![0_u32; sorted.len()];
    for (rank, (_, group)) in sorted.iter().enumerate() {
        if let Some(slot) = ranks.get_mut(*group as usize) {
            *slot = rank as u32;
        }
    }
    for (_, group) in &mut order {
        *group = ranks.get(*group as usize).copied().unwrap_or(*group);
    }
    order.sort_by_key(|(at, group)| (*group, *at));
    order
}

fn sanitized(name: &str) -> String {
    let clean = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' });
    "envoy_".chars().chain(clean).collect()
}

fn labels(tags: &[Tag]) -> String {
    let mut out = String::new();
    for (name, value) in tags {
        let name: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
        let value = value.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"");
        let comma = if out.is_empty() { "" } else { "," };
        let _ = write!(out, "{comma}{name}=\"{value}\"");
    }
    out
}

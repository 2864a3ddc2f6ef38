//! `/stats` as text.

use std::fmt::Write;

use bytes::Bytes;

use super::snapshot::{QUANTILES, Row, general};
use super::{Bins, Buckets, Kind, Snapshot, Walk};

/// What is shown of histograms: `histogram_buckets=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Summary,
    Cumulative,
    Disjoint,
    Detailed,
}

/// How much is rendered at a time.
pub(super) const CHUNK: usize = 64 * 1024;

/// The answer, in chunks.
pub struct Text {
    walk: Walk,
    /// Those of the walk that are at hand.
    snapshot: Snapshot,
    mode: Mode,
    buckets: Buckets,
    at: usize,
}

impl Text {
    pub fn new(walk: Walk, mode: Mode, buckets: Buckets) -> Self {
        Self { walk, snapshot: Snapshot::default(), mode, buckets, at: 0 }
    }

    fn next_row(&mut self) -> Option<Row> {
        if self.at >= self.snapshot.rows.len() {
            (self.snapshot, self.at) = (self.walk.next()?, 0);
        }
        self.at += 1;
        self.snapshot.rows.get(self.at - 1).copied()
    }

    fn line(&self, row: &Row, out: &mut String) {
        let start = out.len();
        self.snapshot.name(row, out);
        match row.kind {
            Kind::Histogram => {}
            Kind::Text => {
                let _ = writeln!(out, ": \"{}\"", escaped(self.snapshot.text(row)));
                return;
            }
            Kind::Counter | Kind::Gauge => {
                let _ = writeln!(out, ": {}", row.value);
                return;
            }
        }
        let bins = self.snapshot.bins(row);
        match (bins, self.mode) {
            (None, _) => out.push_str(": No recorded values\n"),
            (Some(bins), Mode::Summary) => {
                let _ = writeln!(out, ": {}", quantiles(bins));
            }
            (Some(bins), mode @ (Mode::Cumulative | Mode::Disjoint)) => {
                let counts = counts(bins, self.buckets.of(&out[start..]), mode == Mode::Disjoint);
                let shown: Vec<_> =
                    counts.into_iter().map(|(bound, n)| format!("B{}(0,{n})", general(bound))).collect();
                let _ = writeln!(out, ": {}", shown.join(" "));
            }
            (Some(bins), Mode::Detailed) => {
                let totals: Vec<_> = bins
                    .each()
                    .map(|(lower, width, n)| format!("{},{}:{n}", general(lower), general(width)))
                    .collect();
                let _ = writeln!(
                    out,
                    ":\n  totals={}\n  intervals=\n  summary={}",
                    totals.join(" "),
                    quantiles(bins)
                );
            }
        }
    }
}

impl Iterator for Text {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut out = String::new();
        while out.len() < CHUNK {
            let Some(row) = self.next_row() else { break };
            self.line(&row, &mut out);
        }
        (!out.is_empty()).then(|| out.into())
    }
}

/// As for HTML, which is what Envoy does to all texts, and on one line.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// `P50(interval,cumulative)`: there are no intervals here, as in Envoy where nothing was recorded in the last one.
fn quantiles(bins: &Bins) -> String {
    let shown: Vec<_> = QUANTILES
        .iter()
        .map(|q| format!("P{}(nan,{})", general(*q), general(bins.quantile(q / 100.0))))
        .collect();
    shown.join(" ")
}

/// Each bound with what is below it, or with what is between it and the one before.
pub(super) fn counts(bins: &Bins, bounds: &[f64], disjoint: bool) -> Vec<(f64, u64)> {
    let mut before = 0;
    let count = |bound: &f64| {
        let below = bins.below(*bound);
        let shown = if disjoint { below.saturating_sub(before) } else { below };
        before = below;
        (*bound, shown)
    };
    bounds.iter().map(count).collect()
}

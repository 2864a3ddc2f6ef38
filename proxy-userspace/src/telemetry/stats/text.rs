//! `/stats` as text.

use std::fmt::Write;

use bytes::Bytes;

use super::snapshot::{QUANTILES, Row, general};
use super::{Bins, Buckets, Kind, Snapshot};

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
    snapshot: Snapshot,
    mode: Mode,
    buckets: Buckets,
    at: usize,
}

impl Text {
    pub fn new(snapshot: Snapshot, mode: Mode, buckets: Buckets) -> Self {
        Self { snapshot, mode, buckets, at: 0 }
    }

    fn line(&self, row: &Row, out: &mut String) {
        let start = out.len();
        self.snapshot.name(row, out);
        if row.kind != Kind::Histogram {
            let _ = writeln!(out, ": {}", row.value);
            return;
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
            let Some(row) = self.snapshot.rows.get(self.at).copied() else { break };
            self.line(&row, &mut out);
            self.at += 1;
        }
        (!out.is_empty()).then(|| out.into())
    }
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

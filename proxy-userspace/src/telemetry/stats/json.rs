//! `/stats?format=json`.

use bytes::Bytes;
use serde_json::{Value, json};

use super::snapshot::{QUANTILES, Row};
use super::text::{CHUNK, Mode, counts};
use super::{Bins, Buckets, Kind, Snapshot, Walk};

/// The answer, in chunks.
pub struct Json {
    walk: Walk,
    /// Those of the walk that are at hand.
    snapshot: Snapshot,
    mode: Mode,
    buckets: Buckets,
    at: usize,
    part: Part,
    /// Of the last that was written.
    last: Option<Kind>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Head,
    Rows,
    Done,
}

impl Json {
    pub fn new(walk: Walk, mode: Mode, buckets: Buckets) -> Self {
        Self { walk, snapshot: Snapshot::default(), mode, buckets, at: 0, part: Part::Head, last: None }
    }

    fn next_row(&mut self) -> Option<Row> {
        if self.at >= self.snapshot.rows.len() {
            (self.snapshot, self.at) = (self.walk.next()?, 0);
        }
        self.at += 1;
        self.snapshot.rows.get(self.at - 1).copied()
    }

    /// Scalars one by one; histograms are one element, opened by the first.
    fn row(&self, row: &Row, out: &mut String) {
        let mut name = String::new();
        self.snapshot.name(row, &mut name);
        let first_histogram = row.kind == Kind::Histogram && self.last != Some(Kind::Histogram);
        if self.last.is_some() {
            out.push(',');
        }
        if first_histogram {
            out.push_str(self.open());
        }
        let value = match row.kind {
            Kind::Text => json!({"name": name, "value": self.snapshot.text(row)}),
            Kind::Counter | Kind::Gauge => json!({"name": name, "value": row.value}),
            Kind::Histogram => self.histogram(&name, self.snapshot.bins(row)),
        };
        out.push_str(&value.to_string());
    }

    fn open(&self) -> &'static str {
        match self.mode {
            Mode::Summary => {
                r#"{"histograms":{"supported_quantiles":[0,25,50,75,90,95,99,99.5,99.9,100],"computed_quantiles":["#
            }
            Mode::Detailed => {
                r#"{"histograms":{"supported_percentiles":[0,25,50,75,90,95,99,99.5,99.9,100],"details":["#
            }
            Mode::Cumulative | Mode::Disjoint => r#"{"histograms":["#,
        }
    }

    fn close(&self) -> &'static str {
        match (self.last == Some(Kind::Histogram), self.mode) {
            (false, _) => "]}",
            (true, Mode::Summary | Mode::Detailed) => "]}}]}",
            (true, Mode::Cumulative | Mode::Disjoint) => "]}]}",
        }
    }

    fn histogram(&self, name: &str, bins: Option<&Bins>) -> Value {
        let none = Bins::default();
        let all = bins.unwrap_or(&none);
        match self.mode {
            Mode::Summary => json!({"name": name, "values": quantiles(bins)}),
            Mode::Cumulative | Mode::Disjoint => {
                let counts = counts(all, self.buckets.of(name), self.mode == Mode::Disjoint);
                let bucket =
                    |(bound, n)| json!({"upper_bound": number(bound), "interval": 0, "cumulative": n});
                json!({"name": name, "buckets": counts.into_iter().map(bucket).collect::<Vec<_>>()})
            }
            Mode::Detailed => {
                let bin = |(lower, width, n)| json!({"lower_bound": number(lower), "width": number(width), "count": n});
                let totals: Vec<_> = all.each().map(bin).collect();
                json!({"name": name, "totals": totals, "intervals": [], "percentiles": quantiles(bins)})
            }
        }
    }
}

impl Iterator for Json {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut out = String::new();
        if self.part == Part::Head {
            out.push_str("{\"stats\":[");
            self.part = Part::Rows;
        }
        while self.part == Part::Rows && out.len() < CHUNK {
            match self.next_row() {
                Some(row) => {
                    self.row(&row, &mut out);
                    self.last = Some(row.kind);
                }
                None => {
                    out.push_str(self.close());
                    self.part = Part::Done;
                }
            }
        }
        (!out.is_empty()).then(|| out.into())
    }
}

fn quantiles(bins: Option<&Bins>) -> Vec<Value> {
    let value = |q: &f64| bins.map(|bins| number(bins.quantile(q / 100.0)));
    QUANTILES.iter().map(|q| json!({"cumulative": value(q), "interval": null})).collect()
}

/// Whole numbers without a point.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { Value::from(value as i64) } else { Value::from(value) }
}

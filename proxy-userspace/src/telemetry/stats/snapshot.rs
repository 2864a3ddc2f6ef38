//! The values of one moment, which are rendered while they are read.

use std::cmp::Ordering;
use std::sync::Arc;

use proxy_config::model::bootstrap::{HistogramBuckets, StatsMatcher};
use regex::Regex;

use super::{Bins, Metric, Series};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Text,
    Counter,
    Gauge,
    Histogram,
}

/// Which stats are asked for.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pub filter: Option<Regex>,
    pub invert_filter: bool,
    pub used_only: bool,
    /// One kind only.
    pub kind: Option<Kind>,
    /// What the configuration keeps.
    pub matcher: StatsMatcher,
}

impl Query {
    fn wants(&self, name: &str) -> bool {
        let kept = match &self.matcher {
            StatsMatcher::All => true,
            StatsMatcher::None => false,
            StatsMatcher::Exclusion(out) => !out.iter().any(|m| m.is_match(name)),
            StatsMatcher::Inclusion(only) => only.iter().any(|m| m.is_match(name)),
        };
        kept && self.filter.as_ref().is_none_or(|filter| filter.is_match(name) != self.invert_filter)
    }

    fn is_all(&self) -> bool {
        self.filter.is_none() && self.matcher == StatsMatcher::All
    }
}

/// Small per stat: names are put together when they are written.
#[derive(Debug, Default)]
pub struct Snapshot {
    sources: Vec<From>,
    pub(super) rows: Vec<Row>,
    bins: Vec<Bins>,
    texts: Vec<Box<str>>,
}

/// What the names of some rows begin with.
#[derive(Debug)]
enum From {
    Prefix(Arc<str>),
    /// All of the name, and its labels.
    Series(Arc<Series>),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    source: u32,
    name: &'static str,
    pub(super) kind: Kind,
    /// Of a histogram: where its bins are, from 1; of a text where that is.
    pub(super) value: u64,
}

impl Snapshot {
    /// Writes the full name of a row.
    pub(super) fn name(&self, row: &Row, out: &mut String) {
        self.parts(row).into_iter().for_each(|part| out.push_str(part));
    }

    fn parts(&self, row: &Row) -> [&str; 2] {
        let source = match self.sources.get(row.source as usize) {
            Some(From::Prefix(prefix)) => prefix,
            Some(From::Series(series)) => series.name(),
            None => "",
        };
        [source, row.name]
    }

    /// Its labels are known: nobody looks for tags in its name.
    pub(super) fn series(&self, row: &Row) -> Option<&Series> {
        match self.sources.get(row.source as usize)? {
            From::Prefix(_) => None,
            From::Series(series) => Some(series),
        }
    }

    pub(super) fn bins(&self, row: &Row) -> Option<&Bins> {
        self.bins.get(usize::try_from(row.value).ok()?.checked_sub(1)?)
    }

    /// Empty where nothing was said.
    pub(super) fn text(&self, row: &Row) -> &str {
        let at = usize::try_from(row.value).ok().and_then(|value| value.checked_sub(1));
        at.and_then(|at| self.texts.get(at)).map_or("", |text| text)
    }

    pub(super) fn compare(&self, a: &Row, b: &Row) -> Ordering {
        if a.source == b.source {
            return a.name.cmp(b.name);
        }
        let bytes = |row| self.parts(row).into_iter().flat_map(str::bytes);
        bytes(a).cmp(bytes(b))
    }
}

/// A snapshot while it is taken.
pub(super) struct Taking<'a> {
    query: &'a Query,
    snapshot: Snapshot,
    name: String,
}

/// Is shown each metric of a source.
type Take<'t> = dyn FnMut(&'static str, Metric<'_>) + 't;

impl<'a> Taking<'a> {
    pub(super) fn new(query: &'a Query) -> Self {
        Self { query, snapshot: Snapshot::default(), name: String::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.snapshot.rows.len()
    }

    /// `prefix`: with its dot, where there are names behind it.
    pub(super) fn source(&mut self, prefix: &str, visit: &mut dyn FnMut(&mut Take<'_>)) {
        self.from(From::Prefix(prefix.into()), visit);
    }

    pub(super) fn series(&mut self, series: &Arc<Series>, visit: &mut dyn FnMut(&mut Take<'_>)) {
        self.from(From::Series(series.clone()), visit);
    }

    fn from(&mut self, from: From, visit: &mut dyn FnMut(&mut Take<'_>)) {
        let source = u32::try_from(self.snapshot.sources.len()).unwrap_or(u32::MAX);
        self.snapshot.sources.push(from);
        let before = self.snapshot.rows.len();
        visit(&mut |name, metric| self.metric(source, name, metric));
        if self.snapshot.rows.len() == before {
            self.snapshot.sources.pop();
        }
    }

    fn metric(&mut self, source: u32, name: &'static str, metric: Metric<'_>) {
        let (kind, used, value) = match metric {
            Metric::Counter(counter) => (Kind::Counter, counter.used(), counter.value()),
            Metric::Gauge(gauge) => (Kind::Gauge, gauge.used(), gauge.value()),
            Metric::Histogram(histogram) => {
                let bins = histogram.bins();
                let used = bins.is_some();
                self.snapshot.bins.extend(bins);
                (Kind::Histogram, used, if used { self.snapshot.bins.len() as u64 } else { 0 })
            }
            Metric::Text(readout) => {
                let text = readout.text();
                let used = text.is_some();
                self.snapshot.texts.extend(text);
                (Kind::Text, used, if used { self.snapshot.texts.len() as u64 } else { 0 })
            }
        };
        let row = Row { source, name, kind, value };
        let wrong_kind = self.query.kind.is_some_and(|wanted| wanted != kind);
        if wrong_kind || self.query.used_only && !used {
            return;
        }
        if !self.query.is_all() {
            self.name.clear();
            self.snapshot.name(&row, &mut self.name);
            if !self.query.wants(&self.name) {
                return;
            }
        }
        self.snapshot.rows.push(row);
    }

    /// The rows from there on by name.
    pub(super) fn sort_from(&mut self, start: usize) {
        let mut rows = self.snapshot.rows.split_off(start.min(self.snapshot.rows.len()));
        rows.sort_by(|a, b| self.snapshot.compare(a, b));
        self.snapshot.rows.append(&mut rows);
    }

    pub(super) fn done(self) -> Snapshot {
        self.snapshot
    }
}

/// The bounds that histograms are shown by.
#[derive(Clone, Debug, Default)]
pub struct Buckets(pub Vec<HistogramBuckets>);

/// Envoy's, in milliseconds.
const DEFAULT_BUCKETS: &[f64] = &[
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

impl Buckets {
    pub(super) fn of(&self, name: &str) -> &[f64] {
        let own = self.0.iter().find(|buckets| buckets.matcher.is_match(name));
        own.map_or(DEFAULT_BUCKETS, |buckets| &buckets.buckets)
    }
}

/// What `/stats` shows of a histogram, in percent.
pub(super) const QUANTILES: &[f64] = &[0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 100.0];

/// C's `%g`: six digits at most.
pub(super) fn general(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { "0".into() } else { value.to_string().to_lowercase() };
    }
    let text = format!("{value:.5e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if (-4..6).contains(&exponent) {
        return trim(&format!("{value:.*}", usize::try_from(5 - exponent).unwrap_or(0)));
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", trim(mantissa), exponent.unsigned_abs())
}

//! All metrics in the order in which they are shown, a few at a time: those of thousands of clusters are millions.

use std::sync::Arc;

use super::snapshot::Taking;
use super::{Block, Kind, Metric, Query, Series, Single, Snapshot};

/// Texts by name, then counters and gauges, then histograms. Values are those of when they are taken.
pub struct Walk {
    query: Query,
    /// In the order of their names.
    sources: Vec<Source>,
    part: Part,
    at: usize,
}

/// Something that has metrics, by the beginning of their names.
pub(super) struct Source {
    /// Of a block with its dot.
    prefix: Box<str>,
    what: What,
}

enum What {
    Block(Arc<dyn Block>),
    Single(Single),
    Series(Arc<Series>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Texts,
    Scalars,
    Histograms,
    Done,
}

/// So many are taken at once, and those that are to be sorted with them.
const BATCH: usize = 4096;

impl Source {
    pub(super) fn block(prefix: &str, block: Arc<dyn Block>) -> Self {
        Self { prefix: [prefix, "."].concat().into(), what: What::Block(block) }
    }

    pub(super) fn single(name: &str, single: Single) -> Self {
        Self { prefix: name.into(), what: What::Single(single) }
    }

    pub(super) fn series(series: Arc<Series>) -> Self {
        Self { prefix: (&**series.name()).into(), what: What::Series(series) }
    }

    fn take(&self, taking: &mut Taking<'_>, part: Part) {
        let wanted = |visit: &mut dyn FnMut(&'static str, Metric<'_>), name, metric: Metric<'_>| {
            if Part::of(metric.kind()) == part {
                visit(name, metric);
            }
        };
        match &self.what {
            What::Block(block) => taking.source(&self.prefix, &mut |take| {
                block.visit(&mut |name, metric| wanted(take, name, metric));
            }),
            What::Single(single) => taking.source(&self.prefix, &mut |take| match single {
                Single::Counter(counter) => wanted(take, "", Metric::Counter(counter)),
                Single::Gauge(gauge) => wanted(take, "", Metric::Gauge(gauge)),
            }),
            What::Series(series) => {
                taking.series(series, &mut |take| wanted(take, "", series.metric()));
            }
        }
    }
}

impl Part {
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::Text => Self::Texts,
            Kind::Counter | Kind::Gauge => Self::Scalars,
            Kind::Histogram => Self::Histograms,
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Texts => Self::Scalars,
            Self::Scalars => Self::Histograms,
            Self::Histograms | Self::Done => Self::Done,
        }
    }
}

impl Walk {
    pub(super) fn new(query: &Query, mut sources: Vec<Source>) -> Self {
        sources.sort_by(|one, other| one.prefix.cmp(&other.prefix));
        Self { query: query.clone(), sources, part: Part::Texts, at: 0 }
    }

    /// All that is left at once.
    pub(super) fn rest(mut self) -> Snapshot {
        self.batch(usize::MAX)
    }

    fn batch(&mut self, most: usize) -> Snapshot {
        let mut taking = Taking::new(&self.query);
        while self.part != Part::Done && taking.len() < most {
            let end = self.end();
            let start = taking.len();
            let sources = self.sources.get(self.at..end).unwrap_or_default();
            sources.iter().for_each(|source| source.take(&mut taking, self.part));
            taking.sort_from(start);
            self.at = end;
            if end >= self.sources.len() {
                (self.part, self.at) = (self.part.next(), 0);
            }
        }
        taking.done()
    }

    /// Where the sources end whose names may be between those of the one at hand: theirs begin as its own do.
    fn end(&self) -> usize {
        let Some(first) = self.sources.get(self.at) else { return self.at };
        let others = self.sources.get(self.at + 1..).unwrap_or_default();
        let among = |other: &&Source| match first.what {
            What::Block(_) => other.prefix.starts_with(&*first.prefix),
            What::Single(_) | What::Series(_) => false,
        };
        self.at + 1 + others.iter().take_while(among).count()
    }
}

impl Iterator for Walk {
    type Item = Snapshot;

    /// The next few; never none of them.
    fn next(&mut self) -> Option<Snapshot> {
        loop {
            let snapshot = self.batch(BATCH);
            if !snapshot.rows.is_empty() {
                return Some(snapshot);
            }
            if self.part == Part::Done {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ClusterStats, EdsStats, Stats, TcpStats};
    use super::*;

    #[test]
    fn names_are_in_order_wherever_they_come_from() {
        let stats = Stats::new();
        // A dash is before a dot; a cluster's name may be the beginning of another one's metric.
        let names =
            ["a", "a-b", "a.b", "a.default", "a.upstream_cx_total", "ab", "a.circuit_breakers.default"];
        let blocks = names.map(|name| {
            let prefix = format!("cluster.{name}");
            (stats.block::<ClusterStats>(&*prefix), stats.block::<EdsStats>(&*prefix))
        });
        let _tcp = stats.block::<TcpStats>("cluster.a.b");
        stats.counter("cluster.a.bind").inc();
        stats.gauge("cluster").set(1);
        stats.counter("a").inc();
        let all = |batch: usize| {
            let mut walk = stats.walk(&Query::default());
            let (mut names, mut batches) = (Vec::new(), 0);
            while walk.part != Part::Done {
                let taken = walk.batch(batch);
                batches += 1;
                names.extend(taken.rows.iter().map(|row| {
                    let mut name = String::new();
                    taken.name(row, &mut name);
                    (Part::of(row.kind) as u8, name)
                }));
            }
            (names, batches)
        };
        let (names, batches) = all(1);
        assert!(batches > 3);
        assert!(names.is_sorted(), "{names:?}");
        assert_eq!(names, all(usize::MAX).0);
        let mut visited = 0;
        stats.visit(&mut |_, _| visited += 1);
        assert_eq!(names.len(), visited);
        drop(blocks);
    }
}

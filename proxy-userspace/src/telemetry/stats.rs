//! Counters, gauges and histograms under Envoy's names.
//!
//! [`Stats`] is the registry of one proxy. Metrics come in blocks, such as all of `cluster.<name>.`: a block is one
//! allocation that its owner updates without looking anything up, and its names exist only while they are
//! rendered. The registry forgets a block with its last owner, as Envoy does a scope.
//!
//! A gauge that counts living things has no `inc`: it is held by a [`Held`], so it cannot drift.

mod blocks;
mod histogram;
pub mod json;
pub mod prometheus;
mod series;
mod snapshot;
pub mod tags;
pub mod text;
mod walk;

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

pub use self::blocks::{
    ClusterManagerStats, ClusterStats, EdsStats, ExtensionStats, ListenerManagerStats, ListenerStats,
    OwnStats, RdsStats, ReloadStats, RuntimeStats, SdsStats, ServerStats, SocketMatchStats,
    SubscriptionStats, TcpStats,
};
pub use self::histogram::{Bins, Histogram};
pub use self::series::Series;
pub use self::snapshot::{Buckets, Kind, Query, Snapshot};
pub use self::text::Mode;
use self::walk::Source;
pub use self::walk::Walk;

/// All metrics of one proxy.
#[derive(Default)]
pub struct Stats {
    singles: Mutex<BTreeMap<String, Single>>,
    blocks: Mutex<Blocks>,
    series: Mutex<series::Known>,
    /// Of [`Self::series`].
    era: AtomicU64,
    /// How long a series may be idle that says nothing of it.
    idle: OnceLock<Duration>,
}

/// By prefix and type.
type Blocks = BTreeMap<(Arc<str>, TypeId), Weak<dyn Block>>;

#[derive(Clone)]
enum Single {
    Counter(Arc<Counter>),
    Gauge(Arc<Gauge>),
}

/// Metrics that live and die together. Implemented by [`stats_block!`].
pub trait Block: Any + Send + Sync {
    /// Calls `visit` with the name behind the prefix and the metric, in the order of declaration.
    fn visit(&self, visit: &mut dyn FnMut(&'static str, Metric<'_>));
}

#[derive(Clone, Copy)]
pub enum Metric<'a> {
    Counter(&'a Counter),
    Gauge(&'a Gauge),
    Histogram(&'a Histogram),
    Text(&'a Readout),
}

impl Metric<'_> {
    fn kind(&self) -> Kind {
        match self {
            Self::Counter(_) => Kind::Counter,
            Self::Gauge(_) => Kind::Gauge,
            Self::Histogram(_) => Kind::Histogram,
            Self::Text(_) => Kind::Text,
        }
    }
}

impl Stats {
    pub fn new() -> Self {
        Self::default()
    }

    /// The block under a prefix without its dot, such as `cluster.web`; made where nobody owns it.
    pub fn block<B: Block + Default>(&self, prefix: impl Into<Arc<str>>) -> Arc<B> {
        let mut blocks = lock(&self.blocks);
        let key = (prefix.into(), TypeId::of::<B>());
        let known = blocks.get(&key).and_then(Weak::upgrade);
        if let Some(block) =
            known.and_then(|block| (block as Arc<dyn Any + Send + Sync>).downcast::<B>().ok())
        {
            return block;
        }
        let block = Arc::new(B::default());
        let shared: Arc<dyn Block> = block.clone();
        blocks.insert(key, Arc::downgrade(&shared));
        block
    }

    /// The counter of that full name, made where it is not yet known; never forgotten.
    pub fn counter(&self, name: impl Into<String>) -> Arc<Counter> {
        let mut singles = lock(&self.singles);
        match singles.entry(name.into()).or_insert_with(|| Single::Counter(Arc::default())) {
            Single::Counter(counter) => counter.clone(),
            // Two kinds under one name are a mistake in this program; neither may stop it.
            Single::Gauge(_) => Arc::default(),
        }
    }

    /// The gauge of that full name, made where it is not yet known; never forgotten.
    pub fn gauge(&self, name: impl Into<String>) -> Arc<Gauge> {
        let mut singles = lock(&self.singles);
        match singles.entry(name.into()).or_insert_with(|| Single::Gauge(Arc::default())) {
            Single::Gauge(gauge) => gauge.clone(),
            Single::Counter(_) => Arc::default(),
        }
    }

    /// Calls `visit` with every full name and metric. Not sorted. No lock is held meanwhile.
    pub fn visit(&self, visit: &mut dyn FnMut(&str, Metric<'_>)) {
        for (name, single) in lock(&self.singles).clone() {
            match &single {
                Single::Counter(counter) => visit(&name, Metric::Counter(counter)),
                Single::Gauge(gauge) => visit(&name, Metric::Gauge(gauge)),
            }
        }
        for series in self.live_series() {
            visit(series.name(), series.metric());
        }
        let mut full = String::new();
        for (prefix, block) in self.live_blocks() {
            block.visit(&mut |name, metric| {
                full.clear();
                // Writing to a String cannot fail.
                let _ = write!(full, "{prefix}.{name}");
                visit(&full, metric);
            });
        }
    }

    /// The value of a counter or gauge, if it is there.
    pub fn value(&self, name: &str) -> Option<u64> {
        let mut found = None;
        self.visit(&mut |full, metric| {
            if full == name {
                found = match metric {
                    Metric::Counter(counter) => Some(counter.value()),
                    Metric::Gauge(gauge) => Some(gauge.value()),
                    Metric::Histogram(_) | Metric::Text(_) => None,
                };
            }
        });
        found
    }

    /// Envoy's `/stats`: `name: value`, one a line, sorted by name; texts first, histograms last.
    pub fn render_text(&self) -> String {
        let walk = self.walk(&Query::default());
        let chunks = text::Text::new(walk, Mode::Summary, Buckets::default());
        chunks.map(|chunk| String::from_utf8_lossy(&chunk).into_owned()).collect()
    }

    /// `/reset_counters`.
    pub fn reset_counters(&self) {
        self.visit(&mut |_, metric| match metric {
            Metric::Counter(counter) => counter.reset(),
            Metric::Gauge(_) | Metric::Histogram(_) | Metric::Text(_) => {}
        });
    }

    /// What `query` asks for, sorted by name, a few at a time.
    pub fn walk(&self, query: &Query) -> Walk {
        let singles = lock(&self.singles);
        let mut sources: Vec<_> =
            singles.iter().map(|(name, single)| Source::single(name, single.clone())).collect();
        drop(singles);
        let blocks = self.live_blocks().into_iter();
        sources.extend(blocks.map(|(prefix, block)| Source::block(&prefix, block)));
        sources.extend(self.live_series().into_iter().map(Source::series));
        Walk::new(query, sources)
    }

    /// The same at once.
    pub fn snapshot(&self, query: &Query) -> Snapshot {
        self.walk(query).rest()
    }

    /// The blocks that have an owner; the others are forgotten.
    fn live_blocks(&self) -> Vec<(Arc<str>, Arc<dyn Block>)> {
        let mut blocks = lock(&self.blocks);
        let mut live = Vec::with_capacity(blocks.len());
        blocks.retain(|(prefix, _), block| match block.upgrade() {
            Some(block) => {
                live.push((prefix.clone(), block));
                true
            }
            None => false,
        });
        live
    }
}

impl fmt::Debug for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stats").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Set once a metric was written to, for `usedonly`: no value of ours has this bit.
const USED: u64 = 1 << 63;

/// Only goes up, but for `/reset_counters`.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn inc(&self) {
        self.add(1);
    }

    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed) & !USED
    }

    /// It stays used.
    pub fn reset(&self) {
        if self.used() {
            self.0.store(USED, Ordering::Relaxed);
        }
    }

    pub fn used(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }
}

/// How much of something there is now: held by [`Held`] where it counts living things, set where it is measured.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Its highest bit is lost.
    pub fn set(&self, value: u64) {
        self.0.store(value | USED, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed) & !USED
    }

    pub fn used(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    fn up(&self) {
        self.shift(0, 1);
    }

    /// One of those that add to it adds `to` now, no longer `from`.
    fn shift(&self, from: u64, to: u64) {
        let before = match to.checked_sub(from) {
            Some(more) => self.0.fetch_add(more, Ordering::Relaxed),
            None => self.0.fetch_sub(from - to, Ordering::Relaxed),
        };
        if before & USED == 0 {
            self.0.fetch_or(USED, Ordering::Relaxed);
        }
    }
}

/// Words: Envoy's text readout.
#[derive(Debug, Default)]
pub struct Readout(Mutex<Option<Box<str>>>);

impl Readout {
    pub fn set(&self, text: &str) {
        let mut known = lock(&self.0);
        if known.as_deref() != Some(text) {
            *known = Some(text.into());
        }
    }

    /// `None` before the first.
    pub fn text(&self) -> Option<Box<str>> {
        lock(&self.0).clone()
    }
}

/// One unit of a gauge of a block, until it is dropped.
#[must_use = "the gauge goes back down when this is dropped"]
pub struct Held<B> {
    block: Arc<B>,
    gauge: fn(&B) -> &Gauge,
}

impl<B> Held<B> {
    /// `Held::new(&stats, |s| &s.upstream_cx_active)`.
    pub fn new(block: &Arc<B>, gauge: fn(&B) -> &Gauge) -> Self {
        gauge(block).up();
        Self { block: block.clone(), gauge }
    }

    /// All the statistics that the gauge is one of.
    pub fn block(&self) -> &B {
        &self.block
    }
}

impl Held<Gauge> {
    /// Of a gauge that stands alone.
    pub fn single(gauge: &Arc<Gauge>) -> Self {
        Self::new(gauge, |gauge| gauge)
    }
}

impl<B> Drop for Held<B> {
    fn drop(&mut self) {
        (self.gauge)(&self.block).0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<B> fmt::Debug for Held<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Held")
    }
}

/// What one of many adds to a gauge that is their sum, until it is dropped.
#[must_use = "its part of the gauge goes when this is dropped"]
pub struct Share<B> {
    block: Arc<B>,
    gauge: fn(&B) -> &Gauge,
    value: u64,
}

impl<B> Share<B> {
    /// Adds nothing so far.
    pub fn new(block: &Arc<B>, gauge: fn(&B) -> &Gauge) -> Self {
        Self { block: block.clone(), gauge, value: 0 }
    }

    pub fn set(&mut self, value: u64) {
        (self.gauge)(&self.block).shift(self.value, value);
        self.value = value;
    }
}

impl<B> Drop for Share<B> {
    fn drop(&mut self) {
        if self.value > 0 {
            self.set(0);
        }
    }
}

impl<B> fmt::Debug for Share<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Share").field(&self.value).finish()
    }
}

/// Declares a block: a struct of metrics whose fields are Envoy's names behind the prefix.
///
/// `counter cx_total = "manager.cx_total"` gives a field another name than the metric; `in "manager"` behind the
/// struct's name puts all its names behind that, so that blocks of one owner share the text of their prefix.
macro_rules! stats_block {
    ($(#[$meta:meta])* $vis:vis struct $name:ident $(in $sub:literal)? { $($(#[$doc:meta])* $kind:ident $field:ident $(= $as:literal)?;)* }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        $vis struct $name {
            $($(#[$doc])* pub $field: $crate::telemetry::stats::stats_block!(@type $kind),)*
        }

        impl $crate::telemetry::stats::Block for $name {
            fn visit(&self, visit: &mut dyn FnMut(&'static str, $crate::telemetry::stats::Metric<'_>)) {
                $crate::telemetry::stats::stats_block!(@visit self visit ($($sub)?) $($kind $field ($($as)?))*);
            }
        }
    };
    (@visit $self:ident $visit:ident $sub:tt $($kind:ident $field:ident $as:tt)*) => {
        $($visit(
            $crate::telemetry::stats::stats_block!(@name $sub $field $as),
            $crate::telemetry::stats::stats_block!(@metric $kind, &$self.$field),
        );)*
    };
    (@type counter) => { $crate::telemetry::stats::Counter };
    (@type gauge) => { $crate::telemetry::stats::Gauge };
    (@type text) => { $crate::telemetry::stats::Readout };
    (@type histogram) => { $crate::telemetry::stats::Histogram };
    (@metric counter, $value:expr) => { $crate::telemetry::stats::Metric::Counter($value) };
    (@metric gauge, $value:expr) => { $crate::telemetry::stats::Metric::Gauge($value) };
    (@metric text, $value:expr) => { $crate::telemetry::stats::Metric::Text($value) };
    (@metric histogram, $value:expr) => { $crate::telemetry::stats::Metric::Histogram($value) };
    (@name () $field:ident ()) => { stringify!($field) };
    (@name () $field:ident ($as:literal)) => { $as };
    (@name ($sub:literal) $field:ident ()) => { concat!($sub, ".", stringify!($field)) };
    (@name ($sub:literal) $field:ident ($as:literal)) => { concat!($sub, ".", $as) };
}
pub(crate) use stats_block;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rendered_sorted_and_by_envoys_names() {
        let stats = Stats::new();
        let listener = ListenerStats::of(&stats, "127.0.0.1:15001".parse().unwrap());
        let _other = ListenerStats::of(&stats, "[::1]:15006".parse().unwrap());
        listener.downstream_cx_total.add(2);
        let held = Held::new(&listener, |s| &s.downstream_cx_active);
        let text = stats.render_text();
        assert!(text.contains("listener.127.0.0.1_15001.downstream_cx_active: 1\n"), "{text}");
        assert!(text.contains("listener.127.0.0.1_15001.downstream_cx_total: 2\n"), "{text}");
        assert!(text.contains("listener.[__1]_15006.downstream_cx_total: 0\n"), "{text}");
        let scalars: Vec<_> = text.lines().filter(|line| !line.ends_with("No recorded values")).collect();
        assert!(scalars.is_sorted(), "histograms come last: {text}");
        assert!(text.ends_with("downstream_cx_length_ms: No recorded values\n"), "{text}");
        drop(held);
        assert_eq!(listener.downstream_cx_active.value(), 0);
    }

    #[test]
    fn a_gauge_is_the_sum_of_its_shares() {
        let gauge = Arc::new(Gauge::default());
        let [mut one, mut other] = [0; 2].map(|_| Share::new(&gauge, |gauge: &Gauge| gauge));
        assert!(!gauge.used());
        one.set(0);
        assert!(gauge.used(), "a value of zero is a value");
        one.set(7);
        other.set(5);
        assert_eq!(gauge.value(), 12);
        one.set(2);
        assert_eq!(gauge.value(), 7);
        drop(other);
        assert_eq!(gauge.value(), 2);
        drop(one);
        assert_eq!(gauge.value(), 0);
        assert!(gauge.used());
    }

    #[test]
    fn a_block_is_shared_by_its_owners_and_forgotten_with_the_last() {
        let stats = Stats::new();
        let one = stats.block::<TcpStats>("tcp.a");
        stats.block::<TcpStats>("tcp.a").downstream_cx_total.inc();
        assert_eq!(one.downstream_cx_total.value(), 1);
        assert_eq!(stats.value("tcp.a.downstream_cx_total"), Some(1));
        drop(one);
        assert_eq!(stats.value("tcp.a.downstream_cx_total"), None);
        assert_eq!(stats.block::<TcpStats>("tcp.a").downstream_cx_total.value(), 0);
    }
}

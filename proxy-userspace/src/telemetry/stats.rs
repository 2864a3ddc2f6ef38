//! Counters and gauges under Envoy's names.
//!
//! [`Stats`] is the registry of one proxy. Names are resolved once, into the bundles below; the data path then
//! only adds to atomics. A gauge has no `inc`: it is held by a [`GaugeGuard`], so it cannot drift.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All counters and gauges of one proxy, by name.
#[derive(Debug, Default)]
pub struct Stats {
    metrics: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
}

impl Stats {
    pub fn new() -> Self {
        Self::default()
    }

    /// The counter of that name, made where it is not yet known.
    pub fn counter(&self, name: impl Into<String>) -> Counter {
        Counter(self.metric(name.into()))
    }

    /// The gauge of that name, made where it is not yet known.
    pub fn gauge(&self, name: impl Into<String>) -> Gauge {
        Gauge(self.metric(name.into()))
    }

    /// The value under a name, if anything has registered it.
    pub fn value(&self, name: &str) -> Option<u64> {
        self.lock().get(name).map(|metric| metric.load(Ordering::Relaxed))
    }

    /// Envoy's `/stats`: `name: value`, one a line, sorted by name.
    pub fn render_text(&self) -> String {
        let mut text = String::new();
        for (name, metric) in self.lock().iter() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name}: {}", metric.load(Ordering::Relaxed));
        }
        text
    }

    fn metric(&self, name: String) -> Arc<AtomicU64> {
        self.lock().entry(name).or_default().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<AtomicU64>>> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Only goes up.
#[derive(Clone, Debug)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    pub fn inc(&self) {
        self.add(1);
    }

    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many of something there are now.
#[derive(Clone, Debug)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// Counts one more, until the guard is dropped.
    #[must_use = "the gauge goes back down when the guard is dropped"]
    pub fn hold(&self) -> GaugeGuard {
        self.0.fetch_add(1, Ordering::Relaxed);
        GaugeGuard(self.0.clone())
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One unit of a gauge.
#[derive(Debug)]
pub struct GaugeGuard(Arc<AtomicU64>);

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// `listener.<address>.`: shared by the listeners of all workloads that bind the same address.
#[derive(Clone, Debug)]
pub struct ListenerStats {
    pub cx_total: Counter,
    pub cx_active: Gauge,
    pub cx_destroy: Counter,
}

impl ListenerStats {
    pub fn new(stats: &Stats, address: SocketAddr) -> Self {
        // Envoy has no colon in a stat name.
        let prefix = format!("listener.{}", address.to_string().replace(':', "_"));
        Self {
            cx_total: stats.counter(format!("{prefix}.downstream_cx_total")),
            cx_active: stats.gauge(format!("{prefix}.downstream_cx_active")),
            cx_destroy: stats.counter(format!("{prefix}.downstream_cx_destroy")),
        }
    }
}

/// `tcp.<prefix>.`
#[derive(Clone, Debug)]
pub struct TcpStats {
    pub cx_total: Counter,
    pub rx_bytes: Counter,
    pub tx_bytes: Counter,
    pub idle_timeout: Counter,
}

impl TcpStats {
    pub fn new(stats: &Stats, prefix: &str) -> Self {
        Self {
            cx_total: stats.counter(format!("tcp.{prefix}.downstream_cx_total")),
            rx_bytes: stats.counter(format!("tcp.{prefix}.downstream_cx_rx_bytes_total")),
            tx_bytes: stats.counter(format!("tcp.{prefix}.downstream_cx_tx_bytes_total")),
            idle_timeout: stats.counter(format!("tcp.{prefix}.idle_timeout")),
        }
    }
}

/// `cluster.<name>.`
#[derive(Clone, Debug)]
pub struct ClusterStats {
    pub cx_total: Counter,
    pub cx_active: Gauge,
    pub cx_destroy: Counter,
    pub connect_fail: Counter,
    pub connect_timeout: Counter,
    pub none_healthy: Counter,
    pub rx_bytes: Counter,
    pub tx_bytes: Counter,
}

impl ClusterStats {
    pub fn new(stats: &Stats, name: &str) -> Self {
        Self {
            cx_total: stats.counter(format!("cluster.{name}.upstream_cx_total")),
            cx_active: stats.gauge(format!("cluster.{name}.upstream_cx_active")),
            cx_destroy: stats.counter(format!("cluster.{name}.upstream_cx_destroy")),
            connect_fail: stats.counter(format!("cluster.{name}.upstream_cx_connect_fail")),
            connect_timeout: stats.counter(format!("cluster.{name}.upstream_cx_connect_timeout")),
            none_healthy: stats.counter(format!("cluster.{name}.upstream_cx_none_healthy")),
            rx_bytes: stats.counter(format!("cluster.{name}.upstream_cx_rx_bytes_total")),
            tx_bytes: stats.counter(format!("cluster.{name}.upstream_cx_tx_bytes_total")),
        }
    }
}

/// What Envoy has no name for.
#[derive(Clone, Debug)]
pub struct OwnStats {
    pub destination_is_listener: Counter,
    pub destination_is_admin: Counter,
    pub accept_errors: Counter,
    pub accept_exhausted: Counter,
}

impl OwnStats {
    pub fn new(stats: &Stats) -> Self {
        Self {
            destination_is_listener: stats.counter("shunt.original_destination_is_listener"),
            destination_is_admin: stats.counter("shunt.original_destination_is_admin"),
            accept_errors: stats.counter("shunt.accept_errors"),
            accept_exhausted: stats.counter("shunt.accept_exhausted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rendered_sorted_and_by_envoys_names() {
        let stats = Stats::new();
        let listener = ListenerStats::new(&stats, "127.0.0.1:15001".parse().unwrap());
        ListenerStats::new(&stats, "[::1]:15006".parse().unwrap());
        listener.cx_total.add(2);
        let held = listener.cx_active.hold();
        let text = stats.render_text();
        assert!(text.contains("listener.127.0.0.1_15001.downstream_cx_active: 1\n"), "{text}");
        assert!(text.contains("listener.127.0.0.1_15001.downstream_cx_total: 2\n"), "{text}");
        assert!(text.contains("listener.[__1]_15006.downstream_cx_total: 0\n"), "{text}");
        assert!(text.lines().is_sorted());
        drop(held);
        assert_eq!(listener.cx_active.value(), 0);
    }
}

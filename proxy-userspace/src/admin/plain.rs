//! The [`View`] of a daemon that runs without an Envoy configuration.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use hyper::body::Bytes;
use nix::sys::signal::{Signal, raise};
use proxy_config::model;

use super::view::{ClusterView, DrainListeners, Kind, ListenerView, ResourceView, State, View};
use crate::clock::{self, Start};

/// Nothing configured: no listeners, no clusters.
#[derive(Debug)]
pub struct Plain {
    start: Start,
    unhealthy: AtomicBool,
}

impl Plain {
    pub fn new() -> Self {
        Self { start: Start::new(), unhealthy: AtomicBool::new(false) }
    }
}

impl Default for Plain {
    fn default() -> Self {
        Self::new()
    }
}

impl View for Plain {
    fn state(&self) -> State {
        if self.unhealthy.load(Ordering::Relaxed) { State::Draining } else { State::Live }
    }

    fn uptime(&self) -> Duration {
        clock::now() - self.start.at
    }

    fn listeners(&self) -> Vec<ListenerView> {
        Vec::new()
    }

    fn cluster_names(&self) -> Vec<Arc<str>> {
        Vec::new()
    }

    fn cluster(&self, _name: &str) -> Option<ClusterView> {
        None
    }

    fn bootstrap(&self) -> (Bytes, SystemTime) {
        (Bytes::new(), self.start.wall)
    }

    fn resources(&self, _kind: Kind) -> Vec<ResourceView> {
        Vec::new()
    }

    fn node(&self) -> model::bootstrap::Node {
        model::bootstrap::Node::default()
    }

    fn stats_config(&self) -> model::bootstrap::StatsConfig {
        model::bootstrap::StatsConfig::default()
    }

    fn runtime(&self) -> BTreeMap<String, model::metadata::Struct> {
        BTreeMap::new()
    }

    fn command_line(&self) -> serde_json::Value {
        serde_json::json!({})
    }

    fn drain_listeners(&self, _how: DrainListeners) {}

    fn quit(&self) {
        if let Err(error) = raise(Signal::SIGTERM) {
            log::error!("admin: quit: {error}");
        }
    }

    fn set_healthy(&self, healthy: bool) {
        self.unhealthy.store(!healthy, Ordering::Relaxed);
    }

    fn reopen_logs(&self) {}
}

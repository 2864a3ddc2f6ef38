//! The statistics of the server as a whole.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use proxy_config::load::Loaded;
use proxy_config::model;
use proxy_config::model::listener::TrafficDirection;
use rustls::pki_types::UnixTime;

use super::Status;
use crate::admin::view::State;
use crate::admin::{Memory, View};
use crate::clock;
use crate::telemetry::stats::{ListenerManagerStats, RuntimeStats, ServerStats, Stats};
use crate::transport::tls::certificate;

/// The stats of the server as a whole, under Envoy's names.
pub(super) struct Blocks {
    pub(super) server: Arc<ServerStats>,
    pub(super) listeners: Arc<ListenerManagerStats>,
    runtime: Arc<RuntimeStats>,
}

impl Blocks {
    pub(super) fn new(stats: &Stats, loaded: Option<&Loaded>, workers: usize) -> Self {
        let blocks = Self {
            server: stats.block("server"),
            listeners: stats.block("listener_manager"),
            runtime: stats.block("runtime"),
        };
        blocks.server.concurrency.set(workers as u64);
        let layers = loaded.map_or(0, |loaded| loaded.bootstrap.runtime.len());
        blocks.runtime.num_layers.set(layers as u64);
        blocks
    }
}

/// How long what was found of certificates holds.
const EXPIRY_HOLDS: Duration = Duration::from_secs(2);

impl Status {
    pub(super) fn refresh(&self) {
        let Blocks { server, listeners, .. } = &self.blocks;
        let state = self.state();
        server.state.set(state.number());
        server.live.set(u64::from(state == State::Live));
        server.uptime.set(self.uptime().as_secs());
        let memory = Memory::read();
        server.memory_allocated.set(memory.data);
        server.memory_heap_size.set(memory.data);
        server.memory_physical_size.set(memory.resident);
        server.total_connections.set((self.inbound.live() + self.others.live()) as u64);
        let Some(snapshot) = self.world.as_ref().map(|world| world.snapshot()) else { return };
        for cluster in snapshot.clusters() {
            cluster.stats.warming_state.set(u64::from(!cluster.is_warm()));
        }
        let drained =
            snapshot.listeners().into_iter().filter(|listener| self.is_drained(&listener.model)).count();
        let replaced = self.world.as_ref().map_or(0, |world| world.draining());
        let draining = (drained + replaced) as u64;
        // Envoy has no such gauge before the first that drains.
        if draining != listeners.total_listeners_draining.value() {
            listeners.total_listeners_draining.set(draining);
        }
        server.days_until_first_cert_expiring.set(self.first_expiration());
    }

    /// By `/drain_listeners`.
    fn is_drained(&self, listener: &model::Listener) -> bool {
        match listener.traffic_direction {
            TrafficDirection::Inbound => self.inbound.is_draining(),
            TrafficDirection::Outbound | TrafficDirection::Unspecified => self.others.is_draining(),
        }
    }

    /// It is about days, and there may be thousands of certificates: they are not looked at for every scrape.
    fn first_expiration(&self) -> u64 {
        let now = clock::now();
        let mut known = self.expiring.lock().unwrap_or_else(PoisonError::into_inner);
        let known = match &mut *known {
            Some(known) if now.saturating_duration_since(known.0) < EXPIRY_HOLDS => known,
            other => other.insert((now, self.days_until_first_expiration())),
        };
        known.1
    }

    /// Of all that `/certs` shows; Envoy's word for never is the greatest number of 32 bits.
    fn days_until_first_expiration(&self) -> u64 {
        let sets = self.certificates();
        let all = sets.iter().flat_map(|set| set.ca.iter().chain(&set.chain));
        let now = UnixTime::since_unix_epoch(clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default());
        let days = all.map(|(_, facts)| certificate::days_until_expiration(facts, now));
        days.min().unwrap_or(u32::MAX.into())
    }
}

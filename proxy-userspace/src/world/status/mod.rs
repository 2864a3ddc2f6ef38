//! What the admin API shows of a running configuration, and what it may do to it.

mod stats;
mod view;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proxy_config::load::Loaded;
use proxy_config::model;
use proxy_config::model::bootstrap::Resource;
use tokio::sync::Notify;

use self::stats::Blocks;
use super::{Gate, World};
use crate::admin::view::ResourceView;
use crate::clock::{Instant, Start};
use crate::drain::Drain;
use crate::net::Place;
use crate::task::Tasks;
use crate::telemetry::access_log::Sinks;
use crate::telemetry::stats::Stats;

/// The running configuration as people see it; without one, the daemon alone.
pub struct Status {
    start: Start,
    world: Option<Arc<World>>,
    loaded: Option<Loaded>,
    sinks: Arc<Sinks>,
    tasks: Tasks,
    command_line: serde_json::Value,
    drain_time: Duration,
    blocks: Blocks,
    /// When certificates were looked at, and in how many days the first of them expires.
    expiring: Mutex<Option<(Instant, u64)>>,
    /// Listeners of inbound traffic, and the others: `/drain_listeners?inboundonly` ends the first.
    inbound: Arc<Drain>,
    others: Arc<Drain>,
    /// What HTTP's health checks are answered by, too.
    unhealthy: Arc<AtomicBool>,
    warm: AtomicBool,
    quit: Arc<Notify>,
}

impl Status {
    pub fn new(
        world: Option<Arc<World>>,
        loaded: Option<Loaded>,
        sinks: Arc<Sinks>,
        (tasks, stats): (Tasks, &Stats),
        drain_time: Duration,
        (workers, command_line): (usize, serde_json::Value),
    ) -> Self {
        Self {
            blocks: Blocks::new(stats, loaded.as_ref(), workers),
            expiring: Mutex::default(),
            start: Start::new(),
            warm: AtomicBool::new(false),
            world,
            loaded,
            sinks,
            tasks,
            command_line,
            drain_time,
            inbound: Arc::default(),
            others: Arc::default(),
            unhealthy: Arc::default(),
            quit: Arc::default(),
        }
    }

    /// Has the health that it knows of told by others, too.
    pub fn telling(self, unhealthy: Arc<AtomicBool>) -> Self {
        Self { unhealthy, ..self }
    }

    /// What accepted connections live under.
    pub fn gate(&self, place: Arc<Place>) -> Gate {
        Gate { place, inbound: self.inbound.watch(), others: self.others.watch() }
    }

    /// Where the configuration's listeners listen: name and address.
    pub fn addresses(&self) -> Vec<(Arc<str>, SocketAddr)> {
        self.world.as_ref().map(|world| world.addresses()).unwrap_or_default()
    }

    /// Every cluster knows its endpoints: connections are accepted.
    pub fn set_warm(&self) {
        self.warm.store(true, Ordering::Relaxed);
        self.blocks.listeners.workers_started.set(1);
    }

    /// `/quitquitquit` was asked for: end at once.
    pub async fn quit_asked(&self) {
        self.quit.notified().await;
    }

    /// Lets all listeners go and waits for their connections, no longer than the drain time.
    pub async fn drain(&self) {
        self.unhealthy.store(true, Ordering::Relaxed);
        let time = self.drain_time;
        let (inbound, others) = tokio::join!(self.inbound.drain(time), self.others.drain(time));
        if inbound + others > 0 {
            log::info!("{} connections were cut after {time:?}", inbound + others);
        }
    }

    /// What its listeners' connections live under: of inbound listeners, and of the others.
    pub fn drains(&self) -> [Arc<Drain>; 2] {
        [self.inbound.clone(), self.others.clone()]
    }

    /// Waits until what the access logs were told is written.
    pub fn flush(&self, deadline: Duration) {
        if !self.sinks.flush(deadline) {
            log::warn!("access logs: not everything could be written");
        }
    }

    fn config(&self) -> Option<&model::Bootstrap> {
        self.loaded.as_ref().map(|loaded| &loaded.bootstrap)
    }

    fn static_resource<T>(&self, name: &Arc<str>, resource: &Resource<T>) -> ResourceView {
        ResourceView {
            name: name.clone(),
            raw: resource.raw.clone(),
            version: "".into(),
            updated: self.start.wall,
        }
    }
}

//! A pool: hands out connections, takes them back, and has those made that are waited for.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::task::{Context, Waker};

use proxy_config::model::http::Priority;
use tokio::sync::oneshot;

use super::kept::{Idle, Sharing, State};
use super::lease::{Lease, Link};
use super::life::Life;
use super::settings::{Protocol, Settings};
use super::{Key, keeper, lock};
use crate::clock::{self, Instant};
use crate::cluster::breaker::{self, Breaker, Overflow};
use crate::cluster::{Cluster, Host, Source};
use crate::http::{ResetReason, h1};
use crate::net::Dial;
use crate::net::facts::Facts;
use crate::task::{Abort, Tasks, workers};
use crate::telemetry::stats::ClusterStats;

pub struct Pool {
    key: Key,
    cluster: Weak<Cluster>,
    host: Arc<Host>,
    pub(super) dial: Arc<dyn Dial>,
    pub(super) source: Source,
    pub(super) facts: Option<Box<Facts>>,
    pub(super) tasks: Tasks,
    connections: Arc<AtomicU64>,
    worker: workers::Place,
    priority: Priority,
    breaker: Arc<Breaker>,
    settings: Arc<Settings>,
    stats: Arc<ClusterStats>,
    state: Mutex<State>,
    /// Connections that are there or on their way.
    live: AtomicUsize,
    /// Whoever waits would like to know of a connection's end.
    wanted: AtomicBool,
    keeper: Mutex<Option<Waker>>,
    keeping: OnceLock<Abort>,
    _place: breaker::Pool,
}

/// What a pool is of.
pub(super) struct Of<'a> {
    pub(super) cluster: &'a Arc<Cluster>,
    pub(super) host: Arc<Host>,
    pub(super) dial: Arc<dyn Dial>,
    pub(super) source: Source,
    pub(super) facts: Option<&'a Facts>,
    pub(super) tasks: Tasks,
    pub(super) connections: Arc<AtomicU64>,
    pub(super) worker: workers::Place,
    pub(super) priority: Priority,
    pub(super) settings: Arc<Settings>,
}

/// A connection for one request.
pub(super) struct Taken {
    pub(super) link: Link,
    pub(super) life: Arc<Life>,
}

/// No connection.
#[derive(Clone, Debug)]
pub enum Refused {
    Overflow(Overflow),
    /// It could not be made.
    Failed {
        reason: ResetReason,
        local: bool,
        details: Arc<str>,
    },
    /// The cluster has gone meanwhile.
    Gone,
}

/// What a look at a pool's idle connections has found.
pub(super) struct Look {
    /// When to look again at the latest.
    pub(super) next: Option<Instant>,
    pub(super) empty: bool,
    /// To be dropped without the lock.
    _gone: Vec<Arc<Life>>,
}

impl Pool {
    pub(super) fn new(key: Key, of: Of<'_>, place: breaker::Pool) -> Arc<Self> {
        let pool = Arc::new(Self {
            key,
            cluster: Arc::downgrade(of.cluster),
            dial: of.dial,
            source: of.source,
            facts: of.facts.cloned().map(Box::new),
            tasks: of.tasks,
            connections: of.connections,
            worker: of.worker,
            priority: of.priority,
            breaker: of.cluster.breaker().clone(),
            settings: of.settings,
            stats: of.cluster.stats.clone(),
            host: of.host,
            state: Mutex::default(),
            live: AtomicUsize::new(0),
            wanted: AtomicBool::new(false),
            keeper: Mutex::default(),
            keeping: OnceLock::new(),
            _place: place,
        });
        let keeping = keeper::run(Arc::downgrade(&pool));
        let task = pool.tasks.spawn_on(pool.worker, "upstream pool", keeping);
        // It is new: there is none yet.
        let _ = pool.keeping.set(Abort::of(task));
        pool
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    pub(super) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    pub(super) fn cluster(&self) -> Option<Arc<Cluster>> {
        self.cluster.upgrade()
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.key.protocol
    }

    pub(super) fn more(&self) -> Option<&super::More> {
        self.key.more.as_deref()
    }

    /// Envoy's connection id: counts from 1.
    pub(super) fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn worker(&self) -> workers::Place {
        self.worker
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn stats(&self) -> &Arc<ClusterStats> {
        &self.stats
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// One that is free.
    pub(super) fn take(&self) -> Option<Taken> {
        let mut gone = Vec::new();
        let mut state = self.state();
        if let Some(taken) = state.shared(&mut gone) {
            return Some(taken);
        }
        let Idle { client, life, .. } = loop {
            let mut idle = state.idle.pop()?;
            let mut cx = Context::from_waker(Waker::noop());
            if idle.client.poll_idle(&mut cx).is_pending() {
                break idle;
            }
            idle.life.ended_remotely();
            gone.push(idle.life);
        };
        state.active += 1;
        drop(state);
        life.begin();
        Some(Taken { link: Link::Http1(client), life })
    }

    /// With its place among the requests.
    pub(super) fn lease(self: &Arc<Self>, taken: Taken) -> Result<Lease, Refused> {
        match self.breaker.request(&self.host, self.priority) {
            Ok(place) => Ok(Lease::new(taken, self.clone(), place)),
            Err(overflow) => {
                self.untake(taken);
                Err(Refused::Overflow(overflow))
            }
        }
    }

    fn untake(self: &Arc<Self>, Taken { link, life }: Taken) {
        life.end();
        self.done();
        if let Link::Http1(client) = link {
            self.give_back(client, life);
        }
    }

    /// For the next one that is free.
    pub(super) async fn wait(self: Arc<Self>) -> Result<Lease, Refused> {
        let pending = self.breaker.pending(self.priority).map_err(Refused::Overflow)?;
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.state();
            state.waiting.push_back(sender);
            self.wanted.store(true, Ordering::Relaxed);
        }
        let mut waiting = Waiting { pool: &self, receiver, done: false };
        self.connect_as_needed();
        let taken = (&mut waiting.receiver).await;
        waiting.done = true;
        drop(pending);
        match taken {
            Ok(Ok(taken)) => self.lease(taken),
            Ok(Err(refused)) => {
                self.stats.upstream_rq_pending_failure_eject.inc();
                Err(refused)
            }
            Err(_) => Err(Refused::Gone),
        }
    }

    /// Connects for those that wait, and for those that are expected.
    pub(super) fn connect_as_needed(self: &Arc<Self>) {
        // Envoy's bound of what one request sets off.
        for _ in 0..3 {
            let mut state = self.state();
            if !state.wants_more(self.settings.preconnect) {
                return;
            }
            let first = self.live.load(Ordering::Relaxed) == 0;
            let Ok(place) = self.breaker.connection(&self.host, self.priority, first) else { return };
            state.expected = state.expected.saturating_add(self.streams_expected());
            drop(state);
            self.live.fetch_add(1, Ordering::Relaxed);
            super::connect::start(self, place);
        }
    }

    /// Of a connection that is not there yet.
    pub(super) fn streams_expected(&self) -> usize {
        match self.key.protocol {
            Protocol::Http1 => 1,
            Protocol::Http2 | Protocol::Auto => self.settings.h2.max_concurrent_streams.max(1) as usize,
        }
    }

    /// A connection is there.
    pub(super) fn connected(self: &Arc<Self>, link: Link, life: Arc<Life>) {
        {
            let mut state = self.state();
            state.expected = state.expected.saturating_sub(self.streams_expected());
        }
        match link {
            Link::Http1(client) => self.give_back(client, life),
            Link::Http2(client) => {
                self.state().shared.push(Sharing { client, life, idle: None });
                self.freed();
                let mut state = self.state();
                // It was for those that waited.
                let gone = if state.draining { std::mem::take(&mut state.shared) } else { Vec::new() };
                drop(state);
                drop(gone);
                self.wake_keeper();
            }
        }
        self.connect_as_needed();
    }

    /// All that wait are told: what they do now is for them to say, as in Envoy.
    pub(super) fn failed(&self, refused: &Refused) {
        let waiting = {
            let mut state = self.state();
            state.expected = state.expected.saturating_sub(self.streams_expected());
            self.wanted.store(false, Ordering::Relaxed);
            std::mem::take(&mut state.waiting)
        };
        for waiting in waiting {
            // Who has gone meanwhile has counted itself.
            let _ = waiting.send(Err(refused.clone()));
        }
    }

    /// A connection of HTTP/1 is free: for who waits longest, else for later.
    pub(super) fn give_back(&self, mut client: h1::Client, life: Arc<Life>) {
        if life.is_spent(clock::now) {
            if life.expires.is_some_and(|at| at <= clock::lately()) {
                self.stats.upstream_cx_max_duration_reached.inc();
            }
            return;
        }
        let mut state = self.state();
        let mut taken = Taken { link: Link::Http1(client), life };
        while let Some(next) = state.next_waiting(&self.wanted) {
            taken.life.begin();
            state.active += 1;
            match next.send(Ok(taken)) {
                Ok(()) => {
                    drop(state);
                    // As Envoy, who looks then whether the others could have one of their own.
                    if self.wanted.load(Ordering::Relaxed) {
                        self.wake_keeper();
                    }
                    return;
                }
                Err(Ok(back)) => {
                    back.life.end();
                    state.active -= 1;
                    taken = back;
                }
                Err(Err(_)) => return,
            }
        }
        if state.draining {
            return;
        }
        let Taken { link: Link::Http1(kept), life } = taken else { return };
        client = kept;
        let keeper = lock(&self.keeper);
        let waker = keeper.as_ref().map_or(Waker::noop(), |waker| waker);
        let gone = client.poll_idle(&mut Context::from_waker(waker)).is_ready();
        drop(keeper);
        if gone {
            life.ended_remotely();
            return;
        }
        let now = clock::lately();
        // Its timer is moved only where that would be too late.
        let idle = self.settings.common.idle_timeout.and_then(|limit| now.checked_add(limit));
        let ends = idle.into_iter().chain(life.expires).min();
        let late = ends.is_some_and(|ends| state.next_look.is_none_or(|next| ends < next));
        state.idle.push(Idle { client, life, since: now });
        drop(state);
        if late {
            self.wake_keeper();
        }
    }

    /// A request is done with.
    pub(super) fn done(&self) {
        let mut state = self.state();
        state.active = state.active.saturating_sub(1);
        drop(state);
        self.freed();
    }

    /// A stream of a connection of HTTP/2 is free.
    fn freed(&self) {
        if !self.wanted.load(Ordering::Relaxed) {
            return;
        }
        let mut gone = Vec::new();
        let mut state = self.state();
        state.waiting.retain(|waiting| !waiting.is_closed());
        while !state.waiting.is_empty() {
            let Some(taken) = state.shared(&mut gone) else { break };
            let Some(next) = state.next_waiting(&self.wanted) else { break };
            if let Err(Ok(back)) = next.send(Ok(taken)) {
                back.life.end();
                state.active -= 1;
            }
        }
        drop(state);
    }

    /// A connection of HTTP/2 takes no more streams.
    pub(super) fn remove(&self, id: u64) {
        let mut state = self.state();
        let at = state.shared.iter().position(|sharing| sharing.life.id == id);
        let gone = at.map(|at| state.shared.swap_remove(at));
        drop(state);
        drop(gone);
    }

    /// A connection has ended.
    pub(super) fn lost(&self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
        if self.wanted.load(Ordering::Relaxed) {
            self.wake_keeper();
        }
    }

    /// Its idle connections are closed, and the others once they are. Who waits is served still, as in Envoy.
    pub(super) fn drain(self: &Arc<Self>) {
        let mut state = self.state();
        state.draining = true;
        let gone = (std::mem::take(&mut state.idle), std::mem::take(&mut state.shared));
        drop(state);
        drop(gone);
        self.connect_as_needed();
    }

    fn wake_keeper(&self) {
        if let Some(waker) = lock(&self.keeper).as_ref() {
            waker.wake_by_ref();
        }
    }

    pub(super) fn looks_at(&self, next: Instant) {
        self.state().next_look = Some(next);
    }

    /// Looks after idle connections, and leaves the waker of `cx` with each.
    pub(super) fn look(self: &Arc<Self>, cx: &mut Context<'_>) -> Look {
        {
            let mut keeper = lock(&self.keeper);
            if !keeper.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                *keeper = Some(cx.waker().clone());
            }
        }
        let now = clock::now();
        let mut gone = Vec::new();
        let mut state = self.state();
        let waits = !state.waiting.is_empty();
        let first = state.look_idle(cx, now, self, &mut gone);
        let second = state.look_shared(now, self, &mut gone);
        let next = first.into_iter().chain(second).min();
        drop(state);
        if waits {
            self.connect_as_needed();
        }
        Look { next, empty: self.live.load(Ordering::Relaxed) == 0, _gone: gone }
    }

    pub(super) fn idle_out(&self, since: Instant, life: &Life, now: Instant) -> Result<Option<Instant>, ()> {
        let idle = self.settings.common.idle_timeout.and_then(|limit| since.checked_add(limit));
        if idle.is_some_and(|at| at <= now) {
            self.stats.upstream_cx_idle_timeout.inc();
            return Err(());
        }
        if life.expires.is_some_and(|at| at <= now) {
            self.stats.upstream_cx_max_duration_reached.inc();
            return Err(());
        }
        Ok(idle.into_iter().chain(life.expires).min())
    }
}

/// A request that waits.
struct Waiting<'a> {
    pool: &'a Arc<Pool>,
    receiver: oneshot::Receiver<Result<Taken, Refused>>,
    done: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        self.pool.stats.upstream_rq_cancelled.inc();
        self.receiver.close();
        // It may have come just now.
        if let Ok(Ok(taken)) = self.receiver.try_recv() {
            self.pool.untake(taken);
        }
    }
}

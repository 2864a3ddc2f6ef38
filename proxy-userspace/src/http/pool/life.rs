//! A connection's life, from when it was asked for: what is counted of it, however it ends.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::Version;

use super::state::Pool;
use crate::clock::{self, Instant};
use crate::cluster::breaker;
use crate::telemetry::stats::ClusterStats;
use crate::transport::TlsInfo;

pub struct Life {
    /// `%UPSTREAM_CONNECTION_ID%`.
    pub id: u64,
    pub local: Option<SocketAddr>,
    pub tls: Option<Arc<TlsInfo>>,
    pub version: Version,
    /// How long connecting took.
    pub took: Duration,
    pub(super) expires: Option<Instant>,
    /// How many requests it may still have.
    left: AtomicU32,
    /// How many it has now.
    active: AtomicU32,
    remote: AtomicBool,
    /// How often it was given back.
    returns: AtomicU32,
    /// It ended under a request.
    broken: AtomicBool,
    since: Instant,
    stats: Arc<ClusterStats>,
    pool: Weak<Pool>,
    _place: breaker::Connection,
}

/// What is known of a connection that is there.
pub(super) struct Facts {
    pub(super) id: u64,
    pub(super) local: Option<SocketAddr>,
    pub(super) tls: Option<Arc<TlsInfo>>,
    pub(super) version: Version,
    pub(super) took: Duration,
    pub(super) since: Instant,
}

impl Life {
    pub(super) fn new(facts: Facts, pool: &Arc<Pool>, place: breaker::Connection) -> Arc<Self> {
        let Facts { id, local, tls, version, took, since } = facts;
        let settings = pool.settings();
        Arc::new(Self {
            id,
            local,
            tls,
            version,
            took,
            expires: settings.expires(since),
            left: settings.common.max_requests_per_connection.unwrap_or(u32::MAX).into(),
            active: 0.into(),
            remote: false.into(),
            broken: false.into(),
            returns: 0.into(),
            since,
            stats: pool.stats().clone(),
            pool: Arc::downgrade(pool),
            _place: place,
        })
    }

    /// A request goes on it. Says whether another one may follow.
    pub(super) fn begin(&self) -> bool {
        self.active.fetch_add(1, Ordering::Relaxed);
        let left = self.left.load(Ordering::Relaxed);
        if left == u32::MAX {
            return true;
        }
        self.left.store(left.saturating_sub(1), Ordering::Relaxed);
        if left == 1 {
            self.stats.upstream_cx_max_requests.inc();
        }
        left > 1
    }

    pub(super) fn given_back(&self) {
        self.returns.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn returns(&self) -> u32 {
        self.returns.load(Ordering::Relaxed)
    }

    pub(super) fn end(&self) {
        self.active.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// It ends now, whatever goes on on it.
    pub(super) fn ended(&self, remotely: bool) {
        if remotely {
            self.ended_remotely();
        }
        if self.active() > 0 {
            self.broken.store(true, Ordering::Relaxed);
        }
    }

    /// No request may follow.
    pub(super) fn is_spent(&self, now: impl FnOnce() -> Instant) -> bool {
        self.left.load(Ordering::Relaxed) == 0 || self.expires.is_some_and(|at| at <= now())
    }

    /// The other side ends it.
    pub fn ended_remotely(&self) {
        self.remote.store(true, Ordering::Relaxed);
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let stats = &self.stats;
        let active = *self.broken.get_mut();
        stats.upstream_cx_destroy.inc();
        if active {
            stats.upstream_cx_destroy_with_active_rq.inc();
        }
        if *self.remote.get_mut() {
            stats.upstream_cx_destroy_remote.inc();
            if active {
                stats.upstream_cx_destroy_remote_with_active_rq.inc();
            }
        } else {
            stats.upstream_cx_destroy_local.inc();
            if active {
                stats.upstream_cx_destroy_local_with_active_rq.inc();
            }
        }
        let lived = (clock::now() - self.since).as_millis();
        stats.upstream_cx_length_ms.record(u64::try_from(lived).unwrap_or(u64::MAX));
        if let Some(pool) = self.pool.upgrade() {
            pool.lost();
        }
    }
}

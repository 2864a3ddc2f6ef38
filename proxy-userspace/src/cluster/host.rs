//! One endpoint: where it is, how it does, what it has done.
//!
//! A host outlives updates that still name its address, so that its stats and its health do.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use proxy_config::model::address::Address;
use proxy_config::model::endpoint::{EndpointHealthCheck, HealthStatus, Locality};
use proxy_config::model::metadata::{Metadata, Value};
use tokio::sync::Notify;

use super::outlier::Monitor;
use crate::clock::Instant;
use crate::telemetry::stats::{Counter, Gauge};

pub struct Host {
    pub hostname: Arc<str>,
    pub locality: Arc<Locality>,
    pub stats: HostStats,
    /// What the host is known by: its address, or its name in LOGICAL_DNS.
    key: Address,
    /// Where a host of LOGICAL_DNS is now.
    moved: ArcSwapOption<SocketAddr>,
    metadata: ArcSwap<Metadata>,
    weight: AtomicU32,
    priority: AtomicU32,
    flags: AtomicU32,
    /// Which of the cluster's `transport_socket_matches`, plus one; 0 is the cluster's own socket.
    transport: AtomicU32,
    extra: Option<Box<Extra>>,
}

/// Envoy's statistics of a host, as `/clusters` shows them.
#[derive(Debug, Default)]
pub struct HostStats {
    pub cx_total: Counter,
    pub cx_active: Gauge,
    pub cx_connect_fail: Counter,
    pub rq_total: Counter,
    pub rq_active: Gauge,
    pub rq_error: Counter,
    pub rq_success: Counter,
    pub rq_timeout: Counter,
}

/// What only hosts of clusters with health checks, outlier detection, slow start or forced closing have.
pub(super) struct Extra {
    pub(super) health_check: EndpointHealthCheck,
    pub(super) outlier: Option<Monitor>,
    /// When the host was last found healthy, in milliseconds since the extra's `born`, plus one.
    healthy_since: AtomicU32,
    born: Instant,
    closing: Notify,
    closings: AtomicU32,
}

/// What an update says of a host.
#[derive(Clone)]
pub(super) struct Spec {
    pub(super) address: Address,
    /// Where that is now, in LOGICAL_DNS.
    pub(super) at: Option<SocketAddr>,
    pub(super) hostname: Arc<str>,
    pub(super) locality: Arc<Locality>,
    pub(super) priority: u32,
    pub(super) weight: u32,
    pub(super) metadata: Arc<Metadata>,
    pub(super) health_status: HealthStatus,
    pub(super) health_check: EndpointHealthCheck,
}

/// Why a host gets no traffic, or less: Envoy's health flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthFlag(u32);

impl HealthFlag {
    pub const FAILED_ACTIVE_HC: Self = Self(0x1);
    pub const FAILED_OUTLIER_CHECK: Self = Self(0x2);
    pub const FAILED_EDS_HEALTH: Self = Self(0x4);
    pub const DEGRADED_ACTIVE_HC: Self = Self(0x8);
    pub const DEGRADED_EDS_HEALTH: Self = Self(0x10);
    pub const PENDING_DYNAMIC_REMOVAL: Self = Self(0x20);
    pub const PENDING_ACTIVE_HC: Self = Self(0x40);
    pub const EXCLUDED_VIA_IMMEDIATE_HC_FAIL: Self = Self(0x80);
    pub const ACTIVE_HC_TIMEOUT: Self = Self(0x100);
    pub const EDS_STATUS_DRAINING: Self = Self(0x200);

    /// In Envoy's order, with the names of `/clusters`.
    pub const ALL: &'static [(Self, &'static str)] = &[
        (Self::FAILED_ACTIVE_HC, "failed_active_hc"),
        (Self::FAILED_OUTLIER_CHECK, "failed_outlier_check"),
        (Self::FAILED_EDS_HEALTH, "failed_eds_health"),
        (Self::DEGRADED_ACTIVE_HC, "degraded_active_hc"),
        (Self::DEGRADED_EDS_HEALTH, "degraded_eds_health"),
        (Self::PENDING_DYNAMIC_REMOVAL, "pending_dynamic_removal"),
        (Self::PENDING_ACTIVE_HC, "pending_active_hc"),
        (Self::EXCLUDED_VIA_IMMEDIATE_HC_FAIL, "excluded_via_immediate_hc_fail"),
        (Self::ACTIVE_HC_TIMEOUT, "active_hc_timeout"),
        (Self::EDS_STATUS_DRAINING, "eds_status_draining"),
    ];

    const UNHEALTHY: u32 = 0x1 | 0x2 | 0x4 | 0x200;
    const DEGRADED: u32 = 0x8 | 0x10;
    const EDS: u32 = 0x4 | 0x10 | 0x200;

    fn of_eds(status: HealthStatus) -> u32 {
        match status {
            HealthStatus::Unknown | HealthStatus::Healthy => 0,
            HealthStatus::Unhealthy | HealthStatus::Timeout => Self::FAILED_EDS_HEALTH.0,
            HealthStatus::Draining => Self::EDS_STATUS_DRAINING.0,
            HealthStatus::Degraded => Self::DEGRADED_EDS_HEALTH.0,
        }
    }
}

/// What the flags come down to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Healthy,
    Degraded,
    Unhealthy,
}

impl Host {
    pub(super) fn new(spec: Spec, extra: Option<Box<Extra>>, transport: u32) -> Self {
        Self {
            key: spec.address,
            moved: ArcSwapOption::from(spec.at.map(Arc::new)),
            hostname: spec.hostname,
            locality: spec.locality,
            stats: HostStats::default(),
            metadata: ArcSwap::from(spec.metadata),
            weight: spec.weight.max(1).into(),
            priority: spec.priority.into(),
            flags: HealthFlag::of_eds(spec.health_status).into(),
            transport: transport.into(),
            extra,
        }
    }

    /// Where to connect to now.
    pub fn address(&self) -> Address {
        self.moved.load().as_deref().map_or_else(|| self.key.clone(), |moved| Address::Ip(*moved))
    }

    pub fn socket_address(&self) -> Option<SocketAddr> {
        match &self.key {
            Address::Ip(address) => Some(*address),
            Address::Host(_) => self.moved.load().as_deref().copied(),
            Address::Pipe { .. } => None,
        }
    }

    pub(super) fn key(&self) -> &Address {
        &self.key
    }

    /// Says whether it was elsewhere before.
    pub(super) fn move_to(&self, at: Option<SocketAddr>) -> bool {
        let elsewhere = self.moved.load().as_deref() != at.as_ref();
        if elsewhere {
            self.moved.store(at.map(Arc::new));
        }
        elsewhere
    }

    pub fn metadata(&self) -> Arc<Metadata> {
        self.metadata.load_full()
    }

    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    pub fn priority(&self) -> u32 {
        self.priority.load(Ordering::Relaxed)
    }

    /// `envoy.lb`'s `canary`.
    pub fn canary(&self) -> bool {
        let metadata = self.metadata.load();
        matches!(metadata.of("envoy.lb").and_then(|lb| lb.get("canary")), Some(Value::Bool(true)))
    }

    /// As `/clusters` has it: `healthy`, or each flag behind a slash.
    pub fn health_flags(&self) -> String {
        let set: Vec<_> = HealthFlag::ALL.iter().filter(|(flag, _)| self.has(*flag)).collect();
        if set.is_empty() {
            "healthy".to_owned()
        } else {
            set.iter().map(|(_, name)| format!("/{name}")).collect()
        }
    }

    pub fn has(&self, flag: HealthFlag) -> bool {
        self.flags.load(Ordering::Relaxed) & flag.0 != 0
    }

    pub fn health(&self) -> Health {
        match self.flags.load(Ordering::Relaxed) {
            flags if flags & HealthFlag::UNHEALTHY != 0 => Health::Unhealthy,
            flags if flags & HealthFlag::DEGRADED != 0 => Health::Degraded,
            _ => Health::Healthy,
        }
    }

    /// Of outlier detection; `None` where there were too few requests, or no detection.
    pub fn success_rate(&self) -> Option<f64> {
        self.extra.as_ref()?.outlier.as_ref()?.success_rate(false)
    }

    pub fn local_origin_success_rate(&self) -> Option<f64> {
        self.extra.as_ref()?.outlier.as_ref()?.success_rate(true)
    }

    /// Resolves when connections to this host shall be closed, as `close_connections_on_host_health_failure` and
    /// `close_connections_on_host_set_change` want it; never where the cluster wants neither.
    pub async fn closing(&self) {
        let Some(extra) = &self.extra else { return std::future::pending().await };
        let before = extra.closings.load(Ordering::Acquire);
        loop {
            let notified = extra.closing.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if extra.closings.load(Ordering::Acquire) != before {
                return;
            }
            notified.await;
        }
    }

    pub(super) fn close_connections(&self) {
        if let Some(extra) = &self.extra {
            extra.closings.fetch_add(1, Ordering::AcqRel);
            extra.closing.notify_waiters();
        }
    }

    /// Says whether that changed anything.
    pub(super) fn set(&self, flag: HealthFlag) -> bool {
        self.flags.fetch_or(flag.0, Ordering::Relaxed) & flag.0 == 0
    }

    pub(super) fn clear(&self, flag: HealthFlag) -> bool {
        self.flags.fetch_and(!flag.0, Ordering::Relaxed) & flag.0 != 0
    }

    pub(super) fn extra(&self) -> Option<&Extra> {
        self.extra.as_deref()
    }

    pub(super) fn transport(&self) -> u32 {
        self.transport.load(Ordering::Relaxed)
    }

    /// Whether an update may keep this host: Envoy replaces it where its locality or health check changed.
    pub(super) fn can_become(&self, spec: &Spec) -> bool {
        let same_check = self.extra.as_ref().is_none_or(|extra| extra.health_check == spec.health_check);
        same_check && *self.locality == *spec.locality && self.hostname == spec.hostname
    }

    /// Takes over what an update says; true where the balancer has to be rebuilt.
    pub(super) fn become_(&self, spec: &Spec, transport: u32) -> bool {
        let eds = HealthFlag::of_eds(spec.health_status);
        let before = self.flags.load(Ordering::Relaxed) & HealthFlag::EDS;
        if before != eds {
            self.flags.fetch_and(!HealthFlag::EDS, Ordering::Relaxed);
            self.flags.fetch_or(eds, Ordering::Relaxed);
        }
        let metadata = **self.metadata.load() != *spec.metadata;
        if metadata {
            self.metadata.store(spec.metadata.clone());
        }
        self.transport.store(transport, Ordering::Relaxed);
        let weight = self.weight.swap(spec.weight.max(1), Ordering::Relaxed) != spec.weight.max(1);
        let priority = self.priority.swap(spec.priority, Ordering::Relaxed) != spec.priority;
        let returned = self.clear(HealthFlag::PENDING_DYNAMIC_REMOVAL);
        before != eds || metadata || weight || priority || returned
    }
}

impl Extra {
    pub(super) fn new(
        health_check: EndpointHealthCheck,
        outlier: Option<Monitor>,
        now: Instant,
    ) -> Box<Self> {
        Box::new(Self {
            health_check,
            outlier,
            healthy_since: 0.into(),
            born: now,
            closing: Notify::new(),
            closings: 0.into(),
        })
    }

    /// The host has just become healthy: slow start begins.
    pub(super) fn found_healthy(&self, now: Instant) {
        let millis = now.saturating_duration_since(self.born).as_millis();
        self.healthy_since.store(u32::try_from(millis + 1).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    pub(super) fn healthy_since(&self) -> Option<Instant> {
        let millis = self.healthy_since.load(Ordering::Relaxed).checked_sub(1)?;
        self.born.checked_add(std::time::Duration::from_millis(millis.into()))
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({} {})", address_text(&self.address()), self.health_flags())
    }
}

/// Envoy's text of an address, which is also what consistent hashing hashes.
pub fn address_text(address: &Address) -> String {
    match address {
        Address::Ip(address) => address.to_string(),
        Address::Host(host) => format!("{}:{}", host.host, host.port),
        Address::Pipe { path, .. } => path.display().to_string(),
    }
}

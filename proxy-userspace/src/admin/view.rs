//! What the admin API shows of the rest of the daemon. The running configuration implements [`View`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::body::Bytes;
use proxy_config::model::endpoint::AssignmentPolicy;
use proxy_config::{model, xds};

use crate::secret::Loaded;
use crate::transport::tls::CertificateSet;
use crate::world::Snapshot;
use crate::world::history::History;

/// `envoy.admin.v3.ServerInfo.State`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Live,
    Draining,
    PreInitializing,
    Initializing,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::PreInitializing => "PRE_INITIALIZING",
            Self::Initializing => "INITIALIZING",
        }
    }

    /// The gauge `server.state`.
    pub fn number(self) -> u64 {
        self as u64
    }
}

/// An active listener.
#[derive(Clone, Debug)]
pub struct ListenerView {
    pub name: Arc<str>,
    /// Bound, so with the port that the kernel gave. The first is `address`, the others are additional.
    pub addresses: Vec<SocketAddr>,
}

/// A cluster and its endpoints.
#[derive(Clone, Debug)]
pub struct ClusterView {
    pub model: Arc<model::Cluster>,
    /// From CDS, not from the bootstrap.
    pub added_via_api: bool,
    pub hosts: Vec<HostView>,
    /// Of each host's locality, in the order of the hosts; 0: it has none.
    pub locality_weights: Vec<u32>,
    /// Of its endpoints.
    pub policy: AssignmentPolicy,
    pub success_rates: SuccessRates,
}

/// Of outlier detection: ejection thresholds and averages, where they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SuccessRates {
    pub average: Option<f64>,
    pub ejection_threshold: Option<f64>,
    pub local_origin_average: Option<f64>,
    pub local_origin_ejection_threshold: Option<f64>,
}

/// An endpoint of a cluster.
#[derive(Clone, Debug)]
pub struct HostView {
    /// Resolved, so never a name.
    pub address: model::Address,
    pub hostname: Arc<str>,
    pub health: Health,
    pub weight: u32,
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub sub_zone: Arc<str>,
    pub canary: bool,
    pub priority: u32,
    pub success_rate: Option<f64>,
    pub local_origin_success_rate: Option<f64>,
    pub metadata: Option<Arc<model::Metadata>>,
    pub stats: HostCounts,
}

/// Why a host is unhealthy; all false: healthy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    pub failed_active_hc: bool,
    pub failed_outlier_check: bool,
    pub failed_eds_health: bool,
    pub degraded_active_hc: bool,
    pub degraded_eds_health: bool,
    pub pending_dynamic_removal: bool,
    pub pending_active_hc: bool,
    pub excluded_via_immediate_hc_fail: bool,
    pub active_hc_timeout: bool,
    pub eds_status_draining: bool,
}

/// `HostStats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostCounts {
    pub cx_connect_fail: u64,
    pub cx_total: u64,
    pub cx_active: u64,
    pub rq_error: u64,
    pub rq_success: u64,
    pub rq_timeout: u64,
    pub rq_total: u64,
    pub rq_active: u64,
    pub rq_pending_active: u64,
}

/// Resources of the bootstrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    StaticCluster,
    StaticListener,
    StaticSecret,
}

/// A resource as it was configured.
#[derive(Clone, Debug)]
pub struct ResourceView {
    pub name: Arc<str>,
    pub raw: model::Raw,
    /// Empty where it is static.
    pub version: Arc<str>,
    pub updated: SystemTime,
}

/// A resource of LDS, CDS, RDS or ECDS in its stages.
#[derive(Clone, Debug)]
pub struct DynamicView {
    pub name: Arc<str>,
    pub active: Option<ResourceView>,
    pub warming: Option<ResourceView>,
    /// Of listeners only.
    pub draining: Option<ResourceView>,
    /// The last update of it, where that was refused.
    pub error: Option<ErrorView>,
}

/// `UpdateFailureState`.
#[derive(Clone, Debug)]
pub struct ErrorView {
    /// What was refused; empty where it could not be read.
    pub raw: model::Raw,
    pub version: Arc<str>,
    pub last_attempt: SystemTime,
    pub details: String,
}

/// A secret of SDS.
#[derive(Clone, Debug)]
pub struct SecretView {
    pub resource: ResourceView,
    /// None: it is waited for.
    pub loaded: Option<Arc<Loaded>>,
}

/// What is waited for, in Envoy's words.
#[derive(Clone, Debug)]
pub struct UnreadyView {
    pub whose: Unready,
    pub targets: Vec<String>,
}

/// Who waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unready {
    Listener(Arc<str>),
    /// Envoy shows none of them.
    Cluster(Arc<str>),
}

/// Parameters of `/drain_listeners`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainListeners {
    pub inbound_only: bool,
    pub graceful: bool,
    pub skip_exit: bool,
}

/// What the admin API answers from. Methods are called on the admin's own threads: they may block for a moment,
/// and must not depend on the admin.
pub trait View: Send + Sync {
    fn state(&self) -> State;
    fn uptime(&self) -> Duration;
    fn listeners(&self) -> Vec<ListenerView>;
    /// Names in `/clusters`' order; each is asked for by [`View::cluster`] while the answer is read.
    fn cluster_names(&self) -> Vec<Arc<str>>;
    fn cluster(&self, name: &str) -> Option<ClusterView>;
    /// The encoded `config.bootstrap.v3.Bootstrap`, and when it was loaded. Empty where there is none.
    fn bootstrap(&self) -> (Bytes, SystemTime);
    fn resources(&self, kind: Kind) -> Vec<ResourceView>;
    /// Those of a control plane or of files, by name.
    fn dynamic(&self, kind: xds::Kind) -> Vec<DynamicView> {
        let _ = kind;
        Vec::new()
    }
    /// The last version of all of them: `version_info` of a section.
    fn version(&self, kind: xds::Kind) -> Arc<str> {
        let _ = kind;
        "".into()
    }
    /// Listeners and clusters come from a control plane or a file, or may.
    fn is_dynamic(&self) -> bool {
        false
    }
    /// What connections are served by at the moment; none without a configuration.
    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        None
    }
    /// What the last updates have changed; none where there can be no update.
    fn history(&self) -> Option<History> {
        None
    }
    /// Those of SDS, by name.
    fn secrets(&self) -> Vec<SecretView> {
        Vec::new()
    }
    /// Listeners that wait for something.
    fn unready(&self) -> Vec<UnreadyView> {
        Vec::new()
    }
    /// Of each TLS context: of the listeners' chains, then of the clusters.
    fn certificates(&self) -> Vec<CertificateSet> {
        Vec::new()
    }
    fn node(&self) -> model::bootstrap::Node;
    fn stats_config(&self) -> model::bootstrap::StatsConfig;
    /// `layered_runtime`, by layer.
    fn runtime(&self) -> std::collections::BTreeMap<String, model::metadata::Struct>;
    /// `command_line_options` of `/server_info`.
    fn command_line(&self) -> serde_json::Value;
    fn drain_listeners(&self, how: DrainListeners);
    fn quit(&self);
    /// `/healthcheck/fail` and `ok`.
    fn set_healthy(&self, healthy: bool);
    fn reopen_logs(&self);
    /// Sets the gauges that are measured, not counted, before they are shown.
    fn refresh_stats(&self) {}
}

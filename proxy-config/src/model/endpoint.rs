//! `config.endpoint.v3.ClusterLoadAssignment`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::FractionalPercent;
use super::address::Address;
use super::metadata::{Metadata, Struct};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadAssignment {
    pub cluster_name: Arc<str>,
    pub localities: Vec<LocalityEndpoints>,
    pub policy: AssignmentPolicy,
}

#[derive(Clone, Debug, PartialEq)]
pub struct AssignmentPolicy {
    /// Category and part of the connections that are refused.
    pub drop_overloads: Vec<(Arc<str>, FractionalPercent)>,
    /// In percent, default 140.
    pub overprovisioning_factor: u32,
    pub weighted_priority_health: bool,
}

impl Default for AssignmentPolicy {
    fn default() -> Self {
        Self { drop_overloads: Vec::new(), overprovisioning_factor: 140, weighted_priority_health: false }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalityEndpoints {
    pub locality: Locality,
    pub endpoints: Vec<Endpoint>,
    /// `None`: not given, which takes no traffic under locality-weighted balancing.
    pub load_balancing_weight: Option<u32>,
    pub priority: u32,
    /// `envoy.transport_socket_match` of its metadata: for endpoints whose own fits no entry of
    /// `transport_socket_matches`.
    pub transport_match: Struct,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub sub_zone: Arc<str>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub address: Address,
    pub hostname: Arc<str>,
    pub health_check: EndpointHealthCheck,
    pub health_status: HealthStatus,
    /// 1 to 128 in Envoy's words, default 1.
    pub load_balancing_weight: u32,
    /// Shared between equal endpoints of an assignment.
    pub metadata: Arc<Metadata>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointHealthCheck {
    pub port: Option<u16>,
    pub hostname: Arc<str>,
    pub address: Option<Address>,
    pub disabled: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HealthStatus {
    #[default]
    Unknown,
    Healthy,
    Unhealthy,
    Draining,
    Timeout,
    Degraded,
}

/// `named_endpoints`, by name, while an assignment is lowered.
pub type NamedEndpoints = BTreeMap<String, Endpoint>;

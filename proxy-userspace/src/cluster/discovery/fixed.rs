//! Endpoints that the configuration, or an EDS answer, names by their addresses.

use std::sync::Arc;

use proxy_config::model::LoadAssignment;
use proxy_config::model::endpoint::{Endpoint, Locality, LocalityEndpoints};

use crate::cluster::host::Spec;
use crate::cluster::members::{Group, Member};

/// An assignment as an update's groups.
pub(in crate::cluster) fn groups(assignment: &LoadAssignment) -> Vec<Group> {
    assignment.localities.iter().map(group).collect()
}

fn group(from: &LocalityEndpoints) -> Group {
    let of = |locality: &_| from.endpoints.iter().map(|endpoint| member(endpoint, from, locality)).collect();
    group_of(from, of)
}

/// A locality with the members that `of` gives.
pub(super) fn group_of(from: &LocalityEndpoints, of: impl FnOnce(&Arc<Locality>) -> Vec<Member>) -> Group {
    let locality = Arc::new(from.locality.clone());
    Group {
        priority: from.priority,
        weight: from.load_balancing_weight.unwrap_or(0),
        members: of(&locality),
        transport_match: from.transport_match.clone(),
        locality,
    }
}

pub(super) fn member(endpoint: &Endpoint, of: &LocalityEndpoints, locality: &Arc<Locality>) -> Member {
    Member::Spec(Box::new(spec(endpoint, of, locality)))
}

pub(super) fn spec(endpoint: &Endpoint, of: &LocalityEndpoints, locality: &Arc<Locality>) -> Spec {
    Spec {
        address: endpoint.address.clone(),
        at: None,
        hostname: endpoint.hostname.clone(),
        locality: locality.clone(),
        priority: of.priority,
        weight: endpoint.load_balancing_weight,
        metadata: endpoint.metadata.clone(),
        health_status: endpoint.health_status,
        health_check: endpoint.health_check.clone(),
    }
}

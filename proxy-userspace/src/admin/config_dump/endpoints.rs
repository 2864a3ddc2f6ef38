//! `EndpointsConfigDump`: the endpoints of a cluster as they are now.

use std::collections::HashMap;
use std::sync::Arc;

use proxy_config::model::FractionalPercent;
use proxy_config::model::cluster::Discovery;
use proxy_config::model::endpoint::AssignmentPolicy;
use serde_json::{Map, Value, json};

use super::super::clusters::{fields_of, locality, place};
use super::super::view::{ClusterView, Health, HostView};

/// A `ClusterLoadAssignment` of the hosts, by priority and locality.
pub(super) fn assignment(cluster: &ClusterView) -> Value {
    let name = match &cluster.model.discovery {
        Discovery::Eds(eds) => &eds.service_name,
        Discovery::Static
        | Discovery::StrictDns(_)
        | Discovery::LogicalDns(_)
        | Discovery::OriginalDst(_) => &cluster.model.name,
    };
    let endpoints: Vec<_> = groups(cluster).into_iter().map(Group::shown).collect();
    let mut out = json!({
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": **name,
        "endpoints": endpoints,
        "policy": policy(&cluster.policy),
    });
    if cluster.hosts.is_empty() {
        let _ = out.as_object_mut().and_then(|out| out.remove("endpoints"));
    }
    out
}

/// The hosts of a locality at a priority.
struct Group {
    priority: u32,
    locality: Value,
    weight: u32,
    hosts: Vec<Value>,
}

impl Group {
    fn shown(self) -> Value {
        let Self { priority, locality, weight, hosts } = self;
        let mut group = json!({"locality": locality, "lb_endpoints": hosts, "load_balancing_weight": weight});
        if priority > 0 {
            group["priority"] = json!(priority);
        }
        group
    }
}

fn groups(cluster: &ClusterView) -> Vec<Group> {
    type Key<'a> = (u32, &'a str, &'a str, &'a str);
    let mut groups: Vec<Group> = Vec::new();
    let mut found: HashMap<Key<'_>, usize> = HashMap::new();
    let weights = cluster.locality_weights.iter().copied().chain(std::iter::repeat(0));
    for (host, weight) in cluster.hosts.iter().zip(weights) {
        let key = (host.priority, &*host.region, &*host.zone, &*host.sub_zone);
        let index = *found.entry(key).or_insert_with(|| {
            let group =
                Group { priority: host.priority, locality: locality(host), weight, hosts: Vec::new() };
            groups.push(group);
            groups.len() - 1
        });
        if let Some(group) = groups.get_mut(index) {
            group.hosts.push(endpoint(host));
        }
    }
    groups.sort_by_key(|group| group.priority);
    groups
}

/// `ClusterLoadAssignment.Policy`, with what Envoy keeps of it.
fn policy(policy: &AssignmentPolicy) -> Value {
    let drop = |(category, part): &(Arc<str>, FractionalPercent)| {
        let numerator = u64::from(part.numerator) * 1_000_000 / u64::from(part.denominator.max(1));
        let mut percent = json!({"denominator": "MILLION"});
        if numerator > 0 {
            percent["numerator"] = json!(numerator);
        }
        json!({"category": **category, "drop_percentage": percent})
    };
    let mut out = json!({"overprovisioning_factor": policy.overprovisioning_factor});
    if !policy.drop_overloads.is_empty() {
        out["drop_overloads"] = policy.drop_overloads.iter().map(drop).collect();
    }
    out
}

/// What it all comes down to: Envoy keeps no more of `health_status` here.
fn coarse(health: Health) -> &'static str {
    let unhealthy = health.failed_active_hc
        || health.failed_outlier_check
        || health.failed_eds_health
        || health.eds_status_draining;
    if unhealthy {
        "UNHEALTHY"
    } else if health.degraded_active_hc || health.degraded_eds_health {
        "DEGRADED"
    } else {
        "HEALTHY"
    }
}

fn endpoint(host: &HostView) -> Value {
    let mut endpoint = json!({"address": place(&host.address), "health_check_config": {}});
    if !host.hostname.is_empty() {
        endpoint["hostname"] = json!(*host.hostname);
    }
    let mut out = json!({
        "endpoint": endpoint,
        "health_status": coarse(host.health),
        "load_balancing_weight": host.weight,
    });
    if let Some(metadata) = &host.metadata {
        let filters = metadata.0.iter().map(|(name, fields)| (name.clone(), fields_of(fields)));
        out["metadata"] = json!({"filter_metadata": filters.collect::<Map<_, _>>()});
    }
    out
}

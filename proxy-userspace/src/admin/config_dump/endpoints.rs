//! `EndpointsConfigDump`: the endpoints of a cluster as they are now.

use proxy_config::model::cluster::Discovery;
use serde_json::{Map, Value, json};

use super::super::clusters::{eds_health, fields_of, locality, place};
use super::super::view::{ClusterView, HostView};

/// A `ClusterLoadAssignment` of the hosts, by priority and locality.
pub(super) fn assignment(cluster: &ClusterView) -> Value {
    let name = match &cluster.model.discovery {
        Discovery::Eds(eds) => &eds.service_name,
        Discovery::Static
        | Discovery::StrictDns(_)
        | Discovery::LogicalDns(_)
        | Discovery::OriginalDst(_) => &cluster.model.name,
    };
    let mut groups: Vec<(u32, Value, Vec<Value>)> = Vec::new();
    for host in &cluster.hosts {
        let locality = locality(host);
        match groups.iter_mut().find(|(priority, place, _)| *priority == host.priority && *place == locality)
        {
            Some((_, _, hosts)) => hosts.push(endpoint(host)),
            None => groups.push((host.priority, locality, vec![endpoint(host)])),
        }
    }
    groups.sort_by_key(|(priority, _, _)| *priority);
    let group = |(priority, locality, hosts): (u32, Value, Vec<Value>)| {
        let mut group = json!({"locality": locality, "lb_endpoints": hosts, "load_balancing_weight": 0});
        if priority > 0 {
            group["priority"] = json!(priority);
        }
        group
    };
    let endpoints: Vec<_> = groups.into_iter().map(group).collect();
    let mut out = json!({
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": **name,
        "endpoints": endpoints,
        "policy": {"overprovisioning_factor": 140},
    });
    if cluster.hosts.is_empty() {
        let _ = out.as_object_mut().and_then(|out| out.remove("endpoints"));
    }
    out
}

fn endpoint(host: &HostView) -> Value {
    let mut endpoint = json!({"address": place(&host.address), "health_check_config": {}});
    if !host.hostname.is_empty() {
        endpoint["hostname"] = json!(*host.hostname);
    }
    let mut out = json!({
        "endpoint": endpoint,
        "health_status": eds_health(host.health),
        "load_balancing_weight": host.weight,
    });
    if let Some(metadata) = &host.metadata {
        let filters = metadata.0.iter().map(|(name, fields)| (name.clone(), fields_of(fields)));
        out["metadata"] = json!({"filter_metadata": filters.collect::<Map<_, _>>()});
    }
    out
}

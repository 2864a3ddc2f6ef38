//! Models and environments for the tests of this module.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proxy_config::model::address::{Address, HostPort};
use proxy_config::model::cluster::Discovery;
use proxy_config::model::endpoint::{
    Endpoint, EndpointHealthCheck, HealthStatus, LoadAssignment, LocalityEndpoints,
};
use proxy_config::model::metadata::{Metadata, Struct, Value};
use proxy_config::model::{self};
use proxy_config::xds::Kind;

use super::random::Seeded;
use super::{Cluster, Env, HealthFlag, Host, Want};
use crate::net::HostDial;
use crate::task::Tasks;
use crate::telemetry::stats::Stats;

/// Longer than anything takes on a loaded machine.
pub(super) const LONG: Duration = Duration::from_secs(30);

pub(super) fn env() -> Env {
    let stats = Arc::new(Stats::new());
    let tasks = Tasks::new(&stats);
    let (sources, _) = crate::xds::testing::sources(&stats, &tasks);
    Env { random: Arc::new(Seeded::new(7)), ..Env::new(stats, tasks, Arc::new(HostDial), sources) }
}

/// An EDS file for the cluster `c`: `version`, then addresses, by spaces.
pub(super) fn eds(text: &str) -> String {
    let mut words = text.split_whitespace();
    let version = words.next().unwrap_or_default();
    let endpoint = |address: &str| {
        let (host, port) = address.split_once(':').unwrap();
        format!("{{endpoint: {{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}}}")
    };
    let endpoints = words.map(endpoint).collect::<Vec<_>>().join(", ");
    format!(
        "version_info: '{version}'\nresources:\n- {{'@type': {}, cluster_name: c, endpoints: [{{lb_endpoints: \
         [{endpoints}]}}]}}\n",
        Kind::Endpoints.type_url()
    )
}

pub(crate) fn endpoint(address: &str) -> Endpoint {
    let address = match address.parse::<SocketAddr>() {
        Ok(address) => Address::Ip(address),
        Err(_) => {
            let (host, port) = address.split_once(':').unwrap();
            Address::Host(HostPort { host: host.into(), port: port.parse().unwrap() })
        }
    };
    Endpoint {
        address,
        hostname: "".into(),
        health_check: EndpointHealthCheck::default(),
        health_status: HealthStatus::Unknown,
        load_balancing_weight: 1,
        metadata: Arc::default(),
    }
}

/// Endpoints 127.0.0.1:1, :2, … with these weights.
pub(super) fn weighted(weights: &[u32]) -> Vec<Endpoint> {
    let with = |(port, weight): (usize, &u32)| Endpoint {
        load_balancing_weight: *weight,
        ..endpoint(&format!("127.0.0.1:{port}"))
    };
    (1..).zip(weights).map(with).collect()
}

pub(super) fn model(endpoints: Vec<Endpoint>) -> model::Cluster {
    let localities = vec![LocalityEndpoints { endpoints, ..LocalityEndpoints::default() }];
    model::Cluster {
        load_assignment: Arc::new(LoadAssignment { localities, ..LoadAssignment::default() }),
        ..model::Cluster::new("c", Discovery::Static)
    }
}

pub(super) fn cluster(model: model::Cluster) -> Arc<Cluster> {
    Cluster::new(Arc::new(model), &env()).unwrap()
}

/// `k=v` pairs by commas.
pub(super) fn fields(text: &str) -> Struct {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap();
        (key.to_owned(), Value::String(value.to_owned()))
    };
    text.split(',').filter(|s| !s.is_empty()).map(pair).collect()
}

pub(super) fn lb_metadata(text: &str) -> Arc<Metadata> {
    Arc::new(Metadata([("envoy.lb".to_owned(), fields(text))].into()))
}

pub(super) fn port(host: &Host) -> u16 {
    host.socket_address().unwrap().port()
}

/// Ports of so many choices.
pub(super) fn ports(cluster: &Cluster, times: usize) -> Vec<u16> {
    (0..times).map(|_| port(&cluster.choose(&Want::default()).unwrap())).collect()
}

/// How often each port was chosen.
pub(super) fn counts(cluster: &Cluster, times: usize) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for port in ports(cluster, times) {
        *counts.entry(port).or_default() += 1;
    }
    counts
}

/// Marks those ports as failing outlier detection, and rebuilds.
pub(super) fn fail(cluster: &Cluster, failing: &[u16]) {
    for host in cluster.hosts() {
        if failing.contains(&port(&host)) {
            host.set(HealthFlag::FAILED_ACTIVE_HC);
        } else {
            host.clear(HealthFlag::FAILED_ACTIVE_HC);
        }
    }
    cluster.refresh();
}

/// Waits for something that another task does.
pub(super) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = crate::clock::now();
    while !done() {
        assert!(start.elapsed() < LONG, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

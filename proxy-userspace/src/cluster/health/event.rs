//! The event log: a line of JSON for each change, in the shape of Envoy's `HealthCheckEvent`.

use proxy_config::model::address::Address;
use proxy_config::model::cluster::{HealthCheck, HealthChecker};
use serde_json::{Value, json};
use tokio::fs::OpenOptions;
use tokio::io::AsyncWriteExt as _;

use super::judge::{Happening, Verdict};
use crate::clock;
use crate::cluster::Cluster;
use crate::cluster::host::Host;

pub(super) struct Log<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) host: &'a Host,
    pub(super) check: &'a HealthCheck,
    pub(super) verdict: Verdict,
}

impl Log<'_> {
    /// A log that cannot be written says so, and checking goes on.
    pub(super) async fn write(&self, happened: &[Happening]) {
        let Some(path) = self.check.event_log.as_ref().filter(|_| !happened.is_empty()) else { return };
        let lines: String = happened.iter().map(|event| format!("{}\n", self.line(*event))).collect();
        let written = async {
            let mut file = OpenOptions::new().create(true).append(true).open(path).await?;
            file.write_all(lines.as_bytes()).await?;
            file.flush().await
        };
        if let Err(error) = written.await {
            log::warn!("{}: {error}", path.display());
        }
    }

    fn line(&self, event: Happening) -> Value {
        let failure = match self.verdict {
            Verdict::Healthy { .. } | Verdict::Wrong { .. } => "ACTIVE",
            Verdict::Network => "NETWORK",
            Verdict::Timeout => "NETWORK_TIMEOUT",
        };
        let (name, body) = match event {
            Happening::AddHealthy { first_check } => {
                ("add_healthy_event", json!({ "first_check": first_check }))
            }
            Happening::EjectUnhealthy => ("eject_unhealthy_event", json!({ "failure_type": failure })),
            Happening::Failure { first_check } => {
                ("health_check_failure_event", json!({ "failure_type": failure, "first_check": first_check }))
            }
            Happening::Success => ("successful_health_check_event", json!({})),
            Happening::Degraded => ("degraded_healthy_host", json!({})),
            Happening::NoLongerDegraded => ("no_longer_degraded_host", json!({})),
        };
        let kind = match self.check.checker {
            HealthChecker::Tcp { .. } => "TCP",
            HealthChecker::Http(_) => "HTTP",
            HealthChecker::Grpc(_) => "GRPC",
        };
        let locality = &self.host.locality;
        let mut line = json!({
            "health_checker_type": kind,
            "host": address(&self.host.address()),
            "cluster_name": &*self.cluster.model.name,
            "timestamp": clock::rfc3339(clock::wall()),
            "locality": { "region": &*locality.region, "zone": &*locality.zone, "sub_zone": &*locality.sub_zone },
        });
        if let Some(fields) = line.as_object_mut() {
            fields.insert(name.to_owned(), body);
        }
        line
    }
}

fn address(address: &Address) -> Value {
    match address {
        Address::Ip(ip) => json!({ "socket_address": {
            "protocol": "TCP", "address": ip.ip().to_string(), "port_value": ip.port(),
            "resolver_name": "", "ipv4_compat": false,
        } }),
        Address::Host(host) => {
            json!({ "socket_address": { "protocol": "TCP", "address": &*host.host, "port_value": host.port } })
        }
        Address::Pipe { path, mode } => {
            json!({ "pipe": { "path": path.display().to_string(), "mode": mode } })
        }
    }
}

//! What the admin API sees.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use hyper::body::Bytes;
use proxy_config::model::bootstrap::{DynamicResources, Node, StatsConfig};
use proxy_config::{model, xds};

use super::Status;
use crate::admin::View;
use crate::admin::view::{
    ClusterView, DrainListeners, DynamicView, Health, HostCounts, HostView, Kind, ListenerView, ResourceView,
    SecretView, State, SuccessRates, UnreadyView,
};
use crate::clock;
use crate::cluster::{HealthFlag, Host};
use crate::secret::Slot;
use crate::transport::tls::CertificateSet;
use crate::world::Snapshot;
use crate::world::history::History;

impl View for Status {
    fn state(&self) -> State {
        if self.unhealthy.load(Ordering::Relaxed) {
            State::Draining
        } else if self.warm.load(Ordering::Relaxed) {
            State::Live
        } else {
            State::PreInitializing
        }
    }

    fn uptime(&self) -> Duration {
        clock::now() - self.start.at
    }

    fn listeners(&self) -> Vec<ListenerView> {
        self.world.as_ref().map(|world| world.listeners()).unwrap_or_default()
    }

    fn cluster_names(&self) -> Vec<Arc<str>> {
        self.world.as_ref().map(|world| world.cluster_names()).unwrap_or_default()
    }

    fn cluster(&self, name: &str) -> Option<ClusterView> {
        let world = self.world.as_ref()?;
        let cluster = world.live.cluster(name)?;
        let (locality_weights, policy) = cluster.assignment();
        Some(ClusterView {
            model: cluster.model.clone(),
            locality_weights,
            policy,
            added_via_api: world.is_dynamic(name),
            hosts: cluster.hosts().iter().map(view).collect(),
            success_rates: SuccessRates::default(),
        })
    }

    fn bootstrap(&self) -> (Bytes, SystemTime) {
        let raw = self.loaded.as_ref().map(|loaded| loaded.raw.clone());
        (raw.unwrap_or_default(), self.start.wall)
    }

    fn resources(&self, kind: Kind) -> Vec<ResourceView> {
        let Some(config) = self.config() else { return Vec::new() };
        match kind {
            Kind::StaticCluster => {
                config.clusters.iter().map(|c| self.static_resource(&c.model.name, c)).collect()
            }
            Kind::StaticListener => {
                config.listeners.iter().map(|l| self.static_resource(&l.model.name, l)).collect()
            }
            Kind::StaticSecret => {
                config.secrets.iter().map(|s| self.static_resource(&s.model.name, s)).collect()
            }
        }
    }

    fn secrets(&self) -> Vec<SecretView> {
        let slots = self.world.as_ref().map(|world| world.secrets.dynamic()).unwrap_or_default();
        slots.iter().map(|slot| self.secret(slot)).collect()
    }

    fn unready(&self) -> Vec<UnreadyView> {
        self.world.as_ref().map(|world| world.unready()).unwrap_or_default()
    }

    fn is_dynamic(&self) -> bool {
        self.config().is_some_and(|config| config.dynamic != DynamicResources::default())
    }

    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.world.as_ref().map(|world| world.snapshot())
    }

    fn history(&self) -> Option<History> {
        let world = self.world.as_ref()?;
        // Routes and filters are followed by listeners of the bootstrap, too.
        let follows = || xds::Kind::ALL.into_iter().any(|kind| !world.dynamic(kind).is_empty());
        (self.is_dynamic() || follows()).then(|| world.history().clone())
    }

    fn dynamic(&self, kind: xds::Kind) -> Vec<DynamicView> {
        self.world.as_ref().map(|world| world.dynamic(kind)).unwrap_or_default()
    }

    fn version(&self, kind: xds::Kind) -> Arc<str> {
        self.world.as_ref().map(|world| world.version(kind)).unwrap_or_default()
    }

    fn certificates(&self) -> Vec<CertificateSet> {
        let Some(snapshot) = self.world.as_ref().map(|world| world.snapshot()) else { return Vec::new() };
        let downstream = snapshot.listeners().into_iter().flat_map(|listener| listener.transports());
        let mut clusters: Vec<_> = snapshot.clusters().collect();
        clusters.sort_by_key(|cluster| &cluster.model.name);
        let upstream = clusters.into_iter().flat_map(|cluster| cluster.transports());
        let mut found = Vec::new();
        downstream.chain(upstream).for_each(|transport| transport.certificates(&mut found));
        found
    }

    fn node(&self) -> Node {
        self.config().map(|config| config.node.clone()).unwrap_or_default()
    }

    fn stats_config(&self) -> StatsConfig {
        self.config().map(|config| config.stats.clone()).unwrap_or_default()
    }

    fn runtime(&self) -> BTreeMap<String, model::metadata::Struct> {
        self.config().map(|config| config.runtime.clone()).unwrap_or_default()
    }

    fn command_line(&self) -> serde_json::Value {
        self.command_line.clone()
    }

    fn drain_listeners(&self, how: DrainListeners) {
        let (inbound, others) = (self.inbound.starter(), self.others.starter());
        if how.graceful {
            // Connections of HTTP are told with their next response.
            inbound.announce();
            if !how.inbound_only {
                others.announce();
            }
        }
        let stop = move || {
            inbound.start();
            if !how.inbound_only {
                others.start();
            }
        };
        if !how.graceful {
            stop();
        } else if !how.skip_exit {
            // Envoy goes on accepting for the drain time.
            let time = self.drain_time;
            self.tasks.spawn("drain listeners", async move {
                tokio::time::sleep(time).await;
                stop();
            });
        }
    }

    fn quit(&self) {
        let quit = self.quit.clone();
        self.tasks.spawn("quit", async move {
            // Whoever asked hears the answer first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            quit.notify_one();
        });
    }

    fn set_healthy(&self, healthy: bool) {
        self.unhealthy.store(!healthy, Ordering::Relaxed);
    }

    fn reopen_logs(&self) {
        self.sinks.reopen();
    }

    fn refresh_stats(&self) {
        self.refresh();
    }
}

impl Status {
    fn secret(&self, slot: &Slot) -> SecretView {
        let (name, loaded) = (slot.name.clone(), slot.content());
        let resource = match slot.answer() {
            Some(answer) => ResourceView {
                name,
                raw: answer.secret.raw.clone(),
                version: answer.version.clone(),
                updated: answer.received,
            },
            // Envoy's word for what has not come at all.
            None => ResourceView {
                name,
                raw: [].as_slice().into(),
                version: "uninitialized".into(),
                updated: self.start.wall,
            },
        };
        SecretView { resource, loaded }
    }
}

fn view(host: &Arc<Host>) -> HostView {
    let stats = &host.stats;
    let has = |flag| host.has(flag);
    let locality = &host.locality;
    HostView {
        address: host.address(),
        hostname: host.hostname.clone(),
        health: Health {
            failed_active_hc: has(HealthFlag::FAILED_ACTIVE_HC),
            failed_outlier_check: has(HealthFlag::FAILED_OUTLIER_CHECK),
            failed_eds_health: has(HealthFlag::FAILED_EDS_HEALTH),
            degraded_active_hc: has(HealthFlag::DEGRADED_ACTIVE_HC),
            degraded_eds_health: has(HealthFlag::DEGRADED_EDS_HEALTH),
            pending_dynamic_removal: has(HealthFlag::PENDING_DYNAMIC_REMOVAL),
            pending_active_hc: has(HealthFlag::PENDING_ACTIVE_HC),
            excluded_via_immediate_hc_fail: has(HealthFlag::EXCLUDED_VIA_IMMEDIATE_HC_FAIL),
            active_hc_timeout: has(HealthFlag::ACTIVE_HC_TIMEOUT),
            eds_status_draining: has(HealthFlag::EDS_STATUS_DRAINING),
        },
        weight: host.weight(),
        region: locality.region.clone(),
        zone: locality.zone.clone(),
        sub_zone: locality.sub_zone.clone(),
        canary: host.canary(),
        priority: host.priority(),
        success_rate: host.success_rate(),
        local_origin_success_rate: host.local_origin_success_rate(),
        metadata: Some(host.metadata()).filter(|metadata| !metadata.is_empty()),
        stats: HostCounts {
            cx_connect_fail: stats.cx_connect_fail.value(),
            cx_total: stats.cx_total.value(),
            cx_active: stats.cx_active.value(),
            rq_error: stats.rq_error.value(),
            rq_success: stats.rq_success.value(),
            rq_timeout: stats.rq_timeout.value(),
            rq_total: stats.rq_total.value(),
            rq_active: stats.rq_active.value(),
            rq_pending_active: 0,
        },
    }
}

//! Asks one host, at intervals.

use std::sync::{Arc, Weak};

use proxy_config::model::address::Address;
use proxy_config::model::cluster::{HealthCheck, HealthChecker};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::client::{Connection, To};
use super::event::Log;
use super::judge::{Judge, Transition, Verdict, interval, jitter};
use super::{Shared, Unjudged, grpc, http, judged, tcp};
use crate::clock;
use crate::cluster::host::{HealthFlag, Host};
use crate::cluster::{Cluster, Env};
use crate::transport::Stream;

pub(super) fn start(
    cluster: &Arc<Cluster>,
    check: &HealthCheck,
    host: &Arc<Host>,
    shared: &Arc<Shared>,
    env: &Env,
) -> JoinHandle<()> {
    let session = Session {
        cluster: Arc::downgrade(cluster),
        check: check.clone(),
        host: host.clone(),
        shared: shared.clone(),
        env: env.clone(),
        judge: Judge::new(),
        unjudged: Some(Unjudged::new(shared)),
        kept: Kept::default(),
    };
    env.tasks.spawn("health_check", session.run())
}

struct Session {
    cluster: Weak<Cluster>,
    check: HealthCheck,
    host: Arc<Host>,
    shared: Arc<Shared>,
    env: Env,
    judge: Judge,
    unjudged: Option<Unjudged>,
    kept: Kept,
}

/// The connection of the last check, for `reuse_connection`.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) tcp: Option<Stream>,
    pub(super) http: Option<Connection>,
}

impl Session {
    async fn run(mut self) {
        sleep(jitter(self.check.initial_jitter, self.env.random.as_ref())).await;
        loop {
            let Some(cluster) = self.cluster.upgrade() else { return };
            self.shared.stats.attempt.inc();
            let verdict = self.ask(&cluster).await;
            let wait = self.judge(&cluster, verdict).await;
            drop(cluster);
            sleep(wait).await;
        }
    }

    async fn ask(&mut self, cluster: &Cluster) -> Verdict {
        let to = target(&self.host, &self.check);
        let (kept, host, env) = (&mut self.kept, &*self.host, &self.env);
        let by = |http2| To { cluster, host, address: &to, env, http2 };
        let asked = async {
            match &self.check.checker {
                HealthChecker::Tcp { send, receive } => {
                    tcp::ask(cluster, host, &to, env.dial.as_ref(), send, receive, kept).await
                }
                HealthChecker::Http(how) => http::ask(&by(how.http2), how, kept).await,
                HealthChecker::Grpc(how) => grpc::ask(&by(true), how, self.check.timeout, kept).await,
            }
        };
        let verdict = timeout(self.check.timeout, asked).await.unwrap_or(Verdict::Timeout);
        if !self.check.reuse_connection || matches!(verdict, Verdict::Network | Verdict::Timeout) {
            self.kept = Kept::default();
        }
        verdict
    }

    async fn judge(&mut self, cluster: &Cluster, verdict: Verdict) -> std::time::Duration {
        let (transition, happened) = self.judge.result(verdict, &self.host, &self.check, &self.shared.stats);
        let healthy = matches!(verdict, Verdict::Healthy { .. });
        if transition == Transition::Changed {
            self.changed(cluster);
        }
        if healthy && !self.host.has(HealthFlag::FAILED_ACTIVE_HC) {
            self.end_ejection(cluster);
        }
        if self.unjudged.take().is_some() {
            judged(cluster, &self.shared);
        }
        let log = Log { cluster, host: &self.host, check: &self.check, verdict };
        log.write(&happened).await;
        let traffic = cluster.stats.upstream_cx_total.value() > 0;
        interval(&self.check, healthy, transition, traffic, self.env.random.as_ref())
    }

    fn changed(&self, cluster: &Cluster) {
        if self.host.has(HealthFlag::FAILED_ACTIVE_HC) {
            if cluster.model.close_connections_on_host_health_failure {
                self.host.close_connections();
            }
            cluster.pools().keep(|other| !std::ptr::eq(other, &*self.host));
        } else if let Some(extra) = self.host.extra() {
            extra.found_healthy(clock::now());
        }
        cluster.refresh();
    }

    fn end_ejection(&self, cluster: &Cluster) {
        let wanted = cluster.model.outlier_detection.as_ref();
        if !wanted.is_some_and(|config| config.successful_active_health_check_uneject_host) {
            return;
        }
        let detector = cluster.active.as_ref().and_then(|active| active.outlier.as_ref());
        if detector.is_some_and(|detector| detector.health_check_passed(&self.host)) {
            cluster.refresh();
        }
    }
}

/// Where the check goes: the endpoint's own check address, its or the check's own port.
fn target(host: &Host, check: &HealthCheck) -> Address {
    let own = host.extra().map(|extra| &extra.health_check);
    let mut address = own.and_then(|own| own.address.clone()).unwrap_or_else(|| host.address());
    let port = own.and_then(|own| own.port).or(check.alt_port);
    if let (Address::Ip(address), Some(port)) = (&mut address, port) {
        address.set_port(port);
    }
    address
}

//! The start, in Envoy's order: the bootstrap's clusters, then those of CDS, then the listeners of LDS; connections are
//! accepted when nothing is waited for any longer.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use super::door::Gate;
use super::{Listeners, World};
use crate::task::Abort;
use crate::xds;

impl World {
    /// Starts everything. `ready` is called once connections are accepted.
    pub fn start(&self, gate: Gate, ready: impl FnOnce() + Send + 'static) {
        self.clusters.start();
        let (clusters, listeners) = (self.clusters.clone(), self.listeners.clone());
        let dynamic = self.dynamic.clone();
        let task = self.env.cluster.tasks.spawn("start", async move {
            patiently(clusters.warmed(), || clusters.waits_for()).await;
            if let Some(source) = &dynamic.cds {
                clusters.subscribe(source);
                let first = || vec!["the first answer of CDS is waited for".to_owned()];
                patiently(clusters.subscribed.settled(), first).await;
                patiently(clusters.warmed(), || clusters.waits_for()).await;
            }
            if let Some(source) = &dynamic.lds {
                listeners.subscribe(source);
                let first = || vec!["the first answer of LDS is waited for".to_owned()];
                patiently(listeners.subscribed.settled(), first).await;
            }
            patiently(listeners.warmed(), || waits_for(&listeners)).await;
            listeners.open(gate);
            ready();
        });
        *self.start.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Abort::of(task));
    }

    /// What the start still waits for, in words.
    pub fn waits_for(&self) -> Vec<String> {
        let mut lines = self.clusters.waits_for();
        lines.extend(waits_for(&self.listeners));
        lines
    }
}

impl xds::Clusters for super::Live {
    fn cluster(&self, name: &str) -> Option<Arc<crate::cluster::Cluster>> {
        Self::cluster(self, name)
    }
}

fn waits_for(listeners: &Listeners) -> Vec<String> {
    let lines = listeners.waits_for().into_iter().flat_map(|(name, what)| {
        what.into_iter().map(move |what| format!("listener {name} waits for {what}"))
    });
    lines.collect()
}

/// Waits, and says now and then for what.
async fn patiently(work: impl Future<Output = ()>, waits_for: impl Fn() -> Vec<String>) {
    let mut work = pin!(work);
    let mut patience = Duration::from_secs(1);
    while tokio::time::timeout(patience, work.as_mut()).await.is_err() {
        for line in waits_for() {
            log::warn!("{line}: no connection is accepted yet");
        }
        patience = (patience * 2).min(Duration::from_secs(60));
    }
}

//! The start, in Envoy's order: the bootstrap's clusters, then those of CDS, then the listeners of LDS; connections are
//! accepted when nothing is waited for any longer.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use super::{Listeners, World};
use crate::xds;

impl World {
    /// Starts what follows the outside for the bootstrap's clusters. Needs a runtime.
    pub fn start(&self) {
        self.clusters.start();
    }

    /// Takes it all the way: resolves when connections can be accepted, and says now and then what is waited for.
    /// `whose` begins the lines.
    pub async fn warmed(&self, whose: &str) {
        let (clusters, listeners) = (&self.clusters, &self.listeners);
        patiently(clusters.warmed(), whose, || clusters.waits_for()).await;
        if let Some(source) = &self.dynamic.cds {
            clusters.subscribe(source);
            patiently(clusters.subscribed.settled(), whose, || first("CDS")).await;
            patiently(clusters.warmed(), whose, || clusters.waits_for()).await;
        }
        if let Some(source) = &self.dynamic.lds {
            listeners.subscribe(source);
            patiently(listeners.subscribed.settled(), whose, || first("LDS")).await;
        }
        patiently(listeners.warmed(), whose, || waits_for(listeners)).await;
    }

    /// What is still to come, in words.
    pub fn waits_for(&self) -> Vec<String> {
        let mut lines = self.clusters.waits_for();
        lines.extend(waits_for(&self.listeners));
        let unanswered = [
            (self.dynamic.cds.is_some() && !self.clusters.subscribed.is_settled(), "CDS"),
            (self.dynamic.lds.is_some() && !self.listeners.subscribed.is_settled(), "LDS"),
        ];
        lines.extend(
            unanswered.into_iter().filter(|(missing, _)| *missing).flat_map(|(_, service)| first(service)),
        );
        lines
    }
}

fn first(service: &str) -> Vec<String> {
    vec![format!("the first answer of {service} is waited for")]
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
async fn patiently(work: impl Future<Output = ()>, whose: &str, waits_for: impl Fn() -> Vec<String>) {
    let mut work = pin!(work);
    let mut patience = Duration::from_secs(1);
    while tokio::time::timeout(patience, work.as_mut()).await.is_err() {
        for line in waits_for() {
            log::warn!("{whose}{line}: no connection is accepted yet");
        }
        patience = (patience * 2).min(Duration::from_secs(60));
    }
}

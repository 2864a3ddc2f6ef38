//! Locality-weighted balancing: a locality by its effective weight, then a host of it.

use std::sync::{Arc, Mutex, PoisonError};

use super::edf::Edf;
use super::pool::Pool;
use super::{Build, Members};
use crate::cluster::Cluster;
use crate::cluster::host::{Health, HealthFlag, Host};

pub(super) struct Localities {
    order: Mutex<Edf>,
    weights: Box<[f64]>,
    pools: Box<[Pool]>,
}

impl Localities {
    /// Of the hosts with that health; `None` where no locality has both a weight and such a host.
    pub(super) fn build(build: &Build<'_>, members: &Members, health: Health) -> Option<Self> {
        let (mut weights, mut pools) = (Vec::new(), Vec::new());
        for (weight, hosts) in members.groups() {
            let eligible: Arc<[_]> = hosts.iter().filter(|host| host.health() == health).cloned().collect();
            weights.push(effective(weight, hosts, eligible.len(), build.policy.overprovisioning_factor));
            pools.push(Pool::new(build, eligible));
        }
        let order = Edf::new(weights.iter().copied(), build.random.next());
        (!order.is_empty()).then(|| Self {
            order: Mutex::new(order),
            weights: weights.into(),
            pools: pools.into(),
        })
    }

    pub(super) fn pick(&self, cluster: &Cluster) -> Option<Arc<Host>> {
        let index = {
            let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
            order.pick(|index| self.weights.get(index as usize).copied().unwrap_or(0.0))?
        };
        self.pools.get(index as usize)?.pick(cluster)
    }
}

/// A locality keeps its whole weight until fewer hosts are left than overprovisioning makes up for.
fn effective(weight: u32, hosts: &[Arc<Host>], eligible: usize, overprovisioning: u32) -> f64 {
    let counted = hosts.iter().filter(|host| !host.has(HealthFlag::PENDING_ACTIVE_HC)).count();
    if counted == 0 {
        return 0.0;
    }
    let ratio = eligible as f64 / counted as f64;
    f64::from(weight) * (f64::from(overprovisioning) / 100.0 * ratio).min(1.0)
}

//! STRICT_DNS and LOGICAL_DNS.

use std::sync::Weak;

use proxy_config::model;
use proxy_config::model::cluster::Dns;
use tokio::task::JoinHandle;

use crate::cluster::{Cluster, Env};

#[derive(Default)]
pub(in crate::cluster) struct Resolvers {}

pub(super) fn start_strict(
    cluster: Weak<Cluster>,
    _dns: &Dns,
    _model: &model::Cluster,
    env: &Env,
) -> JoinHandle<()> {
    env.tasks.spawn("strict_dns", async move {
        let _cluster = cluster;
    })
}

pub(super) fn start_logical(
    cluster: Weak<Cluster>,
    _dns: &Dns,
    _model: &model::Cluster,
    env: &Env,
) -> JoinHandle<()> {
    env.tasks.spawn("logical_dns", async move {
        let _cluster = cluster;
    })
}

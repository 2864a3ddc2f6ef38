//! EDS from a file.

use std::sync::Weak;

use proxy_config::model::cluster::Eds;
use tokio::task::JoinHandle;

use crate::cluster::{Cluster, Env};

pub(super) fn start(cluster: Weak<Cluster>, _eds: &Eds, env: &Env) -> JoinHandle<()> {
    env.tasks.spawn("eds_file", async move {
        let _cluster = cluster;
    })
}

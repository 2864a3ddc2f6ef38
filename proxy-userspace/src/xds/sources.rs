//! All sources of one configuration.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use proxy_config::model::config_source::{ApiSource, ConfigSource, ConfigSourceKind};
use proxy_config::xds::Kind;

use super::file::{self, FileSources};
use super::{Consumer, Failure, Names, Subscribe, Subscription};
use crate::cluster::Cluster;
use crate::net::Dial;
use crate::task::Tasks;
use crate::telemetry::stats::Stats;
use crate::watch::Directories;

/// What sources need of the proxy around them.
pub struct SourcesEnv {
    pub stats: Arc<Stats>,
    pub tasks: Tasks,
    pub directories: Arc<Directories>,
    /// `config.core.v3.Node`, encoded.
    pub node: Bytes,
    /// `ads_config` of the bootstrap.
    pub ads: Option<Arc<ApiSource>>,
    /// How servers are reached.
    pub dial: Arc<dyn Dial>,
    /// The last connection id.
    pub connections: Arc<AtomicU64>,
}

/// Where the clusters of servers are found.
pub trait Clusters: Send + Sync {
    fn cluster(&self, name: &str) -> Option<Arc<Cluster>>;
}

pub struct Sources {
    env: SourcesEnv,
    files: FileSources,
    clusters: OnceLock<Weak<dyn Clusters>>,
}

impl Sources {
    pub fn new(env: SourcesEnv) -> Arc<Self> {
        Self::reading(env, Arc::new(file::open))
    }

    /// `open`: what reads a file.
    pub(crate) fn reading(env: SourcesEnv, open: file::Open) -> Arc<Self> {
        let files = FileSources::new(&env.directories, &env.tasks, open);
        Arc::new(Self { env, files, clusters: OnceLock::new() })
    }

    /// Clusters are made with their sources: which there are is said later, once. Servers wait for it.
    pub fn set_clusters(&self, clusters: &Arc<dyn Clusters>) {
        // Whoever comes second changes nothing.
        let _ = self.clusters.set(Arc::downgrade(clusters));
    }
}

impl Subscribe for Sources {
    fn subscribe(
        &self,
        source: &ConfigSource,
        kind: Kind,
        names: Names,
        consumer: &Arc<dyn Consumer>,
    ) -> Subscription {
        match &source.kind {
            ConfigSourceKind::File { path, watched_directory } => {
                let file = (path.as_path(), watched_directory.as_deref());
                self.files.subscribe(file, source.initial_fetch_timeout, (kind, names), consumer)
            }
            ConfigSourceKind::Ads | ConfigSourceKind::Same | ConfigSourceKind::Api(_) => {
                consumer.failed(&Failure::Unreadable("no control plane is followed yet".to_owned()));
                Subscription::new(())
            }
        }
    }
}

//! All sources of one configuration.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use proxy_config::model::config_source::{ApiSource, ConfigSource, ConfigSourceKind};
use proxy_config::xds::Kind;
use tokio::sync::watch;

use super::file::{self, FileSources};
use super::grpc::{ChannelEnv, LONGEST_MESSAGE};
use super::session::{Session, SessionSpec};
use super::status::{ControlPlane, SessionView};
use super::{Consumer, Failure, Names, Subscribe, Subscription};
use crate::cluster::{Cluster, ThreadRandom};
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
    /// A session ends with its last subscription.
    sessions: Mutex<HashMap<Key, Weak<Session>>>,
    clusters: watch::Sender<Option<Weak<dyn Clusters>>>,
    longest_message: usize,
}

/// Subscriptions of the same share a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    source: Arc<ApiSource>,
    /// `None`: all types, ADS.
    kind: Option<Kind>,
}

impl Sources {
    pub fn new(env: SourcesEnv) -> Arc<Self> {
        Self::reading(env, Arc::new(file::open), LONGEST_MESSAGE)
    }

    /// `open`: what reads a file.
    pub(crate) fn reading(env: SourcesEnv, open: file::Open, longest_message: usize) -> Arc<Self> {
        let files = FileSources::new(&env.directories, &env.tasks, open);
        let (sessions, clusters) = (Mutex::default(), watch::Sender::new(None));
        Arc::new(Self { env, files, sessions, clusters, longest_message })
    }

    /// Clusters are made with their sources: which there are is said later. Servers wait for it.
    pub fn set_clusters(&self, clusters: &Arc<dyn Clusters>) {
        self.clusters.send_replace(Some(Arc::downgrade(clusters)));
    }

    /// How it stands with the servers, by name.
    pub fn sessions(&self) -> Vec<SessionView> {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let live: Vec<_> = sessions.values().filter_map(Weak::upgrade).collect();
        drop(sessions);
        let mut views: Vec<_> = live.iter().map(|session| session.status().view()).collect();
        views.sort_by(|one, other| one.name.cmp(&other.name));
        views
    }

    fn session(&self, key: Key) -> Arc<Session> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = sessions.get(&key).and_then(Weak::upgrade) {
            return session;
        }
        let spec = SessionSpec {
            source: key.source.clone(),
            kind: key.kind,
            node: self.env.node.clone(),
            stats: self.env.stats.block::<ControlPlane>(prefix(key.kind)),
            random: Arc::new(ThreadRandom),
        };
        let env = ChannelEnv {
            tasks: self.env.tasks.clone(),
            dial: self.env.dial.clone(),
            connections: self.env.connections.clone(),
            clusters: self.clusters.subscribe(),
            longest_message: self.longest_message,
        };
        let session = Session::start(spec, env);
        sessions.retain(|_, session| session.strong_count() > 0);
        sessions.insert(key, Arc::downgrade(&session));
        session
    }
}

/// As Envoy: ADS has its own; a type with a stream of its own, below its subscription.
fn prefix(kind: Option<Kind>) -> &'static str {
    match kind {
        None => "control_plane",
        Some(Kind::Cluster) => "cluster_manager.cds.control_plane",
        Some(Kind::Listener) => "listener_manager.lds.control_plane",
        // Envoy has a stream for each resource; here they share one.
        Some(Kind::Endpoints) => "eds.control_plane",
        Some(Kind::Route) => "rds.control_plane",
        Some(Kind::Secret) => "sds.control_plane",
        Some(Kind::Extension) => "extension_config_discovery.control_plane",
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
        let limit = source.initial_fetch_timeout;
        let key = match &source.kind {
            ConfigSourceKind::File { path, watched_directory } => {
                let file = (path.as_path(), watched_directory.as_deref());
                return self.files.subscribe(file, limit, (kind, names), consumer);
            }
            ConfigSourceKind::Api(api) => Key { source: api.clone(), kind: Some(kind) },
            ConfigSourceKind::Ads => match &self.env.ads {
                Some(ads) => Key { source: ads.clone(), kind: None },
                None => return refuse(consumer, "ads: the bootstrap has no ads_config"),
            },
            // Whoever reads a resource says for itself what that is.
            ConfigSourceKind::Same => {
                return refuse(consumer, "self: of a resource that has come from nowhere");
            }
        };
        self.session(key).subscribe(kind, names, limit, consumer)
    }
}

fn refuse(consumer: &Arc<dyn Consumer>, why: &str) -> Subscription {
    consumer.failed(&Failure::Unreadable(why.to_owned()));
    Subscription::new(())
}

//! A configuration that is made up, for tests of what is shown of one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http_body_util::BodyExt as _;
use hyper::body::Bytes;
use proxy_config::{model, xds};

use super::body::Answer;
use super::view::{ClusterView, DrainListeners, DynamicView, Kind, ListenerView, ResourceView, State, View};
use crate::world::Snapshot;
use crate::world::history::History;

/// Shows what is put into it.
#[derive(Default)]
pub(super) struct Fake {
    pub(super) clusters: Vec<ClusterView>,
    pub(super) resources: Vec<(Kind, ResourceView)>,
    pub(super) dynamic: Vec<(xds::Kind, DynamicView)>,
    pub(super) version: &'static str,
    pub(super) is_dynamic: bool,
    pub(super) snapshot: Option<Arc<Snapshot>>,
    pub(super) history: Option<History>,
}

impl View for Fake {
    fn state(&self) -> State {
        State::Live
    }
    fn uptime(&self) -> Duration {
        Duration::ZERO
    }
    fn listeners(&self) -> Vec<ListenerView> {
        Vec::new()
    }
    fn cluster_names(&self) -> Vec<Arc<str>> {
        self.clusters.iter().map(|cluster| cluster.model.name.clone()).collect()
    }
    fn cluster(&self, name: &str) -> Option<ClusterView> {
        self.clusters.iter().find(|cluster| *cluster.model.name == *name).cloned()
    }
    fn bootstrap(&self) -> (Bytes, SystemTime) {
        (Bytes::new(), SystemTime::UNIX_EPOCH)
    }
    fn resources(&self, kind: Kind) -> Vec<ResourceView> {
        self.resources.iter().filter(|(of, _)| *of == kind).map(|(_, view)| view.clone()).collect()
    }
    fn dynamic(&self, kind: xds::Kind) -> Vec<DynamicView> {
        self.dynamic.iter().filter(|(of, _)| *of == kind).map(|(_, view)| view.clone()).collect()
    }
    fn version(&self, _: xds::Kind) -> Arc<str> {
        self.version.into()
    }
    fn is_dynamic(&self) -> bool {
        self.is_dynamic
    }
    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshot.clone()
    }
    fn history(&self) -> Option<History> {
        self.history.clone()
    }
    fn node(&self) -> model::bootstrap::Node {
        model::bootstrap::Node::default()
    }
    fn stats_config(&self) -> model::bootstrap::StatsConfig {
        model::bootstrap::StatsConfig::default()
    }
    fn runtime(&self) -> BTreeMap<String, model::metadata::Struct> {
        BTreeMap::new()
    }
    fn command_line(&self) -> serde_json::Value {
        serde_json::json!({})
    }
    fn drain_listeners(&self, _: DrainListeners) {}
    fn quit(&self) {}
    fn set_healthy(&self, _: bool) {}
    fn reopen_logs(&self) {}
}

/// Status and body of an answer.
pub(super) async fn read(answer: Answer) -> (u16, String) {
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

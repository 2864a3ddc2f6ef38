//! Who this proxy's workload is, by its node.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proxy_config::model::bootstrap::Node;
use proxy_config::model::metadata::{Struct, Value};

use super::{Peer, wire};

#[derive(Clone, Debug, Default)]
pub struct Local {
    pub id: Arc<str>,
    pub cluster: Arc<str>,
    pub metadata: Struct,
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub sub_zone: Arc<str>,
    /// `ISTIO_VERSION`.
    pub version: Arc<str>,
    /// As labels of metrics know it: by its plain labels only, as in Istio's proxy.
    pub labels: LocalLabels,
}

#[derive(Clone, Debug, Default)]
pub struct LocalLabels {
    pub workload: Arc<str>,
    pub namespace: Arc<str>,
    pub canonical_name: Arc<str>,
    pub canonical_revision: Arc<str>,
    pub app: Arc<str>,
    pub version: Arc<str>,
    pub cluster: Arc<str>,
}

impl Local {
    pub fn new(node: &Node) -> Self {
        let text = |key: &str| Arc::from(text(&node.metadata, key));
        let labels = match node.metadata.get("LABELS") {
            Some(Value::Struct(labels)) => labels.clone(),
            Some(_) | None => Struct::new(),
        };
        let label = |key: &str| Arc::from(self::text(&labels, key));
        Self {
            id: node.id.as_str().into(),
            cluster: node.cluster.as_str().into(),
            metadata: node.metadata.clone(),
            region: node.region.as_str().into(),
            zone: node.zone.as_str().into(),
            sub_zone: node.sub_zone.as_str().into(),
            version: text("ISTIO_VERSION"),
            labels: LocalLabels {
                workload: text("WORKLOAD_NAME"),
                namespace: text("NAMESPACE"),
                canonical_name: label("service.istio.io/canonical-name"),
                canonical_revision: label("service.istio.io/canonical-revision"),
                app: label("app"),
                version: label("version"),
                cluster: text("CLUSTER_ID"),
            },
        }
    }

    /// With those labels beside the usual ones.
    pub fn peer(&self, additional: &[Arc<str>]) -> Peer {
        let mut peer = Peer::of(&self.metadata, additional);
        if peer.region.is_empty() {
            peer.region = (&*self.region).into();
        }
        if peer.zone.is_empty() {
            peer.zone = (&*self.zone).into();
        }
        peer
    }

    /// The value of `x-envoy-peer-metadata`.
    pub fn header(&self, additional: &[Arc<str>]) -> String {
        STANDARD.encode(wire::encode(&self.peer(additional).told()))
    }
}

/// Empty where there is no such text.
fn text<'a>(of: &'a Struct, key: &str) -> &'a str {
    match of.get(key) {
        Some(Value::String(text)) => text,
        Some(_) | None => "",
    }
}

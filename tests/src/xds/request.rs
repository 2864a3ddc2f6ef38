//! What a proxy asked, as it came.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::Result;
use bytes::Bytes;
use prost::Message as _;
use serde_json::{Value, json};

use super::resource::{self, Type};
use super::wire::{DeltaDiscoveryRequest, DiscoveryRequest, ErrorDetail};

/// A request of either protocol.
#[derive(Clone, Debug)]
pub struct Request {
    /// The node's id: of this stream's first request.
    pub node: String,
    /// Which of the node's streams, from 1.
    pub stream: usize,
    /// The method that was called: `StreamAggregatedResources`, `DeltaClusters`, …
    pub method: String,
    pub type_url: String,
    /// `resource_names`, or those that a delta subscribes to.
    pub names: Vec<String>,
    pub unsubscribe: Vec<String>,
    pub initial_versions: BTreeMap<String, String>,
    pub version: String,
    pub nonce: String,
    /// The text of `error_detail`: a NACK.
    pub error: Option<String>,
    /// The whole node, where it was sent.
    pub node_message: Option<Value>,
    pub at: Instant,
}

impl Request {
    pub fn is(&self, of: Type) -> bool {
        Type::of(&self.type_url) == Some(of)
    }

    /// It answers a response, and takes it.
    pub fn acks(&self, nonce: &str) -> bool {
        self.error.is_none() && self.nonce == nonce
    }

    /// All of it that two proxies must have in common. The text of an error is each one's own.
    pub fn shape(&self) -> Value {
        let sorted = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
        let mut shape = json!({
            "type": self.type_url.rsplit('.').next(),
            "stream": self.stream,
            "names": sorted(&self.names),
            "nonce": self.nonce,
            "node": self.node_message.is_some(),
        });
        let mut say = |key: &str, value: Value| shape[key] = value;
        if !self.version.is_empty() {
            say("version", json!(self.version));
        }
        if !self.unsubscribe.is_empty() {
            say("unsubscribe", json!(sorted(&self.unsubscribe)));
        }
        if !self.initial_versions.is_empty() {
            say("initial", json!(self.initial_versions));
        }
        if self.error.is_some() {
            say("refused", json!(true));
        }
        shape
    }

    pub(super) fn decode(delta: bool, method: &str, bytes: Bytes) -> Result<Self> {
        if delta { Self::delta(method, bytes) } else { Self::whole(method, bytes) }
    }

    fn whole(method: &str, bytes: Bytes) -> Result<Self> {
        let came = DiscoveryRequest::decode(bytes)?;
        Ok(Self {
            names: came.resource_names,
            version: came.version_info,
            ..Self::bare(method, came.type_url, came.response_nonce, came.node, came.error_detail)
        })
    }

    fn delta(method: &str, bytes: Bytes) -> Result<Self> {
        let came = DeltaDiscoveryRequest::decode(bytes)?;
        Ok(Self {
            names: came.resource_names_subscribe,
            unsubscribe: came.resource_names_unsubscribe,
            initial_versions: came.initial_resource_versions.into_iter().collect(),
            ..Self::bare(method, came.type_url, came.response_nonce, came.node, came.error_detail)
        })
    }

    fn bare(
        method: &str,
        type_url: String,
        nonce: String,
        node: Option<Bytes>,
        error: Option<ErrorDetail>,
    ) -> Self {
        Self {
            node: String::new(),
            stream: 0,
            method: method.to_owned(),
            type_url,
            names: Vec::new(),
            unsubscribe: Vec::new(),
            initial_versions: BTreeMap::new(),
            version: String::new(),
            nonce,
            error: error.map(|error| error.message),
            node_message: node.map(|node| resource::json("envoy.config.core.v3.Node", &node)),
            at: Instant::now(),
        }
    }
}

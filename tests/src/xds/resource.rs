//! Resources from their text, by the descriptors of Envoy's messages.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

use super::wire::{Any, Wrapped, span_of};

/// What is discovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    Cluster,
    Endpoints,
    Listener,
    Route,
    Secret,
    Extension,
}

impl Type {
    /// In the order in which a change of several is told.
    pub const ALL: [Self; 6] =
        [Self::Cluster, Self::Endpoints, Self::Listener, Self::Route, Self::Secret, Self::Extension];

    pub fn message(self) -> &'static str {
        match self {
            Self::Cluster => "envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "envoy.config.listener.v3.Listener",
            Self::Route => "envoy.config.route.v3.RouteConfiguration",
            Self::Secret => "envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::Extension => "envoy.config.core.v3.TypedExtensionConfig",
        }
    }

    pub fn url(self) -> String {
        format!("type.googleapis.com/{}", self.message())
    }

    pub fn of(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|of| url.strip_prefix("type.googleapis.com/") == Some(of.message()))
    }
}

/// A resource, encoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    pub of: Type,
    pub name: String,
    pub(super) ttl: Option<Duration>,
    any: Any,
}

impl Resource {
    /// From YAML or JSON.
    pub fn new(of: Type, text: &str) -> Result<Self> {
        let value: Value = serde_saphyr::from_str(text).with_context(|| format!("no YAML: {text:.2000}"))?;
        Self::from_value(of, value)
    }

    /// As [`Resource::new`], for many.
    pub fn from_value(of: Type, value: Value) -> Result<Self> {
        let key = if of == Type::Endpoints { "cluster_name" } else { "name" };
        let name = value[key].as_str().with_context(|| format!("no {key} in {value:.200}"))?.to_owned();
        let message = message(of.message(), value).with_context(|| format!("{} {name}", of.message()))?;
        let any = Any { type_url: of.url(), value: message.encode_to_vec().into() };
        Ok(Self { of, name, ttl: None, any })
    }

    /// Bytes that claim to be a resource.
    pub fn garbage(of: Type, name: &str, value: impl Into<Bytes>) -> Self {
        Self { of, name: name.to_owned(), ttl: None, any: Any { type_url: of.url(), value: value.into() } }
    }

    /// It claims to be of another type.
    pub fn typed(mut self, url: &str) -> Self {
        self.any.type_url = url.to_owned();
        self
    }

    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Its message, encoded.
    pub fn value(&self) -> &[u8] {
        &self.any.value
    }

    /// With its type, as a file has it.
    pub fn json(&self) -> Value {
        let mut value = json(self.of.message(), &self.any.value);
        value["@type"] = self.any.type_url.clone().into();
        value
    }

    pub(super) fn any(&self) -> Any {
        self.any.clone()
    }

    pub(super) fn wrapped(&self, version: &str) -> Wrapped {
        Wrapped {
            version: version.to_owned(),
            resource: Some(self.any()),
            name: self.name.clone(),
            ttl: self.ttl.map(span_of),
        }
    }
}

/// A DiscoveryResponse as a file has it.
pub fn file(version: &str, resources: &[Resource]) -> String {
    let all: Vec<Value> = resources.iter().map(Resource::json).collect();
    serde_json::json!({ "version_info": version, "resources": all }).to_string()
}

/// A message of a type, from its JSON.
pub fn message(of: &str, value: Value) -> Result<DynamicMessage> {
    let descriptor = pool().get_message_by_name(of).with_context(|| format!("no {of}"))?;
    DynamicMessage::deserialize(descriptor, value).with_context(|| format!("no {of}"))
}

/// A message as JSON, by the names of the fields; what cannot be read is nothing.
pub fn json(of: &str, bytes: &Bytes) -> Value {
    let read = || {
        let descriptor = pool().get_message_by_name(of)?;
        let message = DynamicMessage::decode(descriptor, bytes.clone()).ok()?;
        let options = SerializeOptions::new().use_proto_field_name(true);
        message.serialize_with_options(serde_json::value::Serializer, &options).ok()
    };
    read().unwrap_or_default()
}

/// Envoy's messages, and Istio's.
fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        let mut pool = DescriptorPool::new();
        for set in [
            include_bytes!("../../../proxy-config/proto/envoy.fds").as_slice(),
            include_bytes!("../../../proxy-config/proto/istio.fds"),
        ] {
            pool.decode_file_descriptor_set(set).expect("the committed descriptors are whole");
        }
        pool
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_of_text() {
        let text = "{ name: a, connect_timeout: 0.25s, type: STATIC }";
        let resource = Resource::new(Type::Cluster, text).expect("valid");
        assert_eq!(resource.name, "a");
        let back = json(Type::Cluster.message(), &resource.any.value);
        assert_eq!(back, serde_json::json!({ "name": "a", "connect_timeout": "0.250s", "type": "STATIC" }));
        assert!(Resource::new(Type::Cluster, "{ name: a, no_field: 1 }").is_err());
    }
}

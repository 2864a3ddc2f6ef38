//! What goes between a client of xDS and its server, in protobuf: the messages of the state of the world, and of
//! what has changed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::{ControlPlane, Node};
use envoy_types::pb::envoy::service::discovery::v3 as pb;
use envoy_types::pb::google::protobuf::{Any, Duration as Seconds};
use envoy_types::pb::google::rpc::Status;
use prost::Message as _;

use super::apart::{self, Packed};
use super::resource::{WRAPPER, lifetime};
use super::{Kind, RawResource};
use crate::decode::any;

/// `DiscoveryRequest`.
#[derive(Clone, Debug, PartialEq)]
pub struct SotwRequest {
    pub kind: Kind,
    /// Encoded.
    pub node: Option<Bytes>,
    /// The last that was accepted.
    pub version: Arc<str>,
    pub names: Vec<Arc<str>>,
    /// Of the response that this answers.
    pub nonce: Arc<str>,
    /// Why that is refused.
    pub error: Option<String>,
}

/// `DeltaDiscoveryRequest`.
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaRequest {
    pub kind: Kind,
    pub node: Option<Bytes>,
    pub subscribe: Vec<Arc<str>>,
    pub unsubscribe: Vec<Arc<str>>,
    /// What is known already: names and versions. Only in the first request of a stream.
    pub initial_versions: Vec<(Arc<str>, Arc<str>)>,
    pub nonce: Arc<str>,
    pub error: Option<String>,
}

/// `DiscoveryResponse` or `DeltaDiscoveryResponse`.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// Of what it is; another type than the client knows has none.
    pub kind: Option<Kind>,
    pub type_url: String,
    /// `version_info`, `system_version_info`.
    pub version: Arc<str>,
    pub nonce: Arc<str>,
    /// `control_plane.identifier`.
    pub identifier: Option<String>,
    /// All of them, or what is wrong with each that cannot be opened.
    pub items: Result<Vec<Item>, String>,
    /// Delta only.
    pub removed: Vec<Arc<str>>,
    /// What the server says of resources that it cannot give, for people.
    pub errors: Vec<String>,
}

/// One of a response's resources.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    Resource(RawResource),
    /// A resource that is as it was: its TTL begins again.
    Heartbeat {
        name: Arc<str>,
        ttl: Option<Duration>,
    },
}

impl SotwRequest {
    pub fn encode(&self) -> Bytes {
        let message = pb::DiscoveryRequest {
            version_info: self.version.to_string(),
            node: self.node.as_ref().map(node),
            resource_names: texts(&self.names),
            type_url: self.kind.type_url(),
            response_nonce: self.nonce.to_string(),
            error_detail: self.error.as_deref().map(status),
            ..pb::DiscoveryRequest::default()
        };
        message.encode_to_vec().into()
    }

    /// For servers: those of tests.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let message = pb::DiscoveryRequest::decode(bytes).map_err(|error| error.to_string())?;
        Ok(Self {
            kind: known(&message.type_url)?,
            node: message.node.map(|node| node.encode_to_vec().into()),
            version: message.version_info.into(),
            names: shared(message.resource_names),
            nonce: message.response_nonce.into(),
            error: message.error_detail.map(|status| status.message),
        })
    }
}

impl DeltaRequest {
    pub fn encode(&self) -> Bytes {
        let versions = self.initial_versions.iter();
        let message = pb::DeltaDiscoveryRequest {
            node: self.node.as_ref().map(node),
            type_url: self.kind.type_url(),
            resource_names_subscribe: texts(&self.subscribe),
            resource_names_unsubscribe: texts(&self.unsubscribe),
            initial_resource_versions: versions
                .map(|(name, version)| (name.to_string(), version.to_string()))
                .collect(),
            response_nonce: self.nonce.to_string(),
            error_detail: self.error.as_deref().map(status),
            ..pb::DeltaDiscoveryRequest::default()
        };
        message.encode_to_vec().into()
    }

    /// For servers: those of tests.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let message = pb::DeltaDiscoveryRequest::decode(bytes).map_err(|error| error.to_string())?;
        let versions = message.initial_resource_versions.into_iter();
        let mut versions: Vec<_> =
            versions.map(|(name, version)| (Arc::from(name), Arc::from(version))).collect();
        versions.sort();
        Ok(Self {
            kind: known(&message.type_url)?,
            node: message.node.map(|node| node.encode_to_vec().into()),
            subscribe: shared(message.resource_names_subscribe),
            unsubscribe: shared(message.resource_names_unsubscribe),
            initial_versions: versions,
            nonce: message.response_nonce.into(),
            error: message.error_detail.map(|status| status.message),
        })
    }
}

impl Response {
    /// A `DiscoveryResponse`.
    pub fn decode(bytes: &Bytes) -> Result<Self, String> {
        let (message, resources) = apart::response::<pb::DiscoveryResponse>(bytes)?;
        let (kind, version) = (Kind::of(&message.type_url), Arc::<str>::from(message.version_info));
        let open = |kind| all(&resources, |any| sotw_item(kind, any, bytes, &version));
        Ok(Self {
            kind,
            items: kind.map_or(Ok(Vec::new()), open),
            type_url: message.type_url,
            version,
            nonce: message.nonce.into(),
            identifier: message.control_plane.map(|plane| plane.identifier),
            removed: Vec::new(),
            errors: message.resource_errors.into_iter().map(resource_error).collect(),
        })
    }

    /// A `DiscoveryResponse`. For servers: those of tests.
    pub fn encode(&self) -> Bytes {
        let resources = self.items.iter().flatten().map(|item| match item {
            Item::Resource(RawResource { ttl: None, type_url, value, .. }) => {
                Any { type_url: type_url.to_string(), value: value.to_vec() }
            }
            Item::Resource(_) | Item::Heartbeat { .. } => {
                Any { type_url: format!("type.googleapis.com/{WRAPPER}"), value: wrap(item).encode_to_vec() }
            }
        });
        let message = pb::DiscoveryResponse {
            version_info: self.version.to_string(),
            resources: resources.collect(),
            type_url: self.type_url.clone(),
            nonce: self.nonce.to_string(),
            control_plane: self.identifier.clone().map(|identifier| ControlPlane { identifier }),
            ..pb::DiscoveryResponse::default()
        };
        message.encode_to_vec().into()
    }

    /// A `DeltaDiscoveryResponse`. For servers: those of tests.
    pub fn encode_delta(&self) -> Bytes {
        let message = pb::DeltaDiscoveryResponse {
            system_version_info: self.version.to_string(),
            resources: self.items.iter().flatten().map(wrap).collect(),
            type_url: self.type_url.clone(),
            removed_resources: texts(&self.removed),
            nonce: self.nonce.to_string(),
            control_plane: self.identifier.clone().map(|identifier| ControlPlane { identifier }),
            ..pb::DeltaDiscoveryResponse::default()
        };
        message.encode_to_vec().into()
    }

    /// A `DeltaDiscoveryResponse`.
    pub fn decode_delta(bytes: &Bytes) -> Result<Self, String> {
        let (message, resources) = apart::response::<pb::DeltaDiscoveryResponse>(bytes)?;
        let kind = Kind::of(&message.type_url);
        let open = |kind| all(&resources, |resource| delta_item(kind, resource, bytes));
        let named = message.removed_resource_names.into_iter().map(|name| name.name);
        Ok(Self {
            kind,
            items: kind.map_or(Ok(Vec::new()), open),
            type_url: message.type_url,
            version: message.system_version_info.into(),
            nonce: message.nonce.into(),
            identifier: message.control_plane.map(|plane| plane.identifier),
            removed: message.removed_resources.into_iter().chain(named).map(Arc::from).collect(),
            errors: message.resource_errors.into_iter().map(resource_error).collect(),
        })
    }
}

/// Every item, or every reason with its place.
fn all(each: &[&[u8]], open: impl Fn(&[u8]) -> Result<Item, String>) -> Result<Vec<Item>, String> {
    let (mut items, mut wrong) = (Vec::with_capacity(each.len()), Vec::new());
    for (index, one) in each.iter().enumerate() {
        match open(one) {
            Ok(item) => items.push(item),
            Err(why) => wrong.push(format!("resources[{index}]: {why}")),
        }
    }
    if wrong.is_empty() { Ok(items) } else { Err(wrong.join("; ")) }
}

fn sotw_item(kind: Kind, any: &[u8], whole: &Bytes, version: &Arc<str>) -> Result<Item, String> {
    let Packed { type_url, value } = apart::any(&[any], whole)?;
    if any::type_name(type_url)? == WRAPPER {
        let (wrapper, inner) = apart::resource(&value, &value)?;
        if inner.is_none() {
            return heartbeat(&wrapper);
        }
    }
    RawResource::open(kind, type_url, value, version).map(Item::Resource)
}

fn delta_item(kind: Kind, bytes: &[u8], whole: &Bytes) -> Result<Item, String> {
    let (wrapper, inner) = apart::resource(bytes, whole)?;
    let Some(Packed { type_url, value }) = inner else { return heartbeat(&wrapper) };
    let version = wrapper.version.as_str().into();
    let mut opened = RawResource::open(kind, type_url, value, &version)?;
    let name = name_of(&wrapper);
    if !name.is_empty() && *opened.name != *name {
        opened.name = name.into();
    }
    if let Some(ttl) = wrapper.ttl {
        opened.ttl = Some(lifetime(ttl)?);
    }
    Ok(Item::Resource(opened))
}

fn wrap(item: &Item) -> pb::Resource {
    let (name, ttl) = match item {
        Item::Resource(raw) => (&raw.name, raw.ttl),
        Item::Heartbeat { name, ttl } => (name, *ttl),
    };
    let (version, resource) = match item {
        Item::Resource(raw) => {
            let any = Any { type_url: raw.type_url.to_string(), value: raw.value.to_vec() };
            (raw.version.to_string(), Some(any))
        }
        Item::Heartbeat { .. } => (String::new(), None),
    };
    let ttl = ttl.map(|ttl| Seconds {
        seconds: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(ttl.subsec_nanos()).unwrap_or_default(),
    });
    pb::Resource { name: name.to_string(), version, resource, ttl, ..pb::Resource::default() }
}

fn heartbeat(wrapper: &pb::Resource) -> Result<Item, String> {
    let name = name_of(wrapper);
    if name.is_empty() {
        return Err("a resource without a name and a body".to_owned());
    }
    Ok(Item::Heartbeat { name: name.into(), ttl: wrapper.ttl.map(lifetime).transpose()? })
}

fn name_of(wrapper: &pb::Resource) -> &str {
    match &wrapper.resource_name {
        Some(named) if wrapper.name.is_empty() => &named.name,
        Some(_) | None => &wrapper.name,
    }
}

fn resource_error(error: pb::ResourceError) -> String {
    let name = error.resource_name.map(|name| name.name).unwrap_or_default();
    let detail = error.error_detail.map(|status| status.message).unwrap_or_default();
    format!("{name}: {detail}")
}

fn known(type_url: &str) -> Result<Kind, String> {
    Kind::of(type_url).ok_or_else(|| format!("unknown type {type_url:?}"))
}

/// `google.rpc.Code.INVALID_ARGUMENT`, as Envoy says it.
fn status(why: &str) -> Status {
    Status { code: 3, message: why.to_owned(), details: Vec::new() }
}

fn texts(names: &[Arc<str>]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn shared(names: Vec<String>) -> Vec<Arc<str>> {
    names.into_iter().map(Arc::from).collect()
}

/// What a node that cannot be read says is nothing: it was encoded here.
fn node(bytes: &Bytes) -> Node {
    Node::decode(bytes.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;

    use super::*;

    fn cluster(name: &str) -> Any {
        let message = Cluster { name: name.to_owned(), ..Cluster::default() };
        Any { type_url: Kind::Cluster.type_url(), value: message.encode_to_vec() }
    }

    fn wrapped(name: &str, resource: Option<Any>, ttl: i64) -> pb::Resource {
        let ttl = Some(Seconds { seconds: ttl, nanos: 0 });
        pb::Resource {
            name: name.to_owned(),
            version: "r1".to_owned(),
            resource,
            ttl,
            ..pb::Resource::default()
        }
    }

    fn in_any(resource: &pb::Resource) -> Any {
        Any { type_url: format!("type.googleapis.com/{WRAPPER}"), value: resource.encode_to_vec() }
    }

    fn response(resources: Vec<Any>) -> Response {
        let message = pb::DiscoveryResponse {
            version_info: "7".to_owned(),
            type_url: Kind::Cluster.type_url(),
            nonce: "n".to_owned(),
            resources,
            ..pb::DiscoveryResponse::default()
        };
        Response::decode(&message.encode_to_vec().into()).unwrap()
    }

    fn described(response: &Response) -> Vec<String> {
        let describe = |item: &Item| match item {
            Item::Resource(raw) => format!("{} {} {:?}", raw.name, raw.version, raw.ttl),
            Item::Heartbeat { name, ttl } => format!("heartbeat {name} {ttl:?}"),
        };
        response.items.as_ref().unwrap().iter().map(describe).collect()
    }

    #[test]
    fn requests_are_what_they_were() {
        let request = SotwRequest {
            kind: Kind::Endpoints,
            node: Some(Bytes::from_static(b"\x0a\x01n")),
            version: "1".into(),
            names: vec!["b".into(), "a".into()],
            nonce: "x".into(),
            error: Some("no".to_owned()),
        };
        assert_eq!(SotwRequest::decode(&request.encode()).unwrap(), request);
        let request = DeltaRequest {
            kind: Kind::Secret,
            node: None,
            subscribe: vec!["a".into()],
            unsubscribe: vec!["b".into()],
            initial_versions: vec![("a".into(), "1".into()), ("c".into(), "2".into())],
            nonce: "y".into(),
            error: None,
        };
        assert_eq!(DeltaRequest::decode(&request.encode()).unwrap(), request);
    }

    #[test]
    fn resources_of_a_state_of_the_world_are_opened() {
        let inner = wrapped("w", Some(cluster("inside")), 3);
        let beat = wrapped("h", None, 5);
        let read = response(vec![cluster("plain"), in_any(&inner), in_any(&beat)]);
        assert_eq!((&*read.version, &*read.nonce, read.kind), ("7", "n", Some(Kind::Cluster)));
        assert_eq!(described(&read), ["plain 7 None", "w 7 Some(3s)", "heartbeat h Some(5s)"]);
        assert_eq!(Response::decode(&read.encode()).unwrap(), read);
    }

    #[test]
    fn resources_of_a_delta_have_versions_of_their_own() {
        let message = pb::DeltaDiscoveryResponse {
            system_version_info: "s".to_owned(),
            type_url: Kind::Cluster.type_url(),
            nonce: "n".to_owned(),
            resources: vec![wrapped("a", Some(cluster("a")), 3), wrapped("h", None, 5)],
            removed_resources: vec!["gone".to_owned()],
            ..pb::DeltaDiscoveryResponse::default()
        };
        let read = Response::decode_delta(&message.encode_to_vec().into()).unwrap();
        assert_eq!(&*read.version, "s");
        assert_eq!(described(&read), ["a r1 Some(3s)", "heartbeat h Some(5s)"]);
        assert_eq!(read.removed, ["gone".into()]);
        assert_eq!(Response::decode_delta(&read.encode_delta()).unwrap(), read);
    }

    #[test]
    fn what_cannot_be_opened_is_named_by_its_place() {
        let other = Any { type_url: Kind::Listener.type_url(), value: Vec::new() };
        let nameless = in_any(&wrapped("", None, 1));
        let read = response(vec![cluster("a"), other, nameless]);
        let expected = "resources[1]: envoy.config.listener.v3.Listener where envoy.config.cluster.v3.Cluster is \
                        expected; resources[2]: a resource without a name and a body";
        assert_eq!(read.items.unwrap_err(), expected);
        let garbage = Bytes::from_static(b"\xff\xff");
        assert!(Response::decode(&garbage).is_err() && Response::decode_delta(&garbage).is_err());
        let unknown = pb::DiscoveryResponse { type_url: "x/y".to_owned(), ..Default::default() };
        assert_eq!(Response::decode(&unknown.encode_to_vec().into()).unwrap().kind, None);
    }
}

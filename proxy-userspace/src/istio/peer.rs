//! A workload, as its peers know it.

use std::sync::Arc;

use proxy_config::model::metadata::{Struct, Value};

use super::Slot;

/// Who it is. Empty: not told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    pub instance: Box<str>,
    pub cluster: Box<str>,
    pub namespace: Box<str>,
    pub workload: Box<str>,
    pub canonical_name: Box<str>,
    pub canonical_revision: Box<str>,
    pub app: Box<str>,
    pub version: Box<str>,
    pub owner: Option<Owner>,
    pub identity: Box<str>,
    pub region: Box<str>,
    pub zone: Box<str>,
    /// Beside the usual ones.
    pub labels: Vec<(Box<str>, Box<str>)>,
}

/// What kind of thing runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Pod,
    Deployment,
    Job,
    CronJob,
}

/// Whom a stream or a connection is between.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    pub downstream: Option<Arc<Slot>>,
    pub upstream: Option<Arc<Slot>>,
}

/// How expressions and log formats name its parts.
const FIELDS: [&str; 12] = [
    "type",
    "workload",
    "name",
    "cluster",
    "namespace",
    "service",
    "revision",
    "app",
    "version",
    "identity",
    "region",
    "availability_zone",
];

const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
const APP: &str = "app";
const APP_QUALIFIED: &str = "app.kubernetes.io/name";
const VERSION: &str = "version";
const VERSION_QUALIFIED: &str = "app.kubernetes.io/version";

impl Owner {
    fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Deployment => "deployment",
            Self::Job => "job",
            Self::CronJob => "cronjob",
        }
    }

    fn of(name: &str) -> Option<Self> {
        [Self::Pod, Self::Deployment, Self::Job, Self::CronJob].into_iter().find(|owner| owner.name() == name)
    }

    /// `kubernetes://apis/apps/v1/namespaces/<namespace>/<kind>s/<workload>`.
    fn parse(owner: &str, workload: &str) -> Option<Self> {
        let end = owner.len().checked_sub(workload.len() + 2).filter(|end| *end > 0)?;
        Self::of(owner.get(..end)?.rsplit_once('/')?.1)
    }
}

impl Peer {
    /// Of a node's metadata, or of what a peer has told.
    pub fn of(metadata: &Struct, additional: &[Arc<str>]) -> Self {
        let text = |key: &str| text(metadata.get(key));
        let workload = text("WORKLOAD_NAME");
        let mut peer = Self {
            instance: text("NAME").into(),
            cluster: text("CLUSTER_ID").into(),
            namespace: text("NAMESPACE").into(),
            owner: Owner::parse(text("OWNER"), workload),
            workload: workload.into(),
            identity: text("IDENTITY").into(),
            region: text("REGION").into(),
            zone: text("AVAILABILITY_ZONE").into(),
            ..Self::default()
        };
        if let Some(Value::Struct(labels)) = metadata.get("LABELS") {
            peer.label(labels, additional);
        }
        peer
    }

    fn label(&mut self, labels: &Struct, additional: &[Arc<str>]) {
        let either = |first: &str, second: &str| match text(labels.get(first)) {
            "" => Box::from(text(labels.get(second))),
            found => found.into(),
        };
        self.canonical_name = text(labels.get(CANONICAL_NAME)).into();
        self.canonical_revision = text(labels.get(CANONICAL_REVISION)).into();
        self.app = either(APP_QUALIFIED, APP);
        self.version = either(VERSION_QUALIFIED, VERSION);
        let known = [CANONICAL_NAME, CANONICAL_REVISION, APP, APP_QUALIFIED, VERSION, VERSION_QUALIFIED];
        let wanted = |key: &str| !known.contains(&key) && additional.iter().any(|label| **label == *key);
        let found = labels.iter().filter(|(key, _)| wanted(key));
        self.labels = found.map(|(key, value)| (key.as_str().into(), text(Some(value)).into())).collect();
    }

    /// Of an endpoint's metadata: `workload;namespace;canonical name;canonical revision;cluster`.
    pub fn of_endpoint(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(Box::from);
        let mut next = || parts.next();
        Some(Self {
            workload: next()?,
            namespace: next()?,
            canonical_name: next()?,
            canonical_revision: next()?,
            cluster: next()?,
            ..Self::default()
        })
    }

    /// As it is told to peers.
    pub fn told(&self) -> Struct {
        let mut fields = Struct::new();
        put(&mut fields, "NAME", &self.instance);
        put(&mut fields, "NAMESPACE", &self.namespace);
        put(&mut fields, "WORKLOAD_NAME", &self.workload);
        put(&mut fields, "CLUSTER_ID", &self.cluster);
        put(&mut fields, "IDENTITY", &self.identity);
        put(&mut fields, "REGION", &self.region);
        put(&mut fields, "AVAILABILITY_ZONE", &self.zone);
        if let Some(owner) = self.owner {
            let (namespace, workload, owner) = (&self.namespace, &self.workload, owner.name());
            let owner = format!("kubernetes://apis/apps/v1/namespaces/{namespace}/{owner}s/{workload}");
            put(&mut fields, "OWNER", &owner);
        }
        let mut labels = Struct::new();
        put(&mut labels, CANONICAL_NAME, &self.canonical_name);
        put(&mut labels, CANONICAL_REVISION, &self.canonical_revision);
        put(&mut labels, APP, &self.app);
        put(&mut labels, VERSION, &self.version);
        for (key, value) in &self.labels {
            labels.insert(key.to_string(), Value::String(value.to_string()));
        }
        fields.insert("LABELS".into(), Value::Struct(labels));
        fields
    }

    /// Of the header of that name.
    pub fn of_baggage(baggage: &str) -> Self {
        let mut peer = Self::default();
        for (key, value) in baggage.split(',').map(|pair| pair.split_once('=').unwrap_or((pair, ""))) {
            let value: Box<str> = value.split('=').next().unwrap_or_default().into();
            let both = |own: &mut Box<str>, other: &mut Box<str>| {
                *own = value.clone();
                if other.is_empty() {
                    other.clone_from(&value);
                }
            };
            match key {
                "k8s.namespace.name" => peer.namespace = value,
                "k8s.cluster.name" => peer.cluster = value,
                "service.name" => both(&mut peer.canonical_name, &mut peer.app),
                "service.version" => both(&mut peer.canonical_revision, &mut peer.version),
                "app.name" => both(&mut peer.app, &mut peer.canonical_name),
                "app.version" => both(&mut peer.version, &mut peer.canonical_revision),
                "k8s.instance.name" => peer.instance = value,
                "cloud.region" => peer.region = value,
                "cloud.availability_zone" => peer.zone = value,
                _ => {
                    let owner = key.strip_prefix("k8s.").and_then(|key| key.strip_suffix(".name"));
                    if let Some(owner) = owner.and_then(Owner::of) {
                        (peer.workload, peer.owner) = (value, Some(owner));
                    }
                }
            }
        }
        peer
    }

    /// As that header.
    pub fn baggage(&self) -> String {
        let mut parts = Vec::new();
        let mut add = |key: &str, value: &str| {
            if !value.is_empty() {
                parts.push(format!("{key}={value}"));
            }
        };
        let owner = self.owner.unwrap_or(Owner::Pod).name();
        add(&format!("k8s.{owner}.name"), &self.workload);
        add("service.name", &self.canonical_name);
        if self.app != self.canonical_name {
            add("app.name", &self.app);
        }
        add("service.version", &self.canonical_revision);
        if self.version != self.canonical_revision {
            add("app.version", &self.version);
        }
        add("k8s.namespace.name", &self.namespace);
        add("k8s.cluster.name", &self.cluster);
        add("k8s.instance.name", &self.instance);
        add("cloud.region", &self.region);
        add("cloud.availability_zone", &self.zone);
        parts.join(",")
    }

    /// By one of [`FIELDS`]. `None`: there is no such part.
    pub fn field(&self, name: &str) -> Option<&str> {
        Some(match name {
            "type" => self.owner.map_or("unknown", Owner::name),
            "workload" => &self.workload,
            "name" => &self.instance,
            "cluster" => &self.cluster,
            "namespace" => &self.namespace,
            "service" => &self.canonical_name,
            "revision" => &self.canonical_revision,
            "app" => &self.app,
            "version" => &self.version,
            "identity" => &self.identity,
            "region" => &self.region,
            "availability_zone" => &self.zone,
            _ => return None,
        })
    }

    pub fn label_value(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(key, _)| **key == *name).map(|(_, value)| &**value)
    }

    /// What is known of it: part and value.
    fn known(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let told = |name: &str| name != "type" || self.owner.is_some();
        let fields = FIELDS.into_iter().filter(move |name| told(name));
        fields
            .filter_map(|name| self.field(name).map(|value| (name, value)))
            .filter(|(_, value)| !value.is_empty())
    }

    /// As one line of text.
    pub fn plain(&self) -> String {
        let fields = self.known().filter(|(name, _)| *name != "identity");
        let fields = fields.map(|(name, value)| format!("{name}={value}"));
        let labels = self.labels.iter().map(|(key, value)| format!("labels[]{key}={value}"));
        fields.chain(labels).collect::<Vec<_>>().join(",")
    }

    /// As an object of JSON.
    pub fn json(&self) -> serde_json::Value {
        let text = |value: &str| serde_json::Value::String(value.to_owned());
        let mut object: serde_json::Map<_, _> =
            self.known().map(|(name, value)| (name.to_owned(), text(value))).collect();
        if !self.labels.is_empty() {
            let labels = self.labels.iter().map(|(key, value)| (key.to_string(), text(value)));
            object.insert("labels".to_owned(), serde_json::Value::Object(labels.collect()));
        }
        serde_json::Value::Object(object)
    }
}

impl Peers {
    /// By the key that filter state has it under.
    pub fn by_key(&self, key: &str) -> Option<&Arc<Peer>> {
        // What the module of Wasm left had its name before it.
        let slot = match key.strip_prefix("wasm.").unwrap_or(key) {
            "downstream_peer" | "downstream_peer_obj" => &self.downstream,
            "upstream_peer" | "upstream_peer_obj" => &self.upstream,
            _ => return None,
        };
        slot.as_ref()?.peer()
    }
}

fn text(value: Option<&Value>) -> &str {
    match value {
        Some(Value::String(text)) => text,
        Some(_) | None => "",
    }
}

fn put(fields: &mut Struct, key: &str, value: &str) {
    if !value.is_empty() {
        fields.insert(key.to_owned(), Value::String(value.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Struct {
        let mut labels = Struct::new();
        for (key, value) in [
            (CANONICAL_NAME, "ratings"),
            (CANONICAL_REVISION, "version-1"),
            (APP, "plain"),
            (APP_QUALIFIED, "qualified"),
            (VERSION, "v1"),
            ("role", "backend"),
            ("pod-template-hash", "84975bc778"),
        ] {
            put(&mut labels, key, value);
        }
        let mut fields = Struct::new();
        for (key, value) in [
            ("NAME", "ratings-v1-84975bc778-pxz2w"),
            ("NAMESPACE", "default"),
            ("WORKLOAD_NAME", "ratings-v1"),
            ("OWNER", "kubernetes://apis/apps/v1/namespaces/default/deployments/ratings-v1"),
            ("CLUSTER_ID", "server-cluster"),
            ("MESH_ID", "mesh"),
        ] {
            put(&mut fields, key, value);
        }
        fields.insert("LABELS".into(), Value::Struct(labels));
        fields
    }

    #[test]
    fn of_metadata_and_back() {
        let peer = Peer::of(&told(), &["role".into(), "app".into()]);
        assert_eq!((&*peer.app, &*peer.version), ("qualified", "v1"));
        assert_eq!((&*peer.workload, peer.owner), ("ratings-v1", Some(Owner::Deployment)));
        assert_eq!(peer.labels, [("role".into(), "backend".into())]);
        assert_eq!(Peer::of(&peer.told(), &["role".into()]), peer);
        assert!(!peer.told().contains_key("MESH_ID"), "nothing more is told than is asked for");
        assert_eq!(peer.field("service"), Some("ratings"));
        assert_eq!(peer.field("nothing"), None);
        assert!(
            peer.plain().starts_with("type=deployment,workload=ratings-v1,name=ratings-v1-8"),
            "{}",
            peer.plain()
        );
        assert_eq!(peer.json()["labels"]["role"], "backend");
        assert_eq!(Peer::of(&Struct::new(), &[]).told().len(), 1, "labels are always there");
    }

    #[test]
    fn owners() {
        let owner = |owner: &str| Owner::parse(owner, "w");
        assert_eq!(owner("kubernetes://apis/apps/v1/namespaces/n/cronjobs/w"), Some(Owner::CronJob));
        assert_eq!(owner("kubernetes://apis/apps/v1/namespaces/n/replicasets/w"), None);
        for odd in ["", "w", "s/w", "/pods/w", "é"] {
            let _ = owner(odd);
        }
    }

    #[test]
    fn of_baggage_and_back() {
        let baggage = "k8s.deployment.name=foo,service.name=svc,app.name=a,service.version=1,k8s.namespace.name=ns,\
                       k8s.cluster.name=c,k8s.instance.name=foo-1,cloud.region=r,cloud.availability_zone=z";
        let peer = Peer::of_baggage(baggage);
        assert_eq!((&*peer.canonical_name, &*peer.app, &*peer.version), ("svc", "a", "1"));
        assert_eq!(peer.baggage(), baggage);
        assert_eq!(Peer::of_baggage("nonsense,=,,a=b=c"), Peer::default());
    }

    #[test]
    fn of_an_endpoint() {
        let peer = Peer::of_endpoint("ratings-v1;default;ratings;version-1;server-cluster").unwrap();
        assert_eq!((&*peer.workload, &*peer.cluster), ("ratings-v1", "server-cluster"));
        assert_eq!(Peer::of_endpoint("a;b;c;d"), None);
    }
}

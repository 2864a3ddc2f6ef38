//! What control planes and files of dynamic resources say: resources as they come, and what each of them means.
//!
//! A [`RawResource`] is one resource with its name, its message still encoded. [`decode`] makes its model of it: all
//! of it, or every reason why not. Fields that Envoy does not know are no reason: dynamic configuration is lenient.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use envoy_types::pb::envoy::config as pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret as SecretMessage;
use prost::Message;

use crate::decode::any;
use crate::diagnostic::{Diagnostic, Path, Segment, Severity};
use crate::load::primary;
use crate::lower::{Cx, Lower, Reference, StaticSecrets};
use crate::model::bootstrap::Resource;
use crate::model::config_source::ConfigSourceKind;
use crate::model::tls::Secret;
use crate::model::{self, Raw};
use crate::proto::schema;

mod apart;
mod assignment;
pub mod file;
mod resource;
mod split;
mod store;
mod unknown;
pub mod wire;

pub use assignment::{Assigned, Assignment, Said};
pub use resource::RawResource;
use store::Found;
pub use store::Store;

/// A type of resource that is discovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Cluster,
    Endpoints,
    Listener,
    Route,
    Secret,
    Extension,
}

impl Kind {
    /// In the order in which they are asked for.
    pub const ALL: [Self; 6] =
        [Self::Cluster, Self::Endpoints, Self::Listener, Self::Route, Self::Secret, Self::Extension];

    /// The full name of its message.
    pub fn type_name(self) -> &'static str {
        match self {
            Self::Cluster => "envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "envoy.config.listener.v3.Listener",
            Self::Route => "envoy.config.route.v3.RouteConfiguration",
            Self::Secret => "envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::Extension => "envoy.config.core.v3.TypedExtensionConfig",
        }
    }

    pub fn type_url(self) -> String {
        format!("type.googleapis.com/{}", self.type_name())
    }

    pub fn of(type_url: &str) -> Option<Self> {
        let name = any::type_name(type_url).ok()?;
        Self::ALL.into_iter().find(|kind| kind.type_name() == name)
    }

    /// As it is called: `CDS`.
    pub fn service(self) -> &'static str {
        match self {
            Self::Cluster => "CDS",
            Self::Endpoints => "EDS",
            Self::Listener => "LDS",
            Self::Route => "RDS",
            Self::Secret => "SDS",
            Self::Extension => "ECDS",
        }
    }
}

/// A type of model that is discovered. Implemented here only.
pub trait Discover: Sized + Send + Sync + 'static {
    const KIND: Kind;
    #[doc(hidden)]
    type Message: Message + Default + Lower<Model = Self>;
}

impl Discover for model::Cluster {
    const KIND: Kind = Kind::Cluster;
    type Message = pb::cluster::v3::Cluster;
}

impl Discover for model::LoadAssignment {
    const KIND: Kind = Kind::Endpoints;
    type Message = pb::endpoint::v3::ClusterLoadAssignment;
}

impl Discover for model::Listener {
    const KIND: Kind = Kind::Listener;
    type Message = pb::listener::v3::Listener;
}

impl Discover for model::http::RouteConfiguration {
    const KIND: Kind = Kind::Route;
    type Message = pb::route::v3::RouteConfiguration;
}

impl Discover for model::discovered::Extension {
    const KIND: Kind = Kind::Extension;
    type Message = pb::core::v3::TypedExtensionConfig;
}

impl Discover for Secret {
    const KIND: Kind = Kind::Secret;
    type Message = SecretMessage;
}

/// What resources may name beside each other, and what is known of them already.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    /// Of the bootstrap.
    pub secrets: Option<Arc<StaticSecrets>>,
    /// Clusters of the bootstrap that may be called by gRPC; `None` takes all names.
    pub clusters: Option<Arc<HashSet<Arc<str>>>>,
    /// Shared by all that may have the same resources.
    pub store: Option<Arc<Store>>,
    /// Where the resources come from: what `self` says in them.
    pub source: Option<ConfigSourceKind>,
}

/// A resource with its meaning.
#[derive(Clone, Debug)]
pub struct Decoded<T> {
    pub resource: Resource<T>,
    /// What was accepted without effect.
    pub warnings: Vec<Diagnostic>,
}

impl Decoder {
    /// For what comes beside this bootstrap.
    pub fn of(bootstrap: &model::Bootstrap) -> Self {
        let secrets = bootstrap.secrets.iter().map(|secret| secret.model.clone()).collect();
        let clusters = Some(Arc::new(primary(&bootstrap.clusters)));
        Self { secrets: Some(Arc::new(secrets)), clusters, store: None, source: None }
    }

    /// With what other configurations of this process have already.
    #[must_use]
    pub fn with_store(self, store: Arc<Store>) -> Self {
        Self { store: Some(store), ..self }
    }

    /// For what comes from there.
    #[must_use]
    pub fn coming_from(&self, source: &ConfigSourceKind) -> Self {
        Self { source: Some(source.clone()), ..self.clone() }
    }

    /// The model of a resource, or everything that is wrong with it. Paths begin at the resource.
    pub fn decode<T: Discover>(&self, raw: &RawResource) -> Result<Decoded<T>, Vec<Diagnostic>> {
        let bytes = opened::<T>(raw)?;
        let there = |found: &Reference| self.has(found);
        if let Some((resource, found)) = self.store.as_ref().and_then(|store| store.find::<T>(&bytes)) {
            return found.answer(resource, there);
        }
        let (model, found, cx) = self.read::<T>(&bytes)?;
        let (resource, found) = match &self.store {
            Some(store) if !cx.depends_on_place => store.keep(model, &bytes, found),
            Some(_) | None => (Resource { model: Arc::new(model), raw: Raw::from(bytes.as_ref()) }, found),
        };
        found.answer(resource, there)
    }

    /// The model of a resource that nobody keeps, and what was accepted without effect.
    fn lowered<T: Discover>(&self, raw: &RawResource) -> Result<(T, Vec<Diagnostic>), Vec<Diagnostic>> {
        let (model, found, _) = self.read::<T>(&opened::<T>(raw)?)?;
        found.missing(|found| self.has(found)).map(|found| (model, found.warnings.to_vec()))
    }

    fn has(&self, found: &Reference) -> bool {
        self.clusters.as_ref().is_none_or(|known| known.contains(&found.cluster))
    }

    fn read<T: Discover>(&self, bytes: &[u8]) -> Result<(T, Found, Cx), Vec<Diagnostic>> {
        let message = T::Message::decode(bytes).map_err(|error| here(error.to_string()))?;
        let mut cx = Cx::default().with_secrets(self.secrets.clone()).dynamic(self.source.clone());
        let name = T::KIND.type_name();
        let short = name.rsplit('.').next().unwrap_or_default();
        let model = cx.within(Segment::Type(short.into()), |cx| message.lower(cx));
        let unknown = schema::message(name).map(|message| unknown::fields(message, bytes));
        let said = std::mem::take(&mut cx.diagnostics).into_iter().chain(unknown.into_iter().flatten());
        let (errors, warnings): (Vec<_>, Vec<_>) = said.partition(|found| found.severity == Severity::Error);
        let Some(model) = model.filter(|_| errors.is_empty()) else { return Err(errors) };
        let references = std::mem::take(&mut cx.references).into();
        Ok((model, Found { warnings: warnings.into(), references }, cx))
    }
}

/// The message of a resource that is of that type.
fn opened<T: Discover>(raw: &RawResource) -> Result<Cow<'_, [u8]>, Vec<Diagnostic>> {
    let (name, bytes) = any::unpack(&raw.type_url, &raw.value).map_err(here)?;
    if name != T::KIND.type_name() {
        return Err(here(format!("{name} where {} is expected", T::KIND.type_name())));
    }
    Ok(bytes)
}

fn here(why: String) -> Vec<Diagnostic> {
    vec![Diagnostic { severity: Severity::Error, position: None, path: Path::default(), why }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_resource_calls_itself_is_where_it_comes_from() {
        let text = format!(
            "resources: [{{'@type': {}, name: a, type: EDS, eds_cluster_config: {{eds_config: {{self: {{}}}}}}}}]",
            Kind::Cluster.type_url()
        );
        let read = file::Reader::new(Kind::Cluster).read(&text).unwrap();
        let source = |decoder: &Decoder| {
            let decoded = decoder.decode::<model::Cluster>(&read.resources[0]).unwrap();
            let model::cluster::Discovery::Eds(eds) = &decoded.resource.model.discovery else { panic!() };
            eds.source.kind.clone()
        };
        let plain = Decoder::default();
        assert_eq!(source(&plain), ConfigSourceKind::Same);
        assert_eq!(source(&plain.coming_from(&ConfigSourceKind::Ads)), ConfigSourceKind::Ads);
    }
}

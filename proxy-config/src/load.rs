//! The way in: a bootstrap as text becomes a [`model::Bootstrap`] or a list of everything that is wrong with it.
//!
//! Listeners, clusters and secrets go the whole way one at a time, so that a configuration of thousands is never in memory
//! as protobuf. A base and an overlay are merged as protobuf merges, which on the wire is to put one after the other.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::{Locality, Node};
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use prost::Message as _;

use crate::decode::document::{Content, Document, Id};
use crate::decode::encode::Encoder;
use crate::decode::problem::Problems;
use crate::diagnostic::{Diagnostic, Path, Position, Segment, Severity};
use crate::lower::{Cx, Lower, Reference, StaticSecrets};
use crate::model::{
    self, bootstrap::Resource, cluster::Discovery, config_source::ConfigSourceKind, raw::Sharing,
};
use crate::proto::schema;

/// How strictly a file is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// A field that is accepted without effect is an error.
    pub strict: bool,
    /// `--allow-unknown-static-fields`: a field that Envoy's descriptors do not have is a warning.
    pub allow_unknown_fields: bool,
}

impl Options {
    /// What an unknown field is.
    pub(crate) fn unknown_fields(self) -> Severity {
        if self.allow_unknown_fields { Severity::Warning } else { Severity::Error }
    }
}

/// What flags say of the node: it comes before what the configuration says.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// `--service-node`.
    pub id: Option<String>,
    /// `--service-cluster`.
    pub cluster: Option<String>,
    /// `--service-zone`.
    pub zone: Option<String>,
}

/// A configuration that can be run.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub bootstrap: model::Bootstrap,
    /// The bootstrap message, encoded, without its listeners, clusters and secrets.
    pub raw: Bytes,
    /// What was accepted without effect. The same in many resources is said once, with the number of them.
    pub warnings: Vec<Diagnostic>,
}

/// Reads a bootstrap, YAML or JSON. `overlay` is merged over it, as `--config-yaml` over `-c`.
pub fn bootstrap(text: &str, overlay: Option<&str>, options: Options) -> Result<Loaded, Vec<Diagnostic>> {
    bootstrap_as(text, overlay, options, &Identity::default())
}

/// As [`bootstrap`], by a name that the flags give.
pub fn bootstrap_as(
    text: &str,
    overlay: Option<&str>,
    options: Options,
    identity: &Identity,
) -> Result<Loaded, Vec<Diagnostic>> {
    let mut findings = Findings::default();
    let sources: Vec<Source<'_>> = [Some((text, "")), overlay.map(|text| (text, OVERLAY))]
        .into_iter()
        .flatten()
        .filter_map(|(text, suffix)| Source::parse(text, suffix, &mut findings))
        .collect();
    let mut load = Load {
        sources: &sources,
        options,
        findings,
        detached: Vec::new(),
        secrets: None,
        references: Vec::new(),
    };
    let (lowered, raw) = load.message(identity);
    let secrets = load.secrets();
    let listeners = load.resources::<Listener>("listeners", |l| ("", &l.name), &[], Twice::Replaces);
    let clusters =
        load.resources::<Cluster>("clusters", |c| ("", &c.name), OWN_OF_CLUSTERS, Twice::IsRefused);
    load.check_references(&clusters);
    load.check_node(lowered.as_ref());
    let (mut errors, warnings) = load.findings.finish();
    if options.strict {
        errors.extend(warnings.iter().cloned().map(Diagnostic::refused));
    }
    match lowered {
        Some(lowered) if errors.is_empty() => {
            let bootstrap = model::Bootstrap { listeners, clusters, secrets, ..lowered };
            Ok(Loaded { bootstrap, raw, warnings })
        }
        Some(_) | None => Err(errors),
    }
}

const OVERLAY: &str = " (in --config-yaml)";
/// What clusters of a mesh differ in: `name`, `eds_cluster_config`, `transport_socket`, `metadata`, `alt_stat_name`,
/// `load_assignment`.
const OWN_OF_CLUSTERS: &[u32] = &[1, 3, 24, 25, 28, 33];
const STATIC: &str = "static_resources";
const DETACHED: &[(&str, &str)] = &[
    ("envoy.config.bootstrap.v3.Bootstrap.StaticResources", "listeners"),
    ("envoy.config.bootstrap.v3.Bootstrap.StaticResources", "clusters"),
    ("envoy.config.bootstrap.v3.Bootstrap.StaticResources", "secrets"),
];

/// A text that a bootstrap is made of.
struct Source<'t> {
    document: Document<'t>,
    /// What tells its lines from those of the main text.
    suffix: &'static str,
}

struct Load<'s> {
    sources: &'s [Source<'s>],
    options: Options,
    findings: Findings,
    /// Lists that were set aside: which source, which field, the list.
    detached: Vec<(&'s Source<'s>, &'static str, Id)>,
    /// What listeners and clusters may name; `None` where that is not known, since a secret was refused.
    secrets: Option<Arc<StaticSecrets>>,
    /// Clusters that must be there, with what to say if not, and the end of that.
    references: Vec<(Reference, &'static str)>,
}

/// What a name that is given again does.
#[derive(Clone, Copy, PartialEq)]
enum Twice {
    /// The later one is an update, as for Envoy's static listeners.
    Replaces,
    IsRefused,
}

impl<'t> Source<'t> {
    fn parse(text: &'t str, suffix: &'static str, findings: &mut Findings) -> Option<Self> {
        let mut problems = Problems::default();
        let document = Document::parse(text, &mut problems);
        findings.take(problems, suffix);
        Some(Self { document: document?, suffix })
    }
}

impl<'s> Load<'s> {
    /// The bootstrap without its listeners, clusters and secrets: lowered where it could be, and encoded.
    fn message(&mut self, identity: &Identity) -> (Option<model::Bootstrap>, Bytes) {
        let Some(message) = schema::message(Bootstrap::NAME) else { return (None, Bytes::new()) };
        let mut bytes = Vec::new();
        let before = self.findings.errors;
        for source in self.sources {
            let encoder = Encoder::new(&source.document, self.options.unknown_fields());
            let mut encoder = encoder.detaching(DETACHED);
            bytes.extend(encoder.encode(message, source.document.root(), Path::default()));
            self.findings.take(encoder.take_problems(), source.suffix);
            self.detached.extend(encoder.take_detached().into_iter().map(|(field, id)| (source, field, id)));
        }
        if self.findings.errors > before || self.sources.is_empty() {
            return (None, Bytes::new());
        }
        bytes.extend(identity.message().encode_to_vec());
        let raw = Bytes::from(bytes);
        (self.lower::<Bootstrap>(&raw, Path::default(), &Path::default(), self.sources), raw)
    }

    /// The static secrets, which those that name them come after.
    fn secrets(&mut self) -> Vec<Resource<model::tls::Secret>> {
        let before = self.findings.errors;
        let secrets = self.resources::<Secret>("secrets", secret_name, &[], Twice::IsRefused);
        let known = || Arc::new(secrets.iter().map(|secret| secret.model.clone()).collect());
        self.secrets = (self.findings.errors == before).then(known);
        secrets
    }

    /// All listeners, clusters or secrets.
    fn resources<M: Lower + prost::Message + Default>(
        &mut self,
        field: &'static str,
        name: NameOf<M>,
        own: &'static [u32],
        twice: Twice,
    ) -> Vec<Resource<M::Model>> {
        let mut found = Named { list: Vec::new(), by_name: HashMap::new(), twice };
        let mut sharing = Sharing::new(own);
        let mut index = 0;
        for (source, _, list) in self.detached.clone().into_iter().filter(|(_, f, _)| *f == field) {
            let path = Path::default().field(STATIC).field(field);
            let document = &source.document;
            let elements = if let Content::Sequence(elements) = document.content(list) {
                elements
            } else {
                let why =
                    format!("expected a list, found {}: taken as its one element", document.describe(list));
                let position = Some(document.position(list));
                let diagnostic =
                    Diagnostic { severity: Severity::Warning, position, path: path.clone(), why };
                self.findings.add(diagnostic, source.suffix);
                std::slice::from_ref(&list)
            };
            let mut encoder = Encoder::new(&source.document, self.options.unknown_fields());
            for (at, element) in elements.iter().enumerate() {
                let path = |index| {
                    let mut path = path.clone();
                    path.push(Segment::Index(index));
                    path
                };
                let place = Place { source, element: *element, path: path(index), written: path(at) };
                if let Some((name, model, raw)) = self.resource(&mut encoder, &place, name) {
                    let raw = sharing.raw(&raw);
                    self.keep(&mut found, name, Resource { model: Arc::new(model), raw }, &place);
                }
                index += 1;
            }
        }
        found.list
    }

    /// One listener, cluster or secret, with its name.
    fn resource<M: Lower + prost::Message + Default>(
        &mut self,
        encoder: &mut Encoder<'s>,
        place: &Place<'s>,
        name: NameOf<M>,
    ) -> Option<(Name, M::Model, Bytes)> {
        let raw = Bytes::from(encoder.encode(schema::message(M::NAME)?, place.element, place.path.clone()));
        let problems = encoder.take_problems();
        let failed = problems.failed();
        self.findings.take(problems, place.source.suffix);
        if failed {
            return None;
        }
        let message =
            self.decode::<M>(&raw, &place.path, Some(place.source.document.position(place.element)))?;
        let (kind, name) = name(&message);
        let name = (kind, name.to_owned());
        let model = self.lower_message(
            message,
            place.path.clone(),
            &place.written,
            std::slice::from_ref(place.source),
        )?;
        Some((name, model, raw))
    }

    fn keep<T>(&mut self, found: &mut Named<T>, name: Name, resource: Resource<T>, place: &Place<'_>) {
        let position = place.position();
        let known = if name.1.is_empty() { None } else { found.by_name.get(&name).copied() };
        let Some((index, first)) = known else {
            found.by_name.insert(name, (found.list.len(), position));
            return found.list.push(resource);
        };
        let (Position { line, column }, name) = (first, name.1);
        let (severity, why) = match found.twice {
            Twice::IsRefused => {
                (Severity::Error, format!("the name {name:?} is given twice, first at line {line}:{column}"))
            }
            Twice::Replaces => {
                if let Some(kept) = found.list.get_mut(index) {
                    *kept = resource;
                }
                let why = format!(
                    "the name {name:?} is given twice: this replaces the one at line {line}:{column}"
                );
                (Severity::Warning, why)
            }
        };
        let path = place.path.field("name");
        let diagnostic = Diagnostic { severity, position: Some(position), path, why };
        self.findings.add(diagnostic, place.source.suffix);
    }

    /// What is called by gRPC has to be there before anything else is.
    fn check_references(&mut self, clusters: &[Resource<model::Cluster>]) {
        if self.findings.errors > 0 {
            // It may be one of those that were refused.
            return;
        }
        let primary = primary(clusters);
        for (Reference { cluster, diagnostic }, suffix) in std::mem::take(&mut self.references) {
            if !primary.contains(&cluster) {
                self.findings.add(diagnostic, suffix);
            }
        }
    }

    /// Envoy wants to be somebody wherever it asks for listeners and clusters, also in a file.
    fn check_node(&mut self, lowered: Option<&model::Bootstrap>) {
        let Some(model::Bootstrap { node, dynamic, .. }) = lowered else { return };
        let asks = dynamic.lds.is_some() || dynamic.cds.is_some() || dynamic.ads.is_some();
        if asks && (node.id.is_empty() || node.cluster.is_empty()) {
            let path = Path::default().field("node");
            let why = "id and cluster are required with dynamic_resources: \
                here, or by --service-node and --service-cluster"
                .to_owned();
            let located = self.sources.iter().find_map(|source| source.document.locate(&path));
            let position = located.map(|(position, _)| position);
            self.findings.add(Diagnostic { severity: Severity::Error, position, path, why }, "");
        }
    }

    fn lower<M: Lower + prost::Message + Default>(
        &mut self,
        raw: &Bytes,
        path: Path,
        written: &Path,
        sources: &[Source<'_>],
    ) -> Option<M::Model> {
        let message = self.decode::<M>(raw, &path, None)?;
        self.lower_message(message, path, written, sources)
    }

    fn decode<M: prost::Message + Default>(
        &mut self,
        raw: &Bytes,
        path: &Path,
        at: Option<Position>,
    ) -> Option<M> {
        let decoded = M::decode(raw.clone());
        decoded
            .map_err(|error| {
                // What is left to go wrong is prost's limit on depth.
                let why = error.to_string();
                self.findings
                    .add(Diagnostic { severity: Severity::Error, position: at, path: path.clone(), why }, "");
            })
            .ok()
    }

    /// Lowers a message that stands at `path`, and in its source at `written`.
    fn lower_message<M: Lower>(
        &mut self,
        message: M,
        path: Path,
        written: &Path,
        sources: &[Source<'_>],
    ) -> Option<M::Model> {
        let depth = path.segments().len();
        let mut cx = Cx::at(path).with_secrets(self.secrets.clone());
        let model = message.lower(&mut cx);
        let failed = cx.failed();
        let diagnostics =
            std::mem::take(&mut cx.diagnostics).into_iter().map(|diagnostic| (diagnostic, None));
        let references = cx.references.into_iter().map(|found| (found.diagnostic, Some(found.cluster)));
        for (mut diagnostic, cluster) in diagnostics.chain(references) {
            let mut place = written.clone();
            for segment in diagnostic.path.segments().iter().skip(depth) {
                place.push(segment.clone());
            }
            // The overlay wins where it says as much.
            let located = sources.iter().filter_map(|s| Some((s.document.locate(&place)?, s.suffix)));
            let deepest = located.max_by_key(|((_, depth), _)| *depth);
            diagnostic.position = deepest.map(|((position, _), _)| position);
            let suffix = deepest.map_or("", |(_, suffix)| suffix);
            match cluster {
                Some(cluster) => self.references.push((Reference { cluster, diagnostic }, suffix)),
                None => self.findings.add(diagnostic, suffix),
            }
        }
        model.filter(|_| !failed)
    }
}

impl Identity {
    /// To be merged over the configuration.
    fn message(&self) -> Bootstrap {
        let zone = self.zone.clone().map(|zone| Locality { zone, ..Locality::default() });
        let node = Node {
            id: self.id.clone().unwrap_or_default(),
            cluster: self.cluster.clone().unwrap_or_default(),
            locality: zone,
            ..Node::default()
        };
        Bootstrap { node: (node != Node::default()).then_some(node), ..Bootstrap::default() }
    }
}

/// Those that servers of resources may be: Envoy has them before it asks for anything.
pub(crate) fn primary(clusters: &[Resource<model::Cluster>]) -> HashSet<Arc<str>> {
    let primary = clusters.iter().filter(|cluster| match &cluster.model.discovery {
        Discovery::Eds(eds) => matches!(eds.source.kind, ConfigSourceKind::File { .. }),
        Discovery::Static
        | Discovery::StrictDns(_)
        | Discovery::LogicalDns(_)
        | Discovery::OriginalDst(_) => true,
    });
    primary.map(|cluster| cluster.model.name.clone()).collect()
}

/// A resource in its text.
struct Place<'s> {
    source: &'s Source<'s>,
    element: Id,
    /// In the merged configuration.
    path: Path,
    /// In its own source.
    written: Path,
}

impl Place<'_> {
    /// Of the name, if it has one.
    fn position(&self) -> Position {
        let document = &self.source.document;
        let name = document.locate(&self.written.field("name")).map(|(position, _)| position);
        name.unwrap_or_else(|| document.position(self.element))
    }
}

/// What a resource is called among those of its kind; of the listeners and clusters there is one kind.
type Name = (&'static str, String);
type NameOf<M> = fn(&M) -> (&'static str, &str);

fn secret_name(secret: &Secret) -> (&'static str, &str) {
    let kind = match &secret.r#type {
        Some(secret::Type::TlsCertificate(_)) => "tls_certificate",
        Some(secret::Type::SessionTicketKeys(_)) => "session_ticket_keys",
        Some(secret::Type::ValidationContext(_)) => "validation_context",
        Some(secret::Type::GenericSecret(_)) => "generic_secret",
        None => "",
    };
    (kind, &secret.name)
}

struct Named<T> {
    list: Vec<Resource<T>>,
    by_name: HashMap<Name, (usize, Position)>,
    twice: Twice,
}

/// Everything that is found; what many resources have in common is one warning.
#[derive(Default)]
struct Findings {
    problems: Problems,
    errors: usize,
    warnings: Vec<(Diagnostic, usize)>,
    /// Warnings by what they say and where, indices aside.
    known: HashMap<String, usize>,
}

impl Findings {
    fn take(&mut self, problems: Problems, suffix: &str) {
        let (errors, warnings) = problems.finish();
        for diagnostic in errors.into_iter().chain(warnings) {
            self.add(diagnostic, suffix);
        }
    }

    fn add(&mut self, mut diagnostic: Diagnostic, suffix: &str) {
        diagnostic.why.push_str(suffix);
        match diagnostic.severity {
            Severity::Error => {
                self.errors += 1;
                self.problems.push(diagnostic);
            }
            Severity::Warning => {
                let key = format!("{}: {}", general(&diagnostic.path), diagnostic.why);
                let index = *self.known.entry(key).or_insert(self.warnings.len());
                match self.warnings.get_mut(index) {
                    Some((_, count)) => *count += 1,
                    None => self.warnings.push((diagnostic, 1)),
                }
            }
        }
    }

    fn finish(mut self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        for (mut diagnostic, count) in self.warnings {
            if count > 1 {
                diagnostic.why = format!("{} (and {} more such places)", diagnostic.why, count - 1);
            }
            self.problems.push(diagnostic);
        }
        self.problems.finish()
    }
}

/// A path without what tells one resource from another.
fn general(path: &Path) -> Path {
    let mut general = Path::default();
    for segment in path.segments() {
        match segment {
            Segment::Index(_) | Segment::Key(_) => {}
            Segment::Field(_) | Segment::Type(_) => general.push(segment.clone()),
        }
    }
    general
}

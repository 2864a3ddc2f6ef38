//! Files of dynamic resources: a `DiscoveryResponse` of one type.

use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;

use super::{Kind, RawResource};
use crate::decode::document::{Content, Document, Id};
use crate::decode::encode::Encoder;
use crate::decode::problem::Problems;
use crate::diagnostic::{Diagnostic, Path, Segment, Severity};
use crate::proto::schema;

/// What a file says.
#[derive(Clone, Debug, PartialEq)]
pub struct FileResponse {
    pub version: Arc<str>,
    /// In their order.
    pub resources: Vec<RawResource>,
    /// Fields that Envoy does not know, and what else was not honoured.
    pub warnings: Vec<Diagnostic>,
}

/// Reads one file again and again.
#[derive(Debug)]
pub struct Reader {
    kind: Kind,
}

impl Reader {
    pub fn new(kind: Kind) -> Self {
        Self { kind }
    }

    /// A response in YAML or JSON: all of it, or everything that is wrong with it. Fields that Envoy does not know
    /// are warnings, as in all dynamic configuration.
    pub fn read(&mut self, text: &str) -> Result<FileResponse, Vec<Diagnostic>> {
        whole(self.kind, text)
    }

    /// A response in protobuf's own format: a file whose name ends with `.pb`.
    pub fn read_binary(&mut self, bytes: &[u8]) -> Result<FileResponse, Vec<Diagnostic>> {
        let error = |path, why| Diagnostic { severity: Severity::Error, position: None, path, why };
        let response = DiscoveryResponse::decode(bytes)
            .map_err(|why| vec![error(Path::default(), format!("not a DiscoveryResponse: {why}"))])?;
        let version: Arc<str> = response.version_info.into();
        let (mut resources, mut errors) = (Vec::with_capacity(response.resources.len()), Vec::new());
        for (index, any) in response.resources.iter().enumerate() {
            match RawResource::open(self.kind, &any.type_url, &any.value, &version) {
                Ok(resource) => resources.push(resource),
                Err(why) => errors.push(error(place(index), why)),
            }
        }
        if errors.is_empty() {
            Ok(FileResponse { version, resources, warnings: Vec::new() })
        } else {
            Err(errors)
        }
    }
}

fn place(index: usize) -> Path {
    let mut path = Path::default().field("resources");
    path.push(Segment::Index(index));
    path
}

const RESPONSE: &str = "envoy.service.discovery.v3.DiscoveryResponse";
const RESOURCES: &[(&str, &str)] = &[(RESPONSE, "resources")];

fn whole(kind: Kind, text: &str) -> Result<FileResponse, Vec<Diagnostic>> {
    let mut problems = Problems::default();
    let response =
        Document::parse(text, &mut problems).and_then(|document| response(kind, &document, &mut problems));
    let (errors, warnings) = problems.finish();
    match response {
        Some((version, resources)) if errors.is_empty() => Ok(FileResponse { version, resources, warnings }),
        Some(_) | None => Err(errors),
    }
}

/// `None` only where there is an error.
fn response(
    kind: Kind,
    document: &Document<'_>,
    problems: &mut Problems,
) -> Option<(Arc<str>, Vec<RawResource>)> {
    let mut encoder = Encoder::new(document, Severity::Warning).detaching(RESOURCES);
    let bytes = encoder.encode(schema::message(RESPONSE)?, document.root(), Path::default());
    problems.extend(encoder.take_problems());
    let head = DiscoveryResponse::decode(Bytes::from(bytes)).ok()?;
    if !head.type_url.is_empty() && Kind::of(&head.type_url) != Some(kind) {
        let (path, why) = (Path::default().field("type_url"), format!("is not of {}", kind.type_name()));
        problems.warning(document.locate(&path).map(|(position, _)| position), path, why);
    }
    let version: Arc<str> = head.version_info.into();
    let lists = encoder.take_detached();
    let list = lists.first().map_or(&[] as &[Id], |(_, list)| elements(document, list, problems));
    let mut resources = Vec::with_capacity(list.len());
    for place in list.iter().copied().enumerate() {
        resources.extend(resource(kind, &mut encoder, document, place, &version, problems));
    }
    Some((version, resources))
}

fn elements<'d>(document: &'d Document<'_>, list: &'d Id, problems: &mut Problems) -> &'d [Id] {
    if let Content::Sequence(elements) = document.content(*list) {
        return elements;
    }
    // As Envoy, which says nothing.
    let why = format!("expected a list, found {}: taken as its one element", document.describe(*list));
    problems.warning(Some(document.position(*list)), Path::default().field("resources"), why);
    std::slice::from_ref(list)
}

/// `None` where an error was given.
fn resource(
    kind: Kind,
    encoder: &mut Encoder<'_>,
    document: &Document<'_>,
    (index, element): (usize, Id),
    version: &Arc<str>,
    problems: &mut Problems,
) -> Option<RawResource> {
    let bytes = encoder.encode(schema::message("google.protobuf.Any")?, element, place(index));
    let found = encoder.take_problems();
    let failed = found.failed();
    problems.extend(found);
    if failed {
        return None;
    }
    let opened = Any::decode(Bytes::from(bytes))
        .map_err(|error| error.to_string())
        .and_then(|any| RawResource::open(kind, &any.type_url, &any.value, version));
    opened.map_err(|why| problems.error(Some(document.position(element)), place(index), why)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

    fn read(kind: Kind, text: &str) -> Result<FileResponse, Vec<String>> {
        Reader::new(kind).read(text).map_err(|found| found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn resources_come_with_their_names_in_their_order() {
        let text = format!(
            "version_info: '7'\nresources:\n- {{'@type': {CLUSTER}, name: b, connect_timeout: 1s}}\n- name: a\n  '@type': {CLUSTER}\n"
        );
        let read = read(Kind::Cluster, &text).unwrap();
        let names: Vec<_> = read.resources.iter().map(|resource| &*resource.name).collect();
        assert_eq!((&*read.version, names), ("7", vec!["b", "a"]));
        assert!(
            read.resources.iter().all(|resource| &*resource.version == "7" && &*resource.type_url == CLUSTER)
        );
        assert_eq!(read.warnings, []);
    }

    #[test]
    fn every_kind_has_its_name_in_its_first_field() {
        for kind in Kind::ALL {
            let field = if kind == Kind::Endpoints { "cluster_name" } else { "name" };
            let text = format!("resources: [{{'@type': {}, {field}: x}}]", kind.type_url());
            assert_eq!(&*read(kind, &text).unwrap().resources[0].name, "x");
        }
    }

    #[test]
    fn what_is_around_a_resource_is_opened() {
        let inner = format!("{{'@type': {CLUSTER}, name: inside}}");
        let wrapper = "'@type': type.googleapis.com/envoy.service.discovery.v3.Resource";
        let typed = "'@type': type.googleapis.com/xds.type.v3.TypedStruct";
        let text = format!(
            "version_info: '1'\nresources:\n- {{{wrapper}, name: outside, version: '9', ttl: 2.5s, resource: {inner}}}\n\
             - {{{typed}, type_url: {CLUSTER}, value: {{name: struct}}}}\n- {{{wrapper}, resource: {inner}}}\n"
        );
        let read = read(Kind::Cluster, &text).unwrap();
        let names: Vec<_> = read.resources.iter().map(|resource| &*resource.name).collect();
        assert_eq!(names, ["outside", "struct", "inside"]);
        assert_eq!(read.resources[0].ttl, Some(std::time::Duration::from_millis(2500)));
        assert_eq!(&*read.resources[0].version, "1", "as in Envoy");
        assert_eq!(read.resources[0].value, read.resources[2].value);
    }

    #[test]
    fn what_cannot_be_used_is_named_with_its_place() {
        let cases = [
            (
                format!("resources:\n- {{'@type': {CLUSTER}, name: a}}\n"),
                "line 2:3 at resources[0]: envoy.config.cluster.v3.Cluster where envoy.config.listener.v3.Listener is expected",
            ),
            (
                "resources:\n- {'@type': type.googleapis.com/envoy.config.listener.v3.Listener, name: [1]}\n"
                    .into(),
                "line 2:74 at resources[0]<Listener>.name: expected a string, found a list",
            ),
            ("resources:\n- {}\n".into(), "line 2:3 at resources[0]: \"\" names no type"),
            (
                "resources:\n- '@type': type.googleapis.com/envoy.service.discovery.v3.Resource\n  name: x\n"
                    .into(),
                "line 2:3 at resources[0]: envoy.service.discovery.v3.Resource \"x\" has no resource",
            ),
            ("resources: [".into(), "line 2:1: while parsing a node"),
            (String::new(), "line 1:1: the document is empty"),
        ];
        for (text, expected) in cases {
            let found = read(Kind::Listener, &text).unwrap_err();
            assert!(found.len() == 1 && found[0].starts_with(expected), "{text}: {found:?}");
        }
    }

    #[test]
    fn what_has_no_effect_is_a_warning() {
        let text = format!(
            "type_url: x/y\nno_such: 1\nresources: {{'@type': {CLUSTER}, name: a, no_such_field: 1}}\n"
        );
        let found: Vec<_> =
            read(Kind::Cluster, &text).unwrap().warnings.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "line 1:1 at type_url: is not of envoy.config.cluster.v3.Cluster",
                "line 2:1: unknown field \"no_such\"",
                "line 3:12 at resources: expected a list, found a mapping: taken as its one element",
                "line 3:84 at resources[0]<Cluster>: unknown field \"no_such_field\"",
            ]
        );
    }

    #[test]
    fn binary_is_the_same() {
        let text = format!("version_info: '7'\nresources: [{{'@type': {CLUSTER}, name: a}}]\n");
        let options = crate::load::Options::default();
        let bytes = crate::decode::message(RESPONSE, &text, options).unwrap().bytes;
        let mut reader = Reader::new(Kind::Cluster);
        assert_eq!(reader.read_binary(&bytes), reader.read(&text));
        assert!(Reader::new(Kind::Listener).read_binary(&bytes).is_err());
        assert!(reader.read_binary(b"\xff").is_err());
    }
}

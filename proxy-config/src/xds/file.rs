//! Files of dynamic resources: a `DiscoveryResponse` of one type.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;

use super::split::{Item, Split};
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

/// Reads one file again and again. What has not changed since the last time is not read again.
#[derive(Debug)]
pub struct Reader {
    kind: Kind,
    hasher: RandomState,
    /// The resources of the last text, by the hash of the text of each.
    known: HashMap<u64, Box<Known>>,
    /// Counts the texts.
    turn: u64,
}

/// A resource that was read from its own text.
#[derive(Clone, Debug)]
struct Known {
    length: usize,
    /// The last text that had it.
    turn: u64,
    resource: RawResource,
    /// With places in a response that has this resource alone.
    warnings: Vec<Diagnostic>,
}

impl Reader {
    pub fn new(kind: Kind) -> Self {
        Self { kind, hasher: RandomState::new(), known: HashMap::new(), turn: 0 }
    }

    /// A response in YAML or JSON: all of it, or everything that is wrong with it. Fields that Envoy does not know
    /// are warnings, as in all dynamic configuration.
    pub fn read(&mut self, text: &str) -> Result<FileResponse, Vec<Diagnostic>> {
        let parts = Split::of(text).and_then(|split| self.by_parts(&split));
        if parts.is_none() {
            // What was good last may be the next one; whatever is older is not kept.
            self.known.retain(|_, known| known.turn + 1 >= self.turn);
        }
        parts.map_or_else(|| whole(self.kind, text), Ok)
    }

    /// Each resource on its own; `None` where that may not be what the whole says, or something is wrong with it.
    fn by_parts(&mut self, split: &Split<'_>) -> Option<FileResponse> {
        let rest = part(self.kind, &split.rest, split.json())?;
        if !rest.warnings.is_empty() || !rest.resources.is_empty() {
            return None;
        }
        self.turn += 1;
        let (mut resources, mut problems) = (Vec::with_capacity(split.items.len()), Problems::default());
        for (index, item) in split.items.iter().copied().enumerate() {
            let hash = self.hasher.hash_one(item.text);
            if self.known.get(&hash).is_none_or(|known| known.length != item.text.len()) {
                let read = self.item(split, item)?;
                self.known.insert(hash, Box::new(read));
            }
            let known = self.known.get_mut(&hash)?;
            known.turn = self.turn;
            for found in &known.warnings {
                problems.push(split.place(item, index, found.clone())?);
            }
            resources.push(RawResource { version: rest.version.clone(), ..known.resource.clone() });
        }
        if problems.full() {
            // There may be more, of which the number is said.
            return None;
        }
        // In place: two tables of thousands would be the most that a reading takes.
        self.known.retain(|_, known| known.turn == self.turn);
        let (_, warnings) = problems.finish();
        Some(FileResponse { version: rest.version, resources, warnings })
    }

    fn item(&self, split: &Split<'_>, item: Item<'_>) -> Option<Known> {
        if !split.json() && item.refers() {
            return None;
        }
        let FileResponse { mut resources, warnings, .. } =
            part(self.kind, &split.response(item), split.json())?;
        let resource = resources.pop().filter(|_| resources.is_empty())?;
        Some(Known { length: item.text.len(), turn: self.turn, resource, warnings })
    }

    /// A response in protobuf's own format: a file whose name ends with `.pb`.
    pub fn read_binary(&mut self, bytes: &[u8]) -> Result<FileResponse, Vec<Diagnostic>> {
        let error = |path, why| Diagnostic { severity: Severity::Error, position: None, path, why };
        let response = DiscoveryResponse::decode(bytes)
            .map_err(|why| vec![error(Path::default(), format!("not a DiscoveryResponse: {why}"))])?;
        let version: Arc<str> = response.version_info.into();
        let (mut resources, mut errors) = (Vec::with_capacity(response.resources.len()), Vec::new());
        for (index, any) in response.resources.into_iter().enumerate() {
            match RawResource::open(self.kind, &any.type_url, any.value.into(), &version) {
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
    finish(response, problems)
}

/// A text that stands for a part of another: `None` where anything is wrong with it.
fn part(kind: Kind, text: &str, json: bool) -> Option<FileResponse> {
    let mut problems = Problems::default();
    let document = Document::parse(text, &mut problems).filter(|document| document.json() == json)?;
    let response = response(kind, &document, &mut problems);
    finish(response, problems).ok()
}

fn finish(
    response: Option<(Arc<str>, Vec<RawResource>)>,
    problems: Problems,
) -> Result<FileResponse, Vec<Diagnostic>> {
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
        .and_then(|any| RawResource::open(kind, &any.type_url, any.value.into(), version));
    opened.map_err(|why| problems.error(Some(document.position(element)), place(index), why)).ok()
}

#[cfg(test)]
mod tests;

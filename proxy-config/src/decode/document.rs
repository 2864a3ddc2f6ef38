//! A text as a tree in an arena: what was written, and where.
//!
//! Scalars keep their spelling, since what `0x10` or `yes` means depends on what is wanted. An alias is a second
//! edge to the node that its anchor names, so a small text can be a huge tree: how huge is counted while it grows.

use super::problem::Problems;
use crate::diagnostic::{Path, Position, Segment};
use crate::proto::schema::{self, Special};

/// A parsed text.
#[derive(Debug)]
pub(crate) struct Document<'t> {
    pub(super) text: &'t str,
    /// Scalars that are not in the text as they are.
    pub(super) unescaped: String,
    pub(super) nodes: Vec<Node>,
    /// The children of all containers: elements, or keys and values in turn.
    pub(super) children: Vec<Id>,
    pub(super) root: Id,
    /// JSON, whose numbers are numbers also where any value may stand.
    pub(super) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id(pub(super) u32);

#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) position: Position,
    pub(super) start: u32,
    pub(super) length: u32,
    pub(super) kind: NodeKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeKind {
    /// A scalar without quotes, in the text or in `unescaped`.
    Plain,
    PlainCopy,
    /// Any other scalar.
    Quoted,
    QuotedCopy,
    Sequence,
    Mapping,
}

/// What a node is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content<'d> {
    /// Means what the wanted type makes of it.
    Plain(&'d str),
    /// A string.
    Quoted(&'d str),
    Sequence(&'d [Id]),
    Mapping(Pairs<'d>),
}

/// Keys and values of a mapping; all keys are scalars.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pairs<'d> {
    document: &'d Document<'d>,
    children: &'d [Id],
}

impl<'t> Document<'t> {
    /// JSON where it is that, else YAML.
    pub(crate) fn parse(text: &'t str, problems: &mut Problems) -> Option<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if let Some(offset) = text.bytes().position(|byte| byte == 0) {
            problems.error(Some(position(text, offset)), Path::default(), "a NUL character");
            return None;
        }
        if u32::try_from(text.len()).is_err() {
            problems.error(None, Path::default(), "a text of 4 GiB or more");
            return None;
        }
        let document = if text.trim_start().starts_with('{') {
            super::json::parse(text).or_else(|json| {
                super::yaml::parse(text).map_err(|yaml| if like_json(text) { json } else { yaml })
            })
        } else {
            super::yaml::parse(text)
        };
        document
            .and_then(|(document, found)| {
                problems.extend(found);
                document.only_mapping()
            })
            .map_err(|problem| problems.push(problem.into()))
            .ok()
    }

    fn only_mapping(self) -> Result<Self, super::problem::Fatal> {
        match self.content(self.root) {
            Content::Mapping(_) => Ok(self),
            Content::Plain("") => {
                Err(super::problem::Fatal::new(self.position(self.root), "the document is empty"))
            }
            Content::Plain(_) | Content::Quoted(_) | Content::Sequence(_) => {
                let why = format!("the document must be a mapping, and is {}", self.describe(self.root));
                Err(super::problem::Fatal::new(self.position(self.root), why))
            }
        }
    }

    pub(crate) fn root(&self) -> Id {
        self.root
    }

    pub(crate) fn json(&self) -> bool {
        self.json
    }

    pub(crate) fn position(&self, id: Id) -> Position {
        self.node(id).position
    }

    pub(crate) fn content(&self, id: Id) -> Content<'_> {
        let node = self.node(id);
        let range = node.start as usize..node.start as usize + node.length as usize;
        match node.kind {
            NodeKind::Plain => Content::Plain(self.text.get(range).unwrap_or_default()),
            NodeKind::PlainCopy => Content::Plain(self.unescaped.get(range).unwrap_or_default()),
            NodeKind::Quoted => Content::Quoted(self.text.get(range).unwrap_or_default()),
            NodeKind::QuotedCopy => Content::Quoted(self.unescaped.get(range).unwrap_or_default()),
            NodeKind::Sequence => Content::Sequence(self.children.get(range).unwrap_or_default()),
            NodeKind::Mapping => Content::Mapping(Pairs {
                document: self,
                children: self.children.get(range).unwrap_or_default(),
            }),
        }
    }

    /// A scalar as it is written.
    pub(crate) fn scalar(&self, id: Id) -> Option<&str> {
        match self.content(id) {
            Content::Plain(text) | Content::Quoted(text) => Some(text),
            Content::Sequence(_) | Content::Mapping(_) => None,
        }
    }

    /// In words, for "expected …, found …".
    pub(crate) fn describe(&self, id: Id) -> String {
        match self.content(id) {
            Content::Plain(text) => super::scalar::Plain::of(text).describe(text),
            Content::Quoted(text) => format!("{:?}", super::scalar::shorten(text)),
            Content::Sequence(_) => "a list".into(),
            Content::Mapping(_) => "a mapping".into(),
        }
    }

    /// Where the deepest part of `path` that was written stands, and how many segments that part has.
    pub(crate) fn locate(&self, path: &Path) -> Option<(Position, usize)> {
        let (mut at, mut found) = (self.root, None);
        for (depth, segment) in path.segments().iter().enumerate() {
            let Some((position, next)) = self.step(at, segment) else { break };
            at = next;
            if let Some(position) = position {
                found = Some((position, depth + 1));
            }
        }
        found
    }

    fn step(&self, at: Id, segment: &Segment) -> Option<(Option<Position>, Id)> {
        match (segment, self.content(at)) {
            (Segment::Field(name), Content::Mapping(pairs)) => {
                let same = |key: &str| key == name || same_field(key, name);
                let (key, value) = pairs.iter().find(|(key, _)| self.scalar(*key).is_some_and(same))?;
                Some((Some(self.position(key)), value))
            }
            (Segment::Key(name), Content::Mapping(pairs)) => {
                let (key, value) = pairs.iter().find(|(key, _)| self.scalar(*key) == Some(name))?;
                Some((Some(self.position(key)), value))
            }
            (Segment::Index(index), Content::Sequence(list)) => {
                let element = *list.get(*index)?;
                Some((Some(self.position(element)), element))
            }
            (Segment::Type(_), Content::Mapping(pairs)) => Some((None, self.inside_any(pairs).unwrap_or(at))),
            (Segment::Field(_) | Segment::Key(_) | Segment::Index(_) | Segment::Type(_), _) => None,
        }
    }

    /// The message that an `Any` holds, where that is not the mapping itself.
    fn inside_any(&self, pairs: Pairs<'_>) -> Option<Id> {
        let url = self.scalar(pairs.value("@type")?)?;
        let (_, name) = url.rsplit_once('/')?;
        let special = schema::message(name)?.special;
        if special == Special::No { None } else { pairs.value("value") }
    }

    fn node(&self, id: Id) -> Node {
        const NONE: Node = Node {
            position: Position { line: 1, column: 1 },
            start: 0,
            length: 0,
            kind: NodeKind::PlainCopy,
        };
        self.nodes.get(id.0 as usize).copied().unwrap_or(NONE)
    }
}

impl<'d> Pairs<'d> {
    pub(crate) fn iter(self) -> impl Iterator<Item = (Id, Id)> + 'd {
        self.children.chunks_exact(2).filter_map(|pair| Some((*pair.first()?, *pair.get(1)?)))
    }

    pub(crate) fn is_empty(self) -> bool {
        self.children.is_empty()
    }

    pub(crate) fn value(self, wanted: &str) -> Option<Id> {
        self.iter().find(|(key, _)| self.document.scalar(*key) == Some(wanted)).map(|(_, value)| value)
    }
}

/// Whether somebody means this to be JSON: YAML seldom quotes a key.
fn like_json(text: &str) -> bool {
    let inside = text.trim_start().strip_prefix('{').map(str::trim_start);
    inside.is_some_and(|text| text.starts_with(['"', '}']))
}

/// `statPrefix` is `stat_prefix`.
fn same_field(written: &str, name: &str) -> bool {
    let mut rest = written.chars();
    let mut name = name.chars();
    while let Some(c) = name.next() {
        let wanted = if c == '_' { name.next().map(|c| c.to_ascii_uppercase()) } else { Some(c) };
        if rest.next() != wanted {
            return false;
        }
    }
    rest.next().is_none()
}

/// The line and column of a byte.
pub(crate) fn position(text: &str, offset: usize) -> Position {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
    let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Position { line: narrow(line), column: narrow(column) }
}

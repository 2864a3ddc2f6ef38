//! Grows a [`Document`] from what a parser finds in it, within limits.

use std::collections::{HashMap, HashSet};

use super::document::{Document, Id, Node, NodeKind};
use super::problem::{Fatal, Problems};
use crate::diagnostic::{Path, Position, Segment};

/// Deeper than any message is nested; the tree is walked by recursion.
const MAX_DEPTH: u32 = 200;
/// What aliases may add to the weight of a text, which itself weighs less than its length.
const MAX_ALIASED: u64 = 2_000_000;
/// So many bytes of a scalar weigh as much as a node.
const BYTES_PER_NODE: u64 = 32;
/// From here on a mapping's keys are hashed to find those that are given twice.
const HASHED: usize = 16;

pub(super) struct Builder<'t> {
    document: Document<'t>,
    /// The containers that are open.
    stack: Vec<Frame>,
    /// Their children so far, innermost last.
    pending: Vec<Id>,
    anchors: HashMap<usize, Anchor>,
    /// Whole top-level nodes.
    roots: Vec<Id>,
    problems: Problems,
    max_weight: u64,
}

struct Frame {
    mapping: bool,
    position: Position,
    anchor: usize,
    /// Into `pending`.
    first: usize,
    size: Size,
}

/// Of a subtree, aliases followed.
#[derive(Clone, Copy)]
struct Size {
    weight: u64,
    height: u32,
}

#[derive(Clone, Copy)]
struct Anchor {
    id: Id,
    size: Size,
}

/// A scalar's text, in the document or not.
pub(super) enum Text<'a> {
    At(usize, usize),
    Copy(&'a str),
}

pub(super) fn too_deep() -> String {
    format!("nested deeper than {MAX_DEPTH} levels")
}

impl<'t> Builder<'t> {
    pub(super) fn new(text: &'t str, json: bool) -> Self {
        let document = Document {
            text,
            unescaped: String::new(),
            nodes: Vec::with_capacity(text.len() / 24),
            children: Vec::with_capacity(text.len() / 24),
            root: Id(0),
            json,
        };
        Self {
            document,
            stack: Vec::new(),
            pending: Vec::new(),
            anchors: HashMap::new(),
            roots: Vec::new(),
            problems: Problems::default(),
            max_weight: text.len() as u64 + MAX_ALIASED,
        }
    }

    /// `anchor` is 0 where there is none.
    pub(super) fn scalar(
        &mut self,
        text: Text<'_>,
        quoted: bool,
        position: Position,
        anchor: usize,
    ) -> Result<(), Fatal> {
        let (start, length, copy) = match text {
            Text::At(start, length) => (start, length, false),
            Text::Copy(text) => {
                let start = self.document.unescaped.len();
                self.document.unescaped.push_str(text);
                (start, text.len(), true)
            }
        };
        let kind = match (quoted, copy) {
            (false, false) => NodeKind::Plain,
            (false, true) => NodeKind::PlainCopy,
            (true, false) => NodeKind::Quoted,
            (true, true) => NodeKind::QuotedCopy,
        };
        let id = self.node(kind, position, start, length)?;
        let size = Size { weight: 1 + length as u64 / BYTES_PER_NODE, height: 1 };
        self.attach(id, size, position, anchor)
    }

    pub(super) fn open(&mut self, mapping: bool, position: Position, anchor: usize) -> Result<(), Fatal> {
        if self.stack.len() as u32 >= MAX_DEPTH {
            return Err(Fatal::new(position, too_deep()));
        }
        let size = Size { weight: 1, height: 1 };
        self.stack.push(Frame { mapping, position, anchor, first: self.pending.len(), size });
        Ok(())
    }

    pub(super) fn close(&mut self) -> Result<(), Fatal> {
        let Some(frame) = self.stack.pop() else { return Ok(()) };
        let mut children = self.pending.split_off(frame.first.min(self.pending.len()));
        if frame.mapping {
            self.merge(&mut children);
            self.refuse_duplicates(&children);
        }
        let kind = if frame.mapping { NodeKind::Mapping } else { NodeKind::Sequence };
        let start = self.document.children.len();
        let id = self.node(kind, frame.position, start, children.len())?;
        self.document.children.extend_from_slice(&children);
        self.attach(id, frame.size, frame.position, frame.anchor)
    }

    pub(super) fn alias(&mut self, anchor: usize, position: Position) -> Result<(), Fatal> {
        match self.anchors.get(&anchor) {
            Some(&Anchor { id, size }) => self.attach(id, size, position, 0),
            None => Err(Fatal::new(position, "an alias inside of what it stands for")),
        }
    }

    /// How many whole nodes there are at the top.
    pub(super) fn roots(&self) -> usize {
        self.roots.len()
    }

    pub(super) fn finish(mut self, end: Position) -> Result<(Document<'t>, Problems), Fatal> {
        if self.roots.is_empty() {
            self.scalar(Text::Copy(""), false, end, 0)?;
        }
        self.document.root = self.roots.first().copied().unwrap_or(Id(0));
        self.document.nodes.shrink_to_fit();
        self.document.children.shrink_to_fit();
        Ok((self.document, self.problems))
    }

    fn node(&mut self, kind: NodeKind, position: Position, start: usize, length: usize) -> Result<Id, Fatal> {
        let narrow = |n: usize| u32::try_from(n).map_err(|_| Fatal::new(position, "too large a document"));
        let id = Id(narrow(self.document.nodes.len())?);
        let (start, length) = (narrow(start)?, narrow(length)?);
        self.document.nodes.push(Node { position, start, length, kind });
        Ok(id)
    }

    fn attach(&mut self, id: Id, size: Size, position: Position, anchor: usize) -> Result<(), Fatal> {
        if anchor != 0 {
            self.anchors.insert(anchor, Anchor { id, size });
        }
        let open = self.stack.len() as u32;
        let Some(frame) = self.stack.last_mut() else {
            self.roots.push(id);
            return Ok(());
        };
        frame.size.weight = frame.size.weight.saturating_add(size.weight);
        frame.size.height = frame.size.height.max(size.height + 1);
        if open + size.height > MAX_DEPTH {
            return Err(Fatal::new(position, too_deep()));
        }
        if frame.size.weight > self.max_weight {
            return Err(Fatal::new(position, "aliases make this document too large"));
        }
        self.pending.push(id);
        Ok(())
    }

    /// YAML's `<<`: the pairs of other mappings, where this one has no such key.
    fn merge(&mut self, children: &mut Vec<Id>) {
        let merges = |document: &Document<'_>, key: Id| {
            document
                .nodes
                .get(key.0 as usize)
                .is_some_and(|n| matches!(n.kind, NodeKind::Plain | NodeKind::PlainCopy))
                && document.scalar(key) == Some("<<")
        };
        while let Some(at) = children.chunks_exact(2).position(|pair| merges(&self.document, pair[0])) {
            let mut pair = children.drain(2 * at..2 * at + 2);
            let (Some(key), Some(value)) = (pair.next(), pair.next()) else { break };
            drop(pair);
            let Some(sources) = self.merge_sources(value) else {
                let position = self.document.position(key);
                self.problems.error(
                    Some(position),
                    self.path(),
                    "\"<<\" takes a mapping or a list of mappings",
                );
                continue;
            };
            let mut known: HashSet<_> =
                children.iter().step_by(2).map(|key| self.document.scalar(*key)).collect();
            for pair in sources.chunks_exact(2) {
                if known.insert(self.document.scalar(pair[0])) {
                    children.extend_from_slice(pair);
                }
            }
        }
    }

    /// The pairs that a value of `<<` brings, in order of precedence.
    fn merge_sources(&self, value: Id) -> Option<Vec<Id>> {
        use super::document::Content;
        let one = |id: Id| match self.document.content(id) {
            Content::Mapping(pairs) => Some(pairs.iter().flat_map(|(key, value)| [key, value]).collect()),
            Content::Plain(_) | Content::Quoted(_) | Content::Sequence(_) => None,
        };
        match self.document.content(value) {
            Content::Sequence(list) => {
                list.iter().map(|id| one(*id)).collect::<Option<Vec<Vec<Id>>>>().map(|l| l.concat())
            }
            Content::Mapping(_) | Content::Plain(_) | Content::Quoted(_) => one(value),
        }
    }

    fn refuse_duplicates(&mut self, children: &[Id]) {
        let keys: Vec<Id> = children.chunks_exact(2).map(|pair| pair[0]).collect();
        let mut hashed = HashMap::new();
        let mut found = Vec::new();
        for (index, key) in keys.iter().enumerate() {
            let Some(text) = self.document.scalar(*key) else {
                found.push((self.document.position(*key), "a key must be a scalar".to_owned()));
                continue;
            };
            let first = if keys.len() < HASHED {
                keys.iter().take(index).find(|known| self.document.scalar(**known) == Some(text)).copied()
            } else {
                hashed.insert(text, *key)
            };
            if let Some(first) = first {
                let Position { line, column } = self.document.position(first);
                let why = format!("the key {text:?} is given twice, first at line {line}:{column}");
                found.push((self.document.position(*key), why));
            }
        }
        for (position, why) in found {
            self.problems.error(Some(position), self.path(), why);
        }
    }

    /// The way to the container that is being closed.
    fn path(&self) -> Path {
        let mut path = Path::default();
        let ends = self.stack.iter().skip(1).map(|frame| frame.first).chain([self.pending.len()]);
        for (frame, end) in self.stack.iter().zip(ends) {
            let children = self.pending.get(frame.first..end).unwrap_or_default();
            path.push(if frame.mapping {
                let key = children.last().and_then(|key| self.document.scalar(*key));
                Segment::Field(key.unwrap_or_default().to_owned().into())
            } else {
                Segment::Index(children.len())
            });
        }
        path
    }
}

//! Cuts the text of a response at its resources, so that each can be read on its own.
//!
//! This looks at lines and brackets and not at what they mean: a cut through the middle of something leaves parts that
//! cannot be read, and then the whole text is.

use crate::decode::document::position;
use crate::diagnostic::{Diagnostic, Position, Segment};

/// A text in parts.
#[derive(Debug)]
pub(super) struct Split<'t> {
    text: &'t str,
    json: bool,
    /// The response with no resources.
    pub(super) rest: String,
    pub(super) items: Vec<Item<'t>>,
}

/// One resource.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item<'t> {
    pub(super) text: &'t str,
    /// Into the whole.
    offset: usize,
}

const YAML: &str = "resources:\n";
const JSON: (&str, &str) = ("{\"resources\":[", "]}");

impl<'t> Split<'t> {
    /// `None` where the text is not of a form that is cut.
    pub(super) fn of(text: &'t str) -> Option<Self> {
        if text.starts_with('{') { json(text) } else { yaml(text) }
    }

    /// Whether all parts must be JSON: what is only like it may have brackets that mean nothing.
    pub(super) fn json(&self) -> bool {
        self.json
    }

    /// A response with this resource alone.
    pub(super) fn response(&self, item: Item<'_>) -> String {
        let (before, after) = if self.json { JSON } else { (YAML, "") };
        [before, item.text, after].concat()
    }

    /// What was said of an item's own response, as said of the whole text.
    pub(super) fn place(&self, item: Item<'_>, index: usize, mut found: Diagnostic) -> Option<Diagnostic> {
        let start = position(self.text, item.offset);
        if let Some(Position { line, column }) = &mut found.position {
            if self.json {
                let prefix = u32::try_from(JSON.0.len()).ok()?;
                if *line == 1 {
                    *column = (start.column + *column).checked_sub(prefix + 1)?;
                }
                *line += start.line - 1;
            } else {
                *line = (start.line + *line).checked_sub(2)?;
            }
        }
        let mut path = crate::diagnostic::Path::default();
        let mut segments = found.path.segments().iter();
        path.push(segments.next()?.clone());
        let Segment::Index(0) = segments.next()? else { return None };
        path.push(Segment::Index(index));
        for segment in segments {
            path.push(segment.clone());
        }
        found.path = path;
        Some(found)
    }
}

/// A block sequence below a line `resources:`.
fn yaml(text: &str) -> Option<Split<'_>> {
    if text.contains(['\r', '\u{feff}']) {
        return None;
    }
    let start = if text.starts_with(YAML) { 0 } else { text.find("\nresources:\n")? + 1 };
    let body = start + YAML.len();
    let (mut items, mut open, mut indent, mut end) = (Vec::new(), None, None, text.len());
    let mut offset = body;
    for line in text.get(body..)?.split_inclusive('\n') {
        let rest = line.trim_start_matches(' ');
        let depth = line.len() - rest.len();
        let blank = rest.trim_end().is_empty() || rest.starts_with('#');
        if !blank {
            let dash = rest.starts_with("- ") || rest.trim_end() == "-";
            let indent = *indent.get_or_insert(depth);
            if rest.starts_with('\t') || depth < indent && depth > 0 {
                return None;
            }
            if depth == indent && dash {
                items.extend(open.replace(offset).and_then(|from| item(text, from, offset)));
            } else if depth == 0 {
                end = offset;
                break;
            } else if depth == indent || open.is_none() {
                return None;
            }
        }
        offset += line.len();
    }
    items.extend(open.and_then(|from| item(text, from, end)));
    let rest = [text.get(..start)?, "resources: []\n", text.get(end..)?].concat();
    Some(Split { text, json: false, rest, items })
}

fn item(text: &str, from: usize, to: usize) -> Option<Item<'_>> {
    Some(Item { text: text.get(from..to)?, offset: from })
}

/// The elements of the array `resources` of the object that the text is.
fn json(text: &str) -> Option<Split<'_>> {
    let bytes = text.as_bytes();
    let (mut depth, mut at) = (0_usize, 0);
    let (mut key, mut list) = ("", None);
    let (mut items, mut from, mut end) = (Vec::new(), 0, None);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => {
                let close = end_of_string(bytes, at + 1)?;
                if depth == 1 {
                    key = text.get(at + 1..close)?;
                }
                at = close;
            }
            b'[' | b'{' => {
                depth += 1;
                if depth == 2 && *byte == b'[' && key == "resources" && list.replace(at + 1).is_none() {
                    from = at + 1;
                }
            }
            b']' | b'}' => {
                if depth == 2 && list.is_some() && end.is_none() {
                    items.extend(item(text, from, at).and_then(Item::trimmed));
                    end = Some(at);
                }
                depth = depth.checked_sub(1)?;
            }
            b',' if depth == 2 && list.is_some() && end.is_none() => {
                items.push(item(text, from, at)?.trimmed()?);
                from = at + 1;
            }
            b',' if depth == 1 => key = "",
            _ => {}
        }
        at += 1;
    }
    let rest = [text.get(..list?)?, text.get(end?..)?].concat();
    Some(Split { text, json: true, rest, items })
}

/// Where the string that has begun before `at` has its closing quote.
fn end_of_string(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

impl Item<'_> {
    /// Without what is around it; `None` where it is nothing.
    fn trimmed(self) -> Option<Self> {
        let start = self.text.trim_start();
        let offset = self.offset + (self.text.len() - start.len());
        let text = start.trim_end();
        (!text.is_empty()).then_some(Self { text, offset })
    }

    /// Whether it may have to do with what is elsewhere in the text: an anchor, an alias, a tag.
    pub(super) fn refers(self) -> bool {
        let mut before = b' ';
        self.text.bytes().any(|byte| {
            let refers = matches!(byte, b'&' | b'*' | b'!')
                && matches!(before, b' ' | b'\t' | b'\n' | b'[' | b'{' | b',' | b':' | b'-' | b'?');
            before = byte;
            refers
        })
    }
}

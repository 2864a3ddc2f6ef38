//! What is wrong with a configuration, where, and why.

use std::borrow::Cow;
use std::fmt;

/// A place in a configuration: `static_resources.clusters[0].transport_socket.typed_config<UpstreamTlsContext>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(Vec<Segment>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    Field(Cow<'static, str>),
    Index(usize),
    /// Of a protobuf map.
    Key(String),
    /// The type inside an `Any`: its short name.
    Type(String),
}

impl Path {
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }

    pub fn push(&mut self, segment: Segment) {
        self.0.push(segment);
    }

    pub fn pop(&mut self) {
        self.0.pop();
    }

    /// This path with one more field.
    #[must_use]
    pub fn field(&self, name: impl Into<Cow<'static, str>>) -> Self {
        let mut path = self.clone();
        path.push(Segment::Field(name.into()));
        path
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Field(name) if i == 0 => write!(f, "{name}")?,
                Segment::Field(name) => write!(f, ".{name}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Key(key) => write!(f, "[{key:?}]")?,
                Segment::Type(name) => write!(f, "<{name}>")?,
            }
        }
        Ok(())
    }
}

/// Everything that is wrong, as one text.
pub fn problems(found: &[Diagnostic]) -> String {
    let lines: Vec<_> = found.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

/// A line and a column of a text, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Accepted, and not honoured as written.
    Warning,
    /// Refused.
    Error,
}

/// Shown as `line 13:7 at PATH: WHY`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Diagnostic {
    pub severity: Severity,
    /// Where the text is known.
    pub position: Option<Position>,
    pub path: Path,
    pub why: String,
}

impl Diagnostic {
    /// As `--strict` sees it.
    #[must_use]
    pub fn refused(self) -> Self {
        Self { severity: Severity::Error, ..self }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.position {
            Some(Position { line, column }) => write!(f, "line {line}:{column}")?,
            None if self.path.segments().is_empty() => return f.write_str(&self.why),
            None => {}
        }
        if !self.path.segments().is_empty() {
            let at = if self.position.is_some() { " at " } else { "at " };
            write!(f, "{at}{}", self.path)?;
        }
        write!(f, ": {}", self.why)
    }
}

//! YAML into a [`Document`].

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError};

use super::builder::{Builder, Text, too_deep};
use super::document::Document;
use super::problem::{Fatal, Problems};
use crate::diagnostic::Position;

/// The one document of a YAML text. Envoy reads the first of many and says nothing; we refuse the others by name.
pub(super) fn parse(text: &str) -> Result<(Document<'_>, Problems), Fatal> {
    let mut builder = Builder::new(text, false);
    let mut parser = Parser::new_from_str(text);
    // The parser counts characters, which are bytes in ASCII: then scalars can stay where they are.
    let source = text.is_ascii().then_some(text);
    let mut end = Position { line: 1, column: 1 };
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| syntax(&error))?;
        end = place(&span.start);
        match event {
            Event::DocumentStart(_) if builder.roots() > 0 => {
                return Err(Fatal::new(end, "a second document: a configuration is one document"));
            }
            Event::Scalar(content, style, anchor, tag) => {
                let quoted = style != ScalarStyle::Plain
                    || tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
                let at = source.and_then(|text| in_source(text, &span.start, style, &content));
                let at = at.map_or(Text::Copy(&content), |start| Text::At(start, content.len()));
                builder.scalar(at, quoted, end, anchor)?;
            }
            Event::SequenceStart(anchor, _) => builder.open(false, end, anchor)?,
            Event::MappingStart(anchor, _) => builder.open(true, end, anchor)?,
            Event::SequenceEnd | Event::MappingEnd => builder.close()?,
            Event::Alias(anchor) => builder.alias(anchor, end)?,
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => {}
        }
    }
    builder.finish(end)
}

/// Where a scalar's content is in the text, if it is there as it is.
fn in_source(text: &str, start: &Marker, style: ScalarStyle, content: &str) -> Option<usize> {
    let start = match style {
        ScalarStyle::Plain => start.index(),
        ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => start.index() + 1,
        ScalarStyle::Literal | ScalarStyle::Folded => return None,
    };
    text.get(start..start + content.len()).filter(|same| *same == content).map(|_| start)
}

fn syntax(error: &ScanError) -> Fatal {
    // The scanner has a limit of its own, which it may meet first.
    let why = if error.info().contains("recursion limit") { too_deep() } else { error.info().to_owned() };
    Fatal::new(place(error.marker()), why)
}

fn place(marker: &Marker) -> Position {
    let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Position { line: narrow(marker.line()), column: narrow(marker.col() + 1) }
}

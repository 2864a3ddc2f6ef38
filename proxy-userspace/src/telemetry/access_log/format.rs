//! A log format, compiled once.

use proxy_config::format::{Piece, parse};
use proxy_config::model::access_log::{JsonFormat, LogFormat};
use serde_json::{Map, Value as Json};

use super::Error;
use super::operator::Operator;
use super::value::number;
use crate::telemetry::Entry;

/// Envoy's default text format.
const DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// Makes a line of an entry.
#[derive(Debug)]
pub struct Format {
    body: Body,
    omit_empty: bool,
}

#[derive(Debug)]
enum Body {
    Text(Template),
    Json(Node),
}

impl Format {
    pub fn new(model: &LogFormat) -> Result<Self, Error> {
        let (body, omit_empty) = match model {
            LogFormat::Default => (Body::Text(Template::new(DEFAULT)?), false),
            LogFormat::Text { format, omit_empty_values } => {
                (Body::Text(Template::new(format)?), *omit_empty_values)
            }
            LogFormat::Json { format, omit_empty_values } => {
                (Body::Json(Node::new(format)?), *omit_empty_values)
            }
        };
        Ok(Self { body, omit_empty })
    }

    /// As text, without an end of line of its own.
    pub fn text(&self, entry: &Entry) -> String {
        match &self.body {
            Body::Text(template) => template.render(entry, self.omit_empty),
            Body::Json(node) => node.render(entry, self.omit_empty).unwrap_or_default().to_string(),
        }
    }

    /// The bytes to write: a text format brings its own end of line, JSON gets one.
    pub fn line(&self, entry: &Entry) -> Vec<u8> {
        let mut line = String::new();
        self.write_line(entry, &mut line);
        line.into_bytes()
    }

    /// As [`Self::line`], behind what is there.
    pub(super) fn write_line(&self, entry: &Entry, out: &mut String) {
        match &self.body {
            Body::Text(template) => template.write(entry, self.omit_empty, out),
            Body::Json(node) => {
                let json = node.render(entry, self.omit_empty).unwrap_or_else(|| Json::Object(Map::new()));
                out.push_str(&json.to_string());
                out.push('\n');
            }
        }
    }
}

/// A text with operators, of headers, paths and hosts. What has no value is empty there, as in Envoy.
#[derive(Debug)]
pub struct Text(Template);

impl Text {
    pub fn new(model: &proxy_config::model::http::Format) -> Result<Self, Error> {
        Template::new(model.as_str()).map(Self)
    }

    /// The whole text where no operator is in it.
    pub fn constant(&self) -> Option<String> {
        let mut all = String::new();
        for part in &self.0.0 {
            match part {
                Part::Text(text) => all.push_str(text),
                Part::Operator { .. } => return None,
            }
        }
        Some(all)
    }

    pub fn render(&self, entry: &Entry) -> String {
        self.0.render(entry, true)
    }

    /// With `-` for what has no value, as in logs.
    pub fn render_dashes(&self, entry: &Entry) -> String {
        self.0.render(entry, false)
    }
}

/// Text and operators.
#[derive(Debug)]
struct Template(Vec<Part>);

#[derive(Debug)]
enum Part {
    Text(Box<str>),
    Operator { operator: Operator, max_len: Option<usize> },
}

impl Template {
    fn new(format: &str) -> Result<Self, Error> {
        let mut parts: Vec<Part> = Vec::new();
        for piece in parse(format).map_err(Error::Format)? {
            match piece {
                Piece::Text(text) => parts.push(Part::Text(text.into())),
                Piece::Operator { name, argument, max_len } => {
                    let operator = Operator::new(name, argument).map_err(Error::Format)?;
                    parts.push(Part::Operator { operator, max_len });
                }
            }
        }
        Ok(Self(parts))
    }

    fn render(&self, entry: &Entry, omit_empty: bool) -> String {
        let mut out = String::with_capacity(256);
        self.write(entry, omit_empty, &mut out);
        out
    }

    fn write(&self, entry: &Entry, omit_empty: bool, out: &mut String) {
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Operator { operator, max_len } => {
                    let start = out.len();
                    if !operator.write(entry, out) && !omit_empty {
                        out.push('-');
                    }
                    if let Some(max) = max_len {
                        let kept = truncated(&out[start..], *max).len();
                        out.truncate(start + kept);
                    }
                }
            }
        }
    }

    /// The value of a template that is one operator keeps its type.
    fn json(&self, entry: &Entry, omit_empty: bool) -> Option<Json> {
        let [Part::Operator { operator, max_len }] = self.0.as_slice() else {
            return Some(Json::String(self.render(entry, omit_empty)));
        };
        let value = operator.value(entry).into_json();
        match (value, max_len) {
            (Some(Json::String(text)), Some(max)) => Some(Json::String(truncated(&text, *max).to_owned())),
            (value, _) => value,
        }
    }
}

/// At most `max` bytes, and no half character.
fn truncated(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let end = (0..=max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

/// A part of a JSON format.
#[derive(Debug)]
enum Node {
    Fixed(Json),
    Template(Template),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
}

impl Node {
    fn new(model: &JsonFormat) -> Result<Self, Error> {
        Ok(match model {
            JsonFormat::Null => Self::Fixed(Json::Null),
            JsonFormat::Bool(b) => Self::Fixed(Json::Bool(*b)),
            JsonFormat::Number(n) => Self::Fixed(number(*n)),
            JsonFormat::Text(text) => Self::Template(Template::new(text)?),
            JsonFormat::List(list) => Self::List(list.iter().map(Self::new).collect::<Result<_, _>>()?),
            JsonFormat::Object(fields) => Self::Object(
                fields
                    .iter()
                    .map(|(key, node)| Ok((key.clone(), Self::new(node)?)))
                    .collect::<Result<_, Error>>()?,
            ),
        })
    }

    /// `None` where it is to be left out: only if empty values are, and then an object of nothing but these too.
    fn render(&self, entry: &Entry, omit_empty: bool) -> Option<Json> {
        let missing = || (!omit_empty).then_some(Json::Null);
        match self {
            Self::Fixed(Json::Null) => missing(),
            Self::Fixed(json) => Some(json.clone()),
            Self::Template(template) => template.json(entry, omit_empty).or_else(missing),
            Self::List(list) => {
                Some(Json::Array(list.iter().filter_map(|n| n.render(entry, omit_empty)).collect()))
            }
            Self::Object(fields) => {
                let kept = fields.iter().filter_map(|(k, n)| Some((k.clone(), n.render(entry, omit_empty)?)));
                let object: Map<_, _> = kept.collect();
                (!object.is_empty() || !omit_empty).then_some(Json::Object(object))
            }
        }
    }
}

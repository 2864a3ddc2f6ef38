//! Access loggers. Formats stay text here: the daemon compiles their command operators, after
//! [`crate::format::check`] has refused what cannot be.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::FractionalPercent;
use super::http::HeaderMatcher;
use super::matcher::MetadataMatcher;

#[derive(Clone, Debug, PartialEq)]
pub struct AccessLog {
    pub filter: Option<AccessLogFilter>,
    pub sink: LogSink,
    pub format: LogFormat,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogSink {
    File(PathBuf),
    Stdout,
    Stderr,
}

#[derive(Clone, Debug, PartialEq)]
pub enum LogFormat {
    /// Envoy's default text format.
    Default,
    Text {
        format: Arc<str>,
        omit_empty_values: bool,
    },
    /// One object, its keys sorted.
    Json {
        format: JsonFormat,
        omit_empty_values: bool,
    },
}

impl LogFormat {
    /// Some text or operator has this in it.
    pub fn mentions(&self, what: &str) -> bool {
        match self {
            Self::Default => false,
            Self::Text { format, .. } => format.contains(what),
            Self::Json { format, .. } => format.mentions(what),
        }
    }
}

/// `json_format`: operators in the strings. A string that is one operator takes the type of its value.
#[derive(Clone, Debug, PartialEq)]
pub enum JsonFormat {
    Null,
    Bool(bool),
    Number(f64),
    Text(Arc<str>),
    List(Vec<JsonFormat>),
    Object(BTreeMap<String, JsonFormat>),
}

impl JsonFormat {
    fn mentions(&self, what: &str) -> bool {
        match self {
            Self::Null | Self::Bool(_) | Self::Number(_) => false,
            Self::Text(text) => text.contains(what),
            Self::List(list) => list.iter().any(|node| node.mentions(what)),
            Self::Object(fields) => fields.values().any(|node| node.mentions(what)),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum AccessLogFilter {
    StatusCode(Comparison),
    /// In milliseconds.
    Duration(Comparison),
    NotHealthCheck,
    Traceable,
    Runtime {
        percent: FractionalPercent,
    },
    And(Vec<AccessLogFilter>),
    Or(Vec<AccessLogFilter>),
    /// Any of these; none listed: any at all.
    ResponseFlag(Vec<String>),
    Metadata {
        matcher: MetadataMatcher,
        match_if_key_not_found: bool,
    },
    LogType {
        types: Vec<String>,
        exclude: bool,
    },
    /// Of the request.
    Header(HeaderMatcher),
    /// By number.
    GrpcStatus {
        statuses: Vec<u32>,
        exclude: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    pub op: ComparisonOp,
    pub value: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComparisonOp {
    Equal,
    AtLeast,
    AtMost,
    NotEqual,
}

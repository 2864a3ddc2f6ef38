//! `AccessLogFilter`: which connections get a line.

use std::time::Duration;

use proxy_config::model::access_log::{AccessLogFilter, Comparison, ComparisonOp};
use proxy_config::model::http::HeaderMatcher;
use proxy_config::model::matcher::MetadataMatcher;
use proxy_config::model::metadata::Value;

use super::http::grpc_or_http;
use crate::telemetry::{Entry, Flags};

#[derive(Debug)]
pub(super) enum Filter {
    NotHealthCheck,
    Traceable,
    Header(HeaderMatcher),
    GrpcStatus { codes: Vec<u32>, exclude: bool },
    StatusCode(Comparison),
    Duration(Comparison),
    Runtime { numerator: u32, denominator: u32 },
    And(Vec<Filter>),
    Or(Vec<Filter>),
    AnyFlag,
    Flags(Vec<Flags>),
    Metadata { matcher: MetadataMatcher, if_absent: bool },
    LogType { types: Vec<String>, exclude: bool },
}

impl Filter {
    pub(super) fn new(model: &AccessLogFilter) -> Self {
        match model {
            AccessLogFilter::StatusCode(comparison) => Self::StatusCode(*comparison),
            AccessLogFilter::Duration(comparison) => Self::Duration(*comparison),
            AccessLogFilter::NotHealthCheck => Self::NotHealthCheck,
            AccessLogFilter::Traceable => Self::Traceable,
            AccessLogFilter::Runtime { percent } => {
                Self::Runtime { numerator: percent.numerator, denominator: percent.denominator }
            }
            AccessLogFilter::And(all) => Self::And(all.iter().map(Self::new).collect()),
            AccessLogFilter::Or(any) => Self::Or(any.iter().map(Self::new).collect()),
            AccessLogFilter::ResponseFlag(names) if names.is_empty() => Self::AnyFlag,
            AccessLogFilter::ResponseFlag(names) => Self::Flags(
                Flags::ALL
                    .iter()
                    .filter(|flag| names.iter().any(|n| n == flag.1))
                    .map(|flag| flag.0)
                    .collect(),
            ),
            AccessLogFilter::Metadata { matcher, match_if_key_not_found } => {
                Self::Metadata { matcher: matcher.clone(), if_absent: *match_if_key_not_found }
            }
            // A TCP connection has no headers, and no gRPC status.
            AccessLogFilter::Header(matcher) => Self::Header(matcher.clone()),
            AccessLogFilter::GrpcStatus { statuses, exclude } => {
                Self::GrpcStatus { codes: statuses.clone(), exclude: *exclude }
            }
            AccessLogFilter::LogType { types, exclude } => {
                Self::LogType { types: types.clone(), exclude: *exclude }
            }
        }
    }

    pub(super) fn accepts(&self, entry: &Entry) -> bool {
        let flags = entry.outcome.flags;
        match self {
            // A TCP connection is not a health check, and it has no trace.
            Self::NotHealthCheck => entry.http.as_ref().is_none_or(|http| !http.health_check),
            Self::Traceable => entry.http.as_ref().is_some_and(|http| http.traced),
            // TCP has no status: Envoy compares 0.
            Self::StatusCode(comparison) => {
                compare(*comparison, entry.http.as_ref().map_or(0, |http| http.response_code().into()))
            }
            Self::Header(matcher) => {
                let value = entry.http.as_ref().and_then(|http| http.request.header(&matcher.name));
                matcher.is_match(value.as_deref().map(String::from_utf8_lossy).as_deref())
            }
            Self::GrpcStatus { codes, exclude } => {
                let code = entry.http.as_deref().and_then(grpc_or_http);
                code.is_some_and(|code| codes.contains(&code)) != *exclude
            }
            Self::Duration(comparison) => compare(*comparison, millis(entry.duration)),
            Self::Runtime { numerator, denominator } => {
                *denominator > 0 && rand::random_range(0..*denominator) < *numerator
            }
            Self::And(all) => all.iter().all(|f| f.accepts(entry)),
            Self::Or(any) => any.iter().any(|f| f.accepts(entry)),
            Self::AnyFlag => !flags.is_empty(),
            Self::Flags(any) => any.iter().any(|flag| flags.contains(*flag)),
            Self::Metadata { matcher, if_absent } => metadata(entry, matcher, *if_absent),
            Self::LogType { types, exclude } => {
                types.iter().any(|name| name == entry.log_type.name()) != *exclude
            }
        }
    }
}

fn compare(comparison: Comparison, value: u64) -> bool {
    let limit = u64::from(comparison.value);
    match comparison.op {
        ComparisonOp::Equal => value == limit,
        ComparisonOp::AtLeast => value >= limit,
        ComparisonOp::AtMost => value <= limit,
        ComparisonOp::NotEqual => value != limit,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn metadata(entry: &Entry, matcher: &MetadataMatcher, if_absent: bool) -> bool {
    let stream = entry.http.as_deref().map(|http| &http.dynamic_metadata);
    let of_stream = stream.filter(|metadata| metadata.of(&matcher.filter).is_some());
    let of_connection = entry.facts.extra.as_deref().map(|extra| &extra.dynamic_metadata);
    let dynamic = of_stream.or(of_connection);
    let mut value: Option<&Value> = None;
    let mut fields = dynamic.and_then(|m| m.of(&matcher.filter));
    for key in &matcher.path {
        value = fields.and_then(|fields| fields.get(key));
        fields = match value {
            Some(Value::Struct(inner)) => Some(inner),
            Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::List(_))
            | None => None,
        };
    }
    match value {
        // Envoy takes a null for an absent key.
        None | Some(Value::Null) => if_absent,
        Some(_) => matcher.value.is_match(value) != matcher.invert,
    }
}

//! What a request counts as, by the rate limits of its route.

use std::net::IpAddr;

use proxy_config::model::Metadata;
use proxy_config::model::address::Cidr;
use proxy_config::model::http::action::{MetadataSource, RateLimit, RateLimitAction};
use proxy_config::model::http::route_match::{QueryParameterMatch, QueryParameterMatcher};
use proxy_config::model::metadata::Value;

use crate::http::filters::common::matches;
use crate::http::{RequestHead, Routed, Stream};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub(super) entries: Vec<(String, String)>,
    pub(super) hits: u64,
}

/// What one action finds.
enum Found {
    Entry(String, String),
    /// The descriptor goes without it.
    Nothing,
    /// There is no descriptor.
    Fails,
}

pub(super) fn of(
    limits: &[RateLimit],
    stage: u32,
    stream: &Stream,
    route: Option<&Routed>,
    local_cluster: &str,
) -> Vec<Descriptor> {
    // The key would turn it off by runtime, which Envoy does not ask here: it is off.
    let limits = limits.iter().filter(|limit| limit.stage == stage && limit.disable_key.is_empty());
    let one = |limit: &RateLimit| {
        let mut entries = Vec::new();
        for action in &limit.actions {
            match find(action, stream, route, local_cluster) {
                Found::Entry(key, value) => entries.push((key, value)),
                Found::Nothing => {}
                Found::Fails => return None,
            }
        }
        (!entries.is_empty()).then(|| Descriptor { entries, hits: limit.hits_addend.unwrap_or(1) })
    };
    limits.filter(|limit| !limit.apply_on_stream_done).filter_map(one).collect()
}

fn find(action: &RateLimitAction, stream: &Stream, route: Option<&Routed>, local_cluster: &str) -> Found {
    let head = stream.request();
    let entry = |key: &str, value: &str| Found::Entry(key.to_owned(), value.to_owned());
    match action {
        RateLimitAction::SourceCluster => entry("source_cluster", local_cluster),
        RateLimitAction::DestinationCluster => match route.and_then(|route| route.cluster(head)) {
            Some(cluster) => entry("destination_cluster", &cluster),
            None => Found::Fails,
        },
        RateLimitAction::RequestHeader { name, key, skip_if_absent } => {
            let value = head.header(name).map(|value| String::from_utf8_lossy(&value).into_owned());
            present(key, value, *skip_if_absent)
        }
        RateLimitAction::QueryParameter { name, key, skip_if_absent } => {
            present(key, parameter(head, name).map(str::to_owned), *skip_if_absent)
        }
        RateLimitAction::RemoteAddress => entry("remote_address", &remote(stream).to_string()),
        RateLimitAction::MaskedRemoteAddress { v4_prefix, v6_prefix } => {
            let address = remote(stream);
            let prefix = if address.is_ipv4() { *v4_prefix } else { *v6_prefix };
            match Cidr::new(address, prefix) {
                Some(range) => entry("masked_remote_address", &format!("{}/{prefix}", range.address)),
                None => Found::Fails,
            }
        }
        RateLimitAction::GenericKey { key, value } => entry(key, value),
        RateLimitAction::HeaderValueMatch { key, value, expect_match, headers } => {
            let found = headers.iter().all(|matcher| matches(matcher, head));
            if found == *expect_match { entry(key, value) } else { Found::Fails }
        }
        RateLimitAction::QueryParameterValueMatch { key, value, expect_match, parameters } => {
            let found = parameters.iter().all(|matcher| has_parameter(matcher, head));
            if found == *expect_match { entry(key, value) } else { Found::Fails }
        }
        RateLimitAction::Metadata { key, source, filter, path, default, skip_if_absent } => {
            let metadata = match source {
                MetadataSource::Dynamic => Some(&stream.http().dynamic_metadata),
                MetadataSource::Route => stream.http().route_metadata.as_deref(),
                MetadataSource::Cluster | MetadataSource::Host => None,
            };
            let found = metadata.and_then(|metadata| text_at(metadata, filter, path));
            let default = (!default.is_empty()).then(|| default.to_string());
            present(key, found.or(default), *skip_if_absent)
        }
    }
}

fn present(key: &str, value: Option<String>, skip_if_absent: bool) -> Found {
    match value.filter(|value| !value.is_empty()) {
        Some(value) => Found::Entry(key.to_owned(), value),
        None if skip_if_absent => Found::Nothing,
        None => Found::Fails,
    }
}

fn remote(stream: &Stream) -> IpAddr {
    stream.entry.facts.remote.ip()
}

fn parameter<'a>(head: &'a RequestHead, name: &str) -> Option<&'a str> {
    let mut parts = head.query()?.split('&').map(|part| part.split_once('=').unwrap_or((part, "")));
    parts.find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn has_parameter(matcher: &QueryParameterMatcher, head: &RequestHead) -> bool {
    let value = parameter(head, &matcher.name);
    match &matcher.matches {
        QueryParameterMatch::Present(wanted) => value.is_some() == *wanted,
        QueryParameterMatch::String(text) => value.is_some_and(|value| text.is_match(value)),
    }
}

fn text_at(metadata: &Metadata, filter: &str, path: &[std::sync::Arc<str>]) -> Option<String> {
    let mut fields = metadata.of(filter)?;
    let (last, path) = path.split_last()?;
    for key in path {
        let Value::Struct(inner) = fields.get(key)? else { return None };
        fields = inner;
    }
    let Value::String(text) = fields.get(last)? else { return None };
    Some(text.clone())
}

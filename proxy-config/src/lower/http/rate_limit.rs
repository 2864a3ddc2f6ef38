//! `config.route.v3.RateLimit`: which descriptors a request has.

use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::r#type::metadata::v3 as metadata;
use pb::rate_limit::action::{self, ActionSpecifier};

use super::header::header_name;
use crate::lower::Cx;
use crate::lower::registry::registry;
use crate::lower::value::{flag, number};
use crate::model::http::action::{MetadataSource, RateLimit, RateLimitAction};

registry! {
    pb::RateLimit, pb::rate_limit::Action, action::RequestHeaders, action::QueryParameters,
    action::MaskedRemoteAddress, action::GenericKey, action::HeaderValueMatch, action::QueryParameterValueMatch,
    action::DynamicMetaData, action::MetaData, pb::rate_limit::HitsAddend, metadata::MetadataKey,
    metadata::metadata_key::PathSegment,
}

lower! { "envoy.config.route.v3.RateLimit" pb::RateLimit => RateLimit, cx;
    read { stage, disable_key, actions, hits_addend, apply_on_stream_done }
    reject {
        limit: "overriding the limit of a rate limit service is not implemented",
    }
    warn {
        x_ratelimit_option: "the headers of all limits are those that the filter says",
    }
    {
        let stage = cx.ranged("stage", number(stage).unwrap_or(0), 0..=10);
        if actions.is_empty() {
            cx.reject("actions", "must have at least one");
        }
        Some(RateLimit {
            stage: stage?,
            disable_key: disable_key.into(),
            actions: cx.list("actions", actions),
            hits_addend: hits_addend.and_then(|addend| cx.lower("hits_addend", addend)).flatten(),
            apply_on_stream_done,
        })
    }
}

lower! { "envoy.config.route.v3.RateLimit.HitsAddend" pb::rate_limit::HitsAddend => Option<u64>, cx;
    read { number }
    reject {
        format: "a number of hits that a format gives is not implemented",
        is_negative_hits: "giving hits back is not implemented",
    }
    {
        Some(number.and_then(|number| cx.ranged("number", number.value, 0..=1_000_000_000)))
    }
}

lower! { "envoy.config.route.v3.RateLimit.Action" pb::rate_limit::Action => RateLimitAction, cx;
    read { action_specifier }
    {
        let why = "this descriptor is not implemented";
        let field = match action_specifier {
            Some(ActionSpecifier::SourceCluster(action::SourceCluster {})) => {
                return Some(RateLimitAction::SourceCluster);
            }
            Some(ActionSpecifier::DestinationCluster(action::DestinationCluster {})) => {
                return Some(RateLimitAction::DestinationCluster);
            }
            Some(ActionSpecifier::RemoteAddress(action::RemoteAddress {})) => {
                return Some(RateLimitAction::RemoteAddress);
            }
            Some(ActionSpecifier::RequestHeaders(a)) => return cx.lower("request_headers", a),
            Some(ActionSpecifier::QueryParameters(a)) => return cx.lower("query_parameters", a),
            Some(ActionSpecifier::GenericKey(a)) => return cx.lower("generic_key", a),
            Some(ActionSpecifier::HeaderValueMatch(a)) => return cx.lower("header_value_match", a),
            Some(ActionSpecifier::DynamicMetadata(a)) => return cx.lower("dynamic_metadata", a),
            Some(ActionSpecifier::Metadata(a)) => return cx.lower("metadata", a),
            Some(ActionSpecifier::MaskedRemoteAddress(a)) => return cx.lower("masked_remote_address", a),
            Some(ActionSpecifier::QueryParameterValueMatch(a)) => {
                return cx.lower("query_parameter_value_match", a);
            }
            Some(ActionSpecifier::Extension(_)) => "extension",
            Some(ActionSpecifier::RemoteAddressMatch(_)) => "remote_address_match",
            None => {
                cx.reject("action_specifier", "is required");
                return None;
            }
        };
        cx.reject(field, why);
        None
    }
}

lower! { "envoy.config.route.v3.RateLimit.Action.RequestHeaders" action::RequestHeaders => RateLimitAction, cx;
    read { header_name, descriptor_key, skip_if_absent }
    {
        let name = self::header_name(cx, "header_name", &header_name);
        let key: Option<Arc<str>> = cx.name("descriptor_key", descriptor_key);
        Some(RateLimitAction::RequestHeader { name: name?, key: key?, skip_if_absent })
    }
}

lower! { "envoy.config.route.v3.RateLimit.Action.QueryParameters" action::QueryParameters => RateLimitAction, cx;
    read { query_parameter_name, descriptor_key, skip_if_absent }
    {
        let name: Option<Arc<str>> = cx.name("query_parameter_name", query_parameter_name);
        let key: Option<Arc<str>> = cx.name("descriptor_key", descriptor_key);
        Some(RateLimitAction::QueryParameter { name: name?, key: key?, skip_if_absent })
    }
}

lower! { "envoy.config.route.v3.RateLimit.Action.MaskedRemoteAddress"
    action::MaskedRemoteAddress => RateLimitAction, cx;
    read { v4_prefix_mask_len, v6_prefix_mask_len }
    {
        let v4 = cx.ranged("v4_prefix_mask_len", number(v4_prefix_mask_len).unwrap_or(32), 0..=32)?;
        let v6 = cx.ranged("v6_prefix_mask_len", number(v6_prefix_mask_len).unwrap_or(128), 0..=128)?;
        Some(RateLimitAction::MaskedRemoteAddress {
            v4_prefix: u8::try_from(v4).ok()?,
            v6_prefix: u8::try_from(v6).ok()?,
        })
    }
}

/// Envoy's own key where none is given.
fn key_or(key: String, default: &str) -> Arc<str> {
    if key.is_empty() { default.into() } else { key.into() }
}

const FORMATTED: &str = "is for values with formats, which are not implemented here";

/// Values may be formats since 1.36: one with an operator is refused, one with `%%` is not a plain text either.
fn value(cx: &mut Cx, value: String) -> Option<Arc<str>> {
    if value.contains('%') {
        cx.reject("descriptor_value", "formats are not implemented here");
    }
    cx.name("descriptor_value", value)
}

lower! { "envoy.config.route.v3.RateLimit.Action.GenericKey" action::GenericKey => RateLimitAction, cx;
    read { descriptor_value, descriptor_key }
    warn { default_value: FORMATTED }
    {
        let value = value(cx, descriptor_value)?;
        Some(RateLimitAction::GenericKey { key: key_or(descriptor_key, "generic_key"), value })
    }
}

lower! { "envoy.config.route.v3.RateLimit.Action.HeaderValueMatch"
    action::HeaderValueMatch => RateLimitAction, cx;
    read { descriptor_value, descriptor_key, expect_match, headers }
    warn { default_value: FORMATTED }
    {
        if headers.is_empty() {
            cx.reject("headers", "must have at least one");
        }
        let headers = cx.list("headers", headers);
        Some(RateLimitAction::HeaderValueMatch {
            key: key_or(descriptor_key, "header_match"),
            value: value(cx, descriptor_value)?,
            expect_match: flag(expect_match, true),
            headers,
        })
    }
}

lower! { "envoy.config.route.v3.RateLimit.Action.QueryParameterValueMatch"
    action::QueryParameterValueMatch => RateLimitAction, cx;
    read { descriptor_value, descriptor_key, expect_match, query_parameters }
    warn { default_value: FORMATTED }
    {
        if query_parameters.is_empty() {
            cx.reject("query_parameters", "must have at least one");
        }
        let parameters = cx.list("query_parameters", query_parameters);
        Some(RateLimitAction::QueryParameterValueMatch {
            key: key_or(descriptor_key, "query_match"),
            value: value(cx, descriptor_value)?,
            expect_match: flag(expect_match, true),
            parameters,
        })
    }
}

lower! { "envoy.config.route.v3.RateLimit.Action.DynamicMetaData" action::DynamicMetaData => RateLimitAction, cx;
    read { descriptor_key, metadata_key, default_value }
    {
        let key: Option<Arc<str>> = cx.name("descriptor_key", descriptor_key);
        let (filter, path) = cx.required("metadata_key", metadata_key)?;
        Some(RateLimitAction::Metadata {
            key: key?,
            source: MetadataSource::Dynamic,
            filter,
            path,
            default: default_value.into(),
            skip_if_absent: false,
        })
    }
}

lower! { "envoy.config.route.v3.RateLimit.Action.MetaData" action::MetaData => RateLimitAction, cx;
    read { descriptor_key, metadata_key, default_value, source, skip_if_absent }
    {
        use action::meta_data::Source;
        let key: Option<Arc<str>> = cx.name("descriptor_key", descriptor_key);
        let source = match cx.variant("source", source)? {
            Source::Dynamic => MetadataSource::Dynamic,
            Source::RouteEntry => MetadataSource::Route,
            Source::ClusterEntry => MetadataSource::Cluster,
            Source::ClusterLocalityEntry => {
                cx.reject("source", "CLUSTER_LOCALITY_ENTRY: localities have no metadata here");
                return None;
            }
        };
        let (filter, path) = cx.required("metadata_key", metadata_key)?;
        Some(RateLimitAction::Metadata {
            key: key?,
            source,
            filter,
            path,
            default: default_value.into(),
            skip_if_absent,
        })
    }
}

lower! { "envoy.type.metadata.v3.MetadataKey" metadata::MetadataKey => (Arc<str>, Vec<Arc<str>>), cx;
    read { key, path }
    {
        let key: Option<Arc<str>> = cx.name("key", key);
        Some((key?, cx.list("path", path)))
    }
}

lower! { "envoy.type.metadata.v3.MetadataKey.PathSegment" metadata::metadata_key::PathSegment => Arc<str>, cx;
    read { segment }
    {
        match segment {
            Some(metadata::metadata_key::path_segment::Segment::Key(key)) => cx.name("key", key),
            Some(metadata::metadata_key::path_segment::Segment::Index(_)) => {
                cx.reject("index", "places in lists are not implemented: use key");
                None
            }
            None => {
                cx.reject("segment", "key is required");
                None
            }
        }
    }
}

//! Listener filters, and the predicate that turns one off.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{ProxyProtocolPassThroughTlVs, proxy_protocol_config};
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::listener as ext;
use envoy_types::pb::envoy::r#type::v3 as pb_type;

use super::registry::registry;
use super::value::number;
use super::{Cx, Lower, extension};
use crate::model::listener_filter::{
    ListenerFilter, ListenerFilterConfig, LocalRateLimit, OriginalSrc, PassThroughTlvs, Predicate,
    ProxyProtocol, TlsInspector, TlvRule, TokenBucket,
};

registry! {
    pb::ListenerFilter, pb::ListenerFilterChainMatchPredicate, pb::listener_filter_chain_match_predicate::MatchSet,
    pb_type::Int32Range, pb_type::TokenBucket, ext::original_dst::v3::OriginalDst,
    ext::tls_inspector::v3::TlsInspector, ext::http_inspector::v3::HttpInspector,
    ext::proxy_protocol::v3::ProxyProtocol, ext::proxy_protocol::v3::proxy_protocol::Rule,
    ext::proxy_protocol::v3::proxy_protocol::KeyValuePair, ProxyProtocolPassThroughTlVs,
    ext::original_src::v3::OriginalSrc, ext::local_ratelimit::v3::LocalRateLimit,
}

lower! { "envoy.config.listener.v3.ListenerFilter" pb::ListenerFilter => ListenerFilterConfig, cx;
    read { name, filter_disabled, config_type }
    {
        use pb::listener_filter::ConfigType;
        let name = cx.name("name", name)?;
        let given = filter_disabled.is_some();
        let filter_disabled = filter_disabled.and_then(|predicate| cx.lower("filter_disabled", predicate));
        let any = match config_type {
            Some(ConfigType::TypedConfig(any)) => Some(any),
            Some(ConfigType::ConfigDiscovery(_)) => {
                cx.reject("config_discovery", "the discovery of listener filters is not implemented");
                return None;
            }
            None => None,
        };
        let filter = extension::listener_filter(cx, &name, any)?;
        (given == filter_disabled.is_some()).then_some(ListenerFilterConfig { name, filter_disabled, filter })
    }
}

lower! { "envoy.config.listener.v3.ListenerFilterChainMatchPredicate"
    pb::ListenerFilterChainMatchPredicate => Predicate, cx;
    read { rule }
    {
        use pb::listener_filter_chain_match_predicate::Rule;
        match rule {
            Some(Rule::OrMatch(set)) => cx.lower("or_match", set).map(Predicate::Or),
            Some(Rule::AndMatch(set)) => cx.lower("and_match", set).map(Predicate::And),
            Some(Rule::NotMatch(not)) => cx.lower("not_match", *not).map(Box::new).map(Predicate::Not),
            Some(Rule::AnyMatch(true)) => Some(Predicate::Any),
            Some(Rule::AnyMatch(false)) => {
                cx.reject("any_match", "must be true");
                None
            }
            Some(Rule::DestinationPortRange(range)) => {
                let (start, end) = cx.lower("destination_port_range", range)?;
                Some(Predicate::DestinationPort(start, end))
            }
            None => {
                cx.reject("rule", "is required");
                None
            }
        }
    }
}

lower! { "envoy.config.listener.v3.ListenerFilterChainMatchPredicate.MatchSet"
    pb::listener_filter_chain_match_predicate::MatchSet => Vec<Predicate>, cx;
    read { rules }
    {
        if rules.len() < 2 {
            cx.reject("rules", "must have at least two");
        }
        all(cx, "rules", rules)
    }
}

// Of ports, in every place where we read it.
lower! { "envoy.type.v3.Int32Range" pb_type::Int32Range => (u32, u32), cx;
    read { start, end }
    {
        let start = u32::try_from(start).ok().or_else(|| negative(cx, "start"));
        let end = u32::try_from(end).ok().or_else(|| negative(cx, "end"));
        Some((start?, end?))
    }
}

fn negative(cx: &mut Cx, field: &'static str) -> Option<u32> {
    cx.reject(field, "must not be negative");
    None
}

lower! { "envoy.extensions.filters.listener.original_dst.v3.OriginalDst"
    ext::original_dst::v3::OriginalDst => ListenerFilter, cx;
    read {}
    {
        let _ = cx;
        Some(ListenerFilter::OriginalDst)
    }
}

lower! { "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"
    ext::http_inspector::v3::HttpInspector => ListenerFilter, cx;
    read {}
    {
        let _ = cx;
        Some(ListenerFilter::HttpInspector)
    }
}

impl Default for TlsInspector {
    fn default() -> Self {
        Self { max_client_hello_size: 16 * 1024, close_connection_on_client_hello_parsing_errors: false }
    }
}

lower! { "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
    ext::tls_inspector::v3::TlsInspector => ListenerFilter, cx;
    read { close_connection_on_client_hello_parsing_errors, max_client_hello_size }
    warn {
        initial_read_buffer_size: "a hello is read where the kernel holds it: no buffer grows",
        enable_ja3_fingerprinting: "JA3 fingerprints are not implemented: they are logged as absent",
        enable_ja4_fingerprinting: "JA4 fingerprints are not implemented: they are logged as absent",
    }
    {
        let default = TlsInspector::default();
        let max = number(max_client_hello_size).unwrap_or(default.max_client_hello_size);
        let max = cx.ranged("max_client_hello_size", max, 256..=16_384);
        if let Some(initial) = number(initial_read_buffer_size) {
            cx.ranged("initial_read_buffer_size", initial, 256..=65_536);
        }
        Some(ListenerFilter::TlsInspector(TlsInspector {
            max_client_hello_size: max?,
            close_connection_on_client_hello_parsing_errors,
        }))
    }
}

lower! { "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"
    ext::proxy_protocol::v3::ProxyProtocol => ListenerFilter, cx;
    read { rules, allow_requests_without_proxy_protocol, pass_through_tlvs, disallowed_versions, stat_prefix }
    warn { tlv_location: "TLVs are kept as dynamic metadata" }
    {
        use proxy_protocol_config::Version;
        let disallowed: Vec<_> = disallowed_versions.into_iter().map(Version::try_from).collect();
        if disallowed.iter().any(Result::is_err) {
            cx.reject("disallowed_versions", "V1 and V2 are the versions");
        }
        if disallowed.contains(&Ok(Version::V1)) && disallowed.contains(&Ok(Version::V2)) {
            cx.reject("disallowed_versions", "all versions of the protocol are disallowed");
        }
        let pass_through_tlvs = pass_through_tlvs.and_then(|tlvs| cx.lower("pass_through_tlvs", tlvs));
        Some(ListenerFilter::ProxyProtocol(ProxyProtocol {
            rules: cx.list("rules", rules).into_iter().flatten().collect(),
            allow_requests_without_proxy_protocol,
            pass_through_tlvs: pass_through_tlvs.unwrap_or_default(),
            disallow_v1: disallowed.contains(&Ok(Version::V1)),
            disallow_v2: disallowed.contains(&Ok(Version::V2)),
            stat_prefix: stat_prefix.into(),
        }))
    }
}

lower! { "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol.Rule"
    ext::proxy_protocol::v3::proxy_protocol::Rule => Option<TlvRule>, cx;
    read { tlv_type, on_tlv_present }
    {
        let tlv_type = cx.ranged("tlv_type", tlv_type, 0..=255).and_then(|t| u8::try_from(t).ok());
        let pair = on_tlv_present.map(|pair| cx.lower("on_tlv_present", pair));
        let tlv_type = tlv_type?;
        match pair {
            Some(pair) => pair.map(|(metadata_namespace, key)| Some(TlvRule { tlv_type, metadata_namespace, key })),
            None => {
                cx.warn("tlv_type", "has no effect without on_tlv_present");
                Some(None)
            }
        }
    }
}

lower! { "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol.KeyValuePair"
    ext::proxy_protocol::v3::proxy_protocol::KeyValuePair => (String, String), cx;
    read { metadata_namespace, key }
    warn { value_string_encoding: "values are kept as sanitized UTF-8" }
    {
        let namespace = match metadata_namespace.as_str() {
            "" => "envoy.filters.listener.proxy_protocol".to_owned(),
            _ => metadata_namespace,
        };
        Some((namespace, cx.non_empty("key", key)?))
    }
}

lower! { "envoy.config.core.v3.ProxyProtocolPassThroughTLVs" ProxyProtocolPassThroughTlVs => PassThroughTlvs, cx;
    read { match_type, tlv_type }
    {
        use envoy_types::pb::envoy::config::core::v3::proxy_protocol_pass_through_tl_vs::PassTlVsMatchType;
        let types: Vec<u8> = tlv_type.iter().filter_map(|t| u8::try_from(*t).ok()).collect();
        if types.len() != tlv_type.len() {
            cx.reject("tlv_type", "must be from 0 to 255");
        }
        match cx.variant("match_type", match_type)? {
            PassTlVsMatchType::IncludeAll if types.is_empty() => Some(PassThroughTlvs::All),
            PassTlVsMatchType::IncludeAll => {
                cx.warn("tlv_type", "has no effect with INCLUDE_ALL");
                Some(PassThroughTlvs::All)
            }
            PassTlVsMatchType::Include => Some(PassThroughTlvs::Include(types)),
        }
    }
}

lower! { "envoy.extensions.filters.listener.original_src.v3.OriginalSrc"
    ext::original_src::v3::OriginalSrc => ListenerFilter, cx;
    read { bind_port, mark }
    {
        let _ = cx;
        Some(ListenerFilter::OriginalSrc(OriginalSrc { bind_port, mark }))
    }
}

lower! { "envoy.extensions.filters.listener.local_ratelimit.v3.LocalRateLimit"
    ext::local_ratelimit::v3::LocalRateLimit => ListenerFilter, cx;
    read { stat_prefix, token_bucket, runtime_enabled }
    {
        let runtime_enabled = match runtime_enabled {
            Some(flag) => cx.lower("runtime_enabled", flag),
            None => Some(true),
        };
        let stat_prefix = cx.name("stat_prefix", stat_prefix);
        let token_bucket = cx.required("token_bucket", token_bucket);
        Some(ListenerFilter::LocalRateLimit(LocalRateLimit {
            stat_prefix: stat_prefix?,
            token_bucket: token_bucket?,
            runtime_enabled: runtime_enabled?,
            share_key: None,
        }))
    }
}

lower! { "envoy.type.v3.TokenBucket" pb_type::TokenBucket => TokenBucket, cx;
    read { max_tokens, tokens_per_fill, fill_interval }
    {
        if fill_interval.is_none() {
            cx.reject("fill_interval", "is required");
        }
        let fill_interval = cx.duration_from("fill_interval", fill_interval, Duration::from_nanos(1));
        let tokens_per_fill = number(tokens_per_fill).unwrap_or(1);
        let tokens_per_fill = cx.ranged("tokens_per_fill", tokens_per_fill, 1..=u32::MAX);
        Some(TokenBucket {
            max_tokens,
            tokens_per_fill: tokens_per_fill?,
            fill_interval: fill_interval?,
        })
    }
}

/// A set of rules of which none may get lost: one that fails is the failure of all.
pub(super) fn all<M: Lower>(cx: &mut Cx, name: &'static str, messages: Vec<M>) -> Option<Vec<M::Model>> {
    let count = messages.len();
    let lowered = cx.list(name, messages);
    (lowered.len() == count).then_some(lowered)
}

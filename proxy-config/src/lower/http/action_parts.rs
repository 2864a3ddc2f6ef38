//! The parts of a route's action: weighted clusters, mirrors, hash policies, upgrades, internal redirects.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::internal_redirect as redirect;
use envoy_types::pb::google::protobuf::UInt32Value;
use pb::route_action::{self as inner, hash_policy, upgrade_config};
use pb::weighted_cluster::{self as weighted, RandomValueSpecifier};
use redirect::allow_listed_routes::v3::AllowListedRoutesConfig;
use redirect::previous_routes::v3::PreviousRoutesConfig;
use redirect::safe_cross_scheme::v3::SafeCrossSchemeConfig;

use super::action::cluster_name;
use super::header::{self, Edits, header_name, header_names, plain};
use super::per_filter;
use crate::lower::core::metadata as metadata_of;
use crate::lower::extension::Extension;
use crate::lower::registry::registry;
use crate::lower::value::{flag, number};
use crate::lower::{Cx, Lower};
use crate::model::http::action::{
    ConnectConfig, HashCookie, HashPolicy, HashSource, InternalRedirect, MaxStreamDuration, MirrorPolicy,
    RedirectPredicate, RouteUpgrade, WeightedChoice, WeightedCluster, WeightedClusters,
};
use crate::model::transport::{PassThroughTlvs, ProxyVersion};

registry! {
    pb::WeightedCluster, weighted::ClusterWeight, inner::RequestMirrorPolicy, inner::HashPolicy,
    hash_policy::Header, hash_policy::Cookie, hash_policy::CookieAttribute, inner::UpgradeConfig,
    upgrade_config::ConnectConfig, inner::MaxStreamDuration, pb::InternalRedirectPolicy,
    AllowListedRoutesConfig, PreviousRoutesConfig, SafeCrossSchemeConfig,
}

lower! { "envoy.config.route.v3.WeightedCluster" pb::WeightedCluster => WeightedClusters, cx;
    read { clusters, random_value_specifier }
    warn {
        total_weight: "the sum of the weights is the total, as in Envoy",
        runtime_key_prefix: "there is no runtime: the weights hold",
    }
    {
        if clusters.is_empty() {
            cx.reject("clusters", "must have at least one");
        }
        let count = clusters.len();
        let clusters = cx.list("clusters", clusters);
        let total_weight: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
        if clusters.len() < count {
            return None;
        }
        if total_weight == 0 {
            cx.reject("clusters", "the sum of their weights must be greater than 0");
        }
        if total_weight > u64::from(u32::MAX) {
            cx.reject("clusters", "the sum of their weights must be at most 4294967295");
        }
        let choice = match random_value_specifier {
            Some(RandomValueSpecifier::HeaderName(name)) => {
                WeightedChoice::Header(header_name(cx, "header_name", &name)?)
            }
            Some(RandomValueSpecifier::UseHashPolicy(hash)) if hash.value => WeightedChoice::HashPolicy,
            Some(RandomValueSpecifier::UseHashPolicy(_)) | None => WeightedChoice::Random,
        };
        Some(WeightedClusters { clusters, choice })
    }
}

lower! { "envoy.config.route.v3.WeightedCluster.ClusterWeight" weighted::ClusterWeight => WeightedCluster, cx;
    read {
        name, cluster_header, weight, metadata_match, request_headers_to_add, request_headers_to_remove,
        response_headers_to_add, response_headers_to_remove, typed_per_filter_config, host_rewrite_specifier
    }
    {
        let cluster = cluster_name(cx, "name", name, &cluster_header);
        if weight.is_none() {
            cx.reject("weight", "is required");
        }
        let edits = Edits {
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
        };
        let host_rewrite = host_rewrite_specifier.map(
            |weighted::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host)| {
                plain(cx, "host_rewrite_literal", &host);
                host
            },
        );
        Some(WeightedCluster {
            weight: weight?.value,
            metadata_match: metadata_of(cx, "metadata_match", metadata_match),
            headers: edits.lower(cx),
            per_filter: per_filter::lower(cx, typed_per_filter_config),
            host_rewrite: host_rewrite.filter(|host| !host.is_empty()).map(Into::into),
            cluster: cluster?,
        })
    }
}

lower! { "envoy.config.route.v3.RouteAction.RequestMirrorPolicy" inner::RequestMirrorPolicy => MirrorPolicy, cx;
    read {
        cluster, cluster_header, runtime_fraction, disable_shadow_host_suffix_append, request_headers_mutations,
        host_rewrite_literal, trace_sampled
    }
    {
        let cluster = cluster_name(cx, "cluster", cluster, &cluster_header);
        plain(cx, "host_rewrite_literal", &host_rewrite_literal);
        let host_rewrite = (!host_rewrite_literal.is_empty()).then(|| host_rewrite_literal.into());
        Some(MirrorPolicy {
            runtime_fraction: runtime_fraction.and_then(|fraction| cx.lower("runtime_fraction", fraction)),
            disable_shadow_host_suffix: disable_shadow_host_suffix_append,
            trace_sampled: trace_sampled.map(|sampled| sampled.value),
            mutations: cx.list("request_headers_mutations", request_headers_mutations),
            host_rewrite,
            cluster: cluster?,
        })
    }
}

// `None`: it makes no hash.
lower! { "envoy.config.route.v3.RouteAction.HashPolicy" inner::HashPolicy => Option<HashPolicy>, cx;
    read { terminal, policy_specifier }
    {
        use hash_policy::PolicySpecifier as Kind;
        let source = match policy_specifier {
            Some(Kind::Header(header)) => cx.lower("header", header)?,
            Some(Kind::Cookie(cookie)) => HashSource::Cookie(cx.lower("cookie", cookie)?),
            Some(Kind::ConnectionProperties(hash_policy::ConnectionProperties { source_ip: true })) => {
                HashSource::SourceIp
            }
            Some(Kind::ConnectionProperties(_)) => {
                cx.warn("connection_properties", "without source_ip there is nothing to hash");
                return Some(None);
            }
            Some(Kind::QueryParameter(hash_policy::QueryParameter { name })) => {
                HashSource::QueryParameter(cx.field("query_parameter", |cx| cx.name("name", name))?)
            }
            Some(Kind::FilterState(hash_policy::FilterState { key })) => {
                HashSource::FilterState(cx.field("filter_state", |cx| cx.name("key", key))?)
            }
            None => {
                cx.reject("policy_specifier", "is required");
                return None;
            }
        };
        Some(Some(HashPolicy { source, terminal }))
    }
}

lower! { "envoy.config.route.v3.RouteAction.HashPolicy.Header" hash_policy::Header => HashSource, cx;
    read { header_name, regex_rewrite }
    {
        let name = header::header_name(cx, "header_name", &header_name);
        let rewrite = regex_rewrite.and_then(|regex| cx.lower("regex_rewrite", regex));
        Some(HashSource::Header { name: name?, rewrite })
    }
}

lower! { "envoy.config.route.v3.RouteAction.HashPolicy.Cookie" hash_policy::Cookie => HashCookie, cx;
    read { name, ttl, path, attributes }
    {
        let name: Option<Arc<str>> = cx.name("name", name);
        plain(cx, "path", &path);
        Some(HashCookie {
            ttl: cx.duration("ttl", ttl),
            path: path.into(),
            attributes: cx.list("attributes", attributes),
            name: name?,
        })
    }
}

lower! { "envoy.config.route.v3.RouteAction.HashPolicy.CookieAttribute"
    hash_policy::CookieAttribute => (Arc<str>, Arc<str>), cx;
    read { name, value }
    {
        plain(cx, "name", &name);
        plain(cx, "value", &value);
        Some((cx.name("name", name)?, value.into()))
    }
}

/// Each type once, as in Envoy.
pub(super) fn upgrades(cx: &mut Cx, configs: Vec<inner::UpgradeConfig>) -> Vec<RouteUpgrade> {
    let lowered: Vec<RouteUpgrade> = cx.list("upgrade_configs", configs);
    for (index, one) in lowered.iter().enumerate() {
        if lowered.iter().take(index).any(|other| other.upgrade_type == one.upgrade_type) {
            cx.reject("upgrade_configs", format!("Duplicate upgrade {}", one.upgrade_type));
        }
    }
    lowered
}

lower! { "envoy.config.route.v3.RouteAction.UpgradeConfig" inner::UpgradeConfig => RouteUpgrade, cx;
    read { upgrade_type, enabled, connect_config }
    {
        let upgrade_type = super::hcm::upgrade_type(cx, &upgrade_type);
        let given = connect_config.is_some();
        let connect = connect_config.and_then(|config| cx.lower("connect_config", config));
        let upgrade_type = upgrade_type?;
        if given && &*upgrade_type != "connect" {
            cx.reject("connect_config", "Non-CONNECT upgrade type has ConnectConfig");
        }
        Some(RouteUpgrade { upgrade_type, enabled: flag(enabled, true), connect })
    }
}

lower! { "envoy.config.route.v3.RouteAction.UpgradeConfig.ConnectConfig"
    upgrade_config::ConnectConfig => ConnectConfig, cx;
    read { proxy_protocol_config, allow_post }
    {
        let proxy_protocol = match proxy_protocol_config {
            Some(config) => Some(proxy_version(cx, config)?),
            None => None,
        };
        Some(ConnectConfig { proxy_protocol, allow_post })
    }
}

/// Only its version has an effect here, as in Envoy's CONNECT upstream.
fn proxy_version(cx: &mut Cx, config: core::ProxyProtocolConfig) -> Option<ProxyVersion> {
    let lowered = cx.lower("proxy_protocol_config", config)?;
    if lowered.pass_through_tlvs != PassThroughTlvs::None || !lowered.added_tlvs.is_empty() {
        cx.warn("proxy_protocol_config", "the header of a tunnel has no TLVs");
    }
    Some(lowered.version)
}

lower! { "envoy.config.route.v3.RouteAction.MaxStreamDuration" inner::MaxStreamDuration => MaxStreamDuration, cx;
    read { max_stream_duration, grpc_timeout_header_max, grpc_timeout_header_offset }
    {
        let (has_max, has_grpc) = (max_stream_duration.is_some(), grpc_timeout_header_max.is_some());
        let max = cx.timeout("max_stream_duration", max_stream_duration, None);
        let grpc = cx.timeout("grpc_timeout_header_max", grpc_timeout_header_max, None);
        let offset = cx.duration("grpc_timeout_header_offset", grpc_timeout_header_offset);
        Some(MaxStreamDuration {
            max: has_max.then_some(max),
            grpc_timeout_header_max: has_grpc.then_some(grpc),
            grpc_timeout_header_offset: offset.unwrap_or_default(),
        })
    }
}

/// The policy, or the two deprecated fields that were one.
pub(super) struct Redirects {
    pub(super) policy: Option<pb::InternalRedirectPolicy>,
    pub(super) action: i32,
    pub(super) max: Option<UInt32Value>,
}

impl Redirects {
    pub(super) fn lower(self, cx: &mut Cx) -> Option<Box<InternalRedirect>> {
        let Self { policy, action, max } = self;
        let handle = match cx.variant("internal_redirect_action", action)? {
            inner::InternalRedirectAction::PassThroughInternalRedirect => false,
            inner::InternalRedirectAction::HandleInternalRedirect => true,
        };
        if let Some(policy) = policy {
            if handle || max.is_some() {
                cx.warn("internal_redirect_action", "has no effect beside internal_redirect_policy");
            }
            return cx.lower("internal_redirect_policy", policy).map(Box::new);
        }
        if max.is_some() && !handle {
            cx.warn("max_internal_redirects", "has no effect without internal_redirect_action");
        }
        handle.then(|| {
            Box::new(InternalRedirect {
                max_internal_redirects: number(max).unwrap_or(1),
                response_codes: vec![302],
                predicates: Vec::new(),
                allow_cross_scheme: false,
                response_headers_to_copy: Vec::new(),
            })
        })
    }
}

lower! { "envoy.config.route.v3.InternalRedirectPolicy" pb::InternalRedirectPolicy => InternalRedirect, cx;
    read {
        max_internal_redirects, redirect_response_codes, predicates, allow_cross_scheme_redirect,
        response_headers_to_copy
    }
    {
        let mut response_codes = Vec::new();
        for code in &redirect_response_codes {
            match code {
                301 | 302 | 303 | 307 | 308 => response_codes.extend(u16::try_from(*code)),
                other => cx.warn("redirect_response_codes", format!("{other} is no redirect: it is left out")),
            }
        }
        if redirect_response_codes.is_empty() {
            response_codes.push(302);
        }
        if response_headers_to_copy.len() > 50 {
            cx.reject("response_headers_to_copy", "must have no more than 50");
        }
        let mut lowered = Vec::new();
        for (index, predicate) in predicates.into_iter().enumerate() {
            let one = cx.field("predicates", |cx| cx.index(index, |cx| redirect_predicate(cx, predicate)));
            lowered.extend(one);
        }
        let response_headers_to_copy = header_names(cx, "response_headers_to_copy", &response_headers_to_copy);
        if response_headers_to_copy.iter().any(|name| header::is_own_line(name)) {
            cx.reject("response_headers_to_copy", ":-prefixed headers or Hosts may not be specified here.");
        }
        Some(InternalRedirect {
            max_internal_redirects: number(max_internal_redirects).unwrap_or(1),
            response_codes,
            predicates: lowered,
            allow_cross_scheme: allow_cross_scheme_redirect,
            response_headers_to_copy,
        })
    }
}

fn redirect_predicate(cx: &mut Cx, predicate: core::TypedExtensionConfig) -> Option<RedirectPredicate> {
    let Some(any) = predicate.typed_config else {
        return crate::lower::extension::by_name(cx, &predicate.name, None);
    };
    let e = Extension::unpack(cx, &any)?;
    match e.type_name.as_str() {
        PreviousRoutesConfig::NAME => e.lower::<PreviousRoutesConfig>(cx),
        SafeCrossSchemeConfig::NAME => e.lower::<SafeCrossSchemeConfig>(cx),
        AllowListedRoutesConfig::NAME => e.lower::<AllowListedRoutesConfig>(cx),
        _ => e.refuse(cx),
    }
}

lower! { "envoy.extensions.internal_redirect.previous_routes.v3.PreviousRoutesConfig"
    PreviousRoutesConfig => RedirectPredicate, cx;
    read {}
    {
        let _ = cx;
        Some(RedirectPredicate::PreviousRoutes)
    }
}

lower! { "envoy.extensions.internal_redirect.safe_cross_scheme.v3.SafeCrossSchemeConfig"
    SafeCrossSchemeConfig => RedirectPredicate, cx;
    read {}
    {
        let _ = cx;
        Some(RedirectPredicate::SafeCrossScheme)
    }
}

lower! { "envoy.extensions.internal_redirect.allow_listed_routes.v3.AllowListedRoutesConfig"
    AllowListedRoutesConfig => RedirectPredicate, cx;
    read { allowed_route_names }
    {
        if allowed_route_names.iter().any(String::is_empty) {
            cx.reject("allowed_route_names", "must not be empty");
        }
        Some(RedirectPredicate::AllowListedRoutes(allowed_route_names.into_iter().map(Into::into).collect()))
    }
}

//! `envoy.filters.http.jwt_authn`. Keys are read where the filter is built.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3 as pb;
use envoy_types::pb::google::protobuf::Empty;
use pb::jwt_provider::JwksSourceSpecifier;
use pb::jwt_requirement::RequiresType;
use pb::requirement_rule::RequirementType;

use super::simple::under;
use crate::lower::http::action::content;
use crate::lower::http::header::{header_name, optional_name};
use crate::lower::registry::registry;
use crate::lower::value::number;
use crate::lower::{Cx, IsSet};
use crate::model::http::jwt::{
    ClaimToHeader, FilterStateRules, JwksAsyncFetch, JwksSource, JwtAuthn, JwtCache, JwtHeader, JwtPerRoute,
    JwtProvider, JwtRequirement, JwtRule, RemoteJwks,
};

registry! {
    pb::JwtAuthentication, pb::JwtProvider, pb::jwt_provider::NormalizePayload, pb::JwtCacheConfig, pb::RemoteJwks,
    pb::JwksAsyncFetch, pb::JwtHeader, pb::JwtClaimToHeader, pb::jwt_claim_to_header::PathSegment,
    pb::RequirementRule, pb::FilterStateRule, pb::JwtRequirement, pb::ProviderWithAudiences,
    pb::JwtRequirementOrList, pb::JwtRequirementAndList, pb::ExtractOnlyWithoutValidation, pb::PerRouteConfig,
}

const CLOCK_SKEW: u32 = 60;
const CACHE_DURATION: Duration = Duration::from_secs(600);
const REFETCH: Duration = Duration::from_secs(1);
/// Between two attempts, where nothing is said.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

lower! { "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication" pb::JwtAuthentication => JwtAuthn, cx;
    read {
        providers, rules, filter_state_rules, bypass_cors_preflight, requirement_map, strip_failure_response,
        stat_prefix
    }
    {
        let lowered = JwtAuthn {
            providers: cx.map("providers", providers),
            requirements: cx.map("requirement_map", requirement_map),
            rules: Vec::new(),
            filter_state_rules: filter_state_rules.and_then(|rules| cx.lower("filter_state_rules", rules)),
            bypass_cors_preflight,
            strip_failure_response,
            stat_prefix: stat_prefix.into(),
        };
        let rules = cx.list("rules", rules);
        let known = |cx: &mut Cx, field, requirement: &JwtRequirement| {
            providers_exist(cx, field, requirement, &lowered.providers);
        };
        for (name, requirement) in &lowered.requirements {
            under(cx, "requirement_map", name, |cx| known(cx, "requires_type", requirement));
        }
        for requirement in lowered.filter_state_rules.iter().flat_map(|rules| rules.requires.values()) {
            known(cx, "filter_state_rules", requirement);
        }
        let mut bound = Vec::with_capacity(rules.len());
        for (index, (matcher, requires)) in rules.into_iter().enumerate() {
            let requires = cx.field("rules", |cx| cx.index(index, |cx| requires.bind(cx, &lowered)));
            bound.push(JwtRule { matcher, requires });
        }
        Some(JwtAuthn { rules: bound, ..lowered })
    }
}

/// In Envoy's words.
fn providers_exist(
    cx: &mut Cx,
    field: &'static str,
    requirement: &JwtRequirement,
    providers: &BTreeMap<Arc<str>, JwtProvider>,
) {
    match requirement {
        JwtRequirement::Provider { name, .. } if !providers.contains_key(name) => {
            cx.reject(field, format!("Required provider ['{name}'] is not configured."));
        }
        JwtRequirement::Any(all) | JwtRequirement::All(all) => {
            all.iter().for_each(|one| providers_exist(cx, field, one, providers));
        }
        JwtRequirement::Provider { .. }
        | JwtRequirement::AllowMissingOrFailed
        | JwtRequirement::AllowMissing
        | JwtRequirement::ExtractOnly { .. } => {}
    }
}

lower! { "envoy.extensions.filters.http.jwt_authn.v3.JwtProvider" pb::JwtProvider => JwtProvider, cx;
    read {
        issuer, audiences, subjects, require_expiration, max_lifetime, forward, from_headers, from_params,
        from_cookies, forward_payload_header, pad_forward_payload_header, payload_in_metadata,
        normalize_payload_in_metadata, header_in_metadata, failed_status_in_metadata, clock_skew_seconds,
        jwt_cache_config, claim_to_headers, clear_route_cache, jwks_source_specifier
    }
    {
        let keys = match jwks_source_specifier {
            Some(JwksSourceSpecifier::LocalJwks(source)) => {
                cx.lower("local_jwks", source).map(content).map(JwksSource::Local)
            }
            Some(JwksSourceSpecifier::RemoteJwks(remote)) => {
                cx.lower("remote_jwks", remote).map(Box::new).map(JwksSource::Remote)
            }
            None => {
                cx.reject("jwks_source_specifier", "local_jwks or remote_jwks is required");
                None
            }
        };
        let text = |text: String| Some(Arc::<str>::from(text)).filter(|text| !text.is_empty());
        let clock_skew = if clock_skew_seconds == 0 { CLOCK_SKEW } else { clock_skew_seconds };
        Some(JwtProvider {
            issuer: issuer.into(),
            audiences: texts(audiences),
            subjects: subjects.and_then(|subjects| cx.lower("subjects", subjects)),
            require_expiration,
            max_lifetime: cx.timeout("max_lifetime", max_lifetime, None),
            forward,
            from_headers: cx.list("from_headers", from_headers),
            from_params: texts(from_params),
            from_cookies: texts(from_cookies),
            forward_payload_header: optional_name(cx, "forward_payload_header", &forward_payload_header),
            pad_forward_payload_header,
            payload_in_metadata: text(payload_in_metadata),
            header_in_metadata: text(header_in_metadata),
            failed_status_in_metadata: text(failed_status_in_metadata),
            space_delimited_claims: normalize_payload_in_metadata
                .and_then(|normalize| cx.lower("normalize_payload_in_metadata", normalize))
                .unwrap_or_default(),
            clock_skew: Duration::from_secs(clock_skew.into()),
            cache: jwt_cache_config.and_then(|config| cx.lower("jwt_cache_config", config)),
            claim_to_headers: cx.list("claim_to_headers", claim_to_headers),
            clear_route_cache,
            keys: keys?,
        })
    }
}

fn texts(texts: Vec<String>) -> Vec<Arc<str>> {
    texts.into_iter().map(Into::into).collect()
}

lower! { "envoy.extensions.filters.http.jwt_authn.v3.JwtProvider.NormalizePayload"
    pb::jwt_provider::NormalizePayload => Vec<Arc<str>>, cx;
    read { space_delimited_claims }
    {
        let _ = cx;
        Some(texts(space_delimited_claims))
    }
}

lower! { "envoy.extensions.filters.http.jwt_authn.v3.JwtCacheConfig" pb::JwtCacheConfig => JwtCache, cx;
    read { jwt_cache_size, jwt_max_token_size }
    {
        let _ = cx;
        let or = |given, default| if given == 0 { default } else { given };
        Some(JwtCache { size: or(jwt_cache_size, 100), max_token_size: or(jwt_max_token_size, 4096) })
    }
}

lower! { "envoy.extensions.filters.http.jwt_authn.v3.RemoteJwks" pb::RemoteJwks => RemoteJwks, cx;
    read { http_uri, cache_duration, async_fetch, retry_policy }
    {
        let uri = cx.required("http_uri", http_uri);
        let given = cache_duration.is_some();
        let cache_duration = cx.duration_from("cache_duration", cache_duration, Duration::from_millis(1));
        let cache_duration = if given { cache_duration? } else { CACHE_DURATION };
        let (retries, retry_backoff) = match retry_policy {
            Some(policy) => cx.field("retry_policy", |cx| retries(cx, policy))?,
            None => (0, BACKOFF),
        };
        let uri = uri?;
        Some(RemoteJwks {
            uri: uri.uri,
            cluster: uri.cluster,
            timeout: uri.timeout,
            cache_duration,
            async_fetch: async_fetch.and_then(|fetch| cx.lower("async_fetch", fetch)),
            retries,
            retry_backoff,
        })
    }
}

/// Of a fetch, unlike that of a stream: `num_retries` counts.
pub(super) fn retries(cx: &mut Cx, policy: core::RetryPolicy) -> Option<(u32, (Duration, Duration))> {
    let core::RetryPolicy {
        retry_back_off,
        num_retries,
        retry_on,
        retry_priority,
        retry_host_predicate,
        host_selection_retry_max_attempts,
    } = policy;
    for (field, given) in [
        ("retry_on", retry_on.is_set()),
        ("retry_priority", retry_priority.is_set()),
        ("retry_host_predicate", retry_host_predicate.is_set()),
        ("host_selection_retry_max_attempts", host_selection_retry_max_attempts.is_set()),
    ] {
        if given {
            cx.warn(field, "a fetch is tried again whatever has failed");
        }
    }
    let backoff = match retry_back_off {
        Some(backoff) => {
            let backoff = cx.lower("retry_back_off", backoff)?;
            (backoff.base, backoff.max)
        }
        None => BACKOFF,
    };
    Some((number(num_retries).unwrap_or(1), backoff))
}

lower! { "envoy.extensions.filters.http.jwt_authn.v3.JwksAsyncFetch" pb::JwksAsyncFetch => JwksAsyncFetch, cx;
    read { fast_listener, failed_refetch_duration }
    {
        let failed_refetch_duration =
            cx.timeout("failed_refetch_duration", failed_refetch_duration, Some(REFETCH)).unwrap_or(REFETCH);
        Some(JwksAsyncFetch { fast_listener, failed_refetch_duration })
    }
}

lower! { "envoy.extensions.filters.http.jwt_authn.v3.JwtHeader" pb::JwtHeader => JwtHeader, cx;
    read { name, value_prefix }
    {
        Some(JwtHeader { name: header_name(cx, "name", &name)?, value_prefix: value_prefix.into() })
    }
}

lower! { "envoy.extensions.filters.http.jwt_authn.v3.JwtClaimToHeader" pb::JwtClaimToHeader => ClaimToHeader, cx;
    read { header_name, claim_name, claim_path }
    {
        let header = self::header_name(cx, "header_name", &header_name);
        let path = cx.list("claim_path", claim_path);
        if path.is_empty() && claim_name.is_empty() {
            cx.reject("claim_name", "this or claim_path is required");
        }
        if !path.is_empty() && !claim_name.is_empty() {
            cx.reject("claim_path", "cannot be given with claim_name");
        }
        let claim = if path.is_empty() { claim_name.split('.').map(Into::into).collect() } else { path };
        Some(ClaimToHeader { header: header?, claim })
    }
}

lower! { "envoy.extensions.filters.http.jwt_authn.v3.JwtClaimToHeader.PathSegment"
    pb::jwt_claim_to_header::PathSegment => Arc<str>, cx;
    read { key }
    {
        cx.name("key", key)
    }
}

/// What a rule requires, before it is known which requirements have names.
#[derive(Debug)]
pub enum Requires {
    Nothing,
    Requirement(JwtRequirement),
    Named(Arc<str>),
}

impl Requires {
    fn bind(self, cx: &mut Cx, of: &JwtAuthn) -> Option<JwtRequirement> {
        match self {
            Self::Nothing => None,
            Self::Requirement(requirement) => {
                providers_exist(cx, "requires", &requirement, &of.providers);
                Some(requirement)
            }
            Self::Named(name) => {
                let found = of.requirements.get(&name).cloned();
                if found.is_none() {
                    let known: Vec<&str> = of.requirements.keys().map(|name| &**name).collect();
                    let known = known.join(", ");
                    let why = format!("Wrong requirement_name: {name}. It should be one of [{known}]");
                    cx.reject("requirement_name", why);
                }
                found
            }
        }
    }
}

lower! { "envoy.extensions.filters.http.jwt_authn.v3.RequirementRule"
    pb::RequirementRule => (crate::model::http::RouteMatch, Requires), cx;
    read { r#match, requirement_type }
    {
        let matcher = cx.required("match", r#match);
        let requires = match requirement_type {
            Some(RequirementType::Requires(requirement)) => {
                cx.field("requires", |cx| requirement_of(cx, requirement))?.map_or(Requires::Nothing, Requires::Requirement)
            }
            Some(RequirementType::RequirementName(name)) => Requires::Named(cx.name("requirement_name", name)?),
            None => Requires::Nothing,
        };
        Some((matcher?, requires))
    }
}

/// An empty requirement is none.
fn requirement_of(cx: &mut Cx, requirement: pb::JwtRequirement) -> Option<Option<JwtRequirement>> {
    if requirement.requires_type.is_none() {
        return Some(None);
    }
    crate::lower::Lower::lower(requirement, cx).map(Some)
}

lower! { "envoy.extensions.filters.http.jwt_authn.v3.FilterStateRule" pb::FilterStateRule => FilterStateRules, cx;
    read { name, requires }
    {
        let name: Option<Arc<str>> = cx.name("name", name);
        let requires = cx.map("requires", requires);
        Some(FilterStateRules { name: name?, requires })
    }
}

lower! { "envoy.extensions.filters.http.jwt_authn.v3.JwtRequirement" pb::JwtRequirement => JwtRequirement, cx;
    read { requires_type }
    {
        match requires_type {
            Some(RequiresType::ProviderName(name)) => {
                Some(JwtRequirement::Provider { name: cx.name("provider_name", name)?, audiences: None })
            }
            Some(RequiresType::ProviderAndAudiences(provider)) => cx.lower("provider_and_audiences", provider),
            Some(RequiresType::RequiresAny(list)) => cx.lower("requires_any", list),
            Some(RequiresType::RequiresAll(list)) => cx.lower("requires_all", list),
            Some(RequiresType::AllowMissingOrFailed(Empty {})) => Some(JwtRequirement::AllowMissingOrFailed),
            Some(RequiresType::AllowMissing(Empty {})) => Some(JwtRequirement::AllowMissing),
            Some(RequiresType::ExtractOnlyWithoutValidation(extract)) => {
                cx.lower("extract_only_without_validation", extract)
            }
            None => {
                cx.reject("requires_type", "is required");
                None
            }
        }
    }
}

lower! { "envoy.extensions.filters.http.jwt_authn.v3.ProviderWithAudiences"
    pb::ProviderWithAudiences => JwtRequirement, cx;
    read { provider_name, audiences }
    {
        Some(JwtRequirement::Provider { name: cx.name("provider_name", provider_name)?, audiences: Some(texts(audiences)) })
    }
}

lower! { "envoy.extensions.filters.http.jwt_authn.v3.JwtRequirementOrList"
    pb::JwtRequirementOrList => JwtRequirement, cx;
    read { requirements }
    {
        at_least_two(cx, &requirements);
        Some(JwtRequirement::Any(cx.list("requirements", requirements)))
    }
}

lower! { "envoy.extensions.filters.http.jwt_authn.v3.JwtRequirementAndList"
    pb::JwtRequirementAndList => JwtRequirement, cx;
    read { requirements }
    {
        at_least_two(cx, &requirements);
        Some(JwtRequirement::All(cx.list("requirements", requirements)))
    }
}

fn at_least_two(cx: &mut Cx, requirements: &[pb::JwtRequirement]) {
    if requirements.len() < 2 {
        cx.reject("requirements", "must have at least two");
    }
}

lower! { "envoy.extensions.filters.http.jwt_authn.v3.ExtractOnlyWithoutValidation"
    pb::ExtractOnlyWithoutValidation => JwtRequirement, cx;
    read { verification_status_header }
    {
        let status_header = optional_name(cx, "verification_status_header", &verification_status_header);
        Some(JwtRequirement::ExtractOnly { status_header })
    }
}

lower! { "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig" pb::PerRouteConfig => JwtPerRoute, cx;
    read { requirement_specifier }
    {
        use pb::per_route_config::RequirementSpecifier;
        match requirement_specifier {
            Some(RequirementSpecifier::Disabled(true)) => Some(JwtPerRoute::Disabled),
            Some(RequirementSpecifier::Disabled(false)) => {
                cx.reject("disabled", "must be true");
                None
            }
            Some(RequirementSpecifier::RequirementName(name)) => {
                cx.name("requirement_name", name).map(JwtPerRoute::Requirement)
            }
            None => {
                cx.reject("requirement_specifier", "is required");
                None
            }
        }
    }
}

//! `config.route.v3.RouteMatch`.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use pb::route_match as inner;

use crate::lower::extension::Extension;
use crate::lower::registry::registry;
use crate::lower::value::flag;
use crate::lower::{Cx, Lower};
use crate::model::http::route_match::{
    CookieMatcher, FilterStateMatch, FilterStateMatcher, PathMatch, PathTemplate, QueryParameterMatch,
    QueryParameterMatcher, RouteMatch, TlsContextMatch,
};

registry! {
    pb::RouteMatch, inner::TlsContextMatchOptions, pb::QueryParameterMatcher, pb::CookieMatcher,
    matcher::FilterStateMatcher, matcher::AddressMatcher, UriTemplateMatchConfig,
}

lower! { "envoy.config.route.v3.RouteMatch" pb::RouteMatch => RouteMatch, cx;
    read {
        case_sensitive, runtime_fraction, headers, query_parameters, cookies, grpc, tls_context, dynamic_metadata,
        filter_state, path_specifier
    }
    {
        let path = path(cx, path_specifier);
        let grpc = grpc.map(|inner::GrpcRouteMatchOptions {}| true).unwrap_or_default();
        Some(RouteMatch {
            path: path?,
            case_sensitive: flag(case_sensitive, true),
            runtime_fraction: runtime_fraction.and_then(|fraction| cx.lower("runtime_fraction", fraction)),
            headers: cx.list("headers", headers),
            query_parameters: cx.list("query_parameters", query_parameters),
            cookies: cx.list("cookies", cookies),
            grpc,
            tls_context: tls_context.and_then(|options| cx.lower("tls_context", options)),
            dynamic_metadata: cx.list("dynamic_metadata", dynamic_metadata),
            filter_state: cx.list("filter_state", filter_state),
        })
    }
}

fn path(cx: &mut Cx, specifier: Option<inner::PathSpecifier>) -> Option<PathMatch> {
    use inner::PathSpecifier as Kind;
    match specifier {
        Some(Kind::Prefix(prefix)) => Some(PathMatch::Prefix(prefix.into())),
        Some(Kind::Path(path)) => Some(PathMatch::Path(path.into())),
        Some(Kind::SafeRegex(regex)) => cx.lower("safe_regex", regex).map(PathMatch::SafeRegex),
        Some(Kind::ConnectMatcher(inner::ConnectMatcher {})) => Some(PathMatch::Connect),
        Some(Kind::PathSeparatedPrefix(prefix)) => separated(cx, prefix),
        Some(Kind::PathMatchPolicy(policy)) => cx.field("path_match_policy", |cx| match_policy(cx, policy)),
        None => {
            cx.reject("path_specifier", "is required");
            None
        }
    }
}

/// PGV: `^[^?#]+[^?#/]$`.
fn separated(cx: &mut Cx, prefix: String) -> Option<PathMatch> {
    if prefix.len() < 2 || prefix.ends_with('/') || prefix.contains(['?', '#']) {
        cx.reject("path_separated_prefix", "must have no ? or #, and not end with a slash");
        return None;
    }
    Some(PathMatch::PathSeparatedPrefix(prefix.into()))
}

fn match_policy(cx: &mut Cx, policy: TypedExtensionConfig) -> Option<PathMatch> {
    template_match(cx, policy).map(PathMatch::Template)
}

/// `envoy.path.match.uri_template.uri_template_matcher`, the only such extension.
pub(in crate::lower) fn template_match(cx: &mut Cx, policy: TypedExtensionConfig) -> Option<PathTemplate> {
    let Some(any) = policy.typed_config else {
        cx.reject("typed_config", "is required");
        return None;
    };
    let e = Extension::unpack(cx, &any)?;
    if e.type_name != UriTemplateMatchConfig::NAME {
        return e.refuse(cx);
    }
    e.lower::<UriTemplateMatchConfig>(cx)
}

lower! { "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
    UriTemplateMatchConfig => PathTemplate, cx;
    read { path_template }
    {
        match PathTemplate::parse(&path_template) {
            Ok(template) => Some(template),
            Err(why) => {
                cx.reject("path_template", why);
                None
            }
        }
    }
}

lower! { "envoy.config.route.v3.RouteMatch.TlsContextMatchOptions"
    inner::TlsContextMatchOptions => TlsContextMatch, cx;
    read { presented, validated }
    {
        let _ = cx;
        Some(TlsContextMatch { presented: presented.map(|v| v.value), validated: validated.map(|v| v.value) })
    }
}

lower! { "envoy.config.route.v3.QueryParameterMatcher" pb::QueryParameterMatcher => QueryParameterMatcher, cx;
    read { name, query_parameter_match_specifier }
    {
        use pb::query_parameter_matcher::QueryParameterMatchSpecifier as Kind;
        let name: Option<Arc<str>> = cx.name("name", name);
        let matches = match query_parameter_match_specifier {
            Some(Kind::StringMatch(matcher)) => QueryParameterMatch::String(cx.lower("string_match", matcher)?),
            Some(Kind::PresentMatch(present)) => QueryParameterMatch::Present(present),
            // As in Envoy: any value.
            None => QueryParameterMatch::Present(true),
        };
        Some(QueryParameterMatcher { name: name?, matches })
    }
}

lower! { "envoy.config.route.v3.CookieMatcher" pb::CookieMatcher => CookieMatcher, cx;
    read { name, string_match, invert_match }
    {
        let name: Option<Arc<str>> = cx.name("name", name);
        let matches = cx.required("string_match", string_match);
        Some(CookieMatcher { name: name?, matches: matches?, invert: invert_match })
    }
}

lower! { "envoy.type.matcher.v3.FilterStateMatcher" matcher::FilterStateMatcher => FilterStateMatcher, cx;
    read { key, matcher }
    {
        use matcher::filter_state_matcher::Matcher as Kind;
        let key: Option<Arc<str>> = cx.name("key", key);
        let matches = match matcher {
            Some(Kind::StringMatch(matcher)) => FilterStateMatch::String(cx.lower("string_match", matcher)?),
            Some(Kind::AddressMatch(matcher)) => cx.lower("address_match", matcher)?,
            None => {
                cx.reject("matcher", "is required");
                return None;
            }
        };
        Some(FilterStateMatcher { key: key?, matches })
    }
}

lower! { "envoy.type.matcher.v3.AddressMatcher" matcher::AddressMatcher => FilterStateMatch, cx;
    read { ranges, invert_match }
    {
        let mut lowered = Vec::new();
        // xds.core.v3.CidrRange is the same message as Envoy's own, by another name.
        for range in ranges {
            let range = envoy_types::pb::envoy::config::core::v3::CidrRange {
                address_prefix: range.address_prefix,
                prefix_len: range.prefix_len,
            };
            lowered.extend(cx.field("ranges", |cx| range.lower(cx)));
        }
        Some(FilterStateMatch::Address { ranges: lowered, invert: invert_match })
    }
}

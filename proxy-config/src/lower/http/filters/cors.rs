//! `envoy.filters.http.cors`, whose policies are those of routes: of today, and of the fields that they were in once.

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::config::route::v3 as old;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3 as pb;
use old::cors_policy::EnabledSpecifier;

use crate::lower::Cx;
use crate::lower::http::header::plain;
use crate::lower::registry::registry;
use crate::lower::value::flag;
use crate::model::FractionalPercent;
use crate::model::http::filter::{FilterKind, PerFilter, PerRoute};
use crate::model::http::filters::CorsPolicy;

registry! { pb::Cors, pb::CorsPolicy, old::CorsPolicy }

lower! { "envoy.extensions.filters.http.cors.v3.Cors" pb::Cors => FilterKind, cx;
    read {}
    {
        let _ = cx;
        Some(FilterKind::Cors)
    }
}

/// What a route says in its own field.
pub(in crate::lower) fn per_route(policy: CorsPolicy) -> PerFilter {
    PerFilter { disabled: false, config: Some(PerRoute::Cors(Box::new(policy))) }
}

const ALL: FractionalPercent = FractionalPercent { numerator: 100, denominator: 100 };

fn enabled(cx: &mut Cx, enabled: Option<RuntimeFractionalPercent>) -> FractionalPercent {
    enabled.and_then(|enabled| cx.lower("filter_enabled", enabled)).unwrap_or(ALL)
}

lower! { "envoy.extensions.filters.http.cors.v3.CorsPolicy" pb::CorsPolicy => CorsPolicy, cx;
    read {
        allow_origin_string_match, allow_methods, allow_headers, expose_headers, max_age, allow_credentials,
        filter_enabled, shadow_enabled, allow_private_network_access, forward_not_matching_preflights
    }
    {
        texts(cx, &[&allow_methods, &allow_headers, &expose_headers, &max_age]);
        Some(CorsPolicy {
            allow_origin: cx.list("allow_origin_string_match", allow_origin_string_match),
            allow_methods: allow_methods.into(),
            allow_headers: allow_headers.into(),
            expose_headers: expose_headers.into(),
            max_age: max_age.into(),
            allow_credentials: allow_credentials.map(|v| v.value),
            allow_private_network_access: allow_private_network_access.map(|v| v.value),
            forward_not_matching_preflights: flag(forward_not_matching_preflights, true),
            enabled: enabled(cx, filter_enabled),
            shadow_enabled: shadow_enabled.and_then(|shadow| cx.lower("shadow_enabled", shadow)),
        })
    }
}

/// They are written as headers.
fn texts(cx: &mut Cx, texts: &[&str; 4]) {
    let names = ["allow_methods", "allow_headers", "expose_headers", "max_age"];
    for (name, text) in names.into_iter().zip(texts) {
        plain(cx, name, text);
    }
}

lower! { "envoy.config.route.v3.CorsPolicy" old::CorsPolicy => CorsPolicy, cx;
    read {
        allow_origin_string_match, allow_methods, allow_headers, expose_headers, max_age, allow_credentials,
        shadow_enabled, allow_private_network_access, forward_not_matching_preflights, enabled_specifier
    }
    {
        texts(cx, &[&allow_methods, &allow_headers, &expose_headers, &max_age]);
        let filter_enabled = enabled_specifier.map(|EnabledSpecifier::FilterEnabled(enabled)| enabled);
        Some(CorsPolicy {
            allow_origin: cx.list("allow_origin_string_match", allow_origin_string_match),
            allow_methods: allow_methods.into(),
            allow_headers: allow_headers.into(),
            expose_headers: expose_headers.into(),
            max_age: max_age.into(),
            allow_credentials: allow_credentials.map(|v| v.value),
            allow_private_network_access: allow_private_network_access.map(|v| v.value),
            forward_not_matching_preflights: flag(forward_not_matching_preflights, true),
            enabled: enabled(cx, filter_enabled),
            shadow_enabled: shadow_enabled.and_then(|shadow| cx.lower("shadow_enabled", shadow)),
        })
    }
}

//! `envoy.filters.http.ext_authz`: what cannot be honoured is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3::ListStringMatcher;

use super::jwt::retries;
use crate::lower::Cx;
use crate::lower::http::header::{format, header_name, plain};
use crate::lower::registry::registry;
use crate::lower::value::flag;
use crate::model::grpc::{GrpcService, GrpcTarget};
use crate::model::http::ext_authz::{
    AuthzGrpcService, AuthzHttpService, AuthzRetry, AuthzService, BodyToAuthz, CheckSettings, ExtAuthz,
    ExtAuthzPerRoute,
};
use crate::model::http::retry::RetryOn;
use crate::model::matcher::StringMatcher;

registry! {
    pb::ExtAuthz, pb::BufferSettings, pb::HttpService, pb::AuthorizationRequest, pb::AuthorizationResponse,
    pb::ExtAuthzPerRoute, pb::CheckSettings,
}

const FORBIDDEN: u16 = 403;
const NO_TYPED: &str = "typed metadata is not kept here: use metadata of plain values";

lower! { "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz" pb::ExtAuthz => ExtAuthz, cx;
    read {
        transport_api_version, failure_mode_allow, failure_mode_allow_header_add, with_request_body,
        clear_route_cache, status_on_error, validate_mutations, metadata_context_namespaces,
        route_metadata_context_namespaces, filter_enabled, filter_enabled_metadata, deny_at_disable,
        include_peer_certificate, stat_prefix, bootstrap_metadata_labels_key, allowed_headers, disallowed_headers,
        include_tls_session, charge_cluster_response_stats, encode_raw_headers, decoder_header_mutation_rules,
        enable_dynamic_metadata_ingestion, max_denied_response_body_bytes, shadow_mode, services
    }
    warn {
        typed_metadata_context_namespaces: NO_TYPED,
        route_typed_metadata_context_namespaces: NO_TYPED,
        enforce_response_header_limits: "the limits of the headers of a response always hold",
        emit_client_span: "a check has no span of its own",
        filter_metadata: "what a check has cost is not kept as filter state",
        emit_filter_state_stats: "what a check has cost is not kept as filter state",
    }
    {
        match cx.variant("transport_api_version", transport_api_version)? {
            core::ApiVersion::V2 => cx.reject("transport_api_version", "V2 is gone: use V3"),
            core::ApiVersion::Auto | core::ApiVersion::V3 => {}
        }
        let service = match services {
            Some(pb::ext_authz::Services::GrpcService(grpc)) => grpc_service(cx, grpc),
            Some(pb::ext_authz::Services::HttpService(http)) => {
                let http = http_service(cx, http);
                let twice = matches!(&http, Some(AuthzService::Http(http)) if http.allowed_headers.is_some());
                if twice && allowed_headers.is_some() {
                    cx.reject("allowed_headers", "Invalid duplicate configuration for allowed_headers.");
                }
                http
            }
            None => {
                cx.reject("services", "grpc_service or http_service is required");
                None
            }
        };
        let status_on_error = match status_on_error {
            Some(status) => cx.lower("status_on_error", status)?,
            None => FORBIDDEN,
        };
        let deny_at_disable = match deny_at_disable {
            Some(deny) => cx.lower("deny_at_disable", deny)?,
            None => false,
        };
        let text = |text: String| Some(Arc::<str>::from(text)).filter(|text| !text.is_empty());
        Some(ExtAuthz {
            failure_mode_allow,
            failure_mode_allow_header_add,
            with_request_body: with_request_body.and_then(|body| cx.lower("with_request_body", body)),
            clear_route_cache,
            status_on_error,
            validate_mutations,
            metadata_context_namespaces: texts(metadata_context_namespaces),
            route_metadata_context_namespaces: texts(route_metadata_context_namespaces),
            filter_enabled: filter_enabled.and_then(|enabled| cx.lower("filter_enabled", enabled)),
            filter_enabled_metadata: filter_enabled_metadata
                .and_then(|matcher| cx.lower("filter_enabled_metadata", matcher)),
            deny_at_disable,
            include_peer_certificate,
            include_tls_session,
            stat_prefix: text(stat_prefix),
            bootstrap_metadata_labels_key: text(bootstrap_metadata_labels_key),
            allowed_headers: matchers(cx, "allowed_headers", allowed_headers),
            disallowed_headers: matchers(cx, "disallowed_headers", disallowed_headers).unwrap_or_default(),
            charge_cluster_response_stats: flag(charge_cluster_response_stats, true),
            encode_raw_headers,
            mutation_rules: decoder_header_mutation_rules
                .and_then(|rules| cx.lower("decoder_header_mutation_rules", rules)),
            enable_dynamic_metadata_ingestion: flag(enable_dynamic_metadata_ingestion, true),
            max_denied_response_body_bytes,
            shadow_mode,
            service: service?,
        })
    }
}

fn texts(texts: Vec<String>) -> Vec<Arc<str>> {
    texts.into_iter().map(Into::into).collect()
}

fn matchers(cx: &mut Cx, field: &'static str, list: Option<ListStringMatcher>) -> Option<Vec<StringMatcher>> {
    list.and_then(|list| cx.lower(field, list))
}

fn grpc_service(cx: &mut Cx, service: core::GrpcService) -> Option<AuthzService> {
    use core::grpc_service::TargetSpecifier;
    let skip_envoy_headers = match &service.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(envoy)) => envoy.skip_envoy_headers,
        Some(TargetSpecifier::GoogleGrpc(_)) | None => false,
    };
    let service: GrpcService = cx.for_calls(|cx| cx.lower("grpc_service", service))?;
    if matches!(service.target, GrpcTarget::Google(_)) {
        cx.reject("grpc_service", "google_grpc is not called for each request: name a cluster by envoy_grpc");
        return None;
    }
    Some(AuthzService::Grpc(Box::new(AuthzGrpcService { service, skip_envoy_headers })))
}

fn http_service(cx: &mut Cx, service: pb::HttpService) -> Option<AuthzService> {
    cx.lower("http_service", service).map(Box::new).map(AuthzService::Http)
}

lower! { "envoy.extensions.filters.http.ext_authz.v3.BufferSettings" pb::BufferSettings => BodyToAuthz, cx;
    read { max_request_bytes, allow_partial_message, pack_as_bytes }
    {
        let max_request_bytes = cx.ranged("max_request_bytes", max_request_bytes, 1..=u32::MAX)?;
        Some(BodyToAuthz { max_request_bytes, allow_partial_message, pack_as_bytes })
    }
}

lower! { "envoy.extensions.filters.http.ext_authz.v3.HttpService" pb::HttpService => AuthzHttpService, cx;
    read { server_uri, path_prefix, path_override, authorization_request, authorization_response, retry_policy }
    {
        let uri = cx.required("server_uri", server_uri);
        if !path_prefix.is_empty() && !path_prefix.starts_with('/') {
            cx.reject("path_prefix", "must begin with a slash");
        }
        if !path_override.is_empty() && !path_override.starts_with('/') {
            cx.reject("path_override", "must begin with a slash");
        }
        if !path_prefix.is_empty() && !path_override.is_empty() {
            cx.reject("path_override", "cannot be given with path_prefix");
        }
        plain(cx, "path_prefix", &path_prefix);
        plain(cx, "path_override", &path_override);
        let request = authorization_request.and_then(|request| cx.lower("authorization_request", request));
        let (allowed_headers, headers_to_add) = request.unwrap_or_default();
        let response = authorization_response
            .and_then(|response| cx.lower("authorization_response", response))
            .unwrap_or_default();
        let retry = retry_policy.and_then(|policy| cx.field("retry_policy", |cx| retry(cx, policy)));
        let uri = uri?;
        Some(AuthzHttpService {
            retry,
            uri: uri.uri,
            cluster: uri.cluster,
            timeout: uri.timeout,
            path_prefix: path_prefix.into(),
            path_override: Some(Arc::<str>::from(path_override)).filter(|path| !path.is_empty()),
            headers_to_add,
            allowed_headers,
            allowed_upstream_headers: response.upstream,
            allowed_upstream_headers_to_append: response.upstream_to_append,
            allowed_client_headers: response.client,
            allowed_client_headers_on_success: response.client_on_success,
            dynamic_metadata_from_headers: response.dynamic_metadata,
        })
    }
}

/// As in Envoy: nothing is tried again but by `retry_on`.
fn retry(cx: &mut Cx, mut policy: core::RetryPolicy) -> Option<AuthzRetry> {
    let conditions = std::mem::take(&mut policy.retry_on);
    let (on, unknown) = RetryOn::parse(&conditions);
    if !unknown.is_empty() {
        cx.warn("retry_on", format!("unknown: {}", unknown.join(", ")));
    }
    retries(cx, policy).map(|(times, backoff)| AuthzRetry { on, times, backoff })
}

type AddedHeaders = Vec<(Arc<str>, crate::model::http::Format)>;

lower! { "envoy.extensions.filters.http.ext_authz.v3.AuthorizationRequest"
    pb::AuthorizationRequest => (Option<Vec<StringMatcher>>, AddedHeaders), cx;
    read { allowed_headers, headers_to_add }
    {
        let allowed = matchers(cx, "allowed_headers", allowed_headers);
        let headers = cx.list("headers_to_add", headers_to_add);
        let mut lowered = Vec::new();
        for (index, (name, value)) in headers.into_iter().enumerate() {
            let one = cx.field("headers_to_add", |cx| {
                cx.index(index, |cx| Some((header_name(cx, "key", &name)?, format(cx, "value", &value, &[])?)))
            });
            lowered.extend(one);
        }
        Some((allowed, lowered))
    }
}

/// Which headers of an answer go where.
#[derive(Debug, Default)]
pub struct Response {
    upstream: Vec<StringMatcher>,
    upstream_to_append: Vec<StringMatcher>,
    client: Vec<StringMatcher>,
    client_on_success: Vec<StringMatcher>,
    dynamic_metadata: Vec<StringMatcher>,
}

lower! { "envoy.extensions.filters.http.ext_authz.v3.AuthorizationResponse" pb::AuthorizationResponse => Response, cx;
    read {
        allowed_upstream_headers, allowed_upstream_headers_to_append, allowed_client_headers,
        allowed_client_headers_on_success, dynamic_metadata_from_headers
    }
    {
        let mut of = |field, list| matchers(cx, field, list).unwrap_or_default();
        Some(Response {
            upstream: of("allowed_upstream_headers", allowed_upstream_headers),
            upstream_to_append: of("allowed_upstream_headers_to_append", allowed_upstream_headers_to_append),
            client: of("allowed_client_headers", allowed_client_headers),
            client_on_success: of("allowed_client_headers_on_success", allowed_client_headers_on_success),
            dynamic_metadata: of("dynamic_metadata_from_headers", dynamic_metadata_from_headers),
        })
    }
}

lower! { "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute" pb::ExtAuthzPerRoute => ExtAuthzPerRoute, cx;
    read { r#override }
    {
        use pb::ext_authz_per_route::Override;
        match r#override {
            Some(Override::Disabled(true)) => Some(ExtAuthzPerRoute::Disabled),
            Some(Override::Disabled(false)) => {
                cx.reject("disabled", "must be true");
                None
            }
            Some(Override::CheckSettings(settings)) => {
                cx.lower("check_settings", settings).map(ExtAuthzPerRoute::Check)
            }
            None => {
                cx.reject("override", "is required");
                None
            }
        }
    }
}

lower! { "envoy.extensions.filters.http.ext_authz.v3.CheckSettings" pb::CheckSettings => CheckSettings, cx;
    read { context_extensions, disable_request_body_buffering, with_request_body, service_override }
    warn { emit_client_span: "a check has no span of its own" }
    {
        use pb::check_settings::ServiceOverride;
        if disable_request_body_buffering && with_request_body.is_some() {
            cx.reject("with_request_body", "cannot be given with disable_request_body_buffering");
        }
        let service = match service_override {
            Some(ServiceOverride::GrpcService(grpc)) => Some(grpc_service(cx, grpc)?),
            Some(ServiceOverride::HttpService(http)) => Some(http_service(cx, http)?),
            None => None,
        };
        Some(CheckSettings {
            context_extensions: context_extensions.into_iter().collect::<BTreeMap<_, _>>(),
            disable_request_body_buffering,
            with_request_body: with_request_body.and_then(|body| cx.lower("with_request_body", body)),
            service,
        })
    }
}

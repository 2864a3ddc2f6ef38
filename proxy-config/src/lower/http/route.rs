//! `config.route.v3.RouteConfiguration`, its virtual hosts and their routes.

use std::collections::HashSet;
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::Rds;
use envoy_types::pb::google::protobuf::{UInt32Value, UInt64Value};

use super::header::{Edits, header_names, optional_format, optional_name, plain};
use super::{action, per_filter};
use crate::lower::Cx;
use crate::lower::core::metadata as metadata_of;
use crate::lower::registry::registry;
use crate::lower::value::{flag, number};
use crate::model::http::action::{Action, PathRewrite};
use crate::model::http::filter::{PerFilter, PerFilters};
use crate::model::http::route::{
    Decorator, RequireTls, Route, RouteConfiguration, RouteTracing, VirtualCluster, VirtualHost,
};
use crate::model::http::{Content, PathMatch, RouteMatch};
use crate::model::network_filter::RouteRef;

registry! {
    pb::RouteConfiguration, pb::VirtualHost, pb::Route, pb::Decorator, pb::Tracing, pb::VirtualCluster, Rds,
}

const NO_VHDS: &str = "the discovery of virtual hosts (VHDS) is not implemented";
const NO_PLUGINS: &str = "cluster specifier plugins are not implemented";
const NO_SPECIFIERS: &str = "route specifiers are not implemented";
const NO_HEDGE: &str = "hedging is not implemented: a request is sent once at a time";
const NO_TREE: &str = "matching trees are not implemented: use routes";
const CORS: &str = "envoy.filters.http.cors";
const BODY_LIMIT: u32 = 4096;

lower! { "envoy.config.route.v3.RouteConfiguration" pb::RouteConfiguration => RouteConfiguration, cx;
    read {
        name, virtual_hosts, internal_only_headers, response_headers_to_add, response_headers_to_remove,
        request_headers_to_add, request_headers_to_remove, most_specific_header_mutations_wins, validate_clusters,
        max_direct_response_body_size_bytes, request_mirror_policies, ignore_port_in_host_matching, vhost_header,
        ignore_path_parameters_in_path_matching, typed_per_filter_config, metadata
    }
    reject {
        vhds: NO_VHDS,
        cluster_specifier_plugins: NO_PLUGINS,
        route_specifiers: NO_SPECIFIERS,
    }
    {
        let edits = Edits {
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
        };
        let virtual_hosts = cx.list("virtual_hosts", virtual_hosts);
        domains_are_unique(cx, &name, &virtual_hosts);
        let body_limit = number(max_direct_response_body_size_bytes).unwrap_or(BODY_LIMIT);
        bodies_fit(cx, &virtual_hosts, body_limit);
        Some(RouteConfiguration {
            name: name.into(),
            virtual_hosts,
            internal_only_headers: header_names(cx, "internal_only_headers", &internal_only_headers),
            headers: edits.lower(cx),
            most_specific_header_mutations_wins,
            validate_clusters: validate_clusters.map(|validate| validate.value),
            max_direct_response_body_size_bytes: body_limit,
            mirror: cx.list("request_mirror_policies", request_mirror_policies),
            ignore_port_in_host_matching,
            vhost_header: optional_name(cx, "vhost_header", &vhost_header),
            ignore_path_parameters_in_path_matching,
            per_filter: per_filter::lower(cx, typed_per_filter_config),
            metadata: metadata_of(cx, "metadata", metadata),
        })
    }
}

/// In Envoy's words.
fn domains_are_unique(cx: &mut Cx, name: &str, hosts: &[VirtualHost]) {
    let mut seen = HashSet::new();
    for (index, host) in hosts.iter().enumerate() {
        for domain in &host.domains {
            if seen.insert(domain.clone()) {
                continue;
            }
            let why = if **domain == *"*" {
                format!("Only a single wildcard domain is permitted in route {name}")
            } else {
                format!(
                    "Only unique values for domains are permitted. Duplicate entry of domain {domain} in route {name}"
                )
            };
            cx.field("virtual_hosts", |cx| cx.index(index, |cx| cx.reject("domains", why)));
        }
    }
}

/// Bodies that are read from files are looked at where they are read.
fn bodies_fit(cx: &mut Cx, hosts: &[VirtualHost], limit: u32) {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    for (at, host) in hosts.iter().enumerate() {
        for (index, route) in host.routes.iter().enumerate() {
            let Action::DirectResponse(response) = &route.action else { continue };
            let Content::Inline(bytes) = &response.body else { continue };
            if bytes.len() > limit {
                let why = format!("response body size is {} bytes; maximum is {limit}", bytes.len());
                cx.field("virtual_hosts", |cx| {
                    cx.index(at, |cx| {
                        cx.field("routes", |cx| {
                            cx.index(index, |cx| cx.field("direct_response", |cx| cx.reject("body", why)));
                        });
                    });
                });
            }
        }
    }
}

lower! { "envoy.config.route.v3.VirtualHost" pb::VirtualHost => VirtualHost, cx;
    read {
        name, domains, routes, require_tls, virtual_clusters, rate_limits, request_headers_to_add,
        request_headers_to_remove, response_headers_to_add, response_headers_to_remove, cors,
        typed_per_filter_config, include_request_attempt_count, include_attempt_count_in_response, retry_policy,
        include_is_timeout_retry_header, per_request_buffer_limit_bytes, request_body_buffer_limit,
        request_mirror_policies, metadata
    }
    reject {
        matcher: NO_TREE,
        retry_policy_typed_config: "retry policies by extension are not implemented: use retry_policy",
        hedge_policy: NO_HEDGE,
        route_specifiers: NO_SPECIFIERS,
    }
    {
        let name: Option<Arc<str>> = cx.name("name", name);
        let edits = Edits {
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
        };
        let cors = cors.and_then(|policy| cx.lower("cors", policy)).map(super::filters::cors::per_route);
        let require_tls = match cx.variant("require_tls", require_tls)? {
            pb::virtual_host::TlsRequirementType::None => RequireTls::None,
            pb::virtual_host::TlsRequirementType::ExternalOnly => RequireTls::ExternalOnly,
            pb::virtual_host::TlsRequirementType::All => RequireTls::All,
        };
        let per_filter = per_filter::lower(cx, typed_per_filter_config);
        Some(VirtualHost {
            domains: domains_of(cx, domains),
            routes: cx.list("routes", routes),
            require_tls,
            virtual_clusters: cx.list("virtual_clusters", virtual_clusters),
            rate_limits: cx.list("rate_limits", rate_limits),
            headers: edits.lower(cx),
            per_filter: with_cors(per_filter, cors),
            include_request_attempt_count,
            include_attempt_count_in_response,
            include_is_timeout_retry_header,
            retry_policy: retry_policy.and_then(|policy| cx.lower("retry_policy", policy)).map(Arc::new),
            request_body_buffer_limit: buffer_limit(cx, per_request_buffer_limit_bytes, request_body_buffer_limit),
            mirror: cx.list("request_mirror_policies", request_mirror_policies),
            metadata: metadata_of(cx, "metadata", metadata),
            name: name?,
        })
    }
}

fn domains_of(cx: &mut Cx, domains: Vec<String>) -> Vec<Arc<str>> {
    if domains.is_empty() {
        cx.reject("domains", "must have at least one");
    }
    let mut lowered = Vec::with_capacity(domains.len());
    for domain in domains {
        plain(cx, "domains", &domain);
        lowered.push(domain.to_ascii_lowercase().into());
    }
    lowered
}

/// The deprecated field goes where the filter has its own; that one holds where both are given.
fn with_cors(mut per_filter: PerFilters, cors: Option<PerFilter>) -> PerFilters {
    if let Some(cors) = cors {
        per_filter.get_or_insert_with(CORS, || cors);
    }
    per_filter
}

fn buffer_limit(cx: &mut Cx, old: Option<UInt32Value>, new: Option<UInt64Value>) -> Option<u64> {
    if old.is_some() && new.is_some() {
        cx.warn("per_request_buffer_limit_bytes", "has no effect beside request_body_buffer_limit");
    }
    new.map(|limit| limit.value).or(number(old).map(u64::from))
}

lower! { "envoy.config.route.v3.Route" pb::Route => Route, cx;
    read {
        name, r#match, metadata, decorator, typed_per_filter_config, request_headers_to_add,
        request_headers_to_remove, response_headers_to_add, response_headers_to_remove, tracing,
        per_request_buffer_limit_bytes, stat_prefix, request_body_buffer_limit, action
    }
    reject {
        route_specifiers: NO_SPECIFIERS,
    }
    {
        let matcher = cx.required("match", r#match);
        let edits = Edits {
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
        };
        let per_filter = per_filter::lower(cx, typed_per_filter_config);
        let (action, cors) = action_of(cx, action, matcher.as_ref())?;
        Some(Route {
            name: name.into(),
            action,
            headers: edits.lower(cx),
            metadata: metadata_of(cx, "metadata", metadata),
            decorator: decorator.and_then(|decorator| cx.lower("decorator", decorator)),
            per_filter: with_cors(per_filter, cors),
            tracing: tracing.and_then(|tracing| cx.lower("tracing", tracing)).map(Box::new),
            request_body_buffer_limit: buffer_limit(cx, per_request_buffer_limit_bytes, request_body_buffer_limit),
            stat_prefix: Some(Arc::<str>::from(stat_prefix)).filter(|prefix| !prefix.is_empty()),
            matcher: matcher?,
        })
    }
}

fn action_of(
    cx: &mut Cx,
    action: Option<pb::route::Action>,
    matcher: Option<&RouteMatch>,
) -> Option<(Action, Option<PerFilter>)> {
    match action {
        Some(pb::route::Action::Route(route)) => cx.field("route", |cx| route_action(cx, route, matcher)),
        Some(pb::route::Action::Redirect(redirect)) => {
            cx.lower("redirect", redirect).map(|redirect| (Action::Redirect(Box::new(redirect)), None))
        }
        Some(pb::route::Action::DirectResponse(response)) => cx
            .lower("direct_response", response)
            .map(|response| (Action::DirectResponse(Box::new(response)), None)),
        Some(pb::route::Action::NonForwardingAction(pb::NonForwardingAction {})) => {
            Some((Action::NonForwarding, None))
        }
        Some(pb::route::Action::FilterAction(_)) => {
            cx.reject("filter_action", "is for other protocols than HTTP");
            None
        }
        None => {
            cx.reject("action", "is required");
            None
        }
    }
}

fn route_action(
    cx: &mut Cx,
    route: pb::RouteAction,
    matcher: Option<&RouteMatch>,
) -> Option<(Action, Option<PerFilter>)> {
    let action::Lowered { mut action, cors, template } = crate::lower::Lower::lower(route, cx)?;
    let by_template = matcher.is_some_and(|matcher| matches!(matcher.path, PathMatch::Template(_)));
    if by_template && matches!(action.path_rewrite, PathRewrite::Prefix(_)) {
        cx.reject("prefix_rewrite", "cannot be given with path_match_policy");
    }
    if let (Some(template), Some(matcher)) = (template, matcher) {
        action.path_rewrite = PathRewrite::Template(action::bind(cx, &template, &matcher.path)?);
    }
    Some((Action::Route(Box::new(action)), cors))
}

lower! { "envoy.config.route.v3.Decorator" pb::Decorator => Decorator, cx;
    read { operation, propagate }
    {
        Some(Decorator { operation: cx.name("operation", operation)?, propagate: flag(propagate, true) })
    }
}

lower! { "envoy.config.route.v3.Tracing" pb::Tracing => RouteTracing, cx;
    read { client_sampling, random_sampling, overall_sampling, custom_tags, operation, upstream_operation }
    {
        Some(RouteTracing {
            client_sampling: client_sampling.and_then(|sampling| cx.lower("client_sampling", sampling)),
            random_sampling: random_sampling.and_then(|sampling| cx.lower("random_sampling", sampling)),
            overall_sampling: overall_sampling.and_then(|sampling| cx.lower("overall_sampling", sampling)),
            custom_tags: cx.list("custom_tags", custom_tags),
            operation: optional_format(cx, "operation", &operation),
            upstream_operation: optional_format(cx, "upstream_operation", &upstream_operation),
        })
    }
}

lower! { "envoy.config.route.v3.VirtualCluster" pb::VirtualCluster => VirtualCluster, cx;
    read { headers, name }
    {
        let name: Option<Arc<str>> = cx.name("name", name);
        if headers.is_empty() {
            cx.reject("headers", "must have at least one");
        }
        Some(VirtualCluster { headers: cx.list("headers", headers), name: name? })
    }
}

lower! { "envoy.extensions.filters.network.http_connection_manager.v3.Rds" Rds => RouteRef, cx;
    read { config_source, route_config_name }
    {
        let source = cx.required("config_source", config_source);
        let name = cx.name("route_config_name", route_config_name);
        Some(RouteRef { name: name?, source: source? })
    }
}

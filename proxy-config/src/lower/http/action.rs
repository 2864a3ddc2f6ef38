//! What a route does: `RouteAction`, `RedirectAction`, `DirectResponseAction`.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig;
use pb::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
use pb::route_action as inner;

use super::header::{self, header_name, plain};
use crate::lower::core::metadata as metadata_of;
use crate::lower::extension::Extension;
use crate::lower::registry::registry;
use crate::lower::value::flag;
use crate::lower::{Cx, Lower};
use crate::model::http::Content;
use crate::model::http::action::{
    ClusterName, ClusterSpecifier, DirectResponse, HostRewrite, MaxGrpcTimeout, PathRewrite, Priority,
    Redirect, RedirectPath, RouteAction, SchemeRewrite, TemplateRewrite,
};
use crate::model::http::filter::PerFilter;
use crate::model::http::route_match::PathMatch;
use crate::model::tls::DataSource;

registry! { pb::RouteAction, pb::RedirectAction, pb::DirectResponseAction, UriTemplateRewriteConfig }

const TIMEOUT: Duration = Duration::from_secs(15);
const NO_HEDGE: &str = "hedging is not implemented: a request is sent once at a time";

/// A route's action, and what it is still to be bound to.
#[derive(Debug)]
pub struct Lowered {
    pub(super) action: RouteAction,
    /// An older place of a filter's configuration.
    pub(super) cors: Option<PerFilter>,
    /// `path_rewrite_policy`: its variables are those of the route's match.
    pub(super) template: Option<Arc<str>>,
}

lower! { "envoy.config.route.v3.RouteAction" pb::RouteAction => Lowered, cx;
    read {
        cluster_not_found_response_code, metadata_match, prefix_rewrite, regex_rewrite, path_rewrite_policy,
        path_rewrite, append_x_forwarded_host, timeout, idle_timeout, flush_timeout, retry_policy,
        request_mirror_policies, priority, rate_limits, include_vh_rate_limits, hash_policy, cors, max_grpc_timeout,
        grpc_timeout_offset, upgrade_configs, internal_redirect_policy, internal_redirect_action,
        max_internal_redirects, max_stream_duration, cluster_specifier, host_rewrite_specifier
    }
    reject {
        retry_policy_typed_config: "retry policies by extension are not implemented: use retry_policy",
        hedge_policy: NO_HEDGE,
    }
    warn {
        early_data_policy: "requests in TLS early data are never accepted, nor sent",
    }
    {
        let metadata_match = metadata_of(cx, "metadata_match", metadata_match);
        let cluster = cluster(cx, cluster_specifier, &metadata_match);
        let paths = Paths { prefix_rewrite, regex_rewrite, path_rewrite_policy, path_rewrite };
        let (path_rewrite, template) = paths.lower(cx);
        let host_rewrite = host_rewrite(cx, host_rewrite_specifier);
        let priority = match cx.variant("priority", priority)? {
            core::RoutingPriority::Default => Priority::Default,
            core::RoutingPriority::High => Priority::High,
        };
        let redirects = super::action_parts::Redirects {
            policy: internal_redirect_policy,
            action: internal_redirect_action,
            max: max_internal_redirects,
        };
        let cors = cors.and_then(|policy| cx.lower("cors", policy)).map(super::filters::cors::per_route);
        let given = |value: Option<_>| value.is_some();
        let (has_idle, has_flush) = (given(idle_timeout), given(flush_timeout));
        let idle_timeout = cx.timeout("idle_timeout", idle_timeout, None);
        let flush_timeout = cx.timeout("flush_timeout", flush_timeout, None);
        let has_grpc = given(max_grpc_timeout);
        let max_grpc = cx.timeout("max_grpc_timeout", max_grpc_timeout, None);
        let grpc_offset = cx.duration("grpc_timeout_offset", grpc_timeout_offset);
        if grpc_offset.is_some() && !has_grpc {
            cx.warn("grpc_timeout_offset", "has no effect without max_grpc_timeout");
        }
        let action = RouteAction {
            cluster: cluster?,
            cluster_not_found_status: not_found(cx, cluster_not_found_response_code)?,
            metadata_match,
            path_rewrite,
            host_rewrite: host_rewrite?,
            append_x_forwarded_host,
            timeout: cx.timeout("timeout", timeout, Some(TIMEOUT)),
            idle_timeout: has_idle.then_some(idle_timeout),
            flush_timeout: has_flush.then_some(flush_timeout),
            retry_policy: retry_policy.and_then(|policy| cx.lower("retry_policy", policy)).map(Arc::new),
            mirror: cx.list("request_mirror_policies", request_mirror_policies),
            priority,
            hash_policy: cx.list("hash_policy", hash_policy).into_iter().flatten().collect(),
            max_grpc_timeout: has_grpc
                .then(|| MaxGrpcTimeout { max: max_grpc, offset: grpc_offset.unwrap_or_default() }),
            upgrades: super::action_parts::upgrades(cx, upgrade_configs),
            internal_redirect: redirects.lower(cx),
            max_stream_duration: max_stream_duration.and_then(|max| cx.lower("max_stream_duration", max)),
            rate_limits: cx.list("rate_limits", rate_limits),
            include_vh_rate_limits: flag(include_vh_rate_limits, false),
        };
        Some(Lowered { action, cors, template })
    }
}

fn not_found(cx: &mut Cx, code: i32) -> Option<u16> {
    use inner::ClusterNotFoundResponseCode as Code;
    Some(match cx.variant("cluster_not_found_response_code", code)? {
        Code::ServiceUnavailable => 503,
        Code::NotFound => 404,
        Code::InternalServerError => 500,
    })
}

fn cluster(
    cx: &mut Cx,
    specifier: Option<inner::ClusterSpecifier>,
    outer: &crate::model::Metadata,
) -> Option<ClusterSpecifier> {
    use inner::ClusterSpecifier as Kind;
    const NO_PLUGINS: &str = "cluster specifier plugins are not implemented";
    match specifier {
        Some(Kind::Cluster(name)) => cx.name("cluster", name).map(ClusterSpecifier::Cluster),
        Some(Kind::ClusterHeader(name)) => {
            header_name(cx, "cluster_header", &name).map(ClusterSpecifier::Header)
        }
        Some(Kind::WeightedClusters(weighted)) => {
            let mut weighted = cx.lower("weighted_clusters", weighted)?;
            for cluster in &mut weighted.clusters {
                crate::lower::network_filter::merge(&mut cluster.metadata_match, outer);
            }
            Some(ClusterSpecifier::Weighted(Box::new(weighted)))
        }
        Some(Kind::ClusterSpecifierPlugin(name)) => {
            cx.reject("cluster_specifier_plugin", format!("\"{name}\": {NO_PLUGINS}"));
            None
        }
        Some(Kind::InlineClusterSpecifierPlugin(_)) => {
            cx.reject("inline_cluster_specifier_plugin", NO_PLUGINS);
            None
        }
        None => {
            cx.reject("cluster_specifier", "is required");
            None
        }
    }
}

/// The four ways to another path.
struct Paths {
    prefix_rewrite: String,
    regex_rewrite: Option<envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute>,
    path_rewrite_policy: Option<core::TypedExtensionConfig>,
    path_rewrite: String,
}

impl Paths {
    /// The text of a template beside.
    fn lower(self, cx: &mut Cx) -> (PathRewrite, Option<Arc<str>>) {
        let Self { prefix_rewrite, regex_rewrite, path_rewrite_policy, path_rewrite } = self;
        let given = [
            ("prefix_rewrite", !prefix_rewrite.is_empty()),
            ("regex_rewrite", regex_rewrite.is_some()),
            ("path_rewrite_policy", path_rewrite_policy.is_some()),
            ("path_rewrite", !path_rewrite.is_empty()),
        ];
        let mut given = given.into_iter().filter(|(_, set)| *set).map(|(name, _)| name);
        if let (Some(first), Some(second)) = (given.next(), given.next()) {
            cx.reject(second, format!("cannot be given with {first}"));
        }
        plain(cx, "prefix_rewrite", &prefix_rewrite);
        let template = path_rewrite_policy
            .and_then(|policy| cx.field("path_rewrite_policy", |cx| rewrite_policy(cx, policy)));
        let rewrite = if !prefix_rewrite.is_empty() {
            Some(PathRewrite::Prefix(prefix_rewrite.into()))
        } else if let Some(regex) = regex_rewrite {
            cx.lower("regex_rewrite", regex).map(PathRewrite::Regex)
        } else if path_rewrite.is_empty() {
            None
        } else {
            header::format(cx, "path_rewrite", &path_rewrite, &[]).map(PathRewrite::Format)
        };
        (rewrite.unwrap_or_default(), template)
    }
}

/// `envoy.path.rewrite.uri_template.uri_template_rewriter`, the only such extension: its text.
fn rewrite_policy(cx: &mut Cx, policy: core::TypedExtensionConfig) -> Option<Arc<str>> {
    let Some(any) = policy.typed_config else {
        cx.reject("typed_config", "is required");
        return None;
    };
    let e = Extension::unpack(cx, &any)?;
    if e.type_name != UriTemplateRewriteConfig::NAME {
        return e.refuse(cx);
    }
    e.lower::<UriTemplateRewriteConfig>(cx)
}

lower! { "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig"
    UriTemplateRewriteConfig => Arc<str>, cx;
    read { path_template_rewrite }
    {
        cx.name("path_template_rewrite", path_template_rewrite)
    }
}

fn host_rewrite(cx: &mut Cx, specifier: Option<inner::HostRewriteSpecifier>) -> Option<HostRewrite> {
    use inner::HostRewriteSpecifier as Kind;
    Some(match specifier {
        Some(Kind::HostRewriteLiteral(host)) => {
            plain(cx, "host_rewrite_literal", &host);
            HostRewrite::Literal(host.into())
        }
        Some(Kind::AutoHostRewrite(auto)) if auto.value => HostRewrite::Auto,
        Some(Kind::AutoHostRewrite(_)) | None => HostRewrite::None,
        Some(Kind::HostRewriteHeader(name)) => {
            HostRewrite::Header(header_name(cx, "host_rewrite_header", &name)?)
        }
        Some(Kind::HostRewritePathRegex(regex)) => {
            HostRewrite::PathRegex(cx.lower("host_rewrite_path_regex", regex)?)
        }
        Some(Kind::HostRewrite(text)) => HostRewrite::Format(header::format(cx, "host_rewrite", &text, &[])?),
    })
}

/// One of the two.
pub(super) fn cluster_name(
    cx: &mut Cx,
    field: &'static str,
    name: String,
    header: &str,
) -> Option<ClusterName> {
    match (name.is_empty(), header.is_empty()) {
        (false, true) => Some(ClusterName::Name(name.into())),
        (true, false) => header_name(cx, "cluster_header", header).map(ClusterName::Header),
        (true, true) => {
            cx.reject(field, "this or cluster_header is required");
            None
        }
        (false, false) => {
            cx.reject("cluster_header", format!("cannot be given with {field}"));
            None
        }
    }
}

lower! { "envoy.config.route.v3.RedirectAction" pb::RedirectAction => Redirect, cx;
    read { host_redirect, port_redirect, response_code, strip_query, scheme_rewrite_specifier, path_rewrite_specifier }
    {
        let scheme = match scheme_rewrite_specifier {
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => SchemeRewrite::Https,
            Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => SchemeRewrite::None,
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) if scheme.is_empty() => SchemeRewrite::None,
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => SchemeRewrite::Scheme(scheme.into()),
        };
        let status = match cx.variant("response_code", response_code)? {
            RedirectResponseCode::MovedPermanently => 301,
            RedirectResponseCode::Found => 302,
            RedirectResponseCode::SeeOther => 303,
            RedirectResponseCode::TemporaryRedirect => 307,
            RedirectResponseCode::PermanentRedirect => 308,
        };
        plain(cx, "host_redirect", &host_redirect);
        let port = cx.port("port_redirect", port_redirect);
        let path = redirect_path(cx, path_rewrite_specifier);
        Some(Redirect { scheme, host: host_redirect.into(), port: port?, path: path?, status, strip_query })
    }
}

fn redirect_path(cx: &mut Cx, specifier: Option<PathRewriteSpecifier>) -> Option<RedirectPath> {
    Some(match specifier {
        None => RedirectPath::None,
        Some(PathRewriteSpecifier::PathRedirect(path)) if path.is_empty() => RedirectPath::None,
        Some(PathRewriteSpecifier::PathRedirect(path)) => {
            plain(cx, "path_redirect", &path);
            RedirectPath::Path(path.into())
        }
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) if prefix.is_empty() => RedirectPath::None,
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
            plain(cx, "prefix_rewrite", &prefix);
            RedirectPath::Prefix(prefix.into())
        }
        Some(PathRewriteSpecifier::RegexRewrite(regex)) => {
            RedirectPath::Regex(cx.lower("regex_rewrite", regex)?)
        }
        Some(PathRewriteSpecifier::PathRewrite(text)) => {
            RedirectPath::Format(header::format(cx, "path_rewrite", &text, &[])?)
        }
    })
}

lower! { "envoy.config.route.v3.DirectResponseAction" pb::DirectResponseAction => DirectResponse, cx;
    read { status, body, body_format }
    {
        let status = cx.ranged("status", status, 200..=599);
        let body = match body {
            Some(body) => cx.lower("body", body).map(content)?,
            None => Content::default(),
        };
        let body_format =
            body_format.and_then(|format| crate::lower::access_log::body_format(cx, "body_format", format));
        Some(DirectResponse { status: u16::try_from(status?).ok()?, body, body_format })
    }
}

pub(in crate::lower) fn content(source: DataSource) -> Content {
    match source {
        DataSource::Inline(bytes) => Content::Inline(bytes),
        DataSource::File(path) => Content::File(path),
        DataSource::Environment(name) => Content::Environment(name),
    }
}

/// The rewrite of a template, once the match is known.
pub(super) fn bind(cx: &mut Cx, template: &str, path: &PathMatch) -> Option<TemplateRewrite> {
    let PathMatch::Template(of) = path else {
        cx.reject("path_rewrite_policy", "needs a path_match_policy, whose variables it has");
        return None;
    };
    match TemplateRewrite::parse(template, of) {
        Ok(rewrite) => Some(rewrite),
        Err(why) => {
            cx.reject("path_rewrite_policy", why);
            None
        }
    }
}

//! `envoy.filters.network.rbac` and `config.rbac.v3`. It decides about security: what cannot be honoured is refused,
//! and one refused rule refuses the whole.

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::rbac::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as ext;
use envoy_types::pb::envoy::extensions::rbac::principals::mtls_authenticated::v3 as mtls;

use super::extension::Extension;
use super::http::route_match::template_match;
use super::listener_filter::all;
use super::registry::registry;
use super::{Cx, Lower};
use crate::model::matcher::MetadataMatcher;
use crate::model::network_filter::{Permission, Principal, Rbac, RbacAction, RbacPolicy, RbacRules};

registry! {
    ext::Rbac, pb::Rbac, pb::Policy, pb::Permission, pb::permission::Set, pb::Principal, pb::principal::Set,
    pb::principal::Authenticated, pb::SourcedMetadata, mtls::Config,
}

const NEVER: &str = "never matches a connection: it has no request";

lower! { "envoy.extensions.filters.network.rbac.v3.RBAC" ext::Rbac => Rbac, cx;
    read { rules, shadow_rules, shadow_rules_stat_prefix, stat_prefix, enforcement_type, delay_deny }
    reject {
        matcher: "matching trees are not implemented: use rules",
        shadow_matcher: "matching trees are not implemented: use shadow_rules",
    }
    {
        use ext::rbac::EnforcementType;
        let stat_prefix = cx.name("stat_prefix", stat_prefix);
        if let EnforcementType::Continuous = cx.variant("enforcement_type", enforcement_type)? {
            let why = "CONTINUOUS judges once: nothing that a rule looks at changes while a connection lasts";
            cx.warn("enforcement_type", why);
        }
        let given = (rules.is_some(), shadow_rules.is_some());
        let rules = rules.and_then(|rules| cx.lower("rules", rules));
        let shadow_rules = shadow_rules.and_then(|rules| cx.lower("shadow_rules", rules));
        if given != (rules.is_some(), shadow_rules.is_some()) {
            return None;
        }
        Some(Rbac {
            rules,
            shadow_rules,
            shadow_rules_stat_prefix: shadow_rules_stat_prefix.into(),
            delay_deny: cx.timeout("delay_deny", delay_deny, None),
            stat_prefix: stat_prefix?,
        })
    }
}

lower! { "envoy.config.rbac.v3.RBAC" pb::Rbac => RbacRules, cx;
    read { action, policies }
    warn { audit_logging_options: "audit loggers are not implemented" }
    {
        let action = match cx.variant("action", action)? {
            pb::rbac::Action::Allow => RbacAction::Allow,
            pb::rbac::Action::Deny => RbacAction::Deny,
            pb::rbac::Action::Log => RbacAction::Log,
        };
        let count = policies.len();
        let policies = cx.map("policies", policies);
        (policies.len() == count).then_some(RbacRules { action, policies })
    }
}

lower! { "envoy.config.rbac.v3.Policy" pb::Policy => RbacPolicy, cx;
    read { permissions, principals }
    reject {
        condition: "CEL conditions are not implemented",
        checked_condition: "CEL conditions are not implemented",
        cel_config: "CEL conditions are not implemented",
    }
    {
        let permissions = some_of(cx, "permissions", permissions);
        let principals = some_of(cx, "principals", principals);
        Some(RbacPolicy { permissions: permissions?, principals: principals? })
    }
}

fn some_of<M: Lower>(cx: &mut Cx, field: &'static str, messages: Vec<M>) -> Option<Vec<M::Model>> {
    if messages.is_empty() {
        cx.reject(field, "must have at least one");
        return None;
    }
    all(cx, field, messages)
}

lower! { "envoy.config.rbac.v3.Permission.Set" pb::permission::Set => Vec<Permission>, cx;
    read { rules }
    {
        some_of(cx, "rules", rules)
    }
}

lower! { "envoy.config.rbac.v3.Principal.Set" pb::principal::Set => Vec<Principal>, cx;
    read { ids }
    {
        some_of(cx, "ids", ids)
    }
}

lower! { "envoy.config.rbac.v3.Permission" pb::Permission => Permission, cx;
    read { rule }
    {
        use pb::permission::Rule;
        match rule {
            Some(Rule::AndRules(set)) => cx.lower("and_rules", set).map(Permission::And),
            Some(Rule::OrRules(set)) => cx.lower("or_rules", set).map(Permission::Or),
            Some(Rule::NotRule(not)) => cx.lower("not_rule", *not).map(Box::new).map(Permission::Not),
            Some(Rule::Any(any)) => must_be_true(cx, any).then_some(Permission::Any),
            Some(Rule::Header(_)) if !cx.requests => refuse_header(cx),
            Some(Rule::Header(header)) => cx.lower("header", header).map(Permission::Header),
            Some(Rule::UrlPath(matcher)) => {
                never_of_connections(cx, "url_path");
                cx.lower("url_path", matcher).map(Permission::UrlPath)
            }
            Some(Rule::DestinationIp(range)) => cx.lower("destination_ip", range).map(Permission::DestinationIp),
            Some(Rule::DestinationPort(port)) => {
                cx.port("destination_port", port).map(Permission::DestinationPort)
            }
            Some(Rule::DestinationPortRange(range)) => port_range(cx, &range),
            Some(Rule::Metadata(matcher)) => cx.lower("metadata", matcher).map(Permission::Metadata),
            Some(Rule::SourcedMetadata(sourced)) => {
                cx.lower("sourced_metadata", sourced).map(|(matcher, of_route)| match of_route {
                    true => Permission::RouteMetadata(matcher),
                    false => Permission::Metadata(matcher),
                })
            }
            Some(Rule::RequestedServerName(matcher)) => {
                cx.lower("requested_server_name", matcher).map(Permission::RequestedServerName)
            }
            Some(Rule::Matcher(extension)) => refuse(cx, "matcher", &extension.name),
            Some(Rule::UriTemplate(extension)) if !cx.requests => refuse(cx, "uri_template", &extension.name),
            Some(Rule::UriTemplate(extension)) => {
                cx.field("uri_template", |cx| template_match(cx, extension)).map(Permission::UriTemplate)
            }
            None => {
                cx.reject("rule", "is required");
                None
            }
        }
    }
}

fn must_be_true(cx: &mut Cx, any: bool) -> bool {
    if !any {
        cx.reject("any", "must be true");
    }
    any
}

fn never_of_connections(cx: &mut Cx, field: &'static str) {
    if !cx.requests {
        cx.warn(field, NEVER);
    }
}

/// There is no request: Envoy's network filter refuses such a rule.
fn refuse_header<T>(cx: &mut Cx) -> Option<T> {
    cx.reject("header", "is not supported for connections, as in Envoy");
    None
}

fn port_range(cx: &mut Cx, range: &envoy_types::pb::envoy::r#type::v3::Int32Range) -> Option<Permission> {
    let bounds = (u32::try_from(range.start), u32::try_from(range.end));
    match bounds {
        (Ok(start @ 0..=65_535), Ok(end @ 1..=65_536)) if start < end => {
            Some(Permission::DestinationPortRange(start, end))
        }
        (Ok(_) | Err(_), Ok(_) | Err(_)) => {
            cx.reject(
                "destination_port_range",
                "must be from a start of 0 or more to an end of at most 65536, after it",
            );
            None
        }
    }
}

fn refuse<T>(cx: &mut Cx, field: &'static str, name: &str) -> Option<T> {
    cx.reject(field, format!("\"{name}\": RBAC extensions are not implemented"));
    None
}

lower! { "envoy.config.rbac.v3.Principal" pb::Principal => Principal, cx;
    read { identifier }
    {
        use pb::principal::Identifier;
        match identifier {
            Some(Identifier::AndIds(set)) => cx.lower("and_ids", set).map(Principal::And),
            Some(Identifier::OrIds(set)) => cx.lower("or_ids", set).map(Principal::Or),
            Some(Identifier::NotId(not)) => cx.lower("not_id", *not).map(Box::new).map(Principal::Not),
            Some(Identifier::Any(any)) => must_be_true(cx, any).then_some(Principal::Any),
            Some(Identifier::Authenticated(peer)) => cx.lower("authenticated", peer),
            Some(Identifier::SourceIp(range)) => cx.lower("source_ip", range).map(Principal::DirectRemoteIp),
            Some(Identifier::DirectRemoteIp(range)) => {
                cx.lower("direct_remote_ip", range).map(Principal::DirectRemoteIp)
            }
            Some(Identifier::RemoteIp(range)) => cx.lower("remote_ip", range).map(Principal::RemoteIp),
            Some(Identifier::Header(_)) if !cx.requests => refuse_header(cx),
            Some(Identifier::Header(header)) => cx.lower("header", header).map(Principal::Header),
            Some(Identifier::UrlPath(matcher)) => {
                never_of_connections(cx, "url_path");
                cx.lower("url_path", matcher).map(Principal::UrlPath)
            }
            Some(Identifier::Metadata(matcher)) => cx.lower("metadata", matcher).map(Principal::Metadata),
            Some(Identifier::SourcedMetadata(sourced)) => {
                cx.lower("sourced_metadata", sourced).map(|(matcher, of_route)| match of_route {
                    true => Principal::RouteMetadata(matcher),
                    false => Principal::Metadata(matcher),
                })
            }
            Some(Identifier::FilterState(_)) => {
                cx.reject("filter_state", "principals of the filter state are not implemented");
                None
            }
            Some(Identifier::Custom(extension)) => cx.field("custom", |cx| custom(cx, extension)),
            None => {
                cx.reject("identifier", "is required");
                None
            }
        }
    }
}

fn custom(cx: &mut Cx, extension: TypedExtensionConfig) -> Option<Principal> {
    let Some(any) = &extension.typed_config else {
        cx.reject("typed_config", "is required");
        return None;
    };
    let unpacked = Extension::unpack(cx, any)?;
    if unpacked.type_name != mtls::Config::NAME {
        cx.reject_here(format!("\"{}\": this RBAC extension is not implemented", extension.name));
        return None;
    }
    unpacked.lower::<mtls::Config>(cx)
}

lower! { "envoy.extensions.rbac.principals.mtls_authenticated.v3.Config" mtls::Config => Principal, cx;
    read { san_matcher, any_validated_client_certificate }
    {
        if san_matcher.is_some() && any_validated_client_certificate {
            cx.warn("any_validated_client_certificate", "has no effect beside san_matcher");
        }
        match san_matcher {
            Some(matcher) => cx.lower("san_matcher", matcher).map(|m| Principal::MtlsAuthenticated(Some(m))),
            None if any_validated_client_certificate => Some(Principal::MtlsAuthenticated(None)),
            None => {
                cx.reject_here("needs san_matcher or any_validated_client_certificate");
                None
            }
        }
    }
}

lower! { "envoy.config.rbac.v3.Principal.Authenticated" pb::principal::Authenticated => Principal, cx;
    read { principal_name }
    {
        match principal_name {
            Some(matcher) => {
                cx.lower("principal_name", matcher).map(|m| Principal::Authenticated(Some(m)))
            }
            None => Some(Principal::Authenticated(None)),
        }
    }
}

/// A matcher, and whether it is of the route's metadata.
type Sourced = (MetadataMatcher, bool);

lower! { "envoy.config.rbac.v3.SourcedMetadata" pb::SourcedMetadata => Sourced, cx;
    read { metadata_matcher, metadata_source }
    {
        let matcher = cx.required("metadata_matcher", metadata_matcher);
        match cx.variant("metadata_source", metadata_source)? {
            pb::MetadataSource::Dynamic => Some((matcher?, false)),
            pb::MetadataSource::Route if cx.requests => Some((matcher?, true)),
            pb::MetadataSource::Route => {
                cx.reject("metadata_source", "a connection has no route: use DYNAMIC");
                None
            }
        }
    }
}

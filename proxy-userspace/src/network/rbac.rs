//! `envoy.filters.network.rbac`: who may connect to what.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use proxy_config::model::matcher::MetadataMatcher;
use proxy_config::model::metadata::{Struct, Value};
use proxy_config::model::network_filter::{
    Permission, Principal, Rbac as Config, RbacAction, RbacPolicy, RbacRules,
};
use proxy_config::model::tls::SanMatcher;
use proxy_config::model::{Cidr, StringMatcher};

use super::gates::{Close, Verdict};
use crate::net::facts::Facts;
use crate::telemetry::Flags;
use crate::telemetry::stats::{Stats, stats_block};
use crate::transport::tls::verify;

stats_block! {
    /// `<stat_prefix>.rbac.`
    pub struct RbacStats {
        counter allowed;
        counter denied;
    }
}

stats_block! {
    /// `<stat_prefix>.rbac.[<shadow_rules_stat_prefix>.]`
    pub struct RbacShadowStats {
        counter shadow_allowed;
        counter shadow_denied;
    }
}

/// Judges a connection once, by its first bytes or its end, whichever comes first. With
/// `enforcement_type: CONTINUOUS` Envoy asks again with every read; nothing that it judges by changes on a plain
/// connection, so the answer is the same and only counted once.
#[derive(Debug)]
pub struct Rbac {
    config: Config,
    stats: Arc<RbacStats>,
    shadow_stats: Arc<RbacShadowStats>,
}

/// What rules say of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Judgement<'a> {
    allowed: bool,
    policy: Option<&'a str>,
}

impl Rbac {
    pub fn new(config: &Config, stats: &Stats) -> Self {
        let prefix = format!("{}rbac", with_dot(&config.stat_prefix));
        let shadow = format!("{prefix}.{}", config.shadow_rules_stat_prefix);
        Self {
            config: config.clone(),
            stats: stats.block(prefix),
            shadow_stats: stats.block(shadow.trim_end_matches('.')),
        }
    }

    /// Judges, counts, and leaves the judgement of the shadow rules in the dynamic metadata.
    pub fn check(&self, facts: &mut Facts) -> Verdict {
        if let Some(rules) = &self.config.shadow_rules {
            let judgement = judge(rules, facts);
            let stats = &self.shadow_stats;
            if judgement.allowed {
                stats.shadow_allowed.inc()
            } else {
                stats.shadow_denied.inc()
            }
            note_shadow(&self.config.shadow_rules_stat_prefix, judgement, facts);
        }
        let Some(rules) = &self.config.rules else {
            return Verdict::Continue;
        };
        let judgement = judge(rules, facts);
        if rules.action == RbacAction::Log {
            let fields = metadata(facts, "envoy.common");
            fields.insert("access_log_hint".to_owned(), Value::Bool(judgement.policy.is_some()));
        }
        if judgement.allowed {
            self.stats.allowed.inc();
            return Verdict::Continue;
        }
        self.stats.denied.inc();
        Verdict::Close(Close {
            flags: Flags::NONE,
            details: Cow::Borrowed("rbac_deny_close"),
            response_code_details: None,
            termination_details: Some(denial(judgement.policy).into()),
            delay: self.config.delay_deny.filter(|delay| !delay.is_zero()),
            drain: true,
        })
    }
}

fn with_dot(prefix: &str) -> Cow<'_, str> {
    if prefix.is_empty() || prefix.ends_with('.') { prefix.into() } else { format!("{prefix}.").into() }
}

/// Log lines are split at white space, so there is none in it.
fn denial(policy: Option<&str>) -> String {
    let name = policy.unwrap_or("none");
    let name = name.replace([' ', '\t', '\n', '\r', '\x0b', '\x0c'], "_");
    format!("rbac_access_denied_matched_policy[{name}]")
}

fn note_shadow(prefix: &str, judgement: Judgement<'_>, facts: &mut Facts) {
    let fields = metadata(facts, "envoy.filters.network.rbac");
    let result = if judgement.allowed { "allowed" } else { "denied" };
    fields.insert(format!("{prefix}shadow_engine_result"), Value::String(result.to_owned()));
    if let Some(policy) = judgement.policy {
        fields.insert(format!("{prefix}shadow_effective_policy_id"), Value::String(policy.to_owned()));
    }
}

fn metadata<'a>(facts: &'a mut Facts, namespace: &str) -> &'a mut Struct {
    facts.extra_mut().dynamic_metadata.0.get_or_insert_with(namespace, Struct::new)
}

fn judge<'a>(rules: &'a RbacRules, facts: &Facts) -> Judgement<'a> {
    let matched = rules.policies.iter().find(|(_, policy)| matches(policy, facts));
    let policy = matched.map(|(name, _)| &**name);
    let allowed = match rules.action {
        RbacAction::Allow => policy.is_some(),
        RbacAction::Deny => policy.is_none(),
        RbacAction::Log => true,
    };
    Judgement { allowed, policy }
}

fn matches(policy: &RbacPolicy, facts: &Facts) -> bool {
    policy.permissions.iter().any(|p| permits(p, facts)) && policy.principals.iter().any(|p| is(p, facts))
}

fn permits(permission: &Permission, facts: &Facts) -> bool {
    let port = u32::from(facts.local.port());
    match permission {
        Permission::And(all) => all.iter().all(|p| permits(p, facts)),
        Permission::Or(any) => any.iter().any(|p| permits(p, facts)),
        Permission::Not(inner) => !permits(inner, facts),
        Permission::Any => true,
        // Of a request: a connection has none.
        Permission::Header(_)
        | Permission::UrlPath(_)
        | Permission::UriTemplate(_)
        | Permission::RouteMetadata(_) => false,
        Permission::DestinationIp(range) => within(range, facts.local.ip()),
        Permission::DestinationPort(wanted) => port == u32::from(*wanted),
        Permission::DestinationPortRange(from, to) => (*from..*to).contains(&port),
        Permission::Metadata(matcher) => has(matcher, facts),
        Permission::RequestedServerName(name) => {
            name.is_match(facts.server_name.as_deref().unwrap_or_default())
        }
    }
}

fn is(principal: &Principal, facts: &Facts) -> bool {
    match principal {
        Principal::And(all) => all.iter().all(|p| is(p, facts)),
        Principal::Or(any) => any.iter().any(|p| is(p, facts)),
        Principal::Not(inner) => !is(inner, facts),
        Principal::Any => true,
        Principal::Header(_) | Principal::UrlPath(_) | Principal::RouteMetadata(_) => false,
        Principal::Authenticated(name) => is_authenticated(name.as_ref(), facts),
        Principal::MtlsAuthenticated(name) => is_validated(name.as_ref(), facts),
        Principal::DirectRemoteIp(range) => within(range, facts.direct_remote.ip()),
        Principal::RemoteIp(range) => within(range, facts.remote.ip()),
        Principal::Metadata(matcher) => has(matcher, facts),
    }
}

/// As Envoy: TLS is enough where no name is asked for, even without a certificate; else one of the peer's URI or DNS
/// names or its subject must match, which is empty without a certificate.
fn is_authenticated(name: Option<&StringMatcher>, facts: &Facts) -> bool {
    let (Some(tls), Some(name)) = (&facts.tls, name) else {
        return facts.tls.is_some();
    };
    let Some(peer) = &tls.peer else {
        return name.is_match("");
    };
    let names = peer.uri_sans.iter().chain(&peer.dns_sans).chain([&peer.subject]);
    names.into_iter().any(|one| name.is_match(one))
}

/// The peer has a certificate that was found good, not only taken (`ACCEPT_UNTRUSTED`).
fn is_validated(name: Option<&SanMatcher>, facts: &Facts) -> bool {
    let validated = facts.tls.as_deref().filter(|tls| tls.peer_validated);
    let Some(peer) = validated.and_then(|tls| tls.peer.as_deref()) else {
        return false;
    };
    name.is_none_or(|name| verify::has_name(peer, name))
}

fn within(range: &Cidr, ip: IpAddr) -> bool {
    range.contains(ip.to_canonical())
}

fn has(matcher: &MetadataMatcher, facts: &Facts) -> bool {
    matcher.value.is_match(value_at(matcher, facts)) != matcher.invert
}

fn value_at<'a>(matcher: &MetadataMatcher, facts: &'a Facts) -> Option<&'a Value> {
    let mut fields = facts.extra.as_ref()?.dynamic_metadata.of(&matcher.filter)?;
    let (last, path) = matcher.path.split_last()?;
    for key in path {
        fields = match fields.get(key)? {
            Value::Struct(inner) => inner,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::List(_) => {
                return None;
            }
        };
    }
    fields.get(last)
}

#[cfg(test)]
mod tests;

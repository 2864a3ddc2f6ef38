//! What rules say of a connection, or of a request on it.

use std::net::IpAddr;

use proxy_config::model::http::HeaderMatcher;
use proxy_config::model::matcher::MetadataMatcher;
use proxy_config::model::metadata::{Metadata, Value};
use proxy_config::model::network_filter::{Permission, Principal, RbacAction, RbacPolicy, RbacRules};
use proxy_config::model::tls::SanMatcher;
use proxy_config::model::{Cidr, StringMatcher};

use crate::net::facts::Facts;
use crate::telemetry::HttpEntry;
use crate::transport::tls::verify;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Judgement<'a> {
    pub(crate) allowed: bool,
    pub(crate) policy: Option<&'a str>,
}

/// Who wants what.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    facts: &'a Facts,
    http: Option<&'a HttpEntry>,
}

impl<'a> Subject<'a> {
    /// Conditions on requests never hold for it.
    pub(crate) fn connection(facts: &'a Facts) -> Self {
        Self { facts, http: None }
    }

    pub(crate) fn request(facts: &'a Facts, http: &'a HttpEntry) -> Self {
        Self { facts, http: Some(http) }
    }

    fn has_header(self, matcher: &HeaderMatcher) -> bool {
        let Some(http) = self.http else { return false };
        let value = http.request.header(&matcher.name);
        matcher.is_match(value.as_deref().map(String::from_utf8_lossy).as_deref())
    }

    fn has_path(self, matches: impl FnOnce(&str) -> bool) -> bool {
        self.http.is_some_and(|http| matches(http.request.path_alone()))
    }

    /// Of the request, else of its connection.
    pub(super) fn has_metadata(self, matcher: &MetadataMatcher) -> bool {
        let connection = self.facts.extra.as_deref().map(|extra| &extra.dynamic_metadata);
        let request = self.http.map(|http| &http.dynamic_metadata);
        let value = value_at(matcher, request).or_else(|| value_at(matcher, connection));
        matcher.value.is_match(value) != matcher.invert
    }

    fn has_route_metadata(self, matcher: &MetadataMatcher) -> bool {
        self.http.is_some_and(|http| {
            let value = value_at(matcher, http.route_metadata.as_deref());
            matcher.value.is_match(value) != matcher.invert
        })
    }
}

pub(crate) fn judge<'a>(rules: &'a RbacRules, subject: Subject<'_>) -> Judgement<'a> {
    let matched = rules.policies.iter().find(|(_, policy)| matches(policy, subject));
    let policy = matched.map(|(name, _)| &**name);
    let allowed = match rules.action {
        RbacAction::Allow => policy.is_some(),
        RbacAction::Deny => policy.is_none(),
        RbacAction::Log => true,
    };
    Judgement { allowed, policy }
}

fn matches(policy: &RbacPolicy, subject: Subject<'_>) -> bool {
    policy.permissions.iter().any(|p| permits(p, subject)) && policy.principals.iter().any(|p| is(p, subject))
}

pub(super) fn permits(permission: &Permission, subject: Subject<'_>) -> bool {
    let facts = subject.facts;
    let port = u32::from(facts.local.port());
    match permission {
        Permission::And(all) => all.iter().all(|p| permits(p, subject)),
        Permission::Or(any) => any.iter().any(|p| permits(p, subject)),
        Permission::Not(inner) => !permits(inner, subject),
        Permission::Any => true,
        Permission::Header(matcher) => subject.has_header(matcher),
        Permission::UrlPath(matcher) => subject.has_path(|path| matcher.is_match(path)),
        Permission::UriTemplate(template) => subject.has_path(|path| template.is_match(path)),
        Permission::DestinationIp(range) => within(range, facts.local.ip()),
        Permission::DestinationPort(wanted) => port == u32::from(*wanted),
        Permission::DestinationPortRange(from, to) => (*from..*to).contains(&port),
        Permission::Metadata(matcher) => subject.has_metadata(matcher),
        Permission::RouteMetadata(matcher) => subject.has_route_metadata(matcher),
        Permission::RequestedServerName(name) => {
            name.is_match(facts.server_name.as_deref().unwrap_or_default())
        }
    }
}

pub(super) fn is(principal: &Principal, subject: Subject<'_>) -> bool {
    let facts = subject.facts;
    match principal {
        Principal::And(all) => all.iter().all(|p| is(p, subject)),
        Principal::Or(any) => any.iter().any(|p| is(p, subject)),
        Principal::Not(inner) => !is(inner, subject),
        Principal::Any => true,
        Principal::Header(matcher) => subject.has_header(matcher),
        Principal::UrlPath(matcher) => subject.has_path(|path| matcher.is_match(path)),
        Principal::Authenticated(name) => is_authenticated(name.as_ref(), facts),
        Principal::MtlsAuthenticated(name) => is_validated(name.as_ref(), facts),
        Principal::DirectRemoteIp(range) => within(range, facts.direct_remote.ip()),
        Principal::RemoteIp(range) => within(range, facts.remote.ip()),
        Principal::Metadata(matcher) => subject.has_metadata(matcher),
        Principal::RouteMetadata(matcher) => subject.has_route_metadata(matcher),
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

pub(crate) fn value_at<'a>(matcher: &MetadataMatcher, metadata: Option<&'a Metadata>) -> Option<&'a Value> {
    let mut fields = metadata?.of(&matcher.filter)?;
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

use proxy_config::model::StringMatcher;
use proxy_config::model::matcher::{StringPattern, ValueMatcher};

use proxy_config::model::Cidr;
use proxy_config::model::matcher::MetadataMatcher;
use proxy_config::model::network_filter::{Permission, Principal, RbacPolicy, RbacRules};
use proxy_config::model::tls::SanMatcher;

use super::judge::{is, permits};
use super::*;

fn facts() -> Facts {
    let mut facts = Facts::new("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
    facts.remote = "192.168.0.1:2000".parse().unwrap();
    facts.server_name = Some("a.b".into());
    let fields = metadata(&mut facts, "ns");
    let inner = [("k".to_owned(), Value::String("v".to_owned()))].into();
    fields.insert("outer".to_owned(), Value::Struct(inner));
    facts
}

fn cidr(text: &str, prefix: u8) -> Cidr {
    Cidr::new(text.parse().unwrap(), prefix).unwrap()
}

fn exact(text: &str) -> StringMatcher {
    StringMatcher { pattern: StringPattern::Exact(text.to_owned()), ignore_case: false }
}

fn matcher(path: &[&str], value: ValueMatcher, invert: bool) -> MetadataMatcher {
    let path = path.iter().map(|&key| key.to_owned()).collect();
    MetadataMatcher { filter: "ns".to_owned(), path, value, invert }
}

fn policy(permission: Permission, principal: Principal) -> RbacPolicy {
    RbacPolicy { permissions: vec![permission], principals: vec![principal] }
}

fn rules(action: RbacAction, policies: &[(&str, bool)]) -> RbacRules {
    let of = |matches| if matches { Permission::Any } else { Permission::UrlPath(exact("/")) };
    let policies =
        policies.iter().map(|(name, m)| (Arc::from(*name), policy(of(*m), Principal::Any))).collect();
    RbacRules { action, policies }
}

fn rbac(
    rules: Option<RbacRules>,
    shadow_rules: Option<RbacRules>,
    shadow_prefix: &str,
    stats: &Stats,
) -> Rbac {
    let config = Config {
        stat_prefix: "pre.".into(),
        rules,
        shadow_rules,
        shadow_rules_stat_prefix: shadow_prefix.into(),
        delay_deny: None,
    };
    Rbac::new(&config, stats)
}

#[test]
fn permissions() {
    let not = |p| Permission::Not(Box::new(p));
    for (permission, expected) in [
        (Permission::Any, true),
        (Permission::UrlPath(exact("/")), false),
        (not(Permission::UrlPath(exact("/"))), true),
        (Permission::And(vec![Permission::Any, Permission::UrlPath(exact("/"))]), false),
        (Permission::Or(vec![Permission::UrlPath(exact("/")), Permission::Any]), true),
        (Permission::DestinationIp(cidr("10.0.0.0", 24)), true),
        (Permission::DestinationIp(cidr("10.0.0.1", 32)), false),
        (Permission::DestinationPort(80), true),
        (Permission::DestinationPort(81), false),
        (Permission::DestinationPortRange(80, 81), true),
        (Permission::DestinationPortRange(79, 80), false),
        (Permission::RequestedServerName(exact("a.b")), true),
        (Permission::RequestedServerName(exact("")), false),
    ] {
        assert_eq!(permits(&permission, Subject::connection(&facts())), expected, "{permission:?}");
    }
    let mut nameless = facts();
    nameless.server_name = None;
    assert!(permits(&Permission::RequestedServerName(exact("")), Subject::connection(&nameless)));
}

#[test]
fn principals() {
    for (principal, expected) in [
        (Principal::Any, true),
        (Principal::UrlPath(exact("/")), false),
        (Principal::Not(Box::new(Principal::Any)), false),
        (Principal::And(vec![Principal::Any, Principal::Any]), true),
        (Principal::Or(vec![]), false),
        (Principal::Authenticated(None), false),
        (Principal::DirectRemoteIp(cidr("10.0.0.1", 32)), true),
        (Principal::RemoteIp(cidr("10.0.0.1", 32)), false),
        (Principal::RemoteIp(cidr("192.168.0.0", 16)), true),
    ] {
        assert_eq!(is(&principal, Subject::connection(&facts())), expected, "{principal:?}");
    }
}

#[test]
fn metadata_by_path() {
    let v = || ValueMatcher::String(exact("v"));
    for (path, value, invert, expected) in [
        (&["outer", "k"][..], v(), false, true),
        (&["outer", "k"], v(), true, false),
        (&["outer", "other"], v(), false, false),
        (&["outer", "other"], v(), true, true),
        (&["outer", "k", "deeper"], ValueMatcher::Present(true), false, false),
        (&["outer"], ValueMatcher::Present(true), false, true),
        (&[], ValueMatcher::Present(true), false, false),
    ] {
        assert_eq!(
            Subject::connection(&facts()).has_metadata(&matcher(path, value, invert)),
            expected,
            "{path:?}"
        );
    }
}

#[test]
fn actions_details_and_stats() {
    use RbacAction::{Allow, Deny, Log};
    for (action, policies, details) in [
        (Allow, &[("p", true)][..], None),
        (Allow, &[("p", false)], Some("none")),
        (Allow, &[], Some("none")),
        (Deny, &[("p", false)], None),
        (Deny, &[("z", true), ("b\tc d", true)], Some("b_c_d")),
        (Log, &[("p", false)], None),
    ] {
        let stats = Stats::new();
        let rbac = rbac(Some(rules(action, policies)), None, "", &stats);
        let verdict = rbac.check(&mut facts());
        let told = match verdict {
            Verdict::Close(close) => close.termination_details,
            Verdict::Continue => None,
        };
        let expected = details.map(|name| format!("rbac_access_denied_matched_policy[{name}]"));
        assert_eq!(told.as_deref(), expected.as_deref(), "{action:?} {policies:?}");
        let denied = u64::from(details.is_some());
        assert_eq!(stats.value("pre.rbac.denied"), Some(denied));
        assert_eq!(stats.value("pre.rbac.allowed"), Some(1 - denied));
    }
}

#[test]
fn logging_leaves_a_hint() {
    for (matches, stats) in [(true, Stats::new()), (false, Stats::new())] {
        let mut facts = facts();
        let rbac = rbac(Some(rules(RbacAction::Log, &[("p", matches)])), None, "", &stats);
        assert_eq!(rbac.check(&mut facts), Verdict::Continue);
        let hint = &metadata(&mut facts, "envoy.common")["access_log_hint"];
        assert_eq!(hint, &Value::Bool(matches));
        assert_eq!(stats.value("pre.rbac.allowed"), Some(1));
    }
}

#[test]
fn shadow_rules_only_tell() {
    let stats = Stats::new();
    let shadow = rules(RbacAction::Deny, &[("shad ow", true)]);
    let mut connection = facts();
    let with_prefix = rbac(None, Some(shadow.clone()), "shp_", &stats);
    assert_eq!(with_prefix.check(&mut connection), Verdict::Continue);
    assert_eq!(stats.value("pre.rbac.shp_.shadow_denied"), Some(1));
    assert_eq!((stats.value("pre.rbac.allowed"), stats.value("pre.rbac.denied")), (Some(0), Some(0)));
    let told = metadata(&mut connection, "envoy.filters.network.rbac");
    assert_eq!(told["shp_shadow_engine_result"], Value::String("denied".to_owned()));
    assert_eq!(told["shp_shadow_effective_policy_id"], Value::String("shad ow".to_owned()));
    let without = rbac(Some(rules(RbacAction::Allow, &[])), Some(shadow), "", &stats);
    assert!(matches!(without.check(&mut connection), Verdict::Close(_)));
    assert_eq!(stats.value("pre.rbac.shadow_denied"), Some(1));
    assert_eq!(stats.value("pre.rbac.denied"), Some(1));
}

/// What Envoy 1.40 lets pass, of the same names.
#[test]
fn authenticated_is_a_name_of_the_peers_certificate() {
    use crate::transport::{Certificate, TlsInfo};
    let peer = Certificate {
        subject: "CN=web,C=US".to_owned(),
        uri_sans: vec!["spiffe://td/a".to_owned(), "https://x/".to_owned()],
        dns_sans: vec!["a.example.com".to_owned(), "*.b.example.com".to_owned()],
        ip_sans: vec!["10.0.0.1".to_owned()],
        email_sans: vec!["a@b.c".to_owned()],
        ..Certificate::default()
    };
    let with = |peer: Option<&Certificate>| {
        let tls = TlsInfo { peer: peer.cloned().map(Arc::new), ..TlsInfo::default() };
        Facts { tls: Some(Arc::new(tls)), ..facts() }
    };
    let (plain, anonymous, known) = (facts(), with(None), with(Some(&peer)));
    let named = |pattern| Principal::Authenticated(Some(StringMatcher { pattern, ignore_case: false }));
    let whole = |name: &str| named(StringPattern::Exact(name.to_owned()));
    let prefix = |name: &str| named(StringPattern::Prefix(name.to_owned()));
    for (principal, is_anonymous, is_known) in [
        (Principal::Authenticated(None), true, true),
        (prefix(""), true, true),
        (whole(""), true, false),
        (whole("spiffe://td/a"), false, true),
        (whole("https://x/"), false, true),
        (whole("a.example.com"), false, true),
        (whole("*.b.example.com"), false, true),
        // No wildcard is looked into.
        (whole("c.b.example.com"), false, false),
        (whole("CN=web,C=US"), false, true),
        (prefix("CN=web"), false, true),
        (whole("CN=web"), false, false),
        (whole("10.0.0.1"), false, false),
        (whole("a@b.c"), false, false),
        (whole("spiffe://td"), false, false),
    ] {
        assert!(!is(&principal, Subject::connection(&plain)), "{principal:?}");
        assert_eq!(is(&principal, Subject::connection(&anonymous)), is_anonymous, "{principal:?}");
        assert_eq!(is(&principal, Subject::connection(&known)), is_known, "{principal:?}");
    }
}

#[test]
fn mtls_authenticated_asks_for_a_certificate_that_was_found_good() {
    use proxy_config::model::tls::SanKind;

    use crate::transport::{Certificate, TlsInfo};
    let with = |dns: &str, peer_validated| {
        let peer = Certificate { dns_sans: vec![dns.to_owned()], ..Certificate::default() };
        let tls = TlsInfo { peer: Some(Arc::new(peer)), peer_validated, ..TlsInfo::default() };
        Facts { tls: Some(Arc::new(tls)), ..facts() }
    };
    let anonymous = Facts { tls: Some(Arc::default()), ..facts() };
    let any = Principal::MtlsAuthenticated(None);
    let named =
        |kind| Principal::MtlsAuthenticated(Some(SanMatcher { kind, matcher: exact("c.b.example.com") }));
    for (principal, facts, expected) in [
        (&any, with("x", true), true),
        (&any, with("x", false), false),
        (&any, anonymous.clone(), false),
        (&any, facts(), false),
        (&named(SanKind::Dns), with("c.b.example.com", true), true),
        // Unlike `authenticated`, it knows wildcards.
        (&named(SanKind::Dns), with("*.b.example.com", true), true),
        (&named(SanKind::Dns), with("*.b.example.com", false), false),
        (&named(SanKind::Uri), with("c.b.example.com", true), false),
        (&named(SanKind::Dns), with("d.b.example.com", true), false),
        (&named(SanKind::Dns), anonymous, false),
    ] {
        assert_eq!(is(principal, Subject::connection(&facts)), expected, "{principal:?} {:?}", facts.tls);
    }
}

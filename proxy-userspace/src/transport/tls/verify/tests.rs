use std::time::Duration;

use proptest::prelude::*;
use proxy_config::model::StringMatcher;
use proxy_config::model::matcher::{Regex, StringPattern};
use proxy_config::model::tls::{DataSource, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, CustomExtension,
    DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose,
    NameConstraints, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};

use super::*;
use crate::secret::material;

type Ca = CertifiedIssuer<'static, KeyPair>;
type Der = CertificateDer<'static>;

/// 2030-06-01.
fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(1_906_502_400))
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2040, 1, 1);
    params.use_authority_key_identifier_extension = true;
    params
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn ca(name: &str) -> Ca {
    CertifiedIssuer::self_signed(ca_params(name), key()).unwrap()
}

fn sub_ca(name: &str, issuer: &Ca) -> Ca {
    CertifiedIssuer::signed_by(ca_params(name), key(), issuer).unwrap()
}

fn leaf(issuer: &Ca, change: impl FnOnce(&mut CertificateParams)) -> Der {
    let mut params = params("leaf");
    params.subject_alt_names = vec![uri("spiffe://td/ns/a/sa/web"), dns("web.example.com")];
    change(&mut params);
    params.signed_by(&key(), issuer).unwrap().der().clone()
}

fn good(issuer: &Ca) -> Der {
    leaf(issuer, |_| {})
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn inline(text: impl AsRef<[u8]>) -> DataSource {
    DataSource::Inline(text.as_ref().into())
}

fn pem(ders: &[&Der]) -> String {
    use base64::Engine;
    let one = |der: &&Der| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    };
    ders.iter().map(one).collect()
}

struct Judge {
    verifier: Verifier,
    stats: Arc<SslStats>,
}

fn try_new(context: ValidationContext) -> Result<Judge, String> {
    let stats = Arc::new(SslStats::default());
    let material = material::validation(&Arc::new(context)).unwrap();
    Ok(Judge { verifier: Verifier::new(&material, stats.clone())?, stats })
}

fn judge(trusted: &[&Der], change: impl FnOnce(&mut ValidationContext)) -> Judge {
    let mut context = ValidationContext {
        trusted_ca: Some(TrustedCa::Source(inline(pem(trusted)))),
        ..ValidationContext::default()
    };
    change(&mut context);
    try_new(context).unwrap()
}

impl Judge {
    fn check(&self, leaf: &Der, intermediates: &[&Der]) -> Result<Validation, VerifyError> {
        let intermediates: Vec<_> = intermediates.iter().map(|der| (*der).clone()).collect();
        self.verifier.check(leaf, &intermediates, now(), Role::Client, None)
    }

    #[track_caller]
    fn accepts(&self, leaf: &Der, intermediates: &[&Der]) {
        assert_eq!(self.check(leaf, intermediates).unwrap(), Validation::Validated);
        assert_eq!(self.counted(), (0, 0, 0));
    }

    /// Refused for its chain, with this in the reason.
    #[track_caller]
    fn refuses(&self, leaf: &Der, intermediates: &[&Der], why: &str) {
        let before = self.counted();
        let error = self.check(leaf, intermediates).unwrap_err();
        assert!(error.reason.contains(why), "{}", error.reason);
        assert_eq!(self.counted(), (before.0 + 1, before.1, before.2), "{}", error.reason);
    }

    #[track_caller]
    fn refuses_names(&self, leaf: &Der) {
        let before = self.counted();
        let error = self.check(leaf, &[]).unwrap_err();
        assert_eq!(self.counted(), (before.0, before.1 + 1, before.2), "{}", error.reason);
    }

    fn counted(&self) -> (u64, u64, u64) {
        let stats = &self.stats;
        let values = (&stats.fail_verify_error, &stats.fail_verify_san, &stats.fail_verify_cert_hash);
        (values.0.value(), values.1.value(), values.2.value())
    }
}

fn matcher(kind: SanKind, pattern: StringPattern) -> SanMatcher {
    SanMatcher { kind, matcher: StringMatcher { pattern, ignore_case: false } }
}

fn exact(kind: SanKind, name: &str) -> SanMatcher {
    matcher(kind, StringPattern::Exact(name.to_owned()))
}

#[test]
fn a_certificate_of_a_trusted_ca_is_good_and_of_another_is_not() {
    let (root, other) = (ca("root"), ca("other"));
    let judge = judge(&[root.der()], |_| {});
    judge.accepts(&good(&root), &[]);
    judge.refuses(&good(&other), &[], "at depth 0: unable to get local issuer certificate");
    judge.refuses(&good(&other), &[other.der()], "self signed certificate in certificate chain");
    // The same name with another key.
    judge.refuses(&good(&ca("root")), &[], "certificate signature failure");
}

#[test]
fn every_certificate_of_the_bundle_is_trusted() {
    let (one, two, root) = (ca("one"), ca("two"), ca("root"));
    let intermediate = sub_ca("intermediate", &root);
    let judge = judge(&[one.der(), two.der(), intermediate.der()], |_| {});
    judge.accepts(&good(&one), &[]);
    judge.accepts(&good(&two), &[]);
    // A partial chain: nobody trusts its root.
    judge.accepts(&good(&intermediate), &[]);
    judge.accepts(&good(&intermediate), &[intermediate.der(), root.der()]);
    judge.refuses(&good(&root), &[], "unable to get local issuer certificate");
}

#[test]
fn intermediates_lead_to_the_root() {
    let root = ca("root");
    let (a, b) = (sub_ca("a", &root), ca("b"));
    let below = sub_ca("below", &a);
    let judge = judge(&[root.der()], |_| {});
    judge.accepts(&good(&below), &[below.der(), a.der()]);
    judge.accepts(&good(&below), &[b.der(), a.der(), below.der()]);
    judge.refuses(&good(&below), &[below.der()], "at depth 1: unable to get local issuer certificate");
    judge.refuses(&good(&below), &[], "at depth 0: unable to get local issuer certificate");
}

#[test]
fn who_may_not_sign_certificates_has_signed_none() {
    let root = ca("root");
    let mut plain = params("no CA");
    plain.is_ca = IsCa::ExplicitNoCa;
    let plain = CertifiedIssuer::signed_by(plain, key(), &root).unwrap();
    let judge = judge(&[root.der()], |_| {});
    judge.refuses(&good(&plain), &[plain.der()], "invalid CA certificate");
    let mut usage = ca_params("no signer");
    usage.key_usages = vec![KeyUsagePurpose::CrlSign];
    let usage = CertifiedIssuer::signed_by(usage, key(), &root).unwrap();
    judge.refuses(&good(&usage), &[usage.der()], "local issuer");
    let trusted_itself = self::judge(&[usage.der()], |_| {});
    trusted_itself.refuses(&good(&usage), &[], "local issuer");
}

#[test]
fn expired_and_not_yet_valid_anywhere_in_the_chain() {
    let root = ca("root");
    let old = |params: &mut CertificateParams| params.not_after = date_time_ymd(2029, 1, 1);
    let new = |params: &mut CertificateParams| params.not_before = date_time_ymd(2031, 1, 1);
    let strict = judge(&[root.der()], |_| {});
    let lax = |trusted: &[&Der]| judge(trusted, |context| context.allow_expired_certificate = true);
    strict.refuses(&leaf(&root, old), &[], "depth 0: certificate has expired");
    strict.refuses(&leaf(&root, new), &[], "depth 0: certificate is not yet valid");
    lax(&[root.der()]).accepts(&leaf(&root, old), &[]);
    lax(&[root.der()]).accepts(&leaf(&root, new), &[]);

    let mut params = ca_params("old");
    old(&mut params);
    let intermediate = CertifiedIssuer::signed_by(params.clone(), key(), &root).unwrap();
    strict.refuses(&good(&intermediate), &[intermediate.der()], "depth 1: certificate has expired");
    lax(&[root.der()]).accepts(&good(&intermediate), &[intermediate.der()]);

    let old_root = CertifiedIssuer::self_signed(params, key()).unwrap();
    judge(&[old_root.der()], |_| {}).refuses(&good(&old_root), &[], "");
    lax(&[old_root.der()]).accepts(&good(&old_root), &[]);
    // Lax about time only.
    lax(&[root.der()]).refuses(&leaf(&ca("other"), old), &[], "local issuer");
    lax(&[root.der()]).refuses(&leaf(&ca("root"), old), &[], "signature failure");
}

#[test]
fn a_chain_longer_than_allowed_is_refused() {
    let root = ca("root");
    let a = sub_ca("a", &root);
    let b = sub_ca("b", &a);
    let deep = |depth| judge(&[root.der()], |context| context.max_verify_depth = Some(depth));
    for depth in [0, 1] {
        deep(depth).accepts(&good(&root), &[]);
        deep(depth).refuses(&good(&a), &[a.der()], "local issuer");
    }
    deep(2).accepts(&good(&a), &[a.der()]);
    deep(2).refuses(&good(&b), &[b.der(), a.der()], "local issuer");
    deep(3).accepts(&good(&b), &[b.der(), a.der()]);
}

#[test]
fn a_path_length_constraint_holds() {
    let mut params = ca_params("root");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let root = ca("top");
    let constrained = CertifiedIssuer::signed_by(params, key(), &root).unwrap();
    let below = sub_ca("below", &constrained);
    let judge = judge(&[root.der()], |_| {});
    judge.accepts(&good(&constrained), &[constrained.der()]);
    judge.refuses(&good(&below), &[below.der(), constrained.der()], "path length constraint exceeded");
}

#[test]
fn names_outside_of_constraints_are_refused() {
    let mut params = ca_params("constrained");
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("example.com".to_owned())],
        excluded_subtrees: Vec::new(),
    });
    let root = CertifiedIssuer::self_signed(params, key()).unwrap();
    let judge = judge(&[root.der()], |_| {});
    judge.accepts(&leaf(&root, |params| params.subject_alt_names = vec![dns("a.example.com")]), &[]);
    let outside = leaf(&root, |params| params.subject_alt_names = vec![dns("example.net")]);
    judge.refuses(&outside, &[], "permitted subtree violation");
    // Nor by way of a CA's certificate, which is let through for others.
    let outside = CertifiedIssuer::signed_by(
        {
            let mut params = ca_params("outside");
            params.subject_alt_names = vec![dns("example.net")];
            params.key_usages = Vec::new();
            params
        },
        key(),
        &root,
    );
    judge.refuses(outside.unwrap().der(), &[], "");
}

#[test]
fn a_purpose_that_is_not_the_peers_is_refused() {
    use ExtendedKeyUsagePurpose::{Any, ClientAuth, CodeSigning, ServerAuth};
    let root = ca("root");
    let judge = judge(&[root.der()], |_| {});
    let with = |usages: &[ExtendedKeyUsagePurpose]| {
        let usages = usages.to_vec();
        leaf(&root, |params| params.extended_key_usages = usages)
    };
    judge.accepts(&with(&[ClientAuth]), &[]);
    judge.accepts(&with(&[ServerAuth, ClientAuth]), &[]);
    for wrong in [[ServerAuth], [CodeSigning], [Any]] {
        judge.refuses(&with(&wrong), &[], "unsupported certificate purpose");
    }
    let server = |leaf: &Der| judge.verifier.check(leaf, &[], now(), Role::Server, None);
    assert!(server(&with(&[ServerAuth])).is_ok());
    assert!(server(&with(&[ClientAuth])).is_err());

    let uses = |usage| leaf(&root, |params| params.key_usages = vec![usage]);
    assert!(judge.check(&uses(KeyUsagePurpose::DigitalSignature), &[]).is_ok());
    assert!(judge.check(&uses(KeyUsagePurpose::KeyEncipherment), &[]).is_err());
    assert!(server(&uses(KeyUsagePurpose::KeyEncipherment)).is_ok());
    assert!(server(&uses(KeyUsagePurpose::CrlSign)).is_err());
}

#[test]
fn an_unknown_critical_extension_is_refused() {
    let root = ca("root");
    let judge = judge(&[root.der()], |_| {});
    let with = |critical| {
        leaf(&root, |params| {
            let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
            extension.set_criticality(critical);
            params.custom_extensions = vec![extension];
        })
    };
    judge.accepts(&with(false), &[]);
    judge.refuses(&with(true), &[], "unhandled critical extension");
}

#[test]
fn a_leaf_that_is_trusted_itself_is_good() {
    let own = CertificateParams::self_signed(&params("own"), &key()).unwrap();
    let as_ca = CertificateParams::self_signed(&ca_params("own ca"), &key()).unwrap();
    let of_a_ca = good(&ca("unknown"));
    for der in [own.der(), as_ca.der(), &of_a_ca] {
        judge(&[der], |_| {}).accepts(der, &[]);
        judge(&[ca("root").der()], |_| {}).refuses(der, &[], "");
    }
    judge(&[ca("root").der()], |_| {}).refuses(own.der(), &[], "depth 0: self signed certificate");
    // The same names and even the same key are not the same certificate.
    let twin = CertificateParams::self_signed(&ca_params("own ca"), &key()).unwrap();
    judge(&[as_ca.der()], |_| {}).refuses(twin.der(), &[], "");
    let mut old = params("old");
    old.not_after = date_time_ymd(2029, 1, 1);
    let old = CertificateParams::self_signed(&old, &key()).unwrap();
    judge(&[old.der()], |_| {}).refuses(old.der(), &[], "certificate has expired");
}

#[test]
fn a_cas_certificate_is_a_good_leaf_where_a_trusted_one_has_signed_it() {
    let (root, other) = (ca("root"), ca("root"));
    let judge = judge(&[root.der()], |_| {});
    let below = |issuer: &Ca, change: fn(&mut CertificateParams)| {
        let mut params = ca_params("below");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        change(&mut params);
        params.signed_by(&key(), issuer).unwrap().der().clone()
    };
    judge.accepts(&below(&root, |_| {}), &[]);
    judge.refuses(&below(&other, |_| {}), &[], "");
    judge.refuses(&below(&root, |params| params.not_after = date_time_ymd(2029, 1, 1)), &[], "expired");
    let purpose = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    judge.refuses(&below(&root, purpose), &[], "unsupported certificate purpose");
    let lists = self::judge(&[root.der()], |context| context.crl = Some(inline(crl(&root, &[]))));
    lists.refuses(&below(&root, |_| {}), &[], "");
}

fn crl(issuer: &Ca, revoked: &[u64]) -> String {
    crl_of(issuer, revoked, 2029, 2031)
}

fn crl_of(issuer: &Ca, revoked: &[u64], from: i32, to: i32) -> String {
    let one = |serial: &u64| RevokedCertParams {
        serial_number: SerialNumber::from(*serial),
        revocation_time: date_time_ymd(2029, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(from, 1, 1),
        next_update: date_time_ymd(to, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(one).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(issuer).unwrap().pem().unwrap()
}

fn numbered(issuer: &Ca, serial: u64) -> Der {
    leaf(issuer, |params| params.serial_number = Some(SerialNumber::from(serial)))
}

#[test]
fn a_revoked_certificate_is_refused() {
    let root = ca("root");
    let judge = judge(&[root.der()], |context| context.crl = Some(inline(crl(&root, &[7]))));
    judge.accepts(&numbered(&root, 8), &[]);
    judge.refuses(&numbered(&root, 7), &[], "certificate revoked");
    // CRLs of the bundle itself count as well.
    let bundle = pem(&[root.der()]) + &crl(&root, &[7]);
    let bundled = self::judge(&[], |context| {
        context.trusted_ca = Some(TrustedCa::Source(inline(bundle)));
    });
    bundled.accepts(&numbered(&root, 8), &[]);
    bundled.refuses(&numbered(&root, 7), &[], "certificate revoked");
}

#[test]
fn the_newest_list_of_an_issuer_counts() {
    let root = ca("root");
    let (old, new) = (crl_of(&root, &[7], 2028, 2031), crl_of(&root, &[8], 2029, 2031));
    for lists in [format!("{old}{new}"), format!("{new}{old}")] {
        let judge = judge(&[root.der()], |context| context.crl = Some(inline(lists)));
        judge.accepts(&numbered(&root, 7), &[]);
        judge.refuses(&numbered(&root, 8), &[], "certificate revoked");
    }
}

#[test]
fn a_list_is_needed_of_every_issuer() {
    let root = ca("root");
    let intermediate = sub_ca("intermediate", &root);
    let (of_root, of_intermediate) = (crl(&root, &[]), crl(&intermediate, &[7]));
    let with = |lists: String, only_leaf| {
        judge(&[root.der()], |context| {
            context.crl = Some(inline(lists));
            context.only_verify_leaf_cert_crl = only_leaf;
        })
    };
    let (good, bad) = (numbered(&intermediate, 8), numbered(&intermediate, 7));
    let both = format!("{of_root}{of_intermediate}");
    with(both.clone(), false).accepts(&good, &[intermediate.der()]);
    with(both, false).refuses(&bad, &[intermediate.der()], "certificate revoked");
    for missing in [&of_root, &of_intermediate] {
        with(missing.clone(), false).refuses(&good, &[intermediate.der()], "unable to get certificate CRL");
    }
    with(of_intermediate.clone(), true).accepts(&good, &[intermediate.der()]);
    with(of_intermediate.clone(), true).refuses(&bad, &[intermediate.der()], "certificate revoked");
    with(of_root, true).refuses(&good, &[intermediate.der()], "unable to get certificate CRL");
    // One that somebody else has signed in the issuer's name.
    let forged = crl(&ca("intermediate"), &[]);
    with(forged, true).refuses(&good, &[intermediate.der()], "CRL signature failure");
    // An intermediate that is trusted itself has no list of its issuer: only the leaf can be looked up.
    let partial = |only_leaf| {
        judge(&[intermediate.der()], |context| {
            context.crl = Some(inline(&of_intermediate));
            context.only_verify_leaf_cert_crl = only_leaf;
        })
    };
    partial(true).accepts(&good, &[]);
    partial(false).refuses(&good, &[], "");
}

#[test]
fn a_revoked_authority_is_refused() {
    let root = ca("root");
    let mut params = ca_params("intermediate");
    params.serial_number = Some(SerialNumber::from(9));
    let intermediate = CertifiedIssuer::signed_by(params, key(), &root).unwrap();
    let lists = format!("{}{}", crl(&root, &[9]), crl(&intermediate, &[]));
    let judge = judge(&[root.der()], |context| context.crl = Some(inline(lists)));
    judge.refuses(&good(&intermediate), &[intermediate.der()], "certificate revoked");

    let mut params = ca_params("own");
    params.serial_number = Some(SerialNumber::from(9));
    let own = CertifiedIssuer::self_signed(params, key()).unwrap();
    let judge = self::judge(&[own.der()], |context| context.crl = Some(inline(crl(&own, &[9]))));
    judge.refuses(&good(&own), &[], "certificate revoked");
}

#[test]
fn a_list_out_of_its_time_is_none() {
    let root = ca("root");
    for (from, to) in [(2027, 2029), (2031, 2032)] {
        let with = |lax| {
            judge(&[root.der()], |context| {
                context.crl = Some(inline(crl_of(&root, &[7], from, to)));
                context.allow_expired_certificate = lax;
            })
        };
        with(false).refuses(&numbered(&root, 8), &[], "CRL");
        with(true).accepts(&numbered(&root, 8), &[]);
        with(true).refuses(&numbered(&root, 7), &[], "certificate revoked");
    }
}

#[test]
fn names_are_compared_by_kind() {
    let root = ca("root");
    let names = vec![
        uri("spiffe://td/ns/a/sa/web"),
        dns("web.example.com"),
        SanType::IpAddress("10.1.2.3".parse().unwrap()),
        SanType::IpAddress("2001:db8::1".parse().unwrap()),
        SanType::Rfc822Name("ops@example.com".try_into().unwrap()),
    ];
    let der = leaf(&root, |params| params.subject_alt_names = names);
    let none = leaf(&root, |params| params.subject_alt_names = Vec::new());
    let with = |matchers: Vec<SanMatcher>| {
        judge(&[root.der()], |context| context.match_subject_alt_names = matchers)
    };
    let contained = |text: &str| StringPattern::Contains(text.to_owned());
    for good in [
        exact(SanKind::Uri, "spiffe://td/ns/a/sa/web"),
        exact(SanKind::Dns, "WEB.example.com"),
        exact(SanKind::Ip, "10.1.2.3"),
        exact(SanKind::Ip, "2001:db8::1"),
        exact(SanKind::Email, "ops@example.com"),
        exact(SanKind::Any, "ops@example.com"),
        exact(SanKind::Any, "spiffe://td/ns/a/sa/web"),
        matcher(SanKind::Uri, StringPattern::Prefix("spiffe://td/".to_owned())),
        matcher(SanKind::Uri, StringPattern::Suffix("/sa/web".to_owned())),
        matcher(SanKind::Uri, contained("/ns/a/")),
        matcher(SanKind::Uri, StringPattern::SafeRegex(Regex::new("spiffe://td/ns/[^/]+/sa/w.b").unwrap())),
    ] {
        with(vec![good.clone()]).accepts(&der, &[]);
        with(vec![exact(SanKind::Dns, "other"), good.clone()]).accepts(&der, &[]);
        with(vec![good]).refuses_names(&none);
    }
    for bad in [
        // The wrong name, and the right one as another kind.
        exact(SanKind::Uri, "spiffe://td/ns/a/sa/we"),
        exact(SanKind::Uri, "spiffe://td/ns/a/sa/web2"),
        exact(SanKind::Uri, "SPIFFE://td/ns/a/sa/web"),
        exact(SanKind::Dns, "spiffe://td/ns/a/sa/web"),
        exact(SanKind::Uri, "web.example.com"),
        exact(SanKind::Ip, "10.1.2.30"),
        exact(SanKind::Email, "web.example.com"),
        // A part of the name.
        exact(SanKind::Dns, "example.com"),
        exact(SanKind::Dns, "b.example.com"),
        matcher(SanKind::Uri, StringPattern::Prefix("td/".to_owned())),
        matcher(SanKind::Uri, StringPattern::Suffix("/sa/we".to_owned())),
        matcher(SanKind::Uri, StringPattern::SafeRegex(Regex::new("/ns/a/").unwrap())),
        matcher(SanKind::Uri, contained("/ns/b/")),
    ] {
        with(vec![bad]).refuses_names(&der);
    }
}

#[test]
fn a_name_with_a_nul_is_refused_whatever_is_asked_for() {
    let root = ca("root");
    for names in [
        vec![dns("good.example\0.evil.example")],
        vec![dns("good.example"), dns("good.example\0.evil.example")],
        vec![uri("spiffe://td/a\0")],
    ] {
        let der = leaf(&root, |params| params.subject_alt_names = names);
        judge(&[root.der()], |_| {}).refuses_names(&der);
        for matchers in [
            exact(SanKind::Dns, "good.example"),
            matcher(SanKind::Dns, StringPattern::Prefix("good.example".to_owned())),
            matcher(SanKind::Any, StringPattern::Contains(String::new())),
        ] {
            judge(&[root.der()], |context| context.match_subject_alt_names = vec![matchers])
                .refuses_names(&der);
        }
    }
}

#[test]
fn what_was_sent_as_the_server_name_must_be_a_name_of_the_certificate() {
    let root = ca("root");
    let judge = judge(&[root.der()], |context| {
        // Replaced by the server name.
        context.match_subject_alt_names = vec![exact(SanKind::Uri, "spiffe://other")];
    });
    let server = |name| judge.verifier.check(&good(&root), &[], now(), Role::Server, Some(name));
    assert_eq!(server("web.example.com").unwrap(), Validation::Validated);
    assert!(server("other.example.com").is_err());
    assert!(server("example.com").is_err());
    assert_eq!(judge.counted(), (0, 2, 0));
    // Without a CA a name proves nothing.
    let nobody = try_new(ValidationContext::default()).unwrap();
    assert!(nobody.verifier.check(&good(&root), &[], now(), Role::Server, Some("web.example.com")).is_err());
}

fn sha256(data: &[u8]) -> [u8; 32] {
    digest(&SHA256, data).as_ref().try_into().unwrap()
}

#[test]
fn one_of_the_hashes_or_keys_must_be_the_certificates() {
    let root = ca("root");
    let der = good(&root);
    let parsed = certificate::parse(&der).unwrap();
    let (hash, spki) = (sha256(&der), sha256(parsed.public_key().raw));
    let with = |trusted: bool, hashes: &[[u8; 32]], spkis: &[[u8; 32]]| {
        let change = |context: &mut ValidationContext| {
            context.verify_certificate_hash = hashes.to_vec();
            context.verify_certificate_spki = spkis.to_vec();
        };
        let mut context = ValidationContext::default();
        change(&mut context);
        if trusted { judge(&[root.der()], change) } else { try_new(context).unwrap() }
    };
    for trusted in [true, false] {
        for (hashes, spkis) in [
            (vec![hash], vec![]),
            (vec![], vec![spki]),
            (vec![[0; 32], hash], vec![[0; 32]]),
            (vec![[0; 32]], vec![spki]),
        ] {
            with(trusted, &hashes, &spkis).accepts(&der, &[]);
        }
        for (hashes, spkis) in [(vec![[0; 32]], vec![]), (vec![spki], vec![hash])] {
            let judge = with(trusted, &hashes, &spkis);
            assert!(judge.check(&der, &[]).unwrap_err().reason.contains("cert hash and spki"));
            assert_eq!(judge.counted(), (0, 0, 1));
        }
    }
    // A hash does not make a chain good.
    let judge = with(true, &[sha256(&good(&ca("other")))], &[]);
    judge.refuses(&good(&ca("other")), &[], "local issuer");
}

#[test]
fn accept_untrusted_lets_pass_and_says_so() {
    let root = ca("root");
    let judge = judge(&[root.der()], |context| {
        context.accept_untrusted = true;
        context.match_subject_alt_names = vec![exact(SanKind::Dns, "web.example.com")];
    });
    judge.accepts(&good(&root), &[]);
    assert_eq!(judge.check(&good(&ca("other")), &[]).unwrap(), Validation::Failed);
    assert_eq!(judge.counted(), (1, 0, 0));
    let unnamed = leaf(&root, |params| params.subject_alt_names = Vec::new());
    assert_eq!(judge.check(&unnamed, &[]).unwrap(), Validation::Failed);
    assert_eq!(judge.counted(), (1, 1, 0));
}

#[test]
fn clients_are_asked_as_envoy_asks_them() {
    use ClientCertificate::{Asked, NotAsked, Required};
    let root = ca("root");
    let named = |context: &mut ValidationContext| {
        context.match_subject_alt_names = vec![exact(SanKind::Dns, "a")];
    };
    let asks = |judge: Judge| judge.verifier.client_certificate();
    assert_eq!(asks(judge(&[root.der()], |_| {})), Asked);
    assert_eq!(asks(judge(&[root.der()], named)), Required);
    let lax = |context: &mut ValidationContext| {
        named(context);
        context.accept_untrusted = true;
    };
    assert_eq!(asks(judge(&[root.der()], lax)), Asked);
    assert_eq!(asks(try_new(ValidationContext::default()).unwrap()), NotAsked);
    let hashes = ValidationContext { verify_certificate_hash: vec![[0; 32]], ..ValidationContext::default() };
    assert_eq!(asks(try_new(hashes).unwrap()), Required);
    let lax = ValidationContext { accept_untrusted: true, ..ValidationContext::default() };
    assert_eq!(asks(try_new(lax).unwrap()), Asked);
    let names = judge(&[root.der(), root.der(), ca("b").der()], |_| {}).verifier.client_ca_list();
    assert_eq!(names.len(), 2);
    assert_eq!(names[0].as_ref(), certificate::parse(root.der()).unwrap().subject().as_raw());
    assert!(
        judge(&[root.der()], |context| context.suppress_client_ca_list = true)
            .verifier
            .client_ca_list()
            .is_empty()
    );
}

#[test]
fn what_proves_nothing_without_a_ca_is_refused() {
    for context in [
        ValidationContext { match_subject_alt_names: vec![exact(SanKind::Dns, "a")], ..Default::default() },
        ValidationContext { allow_expired_certificate: true, ..Default::default() },
        ValidationContext { crl: Some(inline(crl(&ca("root"), &[]))), ..Default::default() },
    ] {
        assert!(try_new(context).is_err());
    }
    for broken in ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let trusted_ca = Some(TrustedCa::Source(inline(broken)));
        assert!(try_new(ValidationContext { trusted_ca, ..Default::default() }).is_err(), "{broken}");
    }
    let trusted_ca = Some(TrustedCa::Source(inline(pem(&[ca("root").der()]))));
    let crl = Some(inline("no CRL"));
    assert!(try_new(ValidationContext { trusted_ca, crl, ..Default::default() }).is_err());
}

#[test]
fn a_trust_domains_own_bundle_judges() {
    let (one, two) = (ca("one"), ca("two"));
    let bundle = |name: &str, ca: &Ca| TrustDomain { name: name.into(), bundle: inline(pem(&[ca.der()])) };
    let context = |matchers: Vec<SanMatcher>| ValidationContext {
        spiffe: Some(vec![bundle("one.test", &one), bundle("two.test", &two)]),
        match_subject_alt_names: matchers,
        ..Default::default()
    };
    let judge = try_new(context(Vec::new())).unwrap();
    let named = |issuer: &Ca, names: &[&str]| {
        let names = names.iter().map(|name| uri(name)).collect();
        leaf(issuer, |params| params.subject_alt_names = names)
    };
    judge.accepts(&named(&one, &["spiffe://one.test/a"]), &[]);
    judge.accepts(&named(&two, &["spiffe://two.test/a"]), &[]);
    // Another domain's authority has no say.
    judge.refuses(&named(&one, &["spiffe://two.test/a"]), &[], "local issuer");
    judge.refuses(&named(&one, &["spiffe://three.test/a"]), &[], "no trust bundle store");
    judge.refuses(&named(&one, &["spiffe://one.test"]), &[], "no trust bundle store");
    judge.refuses(&named(&one, &["https://one.test/a"]), &[], "no trust bundle store");
    judge.refuses(
        &named(&one, &["spiffe://one.test/a", "spiffe://one.test/b"]),
        &[],
        "no trust bundle store",
    );
    judge.refuses(&named(&one, &[]), &[], "no trust bundle store");
    judge.refuses(
        &leaf(&one, |params| params.subject_alt_names = vec![dns("one.test")]),
        &[],
        "no trust bundle",
    );
    for usage in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
        let signer = leaf(&one, |params| {
            params.subject_alt_names = vec![uri("spiffe://one.test/a")];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature, usage];
        });
        judge.refuses(&signer, &[], "cert precheck");
    }
    let authority = leaf(&one, |params| {
        params.subject_alt_names = vec![uri("spiffe://one.test/a")];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    });
    judge.refuses(&authority, &[], "cert precheck");
    // An intermediate in a bundle is no root, unlike in `trusted_ca`.
    let intermediate = sub_ca("intermediate", &one);
    let partial =
        ValidationContext { spiffe: Some(vec![bundle("one.test", &intermediate)]), ..Default::default() };
    let partial = try_new(partial).unwrap();
    partial.refuses(&named(&intermediate, &["spiffe://one.test/a"]), &[], "local issuer");

    let matching = try_new(context(vec![
        exact(SanKind::Uri, "spiffe://one.test/a"),
        exact(SanKind::Dns, "web.example.com"),
    ]));
    let matching = matching.unwrap();
    matching.accepts(&named(&one, &["spiffe://one.test/a"]), &[]);
    matching.refuses_names(&named(&one, &["spiffe://one.test/b"]));
    // Only URIs count.
    matching.refuses_names(&leaf(&one, |params| {
        params.subject_alt_names = vec![uri("spiffe://one.test/b"), dns("web.example.com")];
    }));
    assert!(try_new(context(vec![exact(SanKind::Dns, "web.example.com")])).is_err());
    assert_eq!(judge.verifier.client_certificate(), ClientCertificate::Required);
    assert_eq!(judge.verifier.ca_certificate().unwrap().0, "one.test: <inline>");
    let twice = ValidationContext {
        spiffe: Some(vec![bundle("one.test", &one), bundle("one.test", &two)]),
        ..Default::default()
    };
    assert!(try_new(twice).is_err());
}

#[test]
fn what_is_trusted_is_told() {
    let root = ca("root");
    let judge = judge(&[root.der(), ca("other").der()], |_| {});
    let (origin, certificate) = judge.verifier.ca_certificate().unwrap();
    assert_eq!((origin.as_str(), certificate.subject.as_str()), ("<inline>", "CN=root"));
    assert_eq!(judge.verifier.first_expiration(), Some(certificate.not_after));
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), flip in 0..2000_usize, to in any::<u8>()) {
        let root = ca("root");
        let judge = judge(&[root.der()], |_| {});
        let good = good(&root);
        let check = |der: Vec<u8>| {
            let der = Der::from(der);
            judge.verifier.check(&der, std::slice::from_ref(&der), now(), Role::Client, None).is_ok()
        };
        prop_assert!(!check(bytes.clone()));
        // What is signed cannot be changed.
        let mut changed = good.to_vec();
        let at = flip % changed.len();
        let same = changed[at] == to;
        changed[at] = to;
        prop_assert_eq!(check(changed.clone()), same);
        changed.truncate(at);
        prop_assert!(!check(changed));
        bytes.splice(0..0, good.to_vec());
        prop_assert_eq!(check(bytes.clone()), bytes.len() == good.len());
    }
}

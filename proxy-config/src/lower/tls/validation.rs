//! `CertificateValidationContext`: how a peer shows who it is.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use pb::certificate_validation_context::{SystemRootCerts, TrustChainVerification};

use super::certificate::{non_empty, or_none};
use crate::lower::extension::Extension;
use crate::lower::listener_filter::all;
use crate::lower::registry::registry;
use crate::lower::value::number;
use crate::lower::{Cx, Lower};
use crate::model::tls::{DataSource, SanKind, SanMatcher, TrustDomain, TrustedCa, ValidationContext};

registry! {
    pb::CertificateValidationContext, SystemRootCerts, pb::SubjectAltNameMatcher, pb::SpiffeCertValidatorConfig,
    pb::spiffe_cert_validator_config::TrustDomain,
}

const DEFAULT_VALIDATOR: &str = "envoy.tls.cert_validator.default";
const SPIFFE_VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";
const DEEPEST: u32 = 100;
/// A SHA-256 in pairs of digits.
const WITH_COLONS: usize = 95;

lower! { "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext"
    pb::CertificateValidationContext => Arc<ValidationContext>, cx;
    read {
        trusted_ca, system_root_certs, watched_directory, verify_certificate_spki, verify_certificate_hash,
        match_typed_subject_alt_names, match_subject_alt_names, require_signed_certificate_timestamp, crl,
        allow_expired_certificate, trust_chain_verification, custom_validator_config, only_verify_leaf_cert_crl,
        max_verify_depth, suppress_client_ca_list
    }
    reject { ca_certificate_provider_instance: "certificate providers are not implemented" }
    {
        if require_signed_certificate_timestamp.is_some_and(|required| required.value) {
            cx.reject("require_signed_certificate_timestamp", "certificate transparency is not implemented");
        }
        let trusted_ca = match trusted_ca {
            Some(source) => Some(TrustedCa::Source(non_empty(cx, "trusted_ca", source)?)),
            None => None,
        };
        if trusted_ca.is_some() && system_root_certs.is_some() {
            cx.warn("system_root_certs", "has no effect with trusted_ca");
        }
        let system = system_root_certs.and_then(|system| cx.lower("system_root_certs", system));
        let crl = match crl {
            Some(crl) => or_none(cx, "crl", crl)?,
            None => None,
        };
        let spiffe = match custom_validator_config {
            Some(config) => cx.field("custom_validator_config", |cx| custom_validator(cx, config))?,
            None => None,
        };
        let typed = all(cx, "match_typed_subject_alt_names", match_typed_subject_alt_names);
        let untyped = all(cx, "match_subject_alt_names", match_subject_alt_names);
        let spki = hashes(cx, "verify_certificate_spki", &verify_certificate_spki, spki);
        let hash = hashes(cx, "verify_certificate_hash", &verify_certificate_hash, fingerprint);
        let max_verify_depth = match number(max_verify_depth) {
            Some(depth) => Some(cx.ranged("max_verify_depth", depth, 0..=DEEPEST)?),
            None => None,
        };
        let accept_untrusted = match cx.variant("trust_chain_verification", trust_chain_verification)? {
            TrustChainVerification::VerifyTrustChain => false,
            TrustChainVerification::AcceptUntrusted => true,
        };
        let watched_directory = watched_directory.and_then(|watched| cx.lower("watched_directory", watched));
        let (typed, untyped) = (typed?, untyped?);
        if !typed.is_empty() && !untyped.is_empty() {
            cx.warn("match_subject_alt_names", "has no effect with match_typed_subject_alt_names");
        }
        let any_kind = |matcher| SanMatcher { kind: SanKind::Any, matcher };
        let match_subject_alt_names =
            if typed.is_empty() { untyped.into_iter().map(any_kind).collect() } else { typed };
        Some(Arc::new(ValidationContext {
            trusted_ca: trusted_ca.or(system),
            watched_directory,
            verify_certificate_spki: spki,
            verify_certificate_hash: hash,
            match_subject_alt_names,
            crl,
            only_verify_leaf_cert_crl,
            allow_expired_certificate,
            accept_untrusted,
            max_verify_depth,
            suppress_client_ca_list,
            spiffe,
        }))
    }
}

/// Refuses a context that cannot be used. One that a secret is merged over, or that is a secret, may lack something.
pub(super) fn check_whole(cx: &mut Cx, context: &ValidationContext, auto_sni_san_validation: bool) {
    if let Some((field, why)) = context.problem(auto_sni_san_validation) {
        cx.reject(field, why);
    }
    if context.spiffe.is_some() {
        let ignored = "is not looked at by the SPIFFE validator";
        if context.trusted_ca.is_some() {
            cx.warn("trusted_ca", ignored);
        }
        if context.accept_untrusted {
            cx.warn("trust_chain_verification", ignored);
        }
    }
}

lower! { "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext.SystemRootCerts"
    SystemRootCerts => TrustedCa, cx;
    read {}
    {
        let _ = cx;
        Some(TrustedCa::System)
    }
}

/// SHA-256 sums that a parser makes of text.
fn hashes(
    cx: &mut Cx,
    field: &'static str,
    given: &[String],
    parse: fn(&str) -> Result<[u8; 32], &'static str>,
) -> Vec<[u8; 32]> {
    let mut hashes = Vec::new();
    for (index, text) in given.iter().enumerate() {
        match parse(text) {
            Ok(hash) => hashes.push(hash),
            Err(why) => cx.field(field, |cx| cx.index(index, |cx| cx.reject_here(why))),
        }
    }
    hashes
}

fn spki(text: &str) -> Result<[u8; 32], &'static str> {
    let bytes = STANDARD.decode(text).ok();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or("must be a SHA-256 in base64: 44 characters")
}

/// `df6ff7…` or `DF:6F:F7:…`.
fn fingerprint(text: &str) -> Result<[u8; 32], &'static str> {
    let plain = if text.len() == WITH_COLONS { text.replace(':', "") } else { text.to_owned() };
    let mut bytes = [0; 32];
    let pairs = plain.as_bytes().chunks(2);
    let right = plain.len() == 64
        && bytes.iter_mut().zip(pairs).all(|(byte, pair)| {
            let digits: Option<Vec<u32>> = pair.iter().map(|digit| char::from(*digit).to_digit(16)).collect();
            match digits.as_deref() {
                Some([high, low]) => u8::try_from(high * 16 + low).map(|value| *byte = value).is_ok(),
                Some(_) | None => false,
            }
        });
    right
        .then_some(bytes)
        .ok_or("must be a SHA-256 in hexadecimal: 64 digits, or 32 pairs with colons between them")
}

lower! { "envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher" pb::SubjectAltNameMatcher => SanMatcher, cx;
    read { san_type, matcher }
    warn { oid: "has an effect on names of type OTHER_NAME only" }
    {
        use pb::subject_alt_name_matcher::SanType;
        let kind = match cx.variant("san_type", san_type)? {
            SanType::Email => Some(SanKind::Email),
            SanType::Dns => Some(SanKind::Dns),
            SanType::Uri => Some(SanKind::Uri),
            SanType::IpAddress => Some(SanKind::Ip),
            SanType::OtherName => {
                cx.reject("san_type", "OTHER_NAME is not implemented");
                None
            }
            SanType::Unspecified => {
                cx.reject("san_type", "is required");
                None
            }
        };
        let matcher = cx.required("matcher", matcher);
        Some(SanMatcher { kind: kind?, matcher: matcher? })
    }
}

/// The validator that is named: its trust domains, or none for the default one.
fn custom_validator(cx: &mut Cx, config: core::TypedExtensionConfig) -> Option<Option<Vec<TrustDomain>>> {
    if config.name != DEFAULT_VALIDATOR && config.name != SPIFFE_VALIDATOR {
        cx.reject_here(format!("\"{}\": this certificate validator is not implemented", config.name));
        return None;
    }
    let Some(any) = config.typed_config else {
        cx.reject("typed_config", "is required");
        return None;
    };
    if config.name == DEFAULT_VALIDATOR {
        return Some(None);
    }
    let extension = Extension::unpack(cx, &any)?;
    if extension.type_name != pb::SpiffeCertValidatorConfig::NAME {
        return extension.refuse(cx);
    }
    extension.lower::<pb::SpiffeCertValidatorConfig>(cx).map(Some)
}

lower! { "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"
    pb::SpiffeCertValidatorConfig => Vec<TrustDomain>, cx;
    read { trust_domains }
    reject { trust_bundles: "a SPIFFE bundle map is not implemented: use trust_domains" }
    {
        if trust_domains.is_empty() {
            cx.reject("trust_domains", "must have at least one");
        }
        let domains = all(cx, "trust_domains", trust_domains)?;
        for (index, domain) in domains.iter().enumerate() {
            if domains.iter().take(index).any(|earlier| earlier.name == domain.name) {
                let why = format!("\"{}\" is given twice", domain.name);
                cx.field("trust_domains", |cx| cx.index(index, |cx| cx.reject("name", why)));
            }
        }
        Some(domains)
    }
}

lower! { "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig.TrustDomain"
    pb::spiffe_cert_validator_config::TrustDomain => TrustDomain, cx;
    read { name, trust_bundle }
    reject { workload_trust_domain: "the choice of a bundle by filter state is not implemented" }
    {
        let name = cx.name("name", name);
        let bundle: Option<DataSource> = cx.required("trust_bundle", trust_bundle);
        Some(TrustDomain { name: name?, bundle: bundle? })
    }
}

//! From a peer's certificate to one that is trusted.
//!
//! webpki builds and checks the path; what Envoy's library checks besides is added here (key usage, the validity of
//! what is trusted, `max_verify_depth`), and two leaves that only webpki refuses are let through where that is safe:
//! one that is itself trusted, byte for byte, and a CA's certificate that a trusted one has signed.

use std::borrow::Cow;

use rustls::CertificateError;
use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{
    ALL_VERIFICATION_ALGS, CertRevocationList, EndEntityCert, Error, ExpirationPolicy, KeyUsage,
    OwnedCertRevocationList, RevocationCheckDepth, RevocationOptions, RevocationOptionsBuilder,
    UnknownStatusPolicy, VerifiedPath, anchor_from_trusted_cert,
};
use x509_parser::asn1_rs::{Any, FromDer as _};
use x509_parser::prelude::{CertificateRevocationList, X509Certificate};

use super::reason::reason;
use super::{Failed, Role};
use crate::secret::Material;
use crate::transport::tls::certificate::{key_usage, parse};

/// Bits of `keyUsage`.
const DIGITAL_SIGNATURE: u16 = 1;
const KEY_ENCIPHERMENT: u16 = 1 << 2;
const KEY_AGREEMENT: u16 = 1 << 4;
const KEY_CERT_SIGN: u16 = 1 << 5;
const CRL_SIGN: u16 = 1 << 6;

/// What of a validation context says how far to trust.
pub(super) struct Trust<'a> {
    pub(super) crl: Option<&'a Material>,
    pub(super) leaf_crl_only: bool,
    pub(super) allow_expired: bool,
    pub(super) max_verify_depth: Option<u32>,
    /// A path ends at a certificate of its own issuer; else at any one that is trusted.
    pub(super) roots_only: bool,
}

/// Trusted certificates, and how paths to them are judged.
pub(super) struct Bundle {
    origin: String,
    certificates: Vec<Trusted>,
    crls: Vec<Crl>,
    leaf_crl_only: bool,
    allow_expired: bool,
    max_intermediates: Option<usize>,
    roots_only: bool,
}

struct Trusted {
    der: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    serial: Vec<u8>,
    self_issued: bool,
    usage: Option<u16>,
    not_before: i64,
    not_after: i64,
}

struct Crl {
    list: CertRevocationList<'static>,
    this_update: i64,
}

impl Bundle {
    /// All certificates of a PEM bundle are trusted, and its CRLs are used.
    pub(super) fn new(pem: &Material, trust: &Trust<'_>) -> Result<Self, String> {
        let failed = |why: &str| format!("Failed to load trusted CA certificates from {}: {why}", pem.origin);
        let sections = sections(pem).map_err(|why| failed(&why))?;
        let mut certificates = Vec::new();
        for der in sections.certificates {
            certificates.push(Trusted::new(der).map_err(|why| failed(&why))?);
        }
        if certificates.is_empty() {
            return Err(failed("there is no certificate"));
        }
        Self::of(pem.origin.to_string(), certificates, sections.crls, trust)
    }

    /// What the system trusts. Those that cannot be read are left out: nobody here has chosen them.
    pub(super) fn of_the_system(trust: &Trust<'_>) -> Result<Self, String> {
        let found = rustls_native_certs::load_native_certs();
        let certificates: Vec<_> = found.certs.into_iter().filter_map(|der| Trusted::new(der).ok()).collect();
        if certificates.is_empty() {
            return Err("the system has no trusted certificate".to_owned());
        }
        Self::of("<system>".to_owned(), certificates, Vec::new(), trust)
    }

    fn of(
        origin: String,
        certificates: Vec<Trusted>,
        mut crls: Vec<Vec<u8>>,
        trust: &Trust<'_>,
    ) -> Result<Self, String> {
        if let Some(pem) = trust.crl {
            let found = sections(pem).map(|sections| sections.crls).unwrap_or_default();
            if found.is_empty() {
                return Err(format!("Failed to load CRL from {}", pem.origin));
            }
            crls.extend(found);
        }
        let mut crls = crls.iter().map(|der| Crl::new(der)).collect::<Result<Vec<_>, _>>()?;
        // webpki takes the first of an issuer.
        crls.sort_by_key(|crl| std::cmp::Reverse(crl.this_update));
        // The library that Envoy uses asks for a CRL of the last certificate's issuer too, which only a root has.
        let roots_only = trust.roots_only || (!crls.is_empty() && !trust.leaf_crl_only);
        Ok(Self {
            origin,
            certificates,
            crls,
            leaf_crl_only: trust.leaf_crl_only,
            allow_expired: trust.allow_expired,
            // Envoy counts the trusted certificate, but not the leaf, and takes 0 for 1.
            max_intermediates: trust
                .max_verify_depth
                .map(|depth| usize::try_from(depth).unwrap_or(usize::MAX).saturating_sub(1)),
            roots_only,
        })
    }

    /// Where it is from.
    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    pub(super) fn first(&self) -> Option<&[u8]> {
        self.certificates.first().map(|trusted| trusted.der.as_ref())
    }

    /// The DER of the subjects, without the outer sequence.
    pub(super) fn subjects(&self) -> impl Iterator<Item = &[u8]> {
        self.certificates.iter().map(|trusted| trusted.anchor.subject.as_ref())
    }

    pub(super) fn first_expiration(&self) -> Option<i64> {
        self.certificates.iter().map(|trusted| trusted.not_after).min()
    }

    /// Whether the leaf leads to a trusted certificate.
    pub(super) fn check(
        &self,
        leaf: &CertificateDer<'_>,
        parsed: &X509Certificate<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        role: Role,
    ) -> Result<(), Failed> {
        let found = self.follow(leaf, intermediates, now, role);
        let Err(error) = found else {
            return check_purpose(parsed, role);
        };
        if self.trusts_itself(leaf, parsed, &error) {
            return self.check_validity(parsed, now);
        }
        if matches!(error, Error::CaUsedAsEndEntity) && self.has_signed(parsed, now) {
            self.check_validity(parsed, now)?;
            check_extended_purpose(parsed, role)?;
            return check_purpose(parsed, role);
        }
        Err(reason(&error, leaf, intermediates, now))
    }

    /// Without a check of the time, a path is good that was at some moment: those at which its certificates began.
    fn follow(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        role: Role,
    ) -> Result<(), Error> {
        let end = EndEntityCert::try_from(leaf)?;
        let helpers = self.helpers(intermediates);
        let found = self.follow_at(&end, &helpers, now, role);
        if !self.allow_expired {
            return found;
        }
        let expired =
            |error: &Error| matches!(error, Error::CertExpired { .. } | Error::CertNotValidYet { .. });
        let mut found = found;
        let beginnings = std::iter::once(leaf).chain(intermediates).filter_map(|der| beginning(der));
        // A peer may send any number of certificates.
        for moment in beginnings.take(8) {
            if !found.as_ref().is_err_and(expired) {
                break;
            }
            found = self.follow_at(&end, &helpers, moment, role);
        }
        found
    }

    /// What may lead from the leaf to a root: the peer's certificates, and those trusted ones that are no root.
    fn helpers<'a>(&'a self, intermediates: &'a [CertificateDer<'a>]) -> Cow<'a, [CertificateDer<'a>]> {
        if !self.roots_only {
            return Cow::Borrowed(intermediates);
        }
        let others = self.certificates.iter().filter(|trusted| !trusted.self_issued);
        let all = intermediates.iter().chain(others.map(|trusted| &trusted.der));
        Cow::Owned(all.map(|der| CertificateDer::from(der.as_ref())).collect())
    }

    fn follow_at(
        &self,
        end: &EndEntityCert<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        role: Role,
    ) -> Result<(), Error> {
        let usage = match role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        let anchors: Vec<_> = self.issuers(now).map(|trusted| trusted.anchor.clone()).collect();
        let crls: Vec<&CertRevocationList<'_>> = self
            .crls
            .iter()
            .filter(|crl| self.allow_expired || crl.began(now))
            .map(|crl| &crl.list)
            .collect();
        let revocation = match (self.crls.is_empty(), self.revocation(&crls)) {
            (true, _) => None,
            (false, Some(options)) => Some(options),
            (false, None) => return Err(Error::UnknownRevocationStatus),
        };
        let good = |path: &VerifiedPath<'_>| self.check_path(path, now);
        end.verify_for_usage(
            ALL_VERIFICATION_ALGS,
            &anchors,
            intermediates,
            now,
            usage,
            revocation,
            Some(&good),
        )?;
        Ok(())
    }

    /// The trusted certificates that may have signed others.
    fn issuers(&self, now: UnixTime) -> impl Iterator<Item = &Trusted> {
        self.certificates.iter().filter(move |trusted| {
            (self.allow_expired || trusted.is_valid(now))
                && (trusted.self_issued || !self.roots_only)
                && allows(trusted.usage, KEY_CERT_SIGN)
        })
    }

    fn revocation<'a>(&self, crls: &'a [&'a CertRevocationList<'a>]) -> Option<RevocationOptions<'a>> {
        let depth =
            if self.leaf_crl_only { RevocationCheckDepth::EndEntity } else { RevocationCheckDepth::Chain };
        let expiration =
            if self.allow_expired { ExpirationPolicy::Ignore } else { ExpirationPolicy::Enforce };
        let builder = RevocationOptionsBuilder::new(crls).ok()?;
        let builder = builder.with_depth(depth).with_status_policy(UnknownStatusPolicy::Deny);
        Some(builder.with_expiration_policy(expiration).build())
    }

    /// What webpki does not ask of a path.
    fn check_path(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), Error> {
        let mut intermediates = 0;
        for certificate in path.intermediate_certificates() {
            intermediates += 1;
            let der = certificate.der();
            let usage = parse(&der).and_then(|parsed| key_usage(&parsed)).map_err(|_| Error::BadDer)?;
            if !allows(usage, KEY_CERT_SIGN) {
                return Err(Error::UnknownIssuer);
            }
        }
        if self.max_intermediates.is_some_and(|most| intermediates > most) {
            return Err(Error::MaximumPathDepthExceeded);
        }
        if self.crls.is_empty() || (self.leaf_crl_only && intermediates > 0) {
            return Ok(());
        }
        self.check_anchor_crl(path.anchor(), now)
    }

    /// The trusted certificate must be allowed to sign CRLs, and must not revoke itself.
    fn check_anchor_crl(&self, anchor: &TrustAnchor<'_>, now: UnixTime) -> Result<(), Error> {
        let same = |trusted: &&Trusted| {
            trusted.anchor.subject == anchor.subject
                && trusted.anchor.subject_public_key_info == anchor.subject_public_key_info
        };
        let anchor = self.issuers(now).filter(same).find(|trusted| allows(trusted.usage, CRL_SIGN));
        let anchor = anchor.ok_or(Error::IssuerNotCrlSigner)?;
        let own = self.crls.iter().filter(|crl| crl.list.issuer() == anchor.anchor.subject.as_ref());
        for crl in own {
            if crl.list.find_serial(&anchor.serial)?.is_some() && !self.leaf_crl_only {
                return Err(Error::CertRevoked);
            }
        }
        Ok(())
    }

    /// The leaf is one of the trusted certificates, which webpki cannot express. Nobody can say whether it is revoked,
    /// so not where there are CRLs.
    fn trusts_itself(&self, leaf: &CertificateDer<'_>, parsed: &X509Certificate<'_>, error: &Error) -> bool {
        let self_issued = parsed.subject().as_raw() == parsed.issuer().as_raw();
        let no_path = matches!(error, Error::UnknownIssuer | Error::CaUsedAsEndEntity);
        self.crls.is_empty()
            && (self_issued || (no_path && !self.roots_only))
            && self.certificates.iter().any(|trusted| trusted.der == *leaf)
    }

    /// The leaf, a CA's certificate, is signed by a trusted one directly. Not where names are constrained or
    /// certificates revoked, which webpki alone can judge.
    fn has_signed(&self, leaf: &X509Certificate<'_>, now: UnixTime) -> bool {
        let signed = || signed_parts(leaf);
        self.crls.is_empty()
            && self
                .issuers(now)
                .filter(|trusted| trusted.anchor.name_constraints.is_none())
                .filter(|trusted| trusted.subject() == leaf.issuer().as_raw())
                .any(|trusted| signed().is_some_and(|parts| trusted.verifies(&parts)))
    }

    fn check_validity(&self, leaf: &X509Certificate<'_>, now: UnixTime) -> Result<(), Failed> {
        let validity = leaf.validity();
        let (from, to) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        let at = |why: &str| format!("X509_verify_cert: certificate verification error at depth 0: {why}");
        if self.allow_expired {
            return Ok(());
        }
        if seconds(now) > to {
            return Err(Failed::chain(at("certificate has expired"), CertificateError::Expired));
        }
        if seconds(now) < from {
            return Err(Failed::chain(at("certificate is not yet valid"), CertificateError::NotValidYet));
        }
        Ok(())
    }
}

impl Trusted {
    fn new(der: CertificateDer<'static>) -> Result<Self, String> {
        let anchor =
            anchor_from_trusted_cert(&der).map_err(|e| format!("not a certificate: {e}"))?.to_owned();
        let parsed = parse(&der)?;
        Ok(Self {
            anchor,
            serial: parsed.raw_serial().to_vec(),
            self_issued: parsed.subject().as_raw() == parsed.issuer().as_raw(),
            usage: key_usage(&parsed)?,
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            der,
        })
    }

    fn is_valid(&self, now: UnixTime) -> bool {
        (self.not_before..=self.not_after).contains(&seconds(now))
    }

    /// With the outer sequence.
    fn subject(&self) -> Vec<u8> {
        rustls::DistinguishedName::in_sequence(&self.anchor.subject).as_ref().to_vec()
    }

    fn verifies(&self, parts: &SignedParts<'_>) -> bool {
        let Ok(issuer) = EndEntityCert::try_from(&self.der) else {
            return false;
        };
        ALL_VERIFICATION_ALGS
            .iter()
            .filter(|known| known.signature_alg_id().as_ref() == parts.algorithm)
            .any(|known| issuer.verify_signature(*known, parts.message, parts.signature).is_ok())
    }
}

impl Crl {
    fn new(der: &[u8]) -> Result<Self, String> {
        let failed = |e: &dyn std::fmt::Display| format!("Failed to load CRL: {e}");
        let list = OwnedCertRevocationList::from_der(der).map_err(|e| failed(&e))?;
        let (_, parsed) = CertificateRevocationList::from_der(der).map_err(|e| failed(&e))?;
        Ok(Self { list: list.into(), this_update: parsed.last_update().timestamp() })
    }

    fn began(&self, now: UnixTime) -> bool {
        self.this_update <= seconds(now)
    }
}

/// The parts of a signed structure that a signature is checked with.
struct SignedParts<'a> {
    message: &'a [u8],
    /// Without the outer sequence.
    algorithm: &'a [u8],
    signature: &'a [u8],
}

fn signed_parts<'a>(certificate: &'a X509Certificate<'_>) -> Option<SignedParts<'a>> {
    let message = certificate.tbs_certificate.as_ref();
    let (_, whole) = Any::from_der(certificate.as_raw()).ok()?;
    let behind = whole.data.get(message.len()..)?;
    let (_, algorithm) = Any::from_der(behind).ok()?;
    Some(SignedParts {
        message,
        algorithm: algorithm.data,
        signature: certificate.signature_value.data.as_ref(),
    })
}

#[derive(Default)]
struct Sections {
    certificates: Vec<CertificateDer<'static>>,
    crls: Vec<Vec<u8>>,
}

fn sections(pem: &Material) -> Result<Sections, String> {
    let mut found = Sections::default();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(&pem.bytes) {
        match section.map_err(|e| format!("broken PEM: {e}"))? {
            (SectionKind::Certificate, der) => found.certificates.push(der.into()),
            (SectionKind::Crl, der) => found.crls.push(der),
            _ => {}
        }
    }
    Ok(found)
}

/// Without `keyUsage` everything is allowed; else one of `bits` must be there.
fn allows(usage: Option<u16>, bits: u16) -> bool {
    usage.is_none_or(|usage| usage & bits != 0)
}

fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

fn beginning(der: &[u8]) -> Option<UnixTime> {
    let start = parse(der).ok()?.validity().not_before.timestamp();
    Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::try_from(start).ok()?)))
}

/// Whether the leaf's key may do what TLS needs of that role.
fn check_purpose(leaf: &X509Certificate<'_>, role: Role) -> Result<(), Failed> {
    let usage = key_usage(leaf).map_err(|why| Failed::chain(why, CertificateError::BadEncoding))?;
    let needed = match role {
        Role::Client => DIGITAL_SIGNATURE | KEY_AGREEMENT,
        Role::Server => DIGITAL_SIGNATURE | KEY_ENCIPHERMENT | KEY_AGREEMENT,
    };
    if allows(usage, needed) { Ok(()) } else { Err(wrong_purpose()) }
}

/// As webpki asks it: the usage itself must be listed, `anyExtendedKeyUsage` is not enough.
fn check_extended_purpose(leaf: &X509Certificate<'_>, role: Role) -> Result<(), Failed> {
    let extension = leaf
        .extended_key_usage()
        .map_err(|e| Failed::chain(format!("extendedKeyUsage: {e}"), CertificateError::BadEncoding))?;
    let good = extension.is_none_or(|usage| match role {
        Role::Client => usage.value.client_auth,
        Role::Server => usage.value.server_auth,
    });
    if good { Ok(()) } else { Err(wrong_purpose()) }
}

fn wrong_purpose() -> Failed {
    let why = "X509_verify_cert: certificate verification error at depth 0: unsupported certificate purpose";
    Failed::chain(why, CertificateError::InvalidPurpose)
}

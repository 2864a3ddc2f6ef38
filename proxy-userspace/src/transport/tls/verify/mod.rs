//! Whether a peer's certificate is good, as Envoy's validators judge it.
//!
//! [`Verifier`] is built of a validation context; `path` follows a certificate to a trusted one, `san` compares its
//! names, `spiffe` chooses the trust bundle by the certificate's own trust domain. What differs from Envoy's library
//! is in decision 18. Everything that cannot be read is refused.

mod path;
mod reason;
mod san;
mod spiffe;

use std::sync::Arc;

use proxy_config::model::tls::{SanKind, SanMatcher, TrustedCa, ValidationContext};
use ring::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, DistinguishedName};
use x509_parser::prelude::X509Certificate;

use self::path::{Bundle, Trust};
use super::certificate::{self, Names};
use super::stats::SslStats;
use crate::secret::material::ValidationMaterial;
use crate::transport::info::Certificate;

/// Whose certificate is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

/// What is known of a peer that may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    /// Its certificate was checked, and found good.
    Validated,
    /// Nothing was asked of it.
    NotValidated,
    /// It was found bad, and `ACCEPT_UNTRUSTED` lets it pass.
    Failed,
}

/// Whether clients are asked for a certificate, besides `require_client_certificate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificate {
    NotAsked,
    /// A client without one may go on.
    Asked,
    Required,
}

/// Why a peer may not go on. It has been counted.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct VerifyError {
    /// In Envoy's words: `verify cert failed: ...`.
    pub reason: String,
    /// Of which rustls makes the alert.
    pub error: CertificateError,
}

impl From<VerifyError> for rustls::Error {
    fn from(error: VerifyError) -> Self {
        Self::InvalidCertificate(error.error)
    }
}

/// Whether a certificate has a name that matches, by the rules of `match_typed_subject_alt_names`.
pub fn has_name(certificate: &Certificate, matcher: &SanMatcher) -> bool {
    san::any_matches(std::slice::from_ref(matcher), &Names::from(certificate))
}

/// A validation context, ready to judge.
pub struct Verifier {
    trusted: Trusted,
    sans: Vec<SanMatcher>,
    hashes: Vec<[u8; 32]>,
    spkis: Vec<[u8; 32]>,
    accept_untrusted: bool,
    suppress_client_ca_list: bool,
    stats: Arc<SslStats>,
}

enum Trusted {
    /// No `trusted_ca`: chains are not followed.
    Nobody,
    Bundle(Bundle),
    Spiffe(spiffe::Domains),
}

impl Verifier {
    pub fn new(material: &ValidationMaterial, stats: Arc<SslStats>) -> Result<Self, String> {
        let model = &material.model;
        let trusted = trusted(material)?;
        if matches!(trusted, Trusted::Nobody) {
            check_without_trust(model)?;
        }
        let mut sans = model.match_subject_alt_names.clone();
        if matches!(trusted, Trusted::Spiffe(_)) {
            // Only a URI says who has an SVID; Envoy leaves the other matchers out.
            let given = sans.len();
            sans.retain(|matcher| matches!(matcher.kind, SanKind::Uri | SanKind::Any));
            sans.iter_mut().for_each(|matcher| matcher.kind = SanKind::Uri);
            if sans.is_empty() && given > 0 {
                return Err("the SPIFFE validator matches URI names only".to_owned());
            }
        }
        Ok(Self {
            trusted,
            sans,
            hashes: model.verify_certificate_hash.clone(),
            spkis: model.verify_certificate_spki.clone(),
            accept_untrusted: model.accept_untrusted && model.spiffe.is_none(),
            suppress_client_ca_list: model.suppress_client_ca_list,
            stats,
        })
    }

    /// Whether the peer with this chain may go on. `server_name` is what must be a DNS name of the certificate instead
    /// of what the matchers say (`auto_sni_san_validation`).
    pub fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        role: Role,
        server_name: Option<&str>,
    ) -> Result<Validation, VerifyError> {
        let judged = self.judge(leaf, intermediates, now, role, server_name);
        judged.or_else(|failure| {
            self.count(&failure);
            if self.accept_untrusted { Ok(Validation::Failed) } else { Err(failure.into()) }
        })
    }

    /// As [`Self::check`], of a peer whose session is resumed: where nobody is refused, it was counted the first time.
    pub fn check_again(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        role: Role,
        server_name: Option<&str>,
    ) -> Result<Validation, VerifyError> {
        if !self.accept_untrusted {
            return self.check(leaf, intermediates, now, role, server_name);
        }
        let judged = self.judge(leaf, intermediates, now, role, server_name);
        Ok(judged.unwrap_or(Validation::Failed))
    }

    /// As Envoy: without `require_client_certificate` a trusted CA alone lets clients without one pass, while names or
    /// hashes do not.
    pub fn client_certificate(&self) -> ClientCertificate {
        let named = !self.sans.is_empty() || !self.hashes.is_empty() || !self.spkis.is_empty();
        match &self.trusted {
            Trusted::Spiffe(_) => ClientCertificate::Required,
            Trusted::Nobody | Trusted::Bundle(_) if named && !self.accept_untrusted => {
                ClientCertificate::Required
            }
            Trusted::Nobody if !named && !self.accept_untrusted => ClientCertificate::NotAsked,
            Trusted::Nobody | Trusted::Bundle(_) => ClientCertificate::Asked,
        }
    }

    /// The authorities that clients are told of, each once.
    pub fn client_ca_list(&self) -> Vec<DistinguishedName> {
        if self.suppress_client_ca_list {
            return Vec::new();
        }
        let mut names: Vec<&[u8]> = self.bundles().flat_map(|(_, bundle)| bundle.subjects()).collect();
        let mut known = std::collections::HashSet::new();
        names.retain(|name| known.insert(*name));
        names.into_iter().map(DistinguishedName::in_sequence).collect()
    }

    /// What is trusted, for `/certs`: the first certificate only, as in Envoy, and where it is from.
    pub fn ca_certificate(&self) -> Option<(String, Certificate)> {
        let (domain, bundle) = self.bundles().next()?;
        let origin = match domain {
            Some(domain) => format!("{domain}: {}", bundle.origin()),
            None => bundle.origin().to_owned(),
        };
        Some((origin, certificate::facts(bundle.first()?).ok()?))
    }

    /// When the first of what is trusted expires, in seconds since 1970.
    pub fn first_expiration(&self) -> Option<i64> {
        self.bundles().filter_map(|(_, bundle)| bundle.first_expiration()).min()
    }

    /// With their trust domains, where they have one.
    fn bundles(&self) -> impl Iterator<Item = (Option<&str>, &Bundle)> {
        let (plain, spiffe) = match &self.trusted {
            Trusted::Nobody => (None, None),
            Trusted::Bundle(bundle) => (Some((None, bundle)), None),
            Trusted::Spiffe(domains) => (None, Some(domains.iter())),
        };
        let spiffe = spiffe.into_iter().flatten().map(|(name, bundle)| (Some(name), bundle));
        plain.into_iter().chain(spiffe)
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        role: Role,
        server_name: Option<&str>,
    ) -> Result<Validation, Failed> {
        let nothing_asked = matches!(self.client_certificate(), ClientCertificate::NotAsked);
        if nothing_asked && server_name.is_none() {
            return Ok(Validation::NotValidated);
        }
        let unreadable = |why: String| Failed::chain(why, CertificateError::BadEncoding);
        let parsed = certificate::parse(leaf).map_err(unreadable)?;
        if certificate::has_broken_extension(&parsed) {
            return Err(unreadable("an extension is broken".to_owned()));
        }
        let names = certificate::subject_alt_names(&parsed).map_err(unreadable)?;
        let mut validation = Validation::NotValidated;
        let bundle = match &self.trusted {
            Trusted::Nobody => None,
            Trusted::Bundle(bundle) => Some(bundle),
            Trusted::Spiffe(domains) => Some(domains.choose(&parsed, &names)?),
        };
        if let Some(bundle) = bundle {
            bundle.check(leaf, &parsed, intermediates, now, role)?;
            validation = Validation::Validated;
        } else if server_name.is_some() {
            return Err(Failed::San("verify cert failed: a server name without a trusted CA".to_owned()));
        }
        if self.check_names(&names, server_name)? | self.check_hashes(leaf, &parsed)? {
            validation = Validation::Validated;
        }
        if validation == Validation::NotValidated && !self.accept_untrusted {
            return Err(unreadable("nothing validates it".to_owned()));
        }
        Ok(validation)
    }

    /// True where names were asked for.
    fn check_names(&self, names: &Names, server_name: Option<&str>) -> Result<bool, Failed> {
        let listed = || names.all().collect::<Vec<_>>().join(", ");
        if names.any_has_nul() {
            return Err(Failed::San("verify cert failed: a subject alternative name has a NUL".to_owned()));
        }
        let good = match server_name {
            Some(wanted) => names.dns.iter().any(|name| san::dns_name_match(wanted, name)),
            None if self.sans.is_empty() => return Ok(false),
            None => san::any_matches(&self.sans, names),
        };
        if good {
            return Ok(true);
        }
        let why = match server_name {
            Some(wanted) => {
                format!("verify SAN list, expected SANs: [{wanted}], certificate SANs: [{}]", listed())
            }
            None => format!("SAN matcher, certificate SANs are [{}]", listed()),
        };
        Err(Failed::San(format!("verify cert failed: {why}")))
    }

    /// True where hashes were asked for. Any one of either kind will do.
    fn check_hashes(&self, leaf: &CertificateDer<'_>, parsed: &X509Certificate<'_>) -> Result<bool, Failed> {
        if self.hashes.is_empty() && self.spkis.is_empty() {
            return Ok(false);
        }
        let is = |data: &[u8], wanted: &[[u8; 32]]| {
            let sum = digest(&SHA256, data);
            wanted.iter().any(|one| one == sum.as_ref())
        };
        if is(leaf, &self.hashes) || is(parsed.public_key().raw, &self.spkis) {
            return Ok(true);
        }
        Err(Failed::Hash)
    }

    fn count(&self, failure: &Failed) {
        let stats = &self.stats;
        match failure {
            Failed::Chain { .. } => stats.fail_verify_error.inc(),
            Failed::San(_) => stats.fail_verify_san.inc(),
            Failed::Hash => stats.fail_verify_cert_hash.inc(),
        }
    }
}

/// What a certificate has failed at.
#[derive(Debug)]
enum Failed {
    Chain { reason: String, error: CertificateError },
    San(String),
    Hash,
}

impl Failed {
    fn chain(why: impl std::fmt::Display, error: CertificateError) -> Self {
        Self::Chain { reason: format!("verify cert failed: {why}"), error }
    }
}

impl From<Failed> for VerifyError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Chain { reason, error } => Self { reason, error },
            Failed::San(reason) => Self { error: other(&reason), reason },
            Failed::Hash => {
                let reason = "verify cert failed: cert hash and spki".to_owned();
                Self { error: other(&reason), reason }
            }
        }
    }
}

/// `certificate_unknown` on the wire, as Envoy's.
fn other(reason: &str) -> CertificateError {
    CertificateError::Other(rustls::OtherError(Arc::new(std::io::Error::other(reason.to_owned()))))
}

fn trusted(material: &ValidationMaterial) -> Result<Trusted, String> {
    let model = &material.model;
    let trust = Trust {
        crl: material.crl.as_ref(),
        leaf_crl_only: model.only_verify_leaf_cert_crl,
        allow_expired: model.allow_expired_certificate,
        max_verify_depth: model.max_verify_depth,
        roots_only: model.spiffe.is_some(),
    };
    if model.spiffe.is_some() {
        return spiffe::Domains::new(&material.bundles, &trust).map(Trusted::Spiffe);
    }
    match (&model.trusted_ca, &material.trusted_ca) {
        (None, _) => Ok(Trusted::Nobody),
        (Some(TrustedCa::System), _) => Bundle::of_the_system(&trust).map(Trusted::Bundle),
        (Some(TrustedCa::Source(_)), Some(ca)) => Bundle::new(ca, &trust).map(Trusted::Bundle),
        (Some(TrustedCa::Source(_)), None) => Err("trusted_ca was not read".to_owned()),
    }
}

/// What Envoy refuses to configure without a trusted CA.
fn check_without_trust(model: &ValidationContext) -> Result<(), String> {
    let why = if model.crl.is_some() {
        "Failed to load CRL without trusted CA"
    } else if !model.match_subject_alt_names.is_empty() {
        "SAN-based verification of peer certificates without trusted CA is insecure and not allowed"
    } else if model.allow_expired_certificate {
        "Certificate validity period is always ignored without trusted CA"
    } else {
        return Ok(());
    };
    Err(why.to_owned())
}

#[cfg(test)]
mod tests;

//! `envoy.tls.cert_validator.spiffe`: the certificate's own trust domain says which bundle judges it.

use std::sync::Arc;

use rustls::CertificateError;
use x509_parser::prelude::X509Certificate;

use super::Failed;
use super::path::{Bundle, Trust};
use crate::secret::Material;
use crate::transport::tls::certificate::{Names, key_usage};

/// `keyCertSign` and `cRLSign`.
const SIGNS_CERTIFICATES: u16 = 1 << 5 | 1 << 6;

pub(super) struct Domains(Vec<(Arc<str>, Bundle)>);

impl Domains {
    pub(super) fn new(bundles: &[(Arc<str>, Material)], trust: &Trust<'_>) -> Result<Self, String> {
        let mut domains: Vec<(Arc<str>, Bundle)> = Vec::new();
        for (name, bundle) in bundles {
            if domains.iter().any(|(known, _)| known == name) {
                return Err(format!("Multiple trust bundles are given for one trust domain for {name}"));
            }
            let bundle = Bundle::new(bundle, trust).map_err(|why| format!("trust domain {name}: {why}"))?;
            domains.push((name.clone(), bundle));
        }
        if domains.is_empty() { Err("no trust domain is given".to_owned()) } else { Ok(Self(domains)) }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Bundle)> {
        self.0.iter().map(|(name, bundle)| (&**name, bundle))
    }

    /// The bundle of the certificate's trust domain, where the certificate may be an SVID's leaf at all.
    pub(super) fn choose(&self, leaf: &X509Certificate<'_>, names: &Names) -> Result<&Bundle, Failed> {
        let refused = |why: &str| Failed::chain(why, CertificateError::ApplicationVerificationFailure);
        let usage = key_usage(leaf).map_err(|why| refused(&why))?.unwrap_or(0);
        if leaf.is_ca() || usage & SIGNS_CERTIFICATES != 0 {
            return Err(refused("cert precheck"));
        }
        let [id] = names.uri.as_slice() else {
            return Err(refused("no trust bundle store"));
        };
        let wanted = trust_domain(id).ok_or_else(|| refused("no trust bundle store"))?;
        let known = self.0.iter().find(|(name, _)| **name == *wanted);
        known.map(|(_, bundle)| bundle).ok_or_else(|| refused("no trust bundle store"))
    }
}

/// What is between `spiffe://` and the path, which there must be.
fn trust_domain(id: &str) -> Option<&str> {
    let (domain, _) = id.strip_prefix("spiffe://")?.split_once('/')?;
    (!domain.is_empty()).then_some(domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trust_domain_ends_where_the_path_begins() {
        for (id, domain) in [
            ("spiffe://example.org/ns/a", Some("example.org")),
            ("spiffe://example.org/", Some("example.org")),
            ("spiffe://example.org", None),
            ("spiffe:///ns/a", None),
            ("https://example.org/ns/a", None),
            ("SPIFFE://example.org/ns/a", None),
            ("", None),
        ] {
            assert_eq!(trust_domain(id), domain, "{id}");
        }
    }
}

//! Verification until `verify` is there: webpki against `trusted_ca`.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime, pem::PemObject};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::stats::SslStats;
use crate::secret::material::ValidationMaterial;
use crate::transport::Certificate;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct VerifyError(String);

#[derive(Debug)]
pub(super) struct Verifier {
    anchors: Vec<rustls::pki_types::TrustAnchor<'static>>,
    stats: Arc<SslStats>,
}

impl Verifier {
    pub(super) fn new(material: &ValidationMaterial, stats: Arc<SslStats>) -> Result<Self, String> {
        let mut anchors = Vec::new();
        for der in material.trusted_ca.iter().flat_map(|ca| CertificateDer::pem_slice_iter(&ca.bytes)) {
            let der = der.map_err(|e| e.to_string())?;
            anchors.push(anchor_from_trusted_cert(&der).map_err(|e| e.to_string())?.to_owned());
        }
        Ok(Self { anchors, stats })
    }

    pub(super) fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        role: Role,
        _: Option<&str>,
    ) -> Result<(), VerifyError> {
        if self.anchors.is_empty() {
            return Ok(());
        }
        let usage = match role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        let algorithms = webpki::ALL_VERIFICATION_ALGS;
        let checked = EndEntityCert::try_from(leaf).and_then(|leaf| {
            leaf.verify_for_usage(algorithms, &self.anchors, intermediates, now, usage, None, None).map(drop)
        });
        checked.map_err(|e| {
            self.stats.fail_verify_error.inc();
            VerifyError(e.to_string())
        })
    }
}

pub(super) fn facts(der: &[u8]) -> Result<Certificate, String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).map_err(|e| e.to_string())?;
    Ok(Certificate {
        der: der.to_vec(),
        subject: parsed.subject().to_string(),
        issuer: parsed.issuer().to_string(),
        ..Certificate::default()
    })
}

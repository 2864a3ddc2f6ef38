//! webpki's refusals in the words of Envoy's library.

use rustls::CertificateError;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::Error;

use super::Failed;
use crate::transport::tls::certificate::parse;

/// The depth is that of the certificate at fault, as far as it is known.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "webpki has dozens, most of broken encodings, and will have more"
)]
pub(super) fn reason(
    error: &Error,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Failed {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let chain = || std::iter::once(leaf).chain(intermediates).map(|der| parse(der));
    let first = |is: &dyn Fn(i64, i64) -> bool| {
        let at = chain().position(|certificate| {
            certificate.is_ok_and(|certificate| {
                let validity = certificate.validity();
                is(validity.not_before.timestamp(), validity.not_after.timestamp())
            })
        });
        at.unwrap_or(0)
    };
    let (depth, why, error): (usize, &str, CertificateError) = match error {
        Error::CertExpired { .. } => {
            (first(&|_, to| to < now), "certificate has expired", CertificateError::Expired)
        }
        Error::CertNotValidYet { .. } => {
            (first(&|from, _| from > now), "certificate is not yet valid", CertificateError::NotValidYet)
        }
        Error::CertRevoked => (0, "certificate revoked", CertificateError::Revoked),
        Error::CrlExpired { .. } => (0, "CRL has expired", CertificateError::UnknownRevocationStatus),
        Error::UnknownRevocationStatus => {
            (0, "unable to get certificate CRL", CertificateError::UnknownRevocationStatus)
        }
        Error::IssuerNotCrlSigner => {
            (0, "key usage does not include CRL signing", CertificateError::UnknownRevocationStatus)
        }
        Error::InvalidCrlSignatureForPublicKey => {
            (0, "CRL signature failure", CertificateError::UnknownRevocationStatus)
        }
        Error::InvalidSignatureForPublicKey => {
            (0, "certificate signature failure", CertificateError::BadSignature)
        }
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => {
            (0, "unsupported certificate purpose", CertificateError::InvalidPurpose)
        }
        Error::EndEntityUsedAsCa => (1, "invalid CA certificate", CertificateError::UnknownIssuer),
        Error::PathLenConstraintViolated => {
            (1, "path length constraint exceeded", CertificateError::UnknownIssuer)
        }
        Error::NameConstraintViolation => (0, "permitted subtree violation", CertificateError::UnknownIssuer),
        Error::UnsupportedCriticalExtension => {
            (0, "unhandled critical extension", CertificateError::UnhandledCriticalExtension)
        }
        Error::UnknownIssuer | Error::MaximumPathDepthExceeded | Error::CaUsedAsEndEntity => {
            let (depth, why) = unknown_issuer(leaf, intermediates);
            (depth, why, CertificateError::UnknownIssuer)
        }
        other => {
            return Failed::chain(
                format!("X509_verify_cert: certificate verification error: {other}"),
                CertificateError::BadEncoding,
            );
        }
    };
    let why = format!("X509_verify_cert: certificate verification error at depth {depth}: {why}");
    Failed::chain(why, error)
}

/// How far the peer's own certificates led.
fn unknown_issuer(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> (usize, &'static str) {
    let mut left: Vec<_> = intermediates.iter().filter_map(|der| parse(der).ok()).collect();
    let Ok(mut last) = parse(leaf) else {
        return (0, "unable to get local issuer certificate");
    };
    let mut depth = 0;
    loop {
        if last.subject() == last.issuer() {
            let why = match depth {
                0 => "self signed certificate",
                _ => "self signed certificate in certificate chain",
            };
            return (depth, why);
        }
        let Some(at) = left.iter().position(|one| one.subject() == last.issuer()) else {
            return (depth, "unable to get local issuer certificate");
        };
        last = left.swap_remove(at);
        depth += 1;
    }
}

//! Which versions, cipher suites, groups and signatures a context speaks.

use std::sync::Arc;

use proxy_config::model::tls::{CipherSuite, Curve, TlsParams, TlsVersion};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{SubjectPublicKeyInfoDer, UnixTime};
use rustls::sign::{Signer, SigningKey};
use rustls::time_provider::TimeProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{SignatureAlgorithm, SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion};

use self::library::{cipher_suite as suites, default_provider};
use super::names;
use crate::clock;

/// The cryptography, but for the exchange of keys: ring's AES-GCM uses the vector instructions of more machines.
pub(super) use rustls::crypto::ring as library;

/// The exchange of keys: aws-lc-rs takes half of the time that ring does for X25519.
#[cfg(feature = "aws-lc-rs")]
use rustls::crypto::aws_lc_rs::kx_group as groups;
#[cfg(not(feature = "aws-lc-rs"))]
use rustls::crypto::ring::kx_group as groups;

/// TLS 1.3 suites are not chosen by configuration, as in Envoy. AES-128 goes first there too.
const TLS13_SUITES: [SupportedCipherSuite; 3] = [
    suites::TLS13_AES_128_GCM_SHA256,
    suites::TLS13_AES_256_GCM_SHA384,
    suites::TLS13_CHACHA20_POLY1305_SHA256,
];

/// Envoy's own choice of TLS 1.2 suites, in its order.
const TLS12_SUITES: [CipherSuite; 6] = [
    CipherSuite::EcdheEcdsaAes128GcmSha256,
    CipherSuite::EcdheRsaAes128GcmSha256,
    CipherSuite::EcdheEcdsaChacha20Poly1305,
    CipherSuite::EcdheRsaChacha20Poly1305,
    CipherSuite::EcdheEcdsaAes256GcmSha384,
    CipherSuite::EcdheRsaAes256GcmSha384,
];

/// Envoy's own, but for X25519MLKEM768, which ring has not.
const CURVES: [Curve; 2] = [Curve::X25519, Curve::P256];

pub(super) fn provider(params: &TlsParams) -> Arc<CryptoProvider> {
    let chosen: &[CipherSuite] =
        if params.cipher_suites.is_empty() { &TLS12_SUITES } else { &params.cipher_suites };
    let mut cipher_suites = Vec::new();
    if params.maximum >= TlsVersion::V1_3 {
        cipher_suites.extend(TLS13_SUITES);
    }
    if params.minimum <= TlsVersion::V1_2 {
        cipher_suites.extend(chosen.iter().map(|suite| tls12_suite(*suite)));
    }
    let curves: &[Curve] = if params.curves.is_empty() { &CURVES } else { &params.curves };
    let kx_groups = curves.iter().map(|curve| match curve {
        Curve::X25519 => groups::X25519,
        Curve::P256 => groups::SECP256R1,
        Curve::P384 => groups::SECP384R1,
    });
    Arc::new(CryptoProvider { cipher_suites, kx_groups: kx_groups.collect(), ..default_provider() })
}

pub(super) fn versions(params: &TlsParams) -> Vec<&'static SupportedProtocolVersion> {
    let mut versions = Vec::new();
    if params.maximum >= TlsVersion::V1_3 {
        versions.push(&TLS13);
    }
    if params.minimum <= TlsVersion::V1_2 {
        versions.push(&TLS12);
    }
    versions
}

/// What is signed with, and accepted as a peer's signature, in order of preference.
#[derive(Clone, Debug)]
pub(super) struct Schemes(Arc<[SignatureScheme]>);

impl Schemes {
    pub(super) fn new(params: &TlsParams, provider: &CryptoProvider) -> Self {
        let supported = provider.signature_verification_algorithms.supported_schemes();
        let is_supported = |scheme: &SignatureScheme| supported.contains(scheme);
        if params.signature_algorithms.is_empty() {
            return Self(names::SCHEMES.into_iter().filter(is_supported).collect());
        }
        let chosen = params.signature_algorithms.iter().filter_map(|name| names::scheme(name));
        Self(chosen.filter(is_supported).collect())
    }

    pub(super) fn contains(&self, scheme: SignatureScheme) -> bool {
        self.0.contains(&scheme)
    }

    pub(super) fn list(&self) -> Vec<SignatureScheme> {
        self.0.to_vec()
    }

    /// A key that signs with these only.
    pub(super) fn restrict(&self, key: Arc<dyn SigningKey>) -> Arc<dyn SigningKey> {
        Arc::new(Restricted { key, schemes: self.clone() })
    }
}

#[derive(Debug)]
struct Restricted {
    key: Arc<dyn SigningKey>,
    schemes: Schemes,
}

impl SigningKey for Restricted {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let offered: Vec<_> = offered.iter().copied().filter(|one| self.schemes.contains(*one)).collect();
        self.key.choose_scheme(&offered)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.key.public_key()
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.key.algorithm()
    }
}

fn tls12_suite(suite: CipherSuite) -> SupportedCipherSuite {
    match suite {
        CipherSuite::EcdheEcdsaAes128GcmSha256 => suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::EcdheRsaAes128GcmSha256 => suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::EcdheEcdsaAes256GcmSha384 => suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::EcdheRsaAes256GcmSha384 => suites::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::EcdheEcdsaChacha20Poly1305 => suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        CipherSuite::EcdheRsaChacha20Poly1305 => suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    }
}

/// The daemon's clock, for rustls.
#[derive(Debug)]
pub(super) struct Wall;

impl TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        Some(now())
    }
}

pub(super) fn now() -> UnixTime {
    // A clock before 1970 is a broken clock: everything has yet to become valid.
    UnixTime::since_unix_epoch(clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default())
}

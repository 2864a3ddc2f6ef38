//! Certificates with their keys: from PEM to what rustls signs with.

use std::fmt;
use std::sync::Arc;

use pkcs8::{EncryptedPrivateKeyInfoRef, SecretDocument};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, SignatureAlgorithm};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::certificate::{self, facts};
use super::inputs::Named;
use super::ocsp::Staple;
use super::provider::Schemes;
use crate::secret::Material;
use crate::secret::material::KeyMaterial;
use crate::transport::Certificate;

/// A certificate chain with the key of its leaf.
pub(super) struct Identity {
    pub(super) certified: Arc<CertifiedKey>,
    pub(super) facts: Arc<Certificate>,
    /// The file of the chain, or `<inline>`.
    pub(super) origin: Arc<str>,
    /// What a client may call it by: its DNS names, or else its common name, in lower case.
    pub(super) names: Vec<String>,
    pub(super) is_ecdsa: bool,
    /// Its secret's name.
    pub(super) secret: Option<Arc<str>>,
    pub(super) staple: Option<Staple>,
    /// It promises a staple.
    pub(super) must_staple: bool,
}

/// It holds a key.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.facts.subject, self.origin)
    }
}

impl Identity {
    pub(super) fn load(
        Named { name, material }: &Named,
        provider: &CryptoProvider,
        schemes: &Schemes,
    ) -> Result<Self, String> {
        let (chain, key) = match &material.key {
            KeyMaterial::Pem { chain, key } => (chain, key),
            KeyMaterial::Pkcs12(material) => {
                return Err(format!("pkcs12: {}: PKCS #12 is not supported", material.origin));
            }
        };
        let certificates = certificates(chain)?;
        let leaf = certificates.first().ok_or_else(|| no_certificate(chain))?;
        let facts = facts(leaf).map_err(|why| format!("certificate_chain: {}: {why}", chain.origin))?;
        let names = names(leaf).map_err(|why| format!("certificate_chain: {}: {why}", chain.origin))?;
        strong_enough(leaf).map_err(|why| format!("certificate_chain: {}: {why}", chain.origin))?;
        let must_staple = promises_staple(leaf);
        let signing = private_key(key, material.password.as_ref())?;
        let mut certified = CertifiedKey::from_der(certificates, signing, provider).map_err(|e| {
            let why = if e == Error::InconsistentKeys(InconsistentKeys::KeyMismatch) {
                format!("it is not the key of the certificate of {}", chain.origin)
            } else {
                e.to_string()
            };
            format!("private_key: {}: {why}", key.origin)
        })?;
        certified.key = schemes.restrict(certified.key);
        let staple = match (&material.ocsp_staple, certified.cert.first()) {
            (Some(staple), Some(leaf)) => Some(self::staple(staple, leaf)?),
            (_, _) => None,
        };
        Ok(Self {
            must_staple,
            secret: name.clone(),
            staple,
            is_ecdsa: certified.key.algorithm() == SignatureAlgorithm::ECDSA,
            certified: Arc::new(certified),
            facts: Arc::new(facts),
            origin: chain.origin.clone(),
            names,
        })
    }

    /// For `/certs`.
    pub(super) fn shown(&self) -> (String, Certificate) {
        (self.origin.to_string(), self.facts.as_ref().clone())
    }
}

fn certificates(chain: &Material) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain.bytes).collect();
    let found = found.map_err(|e| format!("certificate_chain: {}: {e}", chain.origin))?;
    if found.is_empty() { Err(no_certificate(chain)) } else { Ok(found) }
}

fn no_certificate(chain: &Material) -> String {
    format!("certificate_chain: {}: there is no certificate in it", chain.origin)
}

fn private_key(key: &Material, password: Option<&Material>) -> Result<PrivateKeyDer<'static>, String> {
    let failed = |why: String| format!("private_key: {}: {why}", key.origin);
    let text = String::from_utf8_lossy(&key.bytes);
    if let Some(encrypted) = encrypted(&text) {
        let password =
            password.ok_or_else(|| failed("it is encrypted, and no password is given".to_owned()))?;
        return decrypted(encrypted, password).map_err(failed);
    }
    if text.contains("Proc-Type: 4,ENCRYPTED") {
        let why = "it is encrypted in OpenSSL's old way; `openssl pkcs8 -topk8` makes it PKCS #8";
        return Err(failed(why.to_owned()));
    }
    PrivateKeyDer::from_pem_slice(&key.bytes).map_err(|e| {
        failed(if matches!(e, pem::Error::NoItemsFound) {
            "there is no private key in it".to_owned()
        } else {
            e.to_string()
        })
    })
}

/// The PEM section of an encrypted PKCS #8 key.
fn encrypted(text: &str) -> Option<&str> {
    const END: &str = "-----END ENCRYPTED PRIVATE KEY-----";
    let begin = text.find("-----BEGIN ENCRYPTED PRIVATE KEY-----")?;
    let section = text.get(begin..)?;
    section.get(..section.find(END)? + END.len())
}

fn decrypted(section: &str, password: &Material) -> Result<PrivateKeyDer<'static>, String> {
    let broken = |e: &dyn fmt::Display| format!("it cannot be read: {e}");
    let (_, document) = SecretDocument::from_pem(section).map_err(|e| broken(&e))?;
    let key = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes()).map_err(|e| broken(&e))?;
    let wrong = format!("the password of {} does not open it", password.origin);
    let key = key.decrypt(password.bytes.trim_ascii_end()).map_err(|e| format!("{wrong}: {e}"))?;
    Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into())
}

/// Envoy refuses short RSA keys and other curves than P-256, because BoringSSL does. rustls has P-384, which is
/// welcome here.
fn strong_enough(leaf: &CertificateDer<'_>) -> Result<(), String> {
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|e| e.to_string())?;
    if let Ok(PublicKey::RSA(key)) = leaf.public_key().parsed()
        && key.key_size() < 2048
    {
        return Err("only RSA certificates with 2048-bit or larger keys are supported".to_owned());
    }
    Ok(())
}

/// RFC 7633: a TLS feature extension of `status_request`. Envoy compares the same bytes.
fn promises_staple(leaf: &CertificateDer<'_>) -> bool {
    certificate::parse(leaf).is_ok_and(|leaf| {
        let mut extensions = leaf.extensions().iter();
        extensions
            .any(|one| one.oid.to_id_string() == "1.3.6.1.5.5.7.1.24" && one.value == [0x30, 3, 2, 1, 5])
    })
}

fn staple(material: &Material, leaf: &CertificateDer<'_>) -> Result<Staple, String> {
    let failed = |why: String| format!("ocsp_staple: {}: {why}", material.origin);
    let leaf = certificate::parse(leaf).map_err(failed)?;
    Staple::parse(&material.bytes, leaf.raw_serial()).map_err(failed)
}

fn names(leaf: &CertificateDer<'_>) -> Result<Vec<String>, String> {
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|e| e.to_string())?;
    let sans = leaf.subject_alternative_name().map_err(|e| e.to_string())?;
    let Some(sans) = sans else {
        let common = leaf.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        return Ok(common.map(str::to_ascii_lowercase).collect());
    };
    let dns = sans.value.general_names.iter().filter_map(|name| {
        if let GeneralName::DNSName(name) = name { Some(name.to_ascii_lowercase()) } else { None }
    });
    Ok(dns.collect())
}

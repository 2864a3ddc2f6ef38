//! The content of secrets: what files, the environment and the configuration itself hold, read.

use std::sync::Arc;

use proxy_config::model::tls::{
    CertificateKey, DataSource, SecretKind, TlsCertificate, TrustedCa, ValidationContext,
};

/// A secret, read.
#[derive(Clone, Debug, PartialEq)]
pub enum Loaded {
    Certificate(CertificateMaterial),
    Validation(ValidationMaterial),
    TicketKeys(Vec<Material>),
    Generic,
}

/// Bytes, and where they are from: a path, `<inline>` or `<environment variable>`, as Envoy says it.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    pub bytes: Arc<[u8]>,
    pub origin: Arc<str>,
}

/// It may be a key.
impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of {}", self.bytes.len(), self.origin)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateMaterial {
    pub key: KeyMaterial,
    pub password: Option<Material>,
    pub ocsp_staple: Option<Material>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyMaterial {
    Pem { chain: Material, key: Material },
    Pkcs12(Material),
}

#[derive(Clone, Debug, PartialEq)]
pub struct ValidationMaterial {
    pub model: Arc<ValidationContext>,
    /// Of a source; the system's own roots are not read here.
    pub trusted_ca: Option<Material>,
    pub crl: Option<Material>,
    /// Of the SPIFFE validator, by trust domain.
    pub bundles: Vec<(Arc<str>, Material)>,
}

#[derive(Debug, thiserror::Error)]
#[error("{field}: {origin}: {why}")]
pub struct LoadError {
    pub field: &'static str,
    pub origin: Arc<str>,
    pub why: String,
}

pub fn read(field: &'static str, source: &DataSource) -> Result<Material, LoadError> {
    let error = |origin: Arc<str>, why: String| LoadError { field, origin, why };
    match source {
        DataSource::File(path) => {
            let origin: Arc<str> = path.display().to_string().into();
            match std::fs::read(path) {
                Ok(bytes) => Ok(Material { bytes: bytes.into(), origin }),
                Err(e) => Err(error(origin, format!("cannot be read: {e}"))),
            }
        }
        DataSource::Inline(bytes) => Ok(Material { bytes: bytes.clone(), origin: "<inline>".into() }),
        DataSource::Environment(name) => match std::env::var(name.as_ref()) {
            Ok(value) => Ok(Material { bytes: value.into_bytes().into(), origin: format!("${name}").into() }),
            Err(e) => Err(error(format!("${name}").into(), e.to_string())),
        },
    }
}

pub fn certificate(model: &TlsCertificate) -> Result<CertificateMaterial, LoadError> {
    let optional = |field, source: &Option<DataSource>| source.as_ref().map(|s| read(field, s)).transpose();
    Ok(CertificateMaterial {
        key: match &model.key {
            CertificateKey::Pem { chain, key } => {
                KeyMaterial::Pem { chain: read("certificate_chain", chain)?, key: read("private_key", key)? }
            }
            CertificateKey::Pkcs12(source) => KeyMaterial::Pkcs12(read("pkcs12", source)?),
        },
        password: optional("password", &model.password)?,
        ocsp_staple: optional("ocsp_staple", &model.ocsp_staple)?,
    })
}

pub fn validation(model: &Arc<ValidationContext>) -> Result<ValidationMaterial, LoadError> {
    let trusted_ca = match &model.trusted_ca {
        Some(TrustedCa::Source(source)) => Some(read("trusted_ca", source)?),
        Some(TrustedCa::System) | None => None,
    };
    let domains = model.spiffe.iter().flatten();
    let bundles = domains.map(|domain| {
        let bundle = read("trust_bundle", &domain.bundle)?;
        Ok((domain.name.clone(), bundle))
    });
    Ok(ValidationMaterial {
        model: model.clone(),
        trusted_ca,
        crl: model.crl.as_ref().map(|source| read("crl", source)).transpose()?,
        bundles: bundles.collect::<Result<_, _>>()?,
    })
}

pub fn ticket_keys(sources: &[DataSource]) -> Result<Vec<Material>, LoadError> {
    sources.iter().map(|source| read("keys", source)).collect()
}

pub fn load(kind: &SecretKind) -> Result<Loaded, LoadError> {
    Ok(match kind {
        SecretKind::Certificate(model) => Loaded::Certificate(certificate(model)?),
        SecretKind::Validation(model) => Loaded::Validation(validation(model)?),
        SecretKind::TicketKeys(sources) => Loaded::TicketKeys(ticket_keys(sources)?),
        SecretKind::Generic => Loaded::Generic,
    })
}

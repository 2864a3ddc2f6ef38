//! `extensions.transport_sockets.tls.v3`: contexts, certificates, validation, secrets.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::StringMatcher;
use super::address::Cidr;
use super::config_source::ConfigSource;

/// `DownstreamTlsContext`.
#[derive(Clone, Debug, PartialEq)]
pub struct DownstreamTls {
    pub common: CommonTls,
    pub require_client_certificate: bool,
    /// A client that says no server name is refused.
    pub require_sni: bool,
    pub session_tickets: SessionTickets,
    /// TLS 1.2 session ids.
    pub disable_stateful_session_resumption: bool,
    /// `None`: the library's own.
    pub session_timeout: Option<Duration>,
    pub ocsp_staple_policy: OcspStaplePolicy,
    /// Where no certificate has the client's server name, try all for one that fits its key types.
    pub full_scan_certs_on_sni_mismatch: bool,
    pub prefer_client_ciphers: bool,
}

/// `UpstreamTlsContext`.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamTls {
    pub common: CommonTls,
    /// Empty: none is sent.
    pub sni: Arc<str>,
    /// The endpoint's host name, where it has one, is the server name.
    pub auto_host_sni: bool,
    /// What was sent as the server name must be a DNS name of the certificate.
    pub auto_sni_san_validation: bool,
    /// 0: no resumption. Default 1.
    pub max_session_keys: u32,
    pub enforce_rsa_key_usage: bool,
}

/// `CommonTlsContext`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CommonTls {
    pub params: TlsParams,
    pub certificates: Vec<TlsCertificate>,
    /// `tls_certificate_sds_secret_configs`.
    pub certificate_secrets: Vec<SecretRef>,
    pub validation: ValidationSource,
    pub alpn_protocols: Vec<Arc<str>>,
    pub key_log: Option<KeyLog>,
}

/// `TlsParameters`, with Envoy's defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsParams {
    pub minimum: TlsVersion,
    pub maximum: TlsVersion,
    /// Of TLS 1.2, in order of preference: what rustls has of those that were asked for. Those of 1.3 are not
    /// chosen here, as in Envoy. Empty: the default ones.
    pub cipher_suites: Vec<CipherSuite>,
    /// In order of preference. Empty: the default ones.
    pub curves: Vec<Curve>,
    /// By OpenSSL's name, lower case (`ecdsa_secp256r1_sha256`). Empty: the default ones.
    pub signature_algorithms: Vec<Arc<str>>,
}

impl Default for TlsParams {
    fn default() -> Self {
        Self {
            minimum: TlsVersion::V1_2,
            maximum: TlsVersion::V1_3,
            cipher_suites: Vec::new(),
            curves: Vec::new(),
            signature_algorithms: Vec::new(),
        }
    }
}

/// Those that rustls speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

/// TLS 1.2 cipher suites that rustls has, by OpenSSL's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CipherSuite {
    EcdheEcdsaAes128GcmSha256,
    EcdheRsaAes128GcmSha256,
    EcdheEcdsaAes256GcmSha384,
    EcdheRsaAes256GcmSha384,
    EcdheEcdsaChacha20Poly1305,
    EcdheRsaChacha20Poly1305,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    X25519,
    P256,
    P384,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum ValidationSource {
    /// The peer is not asked who it is.
    #[default]
    None,
    Context(Arc<ValidationContext>),
    Secret(SecretRef),
    /// `combined_validation_context`: the secret's is merged over the default one.
    Combined {
        default: Arc<ValidationContext>,
        secret: SecretRef,
    },
}

/// `CertificateValidationContext`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ValidationContext {
    pub trusted_ca: Option<TrustedCa>,
    pub watched_directory: Option<PathBuf>,
    /// SHA-256 of the public key.
    pub verify_certificate_spki: Vec<[u8; 32]>,
    /// SHA-256 of the certificate.
    pub verify_certificate_hash: Vec<[u8; 32]>,
    /// Any one of them.
    pub match_subject_alt_names: Vec<SanMatcher>,
    pub crl: Option<DataSource>,
    pub only_verify_leaf_cert_crl: bool,
    pub allow_expired_certificate: bool,
    /// `trust_chain_verification: ACCEPT_UNTRUSTED`.
    pub accept_untrusted: bool,
    /// `None`: 100, the library's.
    pub max_verify_depth: Option<u32>,
    /// Do not tell clients which CAs are trusted.
    pub suppress_client_ca_list: bool,
    /// `envoy.tls.cert_validator.spiffe`, instead of `trusted_ca`.
    pub spiffe: Option<Vec<TrustDomain>>,
}

impl ValidationContext {
    /// `dynamic` over `self`, as protobuf merges messages: what is said once is replaced, lists are joined.
    #[must_use]
    pub fn merged(&self, dynamic: &Self) -> Self {
        let joined = |one: &[[u8; 32]], other: &[[u8; 32]]| [one, other].concat();
        Self {
            trusted_ca: dynamic.trusted_ca.clone().or_else(|| self.trusted_ca.clone()),
            watched_directory: dynamic.watched_directory.clone().or_else(|| self.watched_directory.clone()),
            verify_certificate_spki: joined(&self.verify_certificate_spki, &dynamic.verify_certificate_spki),
            verify_certificate_hash: joined(&self.verify_certificate_hash, &dynamic.verify_certificate_hash),
            match_subject_alt_names: [
                self.match_subject_alt_names.as_slice(),
                dynamic.match_subject_alt_names.as_slice(),
            ]
            .concat(),
            crl: dynamic.crl.clone().or_else(|| self.crl.clone()),
            only_verify_leaf_cert_crl: self.only_verify_leaf_cert_crl || dynamic.only_verify_leaf_cert_crl,
            allow_expired_certificate: self.allow_expired_certificate || dynamic.allow_expired_certificate,
            accept_untrusted: self.accept_untrusted || dynamic.accept_untrusted,
            max_verify_depth: dynamic.max_verify_depth.or(self.max_verify_depth),
            suppress_client_ca_list: self.suppress_client_ca_list || dynamic.suppress_client_ca_list,
            spiffe: dynamic.spiffe.clone().or_else(|| self.spiffe.clone()),
        }
    }

    /// What makes it useless or unsafe: the field, and why. It is for a context that is whole, after a secret was
    /// merged over it. `auto_sni_san_validation` is its owner's.
    pub fn problem(&self, auto_sni_san_validation: bool) -> Option<(&'static str, &'static str)> {
        if self.spiffe.is_some() {
            return self.spiffe_problem(auto_sni_san_validation);
        }
        if self.trusted_ca.is_some() {
            return None;
        }
        if self.crl.is_some() {
            return Some(("crl", "needs a trusted_ca"));
        }
        if !self.match_subject_alt_names.is_empty() {
            return Some((SAN_MATCHERS, "needs a trusted_ca: without one a name proves nothing"));
        }
        if self.allow_expired_certificate {
            let why = "needs a trusted_ca: without one no validity period is looked at";
            return Some(("allow_expired_certificate", why));
        }
        auto_sni_san_validation.then_some((
            "trusted_ca",
            "is required by auto_sni_san_validation: without one a name proves nothing",
        ))
    }

    /// Envoy ignores what its SPIFFE validator does not do, which lets in whom the configuration keeps out.
    fn spiffe_problem(&self, auto_sni_san_validation: bool) -> Option<(&'static str, &'static str)> {
        let ignored = "is not looked at by the SPIFFE validator";
        let fields = [
            ("verify_certificate_spki", !self.verify_certificate_spki.is_empty()),
            ("verify_certificate_hash", !self.verify_certificate_hash.is_empty()),
            ("crl", self.crl.is_some()),
        ];
        if let Some((field, _)) = fields.into_iter().find(|(_, given)| *given) {
            return Some((field, ignored));
        }
        let of_uris = |matcher: &SanMatcher| matches!(matcher.kind, SanKind::Uri | SanKind::Any);
        if !self.match_subject_alt_names.iter().all(of_uris) {
            return Some((SAN_MATCHERS, "the SPIFFE validator looks at names of type URI only"));
        }
        let why = "does not go with auto_sni_san_validation: the SPIFFE validator looks at no DNS name";
        auto_sni_san_validation.then_some(("custom_validator_config", why))
    }
}

const SAN_MATCHERS: &str = "match_typed_subject_alt_names";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustedCa {
    Source(DataSource),
    /// `system_root_certs`.
    System,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SanMatcher {
    pub kind: SanKind,
    pub matcher: StringMatcher,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SanKind {
    /// `match_subject_alt_names`: names of every kind.
    Any,
    Email,
    Dns,
    Uri,
    Ip,
}

/// Of `SPIFFECertValidatorConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct TrustDomain {
    pub name: Arc<str>,
    pub bundle: DataSource,
}

/// `TlsCertificate`.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsCertificate {
    pub key: CertificateKey,
    pub watched_directory: Option<PathBuf>,
    pub password: Option<DataSource>,
    pub ocsp_staple: Option<DataSource>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum CertificateKey {
    Pem { chain: DataSource, key: DataSource },
    Pkcs12(DataSource),
}

/// `config.core.v3.DataSource`. What is inline may be a key: it is not shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum DataSource {
    File(PathBuf),
    Inline(Arc<[u8]>),
    Environment(Arc<str>),
}

impl DataSource {
    /// Whether it is seen without reading anything that there is nothing.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Inline(bytes) if bytes.is_empty())
    }
}

impl fmt::Debug for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Inline(bytes) => write!(f, "Inline({} bytes)", bytes.len()),
            Self::Environment(name) => f.debug_tuple("Environment").field(name).finish(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum SessionTickets {
    /// Keys of this process's own.
    #[default]
    Own,
    /// The first encrypts, all decrypt.
    Keys(Vec<DataSource>),
    Secret(SecretRef),
    /// `disable_stateless_session_resumption`.
    Disabled,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OcspStaplePolicy {
    #[default]
    Lenient,
    Strict,
    Must,
}

/// `TlsKeyLog`. An empty list is every address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyLog {
    pub path: PathBuf,
    pub local_address_range: Vec<Cidr>,
    pub remote_address_range: Vec<Cidr>,
}

/// `SdsSecretConfig`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SecretRef {
    pub name: Arc<str>,
    /// `None`: one of the bootstrap's static secrets.
    pub source: Option<ConfigSource>,
}

/// `Secret`.
#[derive(Clone, Debug, PartialEq)]
pub struct Secret {
    pub name: Arc<str>,
    pub kind: SecretKind,
}

#[derive(Clone, Debug, PartialEq)]
pub enum SecretKind {
    Certificate(TlsCertificate),
    Validation(Arc<ValidationContext>),
    TicketKeys(Vec<DataSource>),
    /// Kept for its name; nothing here reads one yet.
    Generic,
}

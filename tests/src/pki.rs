//! Certificates of a test's own: authorities, chains, leaves with any name and fault, revocation, as PEM files.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData as _,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};

use crate::lab::Lab;
use crate::process::Place;

/// Where a test's certificates are made.
pub struct Pki<'a> {
    lab: &'a Lab,
    dir: PathBuf,
}

/// Kinds of keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Key {
    #[default]
    P256,
    P384,
    Rsa2048,
}

/// When a certificate is good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Validity {
    #[default]
    Now,
    Past,
    Future,
}

/// What a leaf is to say.
#[derive(Clone, Debug, Default)]
pub struct Leaf {
    names: Vec<Name>,
    key: Key,
    validity: Validity,
    ca: bool,
    usages: Option<Vec<ExtendedKeyUsagePurpose>>,
    must_staple: bool,
}

#[derive(Clone, Debug)]
enum Name {
    Uri(String),
    Dns(String),
    Ip(IpAddr),
    Email(String),
}

/// An authority that issues.
pub struct Ca<'a> {
    lab: &'a Lab,
    dir: PathBuf,
    name: String,
    params: CertificateParams,
    key: KeyPair,
    pem: String,
    /// Its certificate and those above, without the root's; a leaf's chain goes on with them.
    above: String,
    file: PathBuf,
    key_file: PathBuf,
}

/// A certificate with its chain and key, each in a file.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The leaf, then its intermediates.
    pub chain: PathBuf,
    /// The leaf alone.
    pub leaf: PathBuf,
    pub key: PathBuf,
    serial: u64,
    der: Vec<u8>,
    public_key: Vec<u8>,
}

impl<'a> Pki<'a> {
    pub fn new(lab: &'a Lab) -> Result<Self> {
        let dir = lab.dir().join("pki");
        fs::create_dir_all(&dir)?;
        Ok(Self { lab, dir })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A root of its own.
    pub fn root(&self, name: &str) -> Result<Ca<'a>> {
        self.root_of(name, Key::P256)
    }

    pub fn root_of(&self, name: &str, key: Key) -> Result<Ca<'a>> {
        let params = ca_params(name);
        let key = new_key(self.lab, key)?;
        let pem = params.self_signed(&key)?.pem();
        Ca::make(self.lab, &self.dir, name, params, key, pem, "")
    }

    /// Several certificates in one file, such as two roots.
    pub fn bundle(&self, name: &str, files: &[&Path]) -> Result<PathBuf> {
        let all = files.iter().map(fs::read_to_string).collect::<std::io::Result<Vec<_>>>()?;
        self.file(&format!("{name}.pem"), all.concat())
    }

    /// 80 random-looking bytes of session ticket keys, always the same for a seed.
    pub fn ticket_key(&self, name: &str, seed: u8) -> Result<PathBuf> {
        let bytes: Vec<u8> = (0..80_u8).map(|n| n.wrapping_mul(31).wrapping_add(seed)).collect();
        self.file(&format!("{name}.key"), bytes)
    }

    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        write(&self.dir, name, content)
    }
}

impl<'a> Ca<'a> {
    fn make(
        lab: &'a Lab,
        dir: &Path,
        name: &str,
        params: CertificateParams,
        key: KeyPair,
        pem: String,
        above: &str,
    ) -> Result<Self> {
        let file = write(dir, &format!("{name}.pem"), &pem)?;
        let key_file = write(dir, &format!("{name}.key"), key.serialize_pem())?;
        let (name, above) = (name.to_owned(), above.to_owned());
        Ok(Self { lab, dir: dir.to_owned(), name, params, key, pem, above, file, key_file })
    }

    /// An authority below this one.
    pub fn intermediate(&self, name: &str) -> Result<Ca<'a>> {
        let params = ca_params(name);
        let key = new_key(self.lab, Key::P256)?;
        let pem = params.signed_by(&key, &self.issuer())?.pem();
        let above = format!("{pem}{}", self.above);
        Ca::make(self.lab, &self.dir, name, params, key, pem, &above)
    }

    pub fn issue(&self, name: &str, leaf: &Leaf) -> Result<Identity> {
        let serial = serial();
        let key = new_key(self.lab, leaf.key)?;
        let certificate = leaf.params(name, serial)?.signed_by(&key, &self.issuer())?;
        let pem = certificate.pem();
        Ok(Identity {
            chain: write(&self.dir, &format!("{name}.chain.pem"), format!("{pem}{}", self.above))?,
            leaf: write(&self.dir, &format!("{name}.leaf.pem"), &pem)?,
            key: write(&self.dir, &format!("{name}.key"), key.serialize_pem())?,
            serial,
            der: certificate.der().to_vec(),
            public_key: key.subject_public_key_info(),
        })
    }

    /// Its own certificate.
    pub fn file(&self) -> &Path {
        &self.file
    }

    pub fn key_file(&self) -> &Path {
        &self.key_file
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub fn der(&self) -> Result<CertificateDer<'static>> {
        CertificateDer::from_pem_slice(self.pem.as_bytes()).context("its own certificate")
    }

    /// A list of what it has revoked.
    pub fn crl(&self, name: &str, revoked: &[&Identity]) -> Result<PathBuf> {
        let revoked_certs = revoked.iter().map(|identity| RevokedCertParams {
            serial_number: SerialNumber::from(identity.serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 2),
            next_update: date_time_ymd(2049, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        write(&self.dir, &format!("{name}.crl"), list.signed_by(&self.issuer())?.pem()?)
    }

    /// An OCSP response in DER, made by OpenSSL.
    pub fn ocsp(&self, name: &str, of: &Identity, revoked: bool) -> Result<PathBuf> {
        let path = |end: &str| self.dir.join(format!("{name}.{end}"));
        let (index, request, response) = (path("index"), path("request"), path("ocsp"));
        let state = if revoked { "R\t490101000000Z\t240101000000Z" } else { "V\t490101000000Z\t" };
        let serial = format!("{:X}", of.serial);
        // An odd number of digits is no number to it.
        let serial = if serial.len() % 2 == 1 { format!("0{serial}") } else { serial };
        fs::write(&index, format!("{state}\t{serial}\tunknown\t/CN={name}\n"))?;
        let openssl = || self.lab.program("openssl", &Place::default());
        let ask =
            openssl()?.args(["ocsp", "-no_nonce", "-issuer"]).arg(&self.file).arg("-cert").arg(&of.leaf);
        ask.arg("-reqout").arg(&request).run()?;
        let answer = openssl()?.args(["ocsp", "-ndays", "30", "-index"]).arg(&index);
        let answer = answer.arg("-rsigner").arg(&self.file).arg("-rkey").arg(&self.key_file);
        answer.arg("-CA").arg(&self.file).arg("-reqin").arg(&request).arg("-respout").arg(&response).run()?;
        Ok(response)
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Leaf {
    pub fn new() -> Self {
        Self::default()
    }

    /// A workload of a mesh.
    pub fn spiffe(id: &str) -> Self {
        Self::new().uri(id)
    }

    pub fn uri(mut self, name: &str) -> Self {
        self.names.push(Name::Uri(name.to_owned()));
        self
    }

    /// The name may hold any ASCII, also NUL.
    pub fn dns(mut self, name: &str) -> Self {
        self.names.push(Name::Dns(name.to_owned()));
        self
    }

    pub fn ip(mut self, ip: impl Into<IpAddr>) -> Self {
        self.names.push(Name::Ip(ip.into()));
        self
    }

    pub fn email(mut self, name: &str) -> Self {
        self.names.push(Name::Email(name.to_owned()));
        self
    }

    pub fn key(mut self, key: Key) -> Self {
        self.key = key;
        self
    }

    pub fn valid(mut self, validity: Validity) -> Self {
        self.validity = validity;
        self
    }

    /// Claims to be an authority.
    pub fn ca(mut self) -> Self {
        self.ca = true;
        self
    }

    /// Says that it is for servers only, or for clients only.
    pub fn only_for(mut self, usage: ExtendedKeyUsagePurpose) -> Self {
        self.usages = Some(vec![usage]);
        self
    }

    /// Says that it is worth nothing without an OCSP response.
    pub fn must_staple(mut self) -> Self {
        self.must_staple = true;
        self
    }

    fn params(&self, name: &str, serial: u64) -> Result<CertificateParams> {
        let mut params = CertificateParams::default();
        (params.not_before, params.not_after) = match self.validity {
            Validity::Now => (date_time_ymd(2024, 1, 1), date_time_ymd(2049, 1, 1)),
            Validity::Past => (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1)),
            Validity::Future => (date_time_ymd(2047, 1, 1), date_time_ymd(2049, 1, 1)),
        };
        params.serial_number = Some(SerialNumber::from(serial));
        params.distinguished_name = subject(name);
        params.subject_alt_names = self.names.iter().map(Name::san).collect::<Result<_>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        let both = || vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.extended_key_usages = self.usages.clone().unwrap_or_else(both);
        params.use_authority_key_identifier_extension = true;
        if self.ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        }
        if self.must_staple {
            // The TLS feature extension (RFC 7633) with status_request.
            let feature = vec![0x30, 0x03, 0x02, 0x01, 0x05];
            let oid = [1, 3, 6, 1, 5, 5, 7, 1, 24];
            params.custom_extensions.push(rcgen::CustomExtension::from_oid_content(&oid, feature));
        }
        Ok(params)
    }
}

impl Name {
    fn san(&self) -> Result<SanType> {
        Ok(match self {
            Self::Uri(name) => SanType::URI(name.as_str().try_into()?),
            Self::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
            Self::Ip(ip) => SanType::IpAddress(*ip),
            Self::Email(name) => SanType::Rfc822Name(name.as_str().try_into()?),
        })
    }
}

impl Identity {
    /// `verify_certificate_hash`: of the whole certificate.
    pub fn hash(&self) -> String {
        hex(&Sha256::digest(&self.der))
    }

    /// `verify_certificate_spki`: of the public key, in base64 as OpenSSL's tools print it.
    pub fn spki(&self) -> String {
        base64(&Sha256::digest(&self.public_key))
    }

    pub fn der(&self) -> &[u8] {
        &self.der
    }

    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Chain and key as rustls takes them.
    pub fn load(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain = CertificateDer::pem_file_iter(&self.chain)?.collect::<Result<Vec<_>, _>>()?;
        Ok((chain, PrivateKeyDer::from_pem_file(&self.key)?))
    }
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(2023, 1, 1);
    params.not_after = date_time_ymd(2049, 6, 1);
    params.serial_number = Some(SerialNumber::from(serial()));
    params.distinguished_name = subject(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // A signer of OCSP responses says what it signs.
    params.key_usages.push(KeyUsagePurpose::DigitalSignature);
    params
}

fn subject(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "shunt tests");
    subject.push(DnType::CommonName, name);
    subject
}

/// An own number for each certificate of the process.
fn serial() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0x1000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn new_key(lab: &Lab, key: Key) -> Result<KeyPair> {
    Ok(match key {
        Key::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?,
        Key::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384)?,
        // ring signs with RSA keys and makes none.
        Key::Rsa2048 => {
            let args = ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
            let pem = lab.program("openssl", &Place::default())?.args(args).run()?.stdout;
            KeyPair::from_pem(&pem)?
        }
    })
}

fn write(dir: &Path, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for part in bytes.chunks(3) {
        let bits =
            part.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - part.len()));
        for n in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * n)) as usize & 63];
            out.push(if n <= part.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_every_remainder() {
        let all = ["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes()));
        assert_eq!(all, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]);
    }
}

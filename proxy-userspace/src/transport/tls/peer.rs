//! How rustls asks whether a peer is who it should be.
//!
//! The certificate is judged by [`Verifier`]; the signature of the handshake is checked here, by the provider's
//! algorithms, whatever the configuration says: without it a certificate proves nothing.
//!
//! rustls calls a verifier of a whole context, and gives back less than what is found out: the text for the log and
//! the peer's signature scheme. Both are of the connection that the thread works on at that moment, and are left in
//! [`Seen`] for it.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerMisbehaved, SignatureScheme,
};

use x509_parser::public_key::PublicKey;

use super::certificate;
use super::client::NAMELESS;
use super::provider::Schemes;
use super::verify::{ClientCertificate, Role, Validation, Verifier};
use crate::transport::Certificate;

/// What a connection's verification has found out beyond yes or no.
#[derive(Default)]
pub(super) struct Seen {
    /// Why the certificate was refused.
    pub(super) refused: Option<String>,
    /// What is known of a peer whose certificate was not.
    pub(super) validation: Option<Validation>,
    /// What the peer has signed with.
    pub(super) scheme: Option<SignatureScheme>,
}

thread_local! {
    static SEEN: RefCell<Seen> = RefCell::default();
}

impl Seen {
    /// Of the call to rustls that has just returned on this thread.
    pub(super) fn take() -> Self {
        SEEN.take()
    }
}

pub(super) struct PeerVerifier {
    /// `None`: any certificate will do.
    verifier: Option<Verifier>,
    algorithms: WebPkiSupportedAlgorithms,
    schemes: Schemes,
    /// The names of the trusted CAs, for clients.
    subjects: Vec<DistinguishedName>,
    /// A client must have a certificate.
    mandatory: bool,
    /// What was sent as the server's name must be a name of its certificate.
    auto_sni_san: bool,
    /// An RSA key must be for signatures, where its certificate says what it is for.
    rsa_key_usage: bool,
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerVerifier").field("mandatory", &self.mandatory).finish_non_exhaustive()
    }
}

/// In which kind of handshake a peer is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Visit {
    First,
    Resumed,
}

impl PeerVerifier {
    /// `None` where clients are not asked for a certificate: they are where there is something to judge it by, or where
    /// they must have one. Without anything to judge it by, any will do.
    pub(super) fn of_clients(
        verifier: Option<Verifier>,
        (algorithms, schemes): (WebPkiSupportedAlgorithms, Schemes),
        require: bool,
    ) -> Option<Self> {
        let asked = verifier.as_ref().map_or(ClientCertificate::NotAsked, Verifier::client_certificate);
        if asked == ClientCertificate::NotAsked && !require {
            return None;
        }
        Some(Self {
            subjects: verifier.as_ref().map(Verifier::client_ca_list).unwrap_or_default(),
            mandatory: require || asked == ClientCertificate::Required,
            verifier,
            algorithms,
            schemes,
            auto_sni_san: false,
            rsa_key_usage: false,
        })
    }

    pub(super) fn of_servers(
        verifier: Option<Verifier>,
        (algorithms, schemes): (WebPkiSupportedAlgorithms, Schemes),
        (auto_sni_san, rsa_key_usage): (bool, bool),
    ) -> Self {
        Self {
            verifier,
            algorithms,
            schemes,
            subjects: Vec::new(),
            mandatory: true,
            auto_sni_san,
            rsa_key_usage,
        }
    }

    /// What is trusted, for `/certs`.
    pub(super) fn ca(&self) -> Option<(String, Certificate)> {
        self.verifier.as_ref()?.ca_certificate()
    }

    /// The name that a server's certificate must have: what a request asks for, or what was sent as its name.
    pub(super) fn expected<'a>(&self, sent: Option<&'a str>, asked: Option<&'a str>) -> Option<&'a str> {
        asked.or(sent.filter(|_| self.auto_sni_san))
    }

    /// Judges a peer's certificates; what is found out is left in [`Seen`].
    pub(super) fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        role: Role,
        server_name: Option<&str>,
        visit: Visit,
    ) -> Result<(), Error> {
        let Some(verifier) = &self.verifier else { return Ok(()) };
        let checked = match visit {
            Visit::First => verifier.check(leaf, intermediates, now, role, server_name),
            Visit::Resumed => verifier.check_again(leaf, intermediates, now, role, server_name),
        };
        SEEN.with_borrow_mut(|seen| match &checked {
            Ok(validation) => seen.validation = Some(*validation),
            Err(e) => seen.refused = Some(e.reason.clone()),
        });
        Ok(checked.map(drop)?)
    }
}

impl PeerVerifier {
    /// rustls leaves it to its verifier that a peer signs with what it was offered.
    fn signed_with(&self, scheme: SignatureScheme) -> Result<(), Error> {
        SEEN.with_borrow_mut(|seen| seen.scheme = Some(scheme));
        if self.schemes.contains(scheme) {
            Ok(())
        } else {
            Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
        }
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, now, Role::Client, None, Visit::First)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed_with(dss.scheme)?;
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed_with(dss.scheme)?;
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.list()
    }
}

impl PeerVerifier {
    fn verify_server(
        &self,
        (leaf, intermediates): (&CertificateDer<'_>, &[CertificateDer<'_>]),
        server_name: &ServerName<'_>,
        asked: Option<&str>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let server_name = server_name.to_str();
        let sent = Some(server_name.as_ref()).filter(|name| *name != NAMELESS);
        if self.rsa_key_usage && !may_sign(leaf) {
            return Err(Error::InvalidCertificate(CertificateError::InvalidPurpose));
        }
        let name = self.expected(sent, asked);
        self.check(leaf, intermediates, now, Role::Server, name, Visit::First)?;
        Ok(ServerCertVerified::assertion())
    }
}

/// A verifier of one connection, whose server's certificate must have a name that a request asks for.
#[derive(Debug)]
pub(super) struct Expecting {
    pub(super) peer: Arc<PeerVerifier>,
    pub(super) san: Arc<str>,
}

impl ServerCertVerifier for Expecting {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.peer.verify_server((end_entity, intermediates), server_name, Some(&self.san), now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(&*self.peer, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(&*self.peer, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(&*self.peer)
    }
}

/// In all that rustls speaks a server signs. Other keys than RSA's can do nothing else.
fn may_sign(leaf: &CertificateDer<'_>) -> bool {
    let Ok(leaf) = certificate::parse(leaf) else { return false };
    if !matches!(leaf.public_key().parsed(), Ok(PublicKey::RSA(_))) {
        return true;
    }
    match leaf.key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.digital_signature()),
        Err(_) => false,
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify_server((end_entity, intermediates), server_name, None, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ClientCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ClientCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.list()
    }
}

//! A TLS client of the test's own: rustls over a blocking socket, with what was agreed and how it ended.

use std::fmt;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, ProtocolVersion, RootCertStore,
    SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion,
};

use crate::pki::Identity;
use crate::wire::reset;

/// How long a client waits for what must come.
const LIMIT: Duration = Duration::from_secs(10);

/// What clients offer unless told otherwise.
const SUITES: [SupportedCipherSuite; 3] = [
    ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
    ring::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ring::cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
];

/// How a client greets; connections of one [`TlsClient::ready`] share its sessions.
#[derive(Clone, Debug)]
pub struct TlsClient {
    name: Option<String>,
    alpn: Vec<String>,
    versions: Vec<&'static SupportedProtocolVersion>,
    suites: Vec<SupportedCipherSuite>,
    groups: Vec<&'static dyn SupportedKxGroup>,
    identity: Option<Identity>,
    ca: Option<std::path::PathBuf>,
    sessions: bool,
}

/// A client whose settings are final.
#[derive(Clone, Debug)]
pub struct ReadyClient {
    config: Arc<ClientConfig>,
    name: Option<String>,
}

/// What both sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// `TLSv1.2` or `TLSv1.3`
    pub version: &'static str,
    /// rustls's name.
    pub suite: String,
    pub alpn: Option<String>,
    pub resumed: bool,
    /// The other side's, the leaf first.
    pub chain: Vec<Vec<u8>>,
}

/// How what the other side sends ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsEnd {
    /// close_notify
    Notify,
    /// FIN without close_notify.
    Fin,
    Reset,
    Alert(String),
    /// It has not: nothing came within the limit.
    Open,
}

impl fmt::Display for TlsEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Notify => f.write_str("close_notify"),
            Self::Fin => f.write_str("FIN"),
            Self::Reset => f.write_str("RST"),
            Self::Alert(alert) => write!(f, "alert {alert}"),
            Self::Open => f.write_str("open"),
        }
    }
}

impl Default for TlsClient {
    fn default() -> Self {
        Self::new()
    }
}

impl TlsClient {
    /// Says no name, takes any certificate, keeps no session. It has one cipher of each version and key: where both
    /// sides have several, either may choose.
    pub fn new() -> Self {
        Self {
            name: None,
            alpn: Vec::new(),
            versions: rustls::ALL_VERSIONS.to_vec(),
            suites: SUITES.to_vec(),
            groups: Vec::new(),
            identity: None,
            ca: None,
            sessions: false,
        }
    }

    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    pub fn alpn(mut self, protocols: &[&str]) -> Self {
        self.alpn = protocols.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    pub fn tls12(mut self) -> Self {
        self.versions = vec![&rustls::version::TLS12];
        self
    }

    pub fn tls13(mut self) -> Self {
        self.versions = vec![&rustls::version::TLS13];
        self
    }

    /// Instead of the usual ones.
    pub fn suites(mut self, suites: &[SupportedCipherSuite]) -> Self {
        self.suites = suites.to_vec();
        self
    }

    pub fn group(mut self, group: &'static dyn SupportedKxGroup) -> Self {
        self.groups.push(group);
        self
    }

    pub fn identity(mut self, identity: &Identity) -> Self {
        self.identity = Some(identity.clone());
        self
    }

    /// The server's chain must end at this authority, and its name must be the one that was said.
    pub fn trust(mut self, ca: &Path) -> Self {
        self.ca = Some(ca.to_owned());
        self
    }

    /// Offers to resume.
    pub fn sessions(mut self) -> Self {
        self.sessions = true;
        self
    }

    pub fn ready(&self) -> Result<ReadyClient> {
        let mut provider = ring::default_provider();
        provider.cipher_suites.clone_from(&self.suites);
        if !self.groups.is_empty() {
            provider.kx_groups.clone_from(&self.groups);
        }
        let provider = Arc::new(provider);
        let verifier = match &self.ca {
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_file(ca)?)?;
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?
                    as Arc<dyn ServerCertVerifier>
            }
            None => Arc::new(Anybody(Arc::clone(&provider))),
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.versions)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &self.identity {
            Some(identity) => {
                let (chain, key) = identity.load()?;
                builder.with_client_auth_cert(chain, key)?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.clone().into_bytes()).collect();
        config.enable_sni = self.name.is_some();
        config.resumption =
            if self.sessions { Resumption::in_memory_sessions(32) } else { Resumption::disabled() };
        Ok(ReadyClient { config: Arc::new(config), name: self.name.clone() })
    }

    /// Connects with settings that no other connection shares.
    pub fn connect(&self, to: SocketAddr) -> Result<TlsStream> {
        self.ready()?.connect(to)
    }

    /// What is wrong where a connection must be refused: how it ended.
    pub fn refused(&self, to: SocketAddr) -> Result<TlsEnd> {
        self.ready()?.refused(to)
    }
}

impl ReadyClient {
    /// For clients that bring their own connections.
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// Connects and shakes hands.
    pub fn connect(&self, to: SocketAddr) -> Result<TlsStream> {
        let mut stream = self.begin(to)?;
        stream.handshake()?;
        Ok(stream)
    }

    /// As [`ReadyClient::connect`], over a connection that is there.
    pub fn connect_over(&self, socket: TcpStream) -> Result<TlsStream> {
        let mut stream = self.over(socket)?;
        stream.handshake()?;
        Ok(stream)
    }

    /// Connects, and says nothing yet.
    pub fn begin(&self, to: SocketAddr) -> Result<TlsStream> {
        self.over(TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?)
    }

    fn over(&self, socket: TcpStream) -> Result<TlsStream> {
        socket.set_read_timeout(Some(LIMIT))?;
        socket.set_write_timeout(Some(LIMIT))?;
        socket.set_nodelay(true)?;
        let name = match &self.name {
            Some(name) => ServerName::try_from(name.clone())?,
            None => ServerName::from(std::net::Ipv4Addr::LOCALHOST),
        };
        let session = ClientConnection::new(Arc::clone(&self.config), name)?;
        Ok(TlsStream { session, socket })
    }

    /// Connects and asks, which must not be answered: a client of TLS 1.3 learns only so that it was refused.
    pub fn refused(&self, to: SocketAddr) -> Result<TlsEnd> {
        let mut stream = self.begin(to)?;
        if let Err(end) = stream.shake() {
            return Ok(end);
        }
        // A failed write has its reason in what is read next.
        let _ = stream.send("hello\n");
        let (came, end) = stream.end()?;
        if !came.is_empty() {
            bail!("not refused: {:?} came", String::from_utf8_lossy(&came));
        }
        Ok(end)
    }
}

/// A connection over TLS.
#[derive(Debug)]
pub struct TlsStream {
    session: ClientConnection,
    socket: TcpStream,
}

impl TlsStream {
    fn handshake(&mut self) -> Result<()> {
        self.shake().map_err(|end| anyhow!("the handshake ended with {end}"))
    }

    fn shake(&mut self) -> Result<(), TlsEnd> {
        while self.session.is_handshaking() {
            self.session.complete_io(&mut self.socket).map_err(|error| end_of(&error))?;
        }
        // The last flight of a TLS 1.3 client.
        while self.session.wants_write() {
            self.session.write_tls(&mut self.socket).map_err(|error| end_of(&error))?;
        }
        Ok(())
    }

    /// Says what a client says first, and no more.
    pub fn greet(&mut self) -> Result<()> {
        while self.session.wants_write() {
            self.session.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    pub fn agreed(&self) -> Result<Agreed> {
        let suite = self.session.negotiated_cipher_suite().context("no cipher suite")?;
        let alpn = self.session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
        let chain = self.session.peer_certificates().unwrap_or_default();
        Ok(Agreed {
            version: match self.session.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
                Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
                other => bail!("version {other:?}"),
            },
            suite: format!("{:?}", suite.suite()),
            alpn,
            resumed: self.session.handshake_kind() == Some(HandshakeKind::Resumed),
            chain: chain.iter().map(|certificate| certificate.to_vec()).collect(),
        })
    }

    pub fn local(&self) -> Result<SocketAddr> {
        Ok(self.socket.local_addr()?)
    }

    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        let mut stream = rustls::Stream::new(&mut self.session, &mut self.socket);
        stream.write_all(bytes.as_ref()).context("cannot send")?;
        stream.flush().context("cannot send")
    }

    /// Some of what comes; 0 at close_notify.
    pub fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        rustls::Stream::new(&mut self.session, &mut self.socket).read(buf)
    }

    /// The next line, without its end.
    pub fn line(&mut self) -> Result<String> {
        let (mut line, mut byte) = (Vec::new(), [0]);
        loop {
            match self.read(&mut byte) {
                Ok(0) => bail!("the end came before a line did: {:?}", String::from_utf8_lossy(&line)),
                Ok(_) if byte == *b"\n" => return Ok(String::from_utf8_lossy(&line).into_owned()),
                Ok(_) => line.push(byte[0]),
                Err(error) => {
                    let so_far = String::from_utf8_lossy(&line).into_owned();
                    return Err(error).with_context(|| format!("no line, only {so_far:?}"));
                }
            }
        }
    }

    /// Sends a line and reads one.
    pub fn ask(&mut self, line: &str) -> Result<String> {
        self.send(format!("{line}\n"))?;
        self.line()
    }

    pub fn exactly(&mut self, bytes: usize) -> Result<Vec<u8>> {
        let mut buf = vec![0; bytes];
        let mut stream = rustls::Stream::new(&mut self.session, &mut self.socket);
        stream.read_exact(&mut buf).with_context(|| format!("fewer than {bytes} bytes"))?;
        Ok(buf)
    }

    /// Says close_notify and FIN, and goes on reading.
    pub fn half_close(&mut self) -> Result<()> {
        self.notify()?;
        self.socket.shutdown(Shutdown::Write).context("cannot half-close")
    }

    /// Says close_notify alone.
    pub fn notify(&mut self) -> Result<()> {
        self.session.send_close_notify();
        while self.session.wants_write() {
            self.session.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    /// Says FIN without close_notify, as a truncation attack would.
    pub fn truncate(&mut self) -> Result<()> {
        self.socket.shutdown(Shutdown::Write).context("cannot half-close")
    }

    /// Says RST.
    pub fn reset(self) -> Result<()> {
        reset(&self.socket)
    }

    /// Reads to the end: what came, and how it ended.
    pub fn end(&mut self) -> Result<(Vec<u8>, TlsEnd)> {
        self.end_within(LIMIT)
    }

    pub fn end_within(&mut self, limit: Duration) -> Result<(Vec<u8>, TlsEnd)> {
        self.socket.set_read_timeout(Some(limit))?;
        let (mut all, mut buf) = (Vec::new(), vec![0; 64 * 1024]);
        let end = loop {
            match self.read(&mut buf) {
                Ok(0) => break TlsEnd::Notify,
                Ok(n) => all.extend_from_slice(&buf[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break end_of(&error),
            }
        };
        self.socket.set_read_timeout(Some(LIMIT))?;
        Ok((all, end))
    }

    /// As [`TlsStream::end`], as text: `<what came> <how it ended>`.
    pub fn rest(&mut self) -> Result<String> {
        let (bytes, end) = self.end()?;
        Ok(format!("{} {end}", String::from_utf8_lossy(&bytes)))
    }
}

/// What an error of a read or of a handshake says of the other side.
fn end_of(error: &std::io::Error) -> TlsEnd {
    if let Some(rustls::Error::AlertReceived(alert)) = error.get_ref().and_then(|inner| inner.downcast_ref())
    {
        return TlsEnd::Alert(format!("{alert:?}"));
    }
    let is = |kinds: &[ErrorKind]| kinds.contains(&error.kind());
    if is(&[ErrorKind::UnexpectedEof]) {
        TlsEnd::Fin
    } else if is(&[ErrorKind::ConnectionReset, ErrorKind::BrokenPipe, ErrorKind::ConnectionAborted]) {
        TlsEnd::Reset
    } else if is(&[ErrorKind::WouldBlock, ErrorKind::TimedOut]) {
        TlsEnd::Open
    } else {
        TlsEnd::Alert(format!("of its own: {error}"))
    }
}

/// Takes every certificate whose owner has its key: what a server shows is the test's to judge.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

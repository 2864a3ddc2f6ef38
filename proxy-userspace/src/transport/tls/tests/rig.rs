//! Certificates, factories and connections for the tests of this module.

use std::future::poll_fn;
use std::sync::Arc;

use proxy_config::model::matcher::{StringMatcher, StringPattern};
use proxy_config::model::tls::{
    CertificateKey, CommonTls, DataSource, DownstreamTls, OcspStaplePolicy, SessionTickets, TlsCertificate,
    TrustedCa, UpstreamTls, ValidationContext, ValidationSource,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tokio::net::{TcpListener, TcpStream};

use crate::net::facts::Facts;
use crate::net::socket::Socket;
use crate::net::wire::Wire;
use crate::secret::Secrets;
use crate::task::Tasks;
use crate::telemetry::stats::Stats;
use crate::transport::{Env, Factory, Failure, Link, TlsInfo, Transport};

/// A CA of a test.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// An authority that it has signed.
    pub(crate) fn middle(&self, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn issue(&self, name: &str, sans: &[&str]) -> Leaf {
        self.issue_with(name, sans, KeyPair::generate().unwrap())
    }

    pub(crate) fn issue_with(&self, name: &str, sans: &[&str], key: KeyPair) -> Leaf {
        let sans: Vec<_> = sans.iter().map(|san| (*san).to_owned()).collect();
        let mut params = CertificateParams::new(sans).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Leaf { chain: certificate.pem(), key: key.serialize_pem() }
    }

    /// With a key that may be used so.
    pub(crate) fn issue_for(&self, usages: Vec<KeyUsagePurpose>, key: KeyPair) -> Leaf {
        let mut params = CertificateParams::new(["a.test".to_owned()]).unwrap();
        params.key_usages = usages;
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Leaf { chain: certificate.pem(), key: key.serialize_pem() }
    }

    /// What trusts it.
    pub(crate) fn trusted(&self) -> ValidationContext {
        ValidationContext {
            trusted_ca: Some(TrustedCa::Source(inline(&self.pem))),
            ..ValidationContext::default()
        }
    }
}

/// A certificate with its key.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Leaf {
    pub(crate) fn model(&self) -> TlsCertificate {
        TlsCertificate {
            key: CertificateKey::Pem { chain: inline(&self.chain), key: inline(&self.key) },
            watched_directory: None,
            password: None,
            ocsp_staple: None,
        }
    }
}

pub(crate) fn inline(text: &str) -> DataSource {
    DataSource::Inline(text.as_bytes().into())
}

pub(crate) fn common(leaves: &[&Leaf], validation: Option<ValidationContext>) -> CommonTls {
    CommonTls {
        certificates: leaves.iter().map(|leaf| leaf.model()).collect(),
        validation: validation.map_or(ValidationSource::None, |one| ValidationSource::Context(Arc::new(one))),
        ..CommonTls::default()
    }
}

pub(crate) fn downstream(common: CommonTls) -> DownstreamTls {
    DownstreamTls {
        common,
        require_client_certificate: false,
        require_sni: false,
        session_tickets: SessionTickets::Own,
        disable_stateful_session_resumption: false,
        session_timeout: None,
        ocsp_staple_policy: OcspStaplePolicy::Lenient,
        full_scan_certs_on_sni_mismatch: false,
        prefer_client_ciphers: false,
    }
}

pub(crate) fn upstream(common: CommonTls) -> UpstreamTls {
    UpstreamTls {
        common,
        sni: "a.test".into(),
        auto_host_sni: false,
        auto_sni_san_validation: false,
        max_session_keys: 1,
        enforce_rsa_key_usage: false,
    }
}

pub(crate) fn env() -> Env {
    let stats = Arc::new(Stats::new());
    let tasks = Tasks::new(&stats);
    Env::new(stats, tasks, Arc::new(Secrets::default()))
}

/// Factories of both sides, with their statistics under `l` and `c`.
pub(crate) struct Rig {
    pub(crate) env: Env,
    pub(crate) server: Arc<dyn Factory>,
    pub(crate) client: Arc<dyn Factory>,
}

impl Rig {
    pub(crate) fn new(server: DownstreamTls, client: UpstreamTls) -> Self {
        let env = env();
        let server = super::super::downstream(&Arc::new(server), &"l".into(), &env).unwrap();
        let client = super::super::upstream(&Arc::new(client), &"c".into(), &env).unwrap();
        Self { env, server, client }
    }

    pub(crate) async fn connect(&self) -> Pair {
        let (server, client) = sockets().await;
        Pair {
            server: End { transport: make(&*self.server, &server), socket: server },
            client: End { transport: make(&*self.client, &client), socket: client },
        }
    }

    /// Both ends once they have shaken hands.
    pub(crate) async fn shaken(&self) -> Pair {
        let mut pair = self.connect().await;
        let (server, client) = pair.shake().await;
        server.unwrap();
        client.unwrap();
        pair
    }

    pub(crate) fn stat(&self, name: &str) -> u64 {
        self.env.stats.value(name).unwrap_or_default()
    }
}

pub(crate) fn make(factory: &dyn Factory, socket: &TcpStream) -> Box<dyn Transport> {
    let facts = Facts::new(socket.peer_addr().unwrap(), socket.local_addr().unwrap());
    factory.create(&Link::Downstream { facts: &facts, connection_id: 1 }).unwrap()
}

pub(crate) async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, server) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (server.unwrap().0, client.unwrap())
}

pub(crate) struct Pair {
    pub(crate) server: End,
    pub(crate) client: End,
}

impl Pair {
    /// The server's result and the client's.
    pub(crate) async fn shake(&mut self) -> (Result<(), Failure>, Result<(), Failure>) {
        tokio::join!(self.server.ready(), self.client.ready())
    }
}

pub(crate) struct End {
    pub(crate) socket: TcpStream,
    pub(crate) transport: Box<dyn Transport>,
}

impl End {
    pub(crate) fn wire(&mut self) -> Wire<'_> {
        Wire::new(Socket::Tcp(&self.socket), Some(&mut *self.transport))
    }

    pub(crate) async fn ready(&mut self) -> Result<(), Failure> {
        let mut wire = self.wire();
        poll_fn(|cx| wire.poll_ready(cx)).await
    }

    pub(crate) fn info(&self) -> &TlsInfo {
        self.transport.tls().unwrap()
    }

    pub(crate) async fn send(&mut self, data: &[u8]) {
        self.wire().write_all(data).await.unwrap();
    }

    pub(crate) async fn finish(&mut self) {
        let mut wire = self.wire();
        poll_fn(|cx| wire.poll_shutdown(cx)).await.unwrap();
    }

    /// All until the peer's end.
    pub(crate) async fn rest(&mut self) -> std::io::Result<Vec<u8>> {
        let mut all = Vec::new();
        let mut buf = vec![0; 16 * 1024];
        loop {
            match self.wire().read(&mut buf).await? {
                0 => return Ok(all),
                n => all.extend_from_slice(&buf[..n]),
            }
        }
    }
}

/// What is said where it cannot be built.
pub(crate) fn build(server: DownstreamTls) -> Result<Arc<dyn Factory>, String> {
    super::super::downstream(&Arc::new(server), &"l".into(), &env()).map_err(|e| e.to_string())
}

pub(crate) fn exact(text: &str) -> StringMatcher {
    StringMatcher { pattern: StringPattern::Exact(text.to_owned()), ignore_case: false }
}

//! A TLS backend of the test's own: rustls over blocking sockets, and what it saw of each connection.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{HandshakeKind, RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion};

use crate::payload::{CHUNK, Digest, Pattern};
use crate::pki::Identity;
use crate::upstream::Does;
use crate::wait::until;

/// How a backend greets.
#[derive(Clone, Debug)]
pub struct TlsOptions {
    identity: Identity,
    clients: Option<std::path::PathBuf>,
    alpn: Vec<String>,
    versions: Vec<&'static SupportedProtocolVersion>,
    tickets: bool,
}

/// What a backend saw of a connection, once it ended.
#[derive(Clone, Debug, Default)]
pub struct TlsSeen {
    pub server_name: Option<String>,
    pub alpn: Option<String>,
    pub resumed: bool,
    /// The client's chain, the leaf first.
    pub chain: Vec<Vec<u8>>,
    pub bytes: u64,
    /// Of plain text.
    pub head: Vec<u8>,
    /// Whether the handshake was done.
    pub secure: bool,
    /// `close_notify`, or what went wrong.
    pub end: String,
}

/// A backend on a port of its own; it ends when dropped.
pub struct TlsServer {
    pub name: String,
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    seen: Mutex<Vec<TlsSeen>>,
}

impl TlsOptions {
    pub fn new(identity: &Identity) -> Self {
        let versions = rustls::ALL_VERSIONS.to_vec();
        Self { identity: identity.clone(), clients: None, alpn: Vec::new(), versions, tickets: true }
    }

    /// Clients must have a certificate of this authority.
    pub fn clients(mut self, ca: &Path) -> Self {
        self.clients = Some(ca.to_owned());
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

    pub fn no_tickets(mut self) -> Self {
        self.tickets = false;
        self
    }

    pub(crate) fn config(&self) -> Result<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&self.versions)?;
        let builder = match &self.clients {
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_file(ca)?)?;
                let roots = Arc::new(roots);
                builder.with_client_cert_verifier(
                    WebPkiClientVerifier::builder_with_provider(roots, provider).build()?,
                )
            }
            None => builder.with_no_client_auth(),
        };
        let (chain, key) = self.identity.load()?;
        let mut config = builder.with_single_cert(chain, key)?;
        config.alpn_protocols = self.alpn.iter().map(|name| name.clone().into_bytes()).collect();
        if self.tickets {
            config.ticketer = ring::Ticketer::new()?;
        } else {
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(config)
    }
}

impl TlsServer {
    /// `does` is [`Does::Echo`], [`Does::Sum`], [`Does::Greet`], [`Does::Pump`] or [`Does::Http`], which answers one
    /// request with its name.
    pub fn start(name: &str, does: Does, options: &TlsOptions) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let (config, shared) = (Arc::new(options.config()?), Arc::new(Shared::default()));
        let (ours, owned) = (Arc::clone(&shared), name.to_owned());
        let acceptor = std::thread::spawn(move || accept(&listener, &ours, &owned, &does, &config));
        Ok(Self { name: name.to_owned(), address, shared, acceptor: Some(acceptor) })
    }

    pub fn echo(name: &str, options: &TlsOptions) -> Result<Self> {
        Self::start(name, Does::Echo, options)
    }

    /// The connections that ended, in that order.
    pub fn seen(&self) -> Vec<TlsSeen> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many have ended, to look only at later ones.
    pub fn mark(&self) -> usize {
        self.seen().len()
    }

    /// The first connection that ended after a mark.
    pub fn ended(&self, mark: usize) -> Result<TlsSeen> {
        let what = format!("end of a connection at {}", self.name);
        until(&what, Duration::from_secs(10), || Ok(self.seen().get(mark).cloned()))
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, name: &str, does: &Does, config: &Arc<ServerConfig>) {
    for socket in listener.incoming() {
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let Ok(socket) = socket else { continue };
        let (shared, name, does, config) =
            (Arc::clone(shared), name.to_owned(), does.clone(), Arc::clone(config));
        std::thread::spawn(move || {
            let mut seen = TlsSeen::default();
            let result = serve(socket, config, &name, &does, &mut seen);
            seen.end = result.map_or_else(|error| format!("{error:#}"), |()| "close_notify".to_owned());
            shared.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        });
    }
}

fn serve(
    mut socket: TcpStream,
    config: Arc<ServerConfig>,
    name: &str,
    does: &Does,
    seen: &mut TlsSeen,
) -> Result<()> {
    socket.set_nodelay(true)?;
    let mut session = ServerConnection::new(config)?;
    while session.is_handshaking() {
        session.complete_io(&mut socket).context("handshake")?;
    }
    let owned = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    seen.secure = true;
    seen.server_name = session.server_name().map(str::to_owned);
    seen.alpn = session.alpn_protocol().map(owned);
    seen.resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
    seen.chain = session.peer_certificates().unwrap_or_default().iter().map(|c| c.to_vec()).collect();
    let mut stream = rustls::StreamOwned::new(session, socket);
    match does {
        Does::Echo => {
            let mut pending = Vec::new();
            read(&mut stream, |stream, part| {
                seen.note(part);
                pending.extend_from_slice(part);
                while let Some(at) = pending.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = pending.drain(..=at).collect();
                    stream.write_all(&[name.as_bytes(), b" ", &line].concat())?;
                }
                Ok(())
            })?;
        }
        Does::Sum => {
            let mut digest = Digest::default();
            read(&mut stream, |_, part| {
                seen.note(part);
                digest.update(part);
                Ok(())
            })?;
            writeln!(stream, "{name} {} {}", digest.bytes(), digest.hex())?;
        }
        Does::Greet(text) => {
            stream.write_all(text.as_bytes())?;
            close(&mut stream)?;
            read(&mut stream, |_, part| {
                seen.note(part);
                Ok(())
            })?;
            return Ok(());
        }
        Does::Pump(len) => {
            let (mut pattern, mut buf) = (Pattern::new(1, *len), vec![0; CHUNK]);
            loop {
                match pattern.fill(&mut buf) {
                    0 => break,
                    n => stream.write_all(&buf[..n])?,
                }
            }
            close(&mut stream)?;
            return read(&mut stream, |_, part| {
                seen.note(part);
                Ok(())
            });
        }
        Does::Http => {
            let mut part = [0; 4_096];
            while !seen.head.ends_with(b"\r\n\r\n") {
                match stream.read(&mut part)? {
                    0 => return close(&mut stream),
                    n => seen.note(part.get(..n).unwrap_or_default()),
                }
            }
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close", name.len());
            stream.write_all(format!("{head}\r\n\r\n{name}").as_bytes())?;
            // Who has it all may be quicker to close.
            drop(close(&mut stream));
            return Ok(());
        }
        Does::Reset | Does::Stall | Does::Says(..) => anyhow::bail!("not over TLS: {does:?}"),
    }
    close(&mut stream)
}

impl TlsSeen {
    fn note(&mut self, part: &[u8]) {
        self.bytes += part.len() as u64;
        let room = 4_096_usize.saturating_sub(self.head.len()).min(part.len());
        self.head.extend_from_slice(&part[..room]);
    }
}

type Stream = rustls::StreamOwned<ServerConnection, TcpStream>;

/// Reads to close_notify.
fn read(stream: &mut Stream, mut each: impl FnMut(&mut Stream, &[u8]) -> std::io::Result<()>) -> Result<()> {
    let mut buf = vec![0; CHUNK];
    loop {
        match stream.read(&mut buf)? {
            0 => return Ok(()),
            n => each(stream, &buf[..n])?,
        }
    }
}

/// close_notify and FIN.
fn close(stream: &mut Stream) -> Result<()> {
    stream.conn.send_close_notify();
    stream.flush()?;
    Ok(stream.sock.shutdown(Shutdown::Write)?)
}

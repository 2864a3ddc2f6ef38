//! Both ends of a handshake: what it runs on, what has come of it, what is counted.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::server::{ClientHello, ServerConfig};
use rustls::{Connection, Error, HandshakeKind};

use super::certificate::facts;
use super::client::ClientContext;
use super::context::Common;
use super::hello::asks_for_status;
use super::peer::{PeerVerifier, Seen, Visit};
use super::provider::now;
use super::server::ServerContext;
use super::verify::{Role, Validation};
use super::{error, names};
use crate::transport::{Certificate, TlsInfo};

/// Which end we are.
pub(super) struct Party {
    end: End,
    /// Asked for, or asked by us.
    server_name: Option<Arc<str>>,
    /// What the server's certificate must have, by a request for it.
    san: Option<Arc<str>>,
    /// Our certificate.
    local: Option<Arc<Certificate>>,
    seen: Seen,
}

enum End {
    Server { context: Arc<ServerContext>, addresses: Option<(IpAddr, IpAddr)> },
    Client { context: Arc<ClientContext> },
}

impl Party {
    pub(super) fn server(context: Arc<ServerContext>, addresses: Option<(IpAddr, IpAddr)>) -> Self {
        let end = End::Server { context, addresses };
        Self { end, server_name: None, san: None, local: None, seen: Seen::default() }
    }

    pub(super) fn client(
        context: Arc<ClientContext>,
        server_name: Option<Arc<str>>,
        san: Option<Arc<str>>,
    ) -> Self {
        let local = context.facts();
        Self { end: End::Client { context }, server_name, san, local, seen: Seen::default() }
    }

    fn common(&self) -> &Common {
        match &self.end {
            End::Server { context, .. } => &context.common,
            End::Client { context } => &context.common,
        }
    }

    fn peer(&self) -> Option<&PeerVerifier> {
        match &self.end {
            End::Server { context, .. } => context.peer.as_deref(),
            End::Client { context } => Some(&context.peer),
        }
    }

    /// What a client with this ClientHello gets, of which `bytes` are the records; the error is the reason for the log.
    pub(super) fn choose(
        &mut self,
        hello: &ClientHello<'_>,
        bytes: &[u8],
    ) -> Result<Arc<ServerConfig>, String> {
        let End::Server { context, addresses } = &self.end else { return Err(error::rejected()) };
        self.server_name = hello.server_name().map(Arc::from);
        let choice = context.choose(hello, asks_for_status(bytes), *addresses)?;
        self.local = Some(choice.facts);
        Ok(choice.config)
    }

    /// rustls has just worked for this connection.
    pub(super) fn saw(&mut self) {
        let seen = Seen::take();
        self.seen.refused = seen.refused.or_else(|| self.seen.refused.take());
        self.seen.validation = seen.validation.or(self.seen.validation);
        self.seen.scheme = seen.scheme.or(self.seen.scheme);
    }

    /// The handshake is done. A peer that comes back is judged again, by the rules of now, as in Envoy.
    pub(super) fn finish(&mut self, connection: &Connection) -> Result<Arc<TlsInfo>, Error> {
        let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
        let certificates = connection.peer_certificates().unwrap_or_default();
        let peer = self.peer();
        if let (true, Some(peer), Some((leaf, intermediates))) = (resumed, peer, certificates.split_first()) {
            let role = match &self.end {
                End::Server { .. } => Role::Client,
                End::Client { .. } => Role::Server,
            };
            let name = peer.expected(self.server_name.as_deref(), self.san.as_deref());
            let checked = peer.check(leaf, intermediates, now(), role, name, Visit::Resumed);
            self.saw();
            checked?;
        }
        let info = self.info(connection, resumed);
        self.count(&info);
        Ok(Arc::new(info))
    }

    fn info(&self, connection: &Connection, resumed: bool) -> TlsInfo {
        let certificates = connection.peer_certificates().unwrap_or_default();
        let leaf = certificates.first().and_then(|leaf| facts(leaf).ok());
        let alpn = connection.alpn_protocol().map(|protocol| String::from_utf8_lossy(protocol).into());
        TlsInfo {
            version: names::version(connection.protocol_version()),
            cipher: connection
                .negotiated_cipher_suite()
                .map_or("unknown_ssl_cipher", |suite| names::cipher(suite.suite())),
            group: connection.negotiated_key_exchange_group().map_or("", |group| names::curve(group.name())),
            alpn,
            server_name: self.server_name.clone(),
            resumed,
            session_id: String::new(),
            local: self.local.clone(),
            peer_validated: self.seen.validation == Some(Validation::Validated),
            peer: leaf.map(Arc::new),
            peer_intermediates: certificates.iter().skip(1).map(|one| one.to_vec()).collect(),
        }
    }

    fn count(&self, info: &TlsInfo) {
        let common = self.common();
        common.stats.handshake.inc();
        if info.resumed {
            common.stats.session_reused.inc();
        }
        if info.peer.is_none() {
            common.stats.no_certificate.inc();
        }
        common.count("ciphers", info.cipher);
        common.count("versions", info.version);
        if !info.group.is_empty() {
            common.count("curves", info.group);
        }
        if let Some(scheme) = self.seen.scheme {
            common.count("sigalgs", names::signature(scheme));
        }
    }

    /// Counts a failure and says it in Envoy's words.
    pub(super) fn failed(&mut self, why: &Error, first: &[u8]) -> String {
        self.saw();
        if matches!(why, Error::InvalidCertificate(_)) && self.seen.refused.is_some() {
            // Counted where it was judged.
            return self.refused(Some(why));
        }
        if *why == Error::NoCertificatesPresented {
            self.common().stats.fail_verify_no_cert.inc();
        } else {
            self.count_error();
        }
        error::reason(why, first)
    }

    /// Of a certificate that was judged and is not good.
    pub(super) fn refused(&mut self, why: Option<&Error>) -> String {
        self.saw();
        let detail = self.seen.refused.take().or_else(|| why.map(ToString::to_string)).unwrap_or_default();
        error::refused_certificate(&detail)
    }

    pub(super) fn count_error(&self) {
        self.common().stats.connection_error.inc();
    }
}

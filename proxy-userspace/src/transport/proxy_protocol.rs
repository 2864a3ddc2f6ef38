//! `upstream_proxy_protocol`: a header before the first byte, in which the next hop reads who the client is.
//!
//! The header goes to the socket itself, before whatever the inner layer sends (a ClientHello), and as soon as the
//! connection is there: a protocol in which the server speaks first needs it, too. A connection that carries a header
//! is one client's for good: tcp_proxy never shares one, and a pool of HTTP connections will have to keep them apart
//! by the header's content, as Envoy does.

mod header;

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use proxy_config::model::transport::{self as model, PassThroughTlvs, ProxyVersion};

use self::header::{Addresses, Tlv};
use super::tls::CertificateSet;
use super::{CloseEvent, Env, Factory, Failure, Link, NotReady, TlsInfo, Transport};
use crate::net::facts::Facts;
use crate::net::socket::Socket;
use crate::secret::Slot;
use crate::telemetry::stats::stats_block;

stats_block! {
    /// `cluster.<name>.`
    pub struct ProxyProtocolStats in "upstream.proxyprotocol" {
        counter v2_tlvs_exceed_max_length;
    }
}

pub struct ProxyProtocol {
    rules: Rules,
    stats: Arc<ProxyProtocolStats>,
    inner: Arc<dyn Factory>,
}

impl ProxyProtocol {
    pub fn new(
        model: &model::UpstreamProxyProtocol,
        inner: Arc<dyn Factory>,
        prefix: &Arc<str>,
        env: &Env,
    ) -> Self {
        Self { rules: Rules::new(model), stats: env.stats.block(prefix.clone()), inner }
    }
}

impl Factory for ProxyProtocol {
    fn create(&self, link: &Link<'_>) -> Result<Box<dyn Transport>, NotReady> {
        let inner = self.inner.create(link)?;
        let header = match link {
            Link::Upstream { client: Some(facts), .. } => {
                Header::Bytes(self.rules.of_client(facts, &self.stats))
            }
            Link::Upstream { client: None, .. } => self.rules.of_health_check(),
            // Refused when factories are built.
            Link::Downstream { .. } => Header::Bytes(Vec::new()),
        };
        Ok(Box::new(Announced::new(header, inner)))
    }

    fn is_of_one_client(&self) -> bool {
        true
    }

    fn secrets(&self, found: &mut Vec<Arc<Slot>>) {
        self.inner.secrets(found);
    }

    fn certificates(&self, found: &mut Vec<CertificateSet>) {
        self.inner.certificates(found);
    }
}

/// Of a client, without TLVs.
pub(crate) fn proxy_header(version: ProxyVersion, facts: &Facts) -> Vec<u8> {
    let addresses = Some((facts.remote, facts.local));
    match version {
        ProxyVersion::V1 => header::v1(addresses),
        ProxyVersion::V2 => header::v2(addresses, std::iter::empty()).bytes,
    }
}

/// What goes into headers.
struct Rules {
    version: ProxyVersion,
    pass_through: PassThroughTlvs,
    added: Vec<(u8, Arc<[u8]>)>,
    allow_unspecified_address: bool,
}

impl Rules {
    fn new(model: &model::UpstreamProxyProtocol) -> Self {
        Self {
            version: model.version,
            pass_through: model.pass_through_tlvs.clone(),
            added: model.added_tlvs.clone(),
            allow_unspecified_address: model.allow_unspecified_address,
        }
    }

    /// Both addresses are as listener filters left them: what an earlier PROXY header said, or an original
    /// destination.
    fn of_client(&self, facts: &Facts, stats: &ProxyProtocolStats) -> Vec<u8> {
        let addresses = (facts.remote, facts.local);
        let unspecified = addresses.0.ip().is_unspecified() || addresses.1.ip().is_unspecified();
        let addresses = (!(self.allow_unspecified_address && unspecified)).then_some(addresses);
        match self.version {
            ProxyVersion::V1 => header::v1(addresses),
            ProxyVersion::V2 => {
                let header = header::v2(addresses, self.tlvs(facts));
                if header.left_out > 0 {
                    log::debug!("{} TLVs would exceed a PROXY header's 65535 bytes", header.left_out);
                    stats.v2_tlvs_exceed_max_length.inc();
                }
                header.bytes
            }
        }
    }

    /// The added ones come first, and take the place of the client's own of the same type. A type may be there more
    /// than once.
    fn tlvs<'a>(&'a self, facts: &'a Facts) -> impl Iterator<Item = Tlv<'a>> {
        let passes = |kind| match &self.pass_through {
            PassThroughTlvs::None => false,
            PassThroughTlvs::All => true,
            PassThroughTlvs::Include(kinds) => kinds.contains(&kind),
        };
        let own = facts.extra.as_ref().map_or(&[][..], |extra| &extra.proxy_tlvs);
        let passed = own
            .iter()
            .filter(move |(kind, _)| passes(*kind) && !self.added.iter().any(|(added, _)| added == kind));
        let added = self.added.iter().map(|(kind, value)| (*kind, &**value));
        added.chain(passed.map(|(kind, value)| (*kind, value.as_slice())))
    }

    /// The proxy speaks for itself: V2 has a command for that, V1 names the connection's own ends.
    fn of_health_check(&self) -> Header {
        match self.version {
            ProxyVersion::V1 => Header::OwnEnds,
            ProxyVersion::V2 => Header::Bytes(header::local()),
        }
    }
}

/// What is still to be sent.
enum Header {
    /// V1 with the addresses of the socket itself, which may be those of a health check's own port.
    OwnEnds,
    Bytes(Vec<u8>),
}

/// A connection with its header.
struct Announced {
    /// Empty once it is sent.
    header: Header,
    sent: usize,
    inner: Box<dyn Transport>,
}

impl Announced {
    fn new(header: Header, inner: Box<dyn Transport>) -> Self {
        Self { header, sent: 0, inner }
    }

    fn poll_header(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        if matches!(self.header, Header::OwnEnds) {
            self.header = Header::Bytes(header::v1(own_ends(socket)));
        }
        let Header::Bytes(bytes) = &mut self.header else { return Poll::Ready(Ok(())) };
        while let Some(rest) = bytes.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match ready!(socket.poll_send(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.sent += n,
            }
        }
        (*bytes, self.sent) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

/// A unix socket has none to name.
fn own_ends(socket: Socket<'_>) -> Addresses {
    match socket {
        Socket::Tcp(stream) => stream.local_addr().ok().zip(stream.peer_addr().ok()),
        Socket::Unix(_) => None,
    }
}

impl Transport for Announced {
    fn poll_ready(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<Result<(), Failure>> {
        if let Err(error) = ready!(self.poll_header(cx, socket)) {
            log::debug!("PROXY header: {error}");
            // Envoy takes any failure here for the peer's close.
            return Poll::Ready(Err(Failure::gone()));
        }
        self.inner.poll_ready(cx, socket)
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_read(cx, socket, buf)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_write(cx, socket, data)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_flush(cx, socket)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_shutdown(cx, socket)
    }

    fn start_secure(&mut self) -> bool {
        self.inner.start_secure()
    }

    fn tls(&self) -> Option<&Arc<TlsInfo>> {
        self.inner.tls()
    }

    fn closed(&mut self, socket: Socket<'_>, by: CloseEvent) {
        self.inner.closed(socket, by);
    }
}

/// A transport behind a header, for tests of layers in each other.
#[cfg(test)]
pub(super) fn announced(header: &[u8], inner: Box<dyn Transport>) -> Box<dyn Transport> {
    Box::new(Announced::new(Header::Bytes(header.to_vec()), inner))
}

#[cfg(test)]
mod tests;

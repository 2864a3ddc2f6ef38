//! Transport sockets: how bytes are wrapped on a connection, in either direction.
//!
//! A [`Factory`] is built once from the model of a filter chain or a cluster; it makes a [`Transport`] for each
//! connection. A transport holds no socket: it is handed one at each call, so that the layers of a nested one work
//! on the same socket, and whoever owns it may reset or watch it. Without a transport (`raw_buffer`) the relay works
//! on the socket itself.

pub mod info;
pub mod proxy_protocol;
pub mod raw;
pub mod starttls;
pub mod stream;
pub mod tap;
pub mod tcp_stats;
pub mod tls;

use std::borrow::Cow;
use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};

use proxy_config::model::TransportSocket;

pub use self::info::{Certificate, TlsInfo};
pub(crate) use self::proxy_protocol::proxy_header;
pub use self::raw::Raw;
pub use self::stream::Stream;
use crate::cluster::Host;
use crate::istio::Local;
use crate::net::facts::Facts;
use crate::net::socket::Socket;
use crate::secret::{Origin, Secrets, Slot};
use crate::task::Tasks;
use crate::telemetry::stats::Stats;

/// A transport socket at work on one connection.
///
/// All calls are of one task. A call that is pending has left the task's waker with the socket (or with whatever
/// else it waits for).
pub trait Transport: Send + Sync {
    /// Does what goes before the application's first byte: a header, a handshake. Called until it is ready, before
    /// anything else. Ready at once after that.
    fn poll_ready(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<Result<(), Failure>>;

    /// Up to `buf.len()` bytes of the application's; 0: no more will come.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>>;

    /// Takes some of `data`; what it has taken may wait here until [`Self::poll_flush`] is ready.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>>;

    /// Hands everything that was taken to the socket.
    fn poll_flush(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>>;

    /// Tells the peer that no byte follows. Flushes first.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>>;

    /// Turns to TLS, which is then to be driven by [`Self::poll_ready`]. False where it cannot.
    fn start_secure(&mut self) -> bool {
        false
    }

    /// What TLS has agreed on, once it has.
    fn tls(&self) -> Option<&Arc<TlsInfo>> {
        None
    }

    /// Its bytes are the socket's own: the relay may work on that directly.
    fn is_raw(&self) -> bool {
        false
    }

    /// The connection ends. Called once, while the socket is still open.
    fn closed(&mut self, socket: Socket<'_>, by: CloseEvent) {
        let _ = (socket, by);
    }
}

/// Envoy's `ConnectionEvent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseEvent {
    Local,
    Remote,
}

/// A connection that did not become ready.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// As `%UPSTREAM_TRANSPORT_FAILURE_REASON%` and `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%` say it.
    pub reason: Cow<'static, str>,
    /// The peer has gone, by FIN or RST.
    pub remote: bool,
}

impl Failure {
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: reason.into(), remote: false }
    }

    /// The peer has closed before it was ready: no reason is given, as in Envoy.
    pub fn gone() -> Self {
        Self { reason: Cow::Borrowed(""), remote: true }
    }
}

/// Which connection a transport is made for.
#[derive(Clone, Copy)]
pub enum Link<'a> {
    Downstream {
        facts: &'a Facts,
        connection_id: u64,
    },
    Upstream {
        host: &'a Host,
        /// Of the upstream socket, where it has one.
        local: Option<SocketAddr>,
        /// On whose behalf; none for a health check.
        client: Option<&'a Facts>,
        connection_id: u64,
        /// What is offered where the transport socket itself says nothing of it.
        alpn: &'a [&'a str],
        /// Whom a request asks for; it goes before what the transport socket says.
        names: Option<&'a Names>,
    },
}

/// Of an upstream, by a request for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Names {
    /// The server name that is sent.
    pub sni: Option<Arc<str>>,
    /// What its certificate must have.
    pub san: Option<Arc<str>>,
    /// What is offered by ALPN.
    pub alpn: Option<Arc<[Arc<str>]>>,
}

/// Makes the transports of a filter chain or of a cluster.
pub trait Factory: Send + Sync {
    fn create(&self, link: &Link<'_>) -> Result<Box<dyn Transport>, NotReady>;

    /// A connection tells the upstream who its client is: it is never shared by two.
    fn is_of_one_client(&self) -> bool {
        false
    }

    /// The secrets that it needs from elsewhere: a listener or a cluster is warm once they are settled.
    fn secrets(&self, found: &mut Vec<Arc<Slot>>) {
        let _ = found;
    }

    /// Its certificates and trusted CAs, for `/certs`.
    fn certificates(&self, found: &mut Vec<tls::CertificateSet>) {
        let _ = found;
    }
}

/// A secret is missing: nothing can be served, and nothing is sent in plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("TLS error: Secret is not supplied by SDS")]
pub struct NotReady;

/// A transport socket that cannot be built.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(pub String);

/// What factories are built with. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    pub stats: Arc<Stats>,
    pub tasks: Tasks,
    pub secrets: Arc<Secrets>,
    pub taps: Arc<tap::Taps>,
    /// The last connection id: down- and upstream connections count together, as in Envoy.
    pub connections: Arc<AtomicU64>,
    /// Who we are, to peers that ask.
    pub local: Arc<Local>,
}

impl Env {
    pub fn new(stats: Arc<Stats>, tasks: Tasks, secrets: Arc<Secrets>) -> Self {
        Self {
            stats,
            tasks,
            secrets,
            taps: Arc::default(),
            connections: Arc::default(),
            local: Arc::default(),
        }
    }
}

/// Whose transport socket it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Downstream,
    Upstream,
}

/// Builds what makes a chain's or a cluster's transports; `None` for `raw_buffer`. `prefix` is where its statistics
/// are, without the dot: `listener.<address>` or `cluster.<name>`.
pub fn build(
    model: &TransportSocket,
    side: Side,
    prefix: &Arc<str>,
    env: &Env,
) -> Result<Option<Arc<dyn Factory>>, BuildError> {
    if matches!(model, TransportSocket::RawBuffer) {
        return Ok(None);
    }
    let factory = layer(model, side, prefix, env)?;
    match secrets([&factory]).iter().find(|slot| slot.origin == Origin::Unknown) {
        Some(slot) => Err(BuildError(format!("Unknown static secret: {}", slot.name))),
        None => Ok(Some(factory)),
    }
}

/// What factories need from elsewhere, once each.
pub fn secrets<'a>(factories: impl IntoIterator<Item = &'a Arc<dyn Factory>>) -> Vec<Arc<Slot>> {
    let mut found = Vec::new();
    factories.into_iter().for_each(|factory| factory.secrets(&mut found));
    let mut seen = HashSet::new();
    found.retain(|slot| seen.insert(Arc::as_ptr(slot)));
    found
}

/// As [`build`], for what a layer wraps: `raw_buffer` is a layer like any other.
fn layer(
    model: &TransportSocket,
    side: Side,
    prefix: &Arc<str>,
    env: &Env,
) -> Result<Arc<dyn Factory>, BuildError> {
    Ok(match model {
        TransportSocket::RawBuffer => Arc::new(raw::RawFactory),
        TransportSocket::DownstreamTls(model) => tls::downstream(model, prefix, env)?,
        TransportSocket::UpstreamTls(model) => tls::upstream(model, prefix, env)?,
        TransportSocket::DownstreamStartTls(model) => {
            Arc::new(starttls::StartTls::new(tls::downstream(model, prefix, env)?))
        }
        TransportSocket::UpstreamStartTls(model) => {
            Arc::new(starttls::StartTls::new(tls::upstream(model, prefix, env)?))
        }
        TransportSocket::UpstreamProxyProtocol(_) if side == Side::Downstream => {
            return Err(BuildError("a filter chain sends no PROXY header".to_owned()));
        }
        TransportSocket::UpstreamProxyProtocol(model) => {
            let inner = layer(&model.inner, side, prefix, env)?;
            Arc::new(proxy_protocol::ProxyProtocol::new(model, inner, prefix, env))
        }
        TransportSocket::Tap(model) => {
            let inner = layer(&model.inner, side, prefix, env)?;
            Arc::new(tap::Tap::new(model, inner, env)?)
        }
        TransportSocket::TcpStats(model) => {
            let inner = layer(&model.inner, side, prefix, env)?;
            Arc::new(tcp_stats::TcpStats::new(model, inner, prefix, env))
        }
    })
}

#[cfg(test)]
mod nesting;

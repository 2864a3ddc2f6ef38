//! From a chosen host to a connected socket.
//!
//! The socket is made by a [`Dial`], in the workload's network namespace, and prepared as the cluster wants it:
//! source address, socket options, keepalive. Nothing here chooses or counts, but for `bind_errors`.

use std::ffi::OsString;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use proxy_config::model::address::{Address, BindConfig, SocketState};
use socket2::{SockAddr, Socket};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::timeout;

use super::Cluster;
use super::breaker::Overflow;
use super::host::Host;
use crate::clock;
use crate::istio::Slot;
use crate::net::facts::Facts;
use crate::net::socket::Socket as StreamSocket;
use crate::net::wire::Wire;
use crate::net::{Dial, Family, options};
use crate::sys::sock;
use crate::transport::{CloseEvent, Factory, Failure, Link, Names, NotReady, Transport};

/// Where a connection comes from.
#[derive(Clone, Debug, Default)]
pub enum Source {
    /// As the cluster's `upstream_bind_config` says, else as the kernel chooses.
    #[default]
    Cluster,
    /// Goes before the cluster's: original_src, or what a filter asks for.
    Address(SourceAddress),
}

#[derive(Clone, Debug)]
pub struct SourceAddress {
    /// Port 0: any.
    pub address: SocketAddr,
    pub freebind: bool,
    /// `IP_TRANSPARENT`: an address that is not this machine's.
    pub transparent: bool,
    pub mark: Option<u32>,
}

/// On whose behalf a connection is made.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    pub source: &'a Source,
    /// None: the proxy's own, for a health check.
    pub facts: Option<&'a Facts>,
    pub connection_id: u64,
    /// What is offered by ALPN where the transport socket itself says nothing of it.
    pub alpn: &'a [&'a str],
    /// Whom a request asks for.
    pub names: Option<&'a Names>,
}

/// A connection whose transport is ready.
pub struct Connected {
    pub io: Io,
    /// None: `raw_buffer`.
    pub transport: Option<Box<dyn Transport>>,
    /// Who is there, where the cluster asks.
    pub peer: Option<Arc<Slot>>,
    pub took: Duration,
}

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connected").field("io", &self.io).finish_non_exhaustive()
    }
}

impl Connected {
    pub fn wire(&mut self) -> Wire<'_> {
        Wire::new(self.io.socket(), self.transport.as_deref_mut())
    }

    /// Before it is dropped.
    pub fn closed(&mut self, by: CloseEvent) {
        if let Some(transport) = &mut self.transport {
            transport.closed(self.io.socket(), by);
        }
    }
}

#[derive(Debug)]
pub enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Io {
    pub fn socket(&self) -> StreamSocket<'_> {
        match self {
            Self::Tcp(stream) => StreamSocket::Tcp(stream),
            Self::Unix(stream) => StreamSocket::Unix(stream),
        }
    }
}

/// Shown as Envoy's `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("connection timeout")]
    Timeout,
    /// Known at once: no socket, no such source, no route.
    #[error("immediate connect error: {}", errno_text(source))]
    Immediate { step: &'static str, source: io::Error },
    /// The network's answer.
    #[error("delayed connect error: {}", errno_text(source))]
    Delayed { source: io::Error },
    /// Of its transport: there is a connection, but not to whom it should be.
    #[error("{0}")]
    Transport(Failure),
    #[error("{0}")]
    Overflow(#[from] Overflow),
}

impl ConnectError {
    /// The end of it was ours. What fails in a handshake counts as the other side's, whoever gave up, as in Envoy.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Timeout => true,
            Self::Transport(_) | Self::Immediate { .. } | Self::Delayed { .. } | Self::Overflow(_) => false,
        }
    }
}

/// Connects within the cluster's `connect_timeout`, handshakes included, as in Envoy.
pub async fn ready(
    cluster: &Cluster,
    host: &Host,
    dial: &dyn Dial,
    client: &Client<'_>,
) -> Result<Connected, ConnectError> {
    let limit = cluster.model.connect_timeout;
    timeout(limit, to(cluster, host, &host.address(), dial, client))
        .await
        .unwrap_or(Err(ConnectError::Timeout))
}

/// To an address that is the host's, or that it is checked by; without a limit.
pub(super) async fn to(
    cluster: &Cluster,
    host: &Host,
    address: &Address,
    dial: &dyn Dial,
    client: &Client<'_>,
) -> Result<Connected, ConnectError> {
    let start = clock::now();
    let io = open(cluster, address, dial, client.source).await?;
    let mut transport = match cluster.transport(host) {
        Some(factory) => Some(secure(factory.as_ref(), host, &io, client).await?),
        None => None,
    };
    let peer = cluster.exchange.as_ref().map(|exchange| exchange.enter(&mut transport));
    Ok(Connected { io, transport, peer, took: start.elapsed() })
}

async fn secure(
    factory: &dyn Factory,
    host: &Host,
    io: &Io,
    client: &Client<'_>,
) -> Result<Box<dyn Transport>, ConnectError> {
    let local = match io {
        Io::Tcp(stream) => stream.local_addr().ok(),
        Io::Unix(_) => None,
    };
    let link = Link::Upstream {
        host,
        local,
        client: client.facts,
        connection_id: client.connection_id,
        alpn: client.alpn,
        names: client.names,
    };
    let missing = |missing: NotReady| ConnectError::Transport(Failure::new(missing.to_string()));
    let mut transport = factory.create(&link).map_err(missing)?;
    let ready = poll_fn(|cx| transport.poll_ready(cx, io.socket())).await;
    match ready {
        Ok(()) => Ok(transport),
        Err(failure) => {
            let by = if failure.remote { CloseEvent::Remote } else { CloseEvent::Local };
            transport.closed(io.socket(), by);
            Err(ConnectError::Transport(failure))
        }
    }
}

/// The text of the error alone: `Connection refused`, without Rust's `(os error 111)`.
pub fn errno_text(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |errno| Errno::from_raw(errno).desc().to_owned())
}

async fn open(cluster: &Cluster, to: &Address, dial: &dyn Dial, source: &Source) -> Result<Io, ConnectError> {
    match to {
        Address::Ip(to) => {
            let socket = prepare(cluster, *to, dial, source)?;
            let connect = TcpSocket::from_std_stream(socket.into()).connect(*to);
            connect.await.map(Io::Tcp).map_err(|source| ConnectError::Delayed { source })
        }
        Address::Pipe { path, .. } => {
            let path = unix_path(path);
            UnixStream::connect(path).await.map(Io::Unix).map_err(|source| ConnectError::Delayed { source })
        }
        // Discovery makes addresses of names; a name that comes so far has none.
        Address::Host(host) => {
            let source =
                io::Error::new(io::ErrorKind::AddrNotAvailable, format!("{} is not resolved", host.host));
            Err(ConnectError::Immediate { step: "resolve", source })
        }
    }
}

fn prepare(
    cluster: &Cluster,
    to: SocketAddr,
    dial: &dyn Dial,
    source: &Source,
) -> Result<Socket, ConnectError> {
    let failed = |step| move |source| ConnectError::Immediate { step, source };
    let model = &cluster.model;
    let socket = dial.socket(Family::of(to)).map_err(failed("socket"))?;
    socket.set_tcp_nodelay(true).map_err(failed("socket"))?;
    let bind = model.bind.as_deref();
    let own = bind.map_or(&[][..], |bind| &bind.socket_options);
    let options = |state| options::set_all(&socket, own, state);
    options(SocketState::PreBind).map_err(failed("socket_option"))?;
    if let Err(error) = bind_source(&socket, source, bind, to) {
        cluster.stats.bind_errors.inc();
        return Err(failed("bind")(error));
    }
    options(SocketState::Bound).map_err(failed("socket_option"))?;
    if let Some(keepalive) = model.tcp_keepalive {
        options::set_keepalive(&socket, keepalive).map_err(failed("socket_option"))?;
    }
    Ok(socket)
}

fn bind_source(
    socket: &Socket,
    source: &Source,
    bind: Option<&BindConfig>,
    to: SocketAddr,
) -> io::Result<()> {
    let (address, freebind) = match (source, bind) {
        (Source::Address(from), _) => {
            if let Some(mark) = from.mark {
                socket.set_mark(mark)?;
            }
            if from.transparent {
                sock::set_transparent(socket, from.address.is_ipv6())?;
            }
            (Some(from.address), from.freebind)
        }
        (Source::Cluster, Some(bind)) => (source_for(bind, to), bind.freebind),
        (Source::Cluster, None) => (None, false),
    };
    let Some(address) = address else { return Ok(()) };
    if freebind {
        sock::set_freebind(socket, address.is_ipv6())?;
    }
    if address.port() == 0 {
        sock::set_bind_address_no_port(socket)?;
    }
    socket.bind(&SockAddr::from(address))
}

/// The first source of the destination's family, as Envoy chooses.
fn source_for(bind: &BindConfig, to: SocketAddr) -> Option<SocketAddr> {
    let mut sources = bind.source.iter().chain(&bind.extra_sources);
    sources.find(|source| source.is_ipv4() == to.is_ipv4()).copied()
}

/// `@name` is the abstract namespace, which the system marks by a NUL.
fn unix_path(path: &Path) -> OsString {
    match path.as_os_str().as_bytes().split_first() {
        Some((b'@', name)) => OsString::from_vec([&[0], name].concat()),
        _ => path.as_os_str().to_owned(),
    }
}

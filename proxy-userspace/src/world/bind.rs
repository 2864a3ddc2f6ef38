//! The sockets of a configuration's listeners, in the daemon's own network namespace.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use proxy_config::model::address::SocketState;
use proxy_config::model::listener::ListenAddress;
use proxy_config::model::{self, Address};
use socket2::{Domain, Protocol, Socket, Type};

use crate::cluster::address_text;
use crate::net::options;
use crate::sys::sock;

/// Envoy's default where `tcp_backlog_size` is not given: as much as the kernel lets it have.
const BACKLOG: i32 = 65_535;

/// Opens the sockets of listeners.
pub trait Sockets: Send + Sync {
    /// Bound to one address of a listener, and not listening yet: nothing connects before the listener is warm. With
    /// `reuse_port` there are several, among which the kernel spreads connections. None where connections come to it
    /// by sockets that are there already.
    fn bind(&self, listener: &model::Listener, at: &ListenAddress) -> Result<Vec<Socket>, BindError>;
}

/// Of the namespace that the daemon lives in.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    /// Accepting sockets per address, where the listener has `reuse_port`.
    pub workers: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("listener {listener}: cannot listen on {address}: {step}{source}")]
pub struct BindError {
    listener: Arc<str>,
    address: String,
    step: &'static str,
    source: io::Error,
}

impl BindError {
    pub fn new(
        listener: &model::Listener,
        at: &ListenAddress,
        step: &'static str,
        source: io::Error,
    ) -> Self {
        Self { listener: listener.name.clone(), address: address_text(&at.address), step, source }
    }
}

impl Sockets for Own {
    fn bind(&self, listener: &model::Listener, at: &ListenAddress) -> Result<Vec<Socket>, BindError> {
        let error = |step, source| BindError::new(listener, at, step, source);
        let Address::Ip(mut to) = at.address else {
            let source = io::Error::new(io::ErrorKind::Unsupported, "only IP addresses can be listened on");
            return Err(error("", source));
        };
        let mut sockets = Vec::new();
        for _ in 0..if listener.reuse_port { self.workers.max(1) } else { 1 } {
            let socket = bind(listener, at, to).map_err(|(step, source)| error(step, source))?;
            // Where the port is left to the kernel, the first socket has chosen it for all.
            to.set_port(local(&socket).map_err(|source| error("", source))?.port());
            sockets.push(socket);
        }
        Ok(sockets)
    }
}

/// Where a socket is bound.
pub fn local(socket: &Socket) -> io::Result<SocketAddr> {
    let local = socket.local_addr()?.as_socket();
    local.ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "not an IP socket"))
}

/// From now on connections can be made.
pub fn listen(
    socket: Socket,
    listener: &model::Listener,
    at: &ListenAddress,
) -> Result<std::net::TcpListener, BindError> {
    let error = |step| move |source| BindError::new(listener, at, step, source);
    let backlog = listener.tcp_backlog_size.map_or(BACKLOG, |size| i32::try_from(size).unwrap_or(i32::MAX));
    socket.listen(backlog).map_err(error(""))?;
    options::set_all(&socket, &at.socket_options, SocketState::Listening)
        .map_err(error("socket_options: "))?;
    Ok(socket.into())
}

type Step<T> = Result<T, (&'static str, io::Error)>;

fn bind(model: &model::Listener, address: &ListenAddress, to: SocketAddr) -> Step<Socket> {
    let named = |step| move |source| (step, source);
    let protocol = if model.enable_mptcp { Protocol::MPTCP } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(protocol));
    let socket = socket.map_err(named("socket: "))?;
    // A restart must not wait for the old connections' TIME_WAIT.
    socket.set_reuse_address(true).map_err(named("SO_REUSEADDR: "))?;
    socket.set_reuse_port(model.reuse_port).map_err(named("SO_REUSEPORT: "))?;
    if to.is_ipv6() {
        socket.set_only_v6(!address.ipv4_compat).map_err(named("IPV6_V6ONLY: "))?;
    }
    if model.freebind {
        sock::set_freebind(&socket, to.is_ipv6()).map_err(named("freebind: "))?;
    }
    if model.transparent {
        sock::set_transparent(&socket, to.is_ipv6()).map_err(named("transparent: "))?;
    }
    let options = |state| {
        let set = options::set_all(&socket, &address.socket_options, state);
        set.map_err(named("socket_options: "))
    };
    options(SocketState::PreBind)?;
    socket.bind(&to.into()).map_err(named(""))?;
    options(SocketState::Bound)?;
    if let Some(keepalive) = model.tcp_keepalive {
        options::set_keepalive(&socket, keepalive).map_err(named("tcp_keepalive: "))?;
    }
    if let Some(length) = model.tcp_fast_open_queue_length {
        let value = (length as i32).to_ne_bytes();
        sock::set_option(&socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, &value)
            .map_err(named("tcp_fast_open_queue_length: "))?;
    }
    Ok(socket)
}

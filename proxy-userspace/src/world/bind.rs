//! The sockets of a configuration's listeners, in the daemon's own network namespace.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use proxy_config::model::address::SocketState;
use proxy_config::model::listener::ListenAddress;
use proxy_config::model::{self, Address};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use super::Listener;
use crate::net::accept::Spread;
use crate::net::options;
use crate::sys::sock;
use crate::task::workers::Crew;

/// Envoy's default where `tcp_backlog_size` is not given: as much as the kernel lets it have.
const BACKLOG: i32 = 65_535;

/// A socket that listens, and accepts nothing yet.
pub struct Bound {
    pub listener: Arc<Listener>,
    pub socket: TcpListener,
    pub local: SocketAddr,
    /// Whose socket it is, and who carries what it accepts.
    pub spread: Spread,
}

#[derive(Debug, thiserror::Error)]
#[error("listener {listener}: cannot listen on {address}: {step}{source}")]
pub struct BindError {
    listener: Arc<str>,
    address: String,
    step: &'static str,
    source: io::Error,
}

/// Opens the sockets of every listener that has `bind_to_port`; with `reuse_port`, one for each worker per address,
/// among which the kernel spreads connections. All problems at once.
pub fn open<'a>(
    listeners: impl IntoIterator<Item = &'a Arc<Listener>>,
    crew: &Crew,
) -> Result<Vec<Bound>, Vec<BindError>> {
    let (mut bound, mut errors) = (Vec::new(), Vec::new());
    for listener in listeners.into_iter().filter(|listener| listener.model.bind_to_port) {
        for address in &listener.model.addresses {
            match open_one(listener, address, crew) {
                Ok(sockets) => bound.extend(sockets),
                Err(error) => errors.push(error),
            }
        }
    }
    if errors.is_empty() { Ok(bound) } else { Err(errors) }
}

fn open_one(listener: &Arc<Listener>, address: &ListenAddress, crew: &Crew) -> Result<Vec<Bound>, BindError> {
    let error = |step, source| BindError {
        listener: listener.model.name.clone(),
        address: text(&address.address),
        step,
        source,
    };
    let Address::Ip(mut to) = address.address else {
        let source = io::Error::new(io::ErrorKind::Unsupported, "only IP addresses can be listened on");
        return Err(error("", source));
    };
    let mut sockets = Vec::new();
    let spread: Vec<Spread> = match listener.model.reuse_port {
        true => (0..crew.len()).map(Spread::Here).collect(),
        false => vec![Spread::Evenly(crew.next())],
    };
    for spread in spread {
        let socket = listen(&listener.model, address, to).map_err(|(step, source)| error(step, source))?;
        let socket: std::net::TcpListener = socket.into();
        let local = socket.local_addr().map_err(|source| error("", source))?;
        // Where the port is left to the kernel, the first socket has chosen it for all.
        to.set_port(local.port());
        let _there = crew.enter(spread.place());
        let socket = TcpListener::from_std(socket).map_err(|source| error("", source))?;
        sockets.push(Bound { listener: listener.clone(), socket, local, spread });
    }
    Ok(sockets)
}

type Step<T> = Result<T, (&'static str, io::Error)>;

fn listen(model: &model::Listener, address: &ListenAddress, to: SocketAddr) -> Step<Socket> {
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
    let backlog = model.tcp_backlog_size.map_or(BACKLOG, |size| i32::try_from(size).unwrap_or(i32::MAX));
    socket.listen(backlog).map_err(named(""))?;
    options(SocketState::Listening)?;
    Ok(socket)
}

fn text(address: &Address) -> String {
    match address {
        Address::Ip(address) => address.to_string(),
        Address::Host(host) => format!("{}:{}", host.host, host.port),
        Address::Pipe { path, .. } => path.display().to_string(),
    }
}

//! Sockets inside a workload's network namespace: listeners, and those that dial out.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, Weak};

use proxy_common::{AF_INET, AF_INET6, ListenerKey, direction};
use proxy_config::model::listener::ListenAddress;
use proxy_config::model::{self, Address};
use socket2::{Domain, Protocol, Socket, Type};

use super::Error;
use crate::net::{Dial, Direction, Family, HostDial};
use crate::sys::netns::Netns;
use crate::world::bind::Own;
use crate::world::{BindError, Sockets, World, enters};

/// Envoy's default is the system's limit; so is this, the kernel cuts it down.
const BACKLOG: i32 = 65_535;

/// Makes sockets in a namespace, so that their source address is the workload's.
#[derive(Clone)]
pub struct Dialer {
    netns: Arc<Netns>,
}

impl Dialer {
    pub fn new(netns: Arc<Netns>) -> Self {
        Self { netns }
    }
}

impl Dial for Dialer {
    fn socket(&self, family: Family) -> io::Result<Socket> {
        self.netns.enter(|| HostDial.socket(family))?
    }

    fn datagrams(&self, family: Family) -> io::Result<Socket> {
        self.netns.enter(|| HostDial.datagrams(family))?
    }
}

/// Binds the sockets of a workload's own configuration inside its namespace.
pub(super) struct Inside {
    pub(super) netns: Arc<Netns>,
    pub(super) out_port: u16,
    pub(super) in_port: u16,
    pub(super) own: Own,
    /// What served before: the only socket of an address is handed over.
    pub(super) before: Weak<World>,
}

impl Inside {
    /// Captured connections enter by it, on sockets that are there already.
    fn captures(&self, listener: &model::Listener, at: &ListenAddress) -> bool {
        let port = match enters(listener) {
            Some(Direction::Outbound) => self.out_port,
            Some(Direction::Inbound) => self.in_port,
            None => return false,
        };
        matches!(at.address, Address::Ip(address) if address.port() == port)
    }
}

impl Sockets for Inside {
    fn bind(&self, listener: &model::Listener, at: &ListenAddress) -> Result<Vec<Socket>, BindError> {
        if self.captures(listener, at) {
            return Ok(Vec::new());
        }
        if let Some(only) = self.before.upgrade().and_then(|before| before.only_socket(listener, at)) {
            return Ok(vec![only]);
        }
        let entered = self.netns.enter(|| self.own.bind(listener, at));
        entered.map_err(|source| BindError::new(listener, at, "the workload's namespace: ", source))?
    }
}

/// One of the proxy's listening sockets.
pub(super) struct Listening {
    pub socket: TcpListener,
    pub address: SocketAddr,
    pub direction: Direction,
}

impl Listening {
    /// The same socket by another descriptor.
    pub(super) fn share(&self) -> Result<Self, Error> {
        let socket = self.socket.try_clone();
        let socket = socket.map_err(|source| Error::Listen { address: self.address, source })?;
        Ok(Self { socket, address: self.address, direction: self.direction })
    }

    /// Its place in `LISTENERS`.
    pub(super) fn key(&self, netns: u64) -> ListenerKey {
        let family = if self.address.is_ipv6() { AF_INET6 } else { AF_INET };
        let direction = match self.direction {
            Direction::Outbound => direction::OUTBOUND,
            Direction::Inbound => direction::INBOUND,
        };
        ListenerKey { netns, direction, family }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Opens the outbound listener, and the inbound one where asked, for both families. They are bound to
/// loopback: the hooks bring connections there, nothing else should. What `old` has open already is shared with
/// it, so that a socket that stays never stops listening.
///
/// A namespace without IPv6 has no IPv6 listener. An outbound port of 0 is chosen by the kernel, the same for
/// both families.
pub(super) fn open(
    netns: &Netns,
    out_port: u16,
    in_port: Option<u16>,
    old: &[Listening],
) -> Result<Vec<Listening>, Error> {
    let mut out = pair(netns, out_port, Direction::Outbound, old)?;
    if let Some(port) = in_port {
        out.extend(pair(netns, port, Direction::Inbound, old)?);
    }
    Ok(out)
}

fn pair(netns: &Netns, port: u16, direction: Direction, old: &[Listening]) -> Result<Vec<Listening>, Error> {
    let kept: Vec<&Listening> =
        old.iter().filter(|l| l.direction == direction && l.address.port() == port).collect();
    if !kept.is_empty() {
        return kept.into_iter().map(Listening::share).collect();
    }
    let v4 = listen(netns, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), direction)?;
    let port = v4.address.port();
    let v6 = listen(netns, SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port), direction);
    match v6 {
        Ok(v6) => Ok(vec![v4, v6]),
        Err(Error::Listen { source, .. }) if without_ipv6(&source) => Ok(vec![v4]),
        Err(e) => Err(e),
    }
}

fn without_ipv6(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn listen(netns: &Netns, address: SocketAddr, direction: Direction) -> Result<Listening, Error> {
    let error = |source| Error::Listen { address, source };
    let open = || -> io::Result<Socket> {
        let socket =
            Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        // A restart must not wait for the old connections' TIME_WAIT.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    let socket: TcpListener = netns.enter(open).and_then(|r| r).map_err(error)?.into();
    let address = socket.local_addr().map_err(error)?;
    Ok(Listening { socket, address, direction })
}

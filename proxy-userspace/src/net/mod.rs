//! Connections in: what a listener knows, and the hops from accept to bytes.
//!
//! A [`ListenerContext`] is one listening socket; a [`Place`] is what the sockets of a workload, or the daemon's own,
//! share; [`Shared`] is what all of one proxy share.

pub mod accept;
pub mod conn;
pub mod copy;
pub mod facts;
pub mod options;
pub mod socket;
pub mod splice;
pub mod timers;
pub mod turn;
pub mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use proxy_config::model::listener::TrafficDirection;
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

use self::splice::Pipes;
use crate::secret::Expiry;
use crate::sys::sock;
use crate::task::Tasks;
use crate::telemetry::AccessLog;
use crate::telemetry::stats::{OwnStats, Stats};
use crate::world::builtin::Builtin;
use crate::world::{BuildError, Cell, Listener, Live, Parts};

/// Which way a connection crosses the workload's border.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Outbound,
    Inbound,
}

impl Direction {
    /// Istio's name of the listener.
    pub fn listener(self) -> &'static str {
        match self {
            Self::Outbound => "virtualOutbound",
            Self::Inbound => "virtualInbound",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(_) => Self::V4,
            SocketAddr::V6(_) => Self::V6,
        }
    }

    fn domain(self) -> Domain {
        match self {
            Self::V4 => Domain::IPV4,
            Self::V6 => Domain::IPV6,
        }
    }
}

/// Makes upstream sockets inside a workload's network namespace, so that they leave with its address.
pub trait Dial: Send + Sync {
    /// A non-blocking TCP socket. Called on the data path: quick, and never waiting.
    fn socket(&self, family: Family) -> io::Result<Socket>;

    /// A non-blocking UDP socket.
    fn datagrams(&self, family: Family) -> io::Result<Socket>;
}

/// Dials from the namespace of the calling thread.
#[derive(Clone, Copy, Debug)]
pub struct HostDial;

impl Dial for HostDial {
    fn socket(&self, family: Family) -> io::Result<Socket> {
        Socket::new(family.domain(), Type::STREAM.nonblocking(), Some(Protocol::TCP))
    }

    fn datagrams(&self, family: Family) -> io::Result<Socket> {
        Socket::new(family.domain(), Type::DGRAM.nonblocking(), Some(Protocol::UDP))
    }
}

/// What each direction's upstream sockets are made by.
#[derive(Clone)]
pub struct Dialers {
    pub outbound: Arc<dyn Dial>,
    pub inbound: Arc<dyn Dial>,
}

impl Dialers {
    /// One for both.
    pub fn both(dial: Arc<dyn Dial>) -> Self {
        Self { outbound: dial.clone(), inbound: dial }
    }

    pub fn of(&self, direction: Direction) -> &dyn Dial {
        match direction {
            Direction::Outbound => self.outbound.as_ref(),
            Direction::Inbound => self.inbound.as_ref(),
        }
    }
}

/// Knows where an accepted connection was going.
pub trait OriginalDst: Send + Sync {
    /// `None` where nothing redirected the connection. `local` is its own `getsockname`.
    fn lookup(&self, stream: &TcpStream, local: SocketAddr) -> io::Result<Option<SocketAddr>>;
}

/// `SO_ORIGINAL_DST`, which both our kernel programs and netfilter answer.
#[derive(Clone, Copy, Debug)]
pub struct SockOpt;

impl OriginalDst for SockOpt {
    fn lookup(&self, stream: &TcpStream, local: SocketAddr) -> io::Result<Option<SocketAddr>> {
        sock::original_dst(stream, local)
    }
}

/// Istio's `outboundTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutboundPolicy {
    /// Unknown destinations are passed through.
    #[default]
    AllowAny,
    /// Unknown destinations are refused.
    RegistryOnly,
}

/// What new connections of a workload may do. Changes at run time; live connections keep what they had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub outbound: OutboundPolicy,
}

/// Limits of the data path, equal for all connections of a proxy.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Envoy's cluster `connect_timeout` as Istio sets it.
    pub connect_timeout: Duration,
    /// Envoy's default `tcp_proxy` `idle_timeout`.
    pub idle_timeout: Duration,
    /// How many directions may be spliced at a time, each for two descriptors; the others are copied. 0 turns
    /// splicing off.
    pub splice_directions: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(3_600),
            // 4,096 of the 20,000 descriptors that a common limit allows.
            splice_directions: 2_048,
        }
    }
}

/// What all listeners of one proxy share.
pub struct Shared {
    pub stats: Arc<Stats>,
    pub access_log: AccessLog,
    pub options: Options,
    pub tasks: Tasks,
    pub own: Arc<OwnStats>,
    pub pipes: Pipes,
    /// What captured workloads run on where the configuration has no listener for them; none where nothing is
    /// captured.
    pub builtin: Option<Builtin>,
    /// Drains connections that outlive what they were let in by; there only where that was asked for.
    pub expiry: Option<Expiry>,
    connections: Arc<AtomicU64>,
}

impl Shared {
    pub fn new(
        access_log: AccessLog,
        options: Options,
        captures: bool,
        parts: &Parts<'_>,
    ) -> Result<Self, BuildError> {
        let stats = parts.cluster.stats.clone();
        let own = OwnStats::of(&stats);
        Ok(Self {
            tasks: parts.cluster.tasks.clone(),
            pipes: Pipes::new(options.splice_directions, own.clone()),
            builtin: captures.then(|| Builtin::new(&options, parts)).transpose()?,
            own,
            stats,
            access_log,
            options,
            expiry: None,
            connections: parts.cluster.transport.connections.clone(),
        })
    }

    /// Envoy's connection id: counts from 1.
    pub(crate) fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Where connections are accepted: a captured workload, or the daemon itself.
pub struct Place {
    /// The workload's name.
    pub workload: Option<Arc<str>>,
    pub dial: Dialers,
    pub out_port: u16,
    pub in_port: u16,
    /// Addresses that no connection may be carried to. An unspecified IP stands for every IP.
    pub admin: Vec<SocketAddr>,
    pub config: Config,
    pub shared: Arc<Shared>,
    traffic: RwLock<Traffic>,
}

/// What the connections of a place run on.
#[derive(Clone)]
pub enum Config {
    /// The daemon's own; without one, or where that has no listener for captured connections, the built-in ones.
    Daemon(Option<Arc<Live>>),
    /// The workload's own: what it has no listener for is refused.
    Workload(Arc<Live>),
}

impl Config {
    fn live(&self) -> Option<&Arc<Live>> {
        match self {
            Self::Daemon(live) => live.as_ref(),
            Self::Workload(live) => Some(live),
        }
    }
}

impl Place {
    pub fn workload(
        name: &str,
        dial: Dialers,
        (out_port, in_port): (u16, u16),
        admin: Vec<SocketAddr>,
        (config, traffic): (Config, Traffic),
        shared: Arc<Shared>,
    ) -> Self {
        let (workload, traffic) = (Some(name.into()), RwLock::new(traffic));
        Self { workload, dial, out_port, in_port, admin, config, shared, traffic }
    }

    /// The daemon's own network namespace, with the listeners of its configuration.
    pub fn own(admin: Vec<SocketAddr>, live: Arc<Live>, shared: Arc<Shared>) -> Self {
        let (dial, traffic) = (Dialers::both(Arc::new(HostDial)), RwLock::default());
        let config = Config::Daemon(Some(live));
        Self { workload: None, dial, out_port: 0, in_port: 0, admin, config, shared, traffic }
    }

    pub fn traffic(&self) -> Traffic {
        *self.traffic.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes effect with the next connection.
    pub fn set_traffic(&self, traffic: Traffic) {
        *self.traffic.write().unwrap_or_else(PoisonError::into_inner) = traffic;
    }

    pub(crate) fn is_admin(&self, to: SocketAddr) -> bool {
        self.admin.iter().any(|admin| {
            let (ip, admin_ip) = (to.ip(), admin.ip().to_canonical());
            // Connecting to the unspecified address reaches loopback.
            to.port() == admin.port()
                && (ip == admin_ip
                    || admin_ip.is_unspecified()
                    || ip.is_unspecified() && admin_ip.is_loopback())
        })
    }
}

/// One listening socket.
pub struct ListenerContext {
    pub place: Arc<Place>,
    /// By whose sockets it is carried on.
    pub direction: Direction,
    /// For the log: none where the listener does not say.
    pub(crate) told: Option<Direction>,
    /// What the socket is bound to.
    pub local: SocketAddr,
    /// The configuration's listener of now; none on a workload's socket, which asks for each connection.
    cell: Option<Arc<Cell>>,
    original_dst: Arc<dyn OriginalDst>,
}

impl ListenerContext {
    /// A captured workload's.
    pub fn new(place: Arc<Place>, direction: Direction, local: SocketAddr) -> Self {
        Self::with_original_dst(place, direction, local, Arc::new(SockOpt))
    }

    /// A listener of a configuration, on a socket of its own.
    pub fn own(place: Arc<Place>, cell: Arc<Cell>, local: SocketAddr, direction: TrafficDirection) -> Self {
        let told = match direction {
            TrafficDirection::Inbound => Some(Direction::Inbound),
            TrafficDirection::Outbound => Some(Direction::Outbound),
            TrafficDirection::Unspecified => None,
        };
        let direction = told.unwrap_or(Direction::Outbound);
        Self { place, direction, told, local, cell: Some(cell), original_dst: Arc::new(SockOpt) }
    }

    /// For tests, and for interception that answers otherwise than by `SO_ORIGINAL_DST`.
    pub fn with_original_dst(
        place: Arc<Place>,
        direction: Direction,
        local: SocketAddr,
        original_dst: Arc<dyn OriginalDst>,
    ) -> Self {
        Self { place, direction, told: Some(direction), local, cell: None, original_dst }
    }

    /// Captured connections come in here; to a listener of a configuration, whoever knows its address.
    pub(crate) fn captures(&self) -> bool {
        self.place.workload.is_some() && self.cell.is_none()
    }

    pub(crate) fn describe(&self) -> String {
        match (&self.cell, &self.place.workload) {
            (Some(cell), _) => format!("listener {} on {}", cell.listener().name, self.local),
            (None, Some(workload)) => {
                format!("{} of {workload} on {}", self.direction.listener(), self.local)
            }
            (None, None) => format!("listener on {}", self.local),
        }
    }

    /// What serves the next connection, and where it finds whatever else it needs.
    pub(crate) fn enter(&self) -> Option<(&Arc<Live>, Arc<Listener>)> {
        let config = &self.place.config;
        if let Some(live) = config.live() {
            if let Some(cell) = &self.cell {
                return Some((live, cell.listener()));
            }
            if let Some(listener) = live.now().captured(self.direction, self.local.port()) {
                return Some((live, listener.clone()));
            }
        }
        let builtin = match config {
            Config::Daemon(_) => self.place.shared.builtin.as_ref()?,
            Config::Workload(_) => return None,
        };
        let listener = builtin.listener(self.direction, self.place.traffic().outbound);
        Some((&builtin.live, listener.clone()))
    }
}

#[cfg(test)]
pub(crate) mod rig;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wrapped_tests;

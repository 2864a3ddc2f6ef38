//! Connections in: what a listener knows, and the hops from accept to bytes.
//!
//! A [`ListenerContext`] is one listener of one workload; a [`WorkloadView`] is what both listeners of a workload
//! share; [`Shared`] is what all workloads of one proxy share.

pub mod accept;
pub mod conn;
pub mod copy;
pub mod facts;
pub mod splice;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

use self::splice::Pipes;
use crate::network::tcp_proxy::Clusters;
use crate::sys::sock;
use crate::task::Tasks;
use crate::telemetry::AccessLog;
use crate::telemetry::stats::{ListenerStats, OwnStats, Stats};

/// Which way a connection crosses the workload's border.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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
}

/// Makes upstream sockets inside a workload's network namespace, so that they leave with its address.
pub trait Dial: Send + Sync {
    /// A non-blocking TCP socket. Called on the data path: quick, and never waiting.
    fn socket(&self, family: Family) -> io::Result<Socket>;
}

/// Dials from the namespace of the calling thread.
#[derive(Clone, Copy, Debug)]
pub struct HostDial;

impl Dial for HostDial {
    fn socket(&self, family: Family) -> io::Result<Socket> {
        let domain = match family {
            Family::V4 => Domain::IPV4,
            Family::V6 => Domain::IPV6,
        };
        Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))
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
    pub clusters: Clusters,
    pub pipes: Pipes,
}

impl Shared {
    pub fn new(stats: Arc<Stats>, access_log: AccessLog, options: Options) -> Self {
        let own = OwnStats::of(&stats);
        Self {
            tasks: Tasks::new(&stats),
            own: own.clone(),
            clusters: Clusters::new(&stats),
            pipes: Pipes::new(options.splice_directions, own),
            stats,
            access_log,
            options,
        }
    }
}

/// A workload as its connections see it.
pub struct WorkloadView {
    pub name: Arc<str>,
    pub dial: Dialers,
    pub out_port: u16,
    pub in_port: u16,
    /// Addresses that no connection may be carried to. An unspecified IP stands for every IP.
    pub admin: Vec<SocketAddr>,
    pub shared: Arc<Shared>,
    traffic: RwLock<Traffic>,
}

impl WorkloadView {
    pub fn new(
        name: &str,
        dial: Dialers,
        (out_port, in_port): (u16, u16),
        admin: Vec<SocketAddr>,
        traffic: Traffic,
        shared: Arc<Shared>,
    ) -> Self {
        Self { name: name.into(), dial, out_port, in_port, admin, shared, traffic: RwLock::new(traffic) }
    }

    pub fn traffic(&self) -> Traffic {
        *self.traffic.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes effect with the next connection.
    pub fn set_traffic(&self, traffic: Traffic) {
        *self.traffic.write().unwrap_or_else(PoisonError::into_inner) = traffic;
    }
}

/// One listener of one workload.
pub struct ListenerContext {
    pub workload: Arc<WorkloadView>,
    pub direction: Direction,
    /// What the listener is bound to.
    pub local: SocketAddr,
    pub stats: Arc<ListenerStats>,
    original_dst: Arc<dyn OriginalDst>,
}

impl ListenerContext {
    pub fn new(workload: Arc<WorkloadView>, direction: Direction, local: SocketAddr) -> Self {
        Self::with_original_dst(workload, direction, local, Arc::new(SockOpt))
    }

    /// For tests, and for interception that answers otherwise than by `SO_ORIGINAL_DST`.
    pub fn with_original_dst(
        workload: Arc<WorkloadView>,
        direction: Direction,
        local: SocketAddr,
        original_dst: Arc<dyn OriginalDst>,
    ) -> Self {
        let stats = ListenerStats::of(&workload.shared.stats, local);
        Self { workload, direction, local, stats, original_dst }
    }
}

#[cfg(test)]
pub(crate) mod rig;
#[cfg(test)]
mod tests;

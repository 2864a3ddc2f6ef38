//! Network filters: what is done with a connection's bytes.
//!
//! A chain's gatekeepers are asked in order, the last filter is terminal and carries the connection to its end.

pub mod tcp_proxy;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use crate::clock::Instant;
use crate::drain::Guard;
use crate::net::{Dial, Place, Shared};
use crate::telemetry::ConnRecord;
use crate::world::{Listener, Snapshot};

/// A connection on its way through its filter chain.
pub(crate) struct Conn<'a> {
    pub(crate) stream: &'a TcpStream,
    pub(crate) place: &'a Place,
    pub(crate) shared: &'a Shared,
    pub(crate) snapshot: &'a Snapshot,
    /// The one that serves it, after a hand-off.
    pub(crate) listener: &'a Listener,
    /// Its facts, and what becomes of it.
    pub(crate) record: &'a mut ConnRecord,
    pub(crate) guard: &'a Guard,
    pub(crate) accepted: Instant,
    /// A filter's choice of cluster, over tcp_proxy's own.
    pub(crate) cluster: Option<Arc<str>>,
}

impl Conn<'_> {
    /// Makes its upstream sockets.
    pub(crate) fn dial(&self) -> &dyn Dial {
        self.place.dial.of(self.record.entry.origin.direction)
    }

    /// Whether no connection may be carried there.
    pub(crate) fn forbids(&self, to: SocketAddr) -> bool {
        self.place.is_admin(to)
    }
}

//! Doors: the sockets at one address of a listener, and what they hand new connections to.
//!
//! A door belongs to its address and its socket options, not to a listener: when a listener changes, or goes and
//! another takes its address, the sockets stay open and the next connection is the successor's. The only socket of an
//! address cannot be bound beside itself: where another door is made for it, there or by the configuration that takes
//! the place of this one, it is handed over.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;
use proxy_config::model;
use proxy_config::model::address::{Address, TcpKeepalive};
use proxy_config::model::listener::{ListenAddress, TrafficDirection};
use socket2::Socket;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use super::Listener;
use super::bind::{self, BindError, Sockets};
use crate::drain::Watch;
use crate::net::accept::{self, Spread};
use crate::net::{ListenerContext, Place};

/// The listener that the next connection is for.
pub struct Cell(ArcSwap<Listener>);

impl Cell {
    pub fn listener(&self) -> Arc<Listener> {
        self.0.load_full()
    }
}

/// What accepted connections live under.
#[derive(Clone)]
pub struct Gate {
    pub place: Arc<Place>,
    /// What the sockets and connections of inbound listeners follow, and those of the others.
    pub inbound: Watch,
    pub others: Watch,
}

/// Closes its sockets when it is dropped.
pub(super) struct Door {
    key: Key,
    pub(super) local: SocketAddr,
    cell: Arc<Cell>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    /// Bound, and not listening yet.
    bound: Vec<Socket>,
    accepting: Vec<AbortHandle>,
    /// The only one, as long as somebody accepts from it.
    only: Weak<TcpListener>,
}

/// What two listeners must have alike for the one to take over the other's sockets.
#[derive(Clone, Debug, PartialEq)]
struct Key {
    /// Where the port is left to the kernel: whose it is.
    owner: Option<Arc<str>>,
    at: ListenAddress,
    /// By which connections are drained.
    direction: TrafficDirection,
    reuse_port: bool,
    tcp_backlog_size: Option<u32>,
    tcp_fast_open_queue_length: Option<u32>,
    tcp_keepalive: Option<TcpKeepalive>,
    enable_mptcp: bool,
    transparent: bool,
    freebind: bool,
}

impl Key {
    fn new(listener: &model::Listener, at: &ListenAddress) -> Self {
        let any_port = matches!(at.address, Address::Ip(address) if address.port() == 0);
        Self {
            owner: any_port.then(|| listener.name.clone()),
            at: at.clone(),
            direction: listener.traffic_direction,
            reuse_port: listener.reuse_port,
            tcp_backlog_size: listener.tcp_backlog_size,
            tcp_fast_open_queue_length: listener.tcp_fast_open_queue_length,
            tcp_keepalive: listener.tcp_keepalive,
            enable_mptcp: listener.enable_mptcp,
            transparent: listener.transparent,
            freebind: listener.freebind,
        }
    }
}

impl Key {
    /// Whether the only socket of the one can be the other's: all is alike that is not set again when it listens, or
    /// that is no matter of the socket's.
    fn is_of_one_socket(&self, other: &Self) -> bool {
        let alike =
            Self { direction: self.direction, tcp_backlog_size: self.tcp_backlog_size, ..other.clone() };
        !self.reuse_port && *self == alike
    }
}

/// All doors that are open.
#[derive(Default)]
pub(super) struct Doors {
    by_address: HashMap<Address, Vec<Weak<Door>>>,
}

impl Doors {
    /// The doors of a listener with `bind_to_port`: those that are open already, or new ones.
    pub(super) fn open(
        &mut self,
        listener: &Arc<Listener>,
        sockets: &dyn Sockets,
    ) -> Result<Vec<Arc<Door>>, BindError> {
        let model = &listener.model;
        let addresses = model.addresses.iter().filter(|_| model.bind_to_port);
        addresses.map(|at| self.open_one(listener, at, sockets)).collect()
    }

    fn open_one(
        &mut self,
        listener: &Arc<Listener>,
        at: &ListenAddress,
        sockets: &dyn Sockets,
    ) -> Result<Arc<Door>, BindError> {
        let key = Key::new(&listener.model, at);
        let known = self.by_address.entry(at.address.clone()).or_default();
        known.retain(|door| door.strong_count() > 0);
        if let Some(door) = known.iter().filter_map(Weak::upgrade).find(|door| door.key == key) {
            return Ok(door);
        }
        let only = known.iter().filter_map(Weak::upgrade).find_map(|door| door.only_socket(&key));
        let door = Arc::new(Door::new(key, listener, at, (only, sockets))?);
        known.push(Arc::downgrade(&door));
        Ok(door)
    }

    /// The only socket of an address, by another descriptor: for who listens there from now on.
    pub(super) fn only_socket(&self, listener: &model::Listener, at: &ListenAddress) -> Option<Socket> {
        let key = Key::new(listener, at);
        let known = self.by_address.get(&at.address)?;
        known.iter().filter_map(Weak::upgrade).find_map(|door| door.only_socket(&key))
    }
}

impl Door {
    fn new(
        key: Key,
        listener: &Arc<Listener>,
        at: &ListenAddress,
        (only, sockets): (Option<Socket>, &dyn Sockets),
    ) -> Result<Self, BindError> {
        let error = |source| BindError::new(&listener.model, at, "", source);
        let bound = match only {
            Some(only) => vec![only],
            None => sockets.bind(&listener.model, at)?,
        };
        let local = match (bound.first(), &at.address) {
            (Some(first), _) => bind::local(first).map_err(error)?,
            (None, Address::Ip(address)) => *address,
            (None, Address::Host(_) | Address::Pipe { .. }) => {
                return Err(error(std::io::ErrorKind::Unsupported.into()));
            }
        };
        Ok(Self {
            local,
            key,
            cell: Arc::new(Cell(ArcSwap::new(listener.clone()))),
            open: Mutex::new(Open { bound, ..Open::default() }),
        })
    }

    /// The next connection is for `listener`; from the first call on, there can be one.
    pub(super) fn lead_to(&self, listener: &Arc<Listener>, gate: &Gate) -> Result<(), BindError> {
        self.cell.0.store(listener.clone());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = std::mem::take(&mut open.bound);
        let crew = gate.place.shared.tasks.crew();
        let one_each = self.key.reuse_port && bound.len() == crew.len();
        for (n, socket) in bound.into_iter().enumerate() {
            let socket = bind::listen(socket, &listener.model, &self.key.at)?;
            let spread = if one_each { Spread::Here(n) } else { Spread::Evenly(crew.next()) };
            let _there = crew.enter(spread.place());
            let socket = TcpListener::from_std(socket);
            let socket =
                socket.map_err(|source| BindError::new(&listener.model, &self.key.at, "", source))?;
            let socket = Arc::new(socket);
            if !self.key.reuse_port {
                open.only = Arc::downgrade(&socket);
            }
            open.accepting.push(gate.accept((socket, spread), &self.cell, self.local, self.key.direction));
        }
        Ok(())
    }

    fn only_socket(&self, key: &Key) -> Option<Socket> {
        if !self.key.is_of_one_socket(key) {
            return None;
        }
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = match open.only.upgrade() {
            Some(only) => only.as_fd().try_clone_to_owned().map(Socket::from),
            None => open.bound.first()?.try_clone(),
        };
        shared.inspect_err(|error| log::warn!("{}: cannot be handed over: {error}", self.local)).ok()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let open = self.open.get_mut().unwrap_or_else(PoisonError::into_inner);
        open.accepting.iter().for_each(AbortHandle::abort);
    }
}

impl Gate {
    /// Starts an accept loop. It is aborted where it waits: a connection that was accepted is served.
    fn accept(
        &self,
        (socket, spread): (Arc<TcpListener>, Spread),
        cell: &Arc<Cell>,
        local: SocketAddr,
        direction: TrafficDirection,
    ) -> AbortHandle {
        let watch = match direction {
            TrafficDirection::Inbound => &self.inbound,
            TrafficDirection::Outbound | TrafficDirection::Unspecified => &self.others,
        };
        let context = ListenerContext::own(self.place.clone(), cell.clone(), local, direction);
        let run = accept::run(socket, Arc::new(context), watch.clone(), spread);
        self.place.shared.tasks.spawn_on(spread.place(), "accept", run).abort_handle()
    }
}

//! Network filters: what is done with a connection's bytes.
//!
//! A chain is some gatekeepers ([`Gates`]) and then one filter that ends it: [`tcp_proxy`], [`direct_response`] or
//! [`echo`].

pub mod connection_limit;
pub mod direct_response;
pub mod echo;
pub mod gates;
mod handshake;
pub mod local_ratelimit;
pub mod rbac;
pub mod starttls;
pub mod tcp_proxy;

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::Interest;
use tokio::net::TcpStream;

pub use self::gates::{Close, Entered, Gates, Verdict};
use self::starttls::Driver;
use self::tcp_proxy::TcpProxy;
use crate::clock::Instant;
use crate::drain::Guard;
use crate::http::{Hcm, manager};
use crate::istio::{Exchange, Recorder, Report};
use crate::net::conn::reset_on_close;
use crate::net::copy::is_reset;
use crate::net::socket::Socket;
use crate::net::wire::Wire;
use crate::net::{Dial, Direction, Place, Shared};
use crate::secret::Lease;
use crate::task::workers;
use crate::telemetry::stats::Counter;
use crate::telemetry::{ConnRecord, Entry, Flags, Outcome, Side};
use crate::transport::{CloseEvent, Transport};
use crate::world::{Base, Chain, Live};

/// The filter that ends a chain.
pub enum Last {
    TcpProxy(Box<TcpProxy>),
    Http(Arc<Hcm>),
    DirectResponse(Vec<u8>),
    Echo,
    /// An empty chain: Envoy closes such a connection at once.
    Nothing,
    /// A filter that is not implemented, or has not come: no filter sees the connection, which is closed at once.
    Closed(Box<Closed>),
}

/// Why a chain serves nothing.
pub struct Closed {
    pub flags: Flags,
    pub details: Cow<'static, str>,
    /// How many connections that were.
    pub counter: Arc<Counter>,
    /// Said with the first of them.
    pub why: String,
    said: AtomicBool,
}

impl Closed {
    pub fn new(
        (flags, details): (Flags, impl Into<Cow<'static, str>>),
        counter: Arc<Counter>,
        why: String,
    ) -> Self {
        Self { flags, details: details.into(), counter, why, said: AtomicBool::new(false) }
    }

    fn outcome(&self, listener: &Base) -> Outcome {
        self.counter.inc();
        if !self.said.swap(true, Ordering::Relaxed) {
            log::warn!("listener {}: {}: connections are closed", listener.name, self.why);
        }
        Outcome::new(Side::Internal, self.flags, self.details.clone())
    }
}

/// A filter chain's filters.
pub struct Filters {
    pub gates: Gates,
    /// Speaks the beginning of a protocol that turns to TLS.
    pub driver: Option<Box<dyn Driver>>,
    /// Asks clients who they are.
    pub exchange: Option<Arc<Exchange>>,
    /// Count connections while they live.
    pub recorders: Vec<Arc<Recorder>>,
    pub last: Last,
}

/// A connection on its way through its filter chain.
pub(crate) struct Conn<'a> {
    pub(crate) stream: &'a Arc<TcpStream>,
    /// Of its filter chain; none for `raw_buffer`.
    pub(crate) transport: Option<Box<dyn Transport>>,
    /// With `--drain-on-cert-expiry`.
    pub(crate) lease: Option<Box<Lease>>,
    pub(crate) place: &'a Arc<Place>,
    pub(crate) shared: &'a Shared,
    pub(crate) live: &'a Arc<Live>,
    /// The one that serves it, after a hand-off.
    pub(crate) listener: &'a Arc<Base>,
    /// Its facts, and what becomes of it.
    pub(crate) record: &'a mut ConnRecord,
    pub(crate) guard: &'a Guard,
    pub(crate) accepted: &'a Instant,
    /// A filter's choice of cluster, over tcp_proxy's own.
    pub(crate) cluster: Option<Arc<str>>,
    /// Asked before the client's first byte goes anywhere.
    pub(crate) gates: Option<&'a Gates>,
    /// Which worker carries it.
    pub(crate) worker: workers::Place,
}

impl Conn<'_> {
    /// The client's side is under TLS, or may be.
    pub(crate) fn follow_expiry(&mut self) {
        if let (Some(lease), Some(expiry)) = (&mut self.lease, &self.shared.expiry) {
            lease.follow(expiry, self.record.entry.facts.tls.as_deref(), self.guard);
        }
    }
}

/// Takes a connection through its chain. What is rare or short is boxed: see `conn::serve`.
pub(crate) async fn run<'a>(mut conn: Conn<'a>, chain: &'a Chain) -> Outcome {
    let outcome = through(&mut conn, chain).await;
    if let Some(transport) = &mut conn.transport {
        let by = match outcome.side {
            Side::Downstream => CloseEvent::Remote,
            Side::Upstream | Side::Internal => CloseEvent::Local,
        };
        transport.closed(Socket::Tcp(conn.stream), by);
    }
    outcome
}

async fn through<'a>(conn: &mut Conn<'a>, chain: &'a Chain) -> Outcome {
    let filters = &chain.filters;
    if let Last::Closed(closed) = &filters.last {
        return closed.outcome(conn.listener);
    }
    let (entered, verdict) = filters.gates.on_new_connection(&conn.record.entry.facts);
    if let Verdict::Close(close) = verdict {
        return Box::pin(refuse(conn, close)).await;
    }
    conn.cluster.clone_from(&entered.cluster);
    conn.gates = filters.gates.needs_first_byte().then_some(&filters.gates);
    filters.recorders.iter().for_each(|recorder| conn.record.count(Report::new(recorder.clone())));
    if let Last::TcpProxy(proxy) = &filters.last {
        tcp_proxy::enter(conn, proxy);
    }
    if let Some(factory) = &chain.transport {
        // The upstream is not told of a client before that has shown who it is.
        let ready = Box::pin(handshake::run(conn, factory.as_ref(), chain.handshake_timeout)).await;
        if let Err(failure) = ready {
            return failure;
        }
    }
    if let Some(exchange) = &filters.exchange {
        conn.record.entry.peers.downstream = Some(exchange.enter(&mut conn.transport));
    }
    match &filters.last {
        Last::TcpProxy(proxy) => tcp_proxy::run(conn, proxy, filters.driver.as_deref()).await,
        Last::Http(hcm) => Box::pin(manager::run(conn, hcm)).await,
        Last::DirectResponse(body) => Box::pin(respond(conn, body)).await,
        Last::Echo => Box::pin(echo(conn)).await,
        Last::Nothing => Outcome::new(Side::Internal, Flags::NONE, "no_filters"),
        Last::Closed(closed) => closed.outcome(conn.listener),
    }
}

async fn respond(conn: &mut Conn<'_>, body: &[u8]) -> Outcome {
    let guard = conn.guard;
    let (mut wire, entry) = conn.wire();
    let written = until_cut(guard, direct_response::run(&mut wire, body, &mut entry.bytes)).await;
    let mut outcome = ended(conn.stream, written, "direct_response");
    outcome.response_code_details = Some(direct_response::DETAILS.into());
    outcome
}

async fn echo(conn: &mut Conn<'_>) -> Outcome {
    let first = match conn.first_bytes().await {
        Ok(first) => first,
        Err(close) => return refuse(conn, close).await,
    };
    let guard = conn.guard;
    let (mut wire, entry) = conn.wire();
    let echoed = until_cut(guard, echo::run(&mut wire, first, &mut entry.bytes)).await;
    ended(conn.stream, echoed, "downstream_closed")
}

/// What a gatekeeper's refusal becomes in the log, once it is time to close. The caller closes the socket.
pub(crate) async fn refuse(conn: &mut Conn<'_>, close: Close) -> Outcome {
    let guard = conn.guard;
    let (mut wire, entry) = conn.wire();
    tokio::select! {
        () = close.prepare(&mut wire, &mut entry.bytes) => {}
        () = guard.cut() => {}
    }
    let Close { flags, details, response_code_details, termination_details, .. } = close;
    Outcome { response_code_details, termination_details, ..Outcome::new(Side::Internal, flags, details) }
}

/// `None`: the drain's deadline came first.
async fn until_cut(guard: &Guard, work: impl Future<Output = io::Result<()>>) -> Option<io::Result<()>> {
    tokio::select! {
        done = work => Some(done),
        () = guard.cut() => None,
    }
}

fn ended(stream: &TcpStream, done: Option<io::Result<()>>, details: &'static str) -> Outcome {
    match done {
        Some(Ok(())) => Outcome::new(Side::Downstream, Flags::NONE, details),
        Some(Err(error)) if is_reset(&error) => {
            Outcome::new(Side::Downstream, Flags::NONE, "downstream_reset")
        }
        Some(Err(error)) => Outcome::new(Side::Downstream, Flags::NONE, format!("downstream_error: {error}")),
        None => {
            reset_on_close(stream);
            Outcome::new(Side::Internal, Flags::NONE, "drain_timeout")
        }
    }
}

impl Conn<'_> {
    /// The client's side, and what is recorded of it.
    pub(crate) fn wire(&mut self) -> (Wire<'_>, &mut Entry) {
        let wire = Wire::new(Socket::Tcp(self.stream), self.transport.as_deref_mut());
        (wire, &mut self.record.entry)
    }

    /// Makes its upstream sockets.
    pub(crate) fn dial(&self) -> &dyn Dial {
        // A listener that does not say is one of the daemon's own, which dials in one way only.
        self.place.dial.of(self.record.entry.origin.direction.unwrap_or(Direction::Outbound))
    }

    /// Whether no connection may be carried there.
    pub(crate) fn forbids(&self, to: SocketAddr) -> bool {
        self.place.is_admin(to)
    }

    /// Waits for the client's first bytes and asks the gatekeepers. What had to be read to know is returned, and is
    /// counted: bytes that a transport has decrypted are not on the socket any longer.
    pub(crate) async fn first_bytes(&mut self) -> Result<Vec<u8>, Close> {
        let Some(gates) = self.gates.take() else { return Ok(Vec::new()) };
        let (mut wire, entry) = self.wire();
        let mut first = Vec::new();
        // A failure shows again where the bytes are read.
        if wire.is_raw() {
            let _ = self.stream.ready(Interest::READABLE | Interest::ERROR).await;
        } else {
            first = echo::read(&mut wire).await.unwrap_or_default();
            entry.bytes.downstream_rx += first.len() as u64;
        }
        match gates.on_first_byte(&mut self.record.entry.facts) {
            Verdict::Continue => Ok(first),
            Verdict::Close(close) => Err(close),
        }
    }
}

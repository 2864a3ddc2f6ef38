//! Network filters: what is done with a connection's bytes.
//!
//! A chain is some gatekeepers ([`Gates`]) and then one filter that ends it: [`tcp_proxy`], [`direct_response`] or
//! [`echo`].

pub mod connection_limit;
pub mod direct_response;
pub mod echo;
pub mod gates;
pub mod local_ratelimit;
pub mod rbac;
pub mod starttls;
pub mod tcp_proxy;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::net::TcpStream;

pub use self::gates::{Close, Entered, Gates, Verdict};
use self::starttls::Driver;
use self::tcp_proxy::TcpProxy;
use crate::clock::Instant;
use crate::drain::Guard;
use crate::net::conn::reset_on_close;
use crate::net::copy::is_reset;
use crate::net::{Dial, Direction, Place, Shared};
use crate::telemetry::{Bytes, ConnRecord, Flags, Outcome, Side};
use crate::world::{Listener, Snapshot};

/// The filter that ends a chain.
pub enum Last {
    TcpProxy(Box<TcpProxy>),
    DirectResponse(Vec<u8>),
    Echo,
    /// An empty chain: Envoy closes such a connection at once.
    Nothing,
}

/// A filter chain's filters.
pub struct Filters {
    pub gates: Gates,
    /// Between tcp_proxy's connecting and its relaying.
    pub driver: Option<Box<dyn Driver>>,
    pub last: Last,
}

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
    /// Asked before the client's first byte goes anywhere.
    pub(crate) gates: Option<&'a Gates>,
}

/// Takes a connection through its chain. What is rare or short is boxed: see `conn::serve`.
pub(crate) async fn run(mut conn: Conn<'_>, filters: &Filters) -> Outcome {
    let (entered, verdict) = filters.gates.on_new_connection(&conn.record.entry.facts);
    if let Verdict::Close(close) = verdict {
        return Box::pin(refuse(conn.stream, close, &mut conn.record.entry.bytes, conn.guard)).await;
    }
    conn.cluster.clone_from(&entered.cluster);
    conn.gates = filters.gates.needs_first_byte().then_some(&filters.gates);
    match &filters.last {
        Last::TcpProxy(proxy) => tcp_proxy::run(&mut conn, proxy).await,
        Last::DirectResponse(body) => Box::pin(respond(&mut conn, body)).await,
        Last::Echo => Box::pin(echo(&mut conn)).await,
        Last::Nothing => Outcome::new(Side::Internal, Flags::NONE, "no_filters"),
    }
}

async fn respond(conn: &mut Conn<'_>, body: &[u8]) -> Outcome {
    let bytes = &mut conn.record.entry.bytes;
    let written = until_cut(conn.guard, direct_response::run(conn.stream, body, bytes)).await;
    let mut outcome = ended(conn.stream, written, "direct_response");
    outcome.response_code_details = Some(direct_response::DETAILS.into());
    outcome
}

async fn echo(conn: &mut Conn<'_>) -> Outcome {
    if let Some(close) = conn.first_byte().await {
        return refuse(conn.stream, close, &mut conn.record.entry.bytes, conn.guard).await;
    }
    let bytes = &mut conn.record.entry.bytes;
    let echoed = until_cut(conn.guard, echo::run(conn.stream, bytes)).await;
    ended(conn.stream, echoed, "downstream_closed")
}

/// What a gatekeeper's refusal becomes in the log, once it is time to close. The caller closes the socket.
pub(crate) async fn refuse(stream: &TcpStream, close: Close, bytes: &mut Bytes, guard: &Guard) -> Outcome {
    tokio::select! {
        () = close.prepare(stream, bytes) => {}
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
    /// Makes its upstream sockets.
    pub(crate) fn dial(&self) -> &dyn Dial {
        // A listener that does not say is one of the daemon's own, which dials in one way only.
        self.place.dial.of(self.record.entry.origin.direction.unwrap_or(Direction::Outbound))
    }

    /// Whether no connection may be carried there.
    pub(crate) fn forbids(&self, to: SocketAddr) -> bool {
        self.place.is_admin(to)
    }

    /// Waits for the client's first byte and asks the gatekeepers. `None`: go on.
    async fn first_byte(&mut self) -> Option<Close> {
        let gates = self.gates.take()?;
        // A failure shows again where the bytes are read.
        let _ = self.stream.ready(Interest::READABLE | Interest::ERROR).await;
        match gates.on_first_byte(&mut self.record.entry.facts) {
            Verdict::Continue => None,
            Verdict::Close(close) => Some(close),
        }
    }
}

//! An accepted connection: its facts, the listener and the chain that serve it, and what must be refused.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use socket2::SockAddr;
use tokio::net::TcpStream;

use super::facts::Facts;
use super::{Dial, Direction, Family, ListenerContext};
use crate::clock;
use crate::drain::Guard;
use crate::network::{self, Conn};
use crate::sys::sock;
use crate::task::workers;
use crate::telemetry::stats::{Held, ListenerStats};
use crate::telemetry::{ConnRecord, Flags, Origin, Outcome, Side};
use crate::world::{Chain, Listener, Live};

/// Carries one connection from its first fact to its log line.
pub async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    ctx: Arc<ListenerContext>,
    guard: Guard,
    worker: workers::Place,
) {
    // A codec of HTTP owns its connection, and shares the socket with this.
    let stream = Arc::new(stream);
    // Nothing is carried for what no listener takes, as where nobody listens.
    let Some((live, listener)) = ctx.enter() else { return reset_on_close(&stream) };
    let (mut record, refusal) = begin(&stream, peer, &ctx, &listener);
    let outcome = match refusal {
        Some(refusal) => {
            drop(Accounted::new(&listener.stats, clock::now()));
            refuse(&stream, &ctx, refusal)
        }
        None => resolve(&stream, &ctx, (live, listener), &mut record, (&guard, worker)).await,
    };
    drop(stream);
    record.finish(outcome);
}

/// The first facts, and whether they are reason enough to refuse.
fn begin(
    stream: &TcpStream,
    peer: SocketAddr,
    ctx: &ListenerContext,
    listener: &Listener,
) -> (ConnRecord, Option<Refusal>) {
    let local = stream.local_addr().map_or(ctx.local, canonical);
    let mut facts = Facts::new(canonical(peer), local);
    let refusal = captured(stream, ctx, &mut facts).err();
    let origin = Origin {
        connection_id: ctx.place.shared.next_connection(),
        workload: ctx.place.workload.clone(),
        direction: ctx.told,
        listener: listener.model.name.clone(),
    };
    let mut record = ConnRecord::new(ctx.place.shared.access_log.clone(), origin, facts);
    record.entry.original_dst = Some(record.entry.facts.local);
    (record, refusal)
}

/// Finds the listener that the connection was meant for, and has it served there.
async fn resolve(
    stream: &Arc<TcpStream>,
    ctx: &ListenerContext,
    (live, entry): (&Arc<Live>, Arc<Listener>),
    record: &mut ConnRecord,
    (guard, worker): (&Guard, workers::Place),
) -> Outcome {
    let accepted = clock::now();
    let listener = match meant(stream, ctx, (live, entry), record).await {
        Ok(listener) => listener,
        Err(failure) => return failure,
    };
    if !listener.access_log.is_empty() {
        record.add(listener.access_log.clone());
    }
    let Some(chain) = listener.chain(&record.entry.facts).cloned() else {
        // Not a connection in Envoy's accounts either.
        listener.stats.no_filter_chain_match.inc();
        let mut outcome = Outcome::new(Side::Internal, Flags::NR, "no_filter_chain_match");
        outcome.response_code_details = Some("filter_chain_not_found".into());
        return outcome;
    };
    // The listener may change or go: its connections keep what they need of it, and are let go with their chain.
    let listener = { listener }.base().clone();
    let served = Served::new(chain, guard);
    let closed = Accounted::new(&listener.stats, accepted);
    record.entry.filter_chain = Some(served.chain.name.clone());
    record.entry.listener_metadata.clone_from(&listener.metadata);
    record.entry.filter_chain_metadata.clone_from(&served.chain.metadata);
    let (place, shared) = (&ctx.place, ctx.place.shared.as_ref());
    let listener = &listener;
    let conn = Conn {
        stream,
        transport: None,
        lease: None,
        place,
        shared,
        live,
        listener,
        record,
        guard,
        accepted: &closed.since,
        cluster: None,
        gates: None,
        worker,
    };
    network::run(conn, &served.chain).await
}

/// The listener that took the connection, or the one of its original destination; each runs its filters.
async fn meant(
    stream: &TcpStream,
    ctx: &ListenerContext,
    (live, entry): (&Live, Arc<Listener>),
    record: &mut ConnRecord,
) -> Result<Arc<Listener>, Outcome> {
    let mut listener = entry;
    inspect(stream, ctx, &listener, record).await?;
    // Once only: the listener that it is handed to does not hand it on.
    if let Some(other) = handoff(live, &listener, &record.entry.facts) {
        listener = other;
        record.entry.origin.listener = listener.model.name.clone();
        inspect(stream, ctx, &listener, record).await?;
    }
    Ok(listener)
}

fn handoff(live: &Live, listener: &Listener, facts: &Facts) -> Option<Arc<Listener>> {
    if !listener.model.use_original_dst || !facts.local_restored {
        return None;
    }
    let other = live.now().handoff(facts.local).cloned();
    other.filter(|other| other.name != listener.name)
}

/// Runs a listener's filters; what fails there never becomes a connection of the listener's.
async fn inspect(
    stream: &TcpStream,
    ctx: &ListenerContext,
    listener: &Listener,
    record: &mut ConnRecord,
) -> Result<(), Outcome> {
    if listener.model.listener_filters.is_empty() && !listener.model.use_original_dst {
        return Ok(());
    }
    let facts = &mut record.entry.facts;
    // Boxed here and where connections are made: what lasts for moments is not kept room for while they idle.
    let inspected = Box::pin(listener.filters.run(stream, facts, ctx.original_dst.as_ref())).await;
    if let Err(failure) = inspected {
        log::debug!("{}: {failure}", ctx.describe());
        // It never becomes a connection of the listener's, but has a line in its log.
        record.add(listener.access_log.clone());
        return Err(Outcome::new(Side::Internal, Flags::NONE, format!("listener_filter: {failure}")));
    }
    // A PROXY header may name any destination.
    if facts.local_restored && ctx.place.is_admin(facts.local) {
        return Err(refuse(stream, ctx, Refusal::Admin));
    }
    Ok(())
}

/// A connection on the roster of its chain: with that it drains.
struct Served {
    chain: Arc<Chain>,
    id: u64,
}

impl Served {
    fn new(chain: Arc<Chain>, guard: &Guard) -> Self {
        Self { id: chain.roster.join(guard), chain }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.chain.roster.leave(self.id);
    }
}

/// A connection in the listener's accounts.
struct Accounted {
    active: Held<ListenerStats>,
    since: clock::Instant,
}

impl Accounted {
    fn new(stats: &Arc<ListenerStats>, since: clock::Instant) -> Self {
        stats.downstream_cx_total.inc();
        Self { active: Held::new(stats, |s| &s.downstream_cx_active), since }
    }
}

impl Drop for Accounted {
    fn drop(&mut self) {
        let stats = self.active.block();
        stats.downstream_cx_destroy.inc();
        let lived = (clock::now() - self.since).as_millis();
        stats.downstream_cx_length_ms.record(u64::try_from(lived).unwrap_or(u64::MAX));
    }
}

/// Makes the close a reset, so that the peer sees a failure and not an end.
pub(crate) fn reset_on_close(stream: &TcpStream) {
    // It fails only where the socket is already dead.
    let _ = sock::set_linger_reset(stream);
}

/// An IPv4 client of a dual-stack listener is an IPv4 client.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Listener,
    Admin,
}

fn refuse(stream: &TcpStream, ctx: &ListenerContext, refusal: Refusal) -> Outcome {
    let own = &ctx.place.shared.own;
    let (counter, details) = match refusal {
        Refusal::Listener => (&own.original_destination_is_listener, "original_destination_is_listener"),
        Refusal::Admin => (&own.original_destination_is_admin, "original_destination_is_admin"),
    };
    counter.inc();
    reset_on_close(stream);
    Outcome::new(Side::Internal, Flags::NR, details)
}

/// Restores where the client of a captured workload was going, and refuses what may not be carried.
fn captured(stream: &TcpStream, ctx: &ListenerContext, facts: &mut Facts) -> Result<(), Refusal> {
    if !ctx.captures() {
        return Ok(());
    }
    let restored = ctx.original_dst.lookup(stream, facts.local).unwrap_or_else(|error| {
        log::warn!("{}: SO_ORIGINAL_DST: {error}", ctx.describe());
        None
    });
    // With sk_lookup or TPROXY nothing is rewritten: the local address is the original destination.
    let kept = (facts.local.port() != ctx.local.port()).then_some(facts.local);
    let destination = canonical(restored.or(kept).ok_or(Refusal::Listener)?);
    facts.local = destination;
    facts.local_restored = true;
    if is_listener(destination, ctx) {
        Err(Refusal::Listener)
    } else if ctx.place.is_admin(destination) {
        Err(Refusal::Admin)
    } else {
        Ok(())
    }
}

/// Whether going there would come back here. Another host's 15001 is a destination like any other.
fn is_listener(destination: SocketAddr, ctx: &ListenerContext) -> bool {
    let place = &ctx.place;
    if ![place.out_port, place.in_port, ctx.local.port()].contains(&destination.port()) {
        return false;
    }
    ctx.direction == Direction::Inbound || is_local(destination.ip(), place.dial.inbound.as_ref())
}

/// Whether an address is the workload's own: only an own address can be bound. Asked for the proxy's ports only,
/// so it costs nothing on the way of other connections.
fn is_local(ip: IpAddr, dial: &dyn Dial) -> bool {
    if ip.is_loopback() || ip.is_unspecified() {
        return true;
    }
    let address = SocketAddr::new(ip, 0);
    // Where that cannot be found out, a loop is worse than a refusal.
    match dial.socket(Family::of(address)) {
        Ok(socket) => socket.bind(&SockAddr::from(address)).is_ok(),
        Err(_) => true,
    }
}

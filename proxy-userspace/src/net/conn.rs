//! An accepted connection: its facts, and the destinations that must be refused.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use socket2::SockAddr;
use tokio::net::TcpStream;

use super::{Dial, Direction, Family, ListenerContext};
use crate::drain::Guard;
use crate::net::facts::Facts;
use crate::network::tcp_proxy;
use crate::sys::sock;
use crate::telemetry::stats::Held;
use crate::telemetry::{ConnRecord, Flags, Origin, Outcome, Side};

/// Carries one connection from its first fact to its log line.
pub async fn serve(stream: TcpStream, peer: SocketAddr, ctx: Arc<ListenerContext>, guard: Guard) {
    ctx.stats.downstream_cx_total.inc();
    let _active = Held::new(&ctx.stats, |s| &s.downstream_cx_active);
    let workload = &ctx.workload;
    let log = workload.shared.access_log.clone();
    let origin = Origin {
        connection_id: 0,
        workload: Some(workload.name.clone()),
        direction: ctx.direction,
        listener: ctx.direction.listener().into(),
    };
    let local = stream.local_addr().map_or(ctx.local, canonical);
    let mut record = ConnRecord::new(log, origin, Facts::new(canonical(peer), local));
    let destination = destination(&stream, &ctx);
    record.entry.original_dst = destination.or_else(|| stream.local_addr().ok().map(canonical));
    let outcome = match destination.ok_or(Refusal::Listener).and_then(|to| permitted(to, &ctx)) {
        Ok(to) => tcp_proxy::run(&stream, to, &ctx, &mut record, &guard).await,
        Err(refusal) => refuse(&stream, &ctx, refusal),
    };
    drop(stream);
    record.finish(outcome);
    ctx.stats.downstream_cx_destroy.inc();
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
    let own = &ctx.workload.shared.own;
    let (counter, details) = match refusal {
        Refusal::Listener => (&own.original_destination_is_listener, "original_destination_is_listener"),
        Refusal::Admin => (&own.original_destination_is_admin, "original_destination_is_admin"),
    };
    counter.inc();
    reset_on_close(stream);
    Outcome::new(Side::Internal, Flags::NR, details)
}

/// Where the client was going; `None` where that is the listener itself.
fn destination(stream: &TcpStream, ctx: &ListenerContext) -> Option<SocketAddr> {
    let local = stream.local_addr().unwrap_or(ctx.local);
    let restored = ctx.original_dst.lookup(stream, local).unwrap_or_else(|error| {
        log::warn!("{}: SO_ORIGINAL_DST: {error}", ctx.workload.name);
        None
    });
    // With sk_lookup or TPROXY nothing is rewritten: the local address is the original destination.
    let destination = restored.or_else(|| (local.port() != ctx.local.port()).then_some(local))?;
    Some(canonical(destination))
}

fn permitted(destination: SocketAddr, ctx: &ListenerContext) -> Result<SocketAddr, Refusal> {
    if is_listener(destination, ctx) {
        Err(Refusal::Listener)
    } else if ctx.workload.admin.iter().any(|admin| is_admin(destination, *admin)) {
        Err(Refusal::Admin)
    } else {
        Ok(destination)
    }
}

/// Whether going there would come back here. Another host's 15001 is a destination like any other.
fn is_listener(destination: SocketAddr, ctx: &ListenerContext) -> bool {
    let workload = &ctx.workload;
    if ![workload.out_port, workload.in_port, ctx.local.port()].contains(&destination.port()) {
        return false;
    }
    ctx.direction == Direction::Inbound || is_local(destination.ip(), workload.dial.inbound.as_ref())
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

fn is_admin(destination: SocketAddr, admin: SocketAddr) -> bool {
    let (to, admin_ip) = (destination.ip(), admin.ip().to_canonical());
    // Connecting to the unspecified address reaches loopback.
    destination.port() == admin.port()
        && (to == admin_ip || admin_ip.is_unspecified() || to.is_unspecified() && admin_ip.is_loopback())
}

//! Ports at which nobody listens, and ports for servers that take none from the kernel.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};
use socket2::{Domain, Socket, Type};

/// Below it are ports that examples and workloads name.
const LOWEST: u32 = 20_000;
/// Apart from each other, so that two processes of tests rarely try the same ones.
const STRIDE: u32 = 7;

/// A loopback address whose clients are refused. Its port is taken for as long as the test's process lives: one that
/// was given back would be the kernel's to hand out, and soon some proxy's listener.
pub fn nobody() -> Result<SocketAddr> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    let address = socket.local_addr()?.as_socket().context("no address")?;
    // Never closed, and never listening.
    std::mem::forget(socket);
    Ok(address)
}

/// A loopback address for a server that is told its port. It is none of those that the kernel hands out, so nobody
/// gets it before the server is there; with SO_REUSEPORT somebody could even get it beside the server.
pub fn free() -> Result<SocketAddr> {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let handed_out: u32 = range.split_whitespace().next().context("no range")?.parse()?;
    let room = handed_out.checked_sub(LOWEST).filter(|room| *room > STRIDE);
    let room = room.with_context(|| format!("the kernel hands out ports from {handed_out} on"))?;
    let first = std::process::id().wrapping_mul(STRIDE);
    for _ in 0..room {
        let n = first.wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed)) % room;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, u16::try_from(LOWEST + n)?));
        if !is_taken(address.port())? {
            return Ok(address);
        }
    }
    bail!("no port is free from {LOWEST} on")
}

/// Somebody listens there, or is connected from there. It is not tried by a socket of our own: a process that another
/// test begins in this moment would keep that for a while.
fn is_taken(port: u16) -> Result<bool> {
    let local = format!(":{port:04X}");
    for table in ["tcp", "tcp6"] {
        // Without IPv6 there is no table of it.
        let text = fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
        let mut locals = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1));
        if locals.any(|address| address.ends_with(&local)) {
            return Ok(true);
        }
    }
    Ok(false)
}

//! A client's transport, until it is ready: no filter sees a byte before.

use std::future::poll_fn;
use std::time::Duration;

use tokio::io::Interest;
use tokio::time::sleep_until;

use super::Conn;
use crate::clock;
use crate::net::conn::reset_on_close;
use crate::net::socket::Socket;
use crate::telemetry::{Flags, Outcome, Side};
use crate::transport::{Factory, Failure, Link};

/// Makes the connection's transport and has it shake hands within `limit`, which began when it was accepted.
pub(super) async fn run(
    conn: &mut Conn<'_>,
    factory: &dyn Factory,
    limit: Option<Duration>,
) -> Result<(), Outcome> {
    conn.lease = conn.shared.expiry.as_ref().map(|expiry| Box::new(expiry.lease(factory)));
    let facts = &conn.record.entry.facts;
    let connection_id = conn.record.entry.origin.connection_id;
    let mut transport = factory
        .create(&Link::Downstream { facts, connection_id })
        .map_err(|missing| failed(Failure::new(missing.to_string())))?;
    let deadline = limit.and_then(|limit| conn.accepted.checked_add(limit));
    let (stream, guard) = (conn.stream, conn.guard);
    let ready = tokio::select! {
        biased;
        ready = poll_fn(|cx| transport.poll_ready(cx, Socket::Tcp(stream))) => ready.map_err(failed),
        () = until(deadline) => {
            conn.listener.stats.downstream_cx_transport_socket_connect_timeout.inc();
            Err(Outcome::new(Side::Internal, Flags::NONE, "transport_socket_timeout"))
        }
        // What a transport waits for need not be the socket.
        _ = stream.ready(Interest::ERROR) => Err(failed(Failure::gone())),
        () = guard.cut() => {
            reset_on_close(stream);
            Err(Outcome::new(Side::Internal, Flags::NONE, "drain_timeout"))
        }
    };
    conn.record.entry.facts.tls = transport.tls().cloned();
    conn.transport = Some(transport);
    conn.follow_expiry();
    ready
}

fn failed(failure: Failure) -> Outcome {
    let (side, details) = match failure.remote {
        true => (Side::Downstream, "downstream_closed_in_handshake"),
        false => (Side::Internal, "downstream_transport_failure"),
    };
    let downstream_failure = Some(failure.reason.into_owned()).filter(|reason| !reason.is_empty());
    Outcome { downstream_failure, ..Outcome::new(side, Flags::NONE, details) }
}

async fn until(deadline: Option<clock::Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

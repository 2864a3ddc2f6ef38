//! The connection manager: carries a client's connection through its codec, each of its streams through the filters.
//!
//! [`run`] picks the codec; [`http1`] and [`http2`] bring streams out of it and responses into it. An [`Active`] is one
//! stream while it is served, whatever the protocol: [`inbound`] is what the manager does with its request, [`exchange`]
//! who makes its response, [`outbound`] what the manager does with that, [`finish`] its end, in stats and logs. What may
//! end a stream before, a [`Watch`] knows.

mod account;
mod active;
mod again;
mod alarm;
mod date;
mod exchange;
mod finish;
mod hands;
mod http1;
mod http2;
mod inbound;
pub(crate) mod limits;
mod local_reply;
mod meter;
mod outbound;
mod periodic;
mod prepared;
mod proxy_status;
mod sniff;
#[cfg(test)]
mod tests;
pub(super) mod traced;
mod watch;

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use proxy_config::model::http::options::CommonHttpOptions;
use rand::RngExt as _;

use self::account::{Account, Protocol};
pub(crate) use self::inbound::own_address;
pub(crate) use self::inbound::request_id::fresh as fresh_request_id;
pub(crate) use self::prepared::Prepared;
use self::sniff::Sniffed;
use super::{Body, ConnCx, Hcm, Io, Reset, ResponseHead, Sent};
use crate::clock::{self, Instant};
use crate::drain::Guard;
use crate::network::{self, Conn};
use crate::telemetry::{Flags, Outcome, Side};

/// Who a stream's response goes to, by either protocol.
trait Peer: Send {
    /// A connection has one stream at a time.
    const HTTP1: bool;

    /// While a response is awaited: ready once the client has gone, or wants it no more.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Reset>;

    /// A 1xx.
    fn inform(&mut self, head: &ResponseHead);

    /// `close`: no other stream follows on its connection, where it has one of its own.
    fn respond(
        &mut self,
        head: &ResponseHead,
        body: Body,
        close: bool,
        sent: &mut Sent,
    ) -> impl Future<Output = Result<(), Reset>> + Send;
}

/// What serves a connection has of it.
struct Served<'a> {
    cx: Arc<ConnCx>,
    guard: &'a Guard,
    account: Account,
}

/// Serves a connection to its end. The caller closes its socket.
pub(crate) async fn run(conn: &mut Conn<'_>, hcm: &Arc<Hcm>) -> Outcome {
    conn.follow_expiry();
    let early = match conn.first_bytes().await {
        Ok(early) => early,
        Err(close) => return network::refuse(conn, close).await,
    };
    let cx = Arc::new(ConnCx {
        hcm: hcm.clone(),
        place: conn.place.clone(),
        live: conn.live.clone(),
        listener: conn.listener.clone(),
        connection: conn.record.entry.clone(),
        worker: conn.worker,
    });
    let mut served = Served { account: Account::open(&cx), cx, guard: conn.guard };
    let io = Io::Client { socket: conn.stream.clone(), transport: conn.transport.take() };
    let outcome = serve(&mut served, io, early).await;
    let (received, sent) = served.account.bytes();
    conn.record.entry.bytes.downstream_rx = received;
    conn.record.entry.bytes.downstream_tx = sent;
    if served.account.requests > 0 {
        // Each of them has a line of its own.
        conn.record.told();
    }
    outcome
}

async fn serve(served: &mut Served<'_>, mut io: Io, early: Vec<u8>) -> Outcome {
    match sniff::run(&mut io, early, served).await {
        Ok(Sniffed { protocol, early }) => {
            served.account.speaks(protocol);
            match protocol {
                Protocol::Http1 => http1::serve(served, io, early).await,
                Protocol::Http2 => Box::pin(http2::serve(served, io, early)).await,
            }
        }
        Err(outcome) => {
            served.account.ended(outcome.side, 0);
            outcome
        }
    }
}

/// The end of `max_connection_duration`.
fn deadline(options: &CommonHttpOptions) -> Option<Instant> {
    let jitter = options.max_connection_duration_jitter.unwrap_or(0.0).max(0.0) / 100.0;
    let limit = options.max_connection_duration?.as_secs_f64();
    let factor = 1.0 + rand::rng().random_range(0.0..=jitter);
    // What is longer than time itself is no limit.
    clock::now().checked_add(Duration::try_from_secs_f64(limit * factor).ok()?)
}

fn closed(side: Side, details: &'static str) -> Outcome {
    Outcome::new(side, Flags::NONE, details)
}

//! The connection manager: carries a client's connection through its codec, each of its streams through the filters.
//!
//! [`run`] picks the codec; [`http1`] and [`http2`] bring streams out of it and responses into it; [`exchange`] is what
//! happens to one stream in between; [`finish`] is its end, in stats and logs.

mod exchange;
mod finish;
mod http1;
mod inbound;
mod local_reply;
mod outbound;

use std::sync::Arc;

use super::{ConnCx, Hcm, Io};
use crate::network::Conn;
use crate::telemetry::{Flags, Outcome, Side};

/// Serves a connection to its end. The caller closes its socket.
pub(crate) async fn run(conn: &mut Conn<'_>, hcm: &Arc<Hcm>) -> Outcome {
    conn.follow_expiry();
    hcm.stats.downstream_cx_total.inc();
    let cx = Arc::new(ConnCx {
        hcm: hcm.clone(),
        place: conn.place.clone(),
        live: conn.live.clone(),
        listener: conn.listener.clone(),
        connection: conn.record.entry.clone(),
        worker: conn.worker,
    });
    let io = Io::Client { socket: conn.stream.clone(), transport: conn.transport.take() };
    http1::serve(&cx, io, conn.guard).await;
    Outcome::new(Side::Downstream, Flags::NONE, "downstream_closed")
}

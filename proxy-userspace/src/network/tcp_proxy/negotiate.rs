//! Between connecting and relaying: a protocol's beginning, where the chain has a filter that speaks it.

use std::borrow::Cow;

use super::TcpProxy;
use super::upstream::Upstream;
use crate::net::conn::reset_on_close;
use crate::net::wire::Wire;
use crate::network::starttls::{Driver, Leftover, Stop};
use crate::network::{self, Conn, Verdict};
use crate::telemetry::{Bytes, Flags, Outcome, Side};
use crate::transport::CloseEvent;

/// Has a driver speak the beginning of the connection with both sides. Gatekeepers that judge by data are asked first,
/// as in Envoy: they do not know yet who a client is that only now turns to TLS.
pub(super) async fn negotiate(
    conn: &mut Conn<'_>,
    proxy: &TcpProxy,
    driver: &dyn Driver,
    up: &mut Upstream,
) -> Result<Leftover, Outcome> {
    let guard = conn.guard;
    // A server may be the first to speak, so its client's first byte is not waited for: a driver passes it on.
    if let Some(gates) = conn.gates.take()
        && let Verdict::Close(close) = gates.on_first_byte(&mut conn.record.entry.facts)
    {
        up.closed(CloseEvent::Local, None);
        return Err(network::refuse(conn, close).await);
    }
    let mut bytes = Bytes::default();
    let (mut down_wire, _) = conn.wire();
    let (mut up_wire, cluster) = (up.inner.connected.wire(), &up.cluster);
    let negotiated = tokio::select! {
        negotiated = driver.negotiate(&mut down_wire, &mut up_wire, &mut bytes) => Some(negotiated),
        () = guard.cut() => None,
    };
    let secured = |wire: &Wire<'_>| wire.transport.as_ref().and_then(|transport| transport.tls()).cloned();
    let (down_tls, up_tls) = (secured(&down_wire), secured(&up_wire));
    let (stats, cluster_stats) = (&proxy.stats, &cluster.stats);
    stats.downstream_cx_rx_bytes_total.add(bytes.downstream_rx);
    stats.downstream_cx_tx_bytes_total.add(bytes.downstream_tx);
    cluster_stats.upstream_cx_rx_bytes_total.add(bytes.upstream_rx);
    cluster_stats.upstream_cx_tx_bytes_total.add(bytes.upstream_tx);
    let entry = &mut conn.record.entry;
    entry.bytes = bytes;
    entry.facts.tls = down_tls.or(entry.facts.tls.take());
    entry.upstream.tls = up_tls.or(entry.upstream.tls.take());
    let (end, outcome) = match negotiated {
        Some(Ok(leftover)) => return Ok(leftover),
        Some(Err(Stop::Close(close))) => {
            let outcome = network::refuse(conn, close).await;
            (CloseEvent::Local, outcome)
        }
        Some(Err(Stop::Gone(side))) => {
            let outcome = Outcome::new(side, Flags::NONE, format!("{}_closed", side.name()));
            let remote = side == Side::Upstream;
            (if remote { CloseEvent::Remote } else { CloseEvent::Local }, outcome)
        }
        Some(Err(Stop::Insecure { side, reason })) => (CloseEvent::Local, insecure(side, reason)),
        None => {
            reset_on_close(conn.stream);
            (CloseEvent::Local, Outcome::new(Side::Internal, Flags::NONE, "drain_timeout"))
        }
    };
    up.closed(end, None);
    Err(outcome)
}

/// A side that could not turn to TLS.
fn insecure(side: Side, reason: Cow<'static, str>) -> Outcome {
    let reason = Some(reason.into_owned()).filter(|reason| !reason.is_empty());
    match side {
        Side::Upstream => Outcome {
            upstream_failure: reason,
            ..Outcome::new(side, Flags::UF, "upstream_transport_failure")
        },
        Side::Downstream | Side::Internal => Outcome {
            downstream_failure: reason,
            ..Outcome::new(side, Flags::NONE, "downstream_transport_failure")
        },
    }
}

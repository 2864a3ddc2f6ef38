//! The TCP proxy: picks the cluster and the endpoint, connects, relays.

mod negotiate;
mod tunnel;
mod upstream;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use proxy_config::model::network_filter as model;
use rand::RngExt as _;

use self::negotiate::negotiate;
pub use self::tunnel::Tunnel;
use self::upstream::{Upstream, close_event, connect, while_wanted};
use super::Conn;
use super::starttls::{Driver, Leftover};
use crate::clock::Instant;
use crate::cluster::connect::errno_text;
use crate::http::BuildError;
use crate::net::conn::reset_on_close;
use crate::net::copy::{self, End, Terms};
use crate::net::socket::Socket;
use crate::net::timers::Limits;
use crate::net::wire::Wire;
use crate::telemetry::access_log::Logger;
use crate::telemetry::stats::{ClusterStats, Stats, TcpStats};
use crate::telemetry::{Flags, LogType, Outcome, Side};

/// The filter, as it runs.
pub struct TcpProxy {
    pub model: model::TcpProxy,
    pub stats: Arc<TcpStats>,
    pub access_log: Arc<[Logger]>,
    /// Sum of the clusters' weights.
    weights: u64,
    /// The bytes go through HTTP.
    tunnel: Option<Box<Tunnel>>,
}

impl TcpProxy {
    pub fn new(model: model::TcpProxy, access_log: Arc<[Logger]>, stats: &Stats) -> Result<Self, BuildError> {
        let tunnel = model.tunneling.as_ref().map(|tunnel| Tunnel::new(tunnel).map(Box::new)).transpose()?;
        let weights = model.clusters.iter().map(|c| u64::from(c.weight)).sum();
        Ok(Self { stats: TcpStats::of(stats, &model.stat_prefix), model, access_log, weights, tunnel })
    }

    /// The cluster of one connection, by weight.
    fn pick(&self) -> Option<&model::WeightedCluster> {
        if let [only] = self.model.clusters.as_slice() {
            return Some(only);
        }
        let mut at = if self.weights == 0 { 0 } else { rand::rng().random_range(0..self.weights) };
        self.model.clusters.iter().find(|cluster| match at.checked_sub(cluster.weight.into()) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        })
    }

    fn limits(&self, deadline: Option<Instant>, report_every: Option<Duration>, buffer: usize) -> Limits {
        Limits {
            idle: self.model.idle_timeout,
            downstream_idle: self.model.downstream_idle_timeout,
            upstream_idle: self.model.upstream_idle_timeout,
            deadline,
            flush_every: self.model.access_log_flush_interval,
            report_every,
            buffer,
        }
    }

    /// When the connection has lived as long as it may.
    fn deadline(&self, accepted: Instant) -> Option<Instant> {
        let limit = self.model.max_downstream_connection_duration?;
        let jitter = self.model.max_downstream_connection_duration_jitter.unwrap_or(0.0) / 100.0;
        let factor = 1.0 + rand::rng().random_range(0.0..=jitter.max(0.0));
        // What is longer than time itself is no limit.
        let limit = Duration::try_from_secs_f64(limit.as_secs_f64() * factor).ok()?;
        accepted.checked_add(limit)
    }
}

/// The filter has the connection: in its accounts and its log, also where that never becomes ready.
pub(super) fn enter(conn: &mut Conn<'_>, proxy: &TcpProxy) {
    proxy.stats.downstream_cx_total.inc();
    if !proxy.access_log.is_empty() {
        conn.record.add(proxy.access_log.clone());
    }
    if proxy.model.flush_access_log_on_start {
        conn.record.interim(LogType::TcpConnectionStart);
    }
}

/// Proxies one connection to its end. The caller closes the downstream socket: by reset, if it was told so here.
pub(crate) async fn run(conn: &mut Conn<'_>, proxy: &TcpProxy, driver: Option<&dyn Driver>) -> Outcome {
    let deadline = proxy.deadline(*conn.accepted);
    if let Some(tunnel) = &proxy.tunnel {
        return match driver {
            Some(_) => tunnel::unserved(),
            None => Box::pin(tunnel::run(conn, proxy, tunnel, deadline)).await,
        };
    }
    let mut upstream = match Box::pin(while_wanted(connect(conn, proxy), conn, deadline)).await {
        Ok(upstream) => upstream,
        Err(failure) => {
            failure.tell(conn);
            return failure.why.outcome(proxy);
        }
    };
    upstream.tell(conn);
    if proxy.model.flush_access_log_on_connected {
        conn.record.interim(LogType::TcpUpstreamConnected);
    }
    let leftover = match driver {
        Some(driver) => match Box::pin(negotiate(conn, proxy, driver, &mut upstream)).await {
            Ok(leftover) => Some(Box::new(leftover)),
            Err(outcome) => return outcome,
        },
        None => None,
    };
    carry(conn, proxy, &mut upstream, leftover, deadline).await
}

/// What is buffered is held by the kernel or for a moment only; Envoy's gauges are there, at nought, once a
/// connection was.
fn buffers_used(cluster: &ClusterStats, tcp: &TcpStats) {
    for gauge in [&cluster.upstream_cx_rx_bytes_buffered, &tcp.downstream_cx_rx_bytes_buffered] {
        gauge.set(0);
    }
}

async fn carry(
    conn: &mut Conn<'_>,
    proxy: &TcpProxy,
    up: &mut Upstream,
    leftover: Option<Box<Leftover>>,
    deadline: Option<Instant>,
) -> Outcome {
    // STARTTLS may have turned to TLS since.
    conn.follow_expiry();
    up.follow_expiry(conn);
    let cluster = &up.cluster;
    let model = &cluster.model;
    let buffers = [conn.listener.buffer_limit, model.per_connection_buffer_limit_bytes];
    let limits = proxy.limits(deadline, conn.record.report_every(), least(buffers));
    let closes = model.close_connections_on_host_health_failure
        || model.common_lb.close_connections_on_host_set_change;
    let terms = Terms {
        cluster: &cluster.stats,
        tcp: &proxy.stats,
        pipes: &conn.shared.pipes,
        limits: &limits,
        guard: conn.guard,
        gates: conn.gates,
        host: closes.then_some(up.host.as_ref()),
    };
    buffers_used(&cluster.stats, &proxy.stats);
    let down = Wire::new(Socket::Tcp(conn.stream), conn.transport.as_deref_mut());
    let end = copy::relay(down, up.inner.connected.wire(), leftover, conn.record, terms).await;
    // No one may take a broken stream for a complete one. The socket that failed is dead already.
    let cut = matches!(end, End::Cut) && conn.guard.resets();
    if cut || matches!(end, End::Failed { side: Side::Upstream, .. } | End::HostFailed) {
        reset_on_close(conn.stream);
    }
    if cut || matches!(end, End::Failed { side: Side::Downstream, .. }) {
        up.inner.connected.io.socket().reset_on_close();
    }
    up.closed(close_event(&end), Some(&end));
    if matches!(end, End::Closed(Side::Upstream)) {
        // The client went after the server. Envoy counts it, unless it has both ends in one turn of its loop.
        proxy.stats.upstream_flush_total.inc();
    }
    match end {
        End::Refused(close) => Box::pin(super::refuse(conn, close)).await,
        end @ (End::Closed(_)
        | End::Failed { .. }
        | End::Idle(_)
        | End::MaxDuration
        | End::HostFailed
        | End::Cut) => outcome(&end, proxy),
    }
}

/// Of the downstream connection's limit and the upstream's: all bytes pass through both. 0 is no limit.
fn least(limits: [u32; 2]) -> usize {
    limits.into_iter().filter(|limit| *limit > 0).min().map_or(usize::MAX, |limit| limit as usize)
}

fn max_duration(proxy: &TcpProxy) -> Outcome {
    proxy.stats.max_downstream_connection_duration.inc();
    Outcome::new(Side::Internal, Flags::DT, "max_connection_duration")
}

fn outcome(end: &End, proxy: &TcpProxy) -> Outcome {
    match end {
        End::Closed(side) => Outcome::new(*side, Flags::NONE, format!("{}_closed", side.name())),
        End::Failed { side, error } if copy::is_reset(error) => {
            let flags = if *side == Side::Upstream { Flags::UR } else { Flags::NONE };
            Outcome::new(*side, flags, format!("{}_reset", side.name()))
        }
        End::Failed { side, error } => {
            let details = format!("{}_error: {}", side.name(), errno_text(error));
            // A transport's own failure: a peer that judges us late, in TLS 1.3, or a broken record.
            let broken = (error.kind() == io::ErrorKind::InvalidData).then(|| error.to_string());
            let (upstream_failure, downstream_failure) = match side {
                Side::Upstream => (broken, None),
                Side::Downstream | Side::Internal => (None, broken),
            };
            Outcome { upstream_failure, downstream_failure, ..Outcome::new(*side, Flags::NONE, details) }
        }
        End::Idle(side) => {
            proxy.stats.idle_timeout.inc();
            let details = match side {
                None => "idle_timeout",
                Some(Side::Downstream) => "downstream_idle_timeout",
                Some(Side::Upstream | Side::Internal) => "upstream_idle_timeout",
            };
            Outcome::new(Side::Internal, Flags::NONE, details)
        }
        End::MaxDuration => max_duration(proxy),
        End::Refused(close) => Outcome::new(Side::Internal, close.flags, close.details.clone()),
        End::HostFailed => Outcome::new(Side::Internal, Flags::NONE, "upstream_host_failed"),
        End::Cut => Outcome::new(Side::Internal, Flags::NONE, "drain_timeout"),
    }
}

#[cfg(test)]
mod tests {
    use super::least;

    #[test]
    fn the_smaller_buffer_limit_holds_and_0_is_none() {
        for (limits, buffer) in [([1, 2], 1), ([2, 1], 1), ([0, 2], 2), ([2, 0], 2), ([0, 0], usize::MAX)] {
            assert_eq!(least(limits), buffer, "{limits:?}");
        }
    }
}

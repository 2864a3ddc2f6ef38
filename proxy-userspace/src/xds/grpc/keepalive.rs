//! Whether the server is still there: PINGs as the `connection_keepalive` of its cluster says.

use std::time::Duration;

use hyper::client::conn::http2::Builder;
use hyper_util::rt::TokioTimer;
use proxy_config::model;
use proxy_config::model::http::options::{Keepalive, UpstreamProtocol};

use super::Executor;
use crate::cluster::Random;

/// Has the connections of a cluster ask. One that does not answer in time ends, and its stream with it.
pub(super) fn set(builder: &mut Builder<Executor>, cluster: &model::Cluster, random: &dyn Random) {
    let Some((keepalive, interval)) =
        of(cluster).and_then(|keepalive| Some((keepalive, keepalive.interval?)))
    else {
        return;
    };
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(interval + jitter(interval, keepalive.interval_jitter, random))
        .keep_alive_timeout(keepalive.timeout)
        .keep_alive_while_idle(true);
}

/// xDS is HTTP/2, whatever else the cluster may speak.
fn of(cluster: &model::Cluster) -> Option<Keepalive> {
    match &cluster.http.as_ref()?.protocol {
        UpstreamProtocol::Http1(_) => None,
        UpstreamProtocol::Http2(http2) | UpstreamProtocol::Auto { http2, .. } => http2.connection_keepalive,
        UpstreamProtocol::UseDownstream { http2, .. } => http2.as_ref()?.connection_keepalive,
    }
}

/// Chosen once for each connection.
fn jitter(interval: Duration, percent: f64, random: &dyn Random) -> Duration {
    let part = (random.next() % 1000) as f64 / 1000.0 * percent.clamp(0.0, 100.0) / 100.0;
    interval.mul_f64(part)
}

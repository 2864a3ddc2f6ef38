//! The TCP proxy: picks the cluster and the endpoint, connects, relays.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use proxy_config::model::cluster::Discovery;
use proxy_config::model::network_filter::{self as model, HashPolicy};
use rand::RngExt as _;
use tokio::io::Interest;
use tokio::time::sleep_until;
use xxhash_rust::xxh64::xxh64;

use super::starttls::{Driver, Leftover, Stop};
use super::{Conn, Verdict};
use crate::clock::{self, Instant};
use crate::cluster::connect::errno_text;
use crate::cluster::{
    self, Client, Cluster, ConnectError, Host, Io, NoHost, Source, SourceAddress, Want, address_text,
};
use crate::net::conn::{canonical, reset_on_close};
use crate::net::copy::{self, End, Terms};
use crate::net::socket::Socket;
use crate::net::timers::Limits;
use crate::net::wire::Wire;
use crate::secret::Lease;
use crate::telemetry::access_log::Logger;
use crate::telemetry::stats::{ClusterStats, Stats, TcpStats};
use crate::telemetry::{Bytes, Flags, LogType, Outcome, Side};
use crate::transport::CloseEvent;

/// The filter, as it runs.
pub struct TcpProxy {
    pub model: model::TcpProxy,
    pub stats: Arc<TcpStats>,
    pub access_log: Arc<[Logger]>,
    /// Sum of the clusters' weights.
    weights: u64,
}

impl TcpProxy {
    pub fn new(model: model::TcpProxy, access_log: Arc<[Logger]>, stats: &Stats) -> Self {
        let weights = model.clusters.iter().map(|c| u64::from(c.weight)).sum();
        Self { stats: TcpStats::of(stats, &model.stat_prefix), model, access_log, weights }
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

    fn limits(&self, deadline: Option<Instant>, buffer: usize) -> Limits {
        Limits {
            idle: self.model.idle_timeout,
            downstream_idle: self.model.downstream_idle_timeout,
            upstream_idle: self.model.upstream_idle_timeout,
            deadline,
            flush_every: self.model.access_log_flush_interval,
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
    let deadline = proxy.deadline(conn.accepted);
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

/// Has a driver speak the beginning of the connection with both sides. What it says is the proxy's own or of no
/// consequence: gatekeepers that judge by data are asked after it, when TLS has said who the client is.
async fn negotiate(
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
        return Err(super::refuse(conn, close).await);
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
            let outcome = super::refuse(conn, close).await;
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
    let buffers =
        [conn.listener.model.per_connection_buffer_limit_bytes, model.per_connection_buffer_limit_bytes];
    let limits = proxy.limits(deadline, least(buffers));
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
    if matches!(end, End::Failed { side: Side::Upstream, .. } | End::Cut | End::HostFailed) {
        reset_on_close(conn.stream);
    }
    if matches!(end, End::Failed { side: Side::Downstream, .. } | End::Cut) {
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

/// An upstream connection and what is held for it.
struct Upstream {
    cluster: Arc<Cluster>,
    host: Arc<Host>,
    inner: cluster::Upstream,
    lease: Option<Box<Lease>>,
    attempts: u32,
    connection_id: u64,
    since: Instant,
    took: Duration,
}

impl Upstream {
    fn follow_expiry(&mut self, conn: &Conn<'_>) {
        if let (Some(lease), Some(expiry)) = (&mut self.lease, &conn.shared.expiry) {
            lease.follow(expiry, conn.record.entry.upstream.tls.as_deref(), conn.guard);
        }
    }

    fn local(&self) -> Option<std::net::SocketAddr> {
        match &self.inner.connected.io {
            Io::Tcp(stream) => stream.local_addr().ok().map(canonical),
            Io::Unix(_) => None,
        }
    }

    fn tell(&self, conn: &mut Conn<'_>) {
        let upstream = &mut conn.record.entry.upstream;
        upstream.cluster = Some(self.cluster.model.name.clone());
        upstream.host = self.host.socket_address();
        upstream.hostname = Some(self.host.hostname.clone()).filter(|name| !name.is_empty());
        upstream.local = self.local();
        upstream.attempts = self.attempts;
        upstream.connected_after = Some(self.took);
        upstream.connect_started = Some(self.since.saturating_duration_since(conn.accepted));
        upstream.connection_id = self.connection_id;
        upstream.cluster_model = Some(self.cluster.model.clone());
        upstream.tls = self.inner.connected.transport.as_ref().and_then(|t| t.tls()).cloned();
        upstream.host_metadata = Some(self.host.metadata()).filter(|metadata| !metadata.is_empty());
    }

    /// `end`: of the relay, where it came so far.
    fn closed(&mut self, by: CloseEvent, end: Option<&End>) {
        self.inner.connected.closed(by);
        let stats = &self.cluster.stats;
        stats.upstream_cx_destroy.inc();
        // A TCP connection is one request from end to end.
        stats.upstream_cx_destroy_with_active_rq.inc();
        if by == CloseEvent::Remote {
            stats.upstream_cx_destroy_remote.inc();
            stats.upstream_cx_destroy_remote_with_active_rq.inc();
        } else {
            stats.upstream_cx_destroy_local.inc();
            stats.upstream_cx_destroy_local_with_active_rq.inc();
        }
        if matches!(end, Some(End::Idle(_))) {
            stats.upstream_cx_idle_timeout.inc();
        }
        let lived = (clock::now() - self.since).as_millis();
        stats.upstream_cx_length_ms.record(u64::try_from(lived).unwrap_or(u64::MAX));
    }
}

/// Who said the last word to the upstream: after the client's FIN the server's ends it, and the other way round.
fn close_event(end: &End) -> CloseEvent {
    let remote = match end {
        End::Failed { side, .. } => *side == Side::Upstream,
        End::Closed(first) => *first == Side::Downstream,
        End::Idle(_) | End::Refused(_) | End::MaxDuration | End::HostFailed | End::Cut => false,
    };
    if remote { CloseEvent::Remote } else { CloseEvent::Local }
}

/// Why there is no upstream connection, and how far it came.
struct Failure {
    cluster: Option<Arc<Cluster>>,
    host: Option<std::net::SocketAddr>,
    attempts: u32,
    why: Why,
}

impl Failure {
    /// Envoy closes, so that a client that has said nothing sees an end. To a captured application without a
    /// configuration nothing may look like an answer: it sees a reset, as it would without a proxy.
    fn tell(&self, conn: &mut Conn<'_>) {
        let upstream = &mut conn.record.entry.upstream;
        // A choice that found nobody is no attempt.
        upstream.attempts = self.attempts - u32::from(matches!(self.why, Why::NoHost(_)));
        upstream.host = self.host;
        upstream.cluster = self.cluster.as_ref().map(|cluster| cluster.model.name.clone());
        upstream.cluster_model = self.cluster.as_ref().map(|cluster| cluster.model.clone());
        if conn.listener.resets {
            reset_on_close(conn.stream);
        }
    }
}

enum Why {
    NoCluster,
    NoHost(NoHost),
    Connect(ConnectError),
    DownstreamReset,
    MaxDuration,
    Drained,
}

impl Why {
    fn outcome(&self, proxy: &TcpProxy) -> Outcome {
        let (side, flags, details): (_, _, Cow<'static, str>) = match self {
            Self::NoCluster => {
                proxy.stats.downstream_cx_no_route.inc();
                (Side::Internal, Flags::NC, "cluster_not_found".into())
            }
            Self::NoHost(why) => (Side::Upstream, Flags::UH, no_host(*why).into()),
            Self::Connect(ConnectError::Overflow(_)) => {
                (Side::Upstream, Flags::UO, "upstream_overflow".into())
            }
            Self::Connect(error) => (Side::Upstream, Flags::UF | Flags::URX, details(error)),
            Self::DownstreamReset => (Side::Downstream, Flags::NONE, "downstream_reset".into()),
            Self::MaxDuration => return max_duration(proxy),
            Self::Drained => (Side::Internal, Flags::NONE, "drain_timeout".into()),
        };
        let upstream_failure = match self {
            Self::Connect(ConnectError::Overflow(_)) => None,
            Self::Connect(error) => Some(error.to_string()),
            Self::NoCluster | Self::NoHost(_) | Self::DownstreamReset | Self::MaxDuration | Self::Drained => {
                None
            }
        };
        Outcome { upstream_failure, ..Outcome::new(side, flags, details) }
    }
}

/// Gives up connecting when the client resets, or when the connection's or a drain's time is over. A client that
/// only sends FIN still waits for its answer.
async fn while_wanted(
    connect: impl Future<Output = Result<Box<Upstream>, Failure>>,
    conn: &Conn<'_>,
    deadline: Option<Instant>,
) -> Result<Box<Upstream>, Failure> {
    let gone = |why| Err(Failure { cluster: None, host: None, attempts: 0, why });
    let late = async {
        match deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        upstream = connect => upstream,
        _ = conn.stream.ready(Interest::ERROR) => gone(Why::DownstreamReset),
        () = late => gone(Why::MaxDuration),
        () = conn.guard.cut() => gone(Why::Drained),
    }
}

/// Chooses and connects, as often as the filter allows.
async fn connect(conn: &Conn<'_>, proxy: &TcpProxy) -> Result<Box<Upstream>, Failure> {
    let mut failure = Failure { cluster: None, host: None, attempts: 0, why: Why::NoCluster };
    let Some(picked) = proxy.pick() else { return Err(failure) };
    let name = conn.cluster.as_ref().unwrap_or(&picked.name);
    let Some(cluster) = conn.snapshot.cluster(name) else { return Err(failure) };
    failure.cluster = Some(cluster.clone());
    let want = want(conn, proxy, picked, cluster);
    let since = clock::now();
    for attempt in 1..=proxy.model.max_connect_attempts.max(1) {
        failure.attempts = attempt;
        match connect_once(conn, cluster, &want, (since, attempt), &mut failure.host).await {
            Ok(upstream) => return Ok(upstream),
            // Trying again helps against a failing endpoint, not against none or too many.
            Err(why @ Why::Connect(ConnectError::Overflow(_))) => return Err(Failure { why, ..failure }),
            Err(why @ Why::Connect(_)) => failure.why = why,
            Err(why) => return Err(Failure { why, ..failure }),
        }
        if attempt < proxy.model.max_connect_attempts {
            back_off(proxy, attempt).await;
        }
    }
    cluster.stats.upstream_cx_connect_attempts_exceeded.inc();
    Err(failure)
}

async fn connect_once(
    conn: &Conn<'_>,
    cluster: &Arc<Cluster>,
    want: &Want<'_>,
    (since, attempts): (Instant, u32),
    tried: &mut Option<std::net::SocketAddr>,
) -> Result<Box<Upstream>, Why> {
    let host = cluster.choose(want).map_err(Why::NoHost)?;
    *tried = host.socket_address();
    // A configuration may route to its own admin; a client's destination may not lead there.
    let chosen_by_client = matches!(cluster.model.discovery, Discovery::OriginalDst(_));
    if chosen_by_client && tried.is_some_and(|to| conn.forbids(to)) {
        conn.shared.own.original_destination_is_admin.inc();
        return Err(Why::NoHost(NoHost::NoHealthy));
    }
    let start = clock::now();
    let connection_id = conn.shared.next_connection();
    let source = source(conn);
    let client = Client { source: &source, facts: Some(&conn.record.entry.facts), connection_id };
    let (expiry, factory) = (conn.shared.expiry.as_ref(), cluster.transport(&host));
    let lease = expiry.zip(factory).map(|(expiry, factory)| Box::new(expiry.lease(factory.as_ref())));
    match cluster.connect(&host, conn.dial(), &client).await {
        Ok(inner) => {
            let (cluster, took) = (cluster.clone(), clock::now() - since);
            Ok(Box::new(Upstream {
                cluster,
                host,
                inner,
                lease,
                attempts,
                connection_id,
                since: start,
                took,
            }))
        }
        Err(error) => {
            log::debug!("{}: {}: {error}", cluster.model.name, address_text(&host.address()));
            Err(Why::Connect(error))
        }
    }
}

fn want<'a>(
    conn: &'a Conn<'_>,
    proxy: &TcpProxy,
    picked: &'a model::WeightedCluster,
    cluster: &Cluster,
) -> Want<'a> {
    let facts = &conn.record.entry.facts;
    let hash = proxy.model.hash_policy.map(|HashPolicy::SourceIp| {
        // Envoy hashes the address as text.
        xxh64(facts.remote.ip().to_string().as_bytes(), 0)
    });
    let original = matches!(cluster.model.discovery, Discovery::OriginalDst(_));
    Want {
        hash,
        metadata_match: picked.metadata_match.of("envoy.lb"),
        original_dst: (original && facts.local_restored).then_some(facts.local),
        ..Want::default()
    }
}

/// original_src: the client's own address, which needs the policy routing that its mark is for.
fn source(conn: &Conn<'_>) -> Source {
    let facts = &conn.record.entry.facts;
    let Some(original) = facts.extra.as_ref().and_then(|extra| extra.original_src) else {
        return Source::Cluster;
    };
    let mut address = facts.remote;
    if !original.bind_port {
        address.set_port(0);
    }
    let mark = Some(original.mark).filter(|mark| *mark != 0);
    Source::Address(SourceAddress { address, freebind: false, transparent: true, mark })
}

fn details(error: &ConnectError) -> Cow<'static, str> {
    match error {
        ConnectError::Timeout => "upstream_connect_timeout".into(),
        ConnectError::Immediate { step, source } => {
            format!("upstream_{step}_failed: {}", errno_text(source)).into()
        }
        ConnectError::Delayed { source } if source.kind() == io::ErrorKind::ConnectionRefused => {
            "upstream_connect_refused".into()
        }
        ConnectError::Delayed { source } => format!("upstream_connect_failed: {}", errno_text(source)).into(),
        ConnectError::Transport(_) => "upstream_transport_failure".into(),
        ConnectError::Overflow(_) => "upstream_overflow".into(),
    }
}

async fn back_off(proxy: &TcpProxy, attempt: u32) {
    let Some(backoff) = proxy.model.backoff else { return };
    // Envoy's jittered exponential: anything up to base * (2^n - 1), within the maximum.
    let base = backoff.base.saturating_mul(2_u32.saturating_pow(attempt).saturating_sub(1)).min(backoff.max);
    let part = rand::rng().random_range(0.0..1.0);
    tokio::time::sleep(base.mul_f64(part)).await;
}

fn no_host(why: NoHost) -> &'static str {
    match why {
        NoHost::NoHealthy => "no_healthy_upstream",
        NoHost::NoSubset => "no_healthy_upstream_in_subset",
        NoHost::NoOriginalDst => "no_original_destination",
    }
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

//! An upstream connection: chosen, made, told of and closed, or the reason why there is none.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use proxy_config::model::cluster::Discovery;
use proxy_config::model::network_filter::{self as model, HashPolicy};
use rand::RngExt as _;
use tokio::io::Interest;
use tokio::time::sleep_until;
use xxhash_rust::xxh64::xxh64;

use super::{TcpProxy, max_duration};
use crate::clock::{self, Instant};
use crate::cluster::connect::errno_text;
use crate::cluster::{
    self, Client, Cluster, ConnectError, Host, Io, NoHost, Source, SourceAddress, Want, address_text,
};
use crate::http::pool::Refused;
use crate::http::{Reset, ResetReason};
use crate::net::conn::{canonical, reset_on_close};
use crate::net::copy::End;
use crate::network::Conn;
use crate::secret::Lease;
use crate::telemetry::{Flags, Outcome, Side};
use crate::transport::CloseEvent;

/// An upstream connection and what is held for it.
pub(super) struct Upstream {
    pub(super) cluster: Arc<Cluster>,
    pub(super) host: Arc<Host>,
    pub(super) inner: cluster::Upstream,
    pub(super) lease: Option<Box<Lease>>,
    pub(super) attempts: u32,
    pub(super) connection_id: u64,
    pub(super) since: Instant,
    pub(super) took: Duration,
}

impl Upstream {
    pub(super) fn follow_expiry(&mut self, conn: &Conn<'_>) {
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

    pub(super) fn tell(&self, conn: &mut Conn<'_>) {
        let upstream = &mut conn.record.entry.upstream;
        upstream.cluster = Some(self.cluster.model.name.clone());
        upstream.host = self.host.socket_address();
        upstream.hostname = Some(self.host.hostname.clone()).filter(|name| !name.is_empty());
        upstream.local = self.local();
        upstream.attempts = self.attempts;
        upstream.connected_after = Some(self.took);
        upstream.connect_started = Some(self.since.saturating_duration_since(*conn.accepted));
        upstream.connection_id = self.connection_id;
        upstream.cluster_model = Some(self.cluster.model.clone());
        upstream.tls = self.inner.connected.transport.as_ref().and_then(|t| t.tls()).cloned();
        let peer = self.inner.connected.peer.clone();
        upstream.host_metadata = Some(self.host.metadata()).filter(|metadata| !metadata.is_empty());
        conn.record.entry.peers.upstream = peer;
    }

    /// `end`: of the relay, where it came so far.
    pub(super) fn closed(&mut self, by: CloseEvent, end: Option<&End>) {
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
pub(super) fn close_event(end: &End) -> CloseEvent {
    let remote = match end {
        End::Failed { side, .. } => *side == Side::Upstream,
        End::Closed(first) => *first == Side::Downstream,
        End::Idle(_) | End::Refused(_) | End::MaxDuration | End::HostFailed | End::Cut => false,
    };
    if remote { CloseEvent::Remote } else { CloseEvent::Local }
}

/// Why there is no upstream connection, and how far it came.
pub(super) struct Failure {
    pub(super) cluster: Option<Arc<Cluster>>,
    pub(super) host: Option<std::net::SocketAddr>,
    pub(super) attempts: u32,
    pub(super) why: Why,
}

impl Failure {
    /// Envoy closes, so that a client that has said nothing sees an end. To a captured application without a
    /// configuration nothing may look like an answer: it sees a reset, as it would without a proxy.
    pub(super) fn tell(&self, conn: &mut Conn<'_>) {
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

pub(super) enum Why {
    NoCluster,
    NoHost(NoHost),
    Connect(ConnectError),
    /// Of a tunnel: no connection of HTTP.
    Pool(Refused),
    /// Of a tunnel: the exchange broke before there was a response.
    Broken(Reset),
    /// Of a tunnel: no agreement.
    Answer(StatusCode),
    DownstreamReset,
    MaxDuration,
    Drained,
}

impl Why {
    pub(super) fn outcome(&self, proxy: &TcpProxy) -> Outcome {
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
            // Envoy's pools of HTTP do not say why.
            Self::Pool(Refused::Overflow(_)) => (Side::Upstream, Flags::URX, "upstream_overflow".into()),
            Self::Pool(Refused::Failed { reason: ResetReason::ConnectionTimeout, .. }) => {
                (Side::Upstream, Flags::UF | Flags::URX, "upstream_connect_timeout".into())
            }
            Self::Pool(Refused::Failed { .. } | Refused::Gone) => {
                (Side::Upstream, Flags::UF | Flags::URX, "upstream_connect_failed".into())
            }
            Self::Broken(reset) if reset.side == Side::Downstream => {
                (Side::Downstream, Flags::NONE, "downstream_reset".into())
            }
            Self::Broken(_) => (Side::Upstream, Flags::UF | Flags::URX, "upstream_tunnel_broken".into()),
            Self::Answer(_) => (Side::Upstream, Flags::UF | Flags::URX, "upstream_tunnel_refused".into()),
            Self::DownstreamReset => (Side::Downstream, Flags::NONE, "downstream_reset".into()),
            Self::MaxDuration => return max_duration(proxy),
            Self::Drained => (Side::Internal, Flags::NONE, "drain_timeout".into()),
        };
        let upstream_failure = match self {
            Self::Connect(ConnectError::Overflow(_)) => None,
            Self::Connect(error) => Some(error.to_string()),
            Self::Pool(Refused::Failed { details, .. }) if !details.is_empty() => Some(details.to_string()),
            // In Envoy's words.
            Self::Answer(status) => Some(format!("tunnel_response:{}", status.as_u16())),
            Self::Pool(_)
            | Self::Broken(_)
            | Self::NoCluster
            | Self::NoHost(_)
            | Self::DownstreamReset
            | Self::MaxDuration
            | Self::Drained => None,
        };
        Outcome { upstream_failure, ..Outcome::new(side, flags, details) }
    }
}

/// Gives up connecting when the client resets, or when the connection's or a drain's time is over. A client that
/// only sends FIN still waits for its answer.
pub(super) async fn while_wanted<T>(
    connect: impl Future<Output = Result<Box<T>, Failure>>,
    conn: &Conn<'_>,
    deadline: Option<Instant>,
) -> Result<Box<T>, Failure> {
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
pub(super) async fn connect(conn: &Conn<'_>, proxy: &TcpProxy) -> Result<Box<Upstream>, Failure> {
    let mut failure = Failure { cluster: None, host: None, attempts: 0, why: Why::NoCluster };
    let Some(picked) = proxy.pick() else { return Err(failure) };
    let name = conn.cluster.as_ref().unwrap_or(&picked.name);
    let Some(cluster) = conn.live.cluster(name) else { return Err(failure) };
    let cluster = &cluster;
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

pub(super) fn choose(
    conn: &Conn<'_>,
    cluster: &Arc<Cluster>,
    want: &Want<'_>,
    tried: &mut Option<std::net::SocketAddr>,
) -> Result<Arc<Host>, Why> {
    let host = cluster.choose(want).map_err(Why::NoHost)?;
    *tried = host.socket_address();
    // A configuration may route to its own admin; a client's destination may not lead there.
    let chosen_by_client = matches!(cluster.model.discovery, Discovery::OriginalDst(_));
    if chosen_by_client && tried.is_some_and(|to| conn.forbids(to)) {
        conn.shared.own.original_destination_is_admin.inc();
        return Err(Why::NoHost(NoHost::NoHealthy));
    }
    Ok(host)
}

async fn connect_once(
    conn: &Conn<'_>,
    cluster: &Arc<Cluster>,
    want: &Want<'_>,
    (since, attempts): (Instant, u32),
    tried: &mut Option<std::net::SocketAddr>,
) -> Result<Box<Upstream>, Why> {
    let host = choose(conn, cluster, want, tried)?;
    let start = clock::now();
    let connection_id = conn.shared.next_connection();
    let source = source(conn);
    let facts = Some(&conn.record.entry.facts);
    let client = Client { source: &source, facts, connection_id, alpn: &[], names: None };
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

pub(super) fn want<'a>(
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
pub(super) fn source(conn: &Conn<'_>) -> Source {
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

pub(super) async fn back_off(proxy: &TcpProxy, attempt: u32) {
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

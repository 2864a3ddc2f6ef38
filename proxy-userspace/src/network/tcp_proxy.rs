//! The TCP proxy: picks the cluster, connects, relays.
//!
//! The clusters are Istio's built-in ones: the two passthrough kinds connect to the original destination, the
//! black hole has no endpoint.

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use socket2::SockAddr;
use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::drain::Guard;
use crate::net::conn::{canonical, reset_on_close};
use crate::net::copy::{self, End, Terms};
use crate::net::{Dial, Direction, Family, ListenerContext, OutboundPolicy};
use crate::sys::sock;
use crate::telemetry::stats::{ClusterStats, Held, Stats, TcpStats};
use crate::telemetry::{ConnRecord, Flags, Outcome, Side};

/// The source of inbound passthrough connections: by it the kernel programs and the application tell them from
/// connections that the workload makes to itself.
const INBOUND_SOURCE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));
const INBOUND_SOURCE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));

/// Proxies one connection to its end. The caller closes `downstream`: by reset, if it was told so here.
pub(crate) async fn run(
    downstream: &TcpStream,
    destination: SocketAddr,
    ctx: &ListenerContext,
    record: &mut ConnRecord,
    guard: &Guard,
) -> Outcome {
    let shared = &ctx.workload.shared;
    let cluster = shared.clusters.pick(ctx, destination);
    cluster.tcp.downstream_cx_total.inc();
    record.entry.upstream.cluster = Some(cluster.name.into());
    let connect = connect(cluster, destination, ctx);
    let upstream = match while_wanted(connect, downstream, guard).await {
        Ok(upstream) => upstream,
        Err(failure) => {
            reset_on_close(downstream);
            return failure.outcome();
        }
    };
    let _active = Held::new(&cluster.stats, |s| &s.upstream_cx_active);
    record.entry.upstream.host = Some(destination);
    record.entry.upstream.local = upstream.local_addr().ok().map(canonical);
    let (idle_timeout, pipes) = (shared.options.idle_timeout, &shared.pipes);
    let terms = Terms { cluster, pipes, idle_timeout, guard };
    let end = copy::relay(downstream, &upstream, &mut record.entry.bytes, terms).await;
    // No one may take a broken stream for a complete one. The socket that failed is dead already.
    if matches!(end, End::Failed { side: Side::Upstream, .. } | End::Cut) {
        reset_on_close(downstream);
    }
    if matches!(end, End::Failed { side: Side::Downstream, .. } | End::Cut) {
        reset_on_close(&upstream);
    }
    cluster.stats.upstream_cx_destroy.inc();
    outcome(&end, cluster)
}

/// Istio's built-in clusters.
pub struct Clusters {
    passthrough: Cluster,
    black_hole: Cluster,
    inbound_v4: Cluster,
    inbound_v6: Cluster,
}

/// Where connections go, with the stats that are kept of it.
pub struct Cluster {
    pub name: &'static str,
    pub stats: Arc<ClusterStats>,
    /// Istio's `stat_prefix` of the tcp_proxy in front is the cluster's name.
    pub tcp: Arc<TcpStats>,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    OriginalDst { source: Option<IpAddr> },
    Empty,
}

impl Clusters {
    pub fn new(stats: &Stats) -> Self {
        let cluster = |name, kind| Cluster {
            name,
            stats: ClusterStats::of(stats, name),
            tcp: TcpStats::of(stats, name),
            kind,
        };
        let from = |source| Kind::OriginalDst { source };
        Self {
            passthrough: cluster("PassthroughCluster", from(None)),
            black_hole: cluster("BlackHoleCluster", Kind::Empty),
            inbound_v4: cluster("InboundPassthroughClusterIpv4", from(Some(INBOUND_SOURCE_V4))),
            inbound_v6: cluster("InboundPassthroughClusterIpv6", from(Some(INBOUND_SOURCE_V6))),
        }
    }

    fn pick(&self, ctx: &ListenerContext, destination: SocketAddr) -> &Cluster {
        match (ctx.direction, ctx.workload.traffic().outbound, Family::of(destination)) {
            (Direction::Outbound, OutboundPolicy::AllowAny, _) => &self.passthrough,
            (Direction::Outbound, OutboundPolicy::RegistryOnly, _) => &self.black_hole,
            (Direction::Inbound, _, Family::V4) => &self.inbound_v4,
            (Direction::Inbound, _, Family::V6) => &self.inbound_v6,
        }
    }
}

/// Why there is no upstream connection.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no healthy upstream")]
    NoEndpoint,
    #[error("connection timeout")]
    Timeout,
    #[error("delayed connect error: {}", errno_text(source))]
    Io { step: &'static str, source: io::Error },
    #[error("downstream reset")]
    DownstreamReset,
    #[error("drained")]
    Drained,
}

impl Failure {
    fn outcome(&self) -> Outcome {
        let (side, flags, details): (_, _, Cow<'static, str>) = match self {
            Self::NoEndpoint => (Side::Upstream, Flags::UH, "no_healthy_upstream".into()),
            Self::Timeout => (Side::Upstream, Flags::UF | Flags::URX, "upstream_connect_timeout".into()),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => {
                (Side::Upstream, Flags::UF | Flags::URX, "upstream_connect_refused".into())
            }
            Self::Io { step, source } => (
                Side::Upstream,
                Flags::UF | Flags::URX,
                format!("upstream_{step}: {}", errno_text(source)).into(),
            ),
            Self::DownstreamReset => (Side::Downstream, Flags::NONE, "downstream_reset".into()),
            Self::Drained => (Side::Internal, Flags::NONE, "drain_timeout".into()),
        };
        let transport = matches!(self, Self::Timeout | Self::Io { .. });
        let upstream_failure = transport.then(|| self.to_string());
        Outcome { upstream_failure, ..Outcome::new(side, flags, details) }
    }
}

/// Gives up connecting when the client resets, or when a drain's deadline has passed. A client that only sends
/// FIN still waits for its answer.
async fn while_wanted(
    connect: impl Future<Output = Result<TcpStream, Failure>>,
    downstream: &TcpStream,
    guard: &Guard,
) -> Result<TcpStream, Failure> {
    tokio::select! {
        biased;
        upstream = connect => upstream,
        _ = downstream.ready(Interest::ERROR) => Err(Failure::DownstreamReset),
        () = guard.cut() => Err(Failure::Drained),
    }
}

async fn connect(cluster: &Cluster, to: SocketAddr, ctx: &ListenerContext) -> Result<TcpStream, Failure> {
    let source = match cluster.kind {
        Kind::OriginalDst { source } => source,
        Kind::Empty => {
            cluster.stats.upstream_cx_none_healthy.inc();
            return Err(Failure::NoEndpoint);
        }
    };
    cluster.stats.upstream_cx_total.inc();
    let limit = ctx.workload.shared.options.connect_timeout;
    let connected = dial(ctx.workload.dial.of(ctx.direction), source, to, limit).await;
    if let Err(failure) = &connected {
        cluster.stats.upstream_cx_connect_fail.inc();
        if matches!(failure, Failure::Timeout) {
            cluster.stats.upstream_cx_connect_timeout.inc();
        }
        log::debug!("{}: {to} by {}: {failure}", ctx.workload.name, cluster.name);
    }
    connected
}

async fn dial(
    dial: &dyn Dial,
    source: Option<IpAddr>,
    to: SocketAddr,
    limit: Duration,
) -> Result<TcpStream, Failure> {
    let socket = prepare(dial, source, to)?;
    match timeout(limit, socket.connect(to)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(Failure::Io { step: "connect_failed", source }),
        Err(_) => Err(Failure::Timeout),
    }
}

fn prepare(dial: &dyn Dial, source: Option<IpAddr>, to: SocketAddr) -> Result<TcpSocket, Failure> {
    let failed = |step| move |source| Failure::Io { step, source };
    let socket = dial.socket(Family::of(to)).map_err(failed("socket_failed"))?;
    socket.set_tcp_nodelay(true).map_err(failed("socket_failed"))?;
    if let Some(ip) = source {
        sock::set_bind_address_no_port(&socket).map_err(failed("bind_failed"))?;
        socket.bind(&SockAddr::from(SocketAddr::new(ip, 0))).map_err(failed("bind_failed"))?;
    }
    Ok(TcpSocket::from_std_stream(socket.into()))
}

fn outcome(end: &End, cluster: &Cluster) -> Outcome {
    match end {
        End::Closed(side) => Outcome::new(*side, Flags::NONE, format!("{}_closed", side.name())),
        End::Failed { side, error } if copy::is_reset(error) => {
            Outcome::new(*side, Flags::NONE, format!("{}_reset", side.name()))
        }
        End::Failed { side, error } => {
            Outcome::new(*side, Flags::NONE, format!("{}_error: {}", side.name(), errno_text(error)))
        }
        End::Idle => {
            cluster.tcp.idle_timeout.inc();
            Outcome::new(Side::Internal, Flags::NONE, "idle_timeout")
        }
        End::Cut => Outcome::new(Side::Internal, Flags::NONE, "drain_timeout"),
    }
}

/// The text of the error alone: `Connection refused`, without Rust's `(os error 111)`.
fn errno_text(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |errno| Errno::from_raw(errno).desc().to_owned())
}

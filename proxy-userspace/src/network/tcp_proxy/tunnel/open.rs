//! A tunnel is opened: an endpoint chosen, a connection leased, a request sent, its response judged.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Version;
use proxy_config::model::http::Priority;

use super::{Notes, Tunnel};
use crate::clock::{self, Instant};
use crate::cluster::Source;
use crate::cluster::{Cluster, ConnectError, Event, Host, Overflow, Want};
use crate::http::pool::{Attached, Caller, Demand, Failed, Lease, More, Refused, SourceKey};
use crate::http::raw::Raw;
use crate::http::{Body, Observer, Progress, ResetReason, Response, Upload};
use crate::net::Direction;
use crate::network::Conn;
use crate::network::tcp_proxy::TcpProxy;
use crate::network::tcp_proxy::upstream::{Failure, Why, back_off, choose, source, want};

/// Both directions of a tunnel, and what is held for it.
pub(super) struct Opened {
    pub(super) cluster: Arc<Cluster>,
    pub(super) host: Arc<Host>,
    pub(super) body: Body,
    pub(super) upload: Option<Upload>,
    pub(super) attached: Attached,
    pub(super) progress: Arc<Progress>,
    attempts: u32,
    since: Instant,
    took: Duration,
}

impl Opened {
    pub(super) fn tell(&self, conn: &mut Conn<'_>) {
        let life = self.attached.life();
        let upstream = &mut conn.record.entry.upstream;
        upstream.cluster = Some(self.cluster.model.name.clone());
        upstream.cluster_model = Some(self.cluster.model.clone());
        upstream.host = self.host.socket_address();
        upstream.hostname = Some(self.host.hostname.clone()).filter(|name| !name.is_empty());
        upstream.host_metadata = Some(self.host.metadata()).filter(|metadata| !metadata.is_empty());
        upstream.local = life.local;
        upstream.tls.clone_from(&life.tls);
        upstream.connection_id = life.id;
        upstream.attempts = self.attempts;
        upstream.connected_after = Some(self.took);
        upstream.connect_started = Some(self.since.saturating_duration_since(*conn.accepted));
    }
}

/// As often as the filter allows.
pub(super) async fn run(
    conn: &Conn<'_>,
    proxy: &TcpProxy,
    tunnel: &Tunnel,
    client: &Raw,
    notes: &mut Notes,
) -> Result<Box<Opened>, Failure> {
    let mut failure = Failure { cluster: None, host: None, attempts: 0, why: Why::NoCluster };
    let Some(picked) = proxy.pick() else { return Err(failure) };
    let name = conn.cluster.as_ref().unwrap_or(&picked.name);
    let Some(cluster) = conn.live.cluster(name) else { return Err(failure) };
    failure.cluster = Some(cluster.clone());
    let want = want(conn, proxy, picked, &cluster);
    let since = clock::now();
    for attempt in 1..=proxy.model.max_connect_attempts.max(1) {
        failure.attempts = attempt;
        if cluster.breaker().refuses_connections(Priority::Default) {
            let why = Why::Connect(ConnectError::Overflow(Overflow::Connections));
            return Err(Failure { why, ..failure });
        }
        // Envoy waits for ever; what holds its peace for that long has lost its connection when it is open, too.
        let limit = proxy.model.idle_timeout;
        let ask = Ask { conn, tunnel, client, cluster: &cluster, since, attempt, limit };
        match ask.run(&want, notes, &mut failure.host).await {
            Ok(opened) => return Ok(opened),
            Err(why @ (Why::Broken(_) | Why::Answer(_) | Why::Pool(_))) => failure.why = why,
            // Trying again helps against a failing endpoint, not against none.
            Err(why) => return Err(Failure { why, ..failure }),
        }
        if attempt < proxy.model.max_connect_attempts {
            back_off(proxy, attempt).await;
        }
    }
    cluster.stats.upstream_cx_connect_attempts_exceeded.inc();
    Err(failure)
}

/// One attempt.
struct Ask<'a> {
    conn: &'a Conn<'a>,
    tunnel: &'a Tunnel,
    client: &'a Raw,
    cluster: &'a Arc<Cluster>,
    since: Instant,
    attempt: u32,
    /// How long an answer is waited for.
    limit: Option<Duration>,
}

impl Ask<'_> {
    async fn run(
        &self,
        want: &Want<'_>,
        notes: &mut Notes,
        tried: &mut Option<std::net::SocketAddr>,
    ) -> Result<Box<Opened>, Why> {
        let (conn, cluster) = (self.conn, self.cluster);
        let caller = caller(conn);
        let host = choose(conn, cluster, want, tried)?;
        let host = cluster.pools().known(host, &caller);
        let start = clock::now();
        let lease = self.lease(&host, &caller).await?;
        let life = lease.life().clone();
        let head = self.tunnel.request(&conn.record.entry, life.tls.is_some(), notes);
        let progress = Arc::<Progress>::default();
        let observer = Observer { progress: progress.clone(), interim: None, tunnel: true };
        let answered = within(self.limit, lease.send(&head, self.client.body(), observer)).await;
        let (response, attached) = answered.inspect_err(|_| {
            count(cluster, &progress);
            cluster.report(&host, Event::RequestFailed);
        })?;
        let Response { head, mut body } = response;
        let status = head.status;
        notes.response = Some(head);
        // As Envoy: any 2xx of HTTP/1 stands for an agreement, of HTTP/2 it is 200.
        let agreed =
            if life.version == Version::HTTP_2 { status.as_u16() == 200 } else { status.is_success() };
        if !agreed || body.is_end() {
            count(cluster, &progress);
            cluster.report(&host, Event::RequestFailed);
            return Err(Why::Answer(status));
        }
        cluster.report(&host, Event::Status(status.as_u16()));
        self.client.hold(false);
        let upload = body.take_upload();
        Ok(Box::new(Opened {
            cluster: cluster.clone(),
            host,
            body,
            upload,
            attached,
            progress,
            attempts: self.attempt,
            since: start,
            took: clock::now() - self.since,
        }))
    }

    async fn lease(&self, host: &Arc<Host>, caller: &Caller) -> Result<Lease, Why> {
        let (conn, cluster) = (self.conn, self.cluster);
        let (source, more) = wishes(conn, cluster, host);
        let demand = Demand {
            cluster,
            host,
            caller,
            facts: Some(&conn.record.entry.facts),
            version: Version::HTTP_11,
            priority: Priority::Default,
            source,
            more,
        };
        let leased = cluster.pools().acquire(demand).await;
        leased.map_err(|refused| {
            if let Refused::Failed { .. } = refused {
                cluster.report(host, Event::RequestFailed);
            }
            Why::Pool(refused)
        })
    }
}

async fn within<T>(
    limit: Option<Duration>,
    answer: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Why> {
    let answer = async { answer.await.map_err(|Failed { reset, .. }| Why::Broken(reset)) };
    match limit {
        None => answer.await,
        Some(limit) => tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| {
            let reason = ResetReason::ConnectionTimeout;
            Err(Why::Pool(Refused::Failed { reason, local: true, details: "".into() }))
        }),
    }
}

/// What went over the connection for a tunnel that was none.
fn count(cluster: &Cluster, progress: &Progress) {
    if progress.wire().is_some() {
        return;
    }
    let sum = |a: &std::sync::atomic::AtomicU64, b: &std::sync::atomic::AtomicU64| {
        a.load(Ordering::Relaxed) + b.load(Ordering::Relaxed)
    };
    cluster.stats.upstream_cx_tx_bytes_total.add(sum(&progress.request_head, &progress.request_body));
    cluster.stats.upstream_cx_rx_bytes_total.add(sum(&progress.response_head, &progress.response_body));
}

fn caller(conn: &Conn<'_>) -> Caller {
    let dial = match conn.record.entry.origin.direction.unwrap_or(Direction::Outbound) {
        Direction::Outbound => &conn.place.dial.outbound,
        Direction::Inbound => &conn.place.dial.inbound,
    };
    Caller { dial: dial.clone(), worker: conn.worker }
}

/// What tunnels of one client may not share with others'.
fn wishes(conn: &Conn<'_>, cluster: &Cluster, host: &Host) -> (Source, Option<More>) {
    let source = source(conn);
    let key = match &source {
        Source::Cluster => None,
        Source::Address(from) => Some(SourceKey { address: from.address, mark: from.mark }),
    };
    let alone = cluster.pools().settings().per_connection
        || cluster.transport(host).is_some_and(|transport| transport.is_of_one_client());
    let connection = alone.then_some(conn.record.entry.origin.connection_id);
    let more = More { connection, source: key, ..More::default() };
    (source, Some(more))
}

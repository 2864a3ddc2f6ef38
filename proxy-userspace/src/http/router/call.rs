//! Requests of the proxy's own, to a cluster: of filters, of tracers, of whatever follows a remote document.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Version};
use proxy_config::model::http::Priority;

use super::body::{self, Ledger, Watched};
use super::charge::Origin;
use super::forward::{guarded, unconnected};
use super::reply;
use super::retry::grpc_status;
use super::tally::Tallies;
use super::timeouts::{Alarm, EXPECTED, Timeouts};
use super::tunnel::Hold;
use crate::clock;
use crate::cluster::{Cluster, Event, Source, Want};
use crate::http::pool::{Caller, Demand, Failed};
use crate::http::{Observer, Progress, Request, RequestHead, Reset, ResetReason, Response};
use crate::telemetry::{Flags, Side};

/// Says of a request that it is the proxy's own, as Envoy does: of which address, where that is told, and how long it is
/// waited for.
pub fn announce(head: &mut RequestHead, own: Option<IpAddr>, timeout: Option<Duration>) {
    head.headers.insert("x-envoy-internal", HeaderValue::from_static("true"));
    if let Some(Ok(own)) = own.map(|own| HeaderValue::from_str(&own.to_string())) {
        head.headers.insert("x-forwarded-for", own);
    }
    expect_within(head, timeout);
}

/// How long a request of the proxy's own is waited for.
pub fn expect_within(head: &mut RequestHead, timeout: Option<Duration>) {
    if let Some(timeout) = timeout {
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        head.headers.insert(EXPECTED, HeaderValue::from(millis));
    }
}

/// What became of a call, whatever it came to.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) host: Option<SocketAddr>,
    pub(super) status: u16,
    pub(super) flags: Flags,
}

impl Default for Outcome {
    fn default() -> Self {
        Self { host: None, status: 0, flags: Flags::NONE }
    }
}

/// Sends it once. The time is for all of it, the response's body included; `None`: without a limit. Counted as an
/// internal request, as in Envoy.
pub async fn call(
    cluster: &Arc<Cluster>,
    caller: &Caller,
    request: Request,
    timeout: Option<Duration>,
) -> Result<Response, Reset> {
    told(cluster, caller, request, timeout, &mut Outcome::default()).await
}

/// The same for whoever tells of it.
pub(super) async fn told(
    cluster: &Arc<Cluster>,
    caller: &Caller,
    request: Request,
    timeout: Option<Duration>,
    outcome: &mut Outcome,
) -> Result<Response, Reset> {
    let Request { head, body } = request;
    let origin = Origin { internal: true, canary: false };
    let codes = cluster.pools().codes();
    let Ok(host) = cluster.choose(&Want::default()) else {
        codes.charge(503, origin);
        (outcome.status, outcome.flags) = (503, Flags::UH);
        return Err(reset(ResetReason::ConnectionFailure, "no healthy upstream"));
    };
    outcome.host = host.socket_address();
    let timeouts = Timeouts { global: timeout, ..Timeouts::default() };
    let mut alarm = Alarm::new(timeouts, Some(clock::now()));
    let progress = Arc::<Progress>::default();
    alarm.begin(progress.clone());
    let exchange = async {
        let demand = Demand {
            cluster,
            host: &host,
            caller,
            facts: None,
            version: Version::HTTP_11,
            priority: Priority::Default,
            source: Source::Cluster,
            more: None,
        };
        let lease = cluster.pools().acquire(demand).await.map_err(|refused| unconnected(refused).reset)?;
        let observer = Observer { progress, interim: None, tunnel: false };
        lease.send(&head, body, observer).await.map_err(|Failed { reset, .. }| reset)
    };
    let result = match guarded(&mut alarm, pin!(exchange)).await {
        Ok(result) => result,
        Err(reached) => {
            cluster.stats.upstream_rq_timeout.inc();
            cluster.report(&host, Event::RequestTimeout);
            codes.charge(504, origin);
            (outcome.status, outcome.flags) = (504, Flags::UT);
            return Err(reset(ResetReason::ConnectionTimeout, body::details(reached)));
        }
    };
    let (response, attached) = result.inspect_err(|reset| {
        body::bytes(cluster, alarm.progress());
        if reset.reason != ResetReason::Overflow {
            cluster.report(&host, Event::RequestFailed);
        }
        let status = if reset.reason == ResetReason::Protocol { 502 } else { 503 };
        codes.charge(status, origin);
        (outcome.status, outcome.flags) = (status, reply::flags(reset.reason));
    })?;
    let Response { head: answer, body } = response;
    codes.charge(answer.status.as_u16(), origin);
    outcome.status = answer.status.as_u16();
    let grpc = head.is_grpc() && grpc_status(&answer.headers).is_none();
    if !grpc {
        cluster.report(&host, Event::Status(answer.status.as_u16()));
    }
    let whole = body.is_end() || alarm.progress().last_received().is_some();
    let cluster = cluster.clone();
    let hold = Hold::Pooled(attached);
    let tallies = Tallies::default();
    let ledger =
        Ledger { cluster, host, stats: None, origin, dynamic: true, tallies, grpc, hold, line: None };
    if whole {
        ledger.complete(&alarm, None);
        return Ok(Response { head: answer, body });
    }
    Ok(Response { head: answer, body: Watched::over(body, alarm, ledger) })
}

fn reset(reason: ResetReason, details: &'static str) -> Reset {
    Reset::new(Side::Upstream, reason, details)
}

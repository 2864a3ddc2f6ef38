//! `envoy.filters.http.fault`: delays, aborts and slow responses, on purpose.

mod throttle;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use proxy_config::model::FractionalPercent;
use proxy_config::model::http::filters::{AbortKind, DelayKind, Fault as Config, RateKind};

use super::common::{hits, matches};
use super::{FilterCx, RouteConfig};
use crate::http::filter::{Filter, LocalReply, Step, Stop, StreamFilter};
use crate::http::{Routed, Stream};
use crate::telemetry::Flags;
use crate::telemetry::stats::{Held, Stats, stats_block};

const NAMESPACE: &str = "envoy.filters.http.fault";

stats_block! {
    /// `http.<stat_prefix>.fault.`
    pub struct FaultStats {
        counter aborts_injected;
        counter delays_injected;
        counter faults_overflow;
        counter response_rl_injected;
        gauge active_faults;
    }
}

pub(super) struct Fault {
    name: Arc<str>,
    config: Arc<Config>,
    shared: Arc<Shared>,
}

struct Shared {
    stats: Arc<FaultStats>,
    /// For the stats of single downstream clusters.
    all: Arc<Stats>,
    prefix: String,
}

struct One {
    name: Arc<str>,
    config: Arc<Config>,
    shared: Arc<Shared>,
    active: Option<Held<FaultStats>>,
    /// In bytes a second.
    rate: Option<u64>,
}

impl Fault {
    pub(super) fn new(config: &Config, cx: &FilterCx<'_>) -> Self {
        let (all, prefix) = (cx.parts.cluster.stats.clone(), format!("{}.fault", cx.prefix));
        let shared = Shared { stats: all.block(prefix.as_str()), all, prefix };
        Self { name: cx.name.clone(), config: Arc::new(config.clone()), shared: Arc::new(shared) }
    }
}

impl Filter for Fault {
    fn begin(&self, _: &Stream) -> Option<Box<dyn StreamFilter>> {
        let (name, config, shared) = (self.name.clone(), self.config.clone(), self.shared.clone());
        Some(Box::new(One { name, config, shared, active: None, rate: None }))
    }
}

impl StreamFilter for One {
    fn request<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let route = stream.route();
        if let Some(RouteConfig::Fault(own)) =
            route.as_deref().and_then(|route| route.filters().config(&self.name))
        {
            self.config = own.clone();
        }
        if !concerns(&self.config, stream, route.as_deref()) {
            return Step::Next;
        }
        self.slow_down(&stream.request().headers);
        match self.delay(&stream.request().headers) {
            Some(delay) if self.inject() => Step::wait(self.delayed(stream, delay)),
            Some(_) | None => match self.abort(stream) {
                Some(reply) => Step::reply(reply),
                None => Step::Next,
            },
        }
    }

    fn response<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        if let Some(rate) = self.rate.take() {
            stream.response_body = throttle::throttled(stream.response_body.take(), rate);
        }
        Step::Next
    }
}

impl One {
    async fn delayed(&mut self, stream: &mut Stream, delay: Duration) -> Result<(), Stop> {
        self.shared.stats.delays_injected.inc();
        self.count(&stream.request().headers, "delays_injected");
        stream.flag(Flags::DI);
        note(&self.config, stream);
        tokio::time::sleep(delay).await;
        self.abort(stream).map_or(Ok(()), |reply| Err(reply.into()))
    }

    fn abort(&mut self, stream: &mut Stream) -> Option<LocalReply> {
        let (status, grpc_status) = self.verdict(&stream.request().headers)?;
        if !self.inject() {
            return None;
        }
        self.shared.stats.aborts_injected.inc();
        self.count(&stream.request().headers, "aborts_injected");
        note(&self.config, stream);
        let text = self.config.abort.as_ref().map_or("", |abort| &abort.body);
        let body = if text.is_empty() { "fault filter abort".into() } else { text.to_owned() };
        let mut reply = LocalReply::new(status, body, Flags::FI, "fault_filter_abort");
        reply.grpc_status = grpc_status;
        Some(reply)
    }

    /// How a request is aborted, if it is.
    fn verdict(&self, headers: &HeaderMap) -> Option<(StatusCode, Option<u32>)> {
        let abort = self.config.abort.as_ref()?;
        let by_header = |name| number(headers, name);
        let (status, grpc) = match abort.abort {
            AbortKind::Http(status) => (u64::from(status), None),
            // Envoy has it so for whoever does not speak gRPC.
            AbortKind::Grpc(status) => (200, Some(u64::from(status))),
            AbortKind::Header => match by_header("x-envoy-fault-abort-request") {
                Some(status @ 200..600) => (status, None),
                Some(_) => return None,
                None => (200, Some(by_header("x-envoy-fault-abort-grpc-request")?)),
            },
        };
        let percentage = match abort.abort {
            AbortKind::Header => at_most(abort.percentage, headers, "x-envoy-fault-abort-request-percentage"),
            AbortKind::Http(_) | AbortKind::Grpc(_) => abort.percentage,
        };
        if !hits(percentage) {
            return None;
        }
        let status = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok())?;
        Some((status, grpc.and_then(|grpc| u32::try_from(grpc).ok())))
    }

    fn delay(&self, headers: &HeaderMap) -> Option<Duration> {
        let delay = self.config.delay.as_ref()?;
        let (time, percentage) = match delay.delay {
            DelayKind::Fixed(time) => (time, delay.percentage),
            DelayKind::Header => (
                Duration::from_millis(number(headers, "x-envoy-fault-delay-request")?),
                at_most(delay.percentage, headers, "x-envoy-fault-delay-request-percentage"),
            ),
        };
        (!time.is_zero() && hits(percentage)).then_some(time)
    }

    fn slow_down(&mut self, headers: &HeaderMap) {
        let Some(limit) = self.config.response_rate_limit else { return };
        let (kbps, percentage) = match limit.limit {
            RateKind::Kbps(kbps) => (Some(kbps), limit.percentage),
            RateKind::Header => (
                number(headers, "x-envoy-fault-throughput-response").filter(|kbps| *kbps > 0),
                at_most(limit.percentage, headers, "x-envoy-fault-throughput-response-percentage"),
            ),
        };
        if let Some(kbps) = kbps.filter(|_| hits(percentage))
            && self.inject()
        {
            self.shared.stats.response_rl_injected.inc();
            self.rate = Some(kbps.saturating_mul(1_024));
        }
    }

    /// Whether one more stream may have a fault.
    fn inject(&mut self) -> bool {
        if self.active.is_some() {
            return true;
        }
        let stats = &self.shared.stats;
        if self.config.max_active_faults.is_some_and(|most| stats.active_faults.value() >= u64::from(most)) {
            stats.faults_overflow.inc();
            return false;
        }
        self.active = Some(Held::new(stats, |stats| &stats.active_faults));
        true
    }

    /// Under the name of the cluster that the request is from.
    fn count(&self, headers: &HeaderMap, what: &str) {
        if self.config.disable_downstream_cluster_stats {
            return;
        }
        let from = headers.get("x-envoy-downstream-service-cluster").and_then(|from| from.to_str().ok());
        if let Some(from) = from.filter(|from| !from.is_empty()) {
            self.shared.all.counter(format!("{}.{from}.{what}", self.shared.prefix)).inc();
        }
    }
}

fn concerns(config: &Config, stream: &Stream, route: Option<&Routed>) -> bool {
    let head = stream.request();
    let node = || head.header("x-envoy-downstream-service-node").unwrap_or(Cow::Borrowed(b""));
    let of_node = config.downstream_nodes.is_empty() || {
        let node = node();
        config.downstream_nodes.iter().any(|one| one.as_bytes() == &*node)
    };
    let to_cluster = config
        .upstream_cluster
        .as_ref()
        .is_none_or(|name| route.and_then(|route| route.cluster(head)).as_deref() == Some(&**name));
    of_node && to_cluster && config.headers.iter().all(|matcher| matches(matcher, head))
}

fn note(config: &Config, stream: &mut Stream) {
    stream.http_mut().dynamic_metadata.0.insert(NAMESPACE.to_owned(), config.filter_metadata.clone());
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// As the header asks, and never more than is configured.
fn at_most(percentage: FractionalPercent, headers: &HeaderMap, name: &str) -> FractionalPercent {
    let asked =
        number(headers, name).map_or(percentage.numerator, |asked| u32::try_from(asked).unwrap_or(u32::MAX));
    FractionalPercent { numerator: asked.min(percentage.numerator), ..percentage }
}

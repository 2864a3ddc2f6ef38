//! Sends spans to a collector, many at a time: as soon as a few have gathered, or once some time has passed.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, TE};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use proxy_config::model::Bootstrap;
use proxy_config::model::bootstrap::{Reports, TraceReports};
use proxy_config::model::grpc::GrpcTarget;
use proxy_config::model::http::tracing::{HttpService, OpenTelemetry, OtlpExporter, TracingProvider, Zipkin};
use tokio::sync::Notify;

use super::{Done, otlp, zipkin};
use crate::http::pool::Caller;
use crate::http::router::call;
use crate::http::{Body, ConnCx, Request, RequestHead};
use crate::task::Tasks;
use crate::telemetry::stats::{Stats, stats_block};
use crate::world::Live;
use crate::world::Parts;

/// Of a collector whose service says nothing.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of Zipkin, where Envoy has no limit: a collector that does not answer must not fill the memory.
const MOST: usize = 4_096;
/// Tags have what clients say: few spans with long ones must not fill it either.
const MOST_BYTES: usize = 16 << 20;

stats_block! {
    /// `tracing.zipkin.` and `tracing.opentelemetry.`
    pub(super) struct TracingStats {
        counter spans_sent;
        counter timer_flushed;
        counter reports_skipped_no_cluster;
        counter reports_sent;
        counter reports_dropped;
        counter reports_failed;
        /// Ours: spans that found the buffer full.
        counter spans_dropped;
    }
}

/// Who is told of the spans of one configuration: connection managers with the same provider share its reports.
#[derive(Default)]
pub struct Collectors {
    /// The bootstrap's.
    pub(super) provider: Option<TracingProvider>,
    reports: TraceReports,
    reporters: Mutex<Vec<Weak<Reporter>>>,
}

impl Collectors {
    pub fn new(bootstrap: &Bootstrap) -> Self {
        let (provider, reports) = (bootstrap.tracing.clone(), bootstrap.reports.clone());
        Self { provider, reports, reporters: Mutex::default() }
    }

    pub(super) fn reporter(&self, provider: &TracingProvider, parts: &Parts<'_>) -> Arc<Reporter> {
        let mut reporters = self.reporters.lock().unwrap_or_else(PoisonError::into_inner);
        reporters.retain(|reporter| reporter.strong_count() > 0);
        let known = reporters.iter().filter_map(Weak::upgrade).find(|known| known.provider == *provider);
        known.unwrap_or_else(|| {
            let new = Reporter::new(provider.clone(), &self.reports, parts);
            reporters.push(Arc::downgrade(&new));
            new
        })
    }
}

/// Of one provider.
pub(super) struct Reporter {
    provider: TracingProvider,
    reports: Reports,
    /// Of OTLP: attributes of the process.
    resource: Vec<(String, String)>,
    node: Node,
    stats: Arc<TracingStats>,
    tasks: Tasks,
    waiting: Mutex<Waiting>,
    wake: Notify,
}

/// What is said of this proxy.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub id: Arc<str>,
    pub cluster: Arc<str>,
    pub zone: Arc<str>,
}

/// By which spans are sent.
struct Means {
    live: Arc<Live>,
    caller: Caller,
}

#[derive(Default)]
struct Waiting {
    spans: Vec<Done>,
    /// Of their tags.
    bytes: usize,
    /// The sending task is there.
    started: bool,
}

impl Waiting {
    fn take(&mut self) -> Vec<Done> {
        self.bytes = 0;
        std::mem::take(&mut self.spans)
    }
}

impl Reporter {
    fn new(provider: TracingProvider, reports: &TraceReports, parts: &Parts<'_>) -> Arc<Self> {
        let stats: &Stats = &parts.cluster.stats;
        let (prefix, resource, reports) = match &provider {
            TracingProvider::Zipkin(_) => ("tracing.zipkin", Vec::new(), &reports.zipkin),
            TracingProvider::OpenTelemetry(model) => {
                ("tracing.opentelemetry", otlp::resource(model), &reports.opentelemetry)
            }
        };
        Arc::new(Self {
            stats: stats.block(prefix),
            resource,
            reports: reports.clone(),
            node: parts.http.node.clone(),
            tasks: parts.cluster.tasks.clone(),
            provider,
            waiting: Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// Begins to send, once there is a connection by whose means it can.
    pub(super) fn start(self: &Arc<Self>, cx: &ConnCx) {
        if std::mem::replace(&mut self.lock().started, true) {
            return;
        }
        self.tasks.spawn(
            "spans",
            run(Arc::downgrade(self), Means { live: cx.live.clone(), caller: Caller::of(cx) }),
        );
    }

    /// What every span of a request says of this proxy.
    pub(super) fn local_tags(&self) -> Vec<(Cow<'static, str>, String)> {
        vec![("node_id".into(), self.node.id.to_string()), ("zone".into(), self.node.zone.to_string())]
    }

    pub(super) fn push(&self, span: Done) {
        let most = match &self.provider {
            TracingProvider::Zipkin(_) => MOST,
            TracingProvider::OpenTelemetry(model) => model.max_cache_size as usize,
        };
        let weight = span.weight();
        let mut waiting = self.lock();
        if waiting.spans.len() >= most || waiting.bytes.saturating_add(weight) > MOST_BYTES {
            self.stats.spans_dropped.inc();
            return;
        }
        waiting.bytes += weight;
        waiting.spans.push(span);
        if waiting.spans.len() >= self.reports.min_flush_spans as usize {
            self.wake.notify_one();
        }
    }

    /// No connection manager has it any more. One that takes it up just now begins to send anew.
    fn is_forsaken(self: &Arc<Self>) -> bool {
        let mut waiting = self.lock();
        let last = Arc::strong_count(self) == 1;
        waiting.started &= !last;
        last
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn flush(&self, means: &Means) {
        let spans = self.lock().take();
        if spans.is_empty() {
            return;
        }
        self.stats.spans_sent.add(spans.len() as u64);
        match &self.provider {
            TracingProvider::Zipkin(model) => self.zipkin(model, &spans, means).await,
            TracingProvider::OpenTelemetry(model) => self.otlp(model, &spans, means).await,
        }
    }

    async fn zipkin(&self, model: &Zipkin, spans: &[Done], means: &Means) {
        let service: &str = if self.node.cluster.is_empty() { "shunt" } else { &self.node.cluster };
        let body = zipkin::body(spans, service, model.shared_span_context).into();
        let timeout = self.reports.request_timeout;
        self.post(&model.collector, "application/json", (body, timeout), means).await;
    }

    async fn otlp(&self, model: &OpenTelemetry, spans: &[Done], means: &Means) {
        match &model.exporter {
            OtlpExporter::Http(service) => {
                let body = otlp::body(spans, &self.resource, false);
                let timeout = service.timeout.unwrap_or(DEFAULT_TIMEOUT);
                self.post(service, "application/x-protobuf", (body, timeout), means).await;
            }
            OtlpExporter::Grpc(service) => {
                let GrpcTarget::Cluster { name, authority } = &service.target else {
                    return self.stats.reports_skipped_no_cluster.inc();
                };
                let authority = authority.clone().unwrap_or_else(|| name.to_string());
                let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
                let mut head = RequestHead::new(Method::POST, authority, path);
                head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                head.headers.insert(TE, HeaderValue::from_static("trailers"));
                let request = Request { head, body: Body::full(otlp::body(spans, &self.resource, true)) };
                self.send((name, request), service.timeout.unwrap_or(DEFAULT_TIMEOUT), means).await;
            }
        }
    }

    async fn post(
        &self,
        service: &HttpService,
        kind: &'static str,
        (body, timeout): (Bytes, Duration),
        means: &Means,
    ) {
        let mut head = RequestHead::new(Method::POST, &*service.host, &*service.path);
        head.headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        for header in &service.headers {
            let name = HeaderName::try_from(&*header.name);
            let value = HeaderValue::try_from(header.value.constant().unwrap_or_default());
            if let (Ok(name), Ok(value)) = (name, value) {
                head.headers.append(name, value);
            }
        }
        self.send((&service.cluster, Request { head, body: Body::full(body) }), timeout, means).await;
    }

    async fn send(&self, (cluster, request): (&Arc<str>, Request), timeout: Duration, means: &Means) {
        let Some(cluster) = means.live.cluster(cluster) else {
            return self.stats.reports_skipped_no_cluster.inc();
        };
        match call(&cluster, &means.caller, request, Some(timeout)).await {
            Ok(response) if self.accepts(response.head.status) => self.stats.reports_sent.inc(),
            Ok(_) => self.stats.reports_dropped.inc(),
            // What no collector has answered is answered by the proxy itself in Envoy, and counted alike.
            Err(why) => {
                log::debug!("spans to {}: {why}", cluster.model.name);
                self.stats.reports_dropped.inc();
            }
        }
    }
}

impl Reporter {
    /// As Envoy documents it, Zipkin's collector says 202 and nothing else.
    fn accepts(&self, status: StatusCode) -> bool {
        match &self.provider {
            TracingProvider::Zipkin(_) => status == StatusCode::ACCEPTED,
            TracingProvider::OpenTelemetry(_) => status.is_success(),
        }
    }
}

/// Until its connection managers are gone.
async fn run(reporter: Weak<Reporter>, means: Means) {
    loop {
        let Some(held) = reporter.upgrade() else { return };
        let interval = held.reports.flush_interval;
        if tokio::time::timeout(interval, held.wake.notified()).await.is_err() {
            held.stats.timer_flushed.inc();
        }
        held.flush(&means).await;
        if held.is_forsaken() {
            return;
        }
    }
}

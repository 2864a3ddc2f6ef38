//! `envoy.filters.http.grpc_stats`: what is called by gRPC, how often, and how it ends.

mod frames;
pub mod methods;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use proxy_config::model::http::filters::GrpcStats as Config;

use self::frames::Frames;
pub(super) use self::methods::{Method, Methods};
use super::FilterCx;
use super::watch::{Watcher, watched};
use crate::clock::{self, Instant};
use crate::http::filter::{Filter, Step, StreamFilter};
use crate::http::message::is_grpc;
use crate::http::{ResponseHead, Stream};
use crate::telemetry::stats::Counter;

const STATE: &str = "envoy.filters.http.grpc_stats";

pub(super) struct GrpcStats(Arc<Shared>);

struct Shared {
    methods: Methods,
    emit_filter_state: bool,
    upstream_stats: bool,
}

struct One {
    shared: Arc<Shared>,
    /// None: the request is of no known cluster, or its path names no method.
    method: Option<Arc<Method>>,
    counts: Arc<Counts>,
    begun: Instant,
}

/// Among a stream's extensions, where filter state is asked for: what was counted so far.
#[derive(Clone)]
pub(super) struct Messages(Arc<Counts>);

impl Messages {
    /// Of the request and of the response.
    pub(super) fn counted(&self) -> (u64, u64) {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (count(&self.0.request), count(&self.0.response))
    }
}

#[derive(Default)]
struct Counts {
    request: AtomicU64,
    response: AtomicU64,
}

impl GrpcStats {
    pub(super) fn new(config: &Config, cx: &FilterCx<'_>) -> Self {
        let methods = Methods::new(config, cx.parts.cluster.stats.clone(), "grpc");
        Self(Arc::new(Shared {
            methods,
            emit_filter_state: config.emit_filter_state,
            upstream_stats: config.enable_upstream_stats,
        }))
    }
}

impl Filter for GrpcStats {
    fn begin(&self, stream: &Stream) -> Option<Box<dyn StreamFilter>> {
        stream.request().is_grpc().then(|| {
            let (shared, counts) = (self.0.clone(), Arc::default());
            Box::new(One { shared, method: None, counts, begun: clock::now() }) as Box<dyn StreamFilter>
        })
    }
}

impl StreamFilter for One {
    fn request<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let route = stream.route();
        let cluster = route.as_deref().and_then(|route| route.cluster(stream.request()));
        let cluster = cluster.and_then(|name| stream.conn.cluster(&name));
        self.begun = clock::now();
        if self.shared.emit_filter_state {
            stream.extensions.insert(Messages(self.counts.clone()));
        }
        if let Some(cluster) = cluster {
            let name = cluster.model.alt_stat_name.as_deref().unwrap_or(&cluster.model.name);
            self.method = self.shared.methods.of(name, stream.request().path_alone());
        }
        if !stream.request_body.is_end() {
            let total = self.method.as_ref().map(|method| method.request_messages.clone());
            let counting =
                Counting { frames: Frames::new(true), total, counts: self.counts.clone(), request: true };
            stream.request_body = watched(stream.request_body.take(), counting);
        }
        Step::Next
    }

    fn response<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let ends = stream.response_body.is_end();
        let Some(head) = stream.response() else { return Step::Next };
        if let Some(method) = &self.method {
            method.ended(&head.headers);
            if self.shared.upstream_stats {
                let took = clock::now().saturating_duration_since(self.begun).as_millis();
                method.upstream_rq_time.record(u64::try_from(took).unwrap_or(u64::MAX));
            }
        }
        let answers = answers(head);
        if !ends {
            let total =
                self.method.as_ref().map(|method| method.response_messages.clone()).filter(|_| answers);
            let frames = Frames::new(answers);
            let counting = Counting { frames, total, counts: self.counts.clone(), request: false };
            let ending = Ending { counting, method: self.method.clone() };
            stream.response_body = watched(stream.response_body.take(), ending);
        }
        Step::Next
    }

    fn end(&mut self, stream: &mut Stream) {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (request, response) = (count(&self.counts.request), count(&self.counts.response));
        if self.shared.emit_filter_state && request + response > 0 {
            let state = format!("{request},{response}").into();
            stream.http_mut().filter_state.insert(STATE.into(), state);
        }
    }
}

/// A response of gRPC that has a body.
fn answers(head: &ResponseHead) -> bool {
    head.status == StatusCode::OK && is_grpc(&head.headers)
}

struct Counting {
    frames: Frames,
    total: Option<Arc<Counter>>,
    counts: Arc<Counts>,
    request: bool,
}

impl Watcher for Counting {
    fn data(&mut self, data: &Bytes) {
        let begun = self.frames.pass(data);
        if begun > 0 {
            let count = if self.request { &self.counts.request } else { &self.counts.response };
            count.fetch_add(begun, Ordering::Relaxed);
            if let Some(total) = &self.total {
                total.add(begun);
            }
        }
    }
}

struct Ending {
    counting: Counting,
    method: Option<Arc<Method>>,
}

impl Watcher for Ending {
    fn data(&mut self, data: &Bytes) {
        self.counting.data(data);
    }

    fn trailers(&mut self, trailers: &mut HeaderMap) {
        if let Some(method) = &self.method {
            method.ended(trailers);
        }
    }
}

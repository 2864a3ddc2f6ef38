//! `istio.stats`: each request is counted when it is over; messages of gRPC also while it goes on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use proxy_config::model::http::istio::IstioStats as Model;

use crate::clock::{self, Instant};
use crate::http::Stream;
use crate::http::filter::{Filter, Step, StreamFilter};
use crate::http::filters::FilterCx;
use crate::http::filters::grpc_stats::Messages;
use crate::http::filters::watch::{Watcher, watched};
use crate::istio::Recorder;
use crate::istio::stats::{Metric, Protocol, Shape};
use crate::telemetry::Entry;

pub(in crate::http::filters) struct IstioStats(Arc<Recorder>);

struct One {
    recorder: Arc<Recorder>,
    grpc: bool,
    told: Arc<Told>,
    /// Where messages are told of while the stream goes on.
    ongoing: Option<Arc<Ongoing>>,
}

/// How many messages were reported: of the request, of the response.
#[derive(Default)]
struct Told {
    request: AtomicU64,
    response: AtomicU64,
}

impl IstioStats {
    pub(in crate::http::filters) fn new(model: &Model, cx: &FilterCx<'_>) -> Self {
        let env = cx.parts.cluster;
        Self(Arc::new(Recorder::new(model, &env.transport.local, &env.stats)))
    }
}

impl Filter for IstioStats {
    fn begin(&self, stream: &Stream) -> Option<Box<dyn StreamFilter>> {
        let grpc = stream.request().is_grpc();
        Some(Box::new(One { recorder: self.0.clone(), grpc, told: Arc::default(), ongoing: None }))
    }
}

impl StreamFilter for One {
    fn request<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let Some(every) = self.recorder.every.filter(|_| self.grpc) else { return Step::Next };
        if let Some(messages) = stream.extensions.get::<Messages>().cloned() {
            let ongoing = Arc::new(Ongoing {
                recorder: self.recorder.clone(),
                entry: OnceLock::new(),
                messages,
                told: self.told.clone(),
                every,
                next: Mutex::new(clock::now() + every),
            });
            if !stream.request_body.is_end() {
                stream.request_body = watched(stream.request_body.take(), Passing(ongoing.clone()));
            }
            self.ongoing = Some(ongoing);
        }
        Step::Next
    }

    fn response<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let ongoing = self.ongoing.as_ref().filter(|_| !stream.response_body.is_end());
        if let Some(ongoing) = ongoing {
            // Other attempts had none that anybody saw.
            ongoing.entry.get_or_init(|| stream.entry.clone());
            stream.response_body = watched(stream.response_body.take(), Passing(ongoing.clone()));
        }
        Step::Next
    }

    fn end(&mut self, stream: &mut Stream) {
        let entry = &stream.entry;
        if let Some(messages) = stream.extensions.get::<Messages>().filter(|_| self.grpc) {
            self.told.tell(&self.recorder, entry, messages);
        }
        let protocol = if self.grpc { Protocol::Grpc } else { Protocol::Http };
        let bundle = self.recorder.bundle(entry, Shape::Http, protocol);
        bundle.tell(Metric::Requests, 1);
        let took = clock::now().saturating_duration_since(stream.start.at).as_millis();
        bundle.tell(Metric::Duration, u64::try_from(took).unwrap_or(u64::MAX));
        let http = stream.http();
        bundle.tell(Metric::RequestBytes, http.request.size as u64 + http.request_body);
        let sent = &http.sent;
        bundle.tell(Metric::ResponseBytes, sent.head_bytes + sent.body_bytes + sent.trailer_bytes);
        self.recorder.end(&bundle, entry);
    }
}

impl Told {
    /// What is new since the last time.
    fn tell(&self, recorder: &Recorder, entry: &Entry, messages: &Messages) {
        let bundle = recorder.bundle(entry, Shape::Messages, Protocol::Grpc);
        let (request, response) = messages.counted();
        for (metric, now, told) in [
            (Metric::RequestMessages, request, &self.request),
            (Metric::ResponseMessages, response, &self.response),
        ] {
            bundle.tell(metric, now.saturating_sub(told.swap(now, Ordering::Relaxed)));
        }
    }
}

/// A stream that goes on.
struct Ongoing {
    recorder: Arc<Recorder>,
    /// As it was when its response began: before, nobody knows whom its messages are for.
    entry: OnceLock<Box<Entry>>,
    messages: Messages,
    told: Arc<Told>,
    every: Duration,
    next: Mutex<Instant>,
}

/// Messages of either direction pass.
struct Passing(Arc<Ongoing>);

impl Watcher for Passing {
    fn data(&mut self, _: &Bytes) {
        let Ongoing { recorder, entry, messages, told, every, next } = &*self.0;
        let Some(entry) = entry.get() else { return };
        let now = clock::now();
        let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= *next && recorder.knows_peer(entry) {
            *next = now + *every;
            told.tell(recorder, entry, messages);
        }
    }
}

//! Traces: a span of each request that is sampled, told to a collector by Zipkin's JSON or by OTLP.
//!
//! [`Tracer`] belongs to a connection manager. [`Tracer::begin`] reads a request's context and makes the span,
//! [`Span::inject`] tells the upstream, [`Span::finish`] puts what became of the request into tags and hands the span to
//! the [`reporter`], which sends many at a time.

pub mod context;
mod otlp;
pub mod reason;
mod reporter;
mod tags;
mod zipkin;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use proxy_config::model::http::tracing::{Sampler, Tracing, TracingProvider};

pub use self::context::Context;
use self::context::Extracted;
pub use self::reason::Reason;
pub use self::reporter::{Collectors, Node};
use self::reporter::Reporter;
use super::Entry;
use super::access_log::Format;
use crate::clock;
use crate::http::{BuildError, RequestHead, Stream};
use crate::net::Direction;
use crate::world::Parts;

/// Of one connection manager.
pub struct Tracer {
    pub model: Tracing,
    /// None: requests are marked, and nobody is told.
    reporter: Option<Arc<Reporter>>,
    operation: Option<Format>,
    upstream_operation: Option<Format>,
    tags: Vec<tags::Custom>,
}

/// One hop of a trace, until it is finished.
pub struct Span {
    tracer: Arc<Tracer>,
    pub context: Context,
    pub name: String,
    kind: Kind,
    /// Client and server are one span.
    shared: bool,
    start: SystemTime,
    begun: clock::Instant,
    tags: Vec<(Cow<'static, str>, String)>,
    local: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Server,
    Client,
}

/// A span that has ended, for the reporter.
pub(super) struct Done {
    context: Context,
    name: String,
    kind: Kind,
    shared: bool,
    start: SystemTime,
    took: std::time::Duration,
    tags: Vec<(Cow<'static, str>, String)>,
    local: Option<SocketAddr>,
}

impl Tracer {
    pub fn new(model: &Tracing, parts: &Parts<'_>) -> Result<Arc<Self>, BuildError> {
        let collectors = &parts.http.tracing;
        let provider = model.provider.clone().or_else(|| collectors.provider.clone());
        let reporter = provider.as_ref().map(|provider| collectors.reporter(provider, parts));
        let format = |format: &Option<_>| format.as_ref().map(tags::compile).transpose();
        Ok(Arc::new(Self {
            operation: format(&model.operation)?,
            upstream_operation: format(&model.upstream_operation)?,
            tags: model.custom_tags.iter().map(tags::Custom::new).collect::<Result<_, _>>()?,
            reporter,
            model: Tracing { provider, ..model.clone() },
        }))
    }

    /// The span of a request, whose id says whether it is sampled. None where its headers are no context, or nobody is
    /// told of any.
    pub fn begin(self: &Arc<Self>, stream: &mut Stream, sampled: bool) -> Option<Span> {
        let reporter = self.reporter.as_ref()?;
        reporter.start(&stream.conn);
        let egress = stream.entry.origin.direction == Some(Direction::Outbound);
        let request = stream.request();
        let (context, shared) = match self.extracted(request) {
            Extracted::Broken => return None,
            Extracted::Sampled(said) => (self.root(said.unwrap_or(sampled)), false),
            Extracted::Context(parent) => self.child_of(&parent, sampled, egress),
        };
        let name = match &self.model.provider {
            Some(TracingProvider::Zipkin(_)) => request.authority.clone(),
            Some(TracingProvider::OpenTelemetry(_)) | None if egress => {
                format!("egress {}", request.authority)
            }
            Some(TracingProvider::OpenTelemetry(_)) | None => "ingress".to_owned(),
        };
        let name = self.operation.as_ref().map_or(name, |format| format.text(&stream.entry));
        let http = stream.http_mut();
        http.traced = context.sampled == Some(true);
        http.trace_id = Some(context.trace_id().into());
        http.span_id = Some(context.span_id().into());
        Some(Span {
            tracer: self.clone(),
            context,
            name,
            kind: if egress { Kind::Client } else { Kind::Server },
            shared,
            start: stream.start.wall,
            begun: stream.start.at,
            tags: reporter.local_tags(),
            local: Some(stream.entry.facts.local),
        })
    }

    fn extracted(&self, request: &RequestHead) -> Extracted {
        match &self.model.provider {
            Some(TracingProvider::Zipkin(zipkin)) => match context::b3(&request.headers) {
                Extracted::Sampled(None) if zipkin.w3c => context::w3c(&request.headers),
                found => found,
            },
            Some(TracingProvider::OpenTelemetry(_)) | None => context::w3c(&request.headers),
        }
    }

    fn root(&self, sampled: bool) -> Context {
        let span = rand::random::<u64>().max(1);
        let wide = match &self.model.provider {
            Some(TracingProvider::Zipkin(zipkin)) => zipkin.trace_id_128bit,
            Some(TracingProvider::OpenTelemetry(_)) | None => true,
        };
        let high = if wide { rand::random::<u64>().max(1) } else { 0 };
        let trace = u128::from(high) << 64 | u128::from(span);
        Context { trace, span, parent: None, sampled: Some(self.sampled(sampled)), state: None }
    }

    /// A server's span is its client's, where they share it.
    fn child_of(&self, parent: &Context, sampled: bool, egress: bool) -> (Context, bool) {
        let sampled = Some(parent.sampled.unwrap_or_else(|| self.sampled(sampled)));
        let shares = match &self.model.provider {
            Some(TracingProvider::Zipkin(zipkin)) => {
                zipkin.shared_span_context && !zipkin.split_spans_for_request && !egress
            }
            Some(TracingProvider::OpenTelemetry(_)) | None => false,
        };
        if shares {
            return (Context { sampled, ..parent.clone() }, true);
        }
        (
            Context {
                span: rand::random::<u64>().max(1),
                parent: Some(parent.span),
                sampled,
                ..parent.clone()
            },
            false,
        )
    }

    fn sampled(&self, by_id: bool) -> bool {
        match &self.model.provider {
            Some(TracingProvider::OpenTelemetry(otel)) => match otel.sampler {
                Some(Sampler::AlwaysOn) => true,
                None => by_id,
            },
            Some(TracingProvider::Zipkin(_)) | None => by_id,
        }
    }
}

impl Span {
    /// Tells whoever gets this request next. The headers of whom it came from are replaced.
    pub fn inject(&self, head: &mut RequestHead) {
        if self.tracer.model.no_context_propagation {
            return;
        }
        match &self.tracer.model.provider {
            Some(TracingProvider::Zipkin(zipkin)) => {
                self.context.inject_b3(&mut head.headers);
                if zipkin.w3c {
                    self.context.inject_w3c(&mut head.headers);
                }
            }
            Some(TracingProvider::OpenTelemetry(_)) | None => self.context.inject_w3c(&mut head.headers),
        }
    }

    /// The span of one attempt upstream; none where attempts have none of their own, and it is not `wanted` either.
    pub fn child(&self, entry: &Entry, cluster: &str, wanted: bool) -> Option<Self> {
        if !self.tracer.model.spawn_upstream_span && !wanted {
            return None;
        }
        let name = match &self.tracer.upstream_operation {
            Some(format) => format.text(entry),
            None => format!("router {cluster} egress"),
        };
        let context = Context {
            span: rand::random::<u64>().max(1),
            parent: Some(self.context.span),
            ..self.context.clone()
        };
        Some(Self {
            tracer: self.tracer.clone(),
            context,
            name,
            kind: Kind::Client,
            shared: false,
            start: clock::wall(),
            begun: clock::now(),
            tags: Vec::new(),
            local: self.local,
        })
    }

    pub fn tag(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) {
        self.tags.push((name.into(), value.into()));
    }

    /// The request has ended.
    pub fn finish(mut self, entry: &Entry) {
        if self.context.sampled != Some(true) {
            return;
        }
        let tracer = self.tracer.clone();
        tags::of_request(&mut self, entry, &tracer.model);
        tags::common(&mut self, entry, &tracer.tags);
        self.report();
    }

    /// An attempt has ended.
    pub fn finish_child(mut self, entry: &Entry) {
        if self.context.sampled != Some(true) {
            return;
        }
        let tracer = self.tracer.clone();
        tags::of_attempt(&mut self, entry);
        tags::common(&mut self, entry, &tracer.tags);
        self.report();
    }

    fn report(self) {
        let Self { tracer, context, name, kind, shared, start, begun, tags, local } = self;
        let took = clock::now().saturating_duration_since(begun);
        if let Some(reporter) = &tracer.reporter {
            reporter.push(Done { context, name, kind, shared, start, took, tags, local });
        }
    }
}

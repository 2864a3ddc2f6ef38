//! Traces: a span of each request that is sampled, told to a collector by Zipkin's JSON or by OTLP.
//!
//! [`Tracer`] belongs to a connection manager. [`Tracer::begin`] reads a request's context and makes the span,
//! [`Span::inject`] tells the upstream, [`Span::finish`] puts what became of the request into tags and hands the span to
//! the [`reporter`], which sends many at a time.

pub mod context;
mod notes;
mod otlp;
pub mod reason;
mod reporter;
mod tags;
mod zipkin;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use proxy_config::model::Cluster;
use proxy_config::model::http::route::RouteTracing;
use proxy_config::model::http::tracing::{Sampler, Tracing, TracingProvider};

pub use self::context::Context;
use self::context::Extracted;
use self::notes::Note;
pub use self::reason::{Reason, Sampling};
use self::reporter::Reporter;
pub use self::reporter::{Collectors, Node};
use self::tags::Came;
use super::access_log::Format;
use super::{Entry, Flags};
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
    sampling: Sampling,
}

/// What a route says instead of its connection manager, compiled.
pub struct OfRoute {
    sampling: Sampling,
    operation: Option<Format>,
    upstream_operation: Option<Format>,
    /// Before those of the manager that have another name.
    tags: Vec<tags::Custom>,
}

/// One hop of a trace, until it is finished.
pub struct Span {
    tracer: Arc<Tracer>,
    pub context: Context,
    pub name: String,
    kind: Kind,
    origin: Origin,
    /// Its context came, and goes on, in the header `b3`.
    single: bool,
    start: SystemTime,
    begun: clock::Instant,
    tags: Vec<(Cow<'static, str>, String)>,
    notes: Vec<Note>,
    local: Option<SocketAddr>,
    route: Option<Arc<OfRoute>>,
}

/// Where the span above this one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// There is none.
    Root,
    /// At whom the request came from.
    Remote,
    /// Here.
    Local,
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
    origin: Origin,
    start: SystemTime,
    took: std::time::Duration,
    tags: Vec<(Cow<'static, str>, String)>,
    notes: Vec<Note>,
    local: Option<SocketAddr>,
}

impl Done {
    /// What it holds of memory, about.
    fn weight(&self) -> usize {
        let tags = self.tags.iter().map(|(name, value)| name.len() + value.len() + 48);
        tags.sum::<usize>() + self.name.len() + self.notes.len() * size_of::<Note>() + 256
    }
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
            sampling: Sampling::of(model),
            reporter,
            model: Tracing { provider, ..model.clone() },
        }))
    }

    /// How many requests of a route are traced.
    pub fn sampling(&self, route: Option<&OfRoute>) -> Sampling {
        route.map_or(self.sampling, |route| route.sampling)
    }

    /// The span of a request, whose id says whether it is sampled. None where its headers are no context, or nobody is
    /// told of any.
    pub fn begin(
        self: &Arc<Self>,
        stream: &mut Stream,
        sampled: bool,
        route: Option<Arc<OfRoute>>,
    ) -> Option<Span> {
        let reporter = self.reporter.as_ref()?;
        reporter.start(&stream.conn);
        let egress = stream.entry.origin.direction == Some(Direction::Outbound);
        let request = stream.request();
        let kind = if self.is_client(egress) { Kind::Client } else { Kind::Server };
        let (context, origin) = match self.extracted(request) {
            Extracted::Broken => return None,
            Extracted::Sampled(said) => (self.root(said.unwrap_or(sampled)), Origin::Root),
            Extracted::Context(parent) => (self.child_of(&parent, sampled, kind), Origin::Remote),
        };
        let name = match &self.model.provider {
            Some(TracingProvider::Zipkin(_)) => request.authority.clone(),
            Some(TracingProvider::OpenTelemetry(_)) | None if egress => {
                format!("egress {}", request.authority)
            }
            Some(TracingProvider::OpenTelemetry(_)) | None => "ingress".to_owned(),
        };
        let of_route = route.as_ref().and_then(|route| route.operation.as_ref());
        let operation = of_route.or(self.operation.as_ref());
        let name = operation.map_or(name, |format| format.text(&stream.entry));
        let single = context::is_single(&request.headers);
        let http = stream.http_mut();
        http.traced = context.sampled == Some(true);
        http.trace_id = Some(context.trace_id().into());
        http.span_id = Some(context.span_id().into());
        Some(Span {
            tracer: self.clone(),
            context,
            name,
            kind,
            origin,
            single,
            start: stream.start.wall,
            begun: stream.start.at,
            tags: reporter.local_tags(),
            notes: Vec::new(),
            local: Some(stream.entry.facts.local),
            route,
        })
    }

    /// Where attempts have spans of their own, that of the request is the server's on each way.
    fn is_client(&self, egress: bool) -> bool {
        egress && !self.splits()
    }

    fn splits(&self) -> bool {
        let split = match &self.model.provider {
            Some(TracingProvider::Zipkin(zipkin)) => zipkin.split_spans_for_request,
            Some(TracingProvider::OpenTelemetry(_)) | None => false,
        };
        split || self.model.spawn_upstream_span
    }

    /// Of an attempt. Zipkin's goes by the direction where only the router asks for it, as that of the request does.
    fn kind_of_attempt(&self, request: Kind) -> Kind {
        match &self.model.provider {
            Some(TracingProvider::Zipkin(_)) if !self.splits() => request,
            Some(TracingProvider::Zipkin(_) | TracingProvider::OpenTelemetry(_)) | None => Kind::Client,
        }
    }

    fn extracted(&self, request: &RequestHead) -> Extracted {
        match &self.model.provider {
            Some(TracingProvider::Zipkin(zipkin)) => match context::b3(&request.headers) {
                Extracted::Sampled(None) if zipkin.w3c => match context::w3c(&request.headers) {
                    // As if it were not there.
                    Extracted::Broken => Extracted::Sampled(None),
                    found @ (Extracted::Context(_) | Extracted::Sampled(_)) => found,
                },
                found @ (Extracted::Context(_) | Extracted::Sampled(_) | Extracted::Broken) => found,
            },
            Some(TracingProvider::OpenTelemetry(_)) | None => context::w3c(&request.headers),
        }
    }

    fn root(&self, sampled: bool) -> Context {
        let span = rand::random::<u64>().max(1);
        let trace = match &self.model.provider {
            Some(TracingProvider::Zipkin(zipkin)) => {
                let high = if zipkin.trace_id_128bit { rand::random::<u64>().max(1) } else { 0 };
                // Of 64 bits, the trace has its first span's id.
                let trace = u128::from(high) << 64 | u128::from(span);
                if zipkin.timestamp_trace_ids { with_time(trace) } else { trace }
            }
            Some(TracingProvider::OpenTelemetry(_)) | None => rand::random::<u128>().max(1),
        };
        Context { trace, span, parent: None, sampled: Some(sampled), state: None }
    }

    /// A server's span is its client's, where they share it.
    fn child_of(&self, parent: &Context, sampled: bool, kind: Kind) -> Context {
        let sampled = match self.has_sampler() {
            // It is asked of those that are traced by their id, whatever their context says.
            true => Some(sampled),
            false if self.wants_both() => Some(sampled && parent.sampled != Some(false)),
            false => Some(parent.sampled.unwrap_or(sampled)),
        };
        if self.shares(kind) {
            return Context { sampled, ..parent.clone() };
        }
        let span = rand::random::<u64>().max(1);
        Context { span, parent: Some(parent.span), sampled, ..parent.clone() }
    }

    /// Whether a server's span is its client's.
    fn shares(&self, kind: Kind) -> bool {
        match &self.model.provider {
            Some(TracingProvider::Zipkin(zipkin)) => zipkin.shared_span_context && kind == Kind::Server,
            Some(TracingProvider::OpenTelemetry(_)) | None => false,
        }
    }

    /// Whether a request is sampled only where its id says so, too, and not by its context alone.
    fn wants_both(&self) -> bool {
        matches!(self.model.provider, Some(TracingProvider::OpenTelemetry(_)))
    }

    /// Of the one that there is: it wants all that it is asked of.
    fn has_sampler(&self) -> bool {
        match &self.model.provider {
            Some(TracingProvider::OpenTelemetry(otel)) => match otel.sampler {
                Some(Sampler::AlwaysOn) => true,
                None => false,
            },
            Some(TracingProvider::Zipkin(_)) | None => false,
        }
    }

    /// Where the configuration says what spans are called, decorators do not.
    pub fn names(&self, route: Option<&OfRoute>) -> bool {
        self.operation.is_some() || route.is_some_and(|route| route.operation.is_some())
    }
}

impl OfRoute {
    pub fn new(model: &RouteTracing) -> Result<Self, BuildError> {
        let format = |format: &Option<_>| format.as_ref().map(tags::compile).transpose();
        Ok(Self {
            sampling: Sampling::of_route(model),
            operation: format(&model.operation)?,
            upstream_operation: format(&model.upstream_operation)?,
            tags: model.custom_tags.iter().map(tags::Custom::new).collect::<Result<_, _>>()?,
        })
    }
}

/// A trace whose id begins with the seconds of now, in the four first bytes of 16 or of 8.
fn with_time(trace: u128) -> u128 {
    let seconds = clock::wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let seconds = u128::from(seconds & 0xffff_ffff);
    match trace >> 64 {
        0 => seconds << 32 | u128::from(rand::random::<u32>()),
        _ => seconds << 96 | trace & ((1 << 96) - 1),
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
                if self.single {
                    self.context.inject_b3_single(&mut head.headers);
                } else {
                    self.context.inject_b3(&mut head.headers);
                }
                if zipkin.w3c {
                    self.context.inject_w3c(&mut head.headers);
                }
            }
            Some(TracingProvider::OpenTelemetry(_)) | None => {
                self.context.inject_w3c(&mut head.headers);
                self.context.inject_state(&mut head.headers);
            }
        }
    }

    /// Its request has another route.
    pub fn follow(&mut self, route: Option<Arc<OfRoute>>, entry: &Entry) {
        let of_route = route.as_ref().and_then(|route| route.operation.as_ref());
        if let Some(operation) = of_route.or(self.tracer.operation.as_ref()) {
            self.name = operation.text(entry);
        }
        self.route = route;
    }

    /// The span of one attempt upstream, of which there were some before; none where attempts have none of their own.
    /// `asked`: the router's own wish.
    pub fn child(&self, entry: &Entry, cluster: &Cluster, attempt: u32, asked: bool) -> Option<Self> {
        if !(self.tracer.model.spawn_upstream_span || asked) {
            return None;
        }
        let of_route = self.route.as_ref().and_then(|route| route.upstream_operation.as_ref());
        let name = match of_route.or(self.tracer.upstream_operation.as_ref()) {
            Some(format) => format.text(entry),
            None => format!("router {} egress", cluster.alt_stat_name.as_ref().unwrap_or(&cluster.name)),
        };
        let kind = self.tracer.kind_of_attempt(self.kind);
        let context = self.tracer.child_of(&self.context, self.context.sampled == Some(true), kind);
        let mut span = self.below(name, kind, context);
        if attempt > 1 {
            span.tag("retry.count", (attempt - 1).to_string());
        }
        Some(span)
    }

    /// The span of a copy of the request; `sampled`: whatever that of the request is.
    pub fn mirrored(&self, sampled: Option<bool>) -> Self {
        let parent = self.context.sampled == Some(true);
        let mut context = self.tracer.child_of(&self.context, parent, Kind::Client);
        if sampled.is_some() {
            context.sampled = sampled;
        }
        self.below("mirror".to_owned(), Kind::Client, context)
    }

    fn below(&self, name: String, kind: Kind, context: Context) -> Self {
        Self {
            tracer: self.tracer.clone(),
            context,
            name,
            kind,
            origin: Origin::Local,
            single: self.single,
            start: clock::wall(),
            begun: clock::now(),
            tags: Vec::new(),
            notes: Vec::new(),
            local: self.local,
            route: self.route.clone(),
        }
    }

    pub fn tag(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) {
        self.tags.push((name.into(), value.into()));
    }

    /// The request has ended.
    pub fn finish(mut self, entry: &Entry) {
        if self.context.sampled == Some(true) {
            let tracer = self.tracer.clone();
            tags::of_request(&mut self, entry, &tracer.model);
            if tracer.model.verbose {
                self.notes = notes::of_request(entry);
            }
            self.end(entry, &Came::of(entry));
        }
    }

    /// An attempt has ended.
    pub fn finish_child(self, entry: &Entry) {
        // That there are no more of them is not its own.
        let came = Came::of(entry);
        self.finish_attempt(entry, &Came { flags: came.flags.without(Flags::RETRIED), ..came });
    }

    /// Another attempt, or a redirect, is in the place of what this one has brought.
    pub fn drop_child(mut self, entry: &Entry, status: u16, complete: bool) {
        if !complete {
            self.tag("canceled", "true");
        }
        self.finish_attempt(entry, &Came { status, flags: Flags::NONE, why: "" });
    }

    /// An attempt has ended without a response.
    pub fn fail_child(self, entry: &Entry, flags: Flags, why: &'static str) {
        self.finish_attempt(entry, &Came { status: 0, flags, why });
    }

    /// A copy of the request has its response, or none: the tags of the configuration are not for it, as in Envoy.
    pub fn finish_mirrored(mut self, entry: &Entry, status: u16) {
        if self.context.sampled == Some(true) {
            tags::of_attempt(&mut self, entry);
            tags::common(&mut self, entry, &Came { status, flags: entry.outcome.flags, why: "" });
            self.report();
        }
    }

    fn finish_attempt(mut self, entry: &Entry, came: &Came) {
        if self.context.sampled == Some(true) {
            tags::of_attempt(&mut self, entry);
            if self.tracer.model.verbose {
                self.notes = notes::of_attempt(entry);
            }
            self.end(entry, came);
        }
    }

    fn end(mut self, entry: &Entry, came: &Came) {
        let (tracer, route) = (self.tracer.clone(), self.route.clone());
        tags::common(&mut self, entry, came);
        let of_route = route.as_ref().map_or(&[] as &[_], |route| route.tags.as_slice());
        let more = tracer.tags.iter().filter(|tag| !of_route.iter().any(|own| own.name() == tag.name()));
        for tag in of_route.iter().chain(more) {
            tag.apply(&mut self, entry);
        }
        self.report();
    }

    fn report(self) {
        let Self { tracer, context, name, kind, origin, start, begun, tags, notes, local, .. } = self;
        let took = clock::now().saturating_duration_since(begun);
        if let Some(reporter) = &tracer.reporter {
            reporter.push(Done { context, name, kind, origin, start, took, tags, notes, local });
        }
    }
}

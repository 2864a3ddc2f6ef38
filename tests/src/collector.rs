//! A collector of spans: Zipkin's JSON and OTLP, by HTTP or by gRPC.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use prost::Message as _;
use serde_json::{Map, Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// How it is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// Zipkin's JSON, or OTLP, by what the path says.
    Http1,
    /// The same, and OTLP by gRPC.
    Http2,
}

/// One report.
#[derive(Clone, Debug)]
pub struct Report {
    /// `:path`, `:authority` and the headers.
    pub head: Value,
    /// As Zipkin's JSON, or made like it.
    pub spans: Vec<Value>,
}

/// Ends when it is dropped.
pub struct Collector {
    pub address: SocketAddr,
    state: Arc<State>,
    _runtime: Runtime,
}

#[derive(Default)]
struct State {
    reports: Mutex<Vec<Report>>,
    trouble: Mutex<Option<String>>,
}

/// After the last span that is waited for: more are a mistake. Where none is waited for it is all there is.
const MORE: Duration = Duration::from_millis(40);
const NONE: Duration = Duration::from_millis(120);

impl Collector {
    pub fn start(speaks: Speaks) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        let state = Arc::<State>::default();
        let shared = state.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, speaks, shared.clone()));
            }
        });
        Ok(Self { address, state, _runtime: runtime })
    }

    /// What came since the last time: so many spans at least, and what comes just after them.
    pub fn take(&self, spans: usize, limit: Duration) -> Result<Vec<Report>> {
        let start = Instant::now();
        while self.count() < spans {
            ensure!(start.elapsed() < limit, "{} of {spans} spans came: {:?}", self.count(), self.reports());
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(if spans == 0 { NONE } else { MORE });
        let trouble = self.state.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
        ensure!(trouble.is_none(), "{}", trouble.unwrap_or_default());
        Ok(std::mem::take(&mut *self.reports()))
    }

    /// As [`Self::take`], of all reports together.
    pub fn spans(&self, spans: usize) -> Result<Vec<Value>> {
        let reports = self.take(spans, Duration::from_secs(4))?;
        Ok(reports.into_iter().flat_map(|report| report.spans).collect())
    }

    fn count(&self) -> usize {
        self.reports().iter().map(|report| report.spans.len()).sum()
    }

    fn reports(&self) -> MutexGuard<'_, Vec<Report>> {
        self.state.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(stream: TcpStream, speaks: Speaks, state: Arc<State>) {
    let service = service_fn(|request| answer(request, state.clone()));
    let io = TokioIo::new(stream);
    // A proxy that goes is no failure of the collector.
    match speaks {
        Speaks::Http1 => drop(http1::Builder::new().serve_connection(io, service).await),
        Speaks::Http2 => {
            drop(http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await);
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<State>,
) -> Result<Response<BoxBody<Bytes, std::convert::Infallible>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let grpc = head.headers.get("content-type").is_some_and(|kind| kind == "application/grpc");
    let host = head.headers.get("host").and_then(|host| host.to_str().ok());
    let authority = head.uri.authority().map(|authority| authority.as_str()).or(host);
    let told = json!({
        "method": head.method.as_str(),
        "path": head.uri.path(),
        "authority": authority,
        "headers": headers(&head.headers),
    });
    let found = match (head.uri.path(), grpc) {
        (path, true) => {
            ensure!(path == "/opentelemetry.proto.collector.trace.v1.TraceService/Export", "{path}");
            body.get(5..).context("no message").and_then(otlp)
        }
        (path, false) if path.starts_with("/v1/traces") => otlp(&body),
        (_, false) => serde_json::from_slice(&body).context("no list of spans"),
    };
    match found {
        Ok(spans) => {
            let mut reports = state.reports.lock().unwrap_or_else(PoisonError::into_inner);
            reports.push(Report { head: told, spans });
        }
        Err(error) => {
            let text = format!("{error:#} in {}", String::from_utf8_lossy(&body));
            *state.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        }
    }
    Ok(if grpc {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", hyper::header::HeaderValue::from_static("0"));
        let body = Full::new(Bytes::from_static(&[0; 5])).with_trailers(async move { Some(Ok(trailers)) });
        Response::builder().header("content-type", "application/grpc").body(body.boxed())?
    } else {
        // Envoy's Zipkin takes nothing else for success.
        let status = if head.uri.path().starts_with("/v1/traces") { 200 } else { 202 };
        Response::builder().status(status).body(Full::default().boxed())?
    })
}

fn headers(map: &HeaderMap) -> Value {
    let pair = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
        (name.as_str().to_owned(), Value::from(String::from_utf8_lossy(value.as_bytes())))
    };
    Value::Object(map.iter().map(pair).collect())
}

/// OTLP, in the shape of Zipkin's.
fn otlp(bytes: &[u8]) -> Result<Vec<Value>> {
    let request = ExportTraceServiceRequest::decode(bytes).context("no ExportTraceServiceRequest")?;
    let mut all = Vec::new();
    for of in request.resource_spans {
        let resource = of.resource.map(|resource| attributes(&resource.attributes));
        for scope in of.scope_spans {
            let named = scope.scope.map(|scope| json!({ "name": scope.name, "version": scope.version }));
            all.extend(scope.spans.into_iter().map(|span| {
                json!({
                    "traceId": hex(&span.trace_id),
                    "id": hex(&span.span_id),
                    "parentId": if span.parent_span_id.is_empty() { Value::Null } else { hex(&span.parent_span_id).into() },
                    "name": span.name,
                    "kind": span.kind,
                    "timestamp": span.start_time_unix_nano,
                    "duration": span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano),
                    "tags": attributes(&span.attributes),
                    "status": span.status.map(|status| json!([status.code, status.message])),
                    "traceState": span.trace_state,
                    "flags": span.flags,
                    "events": span.events.iter().map(|event| event.name.clone()).collect::<Vec<_>>(),
                    "resource": resource,
                    "scope": named,
                })
            }));
        }
    }
    Ok(all)
}

fn attributes(pairs: &[KeyValue]) -> Value {
    let text = |pair: &KeyValue| match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => Value::from(text.as_str()),
        other => Value::from(format!("{other:?}")),
    };
    Value::Object(pairs.iter().map(|pair| (pair.key.clone(), text(pair))).collect::<Map<_, _>>())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

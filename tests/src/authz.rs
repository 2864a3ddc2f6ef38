//! An authorization service under a test's command, by gRPC: it keeps what it was asked, and answers by the path of
//! the request that it is asked about.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
pub use tonic::Code;
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};

use crate::xds::{Raw, json_of, message};

/// What is answered to a check.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// A `CheckResponse`.
    Answer(Bytes),
    Fails(Code),
    /// No answer at all.
    Hangs,
}

/// One check.
#[derive(Clone, Debug)]
pub struct Checked {
    pub metadata: BTreeMap<String, String>,
    /// The `CheckRequest`.
    pub request: Value,
}

/// It ends when it is dropped.
pub struct Authz {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

struct Shared {
    verdicts: HashMap<String, Verdict>,
    checked: Mutex<Vec<Checked>>,
}

impl Verdict {
    /// Of a `CheckResponse` as JSON.
    pub fn answer(response: Value) -> Result<Self> {
        let message = message("envoy.service.auth.v3.CheckResponse", response)?;
        Ok(Self::Answer(message.encode_to_vec().into()))
    }
}

impl Authz {
    /// By path, without its query; all others pass.
    pub fn start(verdicts: HashMap<String, Verdict>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let shared = Arc::new(Shared { verdicts, checked: Mutex::default() });
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).context("the service")?;
        let address = listener.local_addr()?;
        let serving = shared.clone();
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let _ = socket.set_nodelay(true);
                tokio::spawn(serve(socket, serving.clone()));
            }
        });
        Ok(Self { address, shared, runtime: Some(runtime) })
    }

    /// All that it was asked since the last time.
    pub fn taken(&self) -> Vec<Checked> {
        std::mem::take(&mut *self.shared.checked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Authz {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(2));
        }
    }
}

async fn serve(socket: TcpStream, shared: Arc<Shared>) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let call = Call { path: request.uri().path().to_owned(), authority, shared: shared.clone() };
        async move { Ok::<_, Infallible>(Grpc::new(Raw).unary(call, request).await) }
    });
    let http = http2::Builder::new(TokioExecutor::new());
    // How it ended shows at the calls.
    let _ = http.serve_connection(TokioIo::new(socket), service).await;
}

struct Call {
    path: String,
    authority: String,
    shared: Arc<Shared>,
}

impl UnaryService<Bytes> for Call {
    type Response = Bytes;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Bytes>, Status>> + Send>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let mut metadata: BTreeMap<String, String> = BTreeMap::new();
        for (name, value) in request.metadata().clone().into_headers().iter() {
            let value = String::from_utf8_lossy(value.as_bytes());
            let all = metadata.entry(name.to_string()).or_default();
            if !all.is_empty() {
                all.push(',');
            }
            all.push_str(&value);
        }
        metadata.insert(":path".to_owned(), self.path.clone());
        metadata.insert(":authority".to_owned(), self.authority.clone());
        let told = json_of("envoy.service.auth.v3.CheckRequest", request.get_ref());
        let path = told["attributes"]["request"]["http"]["path"].as_str().unwrap_or_default().to_owned();
        let checked = Checked { metadata, request: told };
        self.shared.checked.lock().unwrap_or_else(PoisonError::into_inner).push(checked);
        let path = path.split('?').next().unwrap_or_default();
        let verdict = self.shared.verdicts.get(path).cloned();
        Box::pin(async move {
            match verdict {
                None => Ok(Response::new(Bytes::new())),
                Some(Verdict::Answer(bytes)) => Ok(Response::new(bytes)),
                Some(Verdict::Fails(code)) => Err(Status::new(code, "as it was told")),
                Some(Verdict::Hangs) => std::future::pending().await,
            }
        })
    }
}

/// What differs from one run to the next is only shown to be there.
pub fn compared(checked: &Checked) -> Value {
    let mut request = checked.request.clone();
    let mut metadata = checked.metadata.clone();
    hide(&mut request["attributes"]["source"]["address"]["socket_address"]["port_value"]);
    hide(&mut request["attributes"]["destination"]["address"]["socket_address"]["port_value"]);
    hide(&mut request["attributes"]["request"]["time"]);
    hide(&mut request["attributes"]["request"]["http"]["id"]);
    hide(&mut request["attributes"]["request"]["http"]["headers"]["x-request-id"]);
    if let Some(all) = request["attributes"]["request"]["http"]["header_map"]["headers"].as_array_mut() {
        for header in all.iter_mut().filter(|header| header["key"] == "x-request-id") {
            hide(&mut header["raw_value"]);
        }
        all.sort_by_key(ToString::to_string);
    }
    for name in ["traceparent", "x-request-id"] {
        metadata.remove(name);
    }
    json!({ "metadata": metadata, "request": request })
}

fn hide(value: &mut Value) {
    if !value.is_null() {
        *value = json!("…");
    }
}

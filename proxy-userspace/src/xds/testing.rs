//! Sources for tests, also of other modules.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::TokioIo;
use proxy_config::xds::file::FileResponse;
use proxy_config::xds::wire::{self, DeltaRequest, Item, SotwRequest};
use proxy_config::xds::{Kind, RawResource};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::server::StreamingService;
use tonic::{Request, Response, Status, Streaming};

use super::grpc::Executor;
use super::grpc::codec::Raw;
use super::{Sources, SourcesEnv, Subscribe, file};
use crate::net::HostDial;
use crate::task::Tasks;
use crate::telemetry::stats::Stats;
use crate::watch::{Directories, Parse};

/// Without a control plane; with how often a file was parsed.
pub(crate) fn sources(stats: &Arc<Stats>, tasks: &Tasks) -> (Arc<dyn Subscribe>, Arc<AtomicUsize>) {
    let parsed = Arc::new(AtomicUsize::new(0));
    let count = parsed.clone();
    let open = move |kind: Kind, path: &Path| -> Parse<file::Judged<FileResponse>> {
        let (mut read, count) = (file::open(kind, path), count.clone());
        Box::new(move |bytes| {
            count.fetch_add(1, Ordering::Relaxed);
            read(bytes)
        })
    };
    (Sources::reading(env(stats, tasks), Arc::new(open), 1 << 20), parsed)
}

pub(crate) fn env(stats: &Arc<Stats>, tasks: &Tasks) -> SourcesEnv {
    SourcesEnv {
        stats: stats.clone(),
        tasks: tasks.clone(),
        directories: Arc::<Directories>::default(),
        node: Bytes::new(),
        ads: None,
        dial: Arc::new(HostDial),
        connections: Arc::default(),
    }
}

/// A server of xDS by gRPC that says what the test tells it to.
pub(super) struct Server {
    pub(super) streams: mpsc::UnboundedReceiver<ServerStream>,
}

/// One stream: it ends when it is dropped.
pub(super) struct ServerStream {
    pub(super) path: String,
    pub(super) authority: String,
    pub(super) headers: HeaderMap,
    requests: mpsc::UnboundedReceiver<Bytes>,
    /// Whether the server reads.
    pub(super) listens: watch::Sender<bool>,
    pub(super) responses: mpsc::UnboundedSender<Result<Bytes, Status>>,
}

/// Longer than anything takes on a loaded machine.
pub(super) const LONG: Duration = Duration::from_secs(30);

impl Server {
    pub(super) async fn tcp(tasks: &Tasks) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Self::start(tasks, listener), address)
    }

    pub(super) fn start(tasks: &Tasks, listener: TcpListener) -> Self {
        let (sender, streams) = mpsc::unbounded_channel();
        let connections = tasks.clone();
        tasks.spawn("server", async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn("server_connection", serve(stream, sender.clone()));
            }
        });
        Self { streams }
    }

    pub(super) fn unix(tasks: &Tasks, path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let (sender, streams) = mpsc::unbounded_channel();
        let connections = tasks.clone();
        tasks.spawn("server", async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn("server_connection", serve(stream, sender.clone()));
            }
        });
        Self { streams }
    }

    /// With these certificates, one for each connection, and the last for the rest.
    pub(super) async fn tls(tasks: &Tasks, configs: Vec<Arc<ServerConfig>>) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::unbounded_channel();
        let connections = tasks.clone();
        tasks.spawn("server", async move {
            let mut count = 0;
            while let Ok((stream, _)) = listener.accept().await {
                let config = configs[count.min(configs.len() - 1)].clone();
                count += 1;
                let sender = sender.clone();
                connections.spawn("server_connection", async move {
                    if let Ok(stream) = TlsAcceptor::from(config).accept(stream).await {
                        serve(stream, sender).await;
                    }
                });
            }
        });
        (Self { streams }, address)
    }

    pub(super) async fn stream(&mut self) -> ServerStream {
        timeout(LONG, self.streams.recv()).await.expect("a stream in time").unwrap()
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    sender: mpsc::UnboundedSender<ServerStream>,
) {
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        let (path, headers) = (request.uri().path().to_owned(), request.headers().clone());
        let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let handler = Handler { path, authority, headers, sender: sender.clone() };
        let mut grpc = tonic::server::Grpc::new(Raw);
        async move { Ok::<_, Infallible>(grpc.streaming(handler, request).await) }
    });
    let mut builder = http2::Builder::new(Executor(Tasks::new(&Stats::new())));
    let _ = builder.max_frame_size(1 << 20).serve_connection(TokioIo::new(stream), service).await;
}

struct Handler {
    path: String,
    authority: String,
    headers: HeaderMap,
    sender: mpsc::UnboundedSender<ServerStream>,
}

impl StreamingService<Bytes> for Handler {
    type Response = Bytes;
    type ResponseStream = UnboundedReceiverStream<Result<Bytes, Status>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (responses, out) = mpsc::unbounded_channel();
        let (forward, requests) = mpsc::unbounded_channel();
        let mut inbound = request.into_inner();
        let (listens, mut listening) = watch::channel(true);
        Tasks::new(&Stats::new()).spawn("server_requests", async move {
            while listening.wait_for(|listens| *listens).await.is_ok()
                && let Ok(Some(message)) = inbound.message().await
            {
                if forward.send(message).is_err() {
                    return;
                }
            }
        });
        let (path, authority) = (self.path.clone(), self.authority.clone());
        let headers = self.headers.clone();
        let stream = ServerStream { path, authority, headers, requests, listens, responses };
        let _ = self.sender.send(stream);
        ready(Ok(Response::new(UnboundedReceiverStream::new(out))))
    }
}

impl ServerStream {
    async fn request(&mut self) -> Bytes {
        timeout(LONG, self.requests.recv()).await.expect("a request in time").expect("the stream goes on")
    }

    pub(super) async fn sotw(&mut self) -> SotwRequest {
        SotwRequest::decode(&self.request().await).unwrap()
    }

    pub(super) async fn delta(&mut self) -> DeltaRequest {
        DeltaRequest::decode(&self.request().await).unwrap()
    }

    /// Whether nothing comes for a while.
    pub(super) async fn is_quiet(&mut self) -> bool {
        timeout(Duration::from_millis(150), self.requests.recv()).await.is_err()
    }

    /// A state of the world: resources by their names, as far as tests need them.
    pub(super) fn say(&self, kind: Kind, version: &str, names: &[&str]) {
        let _ = self.responses.send(Ok(response(kind, version, names, &[]).encode()));
    }

    pub(super) fn say_delta(&self, kind: Kind, version: &str, names: &[&str], removed: &[&str]) {
        let _ = self.responses.send(Ok(response(kind, version, names, removed).encode_delta()));
    }
}

/// The nonce is `n` and the version.
fn response(kind: Kind, version: &str, names: &[&str], removed: &[&str]) -> wire::Response {
    let resource = |name: &&str| {
        Item::Resource(RawResource {
            name: (*name).into(),
            version: version.into(),
            ttl: None,
            type_url: kind.type_url().into(),
            value: message(kind, name),
        })
    };
    wire::Response {
        kind: Some(kind),
        type_url: kind.type_url(),
        version: version.into(),
        nonce: format!("n{version}").into(),
        identifier: Some("test".to_owned()),
        items: Ok(names.iter().map(resource).collect()),
        removed: removed.iter().map(|name| Arc::from(*name)).collect(),
        errors: Vec::new(),
    }
}

/// A message with nothing but its name.
fn message(kind: Kind, name: &str) -> Bytes {
    let field = if kind == Kind::Endpoints { "cluster_name" } else { "name" };
    let text = format!("resources: [{{'@type': {}, {field}: '{name}'}}]", kind.type_url());
    proxy_config::xds::file::Reader::new(kind).read(&text).unwrap().resources[0].value.clone()
}

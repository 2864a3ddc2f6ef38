//! The server of a control plane: sockets, TLS, HTTP/2 and gRPC. What is said is [`super::state`]'s.

use std::convert::Infallible;
use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::server::{Grpc, StreamingService};
use tonic::{Request, Response, Status, Streaming};

use super::state::Shared;
use super::wire::Raw;
use crate::tls_server::TlsOptions;

/// How long its port may be somebody's after it was its own.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where it listens.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Address(SocketAddr),
    File(PathBuf),
}

/// It ends, with every connection, when it is dropped.
pub(super) struct Server {
    runtime: Option<Runtime>,
    /// The port is the kernel's, if it was left to it.
    pub(super) place: Place,
}

impl Server {
    pub(super) fn start(place: &Place, tls: Option<&TlsOptions>, shared: &Arc<Shared>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let tls = match tls {
            Some(options) => Some(TlsAcceptor::from(Arc::new(options.clone().alpn(&["h2"]).config()?))),
            None => None,
        };
        let shared = Arc::clone(shared);
        let place = match place {
            Place::Address(address) => {
                let _guard = runtime.enter();
                let listener = runtime.block_on(bind(*address))?;
                let address = listener.local_addr()?;
                runtime.spawn(async move {
                    while let Ok((socket, _)) = listener.accept().await {
                        let _ = socket.set_nodelay(true);
                        tokio::spawn(connection(socket, tls.clone(), Arc::clone(&shared)));
                    }
                });
                Place::Address(address)
            }
            Place::File(path) => {
                let _guard = runtime.enter();
                let _ = std::fs::remove_file(path);
                let listener = UnixListener::bind(path)?;
                runtime.spawn(async move {
                    while let Ok((socket, _)) = listener.accept().await {
                        tokio::spawn(connection(socket, tls.clone(), Arc::clone(&shared)));
                    }
                });
                Place::File(path.clone())
            }
        };
        Ok(Self { runtime: Some(runtime), place })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(2));
        }
    }
}

/// The same port again, right after a server that had it. A process that another test begins in this moment has its
/// socket, too, until it becomes the program that it is to be.
async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let start = Instant::now();
    loop {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(128)) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && start.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            result => return result.with_context(|| format!("cannot bind {address}")),
        }
    }
}

async fn connection<S>(socket: S, tls: Option<TlsAcceptor>, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    shared.connected();
    match tls {
        None => serve(socket, shared).await,
        Some(tls) => match tls.accept(socket).await {
            Ok(socket) => serve(socket, shared).await,
            Err(error) => shared.handshake_failed(&error.to_string()),
        },
    }
}

async fn serve<S>(socket: S, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let shared = Arc::clone(&shared);
        async move {
            let call = Call { method: request.uri().path().to_owned(), shared };
            // 10,000 names are more than tonic takes.
            let mut grpc = Grpc::new(Raw).max_decoding_message_size(64 << 20);
            Ok::<_, Infallible>(grpc.streaming(call, request).await)
        }
    });
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.max_concurrent_streams(1000);
    // How it ended shows at the streams.
    let _ = http.serve_connection(TokioIo::new(socket), service).await;
}

/// One call of a discovery service.
struct Call {
    method: String,
    shared: Arc<Shared>,
}

/// What goes out on a stream: messages, or its end.
pub(super) type Out = mpsc::UnboundedSender<Result<Bytes, Status>>;

type Answers = UnboundedReceiverStream<Result<Bytes, Status>>;

impl StreamingService<Bytes> for Call {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answers>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (shared, method) = (Arc::clone(&self.shared), self.method.clone());
        Box::pin(async move {
            let (out, answers) = mpsc::unbounded_channel();
            let metadata = request.metadata().iter().filter_map(|pair| match pair {
                tonic::metadata::KeyAndValueRef::Ascii(key, value) => {
                    Some((key.to_string(), value.to_str().ok()?.to_owned()))
                }
                tonic::metadata::KeyAndValueRef::Binary(..) => None,
            });
            let stream = shared.opened(&method, metadata.collect(), out)?;
            tokio::spawn(listen(request.into_inner(), shared, stream));
            Ok(Response::new(UnboundedReceiverStream::new(answers)))
        })
    }
}

async fn listen(mut requests: Streaming<Bytes>, shared: Arc<Shared>, stream: usize) {
    while let Ok(Some(request)) = requests.message().await {
        shared.received(stream, request);
    }
    shared.closed(stream);
}

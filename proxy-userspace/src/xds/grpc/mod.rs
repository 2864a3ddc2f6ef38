//! gRPC to a server of xDS: an HTTP/2 connection over a cluster's transport socket, and one stream on it.

pub(super) mod codec;
mod google;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use proxy_config::model::TransportSocket;
use proxy_config::model::grpc::{GoogleGrpc, GrpcService, GrpcTarget};
use proxy_config::model::tls::DataSource;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::{Code, Status, Streaming};

use self::codec::Raw;
use super::{Clusters, Nowhere};
use crate::cluster::{Client, Cluster, Env, Permit, Source, Want, address_text};
use crate::net::Dial;
use crate::task::Tasks;
use crate::telemetry::stats::Stats;
use crate::transport::Stream;

/// A message that is longer is refused, and the stream with it.
pub(super) const LONGEST_MESSAGE: usize = 256 << 20;

/// The way to one server.
pub(super) struct Channel {
    service: GrpcService,
    env: ChannelEnv,
    /// Of `google_grpc`, once it is made.
    own: Mutex<Option<Arc<Cluster>>>,
}

/// What channels need of the proxy around them.
#[derive(Clone)]
pub(super) struct ChannelEnv {
    pub(super) stats: Arc<Stats>,
    pub(super) tasks: Tasks,
    pub(super) dial: Arc<dyn Dial>,
    pub(super) connections: Arc<AtomicU64>,
    /// Set once there are clusters.
    pub(super) clusters: watch::Receiver<Option<Weak<dyn Clusters>>>,
    pub(super) longest_message: usize,
}

/// A connection, until it is dropped.
pub(super) struct Connection {
    sender: Sender,
    origin: Uri,
    metadata: MetadataMap,
    longest_message: usize,
    _driver: Driver,
}

/// `grpc.<stat_prefix>.`, of `google_grpc`.
struct Counted<'a>(&'a Stats, &'a str);

impl Counted<'_> {
    fn began(&self) {
        self.0.counter(format!("grpc.{}.streams_total", self.1)).inc();
    }

    fn ended(&self, code: Code) {
        self.0.counter(format!("grpc.{}.streams_closed_{}", self.1, i32::from(code))).inc();
    }
}

struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Channel {
    pub(super) fn new(service: GrpcService, env: ChannelEnv) -> Self {
        Self { service, env, own: Mutex::default() }
    }

    fn counted(&self) -> Option<Counted<'_>> {
        match &self.service.target {
            GrpcTarget::Cluster { .. } => None,
            GrpcTarget::Google(google) => Some(Counted(&self.env.stats, &google.stat_prefix)),
        }
    }

    /// A stream begins.
    pub(super) fn began(&self) {
        self.counted().iter().for_each(Counted::began);
    }

    /// A stream has ended.
    pub(super) fn ended(&self, code: Code) {
        self.counted().iter().for_each(|counted| counted.ended(code));
    }

    /// Connects, to whom it should be or not at all. The error says to whom, and why not.
    pub(super) async fn connect(&self) -> Result<Connection, String> {
        let metadata = self.metadata().await?;
        let (cluster, authority) = self.cluster().await?;
        let secure = cluster.model.transport_socket != TransportSocket::RawBuffer;
        // It may be that its name is not resolved yet; where that takes long, the next attempt will see it.
        let _ = timeout(cluster.model.connect_timeout, cluster.warmed()).await;
        let host = cluster.choose(&Want::default()).map_err(|why| why.to_string())?;
        let address = address_text(&host.address());
        let connection_id = self.env.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let (source, alpn) = (&Source::Cluster, &["h2"][..]);
        let client = Client { source, facts: None, connection_id, alpn, names: None };
        let upstream = cluster
            .connect(&host, self.env.dial.as_ref(), &client)
            .await
            .map_err(|why| format!("{address}: {why}"))?;
        let stream = Stream::new(upstream.connected.io, upstream.connected.transport);
        let (sender, driver) = self.handshake(stream, upstream.permit, &address).await?;
        let scheme = if secure { "https" } else { "http" };
        let origin = origin(scheme, &authority)?;
        Ok(Connection {
            sender,
            origin,
            metadata,
            longest_message: self.env.longest_message,
            _driver: driver,
        })
    }

    async fn handshake(
        &self,
        stream: Stream,
        permit: Permit,
        address: &str,
    ) -> Result<(Sender, Driver), String> {
        let mut builder = http2::Builder::new(Executor(self.env.tasks.clone()));
        // A control plane sends much at once, and what is slow here is slow by itself: each type has its task.
        builder.initial_stream_window_size(1 << 20).initial_connection_window_size(4 << 20);
        let handshake = builder.handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(|why| format!("{address}: {}", chain(&why)))?;
        let driver = self.env.tasks.spawn("xds_connection", async move {
            let _permit = permit;
            if let Err(why) = connection.await {
                log::debug!("connection of a control plane: {}", chain(&why));
            }
        });
        Ok((Sender(sender), Driver(driver.abort_handle())))
    }

    /// The cluster, and its `:authority`.
    async fn cluster(&self) -> Result<(Arc<Cluster>, String), String> {
        match &self.service.target {
            GrpcTarget::Cluster { name, authority } => {
                let mut clusters = self.env.clusters.clone();
                let known = clusters.wait_for(Option::is_some).await.map_err(|_| "the proxy stops")?.clone();
                let found = known.and_then(|known| known.upgrade()).and_then(|known| known.cluster(name));
                let cluster = found.ok_or_else(|| format!("unknown cluster {name:?}"))?;
                Ok((cluster, authority.clone().unwrap_or_else(|| name.to_string())))
            }
            GrpcTarget::Google(google) => self.own(google),
        }
    }

    fn own(&self, google: &GoogleGrpc) -> Result<(Arc<Cluster>, String), String> {
        let (model, authority) = google::cluster(google)?;
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = &*own {
            return Ok((cluster.clone(), authority));
        }
        // Envoy has no stats of such clusters.
        let stats = Arc::new(Stats::new());
        let env = Env::new(stats, self.env.tasks.clone(), self.env.dial.clone(), Arc::new(Nowhere));
        let cluster = Cluster::new(Arc::new(model), &env).map_err(|why| why.to_string())?;
        cluster.start(&env);
        *own = Some(cluster.clone());
        Ok((cluster, authority))
    }

    /// What goes with each stream; a token is read again each time.
    async fn metadata(&self) -> Result<MetadataMap, String> {
        let mut map = MetadataMap::new();
        for (key, value) in &self.service.initial_metadata {
            let wrong = || format!("initial_metadata: {key:?} is no header");
            let key: MetadataKey<Ascii> = key.to_ascii_lowercase().parse().map_err(|_| wrong())?;
            map.append(key, value.parse().map_err(|_| wrong())?);
        }
        if let GrpcTarget::Google(google) = &self.service.target
            && let Some(source) = &google.token
        {
            let token = token(source).await?;
            let value = format!("Bearer {}", token.trim());
            let mut value: MetadataValue<Ascii> =
                value.parse().map_err(|_| "the token cannot be sent in a header".to_owned())?;
            value.set_sensitive(true);
            map.insert("authorization", value);
        }
        Ok(map)
    }
}

async fn token(source: &DataSource) -> Result<String, String> {
    match source {
        DataSource::File(path) => {
            let read = tokio::fs::read_to_string(path).await;
            read.map_err(|why| format!("token {}: {why}", path.display()))
        }
        DataSource::Inline(bytes) => Ok(String::from_utf8_lossy(bytes).into_owned()),
        DataSource::Environment(name) => {
            std::env::var(&**name).map_err(|why| format!("token of the environment, {name}: {why}"))
        }
    }
}

/// What cannot be in an authority is not there: Envoy's names of clusters may be anything.
fn origin(scheme: &str, authority: &str) -> Result<Uri, String> {
    let valid = |text: &str| text.parse::<Authority>().ok();
    let plain = || authority.replace(|c: char| !c.is_ascii_alphanumeric() && !"-._~".contains(c), "_");
    let authority = valid(authority).or_else(|| valid(&plain())).ok_or("no authority")?;
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query("/");
    uri.build().map_err(|why| why.to_string())
}

impl Connection {
    /// Begins a stream. What comes by `requests` is sent.
    pub(super) async fn call(
        &self,
        path: &'static str,
        requests: mpsc::Receiver<Bytes>,
    ) -> Result<Streaming<Bytes>, Status> {
        let client = tonic::client::Grpc::with_origin(self.sender.clone(), self.origin.clone());
        let mut client = client.max_decoding_message_size(self.longest_message);
        let ready = client.ready().await;
        ready.map_err(|why| Status::unavailable(chain(&why)))?;
        let mut request = tonic::Request::new(ReceiverStream::new(requests));
        *request.metadata_mut() = self.metadata.clone();
        let response = client.streaming(request, PathAndQuery::from_static(path), Raw).await?;
        Ok(response.into_inner())
    }
}

/// As a service of tonic.
#[derive(Clone)]
struct Sender(http2::SendRequest<Body>);

impl tower_service::Service<Request<Body>> for Sender {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

#[derive(Clone)]
pub(super) struct Executor(pub(super) Tasks);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn("xds_http2", async move {
            let _ = future.await;
        });
    }
}

/// An error with its causes, each once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

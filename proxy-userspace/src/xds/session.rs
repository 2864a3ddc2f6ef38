//! One server session: keeps a stream, sends what [`Mux`] asks for, and has each type's consumers told by a task of
//! that type, so that a slow one holds up no other.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use proxy_config::model::config_source::ApiSource;
use proxy_config::xds::Kind;
use proxy_config::xds::wire::Response;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{sleep, sleep_until};
use tonic::{Code, Streaming};

use super::apply;
use super::backoff::{Bucket, Delays};
use super::grpc::{Channel, ChannelEnv, Connection};
use super::mux::{Delivery, Mux, Request, Terms, WatchId};
use super::status::{ControlPlane, Status};
use super::{Consumer, Failure, Names, Subscription};
use crate::clock;
use crate::cluster::Random;

/// So many responses of one type may wait to be applied, and so many answers to be sent; then the stream is not read.
const MOST_WAITING: usize = 32;
/// So many requests are on their way to the server. One that does not read gets no more, and its responses wait.
const MOST_SENT: usize = 8;

/// A session, while somebody keeps it.
pub(super) struct Session {
    shared: Arc<Shared>,
    tasks: Vec<AbortHandle>,
}

pub(super) struct Shared {
    pub(super) mux: Mutex<Mux<Weak<dyn Consumer>>>,
    /// There may be something to send.
    pub(super) asked: Notify,
    /// A deadline may have moved.
    pub(super) timed: Notify,
    /// Something was applied.
    pub(super) applied: Notify,
    queues: BTreeMap<Kind, Queue>,
    pub(super) status: Status,
}

struct Queue {
    sender: mpsc::UnboundedSender<Delivery>,
    waiting: Arc<AtomicUsize>,
}

/// What a session is for.
pub(super) struct SessionSpec {
    pub(super) source: Arc<ApiSource>,
    /// All types on one stream: ADS.
    pub(super) kind: Option<Kind>,
    pub(super) node: Bytes,
    pub(super) stats: Arc<ControlPlane>,
    pub(super) random: Arc<dyn Random>,
}

impl fmt::Display for SessionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let service = self.kind.map_or("ADS", Kind::service);
        write!(f, "{service} of {}", self.source.service.target)
    }
}

impl Session {
    /// Needs a runtime.
    pub(super) fn start(spec: SessionSpec, env: ChannelEnv) -> Arc<Self> {
        let kinds = spec.kind.map_or(Kind::ALL.to_vec(), |kind| vec![kind]);
        let (mut queues, mut receivers) = (BTreeMap::new(), Vec::new());
        for kind in kinds {
            let (sender, receiver) = mpsc::unbounded_channel();
            let waiting = Arc::<AtomicUsize>::default();
            queues.insert(kind, Queue { sender, waiting: waiting.clone() });
            receivers.push((receiver, waiting));
        }
        let terms = Terms {
            delta: spec.source.delta,
            node_once: spec.source.set_node_on_first_message_only,
            node: spec.node.clone(),
        };
        let shared = Arc::new(Shared {
            mux: Mutex::new(Mux::new(terms)),
            asked: Notify::new(),
            timed: Notify::new(),
            applied: Notify::new(),
            queues,
            status: Status::new(spec.to_string(), spec.stats.clone()),
        });
        let tasks = env.tasks.clone();
        let mut running = vec![
            tasks.spawn("xds_clock", tell_time(shared.clone())).abort_handle(),
            tasks.spawn("xds_session", run(shared.clone(), spec, env)).abort_handle(),
        ];
        for (receiver, waiting) in receivers {
            let apply = apply::run(shared.clone(), receiver, waiting);
            running.push(tasks.spawn("xds_apply", apply).abort_handle());
        }
        Arc::new(Self { shared, tasks: running })
    }

    pub(super) fn subscribe(
        self: &Arc<Self>,
        kind: Kind,
        names: Names,
        limit: Option<Duration>,
        consumer: &Arc<dyn Consumer>,
    ) -> Subscription {
        let to = Arc::downgrade(consumer);
        let (id, known) = self.shared.mux().subscribe(kind, names, to, limit, clock::now());
        self.shared.queue(known);
        self.shared.asked.notify_one();
        self.shared.timed.notify_one();
        Subscription::new(Watching { session: self.clone(), kind, id })
    }

    pub(super) fn status(&self) -> &Status {
        &self.shared.status
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

struct Watching {
    session: Arc<Session>,
    kind: Kind,
    id: WatchId,
}

impl Drop for Watching {
    fn drop(&mut self) {
        let shared = &self.session.shared;
        shared.mux().unsubscribe(self.kind, self.id);
        shared.asked.notify_one();
    }
}

impl Shared {
    pub(super) fn mux(&self) -> MutexGuard<'_, Mux<Weak<dyn Consumer>>> {
        self.mux.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self, deliveries: impl IntoIterator<Item = Delivery>) {
        for delivery in deliveries {
            if let Some(queue) = self.queues.get(&delivery.kind) {
                queue.waiting.fetch_add(1, Ordering::AcqRel);
                // It fails where the session ends.
                let _ = queue.sender.send(delivery);
            }
        }
    }

    fn is_full(&self) -> bool {
        self.mux().answers() >= MOST_WAITING
            || self.queues.values().any(|queue| queue.waiting.load(Ordering::Acquire) >= MOST_WAITING)
    }

    async fn room(&self) {
        loop {
            let applied = self.applied.notified();
            tokio::pin!(applied);
            applied.as_mut().enable();
            if !self.is_full() {
                return;
            }
            applied.await;
        }
    }
}

/// Tells who has waited too long, also while there is no stream.
async fn tell_time(shared: Arc<Shared>) {
    loop {
        let next = shared.mux().deadline();
        let wait = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {
                let late = shared.mux().tick(clock::now());
                shared.queue(late);
            }
            () = shared.timed.notified() => {}
        }
    }
}

/// Keeps a stream for ever.
async fn run(shared: Arc<Shared>, spec: SessionSpec, env: ChannelEnv) {
    let channel = Channel::new(spec.source.service.clone(), env);
    let mut delays = Delays::new(spec.source.service.backoff);
    loop {
        // There is nothing to ask before the first subscription.
        while shared.mux().len() == 0 {
            shared.asked.notified().await;
        }
        let why = match attempt(&shared, &spec, &channel, &mut delays).await {
            Ended::Again => continue,
            Ended::Failed(why) => why,
        };
        let delay = delays.next(spec.random.next());
        shared.status.disconnected(&why, delay);
        let failure = Failure::Disconnected(format!("{}: {why}", shared.status.name));
        let told = shared.mux().disconnected(&failure);
        shared.queue(told);
        sleep(delay).await;
    }
}

enum Ended {
    /// Something is asked for that only a new stream will say.
    Again,
    Failed(String),
}

/// Why a stream does not go on.
struct Broken {
    why: String,
    code: Code,
}

impl Broken {
    fn ours(why: String) -> Self {
        Self { why, code: Code::Cancelled }
    }
}

async fn attempt(shared: &Shared, spec: &SessionSpec, channel: &Channel, delays: &mut Delays) -> Ended {
    let connection = match channel.connect().await {
        Ok(connection) => connection,
        Err(why) => return Ended::Failed(why),
    };
    shared.mux().connected();
    channel.began();
    match Exchange::new(shared, spec).run(&connection, delays).await {
        Ok(()) => {
            channel.ended(Code::Cancelled);
            Ended::Again
        }
        Err(Broken { why, code }) => {
            channel.ended(code);
            Ended::Failed(why)
        }
    }
}

/// What goes over one stream.
struct Exchange<'a> {
    shared: &'a Shared,
    spec: &'a SessionSpec,
    bucket: Bucket,
    /// What requests wait for.
    held: Held,
}

#[derive(Clone, Copy)]
enum Held {
    Free,
    /// The rate allows the next one then.
    Until(clock::Instant),
    /// The server reads none.
    Full,
}

impl<'a> Exchange<'a> {
    fn new(shared: &'a Shared, spec: &'a SessionSpec) -> Self {
        Self { shared, spec, bucket: Bucket::new(spec.source.rate_limit, clock::now()), held: Held::Free }
    }

    /// Ends well where something is asked for that only a new stream will say.
    async fn run(&mut self, connection: &Connection, delays: &mut Delays) -> Result<(), Broken> {
        let (out, requests) = mpsc::channel(MOST_SENT);
        let call = connection.call(path(self.spec), requests);
        tokio::pin!(call);
        // A server may begin its answer only when it has been asked something.
        let mut stream = loop {
            self.send(&out);
            tokio::select! {
                biased;
                answered = &mut call => break answered.map_err(|status| said(&status))?,
                () = self.news(&out) => {}
            }
        };
        self.shared.status.connected();
        loop {
            self.send(&out);
            if self.shared.mux().take_restart() {
                return Ok(());
            }
            let shared = self.shared;
            tokio::select! {
                biased;
                message = next(shared, &mut stream) => {
                    let message = message?;
                    delays.reset();
                    self.take(&message).map_err(Broken::ours)?;
                }
                () = self.news(&out) => {}
            }
        }
    }

    /// Something may be to be sent.
    async fn news(&self, out: &mpsc::Sender<Bytes>) {
        match self.held {
            Held::Free => self.shared.asked.notified().await,
            Held::Until(at) => sleep_until(at).await,
            // It fails where the stream has ended.
            Held::Full => drop(out.reserve().await),
        }
    }

    /// Sends all that there is, as far as the rate allows and the server reads.
    fn send(&mut self, out: &mpsc::Sender<Bytes>) {
        let stats = &self.shared.status;
        self.held = Held::Free;
        let mut mux = self.shared.mux();
        while mux.pending() > 0 {
            let place = match out.try_reserve() {
                Ok(place) => place,
                Err(TrySendError::Full(())) => {
                    self.held = Held::Full;
                    break;
                }
                // The stream has ended, which its reader sees.
                Err(TrySendError::Closed(())) => break,
            };
            if let Err(at) = self.bucket.take(clock::now()) {
                self.held = Held::Until(at);
                stats.limited();
                break;
            }
            let Some(request) = mux.request() else { break };
            place.send(match &request {
                Request::Sotw(request) => request.encode(),
                Request::Delta(request) => request.encode(),
            });
        }
        stats.pending(mux.pending());
    }

    fn take(&self, message: &Bytes) -> Result<(), String> {
        let decode = if self.spec.source.delta { Response::decode_delta } else { Response::decode };
        let response = decode(message).map_err(|why| format!("not a response of xDS: {why}"))?;
        let status = &self.shared.status;
        status.heard(response.identifier.as_deref());
        for error in &response.errors {
            log::warn!("{}: the server says of {error}", status.name);
        }
        let told = self.shared.mux().response(response, clock::now());
        match told {
            Ok(delivery) => self.shared.queue(delivery),
            Err(why) => log::warn!("{}: ignored: {why}", status.name),
        }
        self.shared.timed.notify_one();
        Ok(())
    }
}

async fn next(shared: &Shared, stream: &mut Streaming<Bytes>) -> Result<Bytes, Broken> {
    shared.room().await;
    match stream.message().await {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(Broken { why: "the server has ended the stream".to_owned(), code: Code::Ok }),
        Err(status) => Err(said(&status)),
    }
}

/// A status, for people.
fn said(status: &tonic::Status) -> Broken {
    let message = status.message();
    let cause = std::error::Error::source(status).map(super::grpc::chain);
    let cause = cause.filter(|cause| !message.contains(cause.as_str()));
    let code = status.code();
    let why = match cause {
        Some(cause) => format!("{code:?}: {message}: {cause}"),
        None => format!("{code:?}: {message}"),
    };
    Broken { why, code }
}

fn path(spec: &SessionSpec) -> &'static str {
    let (sotw, delta) = match spec.kind {
        None => (
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        ),
        Some(Kind::Cluster) => (
            "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters",
            "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters",
        ),
        Some(Kind::Endpoints) => (
            "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints",
            "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints",
        ),
        Some(Kind::Listener) => (
            "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners",
            "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners",
        ),
        Some(Kind::Route) => (
            "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes",
            "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes",
        ),
        Some(Kind::Secret) => (
            "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
            "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
        ),
        Some(Kind::Extension) => (
            "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs",
            "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs",
        ),
    };
    if spec.source.delta { delta } else { sotw }
}

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use proxy_config::model;
use proxy_config::model::address::Address;
use proxy_config::model::cluster::Discovery;
use proxy_config::model::config_source::{ApiSource, ConfigSourceKind, RateLimit};
use proxy_config::model::endpoint::{
    Endpoint, EndpointHealthCheck, HealthStatus, LoadAssignment, LocalityEndpoints,
};
use proxy_config::model::grpc::{Backoff, GoogleChannel, GoogleGrpc, GrpcService, GrpcTarget};
use proxy_config::model::http::options::{Http2Options, HttpOptions, Keepalive, UpstreamProtocol};
use proxy_config::model::tls::DataSource;
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tonic::Status;

use super::testing::*;
use super::*;
use crate::cluster::{Cluster, Env};
use crate::net::HostDial;
use crate::task::Tasks;
use crate::telemetry::stats::Stats;

/// Remembers what it was told, and refuses what it is told to.
#[derive(Default)]
struct Log {
    told: Mutex<VecDeque<String>>,
    refusal: Mutex<Option<String>>,
    /// Its verdicts wait for that.
    gate: Option<Arc<Notify>>,
}

impl Consumer for Log {
    fn update(&self, update: &Update<'_>) -> Result<(), String> {
        let names: Vec<_> = update.resources.iter().map(|resource| &*resource.name).collect();
        let removed: Vec<_> = update.removed.iter().map(|name| format!("-{name}")).collect();
        self.say(format!("{} {} {}", update.version, names.join(","), removed.join(",")).trim().to_owned());
        self.refusal.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn verdict(&self) -> Option<Verdict<'_>> {
        let gate = self.gate.clone()?;
        Some(Box::pin(async move {
            gate.notified().await;
            Ok(())
        }))
    }

    fn failed(&self, failure: &Failure) {
        self.say(format!("failed: {failure}"));
    }
}

impl Log {
    fn say(&self, what: String) {
        self.told.lock().unwrap().push_back(what);
    }

    async fn next(&self) -> String {
        let start = crate::clock::now();
        loop {
            if let Some(told) = self.told.lock().unwrap().pop_front() {
                return told;
            }
            assert!(start.elapsed() < LONG, "nothing was told");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// The cluster `xds`.
struct Only(Arc<Cluster>);

impl Clusters for Only {
    fn cluster(&self, name: &str) -> Option<Arc<Cluster>> {
        (name == "xds").then(|| self.0.clone())
    }
}

struct Rig {
    stats: Arc<Stats>,
    tasks: Tasks,
    sources: Arc<Sources>,
    _clusters: Option<Arc<dyn Clusters>>,
}

fn service(target: GrpcTarget) -> GrpcService {
    GrpcService {
        target,
        timeout: None,
        initial_metadata: vec![("x-mesh".to_owned(), "m1".to_owned())],
        backoff: Backoff { base: Duration::from_millis(5), max: Duration::from_millis(50) },
    }
}

fn source(delta: bool) -> ApiSource {
    let target = GrpcTarget::Cluster { name: "xds".into(), authority: None };
    ApiSource { delta, service: service(target), set_node_on_first_message_only: true, rate_limit: None }
}

fn google(uri: &str, channel: GoogleChannel, token: Option<DataSource>) -> ApiSource {
    let google = GoogleGrpc { target_uri: uri.to_owned(), stat_prefix: "g".to_owned(), channel, token };
    ApiSource { service: service(GrpcTarget::Google(Box::new(google))), ..source(false) }
}

impl Rig {
    /// With ADS of that source, and the cluster at that address.
    fn new(ads: ApiSource, at: Option<Address>) -> Self {
        Self::of(ads, at.map(cluster))
    }

    fn of(ads: ApiSource, server: Option<model::Cluster>) -> Self {
        let stats = Arc::new(Stats::new());
        let tasks = Tasks::new(&stats);
        let env =
            SourcesEnv { ads: Some(Arc::new(ads)), node: vec![0x0a, 1, b'n'].into(), ..env(&stats, &tasks) };
        let sources = Sources::reading(env, Arc::new(file::open), 1 << 16);
        let clusters = server.map(|server| -> Arc<dyn Clusters> {
            let env = Env::new(stats.clone(), tasks.clone(), Arc::new(HostDial), sources.clone());
            Arc::new(Only(Cluster::new(Arc::new(server), &env).unwrap()))
        });
        clusters.iter().for_each(|clusters| sources.set_clusters(clusters));
        Self { stats, tasks, sources, _clusters: clusters }
    }

    fn ask_of(
        &self,
        kind: ConfigSourceKind,
        of: Kind,
        names: Names,
        log: &Arc<Log>,
        limit: Option<Duration>,
    ) -> Subscription {
        let source = ConfigSource { kind, initial_fetch_timeout: limit };
        let consumer: Arc<dyn Consumer> = log.clone();
        self.sources.subscribe(&source, of, names, &consumer)
    }

    fn ask(&self, of: Kind, names: Names, log: &Arc<Log>) -> Subscription {
        self.ask_of(ConfigSourceKind::Ads, of, names, log, None)
    }

    fn stat(&self, name: &str) -> u64 {
        self.stats.value(name).unwrap_or_else(|| panic!("{name} is not there"))
    }

    async fn why(&self) -> String {
        let start = crate::clock::now();
        loop {
            if let Some(why) = self.sources.sessions().first().and_then(|session| session.why.clone()) {
                return why;
            }
            assert!(start.elapsed() < LONG, "it does not fail");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// The first connection through it goes dead once told to: nothing arrives, and nothing ends.
async fn dying(to: SocketAddr, tasks: &Tasks) -> (SocketAddr, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, dead) = (listener.local_addr().unwrap(), Arc::<AtomicBool>::default());
    let (of, spawn) = (dead.clone(), tasks.clone());
    tasks.spawn("relay", async move {
        let mut first = Some(of);
        while let Ok((mut near, _)) = listener.accept().await {
            let dead = first.take();
            spawn.spawn("relayed", async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                let dies = async {
                    while !dead.as_ref().is_some_and(|dead| dead.load(Ordering::Relaxed)) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = dies => std::future::pending().await,
                }
            });
        }
    });
    (address, dead)
}

#[tokio::test]
async fn a_connection_that_is_dead_is_found_out_by_pings() {
    let tasks = Tasks::new(&Stats::new());
    let (mut server, address) = Server::tcp(&tasks).await;
    let (address, dead) = dying(address, &tasks).await;
    let keepalive = Keepalive {
        interval: Some(Duration::from_millis(100)),
        timeout: Duration::from_millis(200),
        interval_jitter: 15.0,
    };
    let http2 = Http2Options { connection_keepalive: Some(keepalive), ..Http2Options::default() };
    let options = HttpOptions { protocol: UpstreamProtocol::Http2(http2), ..HttpOptions::default() };
    let model = model::Cluster { http: Some(Box::new(options)), ..cluster(Address::Ip(address)) };
    let rig = Rig::of(source(false), Some(model));
    let log = Arc::<Log>::default();
    let _held = rig.ask(Kind::Cluster, Names::All, &log);
    let mut stream = server.stream().await;
    stream.sotw().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(server.streams.try_recv().is_err(), "who answers stays");
    dead.store(true, Ordering::Relaxed);
    // Nothing else would ever tell.
    assert!(log.next().await.starts_with("failed"));
    assert_eq!(server.stream().await.sotw().await.kind, Kind::Cluster);
}

fn cluster(address: Address) -> model::Cluster {
    let endpoint = Endpoint {
        address,
        hostname: "".into(),
        health_check: EndpointHealthCheck::default(),
        health_status: HealthStatus::Unknown,
        load_balancing_weight: 1,
        metadata: Arc::default(),
    };
    let localities = vec![LocalityEndpoints { endpoints: vec![endpoint], ..LocalityEndpoints::default() }];
    model::Cluster {
        load_assignment: Arc::new(LoadAssignment { localities, ..LoadAssignment::default() }),
        ..model::Cluster::new("xds", Discovery::Static)
    }
}

fn named(name: &str) -> Names {
    Names::One(name.into())
}

async fn start(delta: bool) -> (Server, Rig) {
    let tasks = Tasks::new(&Stats::new());
    let (server, address) = Server::tcp(&tasks).await;
    (server, Rig::new(source(delta), Some(Address::Ip(address))))
}

#[tokio::test]
async fn ads_asks_answers_and_comes_back_with_what_is_in_use() {
    let (mut server, rig) = start(false).await;
    let (clusters, endpoints) = (Arc::<Log>::default(), Arc::<Log>::default());
    let _endpoints = rig.ask(Kind::Endpoints, named("a"), &endpoints);
    let _clusters = rig.ask(Kind::Cluster, Names::All, &clusters);
    let mut stream = server.stream().await;
    assert!(stream.path.ends_with("AggregatedDiscoveryService/StreamAggregatedResources"), "{}", stream.path);
    assert_eq!(stream.authority, "xds");
    assert_eq!(stream.headers["x-mesh"], "m1");
    let (first, second) = (stream.sotw().await, stream.sotw().await);
    assert_eq!((first.kind, first.node.is_some()), (Kind::Cluster, true));
    assert_eq!((second.kind, second.node.is_some()), (Kind::Endpoints, false));
    assert_eq!(second.names, ["a".into()]);
    stream.say(Kind::Cluster, "1", &["a", "b"]);
    assert_eq!(clusters.next().await, "1 a,b");
    let ack = stream.sotw().await;
    assert_eq!((&*ack.version, &*ack.nonce, ack.error), ("1", "n1", None));
    assert_eq!(rig.stat("control_plane.connected_state"), 1);
    assert_eq!(rig.sources.sessions()[0].identifier.as_deref(), Some("test"));
    *clusters.refusal.lock().unwrap() = Some("Cluster.name: is bad".to_owned());
    stream.say(Kind::Cluster, "2", &["c"]);
    let nack = stream.sotw().await;
    assert_eq!((&*nack.version, &*nack.nonce), ("1", "n2"));
    assert_eq!(nack.error.as_deref(), Some("Cluster.name: is bad"));
    clusters.next().await;
    drop(stream);
    let failed = "failed: ADS of cluster xds: the server has ended the stream";
    assert_eq!((clusters.next().await.as_str(), endpoints.next().await.as_str()), (failed, failed));
    let mut stream = server.stream().await;
    let again = stream.sotw().await;
    assert_eq!((again.kind, &*again.version, &*again.nonce), (Kind::Cluster, "1", ""));
    assert!(again.node.is_some());
    assert_eq!(rig.stat("cluster.xds.upstream_cx_total"), 2);
}

#[tokio::test]
async fn a_delta_stream_tells_changes_alone() {
    let (mut server, rig) = start(true).await;
    let (clusters, a, b) = (Arc::<Log>::default(), Arc::<Log>::default(), Arc::<Log>::default());
    let _clusters = rig.ask(Kind::Cluster, Names::All, &clusters);
    let held = rig.ask(Kind::Endpoints, named("a"), &a);
    let mut stream = server.stream().await;
    assert!(stream.path.ends_with("DeltaAggregatedResources"), "{}", stream.path);
    assert!(stream.delta().await.subscribe.is_empty());
    assert_eq!(stream.delta().await.subscribe, ["a".into()]);
    stream.say_delta(Kind::Cluster, "1", &["x", "y"], &[]);
    assert_eq!(clusters.next().await, "1 x,y");
    assert_eq!(&*stream.delta().await.nonce, "n1");
    stream.say_delta(Kind::Cluster, "2", &["y"], &["x"]);
    assert_eq!(clusters.next().await, "2 y -x");
    stream.delta().await;
    stream.say_delta(Kind::Endpoints, "3", &[], &["a"]);
    assert_eq!(a.next().await, "3  -a", "it does not exist");
    stream.delta().await;
    let _held_b = rig.ask(Kind::Endpoints, named("b"), &b);
    assert_eq!(stream.delta().await.subscribe, ["b".into()]);
    drop(held);
    assert_eq!(stream.delta().await.unsubscribe, ["a".into()]);
    stream.say_delta(Kind::Endpoints, "4", &["b"], &[]);
    assert_eq!(b.next().await, "4 b");
    stream.delta().await;
    let _ = stream.responses.send(Err(Status::unavailable("going down")));
    let failed = b.next().await;
    assert!(failed.contains("Unavailable: going down"), "{failed}");
    let mut stream = server.stream().await;
    assert_eq!(stream.delta().await.initial_versions, [("y".into(), "2".into())]);
    let endpoints = stream.delta().await;
    assert_eq!(endpoints.initial_versions, [("b".into(), "4".into())]);
    assert_eq!(endpoints.subscribe, ["b".into()]);
}

#[tokio::test]
async fn types_may_have_streams_of_their_own() {
    let (mut server, rig) = start(false).await;
    let own = ConfigSourceKind::Api(Arc::new(source(false)));
    let log = Arc::<Log>::default();
    let clusters = rig.ask_of(own.clone(), Kind::Cluster, Names::All, &log, None);
    let path = server.stream().await.path;
    assert_eq!(path, "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters");
    let _one = rig.ask_of(own.clone(), Kind::Secret, named("default"), &log, None);
    let _other = rig.ask_of(own, Kind::Secret, named("ROOTCA"), &log, None);
    let mut stream = loop {
        let stream = server.stream().await;
        if stream.path.contains("Secret") {
            break stream;
        }
    };
    assert_eq!(stream.path, "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets");
    let mut names = stream.sotw().await.names;
    if names.len() == 1 {
        names = stream.sotw().await.names;
    }
    assert_eq!(names, ["ROOTCA".into(), "default".into()]);
    assert_eq!(rig.sources.sessions().len(), 2);
    // A session ends with its last subscription.
    drop(clusters);
    assert_eq!(rig.sources.sessions().len(), 1);
}

#[tokio::test]
async fn what_a_push_of_clusters_asks_for_is_one_request() {
    /// Asks for the endpoints of each cluster, one after the other.
    struct Asking {
        rig: Arc<Rig>,
        held: Mutex<Vec<Subscription>>,
        log: Arc<Log>,
    }
    impl Consumer for Asking {
        fn update(&self, update: &Update<'_>) -> Result<(), String> {
            for resource in update.resources {
                let held = self.rig.ask(Kind::Endpoints, Names::One(resource.name.clone()), &self.log);
                self.held.lock().unwrap().push(held);
                std::thread::sleep(Duration::from_micros(500));
            }
            Ok(())
        }
        fn failed(&self, _: &Failure) {}
    }
    let (mut server, rig) = start(false).await;
    let rig = Arc::new(rig);
    let asking = Arc::new(Asking { rig: rig.clone(), held: Mutex::default(), log: Arc::default() });
    let consumer: Arc<dyn Consumer> = asking.clone();
    let ads = ConfigSource { kind: ConfigSourceKind::Ads, initial_fetch_timeout: None };
    let _all = rig.sources.subscribe(&ads, Kind::Cluster, Names::All, &consumer);
    let mut stream = server.stream().await;
    stream.sotw().await;
    let names: Vec<_> = (0..200).map(|n| format!("c{n}")).collect();
    stream.say(Kind::Cluster, "1", &names.iter().map(String::as_str).collect::<Vec<_>>());
    let (one, other) = (stream.sotw().await, stream.sotw().await);
    let (ack, endpoints) = if one.kind == Kind::Cluster { (one, other) } else { (other, one) };
    assert_eq!((&*ack.nonce, endpoints.kind, endpoints.names.len()), ("n1", Kind::Endpoints, 200));
    assert!(stream.is_quiet().await);
}

#[tokio::test]
async fn a_slow_consumer_holds_up_no_other_type() {
    let (mut server, rig) = start(false).await;
    let gate = Arc::new(Notify::new());
    let slow = Arc::new(Log { gate: Some(gate.clone()), ..Log::default() });
    let quick = Arc::<Log>::default();
    let _slow = rig.ask(Kind::Secret, named("s"), &slow);
    let _quick = rig.ask(Kind::Route, named("r"), &quick);
    let mut stream = server.stream().await;
    stream.sotw().await;
    stream.say(Kind::Secret, "1", &["s"]);
    assert_eq!(slow.next().await, "1 s");
    stream.say(Kind::Route, "2", &["r"]);
    assert_eq!(quick.next().await, "2 r");
    let ack = loop {
        let request = stream.sotw().await;
        if !request.nonce.is_empty() {
            break request;
        }
    };
    assert_eq!((ack.kind, &*ack.nonce), (Kind::Route, "n2"));
    gate.notify_one();
    let ack = stream.sotw().await;
    assert_eq!((ack.kind, &*ack.nonce), (Kind::Secret, "n1"));
}

#[tokio::test]
async fn a_server_that_does_not_read_is_not_heard_for_ever() {
    const ALL: usize = 3000;
    let (mut server, rig) = start(false).await;
    let log = Arc::<Log>::default();
    let _held = rig.ask(Kind::Cluster, Names::All, &log);
    let mut stream = server.stream().await;
    stream.sotw().await;
    stream.listens.send_replace(false);
    // Answers as long as they may be: they do not fit into what the connection holds.
    *log.refusal.lock().unwrap() = Some("no ".repeat(3000));
    for n in 0..ALL {
        stream.say(Kind::Cluster, &n.to_string(), &["c"]);
    }
    let told = || log.told.lock().unwrap().len();
    let mut before = 0;
    while before == 0 || told() != before {
        before = told();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(before < ALL / 2, "{before} were taken");
    stream.listens.send_replace(true);
    for n in 0..ALL {
        assert_eq!(*stream.sotw().await.nonce, format!("n{n}"));
    }
}

#[tokio::test]
async fn garbage_and_what_is_too_long_end_the_stream_with_the_reason() {
    let (mut server, rig) = start(false).await;
    let log = Arc::<Log>::default();
    let _held = rig.ask(Kind::Cluster, Names::All, &log);
    let stream = server.stream().await;
    let _ = stream.responses.send(Ok(Bytes::from_static(b"\xff\xff\xff")));
    let failed = log.next().await;
    assert!(failed.contains("not a response of xDS"), "{failed}");
    let stream = server.stream().await;
    let _ = stream.responses.send(Ok(vec![0; 1 << 17].into()));
    let failed = log.next().await;
    assert!(failed.contains("65536"), "the limit is named: {failed}");
    // Another type than was asked for is no reason to go.
    let mut stream = server.stream().await;
    stream.sotw().await;
    stream.say(Kind::Route, "1", &["r"]);
    stream.say(Kind::Cluster, "2", &["c"]);
    assert_eq!(log.next().await, "2 c");
}

#[tokio::test]
async fn a_server_that_is_away_is_waited_for_as_long_as_was_said() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let rig = Rig::new(source(false), Some(Address::Ip(address)));
    let log = Arc::<Log>::default();
    let limit = Duration::from_millis(40);
    let _held = rig.ask_of(ConfigSourceKind::Ads, Kind::Listener, Names::All, &log, Some(limit));
    let (mut away, mut late) = (false, false);
    while !(away && late) {
        let told = log.next().await;
        late |= told == "failed: no answer within 40ms";
        away |= told
            .contains(&format!("ADS of cluster xds: {address}: delayed connect error: Connection refused"));
    }
    assert_eq!(rig.stat("control_plane.connected_state"), 0);
    let tasks = rig.tasks.clone();
    let mut server = Server::start(&tasks, TcpListener::bind(address).await.unwrap());
    assert_eq!(server.stream().await.sotw().await.kind, Kind::Listener);
}

#[tokio::test]
async fn requests_are_sent_no_faster_than_was_said() {
    let tasks = Tasks::new(&Stats::new());
    let (mut server, address) = Server::tcp(&tasks).await;
    let limit = RateLimit { max_tokens: 1, fill_interval: Duration::from_millis(300) };
    let rig = Rig::new(ApiSource { rate_limit: Some(limit), ..source(false) }, Some(Address::Ip(address)));
    let log = Arc::<Log>::default();
    let _one = rig.ask(Kind::Cluster, Names::All, &log);
    let _other = rig.ask(Kind::Listener, Names::All, &log);
    let mut stream = server.stream().await;
    assert_eq!(stream.sotw().await.kind, Kind::Cluster);
    assert!(stream.is_quiet().await);
    assert_eq!(
        (rig.stat("control_plane.rate_limit_enforced"), rig.stat("control_plane.pending_requests")),
        (1, 1)
    );
    assert_eq!(stream.sotw().await.kind, Kind::Listener);
}

#[tokio::test]
async fn a_server_by_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sds.sock");
    let mut server = Server::unix(&Tasks::new(&Stats::new()), &path);
    let rig = Rig::new(source(false), Some(Address::Pipe { path, mode: 0 }));
    let log = Arc::<Log>::default();
    let _held = rig.ask(Kind::Secret, named("default"), &log);
    let mut stream = server.stream().await;
    assert_eq!(stream.sotw().await.names, ["default".into()]);
    stream.say(Kind::Secret, "1", &["default"]);
    assert_eq!(log.next().await, "1 default");
}

#[tokio::test]
async fn a_token_is_read_again_for_each_stream() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "one\n").unwrap();
    let (mut server, address) = Server::tcp(&Tasks::new(&Stats::new())).await;
    let token = Some(DataSource::File(path.clone()));
    let rig = Rig::new(google(&format!("dns:///{address}"), GoogleChannel::Plaintext, token), None);
    let log = Arc::<Log>::default();
    let _held = rig.ask(Kind::Cluster, Names::All, &log);
    let stream = server.stream().await;
    assert_eq!(stream.headers["authorization"], "Bearer one");
    assert_eq!(stream.authority, address.to_string());
    std::fs::write(&path, "two").unwrap();
    drop(stream);
    assert_eq!(server.stream().await.headers["authorization"], "Bearer two");
    assert_eq!((rig.stat("grpc.g.streams_total"), rig.stat("grpc.g.streams_closed_0")), (2, 1));
}

/// A CA, and servers that it has signed for these names.
fn certificates(names: &[&str]) -> (Vec<u8>, Vec<Arc<ServerConfig>>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap().pem().into_bytes();
    let issuer = Issuer::new(params, key);
    let config = |name: &&str| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![(*name).to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config =
            builder.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], private).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    };
    (ca, names.iter().map(config).collect())
}

#[tokio::test]
async fn a_server_that_is_somebody_else_is_refused_by_name_and_tried_again() {
    let (ca, servers) = certificates(&["other.test", "localhost"]);
    let (mut server, address) = Server::tls(&Tasks::new(&Stats::new()), servers).await;
    let channel = GoogleChannel::Tls {
        root_certs: Some(DataSource::Inline(ca.as_slice().into())),
        cert_chain: None,
        private_key: None,
    };
    let rig = Rig::new(google(&format!("localhost:{}", address.port()), channel, None), None);
    let log = Arc::<Log>::default();
    let _held = rig.ask(Kind::Cluster, Names::All, &log);
    let whom = format!("ADS of localhost:{}: 127.0.0.1:{0}: TLS", address.port());
    // Its name may have other addresses, where nobody listens.
    let failed = loop {
        let told = log.next().await;
        if told.contains(&whom) {
            break told;
        }
    };
    assert!(failed.contains("CERTIFICATE_VERIFY_FAILED"), "{failed}");
    let mut stream = server.stream().await;
    assert_eq!(stream.sotw().await.kind, Kind::Cluster);
}

#[tokio::test]
async fn what_cannot_be_asked_is_said_at_once() {
    let (stats, log) = (Arc::new(Stats::new()), Arc::<Log>::default());
    let sources = Sources::new(env(&stats, &Tasks::new(&stats)));
    let consumer: Arc<dyn Consumer> = log.clone();
    for kind in [ConfigSourceKind::Ads, ConfigSourceKind::Same] {
        let source = ConfigSource { kind, initial_fetch_timeout: None };
        let _held = sources.subscribe(&source, Kind::Cluster, Names::All, &consumer);
    }
    assert_eq!(log.next().await, "failed: ads: the bootstrap has no ads_config");
    assert_eq!(log.next().await, "failed: self: of a resource that has come from nowhere");
}

#[tokio::test]
async fn a_cluster_that_is_not_there_is_named() {
    let rig = Rig::new(source(false), None);
    let log = Arc::<Log>::default();
    let _held = rig.ask(Kind::Cluster, Names::All, &log);
    struct Empty;
    impl Clusters for Empty {
        fn cluster(&self, _: &str) -> Option<Arc<Cluster>> {
            None
        }
    }
    let clusters: Arc<dyn Clusters> = Arc::new(Empty);
    rig.sources.set_clusters(&clusters);
    assert_eq!(rig.why().await, "unknown cluster \"xds\"");
    assert_eq!(log.next().await, "failed: ADS of cluster xds: unknown cluster \"xds\"");
}

/// A file of clusters with these names.
fn clusters_file(version: &str, names: &[&str]) -> String {
    let each =
        names.iter().map(|name| format!("- {{'@type': {}, name: {name}}}\n", Kind::Cluster.type_url()));
    format!("version_info: {version}\nresources:\n{}", each.collect::<String>())
}

#[tokio::test]
async fn a_file_is_for_all_that_follow_it_each_with_what_it_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cds.yaml");
    let (stats, all, one) = (Arc::new(Stats::new()), Arc::<Log>::default(), Arc::<Log>::default());
    let sources = Sources::new(env(&stats, &Tasks::new(&stats)));
    let follow = |names, log: &Arc<Log>, limit| {
        let kind = ConfigSourceKind::File { path: path.clone(), watched_directory: None };
        let consumer: Arc<dyn Consumer> = log.clone();
        let source = ConfigSource { kind, initial_fetch_timeout: limit };
        sources.subscribe(&source, Kind::Cluster, names, &consumer)
    };
    let _all = follow(Names::All, &all, Some(Duration::from_millis(20)));
    let one_held = follow(named("b"), &one, None);
    let missing = format!("failed: {}: it is not there", path.display());
    assert_eq!((all.next().await, one.next().await), (missing.clone(), missing));
    assert_eq!(all.next().await, "failed: no answer within 20ms");
    std::fs::write(&path, clusters_file("v1", &["a", "b"])).unwrap();
    assert_eq!((all.next().await.as_str(), one.next().await.as_str()), ("v1 a,b", "v1 b"));
    std::fs::write(&path, "resources: [").unwrap();
    let bad = all.next().await;
    assert!(bad.starts_with(&format!("failed: {}: ", path.display())), "{bad}");
    drop(one_held);
    std::fs::write(&path, clusters_file("v2", &["c"])).unwrap();
    assert_eq!(all.next().await, "v2 c");
    assert_eq!(one.told.lock().unwrap().len(), 1, "it has heard of the bad file and no more");
}

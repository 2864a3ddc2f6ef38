//! A world whose sources say what the test says, when it says so; real sockets on loopback.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use proxy_config::load::{self, bootstrap};
use proxy_config::model::config_source::{ConfigSource, ConfigSourceKind};
use proxy_config::xds::file::Reader;
use proxy_config::xds::{Decoder, Kind, RawResource};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::cluster;
use crate::drain::Drain;
use crate::net::{HostDial, Options, Place, Shared};
use crate::task::Tasks;
use crate::telemetry::AccessLog;
use crate::telemetry::access_log::Sinks;
use crate::telemetry::stats::Stats;
use crate::world::history::History;
use crate::world::{Env, Gate, World, bind};
use crate::xds::{Consumer, Failure, Names, Subscribe, Subscription, Update};

/// Longer than anything takes on a loaded machine.
pub(super) const LONG: Duration = Duration::from_secs(30);

/// Says what it is told to say.
#[derive(Default)]
pub(super) struct Script {
    asked: Mutex<Vec<Asked>>,
}

struct Asked {
    source: ConfigSource,
    kind: Kind,
    names: Names,
    consumer: Weak<dyn Consumer>,
    open: Weak<()>,
}

impl Subscribe for Script {
    fn subscribe(
        &self,
        source: &ConfigSource,
        kind: Kind,
        names: Names,
        consumer: &Arc<dyn Consumer>,
    ) -> Subscription {
        let held = Arc::new(());
        let (consumer, open) = (Arc::downgrade(consumer), Arc::downgrade(&held));
        self.asked.lock().unwrap().push(Asked { source: source.clone(), kind, names, consumer, open });
        Subscription::new(held)
    }
}

impl Script {
    fn consumers(&self, kind: Kind) -> Vec<(Names, Arc<dyn Consumer>)> {
        self.consumers_of(kind, |_| true)
    }

    fn consumers_of(
        &self,
        kind: Kind,
        of: impl Fn(&ConfigSource) -> bool,
    ) -> Vec<(Names, Arc<dyn Consumer>)> {
        let mut asked = self.asked.lock().unwrap();
        asked.retain(|asked| asked.open.strong_count() > 0);
        let of_kind = asked.iter().filter(|asked| asked.kind == kind && of(&asked.source));
        of_kind.filter_map(|asked| Some((asked.names.clone(), asked.consumer.upgrade()?))).collect()
    }

    /// Names that are asked for now.
    pub(super) fn asked(&self, kind: Kind) -> Vec<String> {
        let name = |(names, _): (Names, _)| match names {
            Names::All => "*".to_owned(),
            Names::One(name) => name.to_string(),
        };
        self.consumers(kind).into_iter().map(name).collect()
    }

    /// The state of the world: everybody's answers, joined.
    pub(super) fn say(&self, kind: Kind, version: &str, resources: &[String]) -> Result<(), String> {
        tell(&self.consumers(kind), kind, version, resources, &[], true)
    }

    /// What the file at that path says.
    pub(super) fn say_in(&self, file: &str, kind: Kind, resources: &[String]) -> Result<(), String> {
        let of = |source: &ConfigSource| match &source.kind {
            ConfigSourceKind::File { path, .. } => path == Path::new(file),
            ConfigSourceKind::Ads | ConfigSourceKind::Same | ConfigSourceKind::Api(_) => false,
        };
        tell(&self.consumers_of(kind, of), kind, "1", resources, &[], true)
    }

    pub(super) fn delta(
        &self,
        kind: Kind,
        version: &str,
        resources: &[String],
        removed: &[&str],
    ) -> Result<(), String> {
        tell(&self.consumers(kind), kind, version, resources, removed, false)
    }

    pub(super) fn fail(&self, kind: Kind, failure: &Failure) {
        self.consumers(kind).iter().for_each(|(_, consumer)| consumer.failed(failure));
    }
}

fn tell(
    consumers: &[(Names, Arc<dyn Consumer>)],
    kind: Kind,
    version: &str,
    resources: &[String],
    removed: &[&str],
    whole: bool,
) -> Result<(), String> {
    let all = raw(kind, version, resources);
    let removed: Vec<Arc<str>> = removed.iter().map(|name| Arc::from(*name)).collect();
    let mut answer = Ok(());
    for (names, consumer) in consumers {
        let own: Vec<_> = match names {
            Names::All => all.clone(),
            Names::One(name) => all.iter().filter(|raw| raw.name == *name).cloned().collect(),
        };
        let update = Update { version, resources: &own, removed: &removed, whole, response: &all };
        answer = answer.and(consumer.update(&update));
    }
    answer
}

/// Resources as they come off a wire, of their JSON.
pub(super) fn raw(kind: Kind, version: &str, resources: &[String]) -> Vec<RawResource> {
    let resources: Vec<_> = resources
        .iter()
        .map(|text| format!(r#"{{"@type": "{}", {}"#, kind.type_url(), &text.trim()[1..]))
        .collect();
    let text = format!(r#"{{"version_info": "{version}", "resources": [{}]}}"#, resources.join(","));
    Reader::new(kind).read(&text).unwrap().resources
}

pub(super) struct Rig {
    pub(super) script: Arc<Script>,
    pub(super) world: Arc<World>,
    pub(super) stats: Arc<Stats>,
    shared: Arc<Shared>,
    drain: Drain,
}

pub(super) fn source() -> ConfigSource {
    ConfigSource { kind: ConfigSourceKind::Ads, initial_fetch_timeout: None }
}

impl Rig {
    /// A bootstrap with those static resources; LDS and CDS are asked of the script.
    pub(super) fn new(statics: &str, drain_time: Duration) -> Self {
        let text = format!(r#"{{"static_resources": {statics}}}"#);
        let mut bootstrap = bootstrap(&text, None, load::Options::default()).unwrap().bootstrap;
        bootstrap.dynamic.cds = Some(source());
        bootstrap.dynamic.lds = Some(source());
        let stats = Arc::new(Stats::new());
        let (script, tasks) = (Arc::<Script>::default(), Tasks::new(&stats));
        let sources: Arc<dyn Subscribe> = script.clone();
        let env = Env {
            cluster: cluster::Env::new(stats.clone(), tasks, Arc::new(HostDial), sources.clone()),
            sinks: Arc::new(Sinks::new(Duration::from_secs(1), &stats)),
            buckets: Arc::default(),
            http: Arc::default(),
            sources,
            decoder: Decoder::default(),
            drain_time,
            history: History::default(),
        };
        let log = AccessLog::start(None, 1_000, &stats).unwrap();
        let shared = Shared::new(log, Options::default(), false, &env.parts()).unwrap();
        let world = Arc::new(World::new(&bootstrap, env).unwrap());
        world.bind(Arc::new(bind::Own { workers: 2 })).unwrap();
        Self { script, world, stats, shared: Arc::new(shared), drain: Drain::new() }
    }

    pub(super) fn start(&self) -> Arc<AtomicBool> {
        let place = Arc::new(Place::own(Vec::new(), self.world.live.clone(), self.shared.clone()));
        let gate = Gate { place, inbound: self.drain.watch(), others: self.drain.watch() };
        let ready = Arc::<AtomicBool>::default();
        let (told, world) = (ready.clone(), self.world.clone());
        world.start();
        self.shared.tasks.spawn("start", async move {
            world.warmed("").await;
            world.open(gate);
            told.store(true, Ordering::SeqCst);
        });
        ready
    }

    /// Started, with these clusters and listeners, and accepting.
    pub(super) async fn with(clusters: &[String], listeners: &[String], drain_time: Duration) -> Self {
        let rig = Self::new("{}", drain_time);
        let ready = rig.start();
        rig.until("CDS", || !rig.script.asked(Kind::Cluster).is_empty()).await;
        rig.script.say(Kind::Cluster, "1", clusters).unwrap();
        rig.until("LDS", || !rig.script.asked(Kind::Listener).is_empty()).await;
        rig.script.say(Kind::Listener, "1", listeners).unwrap();
        rig.until("ready", || ready.load(Ordering::SeqCst)).await;
        rig
    }

    pub(super) fn stat(&self, name: &str) -> u64 {
        self.stats.value(name).unwrap_or_else(|| panic!("no stat {name}"))
    }

    pub(super) fn address(&self, listener: &str) -> SocketAddr {
        let all = self.world.addresses();
        all.iter().find(|(name, _)| **name == *listener).unwrap_or_else(|| panic!("{all:?}")).1
    }

    pub(super) async fn until(&self, what: &str, done: impl Fn() -> bool) {
        let waited = timeout(LONG, async {
            while !done() {
                sleep(Duration::from_millis(1)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{what} has not come"));
    }
}

/// Greets with its name, then echoes.
pub(super) async fn server(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    Tasks::new(&Stats::new()).spawn("server", async move {
        let tasks = Tasks::new(&Stats::new());
        while let Ok((mut stream, _)) = listener.accept().await {
            tasks.spawn("served", async move {
                let _ = stream.write_all(name.as_bytes()).await;
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// A client, with what it was greeted with. Empty: closed without a word.
pub(super) async fn greeted(to: SocketAddr) -> (TcpStream, String) {
    let mut stream = timeout(LONG, TcpStream::connect(to)).await.unwrap().unwrap();
    let mut buffer = [0; 16];
    let n = timeout(LONG, stream.read(&mut buffer)).await.unwrap().unwrap_or(0);
    (stream, String::from_utf8_lossy(&buffer[..n]).into_owned())
}

/// Whether a connection still carries bytes both ways.
pub(super) async fn lives(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4];
    stream.write_all(b"ping").await.is_ok()
        && matches!(timeout(LONG, stream.read_exact(&mut buffer)).await.unwrap(), Ok(4))
}

pub(super) fn cluster(name: &str, to: SocketAddr, more: &str) -> String {
    format!(
        r#"{{"name": "{name}", "type": "STATIC", "connect_timeout": "5s", "load_assignment": {{"cluster_name": "{name}",
        "endpoints": [{{"lb_endpoints": [{{"endpoint": {{"address": {{"socket_address": {{"address": "{}",
        "port_value": {}}}}}}}}}]}}]}} {more}}}"#,
        to.ip(),
        to.port()
    )
}

/// Its endpoints come by EDS.
pub(super) fn eds(name: &str, more: &str) -> String {
    format!(
        r#"{{"name": "{name}", "type": "EDS", "connect_timeout": "5s",
        "eds_cluster_config": {{"eds_config": {{"path_config_source": {{"path": "/the/script"}}}}}} {more}}}"#
    )
}

pub(super) fn endpoints(name: &str, to: &[SocketAddr]) -> String {
    let each: Vec<_> = to
        .iter()
        .map(|to| {
            format!(
                r#"{{"endpoint": {{"address": {{"socket_address": {{"address": "{}", "port_value": {}}}}}}}}}"#,
                to.ip(),
                to.port()
            )
        })
        .collect();
    format!(r#"{{"cluster_name": "{name}", "endpoints": [{{"lb_endpoints": [{}]}}]}}"#, each.join(","))
}

pub(super) fn tcp_proxy(cluster: &str) -> String {
    format!(
        r#"{{"name": "tcp", "typed_config": {{"@type":
        "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "t",
        "cluster": "{cluster}"}}}}"#
    )
}

pub(super) fn chain(name: &str, matched: &str, cluster: &str) -> String {
    format!(
        r#"{{"name": "{name}", "filter_chain_match": {{{matched}}}, "filters": [{}]}}"#,
        tcp_proxy(cluster)
    )
}

pub(super) fn listener(name: &str, at: &str, chains: &[String], more: &str) -> String {
    let at: SocketAddr = at.parse().unwrap();
    format!(
        r#"{{"name": "{name}", "address": {{"socket_address": {{"address": "{}", "port_value": {}}}}},
        "filter_chains": [{}] {more}}}"#,
        at.ip(),
        at.port(),
        chains.join(",")
    )
}

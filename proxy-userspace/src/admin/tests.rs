//! The API over real sockets, with a made-up configuration behind it.

use std::collections::BTreeMap;
use std::time::SystemTime;

use hyper::body::Bytes;
use proxy_config::model::cluster::{Cluster, Discovery};
use proxy_config::model::endpoint::AssignmentPolicy;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::view::*;
use super::*;
use crate::clock;
use crate::net::Options;
use crate::task::Tasks;
use crate::telemetry::access_log::Sinks;
use crate::telemetry::stats::Stats;
use crate::world::{Status, builtin};

/// As many clusters as wanted, all alike.
struct Made {
    plain: Status,
    cluster: Arc<Cluster>,
    count: usize,
}

fn host() -> HostView {
    HostView {
        address: model::Address::Ip("127.0.0.1:81".parse().unwrap()),
        hostname: "foo.host".into(),
        health: Health { failed_eds_health: true, ..Health::default() },
        weight: 1,
        region: "r1".into(),
        zone: "".into(),
        sub_zone: "".into(),
        canary: false,
        priority: 0,
        success_rate: None,
        local_origin_success_rate: None,
        metadata: None,
        stats: HostCounts { cx_total: 3, ..HostCounts::default() },
    }
}

impl View for Made {
    fn state(&self) -> State {
        self.plain.state()
    }
    fn uptime(&self) -> Duration {
        self.plain.uptime()
    }
    fn listeners(&self) -> Vec<ListenerView> {
        let addresses = ["[::1]:10002", "127.0.0.1:10003"].map(|a| a.parse().unwrap()).to_vec();
        vec![ListenerView { name: "l2".into(), addresses }]
    }
    fn cluster_names(&self) -> Vec<Arc<str>> {
        vec![self.cluster.name.clone(); self.count]
    }
    fn cluster(&self, _: &str) -> Option<ClusterView> {
        Some(ClusterView {
            model: self.cluster.clone(),
            added_via_api: false,
            hosts: vec![host()],
            locality_weights: vec![7],
            policy: AssignmentPolicy::default(),
            success_rates: SuccessRates::default(),
        })
    }
    fn bootstrap(&self) -> (Bytes, SystemTime) {
        self.plain.bootstrap()
    }
    fn resources(&self, kind: Kind) -> Vec<ResourceView> {
        // Field 1, a string: the name.
        let raw = model::Raw::from(b"\x0a\x01a".as_slice());
        let one = ResourceView { name: "a".into(), raw, version: "".into(), updated: SystemTime::UNIX_EPOCH };
        if kind == Kind::StaticCluster { vec![one; self.count] } else { Vec::new() }
    }
    fn node(&self) -> model::bootstrap::Node {
        self.plain.node()
    }
    fn stats_config(&self) -> model::bootstrap::StatsConfig {
        self.plain.stats_config()
    }
    fn runtime(&self) -> BTreeMap<String, model::metadata::Struct> {
        self.plain.runtime()
    }
    fn command_line(&self) -> Value {
        self.plain.command_line()
    }
    fn drain_listeners(&self, _: DrainListeners) {}
    fn quit(&self) {}
    fn set_healthy(&self, healthy: bool) {
        self.plain.set_healthy(healthy);
    }
    fn reopen_logs(&self) {}
}

fn start(count: usize, access: Access) -> (Admin, SocketAddr) {
    let stats = Arc::new(Stats::new());
    let cluster = builtin::cluster("a", Discovery::Static, None, &Options::default()).into();
    let tasks = Tasks::new(&stats);
    let plain = Status::new(
        None,
        None,
        Arc::new(Sinks::new(Duration::from_secs(1), &stats)),
        (tasks.clone(), &stats),
        Duration::ZERO,
        (1, serde_json::json!({})),
    );
    plain.set_warm();
    let view = Arc::new(Made { plain, cluster, count });
    let own = Subject { view, stats, taps: Arc::default() };
    let context =
        Context { control: OnceLock::new(), own, sidecars: Arc::default(), tasks, cgroup2: PathBuf::new() };
    let admin = Admin::start(Arc::new(context)).unwrap();
    let address = admin.tcp("127.0.0.1:0".parse().unwrap(), access).unwrap();
    (admin, address)
}

/// Status and body; chunks stay as they are.
async fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn answers_as_envoy() {
    let (_admin, address) = start(1, Access::Envoy);
    for (method, path, status, text) in [
        ("GET", "/ready", 200, "LIVE\n"),
        ("GET", "/listeners", 200, "l2::[::1]:10002\nl2::127.0.0.1:10003\n"),
        ("GET", "/nosuch", 404, "invalid path. admin commands are:\n"),
        ("GET", "/quitquitquit", 405, "Method GET not allowed, POST required."),
        ("POST", "/reset_counters", 200, "OK\n"),
        ("POST", "/logging", 200, "active loggers:\n  admin: "),
        ("POST", "/logging?level=foo", 400, "error: unknown logger level\n\nusage: /logging?<name>=<level>"),
        ("POST", "/logging?nosuch=debug", 400, "error: unknown logger name\n"),
        ("GET", "/stats?filter=(", 400, "Invalid re2 regex: "),
        ("GET", "/stats?type=foo", 400, "invalid &type= param"),
        ("GET", "/stats?filter=task_panics", 200, "server.task_panics: 0\n"),
        ("GET", "/stats?filter=task_panics&usedonly", 200, ""),
        (
            "GET",
            "/stats?filter=task_panics&format=json",
            200,
            r#"{"stats":[{"name":"server.task_panics","value":0}]}"#,
        ),
        (
            "GET",
            "/stats/prometheus?filter=task_panics",
            200,
            "# TYPE envoy_server_task_panics counter\nenvoy_server_task_panics{} 0\n",
        ),
        ("GET", "/clusters", 200, "::observability_name::"),
        ("GET", "/clusters", 200, "::127.0.0.1:81::health_flags::/failed_eds_health\n"),
        ("GET", "/clusters", 200, "::127.0.0.1:81::success_rate::-1\n"),
        ("GET", "/clusters?format=json", 200, "{\n \"cluster_statuses\": ["),
        ("GET", "/clusters?format=json", 200, "\"eds_health_status\": \"UNHEALTHY\""),
        ("GET", "/config_dump", 200, "\"@type\": \"type.googleapis.com/envoy.admin.v3.ClustersConfigDump\""),
        ("GET", "/config_dump?resource=foo", 404, "foo not found in config dump"),
        ("GET", "/config_dump?resource=bootstrap", 400, "bootstrap is not a repeated field."),
        ("GET", "/config_dump?resource=static_clusters&mask=foo", 400, "could not be successfully used."),
        (
            "GET",
            "/config_dump?resource=static_clusters",
            200,
            "envoy.admin.v3.ClustersConfigDump.StaticCluster",
        ),
        ("GET", "/config_dump?resource=static_clusters&name_regex=b.*", 200, "{}\n"),
        ("GET", "/tap", 405, "Method GET not allowed, POST required."),
        ("POST", "/tap", 400, "/tap requires a JSON/YAML body"),
        ("GET", "/workloads", 200, "[]"),
        ("POST", "/workloads", 403, "unix socket only"),
        ("POST", "/healthcheck/fail", 200, "OK\n"),
        ("GET", "/ready", 503, "DRAINING\n"),
    ] {
        let (got, body) = ask(address, method, path).await;
        assert_eq!(got, status, "{method} {path}: {body}");
        assert!(body.contains(text), "{method} {path}: {body}");
    }
}

fn dechunked(body: &str) -> String {
    let (mut rest, mut out) = (body, String::new());
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        out.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
    out
}

#[tokio::test]
async fn json_is_json() {
    let (_admin, address) = start(2, Access::ReadOnly);
    for path in [
        "/config_dump?include_eds",
        "/config_dump?resource=static_clusters&mask=cluster.name",
        "/config_dump?mask=bootstrap",
        "/clusters?format=json",
        "/stats?format=json",
        "/stats?format=json&histogram_buckets=detailed",
        "/stats?format=json&histogram_buckets=cumulative&type=Histograms",
    ] {
        let body = dechunked(&ask(address, "GET", path).await.1);
        assert!(serde_json::from_str::<Value>(&body).is_ok(), "{path}: {body}");
    }
    let body = dechunked(&ask(address, "GET", "/config_dump?include_eds").await.1);
    let dump: Value = serde_json::from_str(&body).unwrap();
    let types = ["Bootstrap", "Clusters", "Endpoints", "Listeners", "Secrets"];
    for (section, name) in dump["configs"].as_array().unwrap().iter().zip(types) {
        assert_eq!(section["@type"], format!("type.googleapis.com/envoy.admin.v3.{name}ConfigDump"));
    }
    assert_eq!(dump["configs"][1]["static_clusters"][1]["cluster"]["name"], "a");
    assert_eq!(dump["configs"][2]["static_endpoint_configs"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn changes_are_refused_where_only_reading_is_allowed() {
    let (_admin, address) = start(0, Access::ReadOnly);
    for path in ["/healthcheck/fail", "/tap"] {
        assert_eq!(ask(address, "POST", path).await.0, 403);
    }
    assert_eq!(ask(address, "GET", "/ready").await.0, 200);
}

#[tokio::test]
async fn ready_answers_while_a_dump_is_read_slowly() {
    let (_admin, address) = start(5_000, Access::ReadOnly);
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /clusters?format=json HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut some = [0; 4_096];
    let mut best = Duration::MAX;
    for _ in 0..20 {
        assert!(slow.read(&mut some).await.unwrap() > 0);
        let before = clock::now();
        assert_eq!(ask(address, "GET", "/ready").await, (200, "LIVE\n".to_owned()));
        best = best.min(before.elapsed());
    }
    // The best of some: the machine is shared, a thread that is blocked is late each time.
    assert!(best < Duration::from_millis(50), "{best:?}");
}

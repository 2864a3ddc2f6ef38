use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use proxy_config::model;
use proxy_config::model::cluster::{HealthCheck, HealthChecker, HttpHealthCheck};
use proxy_config::model::endpoint::{Endpoint, EndpointHealthCheck};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::judge::{Judge, Transition, Verdict, interval};
use super::*;
use crate::cluster::testing::*;
use crate::cluster::{Want, random::Seeded};
use crate::task::Tasks;

fn check(checker: HealthChecker) -> HealthCheck {
    HealthCheck {
        timeout: Duration::from_secs(5),
        interval: Duration::from_millis(10),
        initial_jitter: Duration::ZERO,
        interval_jitter: Duration::ZERO,
        interval_jitter_percent: 0,
        unhealthy_threshold: 2,
        healthy_threshold: 2,
        alt_port: None,
        reuse_connection: true,
        no_traffic_interval: Duration::from_millis(10),
        no_traffic_healthy_interval: None,
        unhealthy_interval: None,
        unhealthy_edge_interval: None,
        healthy_edge_interval: None,
        event_log: None,
        always_log_health_check_failures: false,
        always_log_health_check_success: false,
        checker,
    }
}

fn connect_only() -> HealthChecker {
    HealthChecker::Tcp { send: Vec::new(), receive: Vec::new() }
}

fn http(receive: &[&str]) -> HealthChecker {
    HealthChecker::Http(HttpHealthCheck {
        host: "health.test".to_owned(),
        path: "/healthz".to_owned(),
        method: "GET".to_owned(),
        headers_to_add: vec![("x-probe".to_owned(), "1".to_owned(), true)],
        headers_to_remove: Vec::new(),
        expected_statuses: vec![(200, 201)],
        retriable_statuses: vec![(503, 504)],
        receive: receive.iter().map(|text| text.as_bytes().to_vec()).collect(),
        http2: false,
        service_name: None,
    })
}

struct Rig {
    cluster: Arc<Cluster>,
    env: Env,
}

impl Rig {
    fn start(check: HealthCheck, endpoints: Vec<Endpoint>) -> Self {
        let env = env();
        let model = model::Cluster { health_checks: vec![check], ..model(endpoints) };
        let cluster = Cluster::new(Arc::new(model), &env).unwrap();
        assert!(!cluster.is_warm());
        cluster.start(&env);
        Self { cluster, env }
    }

    fn stat(&self, name: &str) -> u64 {
        self.env.stats.value(&format!("cluster.c.health_check.{name}")).unwrap()
    }
}

/// What a server says, and how often it was asked over how many connections.
#[derive(Clone, Default)]
struct Server {
    reply: Arc<std::sync::Mutex<String>>,
    requests: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    last: Arc<std::sync::Mutex<String>>,
    mute: Arc<AtomicBool>,
}

impl Server {
    async fn start(reply: &str) -> (Self, Endpoint) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = endpoint(&listener.local_addr().unwrap().to_string());
        let server = Self::default();
        server.say(reply);
        let tasks = Tasks::new(&Stats::new());
        let (this, spawner) = (server.clone(), tasks.clone());
        tasks.spawn("server", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let this = this.clone();
                this.connections.fetch_add(1, Ordering::SeqCst);
                spawner.spawn("connection", async move {
                    let mut buffer = [0; 2048];
                    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                        *this.last.lock().unwrap() = String::from_utf8_lossy(&buffer[..n]).into_owned();
                        this.requests.fetch_add(1, Ordering::SeqCst);
                        let reply = this.reply.lock().unwrap().clone();
                        if !this.mute.load(Ordering::SeqCst) {
                            stream.write_all(reply.as_bytes()).await.unwrap();
                        }
                    }
                });
            }
        });
        (server, at)
    }

    fn say(&self, reply: &str) {
        *self.reply.lock().unwrap() = reply.to_owned();
    }
}

fn response(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

#[tokio::test]
async fn a_connection_is_enough() {
    let (server, up) = Server::start("").await;
    let down = {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        endpoint(&gone.local_addr().unwrap().to_string())
    };
    let rig = Rig::start(check(connect_only()), vec![up, down]);
    timeout(LONG, rig.cluster.warmed()).await.unwrap();
    let flags: Vec<_> = rig.cluster.hosts().iter().map(|host| host.health_flags()).collect();
    assert_eq!(flags, ["healthy", "/failed_active_hc"]);
    assert_eq!((rig.stat("healthy"), rig.stat("degraded")), (1, 0));
    assert!(rig.stat("network_failure") >= 1 && rig.stat("success") >= 1);
    assert!(server.connections.load(Ordering::SeqCst) >= 1);
    let chosen = rig.cluster.choose(&Want::default()).unwrap();
    assert!(Arc::ptr_eq(&chosen, &rig.cluster.hosts()[0]));
}

#[tokio::test]
async fn bytes_out_and_the_right_ones_back() {
    let (server, up) = Server::start("xx PONG yy 42").await;
    let receive = vec![b"PONG".to_vec(), b"42".to_vec()];
    let rig = Rig::start(check(HealthChecker::Tcp { send: b"PING".to_vec(), receive }), vec![up]);
    until("health", || rig.stat("success") >= 3).await;
    assert_eq!(*server.last.lock().unwrap(), "PING");
    assert_eq!(server.connections.load(Ordering::SeqCst), 1, "the connection is used again");
    assert_eq!(rig.stat("failure"), 0);
}

#[tokio::test]
async fn who_does_not_answer_is_unhealthy_after_the_threshold() {
    let (server, up) = Server::start("PONG").await;
    let checker = HealthChecker::Tcp { send: b"PING".to_vec(), receive: vec![b"PONG".to_vec()] };
    let rig = Rig::start(HealthCheck { timeout: Duration::from_millis(40), ..check(checker) }, vec![up]);
    timeout(LONG, rig.cluster.warmed()).await.unwrap();
    server.mute.store(true, Ordering::SeqCst);
    until("unhealthy", || rig.cluster.hosts()[0].has(HealthFlag::FAILED_ACTIVE_HC)).await;
    assert!(rig.stat("network_failure") >= 2);
    assert_eq!(rig.cluster.hosts()[0].health_flags(), "/failed_active_hc/active_hc_timeout");
    server.mute.store(false, Ordering::SeqCst);
    until("healthy", || rig.cluster.hosts()[0].health_flags() == "healthy").await;
}

#[tokio::test]
async fn http_by_status_and_body() {
    let (server, up) = Server::start(&response("200 OK", "", "all is well")).await;
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("events");
    let rig = Rig::start(HealthCheck { event_log: Some(log.clone()), ..check(http(&["well"])) }, vec![up]);
    timeout(LONG, rig.cluster.warmed()).await.unwrap();
    until("three checks", || rig.stat("success") >= 3).await;
    let request = server.last.lock().unwrap().to_lowercase();
    assert!(request.starts_with("get /healthz http/1.1\r\n"), "{request}");
    for line in ["host: health.test", "user-agent: envoy/hc", "x-probe: 1"] {
        assert!(request.contains(line), "{line} in {request}");
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    let host = rig.cluster.hosts()[0].clone();
    server.say(&response("200 OK", "x-envoy-degraded: true\r\n", "all is well"));
    until("degraded", || host.health_flags() == "/degraded_active_hc").await;
    assert_eq!(rig.stat("degraded"), 1);
    // A wrong status is certain at once, a retriable one is not.
    server.say(&response("500 No", "", ""));
    until("unhealthy", || host.has(HealthFlag::FAILED_ACTIVE_HC)).await;
    server.say(&response("200 OK", "", "all is well"));
    until("healthy", || host.health_flags() == "healthy").await;
    server.say(&response("200 OK", "", "something else"));
    until("a wrong body", || host.has(HealthFlag::FAILED_ACTIVE_HC)).await;
    let events = std::fs::read_to_string(&log).unwrap();
    let first: serde_json::Value = serde_json::from_str(events.lines().next().unwrap()).unwrap();
    assert_eq!(first["health_checker_type"], "HTTP");
    assert_eq!(first["add_healthy_event"]["first_check"], true);
    assert!(events.contains("eject_unhealthy_event") && events.contains("degraded_healthy_host"), "{events}");
}

#[tokio::test]
async fn checks_may_go_elsewhere_or_nowhere() {
    let (server, up) = Server::start("").await;
    let port = match up.address {
        model::Address::Ip(address) => address.port(),
        model::Address::Host(_) | model::Address::Pipe { .. } => unreachable!(),
    };
    let elsewhere = Endpoint {
        health_check: EndpointHealthCheck { port: Some(port), ..Default::default() },
        ..endpoint("127.0.0.1:1")
    };
    let nowhere = Endpoint {
        health_check: EndpointHealthCheck { disabled: true, ..Default::default() },
        ..endpoint("127.0.0.1:2")
    };
    let rig = Rig::start(check(connect_only()), vec![elsewhere, nowhere]);
    timeout(LONG, rig.cluster.warmed()).await.unwrap();
    assert!(rig.cluster.hosts().iter().all(|host| host.health_flags() == "healthy"));
    assert!(server.connections.load(Ordering::SeqCst) >= 1);
    assert_eq!(rig.stat("healthy"), 1);
}

#[tokio::test]
async fn a_healthy_host_stays_until_it_fails() {
    let (server, up) = Server::start("PONG").await;
    let checker = HealthChecker::Tcp { send: b"PING".to_vec(), receive: vec![b"PONG".to_vec()] };
    let rig = Rig::start(HealthCheck { timeout: Duration::from_millis(40), ..check(checker) }, vec![up]);
    timeout(LONG, rig.cluster.warmed()).await.unwrap();
    let nothing = model::LoadAssignment { localities: vec![Default::default()], ..Default::default() };
    rig.cluster.update(&mut crate::cluster::discovery::fixed::groups(&nothing), &nothing.policy);
    assert_eq!(rig.cluster.hosts()[0].health_flags(), "/pending_dynamic_removal");
    assert!(rig.cluster.choose(&Want::default()).is_ok());
    server.mute.store(true, Ordering::SeqCst);
    until("its removal", || rig.cluster.hosts().is_empty()).await;
}

#[test]
fn thresholds() {
    let healthy = Verdict::Healthy { degraded: false };
    let wrong = |retriable| Verdict::Wrong { retriable };
    let env = env();
    let stats = HealthStats::default();
    let model = model::Cluster { health_checks: vec![check(connect_only())], ..model(weighted(&[1])) };
    for (results, transitions) in [
        (vec![healthy], vec![Transition::Changed]),
        (
            vec![Verdict::Network, healthy, healthy],
            vec![Transition::Unchanged, Transition::Pending, Transition::Changed],
        ),
        (
            vec![healthy, Verdict::Network, Verdict::Timeout],
            vec![Transition::Changed, Transition::Pending, Transition::Changed],
        ),
        (
            vec![healthy, Verdict::Network, healthy, Verdict::Network],
            vec![Transition::Changed, Transition::Pending, Transition::Unchanged, Transition::Pending],
        ),
        (vec![healthy, wrong(false)], vec![Transition::Changed, Transition::Changed]),
        (
            vec![healthy, wrong(true), wrong(true)],
            vec![Transition::Changed, Transition::Pending, Transition::Changed],
        ),
    ] {
        let cluster = Cluster::new(Arc::new(model.clone()), &env).unwrap();
        let mut judge = Judge::new();
        let got: Vec<_> = results
            .iter()
            .map(|verdict| judge.result(*verdict, &cluster.hosts()[0], &model.health_checks[0], &stats).0)
            .collect();
        assert_eq!(got, transitions, "{results:?}");
    }
}

#[test]
fn intervals() {
    let seconds = |n| Some(Duration::from_secs(n));
    let check = HealthCheck {
        interval: Duration::from_secs(1),
        no_traffic_interval: Duration::from_secs(60),
        no_traffic_healthy_interval: seconds(30),
        unhealthy_interval: seconds(2),
        unhealthy_edge_interval: seconds(3),
        healthy_edge_interval: seconds(4),
        ..check(connect_only())
    };
    let random = Seeded::new(1);
    for (healthy, transition, traffic, want) in [
        (true, Transition::Unchanged, true, 1),
        (false, Transition::Unchanged, true, 2),
        (false, Transition::Pending, true, 3),
        (true, Transition::Pending, true, 4),
        (true, Transition::Unchanged, false, 30),
        (false, Transition::Changed, false, 60),
    ] {
        let got = interval(&check, healthy, transition, traffic, &random);
        assert_eq!(got, Duration::from_secs(want), "{healthy} {transition:?} {traffic}");
    }
    let jittery = HealthCheck { interval_jitter: Duration::from_secs(1), ..check };
    for _ in 0..100 {
        let got = interval(&jittery, true, Transition::Unchanged, true, &random);
        assert!((Duration::from_secs(1)..Duration::from_secs(2)).contains(&got), "{got:?}");
    }
}

#[test]
fn the_longest_intervals_and_most_jitter_do_not_overflow() {
    let longest = Duration::from_secs(315_576_000_000);
    let check = HealthCheck {
        interval: longest,
        interval_jitter: longest,
        interval_jitter_percent: u32::MAX,
        no_traffic_interval: longest,
        ..check(connect_only())
    };
    for (healthy, traffic) in [(true, true), (false, false)] {
        let next = interval(&check, healthy, Transition::Unchanged, traffic, &Seeded::new(1));
        assert!(next >= longest, "{next:?}");
    }
}

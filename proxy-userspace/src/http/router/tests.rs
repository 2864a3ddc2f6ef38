//! The router between a stream and real sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use proxy_config::model as base;
use proxy_config::model::cluster::Discovery;
use proxy_config::model::endpoint::{LoadAssignment, LocalityEndpoints};
use proxy_config::model::http::retry::RetryOn;
use proxy_config::model::http::{HttpOptions, RetryPolicy, RouteAction, RouteConfiguration};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::Made;
use crate::cluster::testing::endpoint;
use crate::http::filter::Stop;
use crate::http::testing::{Rig, frames, manager, read, request, routed, to};
use crate::http::{Body, Stream};

/// Answers each request of each connection by what `answer` makes of its number; empty: closes.
async fn server(
    answer: impl Fn(usize) -> &'static str + Send + Sync + 'static,
) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (count, connections) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (answer, seen) = (Arc::new(answer), connections.clone());
    crate::task::Tasks::new(&crate::telemetry::stats::Stats::new()).spawn("server", async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            seen.fetch_add(1, Ordering::Relaxed);
            let (count, answer) = (count.clone(), answer.clone());
            crate::task::Tasks::new(&crate::telemetry::stats::Stats::new())
                .spawn("connection", serve(stream, count, answer));
        }
    });
    (address, connections)
}

async fn serve(
    mut stream: TcpStream,
    count: Arc<AtomicUsize>,
    answer: Arc<impl Fn(usize) -> &'static str + Send + Sync + 'static>,
) {
    let mut input = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = input.windows(4).position(|part| part == b"\r\n\r\n") {
                break at + 4;
            }
            let mut part = [0; 4096];
            match stream.read(&mut part).await {
                Ok(n @ 1..) => input.extend_from_slice(&part[..n]),
                Ok(0) | Err(_) => return,
            }
        };
        input.drain(..end);
        let text = answer(count.fetch_add(1, Ordering::Relaxed) + 1);
        if text.is_empty() {
            return;
        }
        if text == "never" {
            std::future::pending::<()>().await;
        }
        stream.write_all(text.as_bytes()).await.unwrap();
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BUSY: &str = "HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy";

fn cluster(addresses: &[&str]) -> base::Cluster {
    let mut cluster = base::Cluster::new("c", Discovery::Static);
    let endpoints = addresses.iter().map(|address| endpoint(address)).collect();
    let locality = LocalityEndpoints { endpoints, ..LocalityEndpoints::default() };
    cluster.load_assignment =
        Arc::new(LoadAssignment { localities: vec![locality], ..LoadAssignment::default() });
    cluster
}

pub(crate) fn action() -> RouteAction {
    RouteAction { timeout: Some(Duration::from_secs(15)), ..to("c") }
}

fn rig(action: RouteAction, cluster: base::Cluster) -> Rig {
    Rig::of(&manager(Vec::new(), routed(action)), [cluster])
}

/// Status and body; flags and details are in the stream.
async fn run(stream: &mut Stream) -> Result<(u16, String), Stop> {
    match super::run(stream).await {
        Ok(Made::Redirect) => panic!("no route follows redirects"),
        Ok(Made::Response) => {
            let body = read(stream.response_body.take()).await?.0;
            Ok((stream.response().unwrap().status.as_u16(), String::from_utf8_lossy(&body).into_owned()))
        }
        Err(Stop::Reply(reply)) => {
            stream.flag(reply.flags);
            stream.details(reply.details);
            Ok((reply.status.as_u16(), String::from_utf8_lossy(&reply.body).into_owned()))
        }
        Err(stop) => Err(stop),
    }
}

fn told(stream: &Stream) -> (String, String) {
    let outcome = &stream.entry.outcome;
    (outcome.flags.to_string(), outcome.response_code_details.clone().unwrap_or_default().into_owned())
}

#[tokio::test]
async fn requests_share_a_connection() {
    let (address, connections) = server(|_| OK).await;
    let rig = rig(action(), cluster(&[&address]));
    for _ in 0..3 {
        let mut stream = rig.get("/");
        assert_eq!(run(&mut stream).await.unwrap(), (200, "ok".to_owned()));
        assert_eq!(told(&stream), ("-".to_owned(), "via_upstream".to_owned()));
        assert!(stream.response().unwrap().headers.contains_key("x-envoy-upstream-service-time"));
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    for (name, value) in [
        ("upstream_cx_total", 1),
        ("upstream_cx_http1_total", 1),
        ("upstream_cx_active", 1),
        ("upstream_rq_total", 3),
        ("upstream_rq_200", 3),
        ("external.upstream_rq_2xx", 3),
        ("upstream_rq_active", 0),
        ("upstream_rq_pending_active", 0),
        ("upstream_rq_pending_total", 1),
    ] {
        assert_eq!(rig.stat(&format!("cluster.c.{name}")), value, "{name}");
    }
}

#[tokio::test]
async fn nobody_to_ask() {
    let rig = rig(action(), cluster(&[]));
    let mut stream = rig.get("/");
    assert_eq!(run(&mut stream).await.unwrap(), (503, "no healthy upstream".to_owned()));
    assert_eq!(told(&stream), ("UH".to_owned(), "no_healthy_upstream".to_owned()));
    let rig = Rig::of(&manager(Vec::new(), routed(action())), []);
    let mut stream = rig.get("/");
    assert_eq!(run(&mut stream).await.unwrap().0, 503);
    assert_eq!(told(&stream), ("NC".to_owned(), "cluster_not_found".to_owned()));
    let rig = Rig::of(&manager(Vec::new(), RouteConfiguration::default()), []);
    let mut stream = rig.get("/");
    assert_eq!(run(&mut stream).await.unwrap().0, 404);
    assert_eq!(told(&stream), ("NR".to_owned(), "route_not_found".to_owned()));
}

#[tokio::test]
async fn nobody_listens() {
    let rig = rig(action(), cluster(&["127.0.0.1:1"]));
    let mut stream = rig.get("/");
    let (status, body) = run(&mut stream).await.unwrap();
    let text =
        "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure";
    assert_eq!((status, &*body), (503, text));
    let details = "upstream_reset_before_response_started{remote_connection_failure|\
                   delayed_connect_error:_Connection_refused}";
    assert_eq!(told(&stream), ("UF".to_owned(), details.to_owned()));
    assert_eq!(rig.stat("cluster.c.upstream_cx_connect_fail"), 1);
    assert_eq!(rig.stat("cluster.c.upstream_rq_pending_failure_eject"), 1);
    assert_eq!(rig.stat("cluster.c.upstream_rq_503"), 1);
    assert_eq!(rig.stat("cluster.c.upstream_cx_active"), 0);
}

#[tokio::test]
async fn a_request_is_sent_again() {
    let (address, _) = server(|n| if n < 3 { BUSY } else { OK }).await;
    let policy = RetryPolicy { retry_on: RetryOn::SERVER_ERROR, num_retries: 3, ..RetryPolicy::default() };
    let rig = rig(RouteAction { retry_policy: Some(Arc::new(policy)), ..action() }, cluster(&[&address]));
    let body = frames(&[b"hel", b"lo"], None);
    let mut head = request(Method::POST, "/", &[("content-length", "5")]);
    head.headers.insert("x-envoy-max-retries", "2".parse().unwrap());
    let mut stream = rig.stream(head, body);
    assert_eq!(run(&mut stream).await.unwrap(), (200, "ok".to_owned()));
    assert_eq!(stream.entry.upstream.attempts, 3);
    assert!(!stream.request().headers.contains_key("x-envoy-max-retries"));
    for (name, value) in [
        ("upstream_rq_retry", 2),
        ("upstream_rq_retry_success", 1),
        ("upstream_rq_retry_limit_exceeded", 0),
        ("upstream_rq_retry_backoff_exponential", 2),
        ("retry.upstream_rq_503", 2),
        ("upstream_rq_200", 1),
        ("circuit_breakers.default.rq_retry_open", 0),
    ] {
        assert_eq!(rig.stat(&format!("cluster.c.{name}")), value, "{name}");
    }
}

#[tokio::test]
async fn retries_come_to_an_end() {
    let (address, _) = server(|_| BUSY).await;
    let policy = RetryPolicy { retry_on: RetryOn::SERVER_ERROR, ..RetryPolicy::default() };
    let rig = rig(RouteAction { retry_policy: Some(Arc::new(policy)), ..action() }, cluster(&[&address]));
    let mut stream = rig.get("/");
    assert_eq!(run(&mut stream).await.unwrap(), (503, "busy".to_owned()));
    assert_eq!(told(&stream), ("URX".to_owned(), "via_upstream".to_owned()));
    assert_eq!(rig.stat("cluster.c.upstream_rq_retry_limit_exceeded"), 1);
}

#[tokio::test]
async fn an_upstream_that_closes() {
    let (address, _) = server(|_| "").await;
    let rig = rig(action(), cluster(&[&address]));
    let mut stream = rig.get("/");
    let (status, body) = run(&mut stream).await.unwrap();
    let text =
        "upstream connect error or disconnect/reset before headers. reset reason: connection termination";
    assert_eq!((status, &*body), (503, text));
    let details = "upstream_reset_before_response_started{connection_termination}";
    assert_eq!(told(&stream), ("UC".to_owned(), details.to_owned()));
    assert_eq!(rig.stat("cluster.c.upstream_cx_destroy_remote_with_active_rq"), 1);
}

#[tokio::test]
async fn an_upstream_that_is_no_upstream() {
    let (address, _) = server(|_| "SSH-2.0-OpenSSH_9.6\r\n\r\n").await;
    let rig = rig(action(), cluster(&[&address]));
    let mut stream = rig.get("/");
    assert_eq!(run(&mut stream).await.unwrap().0, 502);
    let (flags, details) = told(&stream);
    assert_eq!(flags, "UPE");
    assert!(details.starts_with("upstream_reset_before_response_started{protocol_error"), "{details}");
    assert_eq!(rig.stat("cluster.c.upstream_cx_protocol_error"), 1);
}

#[tokio::test]
async fn an_upstream_that_breaks_off() {
    let (address, _) =
        server(|n| if n == 1 { "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhal" } else { "" }).await;
    let rig = rig(action(), cluster(&[&address]));
    let mut stream = rig.get("/");
    assert!(super::run(&mut stream).await.is_ok());
    let body = stream.response_body.take();
    // The next request on the connection makes the server close it.
    let (_, ended) = tokio::join!(
        async {
            let mut other = TcpStream::connect(&address).await.unwrap();
            other.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        },
        tokio::time::timeout(Duration::from_millis(300), read(body))
    );
    assert!(ended.is_err(), "it waits for the rest");
    assert_eq!(rig.stat("cluster.c.upstream_cx_active"), 0);
    assert_eq!(rig.stat("cluster.c.upstream_cx_destroy_local_with_active_rq"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_response_that_does_not_come() {
    let (address, _) = server(|_| "never").await;
    let rig = rig(action(), cluster(&[&address]));
    let mut stream = rig.get("/");
    assert_eq!(run(&mut stream).await.unwrap(), (504, "upstream request timeout".to_owned()));
    assert_eq!(told(&stream), ("UT".to_owned(), "response_timeout".to_owned()));
    assert_eq!(rig.stat("cluster.c.upstream_rq_timeout"), 1);
    assert_eq!(rig.stat("cluster.c.upstream_rq_504"), 1);
}

#[tokio::test(start_paused = true)]
async fn each_try_has_its_time() {
    let (address, connections) = server(|_| "never").await;
    let policy = RetryPolicy {
        retry_on: RetryOn::RESET,
        num_retries: 2,
        per_try_timeout: Some(Duration::from_secs(1)),
        ..RetryPolicy::default()
    };
    let rig = rig(RouteAction { retry_policy: Some(Arc::new(policy)), ..action() }, cluster(&[&address]));
    let mut stream = rig.get("/");
    assert_eq!(run(&mut stream).await.unwrap(), (504, "upstream request timeout".to_owned()));
    assert_eq!(told(&stream), ("URX,UT".to_owned(), "upstream_per_try_timeout".to_owned()));
    assert_eq!(rig.stat("cluster.c.upstream_rq_per_try_timeout"), 3);
    assert_eq!(connections.load(Ordering::Relaxed), 3);
    assert_eq!(stream.request().headers["x-envoy-expected-rq-timeout-ms"], "1000");
}

#[tokio::test]
async fn who_finds_all_connections_taken_waits_for_one() {
    let (address, connections) = server(|_| OK).await;
    let mut cluster = cluster(&[&address]);
    cluster.circuit_breakers.default.max_connections = 1;
    let rig = rig(action(), cluster);
    let mut streams: Vec<_> = (0..5).map(|_| rig.get("/")).collect();
    let [a, b, c, d, e] = &mut streams[..] else { panic!() };
    let all = tokio::join!(run(a), run(b), run(c), run(d), run(e));
    for result in [all.0, all.1, all.2, all.3, all.4] {
        assert_eq!(result.unwrap().0, 200);
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    assert_eq!(rig.stat("cluster.c.upstream_rq_pending_active"), 0);
    assert!(rig.stat("cluster.c.upstream_cx_overflow") > 0);
}

#[tokio::test]
async fn too_many_wait() {
    let (address, _) = server(|_| "never").await;
    let mut cluster = cluster(&[&address]);
    cluster.circuit_breakers.default.max_pending_requests = 0;
    let rig = rig(action(), cluster);
    let mut stream = rig.get("/");
    let (status, body) = run(&mut stream).await.unwrap();
    let text = "upstream connect error or disconnect/reset before headers. reset reason: overflow";
    assert_eq!((status, &*body), (503, text));
    let details = "upstream_reset_before_response_started{overflow}";
    assert_eq!(told(&stream), ("UO".to_owned(), details.to_owned()));
    assert_eq!(rig.stat("cluster.c.upstream_rq_pending_overflow"), 1);
}

#[tokio::test]
async fn an_idle_connection_that_the_upstream_closes_is_noticed() {
    let (address, connections) = server(|n| if n == 2 { "" } else { OK }).await;
    let rig = rig(action(), cluster(&[&address]));
    assert_eq!(run(&mut rig.get("/")).await.unwrap().0, 200);
    // Of another client, on its own connection, so that the server closes nothing of ours.
    assert_eq!(rig.stat("cluster.c.upstream_cx_active"), 1);
    assert_eq!(run(&mut rig.get("/")).await.unwrap().0, 503);
    assert_eq!(run(&mut rig.get("/")).await.unwrap().0, 200);
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn an_idle_connection_has_its_time() {
    let (address, _) = server(|_| OK).await;
    let mut cluster = cluster(&[&address]);
    let mut http = HttpOptions::default();
    http.common.idle_timeout = Some(Duration::from_millis(50));
    cluster.http = Some(Box::new(http));
    let rig = rig(action(), cluster);
    assert_eq!(run(&mut rig.get("/")).await.unwrap().0, 200);
    tokio::time::timeout(Duration::from_secs(5), async {
        while rig.stat("cluster.c.upstream_cx_active") > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(rig.stat("cluster.c.upstream_cx_idle_timeout"), 1);
    assert_eq!(rig.stat("cluster.c.upstream_cx_destroy_local"), 1);
}

#[tokio::test]
async fn a_connection_has_so_many_requests() {
    let (address, connections) = server(|_| OK).await;
    let mut cluster = cluster(&[&address]);
    let mut http = HttpOptions::default();
    http.common.max_requests_per_connection = Some(2);
    cluster.http = Some(Box::new(http));
    let rig = rig(action(), cluster);
    for _ in 0..5 {
        assert_eq!(run(&mut rig.get("/")).await.unwrap().0, 200);
    }
    assert_eq!(connections.load(Ordering::Relaxed), 3);
    assert_eq!(rig.stat("cluster.c.upstream_cx_max_requests"), 2);
}

#[tokio::test]
async fn the_body_goes_up() {
    let (address, _) = server(|_| OK).await;
    let rig = rig(action(), cluster(&[&address]));
    let mut stream = rig.stream(request(Method::POST, "/", &[]), Body::full("hello"));
    assert_eq!(run(&mut stream).await.unwrap(), (200, "ok".to_owned()));
}

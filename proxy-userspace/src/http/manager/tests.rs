//! Connections on real sockets, through the whole manager.

use std::sync::Arc;
use std::time::Duration;

use proxy_config::model::http as model;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::drain::Drain;
use crate::http::testing::{self, Rig};
use crate::net::rig::LONG;

/// A connection manager that serves one connection after another.
struct Daemon {
    rig: Arc<Rig>,
    drain: Drain,
    listener: TcpListener,
}

impl Daemon {
    async fn new(change: impl FnOnce(&mut model::Hcm)) -> Self {
        let mut manager = testing::manager(Vec::new(), testing::any_route());
        change(&mut manager);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { rig: Arc::new(Rig::of(&manager, [])), drain: Drain::new(), listener }
    }

    async fn client(&self) -> TcpStream {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = self.listener.accept().await.unwrap();
        let (rig, watch) = (self.rig.clone(), self.drain.watch());
        self.rig.place.shared.tasks.spawn("connection", async move {
            let guard = watch.guard();
            let cx = rig.connection();
            let mut served = Served { account: Account::open(&cx), cx, guard: &guard };
            let io = Io::Client { socket: Arc::new(socket), transport: None };
            serve(&mut served, io, Vec::new()).await;
        });
        client
    }

    /// All that comes for this, until the connection is closed.
    async fn all(&self, request: &str) -> String {
        let mut client = self.client().await;
        client.write_all(request.as_bytes()).await.unwrap();
        rest(&mut client).await
    }

    fn stat(&self, name: &str) -> u64 {
        self.rig.stat(&format!("http.test.{name}"))
    }

    /// Once it is that.
    async fn stat_is(&self, name: &str, value: u64) {
        let reached = async {
            while self.stat(name) != value {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = timeout(LONG, reached).await;
        assert!(waited.is_ok(), "{name} is {}, not {value}", self.stat(name));
    }
}

async fn rest(client: &mut TcpStream) -> String {
    let mut all = Vec::new();
    // A reset is an end too.
    let _ = timeout(LONG, client.read_to_end(&mut all)).await.unwrap();
    String::from_utf8(all).unwrap()
}

async fn some(client: &mut TcpStream, until: &str) -> String {
    let mut all = Vec::new();
    while !all.ends_with(until.as_bytes()) {
        let mut buf = [0; 4096];
        let n = timeout(LONG, client.read(&mut buf)).await.unwrap().unwrap();
        assert!(n > 0, "closed after {}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&buf[..n]);
    }
    String::from_utf8(all).unwrap()
}

const GET: &str = "GET /a HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn requests_follow_each_other_and_may_be_sent_at_once() {
    let daemon = Daemon::new(|_| {}).await;
    let mut client = daemon.client().await;
    for _ in 0..2 {
        client.write_all(GET.as_bytes()).await.unwrap();
        let response = some(&mut client, "direct").await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(response.contains("\r\nserver: envoy\r\n") && response.contains("\r\ndate: "), "{response}");
    }
    client.write_all(GET.repeat(3).as_bytes()).await.unwrap();
    let mut responses = String::new();
    while responses.matches("\r\n\r\ndirect").count() < 3 {
        responses += &some(&mut client, "direct").await;
    }
    drop(client);
    daemon.stat_is("downstream_cx_destroy_remote", 1).await;
    daemon.stat_is("downstream_cx_active", 0).await;
    assert_eq!(daemon.stat("downstream_rq_total"), 5);
    assert_eq!((daemon.stat("downstream_rq_2xx"), daemon.stat("downstream_rq_active")), (5, 0));
    assert_eq!(daemon.stat("downstream_cx_rx_bytes_total"), 5 * GET.len() as u64);
}

#[tokio::test]
async fn a_connection_is_closed_where_the_client_asks_for_it_or_has_sent_nonsense() {
    let daemon = Daemon::new(|_| {}).await;
    let response = daemon.all("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(response.contains("connection: close\r\n") && response.ends_with("direct"), "{response}");
    let response = daemon.all("GET / HTTP/1.1\nhost: a\n\n").await;
    assert!(response.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{response}");
    assert!(response.ends_with("\r\n\r\nBad Request"), "{response}");
    let response = daemon.all("GET / HTTP/1.0\r\nhost: a\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 426 Upgrade Required\r\n"), "{response}");
    assert_eq!(daemon.stat("downstream_cx_protocol_error"), 2);
    assert_eq!((daemon.stat("downstream_rq_total"), daemon.stat("downstream_rq_4xx")), (3, 2));
}

#[tokio::test]
async fn a_head_has_to_come_in_time() {
    for (change, counter) in [
        (
            (|timeouts| timeouts.request_headers = Some(Duration::from_millis(30)))
                as fn(&mut model::hcm::HcmTimeouts),
            "downstream_rq_header_timeout",
        ),
        (|timeouts| timeouts.request = Some(Duration::from_millis(30)), "downstream_rq_timeout"),
        (|timeouts| timeouts.stream_idle = Some(Duration::from_millis(30)), "downstream_rq_idle_timeout"),
    ] {
        let daemon = Daemon::new(|manager| change(&mut manager.timeouts)).await;
        let response = daemon.all("GET / HTTP/1.1\r\nho").await;
        assert!(response.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{response}");
        assert_eq!(daemon.stat(counter), 1);
        assert_eq!(daemon.stat("downstream_rq_4xx"), 1);
    }
}

#[tokio::test]
async fn an_idle_connection_is_drained_and_then_closed() {
    let daemon = Daemon::new(|manager| {
        manager.common.idle_timeout = Some(Duration::from_millis(20));
        manager.timeouts.drain = Duration::from_millis(50);
    })
    .await;
    let mut client = daemon.client().await;
    client.write_all(GET.as_bytes()).await.unwrap();
    let first = some(&mut client, "direct").await;
    assert!(!first.contains("connection: close"), "{first}");
    daemon.stat_is("downstream_cx_idle_timeout", 1).await;
    assert_eq!(rest(&mut client).await, "");
    daemon.stat_is("downstream_cx_destroy_local", 1).await;
}

#[tokio::test]
async fn the_last_request_of_a_connection_is_told_to_be() {
    let daemon = Daemon::new(|manager| manager.common.max_requests_per_connection = Some(2)).await;
    let mut client = daemon.client().await;
    client.write_all(GET.as_bytes()).await.unwrap();
    assert!(!some(&mut client, "direct").await.contains("connection: close"));
    client.write_all(GET.as_bytes()).await.unwrap();
    assert!(rest(&mut client).await.contains("connection: close"));
    assert_eq!(daemon.stat("downstream_cx_max_requests_reached"), 1);
    // A drain has the same effect.
    let mut client = daemon.client().await;
    client.write_all(GET.as_bytes()).await.unwrap();
    assert!(!some(&mut client, "direct").await.contains("connection: close"));
    daemon.drain.start();
    client.write_all(GET.as_bytes()).await.unwrap();
    assert!(rest(&mut client).await.contains("connection: close"));
}

#[tokio::test]
async fn a_drain_leaves_the_first_request_of_a_connection_its_time() {
    let daemon = Daemon::new(|manager| manager.timeouts.drain = LONG).await;
    let mut client = daemon.client().await;
    daemon.stat_is("downstream_cx_active", 1).await;
    daemon.drain.start();
    tokio::time::sleep(Duration::from_millis(20)).await;
    client.write_all(GET.as_bytes()).await.unwrap();
    assert!(rest(&mut client).await.contains("connection: close"));
    // Who says nothing is let go, as who is idle.
    let daemon = Daemon::new(|manager| manager.timeouts.drain = Duration::from_millis(20)).await;
    let mut client = daemon.client().await;
    daemon.drain.start();
    assert_eq!(rest(&mut client).await, "");
}

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use proxy_config::model::listener_filter::{
    ListenerFilterConfig, LocalRateLimit, PassThroughTlvs, TlvRule, TokenBucket as Bucket,
};
use proxy_config::model::metadata::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::*;
use crate::clock;
use crate::listener::select::tests::listener;

const HELLO: &[u8] = include_bytes!("../../../../fuzz/corpus/tls_inspector/openssl-sni-alpn");
const PROXY: &[u8] = b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 2000\r\n";

struct Nowhere;

impl OriginalDst for Nowhere {
    fn lookup(&self, _: &TcpStream, _: SocketAddr) -> io::Result<Option<SocketAddr>> {
        Ok(None)
    }
}

struct To(SocketAddr);

impl OriginalDst for To {
    fn lookup(&self, _: &TcpStream, _: SocketAddr) -> io::Result<Option<SocketAddr>> {
        Ok(Some(self.0))
    }
}

/// A listener's filters and a connection to them.
struct Rig {
    filters: Filters,
    client: TcpStream,
    server: TcpStream,
    facts: Facts,
    stats: Stats,
    own: Arc<ListenerStats>,
}

fn tls() -> ListenerFilter {
    ListenerFilter::TlsInspector(model::TlsInspector {
        max_client_hello_size: 16_384,
        close_connection_on_client_hello_parsing_errors: false,
    })
}

fn proxy() -> ListenerFilter {
    ListenerFilter::ProxyProtocol(model::ProxyProtocol::default())
}

impl Rig {
    async fn new(filters: Vec<ListenerFilter>) -> Self {
        Self::with(filters, |_| {}).await
    }

    async fn with(filters: Vec<ListenerFilter>, change: impl FnOnce(&mut Listener)) -> Self {
        let bound = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(bound.local_addr().unwrap()).await.unwrap();
        client.set_nodelay(true).unwrap();
        let (server, peer) = bound.accept().await.unwrap();
        let mut model = listener(&[("127.0.0.1:1", false)]);
        let config = |filter| ListenerFilterConfig { name: "f".into(), filter_disabled: None, filter };
        model.listener_filters = filters.into_iter().map(config).collect();
        change(&mut model);
        let stats = Stats::new();
        let own: Arc<ListenerStats> = stats.block("listener.test");
        let filters = Filters::new(&model, &stats, own.clone());
        let facts = Facts::new(peer, server.local_addr().unwrap());
        Self { filters, client, server, facts, stats, own }
    }

    async fn run(&mut self) -> Result<(), Failure> {
        self.filters.run(&self.server, &mut self.facts, &Nowhere).await
    }

    async fn run_while(&mut self, sends: impl AsyncFnOnce(&mut TcpStream)) -> Result<(), Failure> {
        let run = self.filters.run(&self.server, &mut self.facts, &Nowhere);
        tokio::join!(run, sends(&mut self.client)).0
    }

    fn value(&self, name: &str) -> u64 {
        self.stats.value(name).unwrap_or_else(|| panic!("no stat {name}"))
    }

    /// Everything that the next reader gets.
    async fn rest(mut self) -> Vec<u8> {
        self.client.shutdown().await.unwrap();
        let mut rest = Vec::new();
        self.server.read_to_end(&mut rest).await.unwrap();
        rest
    }
}

async fn by_bytes(client: &mut TcpStream, bytes: &[u8]) {
    for byte in bytes {
        client.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_hello_in_single_bytes_is_found_and_left_in_place() {
    let mut rig = Rig::new(vec![tls(), ListenerFilter::HttpInspector]).await;
    rig.run_while(async |client| by_bytes(client, HELLO).await).await.unwrap();
    assert_eq!(rig.facts.transport_protocol, "tls");
    assert_eq!(rig.facts.server_name.as_deref(), Some("example.com"));
    assert_eq!(rig.facts.application_protocols, ["h2".into(), "http/1.1".into()]);
    for stat in ["tls_found", "sni_found", "alpn_found"] {
        assert_eq!(rig.value(&format!("tls_inspector.{stat}")), 1, "{stat}");
    }
    // Its protocol is no business of http_inspector's.
    assert_eq!(rig.value("http_inspector.http_not_found"), 0);
    assert_eq!(rig.own.downstream_pre_cx_active.value(), 0);
    assert_eq!(rig.rest().await, HELLO);
}

#[tokio::test]
async fn all_three_by_single_bytes_and_only_the_header_is_taken() {
    let mut rig = Rig::new(vec![proxy(), tls(), ListenerFilter::HttpInspector]).await;
    let all = [PROXY, b"GET / HTTP/1.1\r\n"].concat();
    rig.run_while(async |client| by_bytes(client, &all).await).await.unwrap();
    assert_eq!(rig.facts.remote, "1.2.3.4:1000".parse().unwrap());
    assert_eq!(rig.facts.local, "5.6.7.8:2000".parse().unwrap());
    assert!(rig.facts.local_restored);
    assert_ne!(rig.facts.direct_remote, rig.facts.remote);
    assert_eq!(rig.facts.application_protocols, ["http/1.1".into()]);
    assert_eq!(rig.value("proxy_proto.versions.v1.found"), 1);
    assert_eq!(rig.value("tls_inspector.tls_not_found"), 1);
    assert_eq!(rig.value("http_inspector.http11_found"), 1);
    assert_eq!(rig.rest().await, b"GET / HTTP/1.1\r\n");
}

#[tokio::test]
async fn tlvs_become_metadata_and_are_kept_for_upstream() {
    let config = model::ProxyProtocol {
        rules: vec![TlvRule { tlv_type: 0xea, metadata_namespace: String::new(), key: "k".into() }],
        pass_through_tlvs: PassThroughTlvs::Include(vec![0xe0]),
        stat_prefix: "xx".into(),
        ..model::ProxyProtocol::default()
    };
    let mut rig = Rig::new(vec![ListenerFilter::ProxyProtocol(config)]).await;
    let body = [&[1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 0, 2][..], b"\xea\0\x02a\xff\xea\0\x01z\xe0\0\x01p"].concat();
    let header =
        [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0", &[u8::try_from(body.len()).unwrap()][..], &body].concat();
    rig.run_while(async |client| by_bytes(client, &header).await).await.unwrap();
    let extra = rig.facts.extra.as_ref().unwrap();
    assert_eq!(extra.proxy_tlvs, [(0xe0, b"p".to_vec())]);
    let fields = extra.dynamic_metadata.of("envoy.filters.listener.proxy_protocol").unwrap();
    assert_eq!(fields["k"], Value::String("a!".into()));
    assert_eq!(rig.value("proxy_proto.xx.versions.v2.found"), 1);
    assert!(rig.rest().await.is_empty());
}

#[tokio::test]
async fn a_broken_header_is_refused_with_its_stats_and_a_reset() {
    let mut rig = Rig::new(vec![proxy()]).await;
    rig.client.write_all(b"PROXY hello\r\n").await.unwrap();
    let failure = rig.run().await.unwrap_err();
    assert_eq!(failure.to_string(), "proxy_protocol: v1_error");
    assert_eq!(rig.value("downstream_cx_proxy_proto_error"), 1);
    assert_eq!(rig.value("proxy_proto.versions.v1.error"), 1);
    drop(rig.server);
    let error = rig.client.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_client_that_leaves_while_filters_wait() {
    for sent in [&b""[..], b"PROX"] {
        let mut rig = Rig::new(vec![proxy()]).await;
        let result = rig
            .run_while(async |client| {
                client.write_all(sent).await.unwrap();
                sleep(Duration::from_millis(20)).await;
                client.shutdown().await.unwrap();
            })
            .await;
        assert!(matches!(result, Err(Failure::RemoteClose)), "{result:?}");
        assert_eq!(rig.own.downstream_listener_filter_remote_close.value(), 1);
    }
    let mut rig = Rig::new(vec![proxy()]).await;
    let result = rig
        .run_while(async |client| {
            sleep(Duration::from_millis(20)).await;
            crate::sys::sock::set_linger_reset(client).unwrap();
            let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
            // Closes the connection by putting another in its place.
            *client = TcpStream::connect(other.local_addr().unwrap()).await.unwrap();
        })
        .await;
    assert!(matches!(result, Err(Failure::Io(_))), "{result:?}");
    assert_eq!(rig.own.downstream_listener_filter_error.value(), 1);
}

#[tokio::test]
async fn a_whole_request_before_the_end_is_not_lost() {
    let mut rig = Rig::new(vec![tls()]).await;
    rig.client.write_all(HELLO).await.unwrap();
    rig.client.shutdown().await.unwrap();
    rig.run().await.unwrap();
    assert_eq!(rig.facts.transport_protocol, "tls");
    assert_eq!(rig.rest().await, HELLO);
}

#[tokio::test(start_paused = true)]
async fn time_runs_out() {
    let limit = Duration::from_secs(15);
    for continues in [false, true] {
        let mut rig = Rig::with(vec![proxy(), tls()], |listener| {
            listener.listener_filters_timeout = Some(limit);
            listener.continue_on_listener_filters_timeout = continues;
        })
        .await;
        rig.client.write_all(&[PROXY, &HELLO[..20]].concat()).await.unwrap();
        let start = clock::now();
        let result = rig.run().await;
        assert!(start.elapsed() >= limit);
        assert_eq!(result.is_ok(), continues);
        assert!(continues || matches!(result, Err(Failure::Timeout)));
        assert_eq!(rig.own.downstream_pre_cx_timeout.value(), 1);
        // What was found by then holds.
        assert_eq!(rig.facts.remote, "1.2.3.4:1000".parse().unwrap());
        assert_eq!(rig.facts.transport_protocol, "raw_buffer");
    }
}

/// The readiness that the filters have cleared must come back for what they leave in the socket.
#[tokio::test]
async fn bytes_that_waited_out_the_time_are_read_by_the_next() {
    for sent in [&HELLO[..20], b"hell", b"G"] {
        let mut rig = Rig::with(vec![tls()], |listener| {
            listener.listener_filters_timeout = Some(Duration::from_millis(50));
            listener.continue_on_listener_filters_timeout = true;
        })
        .await;
        rig.client.write_all(sent).await.unwrap();
        rig.run().await.unwrap();
        let mut got = vec![0; sent.len()];
        let read = rig.server.read_exact(&mut got);
        timeout(Duration::from_secs(5), read).await.unwrap().unwrap();
        assert_eq!(got, sent);
        // And a single byte wakes the reader again.
        let (mut server, mut byte) = (rig.server, [0]);
        let (read, wrote) = tokio::join!(
            timeout(Duration::from_secs(5), server.read_exact(&mut byte)),
            rig.client.write_all(b"x")
        );
        wrote.unwrap();
        read.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_long_header_in_small_parts_wakes_nobody_in_vain() {
    let mut rig = Rig::new(vec![proxy()]).await;
    let header = [&b"\r\n\r\n\0\r\nQUIT\n\x20\0\xff\xff"[..], &[0; 65_535]].concat();
    let (client, polls) = (&mut rig.client, &mut 0);
    let run = counted(rig.filters.run(&rig.server, &mut rig.facts, &Nowhere), polls);
    let send = async {
        for part in header.chunks(700) {
            client.write_all(part).await.unwrap();
            sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::join!(tokio::task::unconstrained(run), send).0.unwrap();
    assert_eq!(rig.facts.remote, rig.facts.direct_remote);
    assert!(!rig.facts.local_restored);
    // 94 parts: one look at the first, one at the whole, and what the runtime adds.
    assert!(*polls < 10, "{polls}");
    rig.client.write_all(b"x").await.unwrap();
    assert_eq!(rig.rest().await, b"x");
}

/// Counts how often the future was woken: polls for the sake of others in the same task are kept from it.
async fn counted<T>(future: impl Future<Output = T>, polls: &mut usize) -> T {
    let mut future = std::pin::pin!(future);
    let woken = Arc::new(Woken::default());
    std::future::poll_fn(|cx| {
        let polled_before = woken.outer.lock().unwrap().replace(cx.waker().clone()).is_some();
        if polled_before && !woken.flag.swap(false, Ordering::Relaxed) {
            return Poll::Pending;
        }
        *polls += 1;
        let waker = Waker::from(woken.clone());
        future.as_mut().poll(&mut Context::from_waker(&waker))
    })
    .await
}

#[derive(Default)]
struct Woken {
    flag: AtomicBool,
    outer: Mutex<Option<Waker>>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.flag.store(true, Ordering::Relaxed);
        if let Some(outer) = &*self.outer.lock().unwrap() {
            outer.wake_by_ref();
        }
    }
}

#[tokio::test]
async fn filters_that_wait_for_no_byte() {
    let source = OriginalSrc { bind_port: true, mark: 7 };
    let filters = vec![ListenerFilter::OriginalDst, ListenerFilter::OriginalSrc(source)];
    let mut rig = Rig::new(filters).await;
    let to: SocketAddr = "10.1.2.3:80".parse().unwrap();
    rig.run().await.unwrap();
    assert!(!rig.facts.local_restored);
    rig.filters.run(&rig.server, &mut rig.facts, &To(to)).await.unwrap();
    assert!(rig.facts.local_restored);
    assert_eq!((rig.facts.local, rig.facts.direct_local), (to, rig.server.local_addr().unwrap()));
    assert_eq!(rig.facts.extra.unwrap().original_src, Some(source));
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_closes_and_counts() {
    let bucket = Bucket { max_tokens: 1, tokens_per_fill: 1, fill_interval: Duration::from_secs(2) };
    let limit = |runtime_enabled| {
        ListenerFilter::LocalRateLimit(LocalRateLimit {
            stat_prefix: "p".into(),
            token_bucket: bucket,
            runtime_enabled,
            share_key: None,
        })
    };
    let mut rig = Rig::new(vec![limit(true)]).await;
    rig.run().await.unwrap();
    assert!(matches!(rig.run().await, Err(Failure::Refused { filter: "local_ratelimit", .. })));
    assert_eq!(rig.value("listener_local_ratelimit.p.rate_limited"), 1);
    tokio::time::advance(Duration::from_secs(2)).await;
    rig.run().await.unwrap();
    let mut off = Rig::new(vec![limit(false)]).await;
    for _ in 0..3 {
        off.run().await.unwrap();
    }
}

#[tokio::test]
async fn a_disabled_filter_sees_the_restored_destination() {
    let disable = |from, to| {
        move |listener: &mut Listener| {
            listener.listener_filters[1].filter_disabled =
                Some(Predicate::Not(Box::new(Predicate::DestinationPort(from, to))));
        }
    };
    let to = To("10.0.0.1:443".parse().unwrap());
    let mut rig = Rig::with(vec![ListenerFilter::OriginalDst, tls()], disable(80, 443)).await;
    // It would wait for ever for a byte of a client that sends none.
    rig.filters.run(&rig.server, &mut rig.facts, &to).await.unwrap();
    let mut rig = Rig::with(vec![ListenerFilter::OriginalDst, tls()], disable(443, 444)).await;
    rig.client.write_all(HELLO).await.unwrap();
    rig.filters.run(&rig.server, &mut rig.facts, &to).await.unwrap();
    assert_eq!(rig.facts.transport_protocol, "tls");
}

#[test]
fn predicates() {
    let facts = Facts::new("1.1.1.1:1".parse().unwrap(), "1.1.1.2:80".parse().unwrap());
    let port = |from| Predicate::DestinationPort(from, from + 1);
    for (predicate, expected) in [
        (Predicate::Any, true),
        (Predicate::Not(Box::new(Predicate::Any)), false),
        (port(80), true),
        (port(79), false),
        (port(81), false),
        (Predicate::And(vec![port(80), port(81)]), false),
        (Predicate::Or(vec![port(81), port(80)]), true),
    ] {
        assert_eq!(holds(&predicate, &facts), expected, "{predicate:?}");
    }
}

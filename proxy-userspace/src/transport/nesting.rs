//! Layers in each other: what goes through them, and what reaches the innermost.

use std::future::poll_fn;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use proxy_config::model::transport::{
    self as model, TapConfig, TapFormat, TapOutput, TapPredicate, TapSink, TapSource,
};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;

use super::tls::tests::rig::{Ca, End, Rig, common, downstream, env, make, sockets, upstream};
use super::*;
use crate::net::wire::Wire;

const PERIOD: Duration = Duration::from_secs(3_600);
const HEADER: &[u8] = b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n";

/// Notes what is asked of it.
struct Probe {
    calls: Arc<Mutex<Vec<String>>>,
    /// Every call that can fails.
    fails: bool,
    tls: Arc<TlsInfo>,
}

impl Probe {
    fn note(&self, call: &str) {
        self.calls.lock().unwrap().push(call.to_owned());
    }

    fn done<T>(&self, call: &str, value: T) -> Poll<io::Result<T>> {
        self.note(call);
        Poll::Ready(if self.fails { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(value) })
    }
}

impl Transport for Probe {
    fn poll_ready(&mut self, _: &mut Context<'_>, _: Socket<'_>) -> Poll<Result<(), Failure>> {
        self.note("ready");
        Poll::Ready(if self.fails { Err(Failure::new("of the probe")) } else { Ok(()) })
    }

    fn poll_read(&mut self, _: &mut Context<'_>, _: Socket<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        buf.fill(b'r');
        self.done(&format!("read {}", buf.len()), buf.len() - 1)
    }

    fn poll_write(&mut self, _: &mut Context<'_>, _: Socket<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.done(&format!("write {}", String::from_utf8_lossy(data)), data.len() - 1)
    }

    fn poll_flush(&mut self, _: &mut Context<'_>, _: Socket<'_>) -> Poll<io::Result<()>> {
        self.done("flush", ())
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>, _: Socket<'_>) -> Poll<io::Result<()>> {
        self.done("shutdown", ())
    }

    fn start_secure(&mut self) -> bool {
        self.note("start_secure");
        !self.fails
    }

    fn tls(&self) -> Option<&Arc<TlsInfo>> {
        self.note("tls");
        Some(&self.tls)
    }

    fn closed(&mut self, _: Socket<'_>, by: CloseEvent) {
        self.note(&format!("closed {by:?}"));
    }
}

/// Makes what it was given, once for each connection.
struct Made<F>(F);

impl<F: Fn() -> Box<dyn Transport> + Send + Sync> Factory for Made<F> {
    fn create(&self, _: &Link<'_>) -> Result<Box<dyn Transport>, NotReady> {
        Ok((self.0)())
    }

    fn certificates(&self, found: &mut Vec<tls::CertificateSet>) {
        found.push(tls::CertificateSet::default());
    }
}

fn tcp_stats(inner: Arc<dyn Factory>, env: &Env) -> Arc<dyn Factory> {
    // What it wraps is given, not built from the model.
    let model = model::TcpStats { inner: TransportSocket::RawBuffer, update_period: Some(PERIOD) };
    Arc::new(tcp_stats::TcpStats::new(&model, inner, &"c".into(), env))
}

fn tap(inner: Arc<dyn Factory>, dir: &Path, env: &Env) -> Arc<dyn Factory> {
    let output = TapOutput {
        sink: TapSink::FilePerTap { path_prefix: dir.join("t").to_str().unwrap().into() },
        format: TapFormat::JsonBodyAsString,
        max_buffered_rx_bytes: 1_024,
        max_buffered_tx_bytes: 1_024,
        streaming: false,
        min_streamed_sent_bytes: 0,
    };
    let config = TapConfig { predicate: TapPredicate::Any, output, enabled: None };
    let model = model::Tap {
        source: TapSource::Static(config),
        inner: TransportSocket::RawBuffer,
        set_connection_per_event: false,
        stats_prefix: "".into(),
    };
    Arc::new(tap::Tap::new(&model, inner, env).unwrap())
}

/// Every layer alone, and all of them in each other.
fn layers(inner: &(impl Fn() -> Box<dyn Transport> + Clone + Send + Sync + 'static)) -> Vec<Layer> {
    let (env, dir) = (env(), tempfile::tempdir().unwrap());
    let probe = || -> Arc<dyn Factory> { Arc::new(Made(inner.clone())) };
    let announced = || -> Arc<dyn Factory> {
        let inner = inner.clone();
        Arc::new(Made(move || proxy_protocol::announced(b"", inner())))
    };
    let all = tap(tcp_stats(announced(), &env), dir.path(), &env);
    let named = [
        ("tcp_stats", tcp_stats(probe(), &env)),
        ("tap", tap(probe(), dir.path(), &env)),
        ("proxy_protocol", announced()),
        ("tap(tcp_stats(proxy_protocol))", all),
    ];
    let dir = Arc::new(dir);
    named.map(|(name, factory)| Layer { name, factory, _dir: dir.clone() }).into()
}

struct Layer {
    name: &'static str,
    factory: Arc<dyn Factory>,
    _dir: Arc<TempDir>,
}

#[tokio::test]
async fn each_call_reaches_the_innermost_exactly_once() {
    let calls: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = calls.clone();
    let probe = move || -> Box<dyn Transport> {
        Box::new(Probe { calls: noted.clone(), fails: false, tls: Arc::default() })
    };
    let (ours, _peer) = sockets().await;
    let socket = Socket::Tcp(&ours);
    for layer in layers(&probe) {
        let mut transport = make(&*layer.factory, &ours);
        let mut buf = [0; 8];
        poll_fn(|cx| transport.poll_ready(cx, socket)).await.unwrap();
        assert_eq!(poll_fn(|cx| transport.poll_read(cx, socket, &mut buf)).await.unwrap(), 7);
        assert_eq!(&buf[..7], b"rrrrrrr");
        assert_eq!(poll_fn(|cx| transport.poll_write(cx, socket, b"hello")).await.unwrap(), 4);
        poll_fn(|cx| transport.poll_flush(cx, socket)).await.unwrap();
        assert!(transport.start_secure());
        poll_fn(|cx| transport.poll_ready(cx, socket)).await.unwrap();
        assert!(transport.tls().is_some());
        poll_fn(|cx| transport.poll_shutdown(cx, socket)).await.unwrap();
        transport.closed(socket, CloseEvent::Remote);
        drop(transport);
        let expected = [
            "ready",
            "read 8",
            "write hello",
            "flush",
            "start_secure",
            "ready",
            "tls",
            "shutdown",
            "closed Remote",
        ];
        assert_eq!(std::mem::take(&mut *calls.lock().unwrap()), expected, "{}", layer.name);
        let mut found = Vec::new();
        layer.factory.certificates(&mut found);
        assert!(found.len() == 1 || layer.name.starts_with("proxy_protocol"), "{}", layer.name);
    }
}

#[tokio::test]
async fn an_error_of_the_innermost_is_everyones() {
    let calls: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = calls.clone();
    let probe = move || -> Box<dyn Transport> {
        Box::new(Probe { calls: noted.clone(), fails: true, tls: Arc::default() })
    };
    let (ours, _peer) = sockets().await;
    let socket = Socket::Tcp(&ours);
    for layer in layers(&probe) {
        let mut transport = make(&*layer.factory, &ours);
        let failure = poll_fn(|cx| transport.poll_ready(cx, socket)).await.unwrap_err();
        assert_eq!(failure.reason, "of the probe", "{}", layer.name);
        let mut buf = [0; 8];
        let errors = [
            poll_fn(|cx| transport.poll_read(cx, socket, &mut buf)).await.map(drop),
            poll_fn(|cx| transport.poll_write(cx, socket, b"hello")).await.map(drop),
            poll_fn(|cx| transport.poll_flush(cx, socket)).await,
            poll_fn(|cx| transport.poll_shutdown(cx, socket)).await,
        ];
        for error in errors {
            assert_eq!(error.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "{}", layer.name);
        }
        assert!(!transport.start_secure(), "{}", layer.name);
        transport.closed(socket, CloseEvent::Local);
        let seen = std::mem::take(&mut *calls.lock().unwrap());
        assert_eq!(seen.last().unwrap(), "closed Local", "{}", layer.name);
        assert_eq!(seen.iter().filter(|call| call.starts_with("closed")).count(), 1, "{}", layer.name);
    }
}

fn tls_rig() -> Rig {
    let ca = Ca::new("ca");
    let leaf = ca.issue("a", &["a.test"]);
    Rig::new(downstream(common(&[&leaf], None)), upstream(common(&[], Some(ca.trusted()))))
}

/// Both ways, each with its end.
async fn exchange(client: &mut End, server: &mut End) {
    client.send(b"question").await;
    client.finish().await;
    assert_eq!(server.rest().await.unwrap(), b"question");
    server.send(b"answer").await;
    server.finish().await;
    assert_eq!(client.rest().await.unwrap(), b"answer");
}

fn close(end: &mut End, by: CloseEvent) {
    end.transport.closed(Socket::Tcp(&end.socket), by);
}

#[tokio::test]
async fn layers_around_tls() {
    let (rig, dir) = (tls_rig(), tempfile::tempdir().unwrap());
    let measured = tcp_stats(rig.client.clone(), &rig.env);
    let tapped = tap(tcp_stats(rig.client.clone(), &rig.env), dir.path(), &rig.env);
    for (n, factory) in (1..).zip([measured, tapped]) {
        let (server, client) = sockets().await;
        let mut server = End { transport: make(&*rig.server, &server), socket: server };
        let mut client = End { transport: make(&*factory, &client), socket: client };
        let (one, other) = tokio::join!(server.ready(), client.ready());
        one.unwrap();
        other.unwrap();
        assert_eq!(client.info().version, "TLSv1.3");
        exchange(&mut client, &mut server).await;
        close(&mut client, CloseEvent::Local);
        close(&mut server, CloseEvent::Remote);
        // A handshake and two closes are many times the question.
        assert!(rig.stat("c.tcp_stats.cx_tx_bytes_sent") > 200 * n);
        assert_eq!(rig.stat("c.ssl.handshake"), n);
    }
    assert!(rig.env.taps.flush(Duration::from_secs(10)));
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains("question") && text.contains("answer"), "{text}");
}

#[tokio::test]
async fn a_header_goes_before_tls() {
    let rig = tls_rig();
    let (server, client) = sockets().await;
    let inner = make(&*rig.client, &client);
    let mut client = End { transport: proxy_protocol::announced(HEADER, inner), socket: client };
    let mut server = End { transport: make(&*rig.server, &server), socket: server };
    let accept = async {
        let mut header = vec![0; HEADER.len()];
        server.socket.read_exact(&mut header).await.unwrap();
        assert_eq!(header, HEADER);
        server.ready().await.unwrap();
    };
    tokio::join!(accept, async { client.ready().await.unwrap() });
    exchange(&mut client, &mut server).await;
    assert!(client.transport.tls().is_some());
}

#[tokio::test]
async fn a_failed_handshake_is_told_through_all_layers() {
    let ca = Ca::new("ca");
    let leaf = ca.issue("a", &["a.test"]);
    let other = Ca::new("other");
    let rig = Rig::new(downstream(common(&[&leaf], None)), upstream(common(&[], Some(other.trusted()))));
    let dir = tempfile::tempdir().unwrap();
    let nested = tap(tcp_stats(rig.client.clone(), &rig.env), dir.path(), &rig.env);
    let (server, client) = sockets().await;
    let inner = make(&*nested, &client);
    let mut client = End { transport: proxy_protocol::announced(b"", inner), socket: client };
    let mut server = End { transport: make(&*rig.server, &server), socket: server };
    let (_, result) = tokio::join!(server.ready(), client.ready());
    let failure = result.unwrap_err();
    assert!(failure.reason.contains("CERTIFICATE_VERIFY_FAILED") && !failure.remote, "{failure:?}");
    let mut wire = Wire::new(Socket::Tcp(&client.socket), Some(&mut *client.transport));
    assert!(wire.write_all(b"secret").await.is_err(), "nothing goes to who was not verified");
    close(&mut client, CloseEvent::Local);
    assert!(rig.stat("c.tcp_stats.cx_tx_bytes_sent") > 0);
}

//! Traces of connections over real sockets, read back from their files or from who has attached.

use std::future::poll_fn;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::task::Poll;

use proxy_config::model::transport::{TapConfig, TapFormat, TapOutput, TapPredicate, TapSink, TapSource};
use proxy_config::model::{FractionalPercent, TransportSocket};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::admin::{Attached, Refusal};
use super::*;
use crate::clock;
use crate::net::facts::Facts;
use crate::net::socket::Socket;
use crate::secret::Secrets;
use crate::task::Tasks;
use crate::telemetry::stats::Stats;
use crate::transport::CloseEvent;
use crate::transport::raw::RawFactory;

fn output(sink: TapSink) -> TapOutput {
    TapOutput {
        sink,
        format: TapFormat::JsonBodyAsString,
        max_buffered_rx_bytes: 1_024,
        max_buffered_tx_bytes: 1_024,
        streaming: false,
        min_streamed_sent_bytes: 0,
    }
}

fn config_to(sink: TapSink) -> TapConfig {
    TapConfig { predicate: TapPredicate::Any, output: output(sink), enabled: None }
}

/// A proxy's taps, with a directory for their files.
struct Rig {
    env: Env,
    dir: TempDir,
    /// The registry forgets what nobody owns.
    stats: Arc<TapStats>,
}

impl Rig {
    fn new() -> Self {
        let stats = Arc::new(Stats::new());
        let tasks = Tasks::new(&stats);
        let owned = stats.block("transport.tap");
        let env = Env::new(stats, tasks, Arc::new(Secrets::default()));
        Self { env, dir: tempfile::tempdir().unwrap(), stats: owned }
    }

    fn prefix(&self) -> Arc<str> {
        self.dir.path().join("t").to_str().unwrap().into()
    }

    fn to_file(&self) -> TapConfig {
        config_to(TapSink::FilePerTap { path_prefix: self.prefix() })
    }

    fn tap(&self, source: TapSource) -> Tap {
        let model = model::Tap {
            source,
            inner: TransportSocket::RawBuffer,
            set_connection_per_event: false,
            stats_prefix: "".into(),
        };
        Tap::new(&model, Arc::new(RawFactory), &self.env).unwrap()
    }

    fn statically(&self, config: TapConfig) -> Tap {
        self.tap(TapSource::Static(config))
    }

    fn flush(&self) {
        assert!(self.env.taps.flush(Duration::from_secs(5)));
    }

    /// The traces in the file of a connection.
    fn traces(&self, id: u64) -> Vec<Value> {
        self.flush();
        objects(&std::fs::read(self.file(id)).unwrap())
    }

    fn file(&self, id: u64) -> PathBuf {
        self.dir.path().join(format!("t_{id}.json"))
    }

    fn stat(&self, name: &str) -> u64 {
        assert!(Arc::strong_count(&self.stats) > 0);
        self.env.stats.value(&format!("transport.tap.{name}")).unwrap()
    }
}

fn objects(bytes: &[u8]) -> Vec<Value> {
    serde_json::Deserializer::from_slice(bytes).into_iter().map(Result::unwrap).collect()
}

/// A downstream connection with its client.
struct Wired {
    client: TcpStream,
    server: TcpStream,
    transport: Box<dyn Transport>,
}

impl Wired {
    async fn new(tap: &Tap, id: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let facts = Facts::new("192.0.2.1:1000".parse().unwrap(), "192.0.2.2:80".parse().unwrap());
        let transport = tap.create(&Link::Downstream { facts: &facts, connection_id: id }).unwrap();
        Self { client, server, transport }
    }

    /// The client says something, and it is read.
    async fn hears(&mut self, text: &str) {
        self.client.write_all(text.as_bytes()).await.unwrap();
        let mut buf = vec![0; text.len()];
        let mut n = 0;
        while n < buf.len() {
            let (socket, rest) = (Socket::Tcp(&self.server), &mut buf[n..]);
            n += poll_fn(|cx| self.transport.poll_read(cx, socket, rest)).await.unwrap();
        }
        assert_eq!(buf, text.as_bytes());
    }

    /// Something is written, and the client has it.
    async fn says(&mut self, text: &str) {
        let socket = Socket::Tcp(&self.server);
        let n = poll_fn(|cx| self.transport.poll_write(cx, socket, text.as_bytes())).await.unwrap();
        assert_eq!(n, text.len());
        let mut buf = vec![0; n];
        self.client.read_exact(&mut buf).await.unwrap();
    }

    /// A turn in which there is nothing to read.
    async fn idles(&mut self) {
        let socket = Socket::Tcp(&self.server);
        poll_fn(|cx| {
            assert!(self.transport.poll_read(cx, socket, &mut [0]).is_pending());
            Poll::Ready(())
        })
        .await;
    }

    async fn ends(&mut self) {
        let socket = Socket::Tcp(&self.server);
        poll_fn(|cx| self.transport.poll_shutdown(cx, socket)).await.unwrap();
    }

    fn close(&mut self, by: CloseEvent) {
        self.transport.closed(Socket::Tcp(&self.server), by);
    }
}

/// Events without what differs each time.
fn events(list: &Value) -> Vec<Value> {
    let mut list = list.as_array().unwrap().clone();
    for event in &mut list {
        assert!(event.as_object_mut().unwrap().remove("timestamp").is_some());
    }
    list
}

fn read(text: &str, truncated: bool, seq: u64) -> Value {
    json!({"read": {"data": {"as_string": text, "truncated": truncated}}, "seq_num": seq.to_string()})
}

fn write(text: &str, truncated: bool, end_stream: bool, seq: u64) -> Value {
    json!({
        "write": {"data": {"as_string": text, "truncated": truncated}, "end_stream": end_stream},
        "seq_num": seq.to_string(),
    })
}

#[tokio::test]
async fn a_buffered_trace_is_written_at_the_end_and_cut_to_its_limits() {
    let rig = Rig::new();
    let mut config = rig.to_file();
    config.output.max_buffered_rx_bytes = 7;
    config.output.max_buffered_tx_bytes = 12;
    let tap = rig.statically(config);
    let mut link = Wired::new(&tap, 5).await;
    for text in ["hello", "world"] {
        link.hears(text).await;
        link.says(&format!("echo:{text}")).await;
    }
    // Nothing of a direction that is full, not even that it ends.
    link.hears("more").await;
    link.says("more").await;
    link.ends().await;
    rig.flush();
    assert!(!rig.file(5).exists());
    link.close(CloseEvent::Remote);
    let [trace] = <[Value; 1]>::try_from(rig.traces(5)).unwrap();
    let trace = &trace["socket_buffered_trace"];
    assert_eq!(trace["trace_id"], "5");
    assert_eq!(trace["connection"]["local_address"]["socket_address"]["address"], "192.0.2.2");
    assert_eq!(trace["connection"]["remote_address"]["socket_address"]["port_value"], 1_000);
    let expected = [
        read("hello", false, 0),
        write("echo:hello", false, false, 0),
        read("wo", true, 0),
        write("ec", true, false, 0),
    ];
    assert_eq!(events(&trace["events"]), expected);
    assert_eq!((&trace["read_truncated"], &trace["write_truncated"]), (&json!(true), &json!(true)));
    assert_eq!((rig.stat("buffered_submit"), rig.stat("streamed_submit")), (1, 0));
}

#[tokio::test]
async fn a_limit_that_is_met_exactly_truncates_what_comes_after() {
    let rig = Rig::new();
    let mut config = rig.to_file();
    config.output.max_buffered_rx_bytes = 5;
    config.output.max_buffered_tx_bytes = 0;
    let tap = rig.statically(config);
    let mut link = Wired::new(&tap, 1).await;
    link.hears("hello").await;
    link.hears("a").await;
    link.hears("b").await;
    link.says("c").await;
    link.close(CloseEvent::Local);
    let trace = &rig.traces(1)[0]["socket_buffered_trace"];
    assert_eq!(
        events(&trace["events"]),
        [read("hello", false, 0), read("", true, 0), write("", true, false, 0)]
    );
}

#[tokio::test]
async fn a_streamed_trace_is_written_as_it_comes() {
    let rig = Rig::new();
    let mut config = rig.to_file();
    config.output.streaming = true;
    config.output.max_buffered_rx_bytes = 3;
    config.output.format = TapFormat::JsonBodyAsString;
    let tap = rig.statically(config);
    let mut link = Wired::new(&tap, 2).await;
    assert_eq!(rig.traces(2).len(), 1);
    link.hears("hello").await;
    assert_eq!(rig.traces(2).len(), 2);
    link.says("answer").await;
    link.idles().await;
    assert_eq!(rig.traces(2).len(), 3);
    link.says("bye").await;
    link.ends().await;
    link.close(CloseEvent::Local);
    let traces: Vec<Value> = rig
        .traces(2)
        .into_iter()
        .map(|trace| {
            let segment = &trace["socket_streamed_trace_segment"];
            assert_eq!(segment["trace_id"], "2");
            segment["event"].clone()
        })
        .collect();
    assert_eq!(traces[0], json!({"seq_num": "0"}));
    let expected = [
        read("hel", true, 1),
        write("answer", false, false, 6),
        write("bye", false, true, 12),
        json!({"closed": {}, "seq_num": "16"}),
    ];
    assert_eq!(events(&json!(traces[1..])), expected);
    assert_eq!(rig.stat("streamed_submit"), 5);
}

#[tokio::test]
async fn each_event_can_name_its_connection() {
    let rig = Rig::new();
    let mut config = rig.to_file();
    config.output.streaming = true;
    config.output.format = TapFormat::JsonBodyAsBytes;
    let tap = Tap { per_event: true, ..rig.statically(config) };
    let mut link = Wired::new(&tap, 3).await;
    link.hears("a").await;
    link.close(CloseEvent::Remote);
    let [first, second, third] = <[Value; 3]>::try_from(rig.traces(3)).unwrap();
    let connection = &first["socket_streamed_trace_segment"]["connection"];
    assert_eq!(connection["remote_address"]["socket_address"]["address"], "192.0.2.1");
    for trace in [second, third] {
        assert_eq!(&trace["socket_streamed_trace_segment"]["event"]["connection"], connection);
    }
}

#[tokio::test]
async fn gathered_events_wait_for_enough_bytes_or_the_end() {
    let rig = Rig::new();
    let mut config = rig.to_file();
    config.output.streaming = true;
    config.output.min_streamed_sent_bytes = 9;
    config.output.max_buffered_rx_bytes = 2;
    let tap = rig.statically(config);
    let mut link = Wired::new(&tap, 4).await;
    link.hears("hello").await;
    assert_eq!(rig.traces(4).len(), 1);
    link.says("abcd").await;
    link.idles().await;
    assert_eq!(rig.traces(4).len(), 2);
    link.hears("x").await;
    link.close(CloseEvent::Remote);
    let traces = rig.traces(4);
    let of = |at: usize| events(&traces[at]["socket_streamed_trace_segment"]["events"]["events"]);
    assert_eq!(of(1), [read("hello", false, 1), write("abcd", false, false, 6)]);
    assert_eq!(of(2), [read("x", false, 10), json!({"closed": {}, "seq_num": "12"})]);
    assert_eq!((traces.len(), rig.stat("streamed_submit")), (3, 3));
}

#[tokio::test]
async fn the_end_of_the_stream_belongs_to_the_write_that_it_came_with() {
    let rig = Rig::new();
    let tap = rig.statically(rig.to_file());
    // Together.
    let mut link = Wired::new(&tap, 1).await;
    link.says("a").await;
    link.says("b").await;
    link.ends().await;
    link.close(CloseEvent::Local);
    // Later: Envoy makes no event of an end without bytes.
    let mut link = Wired::new(&tap, 2).await;
    link.says("a").await;
    link.idles().await;
    link.ends().await;
    link.close(CloseEvent::Remote);
    let of = |id| events(&rig.traces(id)[0]["socket_buffered_trace"]["events"]);
    assert_eq!(of(1), [write("a", false, false, 0), write("b", false, true, 0)]);
    assert_eq!(of(2), [write("a", false, false, 0)]);
}

#[tokio::test]
async fn a_connection_that_nobody_closes_is_traced_too_and_once() {
    let rig = Rig::new();
    let tap = rig.statically(rig.to_file());
    let mut link = Wired::new(&tap, 1).await;
    link.says("a").await;
    drop(link);
    let trace = &rig.traces(1)[0]["socket_buffered_trace"];
    assert_eq!(events(&trace["events"]), [write("a", false, false, 0)]);
    // Without a byte.
    let mut link = Wired::new(&tap, 2).await;
    link.close(CloseEvent::Remote);
    drop(link);
    assert_eq!(rig.traces(2)[0]["socket_buffered_trace"]["events"], json!([]));
    assert_eq!(rig.stat("buffered_submit"), 2);
}

#[tokio::test]
async fn what_is_not_tapped_gets_its_inner_transport_alone() {
    let rig = Rig::new();
    let mut unmatched = rig.to_file();
    unmatched.predicate = TapPredicate::Http;
    let mut sampled_out = rig.to_file();
    sampled_out.enabled = Some(FractionalPercent { numerator: 0, denominator: 100 });
    let nobody_attached = TapSource::Admin { config_id: "a".into() };
    for source in [TapSource::Static(unmatched), TapSource::Static(sampled_out), nobody_attached] {
        let mut link = Wired::new(&rig.tap(source), 1).await;
        assert!(link.transport.is_raw());
        link.hears("a").await;
        link.close(CloseEvent::Local);
    }
    rig.flush();
    assert!(!rig.file(1).exists());
    let tap = rig.statically(rig.to_file());
    assert!(!Wired::new(&tap, 2).await.transport.is_raw());
    assert_eq!((rig.stat("cx_sampled_out"), rig.stat("buffered_submit")), (1, 1));
}

#[tokio::test]
async fn a_sample_rate_is_told_with_each_trace() {
    let rig = Rig::new();
    let mut config = rig.to_file();
    config.enabled = Some(FractionalPercent { numerator: 10_000, denominator: 10_000 });
    let tap = rig.statically(config);
    drop(Wired::new(&tap, 1).await);
    let rate = json!({"numerator": 10_000, "denominator": "TEN_THOUSAND"});
    assert_eq!(rig.traces(1)[0]["configured_sample_rate"], rate);
}

#[tokio::test]
async fn an_upstream_connection_has_an_id_of_its_own_and_its_address_later() {
    let yaml = "static_resources: {clusters: [{name: a, load_assignment: {cluster_name: a, endpoints: [{lb_endpoints: \
                [{endpoint: {address: {socket_address: {address: 192.0.2.9, port_value: 81}}}}]}]}}]}";
    let loaded = proxy_config::load::bootstrap(yaml, None, proxy_config::load::Options::default()).unwrap();
    let rig = Rig::new();
    let (stats, tasks) = (rig.env.stats.clone(), rig.env.tasks.clone());
    let cluster_env =
        crate::cluster::Env::new(stats, tasks, Arc::new(crate::net::HostDial), Arc::new(crate::xds::Nowhere));
    let model = loaded.bootstrap.clusters[0].model.clone();
    let cluster = crate::cluster::Cluster::new(model, &cluster_env).unwrap();
    let host = cluster.hosts().first().unwrap().clone();
    let mut config = rig.to_file();
    config.output.streaming = true;
    config.output.format = TapFormat::JsonBodyAsBytes;
    let tap = Tap { per_event: true, ..rig.statically(config) };
    let local = Some("192.0.2.1:5000".parse().unwrap());
    let (alpn, names) = (&[][..], None);
    let link = Link::Upstream { host: &host, local, client: None, connection_id: 77, alpn, names };
    rig.env.connections.store(40, Ordering::Relaxed);
    drop(tap.create(&link).unwrap());
    drop(tap.create(&link).unwrap());
    assert_eq!(rig.traces(42).len(), 2);
    let [first, closed] = <[Value; 2]>::try_from(rig.traces(41)).unwrap();
    let first = &first["socket_streamed_trace_segment"]["connection"];
    assert_eq!(first["remote_address"]["socket_address"]["address"], "192.0.2.9");
    assert_eq!(first.get("local_address"), None);
    let closed = &closed["socket_streamed_trace_segment"]["event"]["connection"];
    assert_eq!(closed["local_address"]["socket_address"]["port_value"], 5_000);
}

#[tokio::test]
async fn a_file_that_cannot_be_written_costs_its_trace_alone() {
    let rig = Rig::new();
    let mut config = rig.to_file();
    config.output.streaming = true;
    let tap = rig.statically(config);
    symlink("/dev/full", rig.file(1)).unwrap();
    std::fs::create_dir(rig.file(2)).unwrap();
    for id in 1..=3 {
        let mut link = Wired::new(&tap, id).await;
        link.hears("a").await;
        link.says("b").await;
        link.close(CloseEvent::Local);
    }
    assert_eq!(rig.traces(3).len(), 4);
    assert_eq!(rig.stat("trace_write_failed"), 2);

    let missing: Arc<str> = rig.dir.path().join("none/t").to_str().unwrap().into();
    let tap = rig.statically(config_to(TapSink::FilePerTap { path_prefix: missing }));
    let mut link = Wired::new(&tap, 1).await;
    link.hears("a").await;
    link.close(CloseEvent::Local);
    rig.flush();
    assert_eq!(rig.stat("trace_write_failed"), 3);
}

#[tokio::test]
async fn only_its_owner_may_read_a_trace() {
    use std::os::unix::fs::PermissionsExt as _;
    let rig = Rig::new();
    drop(Wired::new(&rig.statically(rig.to_file()), 1).await);
    rig.flush();
    assert_eq!(std::fs::metadata(rig.file(1)).unwrap().permissions().mode() & 0o777, 0o600);
}

fn make_fifo(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
}

#[tokio::test]
async fn a_disk_that_hangs_delays_nobody() {
    let rig = Rig::new();
    let mut config = rig.to_file();
    config.output.max_buffered_tx_bytes = u32::MAX;
    config.output.streaming = true;
    let tap = rig.statically(config);
    // Opening it waits for a reader.
    make_fifo(&rig.file(1));
    let mut link = Wired::new(&tap, 1).await;
    assert!(!rig.env.taps.flush(Duration::from_millis(50)));
    let (text, began) = ("x".repeat(16 * 1024), clock::now());
    for _ in 0..1_200 {
        link.says(&text).await;
    }
    assert!(began.elapsed() < Duration::from_secs(20));
    // More than may wait: the rest of this trace is lost, and what fits of others is not.
    assert_eq!(rig.stat("trace_dropped"), 1);
    link.close(CloseEvent::Local);
    let path = rig.file(1);
    let reader = std::thread::spawn(move || std::fs::read(path).unwrap());
    assert!(rig.env.taps.flush(Duration::from_secs(10)));
    let traces = objects(&reader.join().unwrap());
    assert!((900..1_200).contains(&traces.len()), "{}", traces.len());
    drop(Wired::new(&tap, 2).await);
    assert_eq!(rig.traces(2).len(), 2);
    assert_eq!(rig.stat("trace_dropped"), 1);
}

async fn next(attached: &mut Attached) -> Option<Vec<Value>> {
    poll_fn(|cx| attached.poll_next(cx)).await.map(|piece| objects(&piece))
}

async fn is_silent(attached: &mut Attached) -> bool {
    poll_fn(|cx| Poll::Ready(attached.poll_next(cx).is_pending())).await
}

#[tokio::test]
async fn who_attaches_sees_the_connections_that_begin_after_until_it_leaves() {
    let rig = Rig::new();
    let taps = &rig.env.taps;
    let mut config = config_to(TapSink::StreamingAdmin);
    config.output.streaming = true;
    assert_eq!(taps.attach("a", &config).err(), Some(Refusal::UnknownId("a".into())));
    let tap = rig.tap(TapSource::Admin { config_id: "a".into() });
    let mut before = Wired::new(&tap, 1).await;
    let mut attached = taps.attach("a", &config).unwrap();
    assert!(taps.is_attached());
    assert_eq!(taps.attach("a", &config).err(), Some(Refusal::Attached));
    // One that is built later is asked for as well.
    let other = rig.tap(TapSource::Admin { config_id: "a".into() });
    let mut link = Wired::new(&other, 2).await;
    before.hears("unseen").await;
    link.hears("seen").await;
    assert_eq!(next(&mut attached).await.unwrap()[0]["socket_streamed_trace_segment"]["trace_id"], "2");
    let event = &next(&mut attached).await.unwrap()[0]["socket_streamed_trace_segment"]["event"];
    assert_eq!(event["read"]["data"]["as_string"], "seen");
    assert!(is_silent(&mut attached).await);
    drop(attached);
    assert!(!taps.is_attached());
    link.hears("unseen").await;
    assert!(Wired::new(&tap, 3).await.transport.is_raw());
    // Nobody to read it is no loss.
    assert_eq!(rig.stat("trace_dropped"), 0);
    drop((tap, other));
    assert_eq!(taps.attach("a", &config).err(), Some(Refusal::UnknownId("a".into())));
}

#[tokio::test]
async fn buffered_traces_come_together_when_there_are_enough() {
    let rig = Rig::new();
    let tap = rig.tap(TapSource::Admin { config_id: "a".into() });
    let config = config_to(TapSink::BufferedAdmin { max_traces: 2, timeout: None });
    let mut attached = rig.env.taps.attach("a", &config).unwrap();
    drop(Wired::new(&tap, 1).await);
    assert!(is_silent(&mut attached).await);
    drop(Wired::new(&tap, 2).await);
    drop(Wired::new(&tap, 3).await);
    for id in ["1", "2"] {
        assert_eq!(next(&mut attached).await.unwrap()[0]["socket_buffered_trace"]["trace_id"], id);
    }
    assert_eq!(next(&mut attached).await, None);
}

#[tokio::test(start_paused = true)]
async fn buffered_traces_come_when_time_is_over() {
    let rig = Rig::new();
    let tap = rig.tap(TapSource::Admin { config_id: "a".into() });
    let timeout = Some(Duration::from_secs(9));
    let config = config_to(TapSink::BufferedAdmin { max_traces: 2, timeout });
    let mut attached = rig.env.taps.attach("a", &config).unwrap();
    drop(Wired::new(&tap, 1).await);
    let began = clock::now();
    assert_eq!(next(&mut attached).await.unwrap()[0]["socket_buffered_trace"]["trace_id"], "1");
    assert_eq!(began.elapsed().as_secs(), 9);
    assert_eq!(next(&mut attached).await, None);
}

#[tokio::test]
async fn a_slow_reader_loses_traces_and_delays_nobody() {
    let rig = Rig::new();
    let tap = rig.tap(TapSource::Admin { config_id: "a".into() });
    let mut attached = rig.env.taps.attach("a", &config_to(TapSink::StreamingAdmin)).unwrap();
    for id in 0..5_000 {
        drop(tap.create(&Link::Downstream { facts: &facts(), connection_id: id }).unwrap());
    }
    assert_eq!(rig.stat("trace_dropped"), 5_000 - 4_096);
    // What was there is there.
    for id in 0..4_096 {
        let trace = next(&mut attached).await.unwrap();
        assert_eq!(trace[0]["socket_buffered_trace"]["trace_id"], id.to_string());
    }
    drop(tap.create(&Link::Downstream { facts: &facts(), connection_id: 9_999 }).unwrap());
    assert_eq!(next(&mut attached).await.unwrap()[0]["socket_buffered_trace"]["trace_id"], "9999");
}

fn facts() -> Facts {
    Facts::new("192.0.2.1:1000".parse().unwrap(), "192.0.2.2:80".parse().unwrap())
}

#[tokio::test]
async fn formats_that_cannot_be_told_apart_are_refused() {
    let rig = Rig::new();
    let _tap = rig.tap(TapSource::Admin { config_id: "a".into() });
    for (format, taken) in [
        (TapFormat::ProtoBinary, false),
        (TapFormat::ProtoText, false),
        (TapFormat::ProtoBinaryLengthDelimited, true),
        (TapFormat::JsonBodyAsBytes, true),
    ] {
        for sink in [TapSink::StreamingAdmin, TapSink::BufferedAdmin { max_traces: 1, timeout: None }] {
            let mut config = config_to(sink);
            config.output.format = format;
            assert_eq!(rig.env.taps.attach("a", &config).is_ok(), taken, "{format:?}");
        }
    }
    // A static tap has nobody to answer.
    let source = TapSource::Static(config_to(TapSink::StreamingAdmin));
    let model = model::Tap {
        source,
        inner: TransportSocket::RawBuffer,
        set_connection_per_event: false,
        stats_prefix: "".into(),
    };
    assert!(Tap::new(&model, Arc::new(RawFactory), &rig.env).is_err());
}

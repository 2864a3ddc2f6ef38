//! Whole connections through a real listener, on loopback and without privilege.

use sha2::{Digest, Sha256};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use std::net::IpAddr;

use super::copy::CHUNK;
use super::rig::{LONG, Rig, Setup, flood, read_all};
use super::*;
use crate::clock;
use crate::telemetry::Side;

const RX: &str = "tcp.PassthroughCluster.downstream_cx_rx_bytes_total";
const TX: &str = "cluster.PassthroughCluster.upstream_cx_tx_bytes_total";

fn reset(stream: TcpStream) {
    sock::set_linger_reset(&stream).unwrap();
}

/// What reading says once the reset has arrived; whatever data comes first is skipped.
async fn read_error(stream: &mut TcpStream) -> io::ErrorKind {
    read_all(stream).await.expect_err("a reset, not an end").kind()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_close_by_the_client() {
    for bind in ["127.0.0.1:0", "[::1]:0"] {
        let (rig, mut client, mut server) = Rig::through(Setup { bind, ..Setup::default() }).await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut server).await.unwrap(), b"question");
        // The way back is still open, well after the first FIN.
        sleep(Duration::from_millis(50)).await;
        server.write_all(b"the answer").await.unwrap();
        drop(server);
        assert_eq!(read_all(&mut client).await.unwrap(), b"the answer");
        let record = rig.record().await;
        assert_eq!(record.outcome.details, "downstream_closed");
        assert_eq!(record.outcome.flags.to_string(), "-");
        assert_eq!((record.bytes.downstream_rx, record.bytes.upstream_tx), (8, 8));
        assert_eq!((record.bytes.upstream_rx, record.bytes.downstream_tx), (10, 10));
        assert_eq!(record.upstream.host, record.original_dst);
        assert!(record.upstream.local.is_some());
        assert_eq!(rig.stat("cluster.PassthroughCluster.upstream_cx_active"), 0);
        assert_eq!(rig.stat(RX), 8);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_close_by_the_server() {
    let (rig, mut client, mut server) = Rig::through(Setup::default()).await;
    server.write_all(b"banner").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await.unwrap(), b"banner");
    sleep(Duration::from_millis(50)).await;
    client.write_all(b"late").await.unwrap();
    drop(client);
    assert_eq!(read_all(&mut server).await.unwrap(), b"late");
    assert_eq!(rig.record().await.outcome.details, "upstream_closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_by_the_server_reaches_the_client_with_what_was_said_before() {
    let (rig, mut client, mut server) = Rig::through(Setup::default()).await;
    client.write_all(b"hello").await.unwrap();
    server.read_exact(&mut [0; 5]).await.unwrap();
    server.write_all(b"so long").await.unwrap();
    client.read_exact(&mut [0; 7]).await.unwrap();
    reset(server);
    assert_eq!(read_error(&mut client).await, io::ErrorKind::ConnectionReset);
    let record = rig.record().await;
    assert_eq!((record.outcome.details.as_ref(), record.outcome.side), ("upstream_reset", Side::Upstream));
    assert_eq!((record.bytes.downstream_rx, record.bytes.downstream_tx), (5, 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_by_the_client_reaches_the_server() {
    let (rig, mut client, mut server) = Rig::through(Setup::default()).await;
    client.write_all(b"hello").await.unwrap();
    server.read_exact(&mut [0; 5]).await.unwrap();
    reset(client);
    assert_eq!(read_error(&mut server).await, io::ErrorKind::ConnectionReset);
    assert_eq!(rig.record().await.outcome.details, "downstream_reset");
}

/// Nothing is read from the client while the server does not read: its reset must be seen all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_behind_back_pressure_is_seen_at_once() {
    let (rig, client, mut server) = Rig::through(Setup::default()).await;
    let sent = flood(&client).await;
    reset(client);
    let record = timeout(Duration::from_secs(5), rig.record()).await.unwrap();
    assert_eq!(record.outcome.details, "downstream_reset");
    let bytes = record.bytes;
    assert!(bytes.downstream_rx <= sent && bytes.upstream_tx < bytes.downstream_rx, "{bytes:?}");
    assert_eq!((rig.stat(RX), rig.stat(TX)), (bytes.downstream_rx, bytes.upstream_tx));
    assert_eq!(read_error(&mut server).await, io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_after_fin_is_seen_at_once() {
    let (rig, mut client, mut server) = Rig::through(Setup::default()).await;
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await.unwrap(), b"");
    reset(client);
    let record = timeout(Duration::from_secs(5), rig.record()).await.unwrap();
    assert_eq!(record.outcome.details, "downstream_reset");
    // A write to the dead connection fails, where a clean end would still have taken it.
    let start = clock::now();
    while server.write_all(b"x").await.is_ok() {
        assert!(start.elapsed() < LONG);
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_stalls_the_writer_and_costs_a_bounded_buffer() {
    for (splice_directions, bound) in [(0, CHUNK), (8, splice::MOST)] {
        let options = Options { splice_directions, ..Options::default() };
        let (rig, mut client, mut server) = Rig::through(Setup { options, ..Setup::default() }).await;
        let sent = flood(&client).await;
        let held = rig.stat(RX) - rig.stat(TX);
        assert!(0 < held && held <= bound as u64, "{held}");
        assert_eq!(rig.stat("shunt.splice_active"), u64::from(splice_directions > 0));
        assert_eq!(flood(&client).await, 0, "the writer is stalled");
        // The reader wakes up, and everything arrives.
        client.shutdown().await.unwrap();
        let mut got = 0;
        let mut data = vec![0; 300_000];
        loop {
            let n = timeout(LONG, server.read(&mut data)).await.unwrap().unwrap();
            got += n as u64;
            // Read in this order the difference can only be too small.
            let (rx, tx) = (rig.stat(RX), rig.stat(TX));
            assert!(rx.saturating_sub(tx) <= bound as u64, "{rx} {tx}");
            if n == 0 {
                break;
            }
        }
        assert_eq!(got, sent);
        drop((client, server));
        assert_eq!(rig.record().await.bytes.upstream_tx, sent);
        assert_eq!(rig.stat("shunt.splice_active"), 0);
    }
}

/// Bulk both ways at once, spliced, half spliced (one pipe for two directions) and copied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_keeps_its_bytes_by_every_way() {
    for splice_directions in [0, 1, 8] {
        let options = Options { splice_directions, ..Options::default() };
        let (rig, mut client, mut server) = Rig::through(Setup { options, ..Setup::default() }).await;
        let (mut from_server, mut to_server) = client.split();
        let (mut from_client, mut to_client) = server.split();
        let (up, down) = (payload(8_000_001, 1), payload(5_000_003, 2));
        let (mut up_got, mut down_got) = (Vec::new(), Vec::new());
        let (up_sent, down_sent, ..) = tokio::join!(
            async { (to_server.write_all(&up).await, to_server.shutdown().await) },
            async { (to_client.write_all(&down).await, to_client.shutdown().await) },
            async { from_client.read_to_end(&mut up_got).await.unwrap() },
            async { from_server.read_to_end(&mut down_got).await.unwrap() },
        );
        assert!(up_sent.0.is_ok() && down_sent.0.is_ok());
        assert!(up_got == up, "not the same bytes");
        assert!(down_got == down, "not the same bytes");
        drop((client, server));
        let bytes = rig.record().await.bytes;
        assert_eq!((bytes.downstream_rx, bytes.upstream_tx), (up.len() as u64, up.len() as u64));
        assert_eq!((bytes.upstream_rx, bytes.downstream_tx), (down.len() as u64, down.len() as u64));
        assert_eq!(rig.stat("shunt.splice_total") > 0, splice_directions > 0);
        assert_eq!(rig.stat("shunt.splice_active"), 0);
    }
}

/// A direction that was bulk and speaks in small messages now gives its pipe back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipe_is_given_back_when_the_direction_turns_small() {
    let (rig, mut client, mut server) = Rig::through(Setup::default()).await;
    let sent = flood(&client).await;
    assert_eq!(rig.stat("shunt.splice_active"), 1);
    let mut data = vec![0; usize::try_from(sent).unwrap()];
    timeout(LONG, server.read_exact(&mut data)).await.unwrap().unwrap();
    for _ in 0..10 {
        client.write_all(b"ping").await.unwrap();
        server.read_exact(&mut [0; 4]).await.unwrap();
    }
    assert_eq!(rig.stat("shunt.splice_active"), 0);
}

fn payload(size: usize, seed: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 31 + seed * 17 + at / 251) as u8).collect()
}

#[tokio::test]
async fn a_refused_upstream_resets_the_client() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let rig = Rig::start(Setup::default(), |_| Some(closed)).await;
    let mut client = TcpStream::connect(rig.addr).await.unwrap();
    assert_eq!(read_error(&mut client).await, io::ErrorKind::ConnectionReset);
    let record = rig.record().await;
    assert_eq!(
        (record.outcome.flags.to_string().as_str(), record.outcome.details.as_ref()),
        ("UF,URX", "upstream_connect_refused")
    );
    assert_eq!(record.outcome.side, Side::Upstream);
    assert_eq!(record.outcome.upstream_failure.as_deref(), Some("delayed connect error: Connection refused"));
    assert!(record.json().unwrap().contains("delayed_connect_error:_Connection_refused"));
    assert_eq!(rig.stat("cluster.PassthroughCluster.upstream_cx_connect_fail"), 1);
}

/// A listener whose backlog is full drops SYNs, so a connect hangs.
#[tokio::test]
async fn a_connect_that_hangs_times_out_or_ends_with_its_client() {
    let full = HostDial.socket(Family::V4).unwrap();
    full.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    full.listen(0).unwrap();
    let addr = full.local_addr().unwrap().as_socket().unwrap();
    let _fill = TcpStream::connect(addr).await.unwrap();
    let options = Options { connect_timeout: Duration::from_millis(400), ..Options::default() };
    let rig = Rig::start(Setup { options, ..Setup::default() }, |_| Some(addr)).await;
    let mut client = TcpStream::connect(rig.addr).await.unwrap();
    assert_eq!(read_error(&mut client).await, io::ErrorKind::ConnectionReset);
    let impatient = TcpStream::connect(rig.addr).await.unwrap();
    sleep(Duration::from_millis(50)).await;
    reset(impatient);
    let records = rig.records(2).await;
    let ends: Vec<_> = records
        .iter()
        .map(|entry| (entry.outcome.flags.to_string(), entry.outcome.details.as_ref()))
        .collect();
    let ends: Vec<_> = ends.iter().map(|(flags, details)| (flags.as_str(), *details)).collect();
    assert_eq!(ends, [("UF,URX", "upstream_connect_timeout"), ("-", "downstream_reset")]);
    assert_eq!(rig.stat("cluster.PassthroughCluster.upstream_cx_connect_timeout"), 1);
}

async fn refused(rig: &Rig, details: &str) {
    let mut client = TcpStream::connect(rig.addr).await.unwrap();
    assert_eq!(read_error(&mut client).await, io::ErrorKind::ConnectionReset);
    let record = rig.record().await;
    assert_eq!((record.outcome.flags.to_string().as_str(), record.outcome.details.as_ref()), ("NR", details));
    assert_eq!(record.outcome.side, Side::Internal);
    assert_eq!(rig.stat(&format!("shunt.{details}")), 1);
    assert!(record.original_dst.is_some());
}

#[tokio::test]
async fn a_loop_is_refused() {
    let looped = "original_destination_is_listener";
    // Nothing was redirected.
    refused(&Rig::start(Setup::default(), |_| None).await, looped).await;
    // The same port by every own address.
    for ip in ["127.0.0.1", "127.7.7.7", "0.0.0.0", "::1", "::ffff:127.0.0.1"] {
        let rig =
            Rig::start(Setup::default(), |own| Some((ip.parse::<IpAddr>().unwrap(), own.port()).into()));
        refused(&rig.await, looped).await;
    }
    let inbound = Setup { direction: Direction::Inbound, ..Setup::default() };
    let rig = Rig::start(inbound, |own| Some(([192, 0, 2, 1], own.port()).into())).await;
    refused(&rig, looped).await;
}

/// Another host's 15001 is not ours: it is tried (and here not reached).
#[tokio::test]
async fn another_hosts_listener_is_no_loop() {
    let options = Options { connect_timeout: Duration::from_millis(50), ..Options::default() };
    let rig =
        Rig::start(Setup { options, ..Setup::default() }, |own| Some(([192, 0, 2, 1], own.port()).into()));
    let rig = rig.await;
    let _client = TcpStream::connect(rig.addr).await.unwrap();
    assert_eq!(rig.record().await.outcome.flags.to_string(), "UF,URX");
}

#[tokio::test]
async fn the_admin_socket_is_refused() {
    let to: SocketAddr = "127.0.0.1:15000".parse().unwrap();
    for (admin, to) in [
        ("127.0.0.1:15000", to),
        ("0.0.0.0:15000", to),
        ("[::]:15000", to),
        ("127.0.0.1:15000", "0.0.0.0:15000".parse().unwrap()),
    ] {
        let setup = Setup { admin: vec![admin.parse().unwrap()], ..Setup::default() };
        refused(&Rig::start(setup, |_| Some(to)).await, "original_destination_is_admin").await;
    }
}

#[tokio::test]
async fn registry_only_is_a_black_hole_until_it_is_lifted() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = server.local_addr().unwrap();
    let traffic = Traffic { outbound: OutboundPolicy::RegistryOnly };
    let rig = Rig::start(Setup { traffic, ..Setup::default() }, |_| Some(addr)).await;
    let mut client = TcpStream::connect(rig.addr).await.unwrap();
    assert_eq!(read_error(&mut client).await, io::ErrorKind::ConnectionReset);
    let record = rig.record().await;
    assert_eq!(
        (record.outcome.flags.to_string().as_str(), record.upstream.cluster.as_deref()),
        ("UH", Some("BlackHoleCluster"))
    );
    assert_eq!(rig.stat("cluster.BlackHoleCluster.upstream_cx_none_healthy"), 1);
    rig.ctx.place.set_traffic(Traffic::default());
    let _client = TcpStream::connect(rig.addr).await.unwrap();
    timeout(LONG, server.accept()).await.unwrap().unwrap();
}

#[tokio::test]
async fn inbound_comes_from_its_own_address() {
    let inbound = Setup { direction: Direction::Inbound, ..Setup::default() };
    let (rig, client, server) = Rig::through(inbound).await;
    let peer = server.peer_addr().unwrap();
    assert_eq!(peer.ip(), IpAddr::from([127, 0, 0, 6]));
    drop((client, server));
    let record = rig.record().await;
    assert_eq!(record.upstream.local, Some(peer));
    assert_eq!(record.upstream.cluster.as_deref(), Some("InboundPassthroughClusterIpv4"));
}

#[tokio::test]
async fn a_mapped_client_of_a_dual_stack_listener_is_an_ipv4_client() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = server.local_addr().unwrap();
    let rig = Rig::start(Setup { bind: "[::]:0", ..Setup::default() }, |_| Some(addr)).await;
    drop(TcpStream::connect(("127.0.0.1", rig.addr.port())).await.unwrap());
    drop(timeout(LONG, server.accept()).await.unwrap().unwrap());
    let record = rig.record().await;
    assert!(record.facts.remote.is_ipv4());
    assert_eq!(record.original_dst, Some(addr));
}

#[tokio::test]
async fn silence_ends_and_bytes_put_it_off() {
    let options = Options { idle_timeout: Duration::from_millis(300), ..Options::default() };
    let (rig, mut client, mut server) = Rig::through(Setup { options, ..Setup::default() }).await;
    for _ in 0..6 {
        sleep(Duration::from_millis(100)).await;
        client.write_all(b"x").await.unwrap();
        server.read_exact(&mut [0]).await.unwrap();
    }
    assert_eq!(read_all(&mut client).await.unwrap(), b"");
    let record = rig.record().await;
    assert_eq!(record.outcome.details, "idle_timeout");
    assert!(record.duration >= Duration::from_millis(850), "{:?}", record.duration);
    assert_eq!(rig.stat("tcp.PassthroughCluster.idle_timeout"), 1);
}

#[tokio::test]
async fn a_drain_closes_the_listener_and_cuts_at_its_deadline() {
    let (rig, mut client, mut server) = Rig::through(Setup::default()).await;
    rig.drain.start();
    // Connections live on.
    client.write_all(b"x").await.unwrap();
    server.read_exact(&mut [0]).await.unwrap();
    assert_eq!(rig.drain.drain(Duration::from_millis(50)).await, 1);
    let record = rig.ctx.place.shared.access_log.snapshot().remove(0);
    assert_eq!((record.outcome.details.as_ref(), record.bytes.downstream_rx), ("drain_timeout", 1));
    let refused = TcpStream::connect(rig.addr).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

/// What `accept::run` relies on: the option is inherited from the listener.
#[tokio::test]
async fn no_delay_is_inherited() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    SockRef::from(&listener).set_tcp_nodelay(true).unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    assert!(listener.accept().await.unwrap().0.nodelay().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_at_once_keep_their_bytes() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = server.local_addr().unwrap();
    let rig = Rig::start(Setup::default(), |_| Some(addr)).await;
    let tasks = rig.ctx.place.shared.tasks.clone();
    let echo = tasks.clone();
    tasks.spawn("server", async move {
        while let Ok((mut stream, _)) = server.accept().await {
            echo.spawn("echo", async move {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    let mut clients = Vec::new();
    for n in 0..200_usize {
        let to = rig.addr;
        clients.push(tasks.spawn("client", async move { exchange(to, n).await }));
    }
    for client in clients {
        timeout(LONG, client).await.unwrap().unwrap();
    }
    let records = rig.records(200).await;
    assert!(records.iter().all(|entry| entry.bytes.downstream_rx == entry.bytes.downstream_tx));
    assert_eq!(rig.stat("server.task_panics"), 0);
}

/// Sends a payload of its own and checks the hash of what comes back.
async fn exchange(to: SocketAddr, n: usize) {
    let size = 1 + n * 7_919 % 400_000;
    let payload = payload(size, n);
    let mut stream = TcpStream::connect(to).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let send = async {
        writer.write_all(&payload).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let (_, read) = tokio::join!(send, reader.read_to_end(&mut back));
    assert_eq!(read.unwrap(), size);
    assert_eq!(Sha256::digest(&back), Sha256::digest(&payload));
}

/// Ten thousand idle connections must not be felt: this is what one costs in the task besides its sockets.
#[tokio::test]
async fn the_task_of_a_connection_stays_small() {
    let (listener, ctx, drain) = Rig::context(Setup::default(), |_| None).await;
    let _client = TcpStream::connect(ctx.local).await.unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    let future = conn::serve(stream, peer, ctx, drain.watch().guard(), 0);
    assert!(size_of_val(&future) <= 2_112, "{}", size_of_val(&future));
}

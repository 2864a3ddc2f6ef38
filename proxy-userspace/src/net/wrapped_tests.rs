//! The relay between sides whose bytes are wrapped, by a transport that is nothing but awkward: it holds what it has
//! taken until it is flushed, hands out few bytes at a time and ends with a mark instead of FIN.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::copy::{End, Terms, relay};
use super::facts::Facts;
use super::rig::{LONG, flood};
use super::socket::Socket;
use super::timers::Limits;
use super::wire::Wire;
use super::*;
use crate::drain::Drain;
use crate::network::starttls::Leftover;
use crate::telemetry::stats::{ClusterStats, TcpStats};
use crate::telemetry::{Bytes, ConnRecord, Origin, Side};
use crate::transport::{Failure, Transport};

/// What ends a stream of bytes below 100.
const MARK: u8 = 255;

/// Adds 100 to each byte.
#[derive(Default)]
struct Shift {
    taken: VecDeque<u8>,
    ended: bool,
    told: bool,
}

impl Transport for Shift {
    fn poll_ready(&mut self, _: &mut Context<'_>, _: Socket<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        let few = buf.len().min(1_000);
        let n = ready!(socket.poll_recv(cx, &mut buf[..few]))?;
        let end = buf[..n].iter().position(|byte| *byte == MARK);
        self.ended = end.is_some() || n == 0;
        let n = end.unwrap_or(n);
        buf[..n].iter_mut().for_each(|byte| *byte -= 100);
        Poll::Ready(Ok(n))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.taken.len() > 10_000 {
            ready!(self.poll_flush(cx, socket))?;
        }
        let n = data.len().min(3_000);
        self.taken.extend(data[..n].iter().map(|byte| byte + 100));
        Poll::Ready(Ok(n))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        while !self.taken.is_empty() {
            let n = ready!(socket.poll_send(cx, self.taken.as_slices().0))?;
            self.taken.drain(..n);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.told, true) {
            self.taken.push_back(MARK);
        }
        self.poll_flush(cx, socket)
    }
}

/// The proxy's end of a connection, and the other one.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (listener.accept().await.unwrap().0, peer)
}

/// A relay between a client and a server, of which some are wrapped.
struct Relayed {
    client: TcpStream,
    server: TcpStream,
    ended: oneshot::Receiver<(End, Bytes)>,
}

async fn between(wrapped: [bool; 2], leftover: Leftover) -> Relayed {
    let ((down, client), (up, server)) = (pair().await, pair().await);
    let (end, ended) = oneshot::channel();
    Tasks::new(&Stats::new()).spawn("relay", async move {
        let stats = Stats::new();
        let own = OwnStats::of(&stats);
        let (cluster, tcp) = (ClusterStats::of(&stats, "c"), TcpStats::of(&stats, "t"));
        let (pipes, drain) = (Pipes::new(8, own), Drain::new());
        let guard = drain.watch().guard();
        let limits = Limits {
            idle: None,
            downstream_idle: None,
            upstream_idle: None,
            deadline: None,
            flush_every: None,
            report_every: None,
            buffer: usize::MAX,
        };
        let terms = Terms {
            cluster: &cluster,
            tcp: &tcp,
            pipes: &pipes,
            limits: &limits,
            guard: &guard,
            gates: None,
            host: None,
        };
        let log = AccessLog::start(None, 1, &stats).unwrap();
        let origin = Origin { connection_id: 1, workload: None, direction: None, listener: "l".into() };
        let facts = Facts::new(down.peer_addr().unwrap(), down.local_addr().unwrap());
        let mut record = ConnRecord::new(log, origin, facts);
        let mut shifts = wrapped.map(|wrapped| wrapped.then(Shift::default));
        let [down_shift, up_shift] = &mut shifts;
        let down = Wire::new(Socket::Tcp(&down), down_shift.as_mut().map(|shift| shift as _));
        let up = Wire::new(Socket::Tcp(&up), up_shift.as_mut().map(|shift| shift as _));
        let how = relay(down, up, Some(Box::new(leftover)), &mut record, terms).await;
        // Not every test asks.
        let _ = end.send((how, record.entry.bytes));
    });
    Relayed { client, server, ended }
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 97) as u8).collect()
}

fn wire_bytes(data: &[u8], wrapped: bool) -> Vec<u8> {
    let mut bytes: Vec<_> = data.iter().map(|byte| byte + if wrapped { 100 } else { 0 }).collect();
    bytes.extend(wrapped.then_some(MARK));
    bytes
}

/// Everything up to the mark or FIN.
async fn read_end(stream: &mut TcpStream, wrapped: bool) -> Vec<u8> {
    let mut got = Vec::new();
    loop {
        let n = timeout(LONG, stream.read_buf(&mut got)).await.unwrap().unwrap();
        if n == 0 || wrapped && got.last() == Some(&MARK) {
            return got;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_and_ends_pass_wherever_they_are_wrapped() {
    const LEN: usize = 3 << 20;
    for wrapped in [[true, false], [false, true], [true, true]] {
        let [down, up] = wrapped;
        let Relayed { client, server, ended } = between(wrapped, Leftover::default()).await;
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
            (client.into_split(), server.into_split());
        let sent = payload(LEN);
        let there = async {
            to_client.write_all(&wire_bytes(&sent, down)).await.unwrap();
            if !down {
                to_client.shutdown().await.unwrap();
            }
        };
        let back = async {
            to_server.write_all(&wire_bytes(&sent, up)).await.unwrap();
            if !up {
                to_server.shutdown().await.unwrap();
            }
        };
        let at_server = async {
            let mut got = Vec::new();
            while got.len() < LEN {
                assert!(timeout(LONG, from_server.read_buf(&mut got)).await.unwrap().unwrap() > 0);
            }
            got
        };
        let at_client = async {
            let mut got = Vec::new();
            while got.len() < LEN {
                assert!(timeout(LONG, from_client.read_buf(&mut got)).await.unwrap().unwrap() > 0);
            }
            got
        };
        let ((), (), at_server, at_client) = tokio::join!(there, back, at_server, at_client);
        assert!(at_server[..LEN] == wire_bytes(&sent, up)[..LEN], "{wrapped:?}");
        assert!(at_client[..LEN] == wire_bytes(&sent, down)[..LEN], "{wrapped:?}");
        let (end, bytes) = timeout(LONG, ended).await.unwrap().unwrap();
        assert!(matches!(end, End::Closed(_)), "{wrapped:?}: {end:?}");
        let all = LEN as u64;
        let expected = Bytes { downstream_rx: all, downstream_tx: all, upstream_rx: all, upstream_tx: all };
        assert_eq!(bytes, expected, "the application's bytes are counted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_way_goes_on_after_an_end() {
    let Relayed { mut client, mut server, ended } = between([true, true], Leftover::default()).await;
    client.write_all(&wire_bytes(b"ask", true)).await.unwrap();
    assert_eq!(read_end(&mut server, true).await, wire_bytes(b"ask", true));
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.write_all(&wire_bytes(b"answer", true)).await.unwrap();
    assert_eq!(read_end(&mut client, true).await, wire_bytes(b"answer", true));
    let (end, _) = timeout(LONG, ended).await.unwrap().unwrap();
    assert!(matches!(end, End::Closed(Side::Downstream)), "{end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_seen_while_bytes_wait() {
    let Relayed { client, server, ended } = between([false, true], Leftover::default()).await;
    // Nobody reads: the relay holds bytes and reads the client no more.
    assert!(flood(&client).await > 0);
    conn::reset_on_close(&server);
    drop(server);
    let (end, _) = timeout(LONG, ended).await.unwrap().unwrap();
    assert!(matches!(end, End::Failed { side: Side::Upstream, .. }), "{end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_before_goes_first() {
    let leftover = Leftover { to_upstream: b"first ".to_vec(), to_downstream: b"hello ".to_vec() };
    let Relayed { mut client, mut server, ended } = between([false, true], leftover).await;
    client.write_all(b"second").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_end(&mut server, true).await, wire_bytes(b"first second", true));
    server.write_all(&wire_bytes(b"you", true)).await.unwrap();
    assert_eq!(read_end(&mut client, false).await, b"hello you");
    timeout(LONG, ended).await.unwrap().unwrap();
}

use std::future::poll_fn;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::timeout;

use super::*;
use crate::transport::Raw;

/// Longer than anything takes on a loaded machine.
const LONG: Duration = Duration::from_secs(30);

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (ours, listener.accept().await.unwrap().0)
}

fn measured(period: Option<Duration>) -> (Measured, Arc<TcpSocketStats>) {
    let stats = Arc::new(TcpSocketStats::default());
    (Measured::new(period, &stats, Box::new(Raw)), stats)
}

fn count(histogram: &crate::telemetry::stats::Histogram) -> u64 {
    histogram.bins().map_or(0, |bins| bins.count())
}

#[tokio::test]
async fn all_is_counted_at_the_end_of_a_connection() {
    let (ours, mut peer) = pair().await;
    let socket = Socket::Tcp(&ours);
    let (mut transport, stats) = measured(None);
    poll_fn(|cx| transport.poll_ready(cx, socket)).await.unwrap();
    assert_eq!(poll_fn(|cx| transport.poll_write(cx, socket, b"hello")).await.unwrap(), 5);
    peer.read_exact(&mut [0; 5]).await.unwrap();
    peer.write_all(b"answer").await.unwrap();
    let mut buf = [0; 10];
    assert_eq!(poll_fn(|cx| transport.poll_read(cx, socket, &mut buf)).await.unwrap(), 6);
    assert_eq!(stats.cx_tx_bytes_sent.value(), 0, "it lives, and nobody asks meanwhile");
    transport.closed(socket, CloseEvent::Local);
    assert_eq!((stats.cx_tx_bytes_sent.value(), stats.cx_rx_bytes_received.value()), (5, 6));
    assert_eq!((stats.cx_tx_data_segments.value(), stats.cx_rx_data_segments.value()), (1, 1));
    assert!(stats.cx_tx_segments.value() > 1 && stats.cx_rx_segments.value() > 1);
    assert!(!stats.cx_tx_retransmitted_segments.used());
    let retransmitted = stats.cx_tx_percent_retransmitted_segments.bins().unwrap();
    assert_eq!((retransmitted.count(), retransmitted.quantile(1.0)), (1, 0.0));
    assert_eq!((count(&stats.cx_rtt_us), count(&stats.cx_rtt_variance_us)), (1, 1));
    assert_eq!((stats.cx_tx_unsent_bytes.value(), stats.cx_tx_unacked_segments.value()), (0, 0));
}

#[tokio::test]
async fn an_idle_connection_is_looked_at_every_period() {
    let (ours, mut peer) = pair().await;
    let socket = Socket::Tcp(&ours);
    let (mut transport, stats) = measured(Some(Duration::from_millis(20)));
    poll_fn(|cx| transport.poll_ready(cx, socket)).await.unwrap();
    poll_fn(|cx| transport.poll_write(cx, socket, b"hello")).await.unwrap();
    peer.read_exact(&mut [0; 5]).await.unwrap();
    // Nothing ever comes: only its own timer wakes the task.
    let mut polls = 0;
    let three = poll_fn(|cx| {
        polls += 1;
        assert!(transport.poll_read(cx, socket, &mut [0]).is_pending());
        if count(&stats.cx_rtt_us) < 3 { Poll::Pending } else { Poll::Ready(()) }
    });
    timeout(LONG, three).await.unwrap();
    assert!(polls <= 5, "{polls} polls");
    assert_eq!(stats.cx_tx_bytes_sent.value(), 5, "each byte counts once");
    // Without data since the last time there is no share of it.
    assert_eq!(count(&stats.cx_tx_percent_retransmitted_segments), 1);
    transport.closed(socket, CloseEvent::Remote);
    assert_eq!(count(&stats.cx_rtt_us), 4);
    assert_eq!(stats.cx_tx_bytes_sent.value(), 5);
}

#[tokio::test]
async fn what_waits_is_in_the_gauges_while_the_connection_lives() {
    let (ours, _peer) = pair().await;
    let socket = Socket::Tcp(&ours);
    let (mut transport, stats) = measured(Some(Duration::from_millis(1)));
    let chunk = vec![0; 65_536];
    let seen = poll_fn(|cx| {
        // Fills both sockets' buffers, and then waits for the timer alone.
        while let Poll::Ready(result) = transport.poll_write(cx, socket, &chunk) {
            result.unwrap();
        }
        if stats.cx_tx_unsent_bytes.value() > 0 { Poll::Ready(()) } else { Poll::Pending }
    });
    timeout(LONG, seen).await.unwrap();
    drop(transport);
    assert_eq!((stats.cx_tx_unsent_bytes.value(), stats.cx_tx_unacked_segments.value()), (0, 0));
    assert!(stats.cx_tx_bytes_sent.value() > 0);
}

#[tokio::test]
async fn a_unix_socket_has_no_statistics() {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let socket = Socket::Unix(&ours);
    let (mut transport, stats) = measured(Some(Duration::from_millis(1)));
    poll_fn(|cx| transport.poll_write(cx, socket, b"hello")).await.unwrap();
    peer.read_exact(&mut [0; 5]).await.unwrap();
    transport.closed(socket, CloseEvent::Local);
    assert!(!stats.cx_tx_segments.used() && stats.cx_rtt_us.bins().is_none());
}

#[test]
fn differences_of_what_the_kernel_says() {
    let stats = Arc::new(TcpSocketStats::default());
    let mut account = Account::new(&stats);
    let first = TcpInfo {
        data_segs_out: 8,
        total_retrans: 2,
        segs_out: u32::MAX,
        bytes_sent: 5_000_000_000,
        notsent_bytes: 10,
        unacked: 3,
        rtt: 40,
        ..TcpInfo::default()
    };
    account.add(first);
    account.add(TcpInfo { segs_out: 4, notsent_bytes: 0, unacked: 1, data_segs_out: 9, ..first });
    assert_eq!(stats.cx_tx_bytes_sent.value(), 5_000_000_000, "more than 32 bits");
    assert_eq!(stats.cx_tx_segments.value(), u64::from(u32::MAX) + 5, "the kernel's count goes round");
    assert_eq!((stats.cx_tx_unsent_bytes.value(), stats.cx_tx_unacked_segments.value()), (0, 1));
    let shares = stats.cx_tx_percent_retransmitted_segments.bins().unwrap();
    assert_eq!(shares.count(), 2);
    assert!((shares.quantile(1.0) - 0.255).abs() < 1e-9, "two of eight: {}", shares.quantile(1.0));
    account.end();
    assert_eq!(stats.cx_tx_unacked_segments.value(), 0);
}

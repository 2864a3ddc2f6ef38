use std::sync::MutexGuard;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, yield_now};
use tokio::time::timeout;

use super::*;
use crate::clock;
use crate::net::rig::LONG;
use crate::task::Tasks;
use crate::telemetry::stats::Stats;

struct Rig {
    peer: TcpStream,
    socket: Arc<TcpStream>,
    conn: Arc<Mutex<Conn>>,
    woken: Arc<Woken>,
    queue: AbortHandle,
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Rig {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let socket = Arc::new(listener.accept().await.unwrap().0);
        let io = Io::Client { socket: socket.clone(), transport: None };
        let conn = Arc::new(Mutex::new(Conn::new(io, Bytes::new())));
        let queue = Tasks::new(&Stats::new()).spawn("queue", turn::run()).abort_handle();
        yield_now().await;
        Self { peer, socket, conn, woken: Arc::default(), queue }
    }

    fn conn(&self) -> MutexGuard<'_, Conn> {
        self.conn.lock().unwrap()
    }

    /// As a task does that is told by `woken`.
    fn send(&self, text: &'static str) -> Poll<io::Result<()>> {
        let waker = self.woken.clone().into();
        let mut conn = self.conn();
        conn.push(Bytes::from_static(text.as_bytes()), b"");
        conn.poll_send(&mut Context::from_waker(&waker), || self.conn.clone())
    }

    fn poll_fill(&self) -> Poll<io::Result<usize>> {
        let waker = self.woken.clone().into();
        self.conn().poll_fill(&mut Context::from_waker(&waker), READ)
    }

    fn counts(&self) -> (u64, u64) {
        let conn = self.conn();
        (conn.written, conn.position())
    }

    fn woken(&self) -> usize {
        self.woken.0.load(Ordering::Relaxed)
    }

    async fn told(&self) {
        let told = async {
            while self.woken() == 0 {
                yield_now().await;
            }
        };
        timeout(LONG, told).await.unwrap();
    }

    /// The socket takes nothing more. How much it has taken.
    async fn fill(&self) -> usize {
        SockRef::from(&*self.socket).set_send_buffer_size(4096).unwrap();
        let mut all = 0;
        let mut calm = 0;
        // What the kernel moves on makes room again.
        while calm < 3 {
            match self.socket.try_write(&[b'.'; 4096]) {
                Ok(n) => (all, calm) = (all + n, 0),
                Err(_) => {
                    calm += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let _ = timeout(Duration::from_millis(1), self.socket.writable()).await;
                }
            }
        }
        all
    }

    async fn received(&mut self, n: usize) -> Vec<u8> {
        let mut all = vec![0; n];
        timeout(LONG, self.peer.read_exact(&mut all)).await.unwrap().unwrap();
        all
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.queue.abort();
    }
}

#[tokio::test]
async fn what_is_short_counts_at_once_and_goes_out_in_its_turn() {
    let mut rig = Rig::new().await;
    assert!(matches!(rig.send("first "), Poll::Ready(Ok(()))));
    assert!(matches!(rig.send("second "), Poll::Ready(Ok(()))));
    assert_eq!(rig.counts(), (13, 13));
    assert_eq!(rig.peer.try_read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(rig.received(13).await, b"first second ");
    assert_eq!(rig.conn().output.capacity(), 0);
    // What is encoded, and not handed on yet, is not written.
    rig.conn().push(Bytes::from_static(b"third"), b"");
    assert_eq!(rig.counts(), (13, 18));
    assert_eq!(rig.woken(), 0);
}

#[tokio::test]
async fn what_is_long_takes_along_what_waits() {
    let mut rig = Rig::new().await;
    assert!(matches!(rig.send("short "), Poll::Ready(Ok(()))));
    let long = "x".repeat(turn::SHORT + 1).leak();
    assert!(matches!(rig.send(long), Poll::Ready(Ok(()))));
    assert!(!rig.conn().has_output());
    let all = rig.received(6 + long.len()).await;
    assert!(all.starts_with(b"short xx"));
    assert_eq!(rig.conn().written, all.len() as u64);
}

/// Else who asks for room and is told that all is written asks for ever.
#[tokio::test]
async fn the_rest_of_what_is_long_is_not_handed_on() {
    let mut rig = Rig::new().await;
    let before = rig.fill().await;
    let long = "x".repeat(COPY + 1).leak();
    assert!(rig.send(long).is_pending() && !rig.conn().has_room());
    let mut all = Vec::new();
    while !rig.conn().has_room() {
        let some = timeout(Duration::from_millis(20), rig.peer.read_buf(&mut all)).await;
        assert!(some.is_err() || some.is_ok_and(|read| read.is_ok_and(|n| n > 0)));
        let waker = rig.woken.clone().into();
        let mut conn = rig.conn();
        // Its last piece is short.
        let sent = conn.poll_send(&mut Context::from_waker(&waker), || rig.conn.clone());
        assert_eq!(sent.is_ready(), conn.has_room());
    }
    let rest = before + long.len() - all.len();
    all.extend(rig.received(rest).await);
    assert!(all.ends_with(long.as_bytes()));
}

#[tokio::test]
async fn what_finds_no_room_is_written_by_who_is_told() {
    let mut rig = Rig::new().await;
    let before = rig.fill().await;
    assert!(matches!(rig.send("first "), Poll::Ready(Ok(()))));
    rig.told().await;
    // Nothing more is handed on before it has gone out.
    assert!(rig.send("second").is_pending());
    assert_eq!(rig.conn().written, 6);
    let all = {
        let mut all = vec![0; before];
        timeout(LONG, rig.peer.read_exact(&mut all)).await.unwrap().unwrap();
        all
    };
    assert!(all.iter().all(|byte| *byte == b'.'));
    let deadline = clock::now() + LONG;
    while rig.conn().has_output() {
        // Nobody speaks; but whoever waits for that writes.
        assert!(rig.poll_fill().is_pending());
        assert!(clock::now() < deadline);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(rig.received(12).await, b"first second");
    assert_eq!(rig.conn().written, 12);
    assert!(matches!(rig.send(" third"), Poll::Ready(Ok(()))));
    assert_eq!(rig.received(6).await, b" third");
}

/// A codec takes a write of nothing for the end.
#[tokio::test]
async fn a_full_buffer_is_flushed_before_it_takes_more() {
    let rig = Rig::new().await;
    rig.fill().await;
    assert!(matches!(rig.send("first "), Poll::Ready(Ok(()))));
    let waker = rig.woken.clone().into();
    let cx = &mut Context::from_waker(&waker);
    let mut conn = rig.conn();
    assert!(matches!(conn.poll_flush(cx), Poll::Ready(Ok(()))));
    let long = vec![b'x'; BATCH];
    assert_eq!(conn.gather(&[IoSlice::new(&long), IoSlice::new(&long)]), BATCH - 6);
    assert!(conn.poll_send(cx, || rig.conn.clone()).is_pending());
    // It still waits for its turn, too.
    assert!(conn.poll_flush(cx).is_pending());
}

#[tokio::test]
async fn a_failure_is_told_when_nothing_is_left_to_read() {
    let mut rig = Rig::new().await;
    rig.peer.write_all(b"bye").await.unwrap();
    timeout(LONG, rig.socket.readable()).await.unwrap().unwrap();
    SockRef::from(&*rig.socket).shutdown(std::net::Shutdown::Write).unwrap();
    assert!(matches!(rig.send("lost"), Poll::Ready(Ok(()))));
    rig.told().await;
    assert!(matches!(rig.poll_fill(), Poll::Ready(Ok(3))));
    let failed = |poll: Poll<io::Result<()>>| match poll {
        Poll::Ready(Err(error)) => error.kind() == io::ErrorKind::BrokenPipe,
        Poll::Ready(Ok(())) | Poll::Pending => false,
    };
    assert!(failed(rig.poll_fill().map_ok(drop)));
    assert!(failed(rig.send("more")) && failed(rig.send("more")));
}

#[tokio::test]
async fn what_waits_goes_before_the_end() {
    for by_shutdown in [true, false] {
        let mut rig = Rig::new().await;
        assert!(matches!(rig.send("last words"), Poll::Ready(Ok(()))));
        if by_shutdown {
            let waker = rig.woken.clone().into();
            let shut = rig.conn().poll_shutdown(&mut Context::from_waker(&waker));
            assert!(matches!(shut, Poll::Ready(Ok(()))));
        } else {
            rig.conn().close(CloseEvent::Local);
        }
        assert!(!rig.conn().has_output());
        assert_eq!(rig.received(10).await, b"last words");
    }
}

#[tokio::test]
async fn without_a_queue_it_is_written_at_once() {
    let mut rig = Rig::new().await;
    let conn = rig.conn.clone();
    let waits = std::thread::spawn(move || {
        let mut conn = conn.lock().unwrap();
        conn.push(Bytes::from_static(b"now"), b"");
        let sent = conn.poll_send(&mut Context::from_waker(Waker::noop()), || unreachable!("nobody is here"));
        assert!(matches!(sent, Poll::Ready(Ok(()))));
        conn.has_output()
    });
    assert!(!waits.join().unwrap());
    assert_eq!(rig.received(3).await, b"now");
}

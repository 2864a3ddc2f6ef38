//! Two loopback connections with a driver between them, and TLS in a form that tests can speak: each side sends
//! [`HELLO`], and every byte behind it has [`MASK`] over it.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::{Driver, Leftover, Stop};
use crate::net::rig::LONG;
use crate::net::socket::Socket;
use crate::net::wire::Wire;
use crate::telemetry::Bytes;
use crate::transport::starttls::Switch;
use crate::transport::{Failure, Raw, Transport};

pub(crate) const HELLO: &[u8] = b"\x16HELLO";
const MASK: u8 = 0xa5;

/// TLS for tests, on the proxy's side.
#[derive(Default)]
pub(crate) struct Mask {
    sent: usize,
    received: usize,
}

impl Transport for Mask {
    fn poll_ready(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<Result<(), Failure>> {
        while self.sent < HELLO.len() {
            match ready!(socket.poll_send(cx, &HELLO[self.sent..])) {
                Ok(n) => self.sent += n,
                Err(_) => return Poll::Ready(Err(Failure::gone())),
            }
        }
        while self.received < HELLO.len() {
            let mut byte = [0];
            match ready!(socket.poll_recv(cx, &mut byte)) {
                Ok(1) if byte[0] == HELLO[self.received] => self.received += 1,
                Ok(1) => return Poll::Ready(Err(Failure::new("TLS_error: wrong version number"))),
                Ok(_) | Err(_) => return Poll::Ready(Err(Failure::gone())),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        assert_eq!(self.received, HELLO.len(), "read before the handshake");
        let n = ready!(socket.poll_recv(cx, buf))?;
        buf[..n].iter_mut().for_each(|byte| *byte ^= MASK);
        Poll::Ready(Ok(n))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        assert_eq!(self.received, HELLO.len(), "written before the handshake");
        socket.poll_send(cx, &masked(data))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        Raw.poll_flush(cx, socket)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        Raw.poll_shutdown(cx, socket)
    }
}

pub(crate) fn masked(data: &[u8]) -> Vec<u8> {
    data.iter().map(|byte| byte ^ MASK).collect()
}

/// A peer of the proxy: the client, or the server. Where a script drops it, it says nothing more, and stays.
pub(crate) struct Peer {
    stream: Arc<Mutex<TcpStream>>,
    secure: bool,
}

impl Peer {
    pub(crate) async fn say(&mut self, data: impl AsRef<[u8]>) {
        let data = if self.secure { masked(data.as_ref()) } else { data.as_ref().to_vec() };
        self.stream.lock().await.write_all(&data).await.unwrap();
    }

    /// As [`Self::say`], one byte in each segment.
    pub(crate) async fn spell(&mut self, data: impl AsRef<[u8]>) {
        for byte in data.as_ref() {
            self.say([*byte]).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// These bytes come next.
    pub(crate) async fn hears(&mut self, expected: impl AsRef<[u8]>) {
        let mut heard = vec![0; expected.as_ref().len()];
        let read =
            timeout(LONG, self.stream.lock().await.read_exact(&mut heard)).await.expect("something to read");
        if self.secure {
            heard = masked(&heard);
        }
        let (heard, expected) =
            (heard.escape_ascii().to_string(), expected.as_ref().escape_ascii().to_string());
        assert!(read.is_ok(), "{expected}, but {read:?} after {heard}");
        assert_eq!(heard, expected);
    }

    /// These bytes come next, and nothing after them.
    pub(crate) async fn hears_last(&mut self, expected: impl AsRef<[u8]>) {
        self.hears(expected).await;
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _ = timeout(LONG, self.stream.lock().await.read_to_end(&mut rest)).await.expect("an end");
        assert_eq!(rest.escape_ascii().to_string(), "");
    }

    /// Whatever comes.
    pub(crate) async fn hears_to_the_end(&mut self) {
        let mut rest = Vec::new();
        let _ = timeout(LONG, self.stream.lock().await.read_to_end(&mut rest)).await.expect("an end");
    }

    /// As a client of TLS.
    pub(crate) async fn shakes_hands(&mut self) {
        self.say(HELLO).await;
        self.hears(HELLO).await;
        self.secure = true;
    }

    /// As a server of TLS, which does not speak first.
    pub(crate) async fn takes_hands(&mut self) {
        self.hears(HELLO).await;
        self.say(HELLO).await;
        self.secure = true;
    }

    /// The next handshake is not one.
    pub(crate) async fn goes_on_in_plaintext(&mut self) {
        self.hears(HELLO).await;
        self.say(b"no HELLO").await;
    }

    pub(crate) async fn ends(&mut self) {
        self.stream.lock().await.shutdown().await.unwrap();
    }

    pub(crate) async fn resets(&mut self) {
        let (unconnected, _) = pair().await;
        let stream = std::mem::replace(&mut *self.stream.lock().await, unconnected);
        crate::net::conn::reset_on_close(&stream);
    }
}

/// How a driver has ended, and what it has counted.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) result: Result<Leftover, Stop>,
    pub(crate) bytes: Bytes,
}

impl Ended {
    pub(crate) fn leftover(&self) -> (&[u8], &[u8]) {
        let leftover = self.result.as_ref().unwrap();
        (&leftover.to_upstream, &leftover.to_downstream)
    }

    /// The details of a close, or the reason why a side is not secure.
    pub(crate) fn why(&self) -> &str {
        match self.result.as_ref().unwrap_err() {
            Stop::Close(close) => &close.details,
            Stop::Gone(side) => side.name(),
            Stop::Insecure { reason, .. } => reason,
        }
    }
}

/// Sockets that do not wait to be full.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

/// Runs `driver` between a client and a server that do what `script` says. Both can be turned to TLS.
pub(crate) async fn run<S>(driver: &dyn Driver, script: impl FnOnce(Peer, Peer) -> S) -> Ended
where
    S: Future<Output = ()>,
{
    run_with(driver, [true, true], script).await
}

/// As [`run`]; `secure` says which of client and server can be turned.
pub(crate) async fn run_with<S>(
    driver: &dyn Driver,
    secure: [bool; 2],
    script: impl FnOnce(Peer, Peer) -> S,
) -> Ended
where
    S: Future<Output = ()>,
{
    let ((client, near), (server, far)) = (pair().await, pair().await);
    let [client, server] = [client, server].map(|stream| Arc::new(Mutex::new(stream)));
    let peer = |stream: &Arc<Mutex<TcpStream>>| Peer { stream: stream.clone(), secure: false };
    let driven = async {
        let mut transports = secure.map(|secure| secure.then(|| Switch::new(Box::new(Mask::default()))));
        let [down, up] = &mut transports;
        let mut bytes = Bytes::default();
        let result = {
            let (down, up) = (down.as_mut(), up.as_mut());
            let mut down = Wire::new(Socket::Tcp(&near), down.map(|switch| switch as &mut dyn Transport));
            let mut up = Wire::new(Socket::Tcp(&far), up.map(|switch| switch as &mut dyn Transport));
            timeout(LONG, driver.negotiate(&mut down, &mut up, &mut bytes)).await.expect("an end")
        };
        // The proxy closes, or the relay takes over, which is not here.
        drop((near, far));
        Ended { result, bytes }
    };
    let (ended, ()) = tokio::join!(driven, script(peer(&client), peer(&server)));
    ended
}

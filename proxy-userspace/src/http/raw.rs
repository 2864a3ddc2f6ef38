//! A connection of raw bytes at an end of a tunnel: what it says is one body, what it is told is another one.
//!
//! Both directions go on by themselves. Little is buffered: a read's bytes, and what a socket does not take.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;

use super::conn::Conn;
use super::{Body, Io, Reset, ResetReason};
use crate::net::turn::Later;
use crate::telemetry::Side;

/// The largest read.
const CHUNK: usize = 64 * 1024;
/// Frames of one direction before others get their turn.
const ROUNDS: usize = 8;

/// Clones share the connection. All of them are of one task: nobody waits for the lock.
#[derive(Clone)]
pub(crate) struct Raw(Arc<Mutex<State>>);

struct State {
    conn: Conn,
    side: Side,
    /// Nothing is read yet: nobody has agreed to the tunnel.
    held: bool,
    /// What it is told is complete.
    last: bool,
    /// It has been told that.
    told: bool,
    /// What it said is complete.
    ended: bool,
    /// Why writing has failed: its end is then no good one, whatever reading says.
    broken: Option<Reset>,
    /// The most that is read at once.
    most: usize,
}

/// How much has passed, ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) read: u64,
    pub(crate) written: u64,
}

impl Raw {
    /// Of that side of the proxy. `most`: how much is buffered in a direction, at most.
    pub(crate) fn new(io: Io, side: Side, most: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            conn: Conn::new(io, Bytes::new()),
            side,
            held: false,
            last: false,
            told: false,
            ended: false,
            broken: None,
            most: most.clamp(1, CHUNK),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it says, until its FIN.
    pub(crate) fn body(&self) -> Body {
        Body::stream(Reading(self.clone()))
    }

    /// Its body has nothing until it is released.
    pub(crate) fn hold(&self, held: bool) {
        self.lock().held = held;
    }

    /// The first bytes are here, or the end is. A failure shows again where the bytes are read.
    pub(crate) fn poll_first(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if !state.conn.input.is_empty() {
            return Poll::Ready(());
        }
        let most = state.most;
        state.conn.poll_fill(cx, most).map(drop)
    }

    /// Goes out before all else.
    pub(crate) fn begin(&self, bytes: Bytes) {
        self.lock().conn.push(bytes, b"");
    }

    /// Tells it what a body says, and then its end. Where the body breaks, what came before goes out.
    pub(crate) fn poll_tell(
        &self,
        cx: &mut Context<'_>,
        body: &mut Body,
        mut seen: impl FnMut(&Frame<Bytes>),
    ) -> Poll<Result<(), Reset>> {
        for _ in 0..ROUNDS {
            let waits = self.poll_frames(cx, body, &mut seen).is_pending();
            let mut state = self.lock();
            if state.told {
                return Poll::Ready(Ok(()));
            }
            if let Err(error) = ready!(state.poll_send(cx, || self.0.clone())) {
                let reset = state.lost(&error);
                state.broken = Some(reset.clone());
                return Poll::Ready(Err(reset));
            }
            if let Some(reset) = state.broken.take() {
                return Poll::Ready(Err(reset));
            }
            if state.last {
                state.told = true;
                return Poll::Ready(Ok(()));
            }
            if waits {
                return Poll::Pending;
            }
        }
        // There is more; let others go first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The body is polled with the connection free: it may be the one that reads from it.
    fn poll_frames(
        &self,
        cx: &mut Context<'_>,
        body: &mut Body,
        seen: &mut impl FnMut(&Frame<Bytes>),
    ) -> Poll<()> {
        loop {
            let state = self.lock();
            if state.last || state.broken.is_some() || !state.conn.has_room() {
                return Poll::Ready(());
            }
            drop(state);
            match ready!(body.poll(cx)) {
                Some(Ok(frame)) => {
                    seen(&frame);
                    if let Ok(data) = frame.into_data() {
                        self.lock().conn.push(data, b"");
                    }
                }
                Some(Err(reset)) => self.lock().broken = Some(reset),
                None => self.lock().last = true,
            }
        }
    }

    pub(crate) fn passed(&self) -> Passed {
        let state = self.lock();
        Passed { read: state.conn.read, written: state.conn.written }
    }

    /// It has said FIN.
    pub(crate) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Both directions have come to a good end.
    pub(crate) fn is_complete(&self) -> bool {
        let state = self.lock();
        state.ended && state.told
    }

    /// Closing it tells the peer of a failure.
    pub(crate) fn reset_on_close(&self) {
        self.lock().conn.io.socket().reset_on_close();
    }
}

impl State {
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        own: impl FnOnce() -> Arc<dyn Later>,
    ) -> Poll<io::Result<()>> {
        match (self.last, &self.broken) {
            (true, _) => self.conn.poll_shutdown(cx),
            // It may be reset behind it.
            (false, Some(_)) => self.conn.poll_send_now(cx),
            (false, None) => self.conn.poll_send(cx, own),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Reset>>> {
        if self.held {
            return Poll::Pending;
        }
        if self.ended {
            return Poll::Ready(None);
        }
        if self.conn.input.is_empty() {
            match ready!(self.conn.poll_fill(cx, self.most)) {
                Ok(1..) => {}
                Ok(0) => {
                    if let Some(reset) = &self.broken {
                        return Poll::Ready(Some(Err(reset.clone())));
                    }
                    self.ended = true;
                    return Poll::Ready(None);
                }
                Err(error) => return Poll::Ready(Some(Err(self.lost(&error)))),
            }
        }
        Poll::Ready(Some(Ok(self.conn.input.split().freeze())))
    }

    fn lost(&self, error: &io::Error) -> Reset {
        log::debug!("an end of a tunnel is lost: {error}");
        let details = match self.side {
            Side::Downstream => "downstream_remote_disconnect",
            Side::Upstream | Side::Internal => "",
        };
        Reset::new(self.side, ResetReason::ConnectionTermination, details)
    }
}

impl Later for Mutex<State> {
    fn write(&self) {
        self.lock().unwrap_or_else(PoisonError::into_inner).conn.write_in_turn();
    }
}

struct Reading(Raw);

impl http_body::Body for Reading {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        self.0.lock().poll_read(cx).map_ok(Frame::data)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;
    use crate::net::rig::LONG;

    async fn raw() -> (TcpStream, Raw) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let socket = Arc::new(listener.accept().await.unwrap().0);
        (peer, Raw::new(Io::Client { socket, transport: None }, Side::Downstream, usize::MAX))
    }

    #[tokio::test]
    async fn a_body_is_told_after_the_beginning_and_then_its_end() {
        let (mut peer, raw) = raw().await;
        raw.begin(Bytes::from_static(b"first "));
        let mut body = Body::full("then");
        let mut seen = 0;
        let told = poll_fn(|cx| {
            raw.poll_tell(cx, &mut body, |frame| seen += frame.data_ref().map_or(0, Bytes::len))
        });
        timeout(LONG, told).await.unwrap().unwrap();
        let mut all = String::new();
        timeout(LONG, peer.read_to_string(&mut all)).await.unwrap().unwrap();
        assert_eq!((all.as_str(), seen), ("first then", 4));
        assert_eq!(raw.passed(), Passed { read: 0, written: 10 });
        assert!(!raw.is_complete());
    }

    #[tokio::test]
    async fn nothing_is_read_before_it_is_released() {
        let (mut peer, raw) = raw().await;
        raw.hold(true);
        peer.write_all(b"hello").await.unwrap();
        peer.shutdown().await.unwrap();
        let mut body = raw.body();
        timeout(LONG, poll_fn(|cx| raw.poll_first(cx))).await.unwrap();
        assert!(poll_fn(|cx| Poll::Ready(body.poll(cx).is_pending())).await);
        raw.hold(false);
        let frame = timeout(LONG, body.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "hello");
        assert!(timeout(LONG, body.frame()).await.unwrap().is_none());
        assert!(raw.has_ended());
    }

    #[tokio::test]
    async fn what_came_before_a_break_goes_out() {
        struct Breaks(bool);
        impl http_body::Body for Breaks {
            type Data = Bytes;
            type Error = Reset;

            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
                if std::mem::replace(&mut self.0, true) {
                    return Poll::Ready(Some(Err(Reset::new(Side::Upstream, ResetReason::Remote, "x"))));
                }
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"half")))))
            }
        }
        let (mut peer, raw) = raw().await;
        let mut body = Body::stream(Breaks(false));
        let told = timeout(LONG, poll_fn(|cx| raw.poll_tell(cx, &mut body, |_| {}))).await.unwrap();
        assert_eq!(told.unwrap_err().reason, ResetReason::Remote);
        let mut piece = [0; 4];
        timeout(LONG, peer.read_exact(&mut piece)).await.unwrap().unwrap();
        assert_eq!(&piece, b"half");
    }
}

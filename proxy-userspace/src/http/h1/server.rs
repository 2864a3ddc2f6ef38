//! A client's connection.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::{Method, Version};
use http_body::{Frame, SizeHint};

use super::encode::{self, Asked, Writer, Wrote};
use super::framing::Extent;
use super::parse::{self, Parsed, Scan};
use super::reader::{Read, Reader};
use super::{BadRequest, Settings};
use crate::clock;
use crate::http::conn::{Conn, READ};
use crate::http::{Body, Io, Request, RequestHead, Reset, ResetReason, ResponseHead, Sent};
use crate::net::turn::Later;
use crate::telemetry::Side;
use crate::transport::CloseEvent;

/// How much is read of what follows a request while it is being answered: the rest waits in the kernel.
const READ_AHEAD: usize = 64 * 1024;

/// Clones share the connection. All of them, and the bodies of its requests, are of one task.
#[derive(Clone)]
pub struct Server(Arc<Mutex<State>>);

struct State {
    conn: Conn,
    settings: Arc<Settings>,
    scan: Scan,
    asked: Asked,
    reader: Reader,
    /// The reader gives what may not be the request's: an upgrade that nobody has agreed to yet.
    offered: bool,
    /// The response has turned the connection into raw bytes.
    turned: bool,
    /// Counts requests: the body of an earlier one reads nothing.
    exchange: u64,
    /// What had been taken of the connection before its body.
    before_body: u64,
    /// Whether another request may come.
    reusable: bool,
    /// Of who waits for the request's body: others read too.
    reading: Option<Waker>,
}

impl Server {
    /// `early`: what has been read already.
    pub fn new(io: Io, early: Bytes, settings: Arc<Settings>) -> Self {
        Self(Arc::new(Mutex::new(State {
            conn: Conn::new(io, early),
            settings,
            scan: Scan::default(),
            asked: nothing(),
            reader: Reader::Done,
            offered: false,
            turned: false,
            exchange: 0,
            before_body: 0,
            reusable: true,
            reading: None,
        })))
    }

    /// The next request; none where the connection is at its end.
    pub async fn next(&mut self) -> Result<Option<Request>, BadRequest> {
        poll_fn(|cx| {
            let Some((head, extent)) = ready!(self.lock().poll_head(cx))? else {
                return Poll::Ready(Ok(None));
            };
            let body = self.body(extent);
            Poll::Ready(Ok(Some(Request { head, body })))
        })
        .await
    }

    /// Bytes of a request's head have come, and it is not complete.
    pub fn started(&self) -> bool {
        let state = self.lock();
        state.reader.is_done() && !state.conn.input.is_empty()
    }

    /// Resolves once there is something to read, or the peer has gone.
    pub async fn readable(&self) {
        poll_fn(|cx| {
            let mut state = self.lock();
            if !state.conn.input.is_empty() || state.conn.eof {
                return Poll::Ready(());
            }
            state.conn.poll_fill(cx, 1).map(drop)
        })
        .await;
    }

    /// A 1xx but 101, before the response. It goes out at once, as far as there is room.
    pub fn inform(&self, head: &ResponseHead) {
        let mut state = self.lock();
        let State { conn, settings, asked, .. } = &mut *state;
        if asked.version == Version::HTTP_11 {
            encode::interim(&mut conn.output, head, settings);
            // What does not fit, or fails, comes up when the response is written.
            let _ = conn.poll_send_now(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// Sends a response, all of it. `close`: no other request is served on this connection. Where the
    /// body breaks, what came before goes out, as in Envoy.
    pub async fn respond(
        &mut self,
        head: &ResponseHead,
        mut body: Body,
        close: bool,
        sent: &mut Sent,
    ) -> Result<(), Reset> {
        // Asked before: the body may be the request's, and lock.
        let len = body.exact_len();
        let mut reply = self.lock().begin(head, len, close, sent);
        if body.is_stream() && reply.writer.is_none() {
            // An upstream's stream ends by itself, and is reset where nobody waits for that.
            reply.writer.awaits_end();
        }
        let result = poll_fn(|cx| self.poll_respond(cx, &mut reply, &mut body, sent)).await;
        sent.framing_bytes = reply.writer.wrapping;
        sent.request_wire = self.lock().finish(&reply, result.is_ok());
        result
    }

    /// While a request is served: resolves once its client has gone.
    pub async fn gone(&self) -> Reset {
        poll_fn(|cx| self.lock().poll_gone(cx)).await
    }

    /// Another request may be asked for.
    pub fn reusable(&self) -> bool {
        self.lock().reusable
    }

    /// What was written last goes out, then a FIN.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.lock().conn.poll_shutdown(cx)).await
    }

    /// Reads and drops what comes, until the peer has gone: a socket that is closed before it has been read sends a
    /// reset, which may overtake the response.
    pub async fn drain(&mut self) {
        poll_fn(|cx| {
            let mut state = self.lock();
            loop {
                state.conn.input.clear();
                if !matches!(ready!(state.conn.poll_fill(cx, 1)), Ok(1..)) {
                    return Poll::Ready(());
                }
            }
        })
        .await;
    }

    /// Of its socket and its transport.
    pub fn with_io<R>(&self, f: impl FnOnce(&mut Io) -> R) -> R {
        f(&mut self.lock().conn.io)
    }

    /// The transport is told who closed; else it is told once this is dropped.
    pub fn closed(&self, by: CloseEvent) {
        self.lock().conn.close(by);
    }

    /// How much has been read from the connection, ever.
    pub fn read(&self) -> u64 {
        self.lock().conn.read
    }

    /// How much has been written to the connection, ever.
    pub fn written(&self) -> u64 {
        self.lock().conn.written
    }

    /// Of one task: nobody waits for it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn body(&self, extent: Extent) -> Body {
        let mut state = self.lock();
        match extent {
            Extent::None => Body::empty(),
            // It has come with its head, as small ones do.
            Extent::Length(len) if len <= state.conn.input.len() as u64 => {
                state.reader = Reader::Done;
                let len = usize::try_from(len).unwrap_or(usize::MAX).min(state.conn.input.len());
                Body::full(state.conn.input.split_to(len).freeze())
            }
            Extent::Length(_) | Extent::Chunked | Extent::Close | Extent::Raw => {
                Body::stream(RequestBody { server: self.clone(), exchange: state.exchange })
            }
        }
    }

    /// The body is polled with the connection free: it may be the one that sends this request's body elsewhere.
    fn poll_respond(
        &self,
        cx: &mut Context<'_>,
        reply: &mut Reply,
        body: &mut Body,
        sent: &mut Sent,
    ) -> Poll<Result<(), Reset>> {
        loop {
            let waits = self.poll_body(cx, reply, body, sent);
            let mut state = self.lock();
            let result = if reply.broken.is_some() {
                // The connection may be reset behind it.
                state.conn.poll_send_now(cx)
            } else {
                state.conn.poll_send(cx, || self.0.clone())
            };
            if !sent.head && state.conn.written > reply.start {
                sent.head = true;
                sent.first_byte = Some(clock::lately());
            }
            if let Err(error) = ready!(result) {
                return Poll::Ready(Err(lost(&error)));
            }
            if let Some(reset) = reply.broken.take() {
                return Poll::Ready(Err(reset));
            }
            if reply.writer.is_ended() {
                if state.turned {
                    // The other direction may go on.
                    ready!(state.conn.poll_shutdown(cx)).map_err(|error| lost(&error))?;
                }
                sent.complete = true;
                sent.last_byte = Some(clock::lately());
                return Poll::Ready(Ok(()));
            }
            if waits {
                return if state.turned { Poll::Pending } else { state.poll_gone(cx).map(Err) };
            }
        }
    }

    /// Whether the body has no more for now.
    fn poll_body(&self, cx: &mut Context<'_>, reply: &mut Reply, body: &mut Body, sent: &mut Sent) -> bool {
        if reply.broken.is_none() {
            match self.poll_frames(cx, &mut reply.writer, body, sent) {
                Ok(poll) => return poll.is_pending(),
                Err(reset) => reply.broken = Some(reset),
            }
        }
        true
    }

    /// Takes of the body what there is and as much as there is room for.
    fn poll_frames(
        &self,
        cx: &mut Context<'_>,
        writer: &mut Writer,
        body: &mut Body,
        sent: &mut Sent,
    ) -> Result<Poll<()>, Reset> {
        while !writer.is_ended() && self.lock().conn.has_room() {
            match body.poll(cx) {
                Poll::Ready(Some(frame)) => {
                    let last = body.is_end();
                    let wrote: Wrote = writer.frame(&mut self.lock().conn, frame?, last)?;
                    sent.body_bytes += wrote.body;
                    sent.trailer_bytes += wrote.trailers;
                }
                Poll::Ready(None) => writer.end(&mut self.lock().conn)?,
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        Ok(Poll::Ready(()))
    }
}

impl Later for Mutex<State> {
    fn write(&self) {
        self.lock().unwrap_or_else(PoisonError::into_inner).conn.write_in_turn();
    }
}

/// A response on its way.
struct Reply {
    writer: Writer,
    /// What was written before it.
    start: u64,
    close: bool,
    /// Why it will not be complete.
    broken: Option<Reset>,
}

impl State {
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<(RequestHead, Extent)>, BadRequest>> {
        if !self.reusable {
            return Poll::Ready(Ok(None));
        }
        loop {
            let parsed = parse::request(&mut self.conn.input, &mut self.scan, &self.settings);
            match parsed {
                Ok(Some(parsed)) => return Poll::Ready(Ok(Some(self.ask(parsed)))),
                Ok(None) => {}
                Err(bad) => {
                    self.reusable = false;
                    self.asked = nothing();
                    return Poll::Ready(Err(bad));
                }
            }
            if self.conn.input.is_empty() {
                self.conn.rest();
            }
            match ready!(self.conn.poll_fill(cx, READ)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => {
                    self.reusable = false;
                    return Poll::Ready(Ok(None));
                }
            }
        }
    }

    fn ask(&mut self, parsed: Parsed<RequestHead>) -> (RequestHead, Extent) {
        let Parsed { head, extent, connection } = parsed;
        self.asked = Asked {
            method: head.method.clone(),
            version: head.version,
            upgrade: head.upgrade.clone(),
            keep_alive: connection.persists(head.version),
        };
        self.reader = Reader::new(extent);
        self.offered = extent == Extent::Raw;
        self.exchange += 1;
        self.before_body = self.conn.taken();
        self.reading = None;
        (head, extent)
    }

    fn begin(&mut self, head: &ResponseHead, len: Option<u64>, close: bool, sent: &mut Sent) -> Reply {
        self.turned = self.asked.is_turned(head.status);
        // Bytes of a tunnel that there is not may be on their way.
        let refused = self.offered && !self.turned && self.asked.method == Method::CONNECT;
        if self.offered && !self.turned {
            // It goes on without; what follows the request is another one.
            self.reader = Reader::Done;
        }
        self.offered = false;
        // As Envoy: it does not wait for the rest of a request that has its answer.
        let mut close =
            close || refused || !self.reusable || !self.asked.keep_alive || !self.request_is_here();
        let start = self.conn.position();
        let before = self.conn.output.len();
        let Self { conn, asked, settings, .. } = self;
        let framing = encode::response(&mut conn.output, head, len, asked, &mut close, settings);
        sent.head_bytes += (self.conn.output.len() - before) as u64;
        sent.header_bytes = encode::header_bytes(self.conn.output.get(before..).unwrap_or_default());
        Reply {
            writer: Writer::new(framing, &self.settings),
            start,
            close: close || self.turned,
            broken: None,
        }
    }

    /// The request is complete, or the rest of it has been read and waits for whoever takes its body.
    fn request_is_here(&self) -> bool {
        match &self.reader {
            Reader::Done => true,
            Reader::Length(left) => *left <= self.conn.input.len() as u64,
            Reader::Chunked(_) | Reader::Close => false,
        }
    }

    /// After the response. How much the request's body was.
    fn finish(&mut self, reply: &Reply, complete: bool) -> u64 {
        self.reusable &= complete && !reply.close;
        while self.reusable && !self.reader.is_done() {
            let read = self.reader.read(&mut self.conn.input, &self.settings);
            self.reusable = matches!(read, Ok(Read::Frame(_) | Read::End));
        }
        if !(self.turned && complete) {
            // No body of this request reads on. After a turn, a client's bytes go on after the upstream's end.
            self.exchange += 1;
        }
        self.conn.taken().saturating_sub(self.before_body)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Reset> {
        while self.conn.input.len() < READ_AHEAD {
            match ready!(self.conn.poll_fill(cx, READ)) {
                Ok(0) => return Poll::Ready(remote()),
                Ok(_) => self.wake_reader(),
                Err(error) => return Poll::Ready(lost(&error)),
            }
        }
        Poll::Pending
    }

    fn wake_reader(&mut self) {
        if let Some(waker) = self.reading.take() {
            waker.wake();
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        loop {
            match self.reader.read(&mut self.conn.input, &self.settings) {
                Ok(Read::Frame(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(Read::End) => return Poll::Ready(None),
                Ok(Read::More) => {}
                Err(bad) => {
                    self.reusable = false;
                    return Poll::Ready(Some(Err(broken(bad))));
                }
            }
            match self.conn.poll_fill(cx, self.reader.want()) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0)) if self.reader.end() => return Poll::Ready(None),
                Poll::Ready(Ok(0)) => return Poll::Ready(Some(Err(remote()))),
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(lost(&error)))),
                Poll::Pending => {
                    self.reading = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
    }
}

/// Reads on from the connection, until its request has been answered.
struct RequestBody {
    server: Server,
    exchange: u64,
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        let mut state = self.server.lock();
        if state.exchange != self.exchange {
            return Poll::Ready(Some(Err(Reset::new(
                Side::Internal,
                ResetReason::Local,
                "the request is over",
            ))));
        }
        state.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        let state = self.server.lock();
        state.exchange == self.exchange && state.reader.is_done()
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.server.lock();
        if state.exchange == self.exchange { state.reader.size_hint() } else { SizeHint::new() }
    }
}

/// What a response to no request is made for: one to a request that could not be read.
fn nothing() -> Asked {
    Asked { method: Method::GET, version: Version::HTTP_11, upgrade: None, keep_alive: true }
}

/// In Envoy's words, as are those below.
fn remote() -> Reset {
    Reset::new(Side::Downstream, ResetReason::ConnectionTermination, "downstream_remote_disconnect")
}

fn lost(error: &io::Error) -> Reset {
    log::debug!("a client's connection is lost: {error}");
    remote()
}

fn broken(bad: BadRequest) -> Reset {
    Reset::new(Side::Downstream, ResetReason::Protocol, bad.details)
}

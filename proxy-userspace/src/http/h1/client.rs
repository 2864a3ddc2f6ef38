//! A connection upstream.

mod tunnel;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body::{Frame, SizeHint};

use self::tunnel::Tunnel;
use super::encode::{self, Framing, Writer};
use super::framing::Extent;
use super::parse::{self, Parsed, Scan};
use super::reader::{Read, Reader};
use super::{BadRequest, Settings};
use crate::http::conn::{Conn, READ};
use crate::http::{Body, Io, Observer, RequestHead, Reset, ResetReason, Response, ResponseHead};
use crate::telemetry::Side;

/// It carries one exchange after the other.
pub struct Client {
    /// It changes hands with each request. Whoever writes for all of a worker's tasks holds it for a moment, too.
    conn: Arc<Mutex<Conn>>,
    settings: Arc<Settings>,
}

/// No response came.
#[derive(Debug)]
pub struct Failed {
    pub reset: Reset,
    /// Nothing of a response came: the upstream may not have seen the request.
    pub untouched: bool,
    /// What has not been sent of the request's body.
    pub rest: Body,
}

impl Client {
    pub fn new(io: Io, settings: Arc<Settings>) -> Self {
        Self { conn: Arc::new(Mutex::new(Conn::new(io, Bytes::new()))), settings }
    }

    /// Sends a request, and waits for its final head. The response's body owns the connection: when it is polled it
    /// also sends what is left of the request, and at its end hands the connection to `done`, where another exchange
    /// may follow.
    pub async fn send(
        mut self,
        head: &RequestHead,
        body: Body,
        observer: Observer,
        done: impl FnOnce(Self) + Send + 'static,
    ) -> Result<Response, Failed> {
        // It may have ended, or spoken, while it was idle.
        if self.poll_idle(&mut Context::from_waker(Waker::noop())).is_ready() {
            return Err(Failed { reset: gone(), untouched: true, rest: body });
        }
        let mut exchange = Exchange::new(self, head, body, observer)?;
        match poll_fn(|cx| exchange.poll_head(cx)).await {
            Ok(parsed) => Ok(exchange.respond(parsed, done)),
            Err(reset) => {
                let untouched = !exchange.touched && exchange.client.conn().input.is_empty();
                Err(Failed { reset, untouched, rest: exchange.body })
            }
        }
    }

    /// Of one that is idle: ready once the peer has closed it, or has sent what nobody asked for.
    pub fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut conn = self.conn();
        if !conn.input.is_empty() {
            return Poll::Ready(());
        }
        conn.poll_fill(cx, 1).map(drop)
    }

    pub fn with_io<R>(&mut self, f: impl FnOnce(&mut Io) -> R) -> R {
        f(&mut self.conn().io)
    }

    /// Of one task at a time: nobody waits for it.
    fn conn(&self) -> MutexGuard<'_, Conn> {
        self.conn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request, and what has come of its response.
struct Exchange {
    client: Client,
    observer: Observer,
    method: Method,
    upgrade: bool,
    body: Body,
    writer: Writer,
    /// Raw bytes wait for the upstream's consent: else they might be read as another request.
    held: bool,
    /// All of the request has been written.
    sent: bool,
    /// The upstream takes no more of the request; its response may have come nevertheless.
    deaf: bool,
    /// Some of the request has been written.
    sending: bool,
    scan: Scan,
    /// Something of a response has come.
    touched: bool,
    /// What had been taken of the connection before the response's body.
    before_body: u64,
}

impl Exchange {
    fn new(client: Client, head: &RequestHead, body: Body, observer: Observer) -> Result<Self, Failed> {
        let mut conn = client.conn();
        let framing = match encode::request(&mut conn.output, head, body.exact_len(), &client.settings) {
            Ok(framing) => framing,
            Err(reset) => return Err(Failed { reset, untouched: true, rest: body }),
        };
        add(&observer.progress.request_head, conn.output.len() as u64);
        add(&observer.progress.request_header, encode::header_bytes(&conn.output));
        drop(conn);
        Ok(Self {
            writer: Writer::new(framing, &client.settings),
            client,
            observer,
            method: head.method.clone(),
            upgrade: head.upgrade.is_some(),
            body,
            held: framing == Framing::Raw,
            sent: false,
            deaf: false,
            sending: false,
            scan: Scan::default(),
            touched: false,
            before_body: 0,
        })
    }

    /// Nothing of the request is left to be sent.
    fn is_sent(&self) -> bool {
        self.sent || self.deaf
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Parsed<ResponseHead>, Reset>> {
        self.poll_request(cx)?;
        loop {
            if let Some(parsed) = self.read_head()? {
                return Poll::Ready(Ok(parsed));
            }
            let mut conn = self.client.conn();
            if conn.eof {
                return Poll::Ready(Err(gone()));
            }
            match conn.poll_fill(cx, READ) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(lost(&error))),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Of what has been read: the final head, after those that go before it.
    fn read_head(&mut self) -> Result<Option<Parsed<ResponseHead>>, Reset> {
        let conn = &mut *self.client.conn();
        if !self.touched && !conn.input.is_empty() {
            self.touched = true;
            self.observer.progress.receiving();
        }
        loop {
            let parsed =
                parse::response(&mut conn.input, &mut self.scan, &self.method, &self.client.settings);
            let Some(parsed) = parsed.map_err(broken)? else { return Ok(None) };
            add(&self.observer.progress.response_head, parsed.head.size as u64);
            add(&self.observer.progress.response_header, parsed.head.header_bytes as u64);
            match parsed.head.status {
                StatusCode::SWITCHING_PROTOCOLS if self.upgrade => {
                    return Ok(Some(Parsed { extent: Extent::Raw, ..parsed }));
                }
                StatusCode::SWITCHING_PROTOCOLS => return Err(broken(BadRequest::codec())),
                status if status.is_informational() => {
                    if let Some(interim) = &mut self.observer.interim {
                        interim(parsed.head);
                    }
                }
                _ => return Ok(Some(parsed)),
            }
        }
    }

    /// Sends what there is of the request, as far as there is room. An error of the request's own body is one.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Result<(), Reset> {
        while !self.sent && !self.deaf {
            let waits = if self.held { Poll::Pending } else { self.poll_body(cx)? };
            let (result, moved) = self.poll_send(cx);
            if !self.sending && moved {
                self.sending = true;
                self.observer.progress.sending();
            }
            match result {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    log::debug!("an upstream takes no more of a request: {error}");
                    self.deaf = true;
                }
                Poll::Pending => return Ok(()),
            }
            if self.writer.is_ended() {
                self.sent = true;
                add(&self.observer.progress.request_framing, self.writer.wrapping);
                self.observer.progress.sent();
            } else if waits.is_pending() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// After the last of raw bytes comes a FIN: what they are for may go on in the other direction. And whether anything
    /// was sent.
    fn poll_send(&self, cx: &mut Context<'_>) -> (Poll<io::Result<()>>, bool) {
        let mut conn = self.client.conn();
        let written = conn.written;
        let result = if self.writer.is_raw() && self.writer.is_ended() {
            conn.poll_shutdown(cx)
        } else {
            conn.poll_send(cx, || self.client.conn.clone())
        };
        (result, conn.written > written)
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Reset> {
        // The body is polled with the connection free.
        while !self.writer.is_ended() && self.client.conn().has_room() {
            match self.body.poll(cx) {
                Poll::Ready(Some(frame)) => {
                    let last = self.body.is_end();
                    let wrote = self.writer.frame(&mut self.client.conn(), frame?, last)?;
                    add(&self.observer.progress.request_body, wrote.body);
                    add(&self.observer.progress.request_framing, wrote.trailers);
                    add(&self.observer.progress.request_header, wrote.trailers);
                }
                Poll::Ready(None) => self.writer.end(&mut self.client.conn())?,
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        Ok(Poll::Ready(()))
    }

    /// With a body that goes on where this has stopped.
    fn respond(
        mut self,
        parsed: Parsed<ResponseHead>,
        done: impl FnOnce(Client) + Send + 'static,
    ) -> Response {
        let Parsed { head, extent, connection } = parsed;
        let mut persists = connection.persists(head.version);
        if !persists {
            self.observer.progress.closes();
        }
        if self.observer.tunnel && extent != Extent::Raw {
            // A tunnel that was refused leaves nothing behind, as in Envoy.
            persists &= self.upgrade;
        }
        if self.held {
            self.held = false;
            if extent != Extent::Raw {
                // Refused: it was a request without a body.
                self.body = Body::empty();
                self.sent = true;
                self.observer.progress.sent();
            }
        }
        let mut conn = self.client.conn();
        let (before_body, input) = (conn.taken(), &mut conn.input);
        let body = match extent {
            Extent::None => Body::empty(),
            Extent::Length(len) if len <= input.len() as u64 => {
                let len = usize::try_from(len).unwrap_or(usize::MAX).min(input.len());
                Body::full(input.split_to(len).freeze())
            }
            Extent::Length(_) | Extent::Chunked | Extent::Close | Extent::Raw => {
                drop(conn);
                self.before_body = before_body;
                let reader = Reader::new(extent);
                let persists = persists && !matches!(extent, Extent::Close | Extent::Raw);
                let tunnel = self.observer.tunnel;
                let open = Open { exchange: self, reader, persists, done };
                let body = if tunnel { Tunnel::body(open) } else { Body::stream(ResponseBody(Some(open))) };
                return Response { head, body };
            }
        };
        drop(conn);
        self.before_body = before_body;
        add(&self.observer.progress.response_body, body.exact_len().unwrap_or_default());
        self.end(persists, done);
        Response { head, body }
    }

    /// The response is complete. The connection goes on where nothing is left of this exchange on it.
    fn end(self, persists: bool, done: impl FnOnce(Client)) {
        let progress = &self.observer.progress;
        let mut conn = self.client.conn();
        let taken = conn.taken().saturating_sub(self.before_body);
        let body = progress.response_body.load(Ordering::Relaxed);
        add(&progress.response_framing, taken.saturating_sub(body));
        progress.received();
        let free = persists && self.sent && conn.input.is_empty() && !conn.eof && !conn.has_output();
        if free {
            conn.rest();
        }
        drop(conn);
        if free {
            done(self.client);
        }
    }

    fn poll_frame(
        &mut self,
        reader: &mut Reader,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        // Where the request's own body breaks, so does the exchange.
        self.poll_request(cx)?;
        loop {
            let mut conn = self.client.conn();
            match reader.read(&mut conn.input, &self.client.settings).map_err(broken)? {
                Read::Frame(frame) => {
                    if let Some(data) = frame.data_ref() {
                        add(&self.observer.progress.response_body, data.len() as u64);
                    } else if let Some(trailers) = frame.trailers_ref() {
                        // As lines with a CR each, like those of the head.
                        let line = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
                            (name.as_str().len() + 2 + value.len() + 1) as u64
                        };
                        add(&self.observer.progress.response_header, trailers.iter().map(line).sum());
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Read::End => return Poll::Ready(None),
                Read::More => {}
            }
            match conn.poll_fill(cx, reader.want()) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0)) if reader.end() => return Poll::Ready(None),
                Poll::Ready(Ok(0)) => return Poll::Ready(Some(Err(cut_off()))),
                Poll::Ready(Err(error)) => {
                    log::debug!("an upstream's connection is lost: {error}");
                    return Poll::Ready(Some(Err(cut_off())));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// None: it is at its end.
struct ResponseBody<D>(Option<Open<D>>);

struct Open<D> {
    exchange: Exchange,
    reader: Reader,
    persists: bool,
    done: D,
}

/// Nothing of it is pinned.
impl<D> Unpin for ResponseBody<D> {}

impl<D: FnOnce(Client) + Send + 'static> http_body::Body for ResponseBody<D> {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        let this = self.get_mut();
        let Some(open) = &mut this.0 else { return Poll::Ready(None) };
        let poll = open.exchange.poll_frame(&mut open.reader, cx);
        let failed = matches!(poll, Poll::Ready(Some(Err(_))));
        if (failed || open.reader.is_done())
            && let Some(open) = this.0.take()
            && !failed
        {
            open.exchange.end(open.persists, open.done);
        }
        poll
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or(SizeHint::with_exact(0), |open| open.reader.size_hint())
    }
}

fn add(count: &AtomicU64, n: u64) {
    count.fetch_add(n, Ordering::Relaxed);
}

fn gone() -> Reset {
    Reset::new(Side::Upstream, ResetReason::ConnectionTermination, "")
}

/// In the middle of a body: Envoy takes that for a broken message.
fn cut_off() -> Reset {
    Reset::new(Side::Upstream, ResetReason::Protocol, "")
}

fn lost(error: &io::Error) -> Reset {
    log::debug!("an upstream's connection is lost: {error}");
    gone()
}

fn broken(bad: BadRequest) -> Reset {
    Reset::new(Side::Upstream, ResetReason::Protocol, bad.details)
}

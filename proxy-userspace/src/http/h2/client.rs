//! A connection to an upstream, which many streams share.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use http::{HeaderMap, StatusCode};
use http_body::{Frame, SizeHint};
use tokio::sync::Notify;

use super::keepalive::Pinger;
use super::receive::Incoming;
use super::send::{Broken, Outgoing};
use super::server::{Slot, keepalive_timeout};
use super::watch::{End, Seen, Watched};
use super::wire::Hold;
use super::{Http2Stats, RESET_MEMORY, Settings, head, reset_of};
use crate::http::exchange::{Observer, Progress};
use crate::http::{Body, Io, RequestHead, Reset, ResetReason, Response, ResponseHead};
use crate::task::Tasks;
use crate::telemetry::Side;

/// What an upstream may be sent before its SETTINGS say how much it takes.
const STREAMS_BEFORE_SETTINGS: u32 = 100;

/// Clones are handles of the same connection, which ends once the last one is dropped and no stream is left.
#[derive(Clone)]
pub struct Client {
    requests: SendRequest<Bytes>,
    shared: Arc<Shared>,
}

struct Shared {
    seen: Arc<Seen>,
    stats: Arc<Http2Stats>,
    max_streams: usize,
    max_headers: usize,
    max_field_bytes: usize,
    disallow_obs_text: bool,
    streams: Arc<AtomicUsize>,
    ended: AtomicBool,
    close: Notify,
}

/// How a connection ended.
pub struct Ended {
    /// The upstream had said GOAWAY.
    pub going_away: bool,
    /// It was the upstream that ended it.
    pub remote: bool,
    /// Not in good order.
    pub broken: Option<Reset>,
}

impl Client {
    /// Its task runs until the connection ends; then `on_end` is told why.
    pub async fn start(
        io: Io,
        settings: &Settings,
        tasks: &Tasks,
        on_end: impl FnOnce(Ended) + Send + 'static,
    ) -> Result<Self, Reset> {
        let io = Watched::new(io, Bytes::new(), End::Client, settings);
        let seen = io.seen().clone();
        let handshake = builder(settings).handshake(io);
        let (requests, mut connection) = handshake.await.map_err(|error| reset_of(&error, Side::Upstream))?;
        let pinger = Pinger::new(settings.keepalive, connection.ping_pong());
        let shared = Arc::new(Shared {
            seen,
            stats: settings.stats.clone(),
            max_streams: settings.max_concurrent_streams as usize,
            max_headers: settings.max_headers,
            max_field_bytes: settings.max_field_bytes,
            disallow_obs_text: settings.disallow_obs_text,
            streams: Arc::default(),
            ended: AtomicBool::new(false),
            close: Notify::new(),
        });
        let of_task = shared.clone();
        tasks.spawn("upstream http2", async move {
            let end = drive(connection, pinger, &of_task).await;
            of_task.ended.store(true, Ordering::Relaxed);
            let remote = of_task.seen.closed.load(Ordering::Relaxed);
            let going_away = of_task.seen.going_away.load(Ordering::Relaxed);
            on_end(Ended { going_away, remote, broken: end });
        });
        Ok(Self { requests, shared })
    }

    /// How many streams more it takes now.
    pub fn capacity(&self) -> usize {
        if self.is_closing() {
            return 0;
        }
        let most = self.shared.max_streams.min(self.requests.current_max_send_streams());
        most.saturating_sub(self.streams())
    }

    pub fn streams(&self) -> usize {
        self.shared.streams.load(Ordering::Relaxed)
    }

    /// It takes no new stream: the upstream has said GOAWAY, or it has ended.
    pub fn is_closing(&self) -> bool {
        self.shared.ended.load(Ordering::Relaxed) || self.shared.seen.going_away.load(Ordering::Relaxed)
    }

    /// Ends the connection, with its streams.
    pub fn close(&self) {
        self.shared.close.notify_one();
    }

    pub fn seen(&self) -> &Seen {
        &self.shared.seen
    }

    /// Sends, and awaits the final head. The response's body, when it is polled, sends what is left of the request.
    ///
    /// An error comes with whether the upstream has certainly not touched the request, and with what of the body it
    /// was not sent.
    pub async fn send(
        &self,
        head: &RequestHead,
        body: Body,
        on: Observer,
    ) -> Result<Response, (Reset, bool, Body)> {
        let request = match head::encode_request(head) {
            Ok(request) => request,
            Err(reset) => return Err((reset, false, body)),
        };
        let slot = Slot::new(&self.shared.streams, &self.shared.stats);
        let mut requests = self.requests.clone();
        let ready = poll_fn(|cx| requests.poll_ready(cx)).await;
        let end = body.is_end();
        let size = head::size(request.headers()) + head.authority.len() + head.path.len();
        let sent = match ready {
            Ok(()) => requests.send_request(request, end),
            Err(error) => Err(error),
        };
        let (response, stream) = match sent {
            Ok(sent) => sent,
            // Nothing went out.
            Err(error) => return Err((unsent(&error), true, body)),
        };
        let counted =
            self.shared.seen.streams.as_ref().map(|streams| streams.hold(stream.stream_id().into()));
        if let Some(counted) = &counted {
            on.progress.shares(counted.tally().clone());
        }
        let place = Arc::new(Place { _slot: slot, _counted: counted });
        on.progress.request_head.store(size as u64, Ordering::Relaxed);
        on.progress.request_header.store(size as u64, Ordering::Relaxed);
        on.progress.sending();
        let outgoing = if end {
            on.progress.sent();
            None
        } else {
            Some(Outgoing::new(stream, body, Side::Upstream))
        };
        let upgrade = head.upgrade.is_some();
        let held = head.is_upgrade();
        let upload =
            Upload { outgoing, held, stopped: false, progress: on.progress.clone(), _place: place.clone() };
        let shared = self.shared.clone();
        Exchange { response, upload, place, upgrade, shared }.run(on).await
    }
}

fn builder(settings: &Settings) -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .max_concurrent_streams(settings.max_concurrent_streams)
        .initial_max_send_streams(settings.max_concurrent_streams.min(STREAMS_BEFORE_SETTINGS) as usize)
        .initial_window_size(settings.initial_stream_window_size)
        .initial_connection_window_size(settings.initial_connection_window_size)
        .header_table_size(settings.hpack_table_size)
        .max_header_list_size(settings.max_headers_bytes)
        .max_send_buffer_size(settings.send_buffer)
        .reset_stream_duration(RESET_MEMORY);
    builder
}

/// Of a connection that takes no more requests.
fn unsent(error: &h2::Error) -> Reset {
    let reset = reset_of(error, Side::Upstream);
    Reset { reason: ResetReason::RemoteRefused, ..reset }
}

impl Shared {
    /// Whether a response may have these headers.
    fn check(&self, headers: &HeaderMap) -> Result<(), Reset> {
        if headers.len() > self.max_headers || head::longest(headers) > self.max_field_bytes {
            self.stats.header_overflow.inc();
            // As Envoy tells of a stream that its codec resets.
            return Err(Reset::new(Side::Upstream, ResetReason::Remote, ""));
        }
        if self.disallow_obs_text && head::has_obs_text(headers) {
            self.stats.rx_messaging_error.inc();
            return Err(Reset::new(Side::Upstream, ResetReason::Protocol, ""));
        }
        Ok(())
    }
}

/// Until the connection ends.
async fn drive(
    mut connection: Connection<Watched, Bytes>,
    mut pinger: Option<Pinger>,
    shared: &Shared,
) -> Option<Reset> {
    let end = poll_fn(|cx| {
        if let Some(pinger) = &mut pinger
            && pinger.poll(cx).is_ready()
        {
            shared.stats.keepalive_timeout.inc();
            return Poll::Ready(Some(keepalive_timeout(Side::Upstream)));
        }
        let end = ready!(Pin::new(&mut connection).poll(cx));
        Poll::Ready(end.err().map(|error| reset_of(&error, Side::Upstream)))
    });
    tokio::select! {
        end = end => end,
        () = shared.close.notified() => None,
    }
}

/// Of a stream on its connection, until nobody wants anything of it.
struct Place {
    _slot: Slot,
    _counted: Option<Hold>,
}

/// A request that went out, until the final head of its response.
struct Exchange {
    response: ResponseFuture,
    upload: Upload,
    place: Arc<Place>,
    upgrade: bool,
    shared: Arc<Shared>,
}

impl Exchange {
    async fn run(mut self, mut on: Observer) -> Result<Response, (Reset, bool, Body)> {
        match poll_fn(|cx| self.poll(cx, &mut on)).await {
            Ok(response) => {
                on.progress.receiving();
                let (parts, stream) = response.into_parts();
                let head = head::response(parts, self.upgrade);
                on.progress.response_head.store(head.size as u64, Ordering::Relaxed);
                on.progress.response_header.store(head.size as u64, Ordering::Relaxed);
                self.upload.answered(&head);
                let incoming = Incoming::new(stream, &head.headers, Side::Upstream);
                if incoming.is_end() && self.upload.outgoing.is_none() {
                    on.progress.received();
                    return Ok(Response { head, body: Body::empty() });
                }
                let progress = on.progress.clone();
                if !on.tunnel {
                    let upload = Some(self.upload);
                    let body = Receiving { incoming, upload, progress, _place: self.place };
                    return Ok(Response { head, body: Body::stream(body) });
                }
                let body = Receiving { incoming, upload: None, progress, _place: self.place };
                let mut upload = self.upload;
                let upload = poll_fn(move |cx| {
                    upload.poll(cx)?;
                    if upload.is_done() { Poll::Ready(Ok(())) } else { Poll::Pending }
                });
                Ok(Response { head, body: Body::tunnel(body, Box::pin(upload)) })
            }
            Err(reset) => {
                let untouched = reset.reason == ResetReason::RemoteRefused;
                let body = self.upload.outgoing.map_or_else(Body::empty, Outgoing::into_body);
                Err((reset, untouched, body))
            }
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        on: &mut Observer,
    ) -> Poll<Result<http::Response<h2::RecvStream>, Reset>> {
        self.upload.poll(cx)?;
        while let Poll::Ready(Some(Ok(interim))) = self.response.poll_informational(cx) {
            if let Some(tell) = &mut on.interim {
                tell(head::response(interim.into_parts().0, false));
            }
        }
        let response = ready!(Pin::new(&mut self.response).poll(cx));
        let response = response.map_err(|error| reset_of(&error, Side::Upstream))?;
        self.shared.check(response.headers())?;
        Poll::Ready(Ok(response))
    }
}

/// What is left of a request, until all of it went out.
struct Upload {
    outgoing: Option<Outgoing>,
    /// Raw bytes wait for the upstream's consent, as in HTTP/1.
    held: bool,
    /// By the upstream.
    stopped: bool,
    progress: Arc<Progress>,
    _place: Arc<Place>,
}

impl Upload {
    /// The response to what may be an upgrade.
    fn answered(&mut self, head: &ResponseHead) {
        if std::mem::take(&mut self.held) && !is_consent(head) {
            // It was a request without a body.
            self.outgoing = None;
            self.progress.sent();
        }
    }

    fn is_done(&self) -> bool {
        self.outgoing.is_none() || self.stopped
    }

    /// Fails where the request's own body broke.
    fn poll(&mut self, cx: &mut Context<'_>) -> Result<(), Reset> {
        let Some(outgoing) = self.outgoing.as_mut().filter(|_| !self.stopped && !self.held) else {
            return Ok(());
        };
        let poll = outgoing.poll(cx);
        self.progress.request_body.store(outgoing.data_bytes, Ordering::Relaxed);
        match poll {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(())) => {
                self.progress.sent();
                self.outgoing = None;
                Ok(())
            }
            Poll::Ready(Err(Broken::Stream(_))) => {
                // The upstream wants no more of it. What that means is for its response to say: RST_STREAM(NO_ERROR)
                // after a whole response is none. The body is kept: a refused request may be sent elsewhere.
                self.stopped = true;
                Ok(())
            }
            Poll::Ready(Err(Broken::Body(reset))) => {
                self.outgoing = None;
                Err(reset)
            }
        }
    }
}

fn is_consent(head: &ResponseHead) -> bool {
    head.status.is_success() || head.status == StatusCode::SWITCHING_PROTOCOLS
}

/// The response's body.
struct Receiving {
    incoming: Incoming,
    /// None: of a tunnel, whose other direction goes its own way.
    upload: Option<Upload>,
    progress: Arc<Progress>,
    _place: Arc<Place>,
}

impl http_body::Body for Receiving {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        let this = self.get_mut();
        if let Some(upload) = &mut this.upload {
            upload.poll(cx)?;
        }
        let frame = ready!(this.incoming.poll(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.progress.response_body.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        if this.incoming.is_end() {
            this.progress.received();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.hint()
    }
}

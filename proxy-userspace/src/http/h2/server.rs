//! A client's connection.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};

use super::keepalive::Pinger;
use super::receive::Incoming;
use super::send::{Broken, Outgoing};
use super::watch::{End, Seen, Watched};
use super::wire::{Hold, Wire};
use super::{Http2Stats, RESET_MEMORY, Settings, head, remote_reset, reset_of};
use crate::clock;
use crate::http::exchange::Sent;
use crate::http::{Body, Io, Request, Reset, ResetReason, ResponseHead};
use crate::telemetry::Side;
use crate::telemetry::stats::Held;

pub struct Server {
    connection: Connection<Watched, Bytes>,
    settings: Arc<Settings>,
    pinger: Option<Pinger>,
    seen: Arc<Seen>,
    /// For what was seen: the client is told.
    refused: bool,
    streams: Arc<AtomicUsize>,
}

impl Server {
    /// `early`: what was read already. Ready once the client's preface has come.
    pub async fn start(io: Io, early: Bytes, settings: Arc<Settings>) -> Result<Self, Reset> {
        let io = Watched::new(io, early, End::Server, &settings);
        let seen = io.seen().clone();
        let handshake = builder(&settings).handshake(io);
        let mut connection = handshake.await.map_err(|error| reset_of(&error, Side::Downstream))?;
        let pinger = Pinger::new(settings.keepalive, connection.ping_pong());
        Ok(Self { connection, settings, pinger, seen, refused: false, streams: Arc::default() })
    }

    /// The next request; none once the connection has ended in good order. Nothing on the connection moves but while
    /// this is awaited. It may be dropped and called again.
    pub async fn next(&mut self) -> Option<Result<(Request, Responder), Reset>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(Request, Responder), Reset>>> {
        if let Some(pinger) = &mut self.pinger
            && pinger.poll(cx).is_ready()
        {
            self.pinger = None;
            self.settings.stats.keepalive_timeout.inc();
            return Poll::Ready(Some(Err(keepalive_timeout(Side::Downstream))));
        }
        loop {
            let next = self.connection.poll_accept(cx);
            if let Some(violation) = self.seen.violation.get().filter(|_| !self.refused) {
                self.refused = true;
                self.connection.abrupt_shutdown(violation.reason());
                continue;
            }
            match next {
                // It was told, if there was room; it is not waited for.
                Poll::Pending if self.refused => return Poll::Ready(self.refusal().map(Err)),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(self.refusal().map(Err)),
                Poll::Ready(Some(Err(error))) => {
                    let reset = self.refusal().unwrap_or_else(|| reset_of(&error, Side::Downstream));
                    return Poll::Ready(Some(Err(reset)));
                }
                Poll::Ready(Some(Ok((request, respond)))) => {
                    if let Some(accepted) = self.accepted(request, respond) {
                        return Poll::Ready(Some(Ok(accepted)));
                    }
                }
            }
        }
    }

    fn accepted(
        &self,
        request: http::Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Option<(Request, Responder)> {
        let (parts, body) = request.into_parts();
        if parts.headers.len() > self.settings.max_headers
            || head::longest(&parts.headers) > self.settings.max_field_bytes
        {
            self.settings.stats.header_overflow.inc();
            respond.send_reset(Reason::INTERNAL_ERROR);
            return None;
        }
        if head::is_malformed(&parts)
            || (self.settings.disallow_obs_text && head::has_obs_text(&parts.headers))
        {
            self.settings.stats.rx_messaging_error.inc();
            respond.send_reset(Reason::PROTOCOL_ERROR);
            return None;
        }
        let body = Incoming::request(body, &parts.headers);
        let head = head::request(parts, self.settings.https);
        let upgrade = head.upgrade.is_some();
        let stream = respond.stream_id().into();
        let responder = Responder {
            respond,
            upgrade,
            counted: self.seen.streams.as_ref().map(|streams| streams.hold(stream)),
            _slot: Slot::new(&self.streams, &self.settings.stats),
        };
        Some((Request { head, body }, responder))
    }

    /// Told once.
    fn refusal(&mut self) -> Option<Reset> {
        let violation = self.seen.violation.get().filter(|_| std::mem::take(&mut self.refused))?;
        Some(Reset::new(Side::Downstream, ResetReason::Protocol, format!("http2.{}", violation.name())))
    }

    /// GOAWAY; streams that there are may finish.
    pub fn goaway(&mut self) {
        self.connection.graceful_shutdown();
    }

    /// GOAWAY, and the connection ends.
    pub fn abort(&mut self, reason: Reason) {
        self.connection.abrupt_shutdown(reason);
    }

    /// Whose [`Responder`] is not done.
    pub fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    pub fn seen(&self) -> &Seen {
        &self.seen
    }
}

fn builder(settings: &Settings) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(settings.max_concurrent_streams)
        .initial_window_size(settings.initial_stream_window_size)
        .initial_connection_window_size(settings.initial_connection_window_size)
        .header_table_size(settings.hpack_table_size)
        .max_header_list_size(settings.max_headers_bytes)
        .max_send_buffer_size(settings.send_buffer)
        // Else a burst of requests that are cancelled at once ends the connection; what is too many is counted here.
        .max_pending_accept_reset_streams(
            usize::try_from(settings.limits.premature_resets).unwrap_or(usize::MAX),
        )
        // CVE-2025-8671: those that it makes this end reset are no better.
        .max_local_error_reset_streams(usize::try_from(settings.limits.premature_resets / 2).ok())
        .reset_stream_duration(RESET_MEMORY);
    if settings.allow_connect {
        builder.enable_connect_protocol();
    }
    builder
}

pub(super) fn keepalive_timeout(side: Side) -> Reset {
    Reset::new(side, ResetReason::ConnectionTermination, "http2.ping_timeout")
}

/// Answers one request, from a task of its own. A stream whose responder is dropped before that is reset.
pub struct Responder {
    respond: SendResponse<Bytes>,
    upgrade: bool,
    counted: Option<Hold>,
    _slot: Slot,
}

impl Responder {
    /// A 1xx response.
    pub fn inform(&mut self, head: &ResponseHead) {
        // Fails where the stream has gone, which the final response is told too.
        let _ = self.respond.send_informational(head::encode_response(head, false));
    }

    /// The whole final response.
    pub async fn respond(&mut self, head: &ResponseHead, body: Body, sent: &mut Sent) -> Result<(), Reset> {
        let end = body.is_end();
        let response = head::encode_response(head, self.upgrade);
        sent.head_bytes = (3 + head::size(response.headers())) as u64;
        sent.header_bytes = sent.head_bytes;
        let stream =
            self.respond.send_response(response, end).map_err(|error| reset_of(&error, Side::Downstream))?;
        sent.head = true;
        sent.first_byte = Some(clock::lately());
        let mut outgoing = Outgoing::new(stream, body, Side::Downstream);
        let polled = poll_fn(|cx| {
            let poll = outgoing.poll(cx);
            // Whoever awaits this may give up in between.
            sent.body_bytes = outgoing.data_bytes;
            sent.trailer_bytes = outgoing.trailer_bytes;
            poll
        });
        let result = if end { Ok(()) } else { polled.await };
        sent.last_byte = Some(clock::lately());
        match result {
            Ok(()) => {
                sent.complete = true;
                Ok(())
            }
            Err(Broken::Stream(reset) | Broken::Body(reset)) => Err(reset),
        }
    }

    pub fn reset(&mut self, reason: Reason) {
        self.respond.send_reset(reason);
    }

    /// Resolves once the client has reset the stream or gone. Only before the final response.
    pub async fn gone(&mut self) -> Reset {
        poll_fn(|cx| self.poll_gone(cx)).await
    }

    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Reset> {
        self.respond.poll_reset(cx).map(|reason| match reason {
            Ok(reason) => remote_reset(reason, Side::Downstream),
            Err(error) => reset_of(&error, Side::Downstream),
        })
    }

    /// What went over the wire until now, if that is counted.
    pub fn wire(&self) -> Option<Wire> {
        self.counted.as_ref().map(|hold| hold.tally().wire())
    }

    pub fn stream_id(&self) -> u32 {
        self.respond.stream_id().into()
    }
}

/// One of the streams that are counted.
pub(super) struct Slot {
    streams: Arc<AtomicUsize>,
    _active: Held<Http2Stats>,
}

impl Slot {
    pub(super) fn new(streams: &Arc<AtomicUsize>, stats: &Arc<Http2Stats>) -> Self {
        streams.fetch_add(1, Ordering::Relaxed);
        Self { streams: streams.clone(), _active: Held::new(stats, |stats| &stats.streams_active) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

//! Which protocol a client speaks.

use std::future::poll_fn;
use std::task::{Poll, ready};

use bytes::{Bytes, BytesMut};
use proxy_config::model::http::hcm::Codec;

use super::account::Protocol;
use super::alarm::Alarm;
use super::{Served, closed};
use crate::clock;
use crate::http::{ConnCx, Io};
use crate::net::conn::reset_on_close;
use crate::net::socket::Socket;
use crate::telemetry::{Outcome, Side};

/// What a client of HTTP/2 says first.
const PREFACE: &[u8] = b"PRI * HTTP/2";
const READ: usize = 4 * 1024;

pub(super) struct Sniffed {
    pub(super) protocol: Protocol,
    /// Read on the way.
    pub(super) early: Bytes,
}

/// By the configuration, by ALPN, or by the client's first bytes; those are waited for in any case: before, there is no
/// codec in Envoy's accounts either.
pub(super) async fn run(io: &mut Io, early: Vec<u8>, served: &Served<'_>) -> Result<Sniffed, Outcome> {
    let mut read = BytesMut::from(Bytes::from(early));
    let told = told(&served.cx);
    let ends = poll_wait(io, &mut read, told, served).await?;
    let protocol = told.unwrap_or(ends);
    Ok(Sniffed { protocol, early: read.freeze() })
}

fn told(cx: &ConnCx) -> Option<Protocol> {
    match cx.hcm.model.codec {
        Codec::Http1 => Some(Protocol::Http1),
        Codec::Http2 => Some(Protocol::Http2),
        Codec::Auto => {
            let alpn = cx.connection.facts.tls.as_deref().and_then(|tls| tls.alpn.as_deref())?;
            Some(if alpn == "h2" { Protocol::Http2 } else { Protocol::Http1 })
        }
    }
}

/// Waits for the first bytes, and where nobody has told the protocol reads as many as tell it.
async fn poll_wait(
    io: &mut Io,
    read: &mut BytesMut,
    told: Option<Protocol>,
    served: &Served<'_>,
) -> Result<Protocol, Outcome> {
    let (mut alarm, model) = (Alarm::default(), &served.cx.hcm.model);
    let now = clock::now();
    let idle = model.common.idle_timeout.and_then(|limit| now.checked_add(limit));
    let duration = model.common.max_connection_duration.and_then(|limit| now.checked_add(limit));
    let limit = idle.into_iter().chain(duration).min();
    let mut drained = None;
    poll_fn(|cx| {
        if let Poll::Ready(known) = poll_bytes(io, read, told, cx) {
            return Poll::Ready(known);
        }
        if served.guard.poll_cut(cx).is_ready() {
            if let Socket::Tcp(socket) = io.socket()
                && served.guard.resets()
            {
                reset_on_close(socket);
            }
            return Poll::Ready(Err(closed(Side::Internal, "drain_timeout")));
        }
        // Its first request may be on its way: it has the time that any idle connection has.
        if drained.is_none() && served.guard.is_draining() {
            drained = clock::now().checked_add(model.timeouts.drain);
        }
        let next = limit.into_iter().chain(drained).min();
        ready!(alarm.poll(next, cx));
        let stats = &served.cx.hcm.stats;
        Poll::Ready(Err(if next == drained {
            closed(Side::Internal, "drained")
        } else if next == idle {
            stats.downstream_cx_idle_timeout.inc();
            closed(Side::Internal, "idle_timeout")
        } else {
            stats.downstream_cx_max_duration_reached.inc();
            closed(Side::Internal, "max_connection_duration")
        }))
    })
    .await
}

fn poll_bytes(
    io: &mut Io,
    read: &mut BytesMut,
    told: Option<Protocol>,
    cx: &mut std::task::Context<'_>,
) -> Poll<Result<Protocol, Outcome>> {
    loop {
        if let Some(protocol) = judge(read, told) {
            return Poll::Ready(Ok(protocol));
        }
        let mut wire = io.wire();
        if wire.is_raw() {
            // Who waits has no buffer, and the codec reads by itself where it is known.
            ready!(wire.socket.poll_read_ready(cx))
                .map_err(|_| closed(Side::Downstream, "downstream_reset"))?;
            if let Some(told) = told {
                return Poll::Ready(Ok(told));
            }
        }
        let filled = read.len();
        read.resize(filled + READ, 0);
        let polled = wire.poll_read(cx, &mut read[filled..]);
        let n = if let Poll::Ready(Ok(n)) = polled { n } else { 0 };
        read.truncate(filled + n);
        match ready!(polled) {
            // What has come may still be a request's beginning, which the codec has to refuse.
            Ok(0) if filled > 0 => return Poll::Ready(Ok(Protocol::Http1)),
            Ok(0) => return Poll::Ready(Err(closed(Side::Downstream, "downstream_closed"))),
            Ok(_) => {}
            Err(_) => return Poll::Ready(Err(closed(Side::Downstream, "downstream_reset"))),
        }
    }
}

/// None: more bytes are needed.
fn judge(read: &[u8], told: Option<Protocol>) -> Option<Protocol> {
    if read.is_empty() {
        None
    } else if told.is_some() {
        told
    } else if read.starts_with(PREFACE) {
        Some(Protocol::Http2)
    } else if PREFACE.starts_with(read) {
        None
    } else {
        Some(Protocol::Http1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_the_protocol() {
        for (read, expected) in [
            (&b""[..], None),
            (b"P", None),
            (b"PRI * HTTP/", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Protocol::Http2)),
            (b"PRI * HTTP/1", Some(Protocol::Http1)),
            (b"POST", Some(Protocol::Http1)),
            (b"GET / HTTP/1.1\r\n", Some(Protocol::Http1)),
        ] {
            assert_eq!(judge(read, None), expected, "{read:?}");
        }
        assert_eq!(judge(b"P", Some(Protocol::Http1)), Some(Protocol::Http1));
        assert_eq!(judge(b"", Some(Protocol::Http2)), None);
    }
}

//! `istio.metadata_exchange`: two peers that have agreed on its ALPN protocol begin by telling each other who they are.
//!
//! It is a layer around a connection's TLS, so that whatever reads and writes the connection knows nothing of it. Our own
//! part is sent at once, since a peer may wait for it before it tells its own; what comes is held back until the peer's
//! is there, or is seen not to be.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use proxy_config::model::http::istio::MetadataExchange;

use super::wire::{self, Preamble};
use super::{Local, Peer};
use crate::net::socket::Socket;
use crate::telemetry::stats::{Stats, stats_block};
use crate::transport::{CloseEvent, Failure, TlsInfo, Transport};

stats_block! {
    /// `metadata_exchange.`
    pub struct ExchangeStats {
        counter alpn_protocol_found;
        counter alpn_protocol_not_found;
        counter header_not_found;
        counter initial_header_not_found;
        counter metadata_added;
    }
}

/// The peer of one connection, once it is known.
#[derive(Debug, Default)]
pub struct Slot(OnceLock<Option<Arc<Peer>>>);

/// The filter, down- or upstream.
pub struct Exchange {
    protocol: Arc<str>,
    additional_labels: Vec<Arc<str>>,
    /// What we tell.
    preamble: Arc<[u8]>,
    stats: Arc<ExchangeStats>,
}

impl Slot {
    pub fn of(peer: Arc<Peer>) -> Self {
        Self(OnceLock::from(Some(peer)))
    }

    /// It is known, or known that nobody will tell.
    pub fn is_settled(&self) -> bool {
        self.0.get().is_some()
    }

    pub fn peer(&self) -> Option<&Arc<Peer>> {
        self.0.get()?.as_ref()
    }

    pub fn settle(&self, peer: Option<Arc<Peer>>) {
        // The first word counts.
        let _ = self.0.set(peer);
    }
}

impl Exchange {
    pub fn new(model: &MetadataExchange, local: &Local, stats: &Stats) -> Self {
        let told = local.peer(&model.additional_labels).told();
        Self {
            protocol: model.protocol.clone(),
            additional_labels: model.additional_labels.clone(),
            preamble: wire::preamble(told, &local.id).into(),
            stats: stats.block("metadata_exchange"),
        }
    }

    /// Takes part in a connection whose transport is ready.
    pub fn enter(self: &Arc<Self>, transport: &mut Option<Box<dyn Transport>>) -> Arc<Slot> {
        let slot = Arc::<Slot>::default();
        let agreed = |transport: &mut Box<dyn Transport>| {
            transport.tls().is_some_and(|tls| tls.alpn.as_deref() == Some(&*self.protocol))
        };
        match transport.take_if(agreed) {
            Some(inner) => {
                self.stats.alpn_protocol_found.inc();
                self.stats.metadata_added.inc();
                let (exchange, slot) = (self.clone(), slot.clone());
                let reading = Reading::Preamble(Vec::new());
                *transport =
                    Some(Box::new(Layer { inner, exchange, sent: 0, flushed: false, reading, slot }));
            }
            None => {
                self.stats.alpn_protocol_not_found.inc();
                slot.settle(None);
            }
        }
        slot
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Exchange").field(&self.protocol).finish()
    }
}

struct Layer {
    inner: Box<dyn Transport>,
    exchange: Arc<Exchange>,
    /// How much of our preamble.
    sent: usize,
    flushed: bool,
    reading: Reading,
    slot: Arc<Slot>,
}

enum Reading {
    /// As far as it has come.
    Preamble(Vec<u8>),
    /// What came behind it, and how much of that was passed on.
    Behind(Vec<u8>, usize),
    Done,
}

const CHUNK: usize = 4 * 1024;

impl Layer {
    fn poll_tell(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        while let Some(rest @ [_, ..]) = self.exchange.preamble.get(self.sent..) {
            self.sent += ready!(self.inner.poll_write(cx, socket, rest))?;
        }
        if !self.flushed {
            ready!(self.inner.poll_flush(cx, socket))?;
            self.flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready once the peer has told who it is, or has not.
    fn poll_told(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        while let Reading::Preamble(got) = &mut self.reading {
            let mut chunk = [0; CHUNK];
            let n = ready!(self.inner.poll_read(cx, socket, &mut chunk))?;
            got.extend(chunk.get(..n).unwrap_or_default());
            let stats = &self.exchange.stats;
            let (peer, length) = match wire::read_preamble(got) {
                Preamble::Partial if n > 0 => continue,
                Preamble::Partial | Preamble::Other => {
                    stats.initial_header_not_found.inc();
                    (None, 0)
                }
                Preamble::TooLong(length) => {
                    stats.header_not_found.inc();
                    self.slot.settle(None);
                    let why = format!("{} of {length} bytes", self.exchange.protocol);
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
                }
                Preamble::Whole { told: None, length } => {
                    stats.header_not_found.inc();
                    (None, length)
                }
                Preamble::Whole { told: Some(told), length } => {
                    (Some(Arc::new(Peer::of(&told, &self.exchange.additional_labels))), length)
                }
            };
            self.slot.settle(peer);
            self.reading = Reading::Behind(std::mem::take(got), length);
        }
        Poll::Ready(Ok(()))
    }
}

impl Transport for Layer {
    fn poll_ready(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx, socket)
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if !self.flushed
            && let Poll::Ready(Err(error)) = self.poll_tell(cx, socket)
        {
            return Poll::Ready(Err(error));
        }
        ready!(self.poll_told(cx, socket))?;
        if let Reading::Behind(got, at) = &mut self.reading {
            let rest = got.get(*at..).unwrap_or_default();
            let n = rest.len().min(buf.len());
            if let (Some(to), Some(from)) = (buf.get_mut(..n), rest.get(..n)) {
                to.copy_from_slice(from);
            }
            *at += n;
            if *at >= got.len() {
                self.reading = Reading::Done;
            }
            if n > 0 {
                return Poll::Ready(Ok(n));
            }
        }
        self.inner.poll_read(cx, socket, buf)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_tell(cx, socket))?;
        self.inner.poll_write(cx, socket, data)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_tell(cx, socket))?;
        self.inner.poll_flush(cx, socket)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_tell(cx, socket))?;
        self.inner.poll_shutdown(cx, socket)
    }

    fn start_secure(&mut self) -> bool {
        self.inner.start_secure()
    }

    fn tls(&self) -> Option<&Arc<TlsInfo>> {
        self.inner.tls()
    }

    fn closed(&mut self, socket: Socket<'_>, by: CloseEvent) {
        self.inner.closed(socket, by);
    }
}

//! An exchange that became raw bytes.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::{Client, Open};
use crate::http::{Body, Reset};

/// An exchange whose directions end each by itself.
pub(super) struct Tunnel<D> {
    /// None: neither goes on.
    open: Option<Open<D>>,
    /// The response is complete.
    ended: bool,
    /// Why the request is not.
    broken: Option<Reset>,
}

impl<D: FnOnce(Client) + Send + 'static> Tunnel<D> {
    pub(super) fn body(open: Open<D>) -> Body {
        let tunnel = Arc::new(Mutex::new(Self { open: Some(open), ended: false, broken: None }));
        let upload = tunnel.clone();
        let upload = poll_fn(move |cx| lock(&upload).poll_upload(cx));
        Body::tunnel(TunnelBody(tunnel), Box::pin(upload))
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Reset>> {
        let Some(open) = &mut self.open else { return Poll::Ready(Ok(())) };
        if let Err(reset) = open.exchange.poll_request(cx) {
            self.broken = Some(reset.clone());
            self.cut();
            return Poll::Ready(Err(reset));
        }
        if !open.exchange.is_sent() {
            return Poll::Pending;
        }
        self.end();
        Poll::Ready(Ok(()))
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        if let Some(reset) = self.broken.take() {
            self.ended = true;
            return Poll::Ready(Some(Err(reset)));
        }
        let Some(open) = self.open.as_mut().filter(|_| !self.ended) else { return Poll::Ready(None) };
        let poll = open.exchange.poll_frame(&mut open.reader, cx);
        if matches!(poll, Poll::Ready(Some(Err(_)))) {
            self.ended = true;
            self.cut();
        } else if open.reader.is_done() {
            self.ended = true;
            open.exchange.observer.progress.received();
            self.end();
        }
        poll
    }

    /// Once both directions are complete.
    fn end(&mut self) {
        let done = |open: &mut Open<D>| self.ended && open.exchange.is_sent();
        if let Some(open) = self.open.take_if(done) {
            open.exchange.end(open.persists, open.done);
        }
    }
}

impl<D> Tunnel<D> {
    /// What is behind raw bytes must not take their end for a good one.
    fn cut(&mut self) {
        if let Some(open) = self.open.take()
            && open.exchange.writer.is_raw()
        {
            open.exchange.client.conn().io.socket().reset_on_close();
        }
    }
}

impl<D> Drop for Tunnel<D> {
    fn drop(&mut self) {
        self.cut();
    }
}

fn lock<D>(tunnel: &Mutex<Tunnel<D>>) -> MutexGuard<'_, Tunnel<D>> {
    tunnel.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Both directions are of one task.
struct TunnelBody<D>(Arc<Mutex<Tunnel<D>>>);

impl<D: FnOnce(Client) + Send + 'static> http_body::Body for TunnelBody<D> {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        lock(&self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.0).ended
    }

    fn size_hint(&self) -> SizeHint {
        let tunnel = lock(&self.0);
        tunnel
            .open
            .as_ref()
            .filter(|_| !tunnel.ended)
            .map_or(SizeHint::with_exact(0), |open| open.reader.size_hint())
    }
}

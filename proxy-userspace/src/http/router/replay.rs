//! A request's body that may be sent more than once: what was read of it is kept, up to a limit.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use crate::http::{Body, Reset, ResetReason};
use crate::telemetry::Side;
use crate::telemetry::stats::ClusterStats;

/// The request's body.
pub(super) enum Payload {
    Empty,
    Once(Body),
    Again(Replay),
}

impl Payload {
    /// For a mirror, while the request goes its way.
    pub(super) fn copy(&self) -> Body {
        match self {
            Self::Empty | Self::Once(_) => Body::empty(),
            Self::Again(replay) => replay.follow(),
        }
    }

    /// For another route, where all of it is there.
    pub(super) fn again(&self) -> Option<Body> {
        match self {
            Self::Empty => Some(Body::empty()),
            Self::Once(_) => None,
            Self::Again(replay) => replay.pass(),
        }
    }

    /// For an attempt. None: it was sent, and is gone.
    pub(super) fn next(&mut self) -> Option<Body> {
        match self {
            Self::Empty => Some(Body::empty()),
            Self::Once(body) if body.is_end() => None,
            Self::Once(body) => Some(body.take()),
            Self::Again(replay) => replay.pass(),
        }
    }
}

impl Payload {
    pub(super) fn is_lost(&self) -> bool {
        match self {
            Self::Empty => false,
            Self::Once(_) => true,
            Self::Again(replay) => replay.is_lost(),
        }
    }
}

/// All attempts are of one task: the lock is never waited for.
#[derive(Clone)]
pub(super) struct Replay(Arc<Mutex<Kept>>);

struct Kept {
    source: Body,
    frames: Vec<Kind>,
    size: usize,
    limit: usize,
    /// What the client has said that it will be. What is sent again is framed as the first time.
    exact: Option<u64>,
    stats: Arc<ClusterStats>,
    ended: bool,
    /// More came than is kept: it cannot be sent again.
    lost: bool,
    /// Nobody reads on.
    abandoned: bool,
    /// Of those who follow.
    followers: Vec<Waker>,
}

#[derive(Clone)]
enum Kind {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// One time through it.
struct Pass {
    kept: Replay,
    at: usize,
    /// Bytes that it has passed on.
    passed: u64,
    /// It reads on where nothing is kept; the others wait for it.
    leads: bool,
}

impl Replay {
    pub(super) fn new(source: Body, limit: usize, stats: Arc<ClusterStats>) -> Self {
        let frames = Vec::new();
        Self(Arc::new(Mutex::new(Kept {
            exact: source.exact_len(),
            stats,
            source,
            frames,
            size: 0,
            limit,
            ended: false,
            lost: false,
            abandoned: false,
            followers: Vec::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From its beginning. None: it is no longer there.
    pub(super) fn pass(&self) -> Option<Body> {
        let mut kept = self.lock();
        if kept.lost {
            return None;
        }
        kept.abandoned = false;
        if kept.frames.is_empty() && (kept.ended || kept.source.is_end()) {
            return Some(Body::empty());
        }
        drop(kept);
        Some(Body::stream(Pass { kept: self.clone(), at: 0, passed: 0, leads: true }))
    }

    /// A copy of it, as it comes.
    pub(super) fn follow(&self) -> Body {
        Body::stream(Pass { kept: self.clone(), at: 0, passed: 0, leads: false })
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lock().lost
    }
}

impl Kept {
    fn wake(&mut self) {
        self.followers.drain(..).for_each(Waker::wake);
    }

    fn keep(&mut self, kind: Kind) {
        self.size += match &kind {
            Kind::Data(data) => data.len(),
            Kind::Trailers(_) => 0,
        };
        if self.size > self.limit && !self.lost {
            self.lost = true;
            self.stats.retry_or_shadow_abandoned.inc();
        }
        if self.lost {
            self.frames = Vec::new();
        } else {
            self.frames.push(kind);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.leads {
            let mut kept = self.kept.lock();
            kept.abandoned = true;
            kept.wake();
        }
    }
}

impl http_body::Body for Pass {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        let this = self.get_mut();
        let mut kept = this.kept.lock();
        if !kept.lost
            && let Some(kind) = kept.frames.get(this.at)
        {
            this.at += 1;
            return Poll::Ready(Some(Ok(match kind {
                Kind::Data(data) => {
                    this.passed += data.len() as u64;
                    Frame::data(data.clone())
                }
                Kind::Trailers(trailers) => Frame::trailers(trailers.clone()),
            })));
        }
        if !this.leads && (kept.lost || kept.abandoned && !kept.ended) {
            let reset = Reset::new(Side::Downstream, ResetReason::Local, "mirror abandoned");
            return Poll::Ready(Some(Err(reset)));
        }
        if kept.ended {
            return Poll::Ready(None);
        }
        if !this.leads {
            kept.followers.push(cx.waker().clone());
            return Poll::Pending;
        }
        let poll = kept.source.poll(cx);
        match &poll {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    let data = data.clone();
                    this.passed += data.len() as u64;
                    kept.keep(Kind::Data(data));
                } else if let Some(trailers) = frame.trailers_ref() {
                    let trailers = trailers.clone();
                    kept.keep(Kind::Trailers(trailers));
                }
                this.at += 1;
            }
            Poll::Ready(None) => kept.ended = true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        kept.ended |= kept.source.is_end();
        if poll.is_ready() {
            kept.wake();
        }
        poll
    }

    fn is_end_stream(&self) -> bool {
        let kept = self.kept.lock();
        kept.ended && (kept.lost || self.at >= kept.frames.len())
    }

    fn size_hint(&self) -> http_body::SizeHint {
        let exact = self.kept.lock().exact;
        exact.map_or_else(http_body::SizeHint::default, |exact| {
            http_body::SizeHint::with_exact(exact.saturating_sub(self.passed))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(mut body: Body) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(frame) = body.frame().await {
            all.extend_from_slice(frame.unwrap().data_ref().unwrap());
        }
        all
    }

    #[tokio::test]
    async fn it_is_sent_again_while_it_is_kept() {
        let replay = Replay::new(Body::full("hello"), 5, Arc::default());
        let first = replay.pass().unwrap();
        assert_eq!(first.exact_len(), Some(5));
        assert_eq!(read(first).await, b"hello");
        let second = replay.pass().unwrap();
        assert_eq!(second.exact_len(), Some(5));
        assert_eq!(read(second).await, b"hello");
        assert_eq!(read(Replay::new(Body::empty(), 0, Arc::default()).pass().unwrap()).await, b"");
    }

    #[tokio::test]
    async fn what_is_too_large_is_sent_once() {
        let replay = Replay::new(Body::full("hello"), 4, Arc::default());
        assert_eq!(read(replay.pass().unwrap()).await, b"hello");
        assert!(replay.pass().is_none() && replay.is_lost());
    }
}

//! A body that comes no faster than so many bytes a second.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use crate::clock::{self, Instant};
use crate::http::{Body, Reset};

/// So often something goes on, as in Envoy.
const TICK: Duration = Duration::from_millis(50);

pub(super) fn throttled(body: Body, bytes_per_second: u64) -> Body {
    let rate = bytes_per_second.max(1);
    let tick = (rate / 20).max(1);
    Body::stream(Throttled { body, rate, level: tick, at: clock::now(), held: Bytes::new(), sleep: None })
}

struct Throttled {
    body: Body,
    /// In bytes a second.
    rate: u64,
    /// What may go now.
    level: u64,
    at: Instant,
    /// What may not.
    held: Bytes,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Throttled {
    fn fill(&mut self) {
        let now = clock::now();
        let since = now.saturating_duration_since(self.at);
        let gained = u128::from(self.rate) * since.as_nanos() / 1_000_000_000;
        if gained > 0 {
            // No more than a second's worth is ever saved up.
            self.level = self.level.saturating_add(u64::try_from(gained).unwrap_or(u64::MAX)).min(self.rate);
            self.at = now;
        }
    }

    fn take(&mut self) -> Bytes {
        let part = usize::try_from(self.level).unwrap_or(usize::MAX).min(self.held.len());
        self.level -= part as u64;
        self.held.split_to(part)
    }
}

impl http_body::Body for Throttled {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        let this = self.get_mut();
        if this.held.is_empty() {
            match ready!(this.body.poll(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.held = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                other => return Poll::Ready(other),
            }
        }
        loop {
            if let Some(sleep) = &mut this.sleep {
                ready!(sleep.as_mut().poll(cx));
                this.sleep = None;
            }
            this.fill();
            if this.level > 0 || this.held.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(this.take()))));
            }
            this.sleep = Some(Box::pin(sleep(TICK)));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.body.exact_len() {
            Some(rest) => SizeHint::with_exact(rest + self.held.len() as u64),
            None => SizeHint::default(),
        }
    }
}

//! Watches a pool's idle connections: for their peers' close, for their time.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Weak;
use std::task::Poll;
use std::time::Duration;

use tokio::time::sleep_until;

use super::state::Pool;
use crate::clock;

/// So long a pool without a connection is kept for those that may come.
const EMPTY: Duration = Duration::from_secs(5);
/// Looks that are far between cost nothing, and need no other time-out to be far away.
const LONGEST: Duration = Duration::from_secs(60);

pub(super) async fn run(pool: Weak<Pool>) {
    let mut sleep = pin!(sleep_until(clock::now() + LONGEST));
    // When it was first seen without a connection.
    let mut empty = None;
    poll_fn(|cx| {
        let Some(pool) = pool.upgrade() else { return Poll::Ready(()) };
        loop {
            let now = clock::now();
            let look = pool.look(cx);
            empty = look.empty.then(|| empty.unwrap_or(now));
            let mut next = look.next.map_or(now + LONGEST, |next| next.min(now + LONGEST));
            if let Some(since) = empty {
                if since + EMPTY <= now {
                    if let Some(cluster) = pool.cluster() {
                        cluster.pools().forget(&pool);
                    }
                    return Poll::Ready(());
                }
                next = next.min(since + EMPTY);
            }
            pool.looks_at(next);
            sleep.as_mut().reset(next);
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await;
}

//! What a pool has: connections that are free, requests that wait for one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;

use tokio::sync::oneshot;

use super::lease::Link;
use super::life::Life;
use super::state::{Pool, Refused, Taken};
use crate::clock::Instant;
use crate::http::{h1, h2};

#[derive(Default)]
pub(super) struct State {
    /// Of HTTP/1; that which was used last is the last.
    pub(super) idle: Vec<Idle>,
    /// Of HTTP/2, while they take streams.
    pub(super) shared: Vec<Sharing>,
    pub(super) waiting: VecDeque<oneshot::Sender<Result<Taken, Refused>>>,
    /// How many requests those that are being connected are expected to take.
    pub(super) expected: usize,
    /// How many have a connection.
    pub(super) active: usize,
    pub(super) draining: bool,
    /// When the keeper will look next.
    pub(super) next_look: Option<Instant>,
}

pub(super) struct Idle {
    pub(super) client: h1::Client,
    pub(super) life: Arc<Life>,
    pub(super) since: Instant,
}

pub(super) struct Sharing {
    pub(super) client: h2::Client,
    pub(super) life: Arc<Life>,
    /// Since when no stream was on it, as far as was looked.
    pub(super) idle: Option<Instant>,
}

impl State {
    /// A stream of a connection of HTTP/2.
    pub(super) fn shared(&mut self, gone: &mut Vec<Arc<Life>>) -> Option<Taken> {
        if self.shared.is_empty() {
            return None;
        }
        self.shared.retain(|sharing| {
            let closing = sharing.client.is_closing();
            if closing {
                gone.push(sharing.life.clone());
            }
            !closing
        });
        let room = |sharing: &Sharing| {
            // What was handed out and has not begun yet is not among its streams.
            let begun = sharing.client.streams();
            let promised = (sharing.life.active() as usize).saturating_sub(begun);
            sharing.client.capacity() > promised
        };
        let at = self.shared.iter().position(room)?;
        let sharing = self.shared.get_mut(at)?;
        sharing.idle = None;
        let (client, life) = (sharing.client.clone(), sharing.life.clone());
        self.active += 1;
        if !life.begin() {
            self.shared.swap_remove(at);
        }
        Some(Taken { link: Link::Http2(client), life })
    }

    pub(super) fn next_waiting(
        &mut self,
        wanted: &AtomicBool,
    ) -> Option<oneshot::Sender<Result<Taken, Refused>>> {
        let next = self.waiting.pop_front();
        if self.waiting.is_empty() {
            wanted.store(false, Ordering::Relaxed);
        }
        next
    }

    /// Envoy's `shouldConnect`.
    pub(super) fn wants_more(&self, preconnect: f64) -> bool {
        let waiting = self.waiting.iter().filter(|waiting| !waiting.is_closed()).count();
        if waiting == 0 && (preconnect <= 1.0 || self.draining) {
            return false;
        }
        // A peer that allows for any number of streams has no end of room.
        let sharing = self.shared.iter().map(|sharing| sharing.client.capacity());
        let ready = sharing.fold(self.idle.len().saturating_add(self.expected), usize::saturating_add);
        (waiting + self.active) as f64 * preconnect > ready.saturating_add(self.active) as f64
    }

    pub(super) fn look_idle(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        pool: &Pool,
        gone: &mut Vec<Arc<Life>>,
    ) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        self.idle.retain_mut(|idle| {
            if idle.client.poll_idle(cx).is_ready() {
                idle.life.ended_remotely();
                gone.push(idle.life.clone());
                return false;
            }
            match pool.idle_out(idle.since, &idle.life, now) {
                Ok(at) => {
                    next = next.into_iter().chain(at).min();
                    true
                }
                Err(()) => {
                    gone.push(idle.life.clone());
                    false
                }
            }
        });
        next
    }

    pub(super) fn look_shared(
        &mut self,
        now: Instant,
        pool: &Pool,
        gone: &mut Vec<Arc<Life>>,
    ) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        self.shared.retain_mut(|sharing| {
            // Streams came and went unseen: they are looked for again after a whole time-out.
            let since = match sharing.idle {
                Some(since) if sharing.life.active() == 0 => since,
                Some(_) | None => now,
            };
            sharing.idle = Some(since);
            match pool.idle_out(since, &sharing.life, now) {
                Ok(at) => {
                    next = next.into_iter().chain(at).min();
                    true
                }
                Err(()) => {
                    gone.push(sharing.life.clone());
                    false
                }
            }
        });
        next
    }
}

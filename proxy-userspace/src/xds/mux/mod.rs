//! What is asked of one server, what it has said, and what it is told next: xDS without I/O and without a clock.
//!
//! Subscriptions go in, and responses; requests come out ([`Mux::request`]) and what consumers are to be told
//! ([`Delivery`]). How consumers have taken it goes in again ([`Mux::applied`]) and becomes an ACK or a NACK. One
//! type of resource never waits for another one, but where it is told to ([`Mux::pause`]).

mod interest;
mod known;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proxy_config::xds::wire::{DeltaRequest, Response, SotwRequest};
use proxy_config::xds::{Kind, RawResource};

use self::state::State;
use super::{Failure, Names};
use crate::clock::Instant;

/// `W`: who is told.
pub(super) struct Mux<W> {
    terms: Terms,
    kinds: BTreeMap<Kind, State<W>>,
    /// Counts the streams.
    stream: u64,
    node_sent: bool,
    next: u64,
    deadlines: BTreeSet<(Instant, Kind, Due)>,
    /// What is asked for was said already, and is not known any more.
    restart: bool,
}

/// How the server is spoken to.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) delta: bool,
    /// `set_node_on_first_message_only`.
    pub(super) node_once: bool,
    /// Encoded.
    pub(super) node: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct WatchId(u64);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// A first answer.
    First(WatchId),
    /// News of a resource that has a TTL.
    News(Arc<str>),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Request {
    Sotw(SotwRequest),
    Delta(DeltaRequest),
}

/// Something for the consumers of a type, in its order.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) kind: Kind,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// For whoever has asked for something in it. It is to be answered.
    Response(Received),
    /// For one that has come later: the server does not say it again.
    Known(WatchId, RawResource),
    /// Nothing was heard of it for too long.
    Expired(Arc<str>),
    /// For one, or for all of the type.
    Failed(Option<WatchId>, Failure),
}

/// A response of the server.
#[derive(Debug)]
pub(super) struct Received {
    stream: u64,
    pub(super) version: Arc<str>,
    nonce: Arc<str>,
    pub(super) resources: Vec<RawResource>,
    pub(super) removed: Vec<Arc<str>>,
    /// Of a whole state of the world.
    pub(super) whole: bool,
    /// It cannot be read: everybody refuses it.
    pub(super) unreadable: Option<String>,
}

/// One that is to be told.
#[derive(Debug, PartialEq)]
pub(super) struct Call<W> {
    pub(super) watch: WatchId,
    pub(super) to: W,
    pub(super) part: Part,
}

/// Which part of a delivery concerns a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    All,
    /// One resource, by its index.
    Resource(usize),
    /// One name, by its index.
    Removed(usize),
}

impl<W: Clone> Mux<W> {
    pub(super) fn new(terms: Terms) -> Self {
        Self {
            terms,
            kinds: BTreeMap::new(),
            stream: 0,
            node_sent: false,
            next: 0,
            deadlines: BTreeSet::new(),
            restart: false,
        }
    }

    /// `limit`: how long a first answer is waited for. What is known already is delivered at once.
    pub(super) fn subscribe(
        &mut self,
        kind: Kind,
        names: Names,
        to: W,
        limit: Option<Duration>,
        now: Instant,
    ) -> (WatchId, Option<Delivery>) {
        let id = WatchId(self.next);
        self.next += 1;
        let deadline = limit.and_then(|limit| Some((now.checked_add(limit)?, limit)));
        let state = self.kinds.entry(kind).or_default();
        self.restart |= names == Names::All && state.has_told_all();
        let known = state.subscribe(id, names, to, deadline);
        if let Some((at, _)) = deadline {
            self.deadlines.insert((at, kind, Due::First(id)));
        }
        (id, known.map(|resource| Delivery { kind, what: What::Known(id, resource) }))
    }

    pub(super) fn unsubscribe(&mut self, kind: Kind, id: WatchId) {
        if let Some(state) = self.kinds.get_mut(&kind)
            && let Some(at) = state.unsubscribe(id)
        {
            self.deadlines.remove(&(at, kind, Due::First(id)));
        }
    }

    /// Whether a new stream is needed: somebody who wants everything of a type has come after it was said. Asked
    /// once.
    pub(super) fn take_restart(&mut self) -> bool {
        std::mem::take(&mut self.restart)
    }

    /// A stream has begun: everything is asked anew.
    pub(super) fn connected(&mut self) {
        self.restart = false;
        self.stream += 1;
        self.node_sent = false;
        self.kinds.values_mut().for_each(State::restart);
    }

    /// The stream has ended, or could not begin. What was known stays.
    pub(super) fn disconnected(&mut self, failure: &Failure) -> Vec<Delivery> {
        self.stream += 1;
        let asking = self.kinds.iter().filter(|(_, state)| !state.is_idle());
        asking.map(|(kind, _)| Delivery { kind: *kind, what: What::Failed(None, failure.clone()) }).collect()
    }

    /// Requests of a type wait until it is resumed as often as it was paused.
    pub(super) fn pause(&mut self, kind: Kind) {
        self.kinds.entry(kind).or_default().paused += 1;
    }

    pub(super) fn resume(&mut self, kind: Kind) {
        let state = self.kinds.entry(kind).or_default();
        state.paused = state.paused.saturating_sub(1);
    }

    /// What is to be sent next, in the order of types.
    pub(super) fn request(&mut self) -> Option<Request> {
        let (delta, mut found) = (self.terms.delta, None);
        for (kind, state) in self.kinds.iter_mut().filter(|(_, state)| state.paused == 0) {
            found = if delta {
                state.delta_request(*kind).map(Request::Delta)
            } else {
                state.sotw_request(*kind).map(Request::Sotw)
            };
            if found.is_some() {
                break;
            }
        }
        let with_node = !(self.node_sent && self.terms.node_once);
        let node = with_node.then(|| self.terms.node.clone());
        match found.as_mut()? {
            Request::Sotw(request) => request.node = node,
            Request::Delta(request) => request.node = node,
        }
        self.node_sent = true;
        found
    }

    /// How many types have something to send: `control_plane.pending_requests`.
    pub(super) fn pending(&self) -> usize {
        self.kinds.values().filter(|state| state.has_request()).count()
    }

    /// The server has said something. `None` where nobody is to be told; it is answered all the same. `Err`: nobody
    /// has ever asked for that.
    pub(super) fn response(&mut self, response: Response, now: Instant) -> Result<Option<Delivery>, String> {
        let Some(kind) = response.kind.filter(|kind| self.kinds.contains_key(kind)) else {
            return Err(format!("{:?}, which nobody has asked for", response.type_url));
        };
        let (stream, delta) = (self.stream, self.terms.delta);
        let state = self.kinds.entry(kind).or_default();
        let (received, refreshed) = state.receive(response, (stream, delta));
        let deadlines = &mut self.deadlines;
        for (name, ttl) in refreshed {
            let expires = ttl.and_then(|ttl| now.checked_add(ttl));
            state.known.refresh(&name, expires, |at, due| due_news(deadlines, kind, &name, at, due));
        }
        match received {
            Some(received) if !state.is_idle() => Ok(Some(Delivery { kind, what: What::Response(received) })),
            Some(received) => {
                state.answer(&received, None);
                Ok(None)
            }
            None => Ok(None),
        }
    }

    /// Who is to be told of a delivery, as of now.
    pub(super) fn audience(&self, delivery: &Delivery) -> Vec<Call<W>> {
        let Some(state) = self.kinds.get(&delivery.kind) else { return Vec::new() };
        match &delivery.what {
            What::Response(received) if received.unreadable.is_some() => state.everyone(),
            What::Response(received) => state.audience(received),
            What::Known(id, _) | What::Failed(Some(id), _) => state.one(*id),
            What::Failed(None, _) => state.everyone(),
            What::Expired(name) => state.removal(name),
        }
    }

    /// How the calls of a response went: it is answered, where its stream is still there.
    pub(super) fn applied(
        &mut self,
        kind: Kind,
        received: &Received,
        results: &[(WatchId, Part, Result<(), String>)],
        now: Instant,
    ) -> Option<String> {
        let (stream, delta) = (self.stream, self.terms.delta);
        let state = self.kinds.get_mut(&kind)?;
        let deadlines = &mut self.deadlines;
        for (id, ..) in results {
            if let Some(at) = state.answered(*id) {
                deadlines.remove(&(at, kind, Due::First(*id)));
            }
        }
        let error = state.judge(received, results);
        state.keep(received, results, delta, now, |name, at, due| {
            due_news(deadlines, kind, name, at, due);
        });
        if received.stream == stream {
            state.answer(received, error.as_deref());
        } else if error.is_none() {
            state.accept(received);
        }
        error
    }

    /// A newcomer has been told what was known.
    pub(super) fn told(&mut self, kind: Kind, id: WatchId) {
        if let Some(state) = self.kinds.get_mut(&kind)
            && let Some(at) = state.answered(id)
        {
            self.deadlines.remove(&(at, kind, Due::First(id)));
        }
    }

    /// When [`Self::tick`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, ..)| *at)
    }

    /// Who has waited too long, and what was not heard of for too long.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<Delivery> {
        let mut found = Vec::new();
        while let Some((at, kind, due)) = self.deadlines.pop_first() {
            if at > now {
                self.deadlines.insert((at, kind, due));
                break;
            }
            let Some(state) = self.kinds.get_mut(&kind) else { continue };
            let what = match due {
                Due::First(id) => {
                    state.late(id).map(|limit| What::Failed(Some(id), Failure::TimedOut(limit)))
                }
                Due::News(name) => state.known.forget(&name).then_some(What::Expired(name)),
            };
            found.extend(what.map(|what| Delivery { kind, what }));
        }
        found
    }

    /// How many responses are answered, and the answers not sent.
    pub(super) fn answers(&self) -> usize {
        self.kinds.values().map(State::answers).sum()
    }

    /// How many watches there are.
    pub(super) fn len(&self) -> usize {
        self.kinds.values().map(State::len).sum()
    }
}

/// Moves the moment at which a resource is gone.
fn due_news(
    deadlines: &mut BTreeSet<(Instant, Kind, Due)>,
    kind: Kind,
    name: &Arc<str>,
    before: Option<Instant>,
    after: Option<Instant>,
) {
    if let Some(at) = before {
        deadlines.remove(&(at, kind, Due::News(name.clone())));
    }
    if let Some(at) = after {
        deadlines.insert((at, kind, Due::News(name.clone())));
    }
}

//! One type of resource with one server.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proxy_config::xds::wire::{DeltaRequest, Item, Response, SotwRequest};
use proxy_config::xds::{Kind, RawResource};

use super::interest::{Changes, Interest};
use super::known::Known;
use super::{Call, Part, Received, WatchId};
use crate::clock::Instant;
use crate::xds::Names;

pub(super) struct State<W> {
    interest: Interest<W>,
    pub(super) known: Known,
    pub(super) paused: usize,
    /// Something was asked on this stream.
    asked: bool,
    answers: VecDeque<Answer>,
    /// The last that was accepted.
    version: Arc<str>,
    /// Of the last response that was answered on this stream.
    nonce: Arc<str>,
}

struct Answer {
    nonce: Arc<str>,
    version: Arc<str>,
    error: Option<String>,
}

/// A reason of a refusal longer than that is cut: it goes into a message to the server.
const LONGEST: usize = 8 * 1024;

impl<W> Default for State<W> {
    fn default() -> Self {
        Self {
            interest: Interest::default(),
            known: Known::default(),
            paused: 0,
            asked: false,
            answers: VecDeque::new(),
            version: "".into(),
            nonce: "".into(),
        }
    }
}

/// A resource that is gone after that time without news; `None`: never.
type Lifetime = (Arc<str>, Option<Duration>);

impl<W: Clone> State<W> {
    pub(super) fn subscribe(
        &mut self,
        id: WatchId,
        names: Names,
        to: W,
        first: Option<(Instant, Duration)>,
    ) -> Option<RawResource> {
        let known = match &names {
            Names::One(name) => self.known.resource(name).cloned(),
            Names::All => None,
        };
        self.interest.add(id, names, to, first);
        known
    }

    pub(super) fn unsubscribe(&mut self, id: WatchId) -> Option<Instant> {
        self.interest.remove(id)
    }

    /// The server was asked for everything. It is forgotten what it has said: it is to say it again.
    pub(super) fn has_told_all(&mut self) -> bool {
        let told = self.interest.told_all();
        if told {
            self.known = Known::default();
            self.version = "".into();
        }
        told
    }

    pub(super) fn is_idle(&self) -> bool {
        self.interest.len() == 0
    }

    pub(super) fn len(&self) -> usize {
        self.interest.len()
    }

    pub(super) fn answers(&self) -> usize {
        self.answers.len()
    }

    pub(super) fn answered(&mut self, id: WatchId) -> Option<Instant> {
        self.interest.answered(id).map(|(at, _)| at)
    }

    /// How long it has waited in vain.
    pub(super) fn late(&mut self, id: WatchId) -> Option<Duration> {
        self.interest.answered(id).map(|(_, limit)| limit)
    }

    pub(super) fn restart(&mut self) {
        self.asked = false;
        self.answers.clear();
        self.nonce = "".into();
        self.interest.restart();
    }

    pub(super) fn has_request(&self) -> bool {
        !self.answers.is_empty() || if self.asked { self.interest.is_news() } else { !self.is_idle() }
    }

    pub(super) fn sotw_request(&mut self, kind: Kind) -> Option<SotwRequest> {
        // An empty list of names would ask for everything again.
        let parting = self.is_idle() && self.interest.told_all() && self.answers.is_empty();
        if !self.has_request() || parting {
            return None;
        }
        let answer = self.answers.pop_front();
        let (names, gone) = self.interest.state();
        gone.iter().for_each(|name| self.known.remove(name, |_, _| ()));
        self.asked = true;
        let (version, error) = match answer {
            Some(answer) => {
                self.nonce = answer.nonce;
                (answer.version, answer.error)
            }
            None => (self.version.clone(), None),
        };
        Some(SotwRequest { kind, node: None, version, names, nonce: self.nonce.clone(), error })
    }

    pub(super) fn delta_request(&mut self, kind: Kind) -> Option<DeltaRequest> {
        if !self.has_request() {
            return None;
        }
        let answer = self.answers.pop_front();
        let (changes, initial_versions) = if self.asked {
            (self.interest.changes(), Vec::new())
        } else {
            let (mut subscribe, _) = self.interest.state();
            subscribe.sort();
            let versions = self.known.versions(|name| self.interest.wants(name));
            (Changes { subscribe, unsubscribe: Vec::new() }, versions)
        };
        self.asked = true;
        changes.unsubscribe.iter().for_each(|name| self.known.remove(name, |_, _| ()));
        let (nonce, error) = answer.map_or(("".into(), None), |answer| (answer.nonce, answer.error));
        let Changes { subscribe, unsubscribe } = changes;
        Some(DeltaRequest { kind, node: None, subscribe, unsubscribe, initial_versions, nonce, error })
    }

    /// What there is to tell, and the names whose TTL begins again. Where there is nothing to tell, it is answered.
    pub(super) fn receive(
        &mut self,
        response: Response,
        (stream, delta): (u64, bool),
    ) -> (Option<Received>, Vec<Lifetime>) {
        let Response { version, nonce, items, removed, .. } = response;
        let mut received = Received {
            stream,
            version,
            nonce,
            resources: Vec::new(),
            removed,
            whole: !delta,
            unreadable: None,
        };
        let mut refreshed = Vec::new();
        match items {
            Ok(items) => {
                for item in items {
                    match item {
                        Item::Resource(resource) => received.resources.push(resource),
                        Item::Heartbeat { name, ttl } => refreshed.push((name, ttl)),
                    }
                }
            }
            Err(why) => received.unreadable = Some(why),
        }
        let news = !received.resources.is_empty() || !received.removed.is_empty();
        if !refreshed.is_empty() && !news && received.unreadable.is_none() {
            self.answer(&received, None);
            return (None, refreshed);
        }
        // Of a state of the world, those that are as they were are not gone.
        let same = refreshed.iter().filter(|_| !delta).filter_map(|(name, _)| self.known.resource(name));
        let same: Vec<_> = same.cloned().collect();
        received.resources.extend(same);
        (Some(received), refreshed)
    }

    pub(super) fn audience(&self, received: &Received) -> Vec<Call<W>> {
        let mut calls = Vec::new();
        let mut seen = HashSet::with_capacity(received.resources.len());
        for (index, resource) in received.resources.iter().enumerate() {
            // Of two resources of one name, the first counts.
            if seen.insert(&*resource.name) {
                self.calls(self.interest.named(&resource.name), Part::Resource(index), &mut calls);
            }
        }
        for (index, name) in received.removed.iter().enumerate() {
            self.calls(self.interest.named(name), Part::Removed(index), &mut calls);
        }
        self.calls(self.interest.everything(), Part::All, &mut calls);
        calls
    }

    pub(super) fn removal(&self, name: &str) -> Vec<Call<W>> {
        let mut calls = Vec::new();
        self.calls(self.interest.named(name), Part::All, &mut calls);
        self.calls(self.interest.everything(), Part::All, &mut calls);
        calls
    }

    pub(super) fn everyone(&self) -> Vec<Call<W>> {
        let ids: Vec<_> = self.interest.ids().collect();
        let mut calls = Vec::new();
        self.calls(&ids, Part::All, &mut calls);
        calls
    }

    pub(super) fn one(&self, id: WatchId) -> Vec<Call<W>> {
        let mut calls = Vec::new();
        self.calls(&[id], Part::All, &mut calls);
        calls
    }

    fn calls(&self, ids: &[WatchId], part: Part, calls: &mut Vec<Call<W>>) {
        let to = |id: &WatchId| Some(Call { watch: *id, to: self.interest.to(*id)?.clone(), part });
        calls.extend(ids.iter().filter_map(to));
    }

    /// Everything that is refused, each with its resource.
    pub(super) fn judge(
        &self,
        received: &Received,
        results: &[(WatchId, Part, Result<(), String>)],
    ) -> Option<String> {
        if let Some(why) = &received.unreadable {
            return Some(cut(why.clone()));
        }
        let mut reasons: Vec<String> = Vec::new();
        for (_, part, result) in results {
            let Err(why) = result else { continue };
            let name = match part {
                Part::All => None,
                Part::Resource(index) => received.resources.get(*index).map(|resource| &resource.name),
                Part::Removed(index) => received.removed.get(*index),
            };
            let reason = name.map_or_else(|| why.clone(), |name| format!("{name}: {why}"));
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        (!reasons.is_empty()).then(|| cut(reasons.join("; ")))
    }

    /// Remembers what was accepted.
    pub(super) fn keep(
        &mut self,
        received: &Received,
        results: &[(WatchId, Part, Result<(), String>)],
        delta: bool,
        now: Instant,
        mut moved: impl FnMut(&Arc<str>, Option<Instant>, Option<Instant>),
    ) {
        let refused = |wanted: Part| {
            let mut of_part = results.iter().filter(move |(_, part, _)| *part == wanted);
            of_part.any(|(_, _, result)| result.is_err())
        };
        let all = results.iter().any(|(_, part, _)| *part == Part::All) && !refused(Part::All);
        let named: HashSet<usize> = results.iter().filter_map(accepted).collect();
        let failed: HashSet<usize> = results.iter().filter_map(rejected).collect();
        for (index, resource) in received.resources.iter().enumerate() {
            let by_name = named.contains(&index) && !failed.contains(&index);
            // Whoever takes all of a state of the world is told all of it again.
            if by_name || (all && (delta || resource.ttl.is_some())) {
                let expires = resource.ttl.and_then(|ttl| now.checked_add(ttl));
                let name = &resource.name;
                self.known.insert(resource, by_name, expires, |from, to| moved(name, from, to));
            }
        }
        if received.unreadable.is_none() {
            for name in &received.removed {
                self.known.remove(name, |from, to| moved(name, from, to));
            }
        }
    }

    /// Queues the ACK or the NACK.
    pub(super) fn answer(&mut self, received: &Received, error: Option<&str>) {
        if error.is_none() {
            self.accept(received);
        }
        let (nonce, version) = (received.nonce.clone(), self.version.clone());
        self.answers.push_back(Answer { nonce, version, error: error.map(str::to_owned) });
    }

    pub(super) fn accept(&mut self, received: &Received) {
        self.version = received.version.clone();
    }
}

type Result3 = (WatchId, Part, Result<(), String>);

fn accepted((_, part, result): &Result3) -> Option<usize> {
    match part {
        Part::Resource(index) if result.is_ok() => Some(*index),
        Part::Resource(_) | Part::All | Part::Removed(_) => None,
    }
}

fn rejected((_, part, result): &Result3) -> Option<usize> {
    match part {
        Part::Resource(index) if result.is_err() => Some(*index),
        Part::Resource(_) | Part::All | Part::Removed(_) => None,
    }
}

fn cut(mut text: String) -> String {
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    text
}

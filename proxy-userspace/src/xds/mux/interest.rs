//! Who has asked for what in one type of resource, and what the server knows of that.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::super::Names;
use super::WatchId;
use crate::clock::Instant;

pub(super) struct Interest<W> {
    watches: BTreeMap<WatchId, Watch<W>>,
    by_name: HashMap<Arc<str>, Vec<WatchId>>,
    all: Vec<WatchId>,
    /// Names that somebody has come to or gone from since the last request.
    changed: BTreeSet<Arc<str>>,
    /// The names that the server of this stream was told, and has not been told otherwise since.
    told: HashSet<Arc<str>>,
    told_all: bool,
}

struct Watch<W> {
    names: Names,
    to: W,
    /// When a first answer is no longer waited for, and how long that was.
    first: Option<(Instant, Duration)>,
}

/// What a request adds and takes away.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Changes {
    pub(super) subscribe: Vec<Arc<str>>,
    pub(super) unsubscribe: Vec<Arc<str>>,
}

/// All resources, where some are also asked for by name.
pub(super) const WILDCARD: &str = "*";

impl<W> Default for Interest<W> {
    fn default() -> Self {
        Self {
            watches: BTreeMap::new(),
            by_name: HashMap::new(),
            all: Vec::new(),
            changed: BTreeSet::new(),
            told: HashSet::new(),
            told_all: false,
        }
    }
}

impl<W: Clone> Interest<W> {
    pub(super) fn add(&mut self, id: WatchId, names: Names, to: W, first: Option<(Instant, Duration)>) {
        match &names {
            Names::All => self.all.push(id),
            Names::One(name) => {
                self.by_name.entry(name.clone()).or_default().push(id);
                self.changed.insert(name.clone());
            }
        }
        self.watches.insert(id, Watch { names, to, first });
    }

    /// When its first answer was due, where that was still waited for.
    pub(super) fn remove(&mut self, id: WatchId) -> Option<Instant> {
        let watch = self.watches.remove(&id)?;
        match &watch.names {
            Names::All => self.all.retain(|one| *one != id),
            Names::One(name) => {
                if let Some(ids) = self.by_name.get_mut(name) {
                    ids.retain(|one| *one != id);
                    if ids.is_empty() {
                        self.by_name.remove(name);
                        self.changed.insert(name.clone());
                    }
                }
            }
        }
        watch.first.map(|(at, _)| at)
    }

    /// It waits for a first answer no longer.
    pub(super) fn answered(&mut self, id: WatchId) -> Option<(Instant, Duration)> {
        self.watches.get_mut(&id)?.first.take()
    }

    pub(super) fn to(&self, id: WatchId) -> Option<&W> {
        Some(&self.watches.get(&id)?.to)
    }

    pub(super) fn named(&self, name: &str) -> &[WatchId] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }

    pub(super) fn everything(&self) -> &[WatchId] {
        &self.all
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = WatchId> {
        self.watches.keys().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.watches.len()
    }

    pub(super) fn wants(&self, name: &str) -> bool {
        !self.all.is_empty() || self.by_name.contains_key(name)
    }

    pub(super) fn told_all(&self) -> bool {
        self.told_all
    }

    /// A new stream: its server knows nothing yet.
    pub(super) fn restart(&mut self) {
        self.told.clear();
        self.told_all = false;
    }

    /// The server is to be told something.
    pub(super) fn is_news(&self) -> bool {
        let news = |name: &Arc<str>| self.by_name.contains_key(name) != self.told.contains(name);
        self.all.is_empty() == self.told_all || self.changed.iter().any(news)
    }

    /// Everything that is asked for: the last that came first, as Envoy has it. `None` where nothing was and is.
    pub(super) fn state(&mut self) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
        let mut seen = HashSet::with_capacity(self.by_name.len());
        let names = self.watches.values().rev().filter_map(|watch| match &watch.names {
            Names::One(name) => Some(name),
            Names::All => None,
        });
        let mut names: Vec<_> = names.filter(|name| seen.insert((*name).clone())).cloned().collect();
        let gone = self.told.difference(&seen).cloned().collect();
        self.told = seen;
        self.told_all = !self.all.is_empty();
        self.changed.clear();
        if self.told_all && !names.is_empty() {
            names.insert(0, WILDCARD.into());
        }
        (names, gone)
    }

    /// What has changed since the last request of this stream.
    pub(super) fn changes(&mut self) -> Changes {
        let mut changes = Changes::default();
        let all = !self.all.is_empty();
        match (all, self.told_all) {
            (true, false) => changes.subscribe.push(WILDCARD.into()),
            (false, true) => changes.unsubscribe.push(WILDCARD.into()),
            (true, true) | (false, false) => {}
        }
        self.told_all = all;
        for name in std::mem::take(&mut self.changed) {
            match (self.by_name.contains_key(&name), self.told.contains(&name)) {
                (true, false) => {
                    self.told.insert(name.clone());
                    changes.subscribe.push(name);
                }
                (false, true) => {
                    self.told.remove(&name);
                    changes.unsubscribe.push(name);
                }
                (true, true) | (false, false) => {}
            }
        }
        changes
    }
}

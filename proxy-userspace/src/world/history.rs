//! What updates have changed, kept for a while: `shunt config diff` and `watch` ask for it.
//!
//! Of each type of resource the last few updates are there, however often another type changes. Messages are kept
//! of changed resources alone, and of not more than fits: what was added is in the configuration, and can be seen
//! there.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use bytes::Bytes;
use proxy_config::model::config_source::{ConfigSource, ConfigSourceKind};
use proxy_config::model::grpc::GrpcTarget;
use proxy_config::xds::Kind;
use tokio::sync::watch;

use crate::clock;

/// Updates that are kept of one type, and how many bytes of messages.
const UPDATES: usize = 16;
const BYTES: usize = 256 * 1024;

/// The updates of one configuration. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    kept: Mutex<Kept>,
    /// The number of the last one.
    news: watch::Sender<u64>,
}

/// Follows a history, and does not keep it.
#[derive(Debug)]
pub struct Watch {
    history: Weak<Inner>,
    news: watch::Receiver<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    last: u64,
    /// By [`Kind::ALL`]'s order.
    rings: [VecDeque<Arc<Update>>; Kind::ALL.len()],
}

/// An update in its place among the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// From 1, over all types.
    pub number: u64,
    pub at: SystemTime,
    pub change: Change,
}

/// What an update did to resources of one type.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub kind: Kind,
    /// See [`source`].
    pub source: Arc<str>,
    /// The version before; empty for the first.
    pub from: Arc<str>,
    pub to: Arc<str>,
    pub added: Vec<Arc<str>>,
    pub removed: Vec<Arc<str>>,
    pub changed: Vec<Changed>,
    /// Resources that were not taken: what they were before is in use still.
    pub refused: Vec<Refused>,
    /// What the server was told: the reason of a NACK.
    pub nack: Option<Arc<str>>,
}

/// A resource that was another one before.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed {
    pub name: Arc<str>,
    /// Before and after, encoded; `None` where they are too long to be kept.
    pub messages: Option<Box<(Bytes, Bytes)>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    pub name: Arc<str>,
    pub why: Arc<str>,
}

impl Change {
    /// Of a response that says nothing new.
    pub fn new(kind: Kind, source: Arc<str>, from: Arc<str>, to: Arc<str>) -> Self {
        Self {
            kind,
            source,
            from,
            to,
            added: Vec::new(),
            removed: Vec::new(),
            changed: Vec::new(),
            refused: Vec::new(),
            nack: None,
        }
    }

    /// Notes what became of a resource; `None`: it was, or is, not there.
    pub fn note(&mut self, name: &Arc<str>, before: Option<Bytes>, after: Option<Bytes>) {
        let name = name.clone();
        match (before, after) {
            (Some(before), Some(after)) => {
                self.changed.push(Changed { name, messages: Some(Box::new((before, after))) });
            }
            (None, Some(_)) => self.added.push(name),
            (Some(_), None) => self.removed.push(name),
            (None, None) => {}
        }
    }

    pub fn refuse(&mut self, name: &Arc<str>, why: impl Into<Arc<str>>) {
        self.refused.push(Refused { name: name.clone(), why: why.into() });
    }

    /// Whether there is anything to tell.
    fn is_news(&self) -> bool {
        self.from != self.to
            || self.nack.is_some()
            || !(self.added.is_empty()
                && self.removed.is_empty()
                && self.changed.is_empty()
                && self.refused.is_empty())
    }

    fn bytes(&self) -> usize {
        self.changed.iter().map(Changed::bytes).sum()
    }

    /// Leaves the messages out that would not fit.
    fn fit(&mut self) {
        let mut left = BYTES;
        for changed in &mut self.changed {
            match left.checked_sub(changed.bytes()) {
                Some(rest) => left = rest,
                None => changed.messages = None,
            }
        }
    }
}

impl Changed {
    fn bytes(&self) -> usize {
        self.messages.as_ref().map_or(0, |messages| messages.0.len() + messages.1.len())
    }
}

impl History {
    /// Keeps a change, and tells those who follow. One that says nothing new is no news.
    pub fn record(&self, mut change: Change) {
        if !change.is_news() {
            return;
        }
        change.fit();
        let mut kept = self.lock();
        kept.last += 1;
        let number = kept.last;
        let Some(ring) = kept.ring(change.kind) else { return };
        ring.push_back(Arc::new(Update { number, at: clock::wall(), change }));
        let mut bytes: usize = ring.iter().map(|update| update.change.bytes()).sum();
        while ring.len() > UPDATES || (bytes > BYTES && ring.len() > 1) {
            bytes -= ring.pop_front().map_or(0, |oldest| oldest.change.bytes());
        }
        drop(kept);
        self.0.news.send_replace(number);
    }

    /// Those that are kept with a greater number, in their order.
    pub fn after(&self, number: u64) -> Vec<Arc<Update>> {
        self.0.after(number)
    }

    pub fn watch(&self) -> Watch {
        Watch { history: Arc::downgrade(&self.0), news: self.0.news.subscribe() }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock()
    }
}

impl Inner {
    fn after(&self, number: u64) -> Vec<Arc<Update>> {
        let kept = self.lock();
        let newer = kept.rings.iter().flatten().filter(|update| update.number > number);
        let mut updates: Vec<_> = newer.cloned().collect();
        updates.sort_by_key(|update| update.number);
        updates
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// Those with a greater number, as soon as there is one; `None` once the history is gone.
    pub async fn next(&mut self, number: u64) -> Option<Vec<Arc<Update>>> {
        loop {
            let updates = self.history.upgrade()?.after(number);
            if !updates.is_empty() {
                return Some(updates);
            }
            self.news.changed().await.ok()?;
        }
    }
}

impl Kept {
    fn ring(&mut self, kind: Kind) -> Option<&mut VecDeque<Arc<Update>>> {
        let index = Kind::ALL.iter().position(|one| *one == kind)?;
        self.rings.get_mut(index)
    }
}

/// A source in few words: `/etc/lds.yaml`, `ads`, `grpc xds_cluster`, `delta_grpc istiod:15010`.
pub fn source(of: &ConfigSource) -> Arc<str> {
    match &of.kind {
        ConfigSourceKind::File { path, .. } => path.display().to_string().into(),
        ConfigSourceKind::Ads => "ads".into(),
        ConfigSourceKind::Same => "self".into(),
        ConfigSourceKind::Api(api) => {
            let how = if api.delta { "delta_grpc" } else { "grpc" };
            let target: &str = match &api.service.target {
                GrpcTarget::Cluster { name, .. } => name,
                GrpcTarget::Google(google) => &google.target_uri,
            };
            format!("{how} {target}").into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn change(kind: Kind, to: u64) -> Change {
        Change::new(kind, "a.yaml".into(), "".into(), to.to_string().into())
    }

    fn numbers(history: &History, after: u64) -> Vec<u64> {
        history.after(after).iter().map(|update| update.number).collect()
    }

    #[test]
    fn one_type_does_not_push_another_out() {
        let history = History::default();
        history.record(change(Kind::Listener, 1));
        for to in 0..100 {
            history.record(change(Kind::Endpoints, to));
        }
        let kept = numbers(&history, 0);
        assert_eq!(kept.len(), 1 + UPDATES);
        assert_eq!((kept[0], kept[1], kept[UPDATES]), (1, 86, 101));
        assert_eq!(numbers(&history, 99), [100, 101]);
        assert_eq!(numbers(&history, 101), [0; 0]);
    }

    #[tokio::test]
    async fn only_news_is_kept_and_told() {
        let history = History::default();
        let mut watch = history.watch();
        let mut same = change(Kind::Cluster, 1);
        same.from = same.to.clone();
        history.record(same.clone());
        assert!(history.after(0).is_empty());
        same.nack = Some("no".into());
        history.record(same.clone());
        same.nack = None;
        same.note(&"a".into(), Some(Bytes::from_static(b"1")), Some(Bytes::from_static(b"2")));
        history.record(same.clone());
        assert_eq!(watch.next(0).await.unwrap().len(), 2);
        assert_eq!(watch.next(1).await.unwrap()[0].change.changed[0].bytes(), 2);
        let later = async {
            tokio::task::yield_now().await;
            history.record(same);
        };
        let (came, ()) = tokio::join!(watch.next(2), later);
        assert_eq!(came.unwrap()[0].number, 3);
        drop(history);
        assert!(watch.next(3).await.is_none());
    }

    #[test]
    fn messages_are_kept_as_far_as_they_fit() {
        let history = History::default();
        let long = Bytes::from(vec![0; BYTES / 2 - 8]);
        let changed = |name: &str, bytes: &Bytes| {
            let mut change = change(Kind::Cluster, 1);
            change.note(&name.into(), Some(bytes.clone()), Some(bytes.clone()));
            change
        };
        // One that is too long by itself is there, without its messages.
        history.record(changed("huge", &Bytes::from(vec![0; BYTES])));
        history.record(changed("small", &Bytes::from_static(b"12345678")));
        assert_eq!(history.after(0).len(), 2);
        assert_eq!(history.after(0)[0].change.changed[0].messages, None);
        assert!(history.after(0)[1].change.changed[0].messages.is_some());
        // Both fit by themselves, and not together: the older goes.
        history.record(changed("first", &long));
        history.record(changed("second", &long));
        assert_eq!(numbers(&history, 0), [4]);
        assert!(history.after(0)[0].change.changed[0].messages.is_some());
    }

    #[test]
    fn what_became_of_a_resource() {
        let mut change = change(Kind::Route, 1);
        let some = || Some(Bytes::from_static(b"x"));
        for (name, before, after) in
            [("new", None, some()), ("gone", some(), None), ("other", some(), some()), ("none", None, None)]
        {
            change.note(&name.into(), before, after);
        }
        change.refuse(&"bad".into(), "why");
        assert_eq!((&*change.added[0], &*change.removed[0]), ("new", "gone"));
        assert_eq!((change.added.len(), change.removed.len(), change.changed.len()), (1, 1, 1));
        assert_eq!(change.refused, [Refused { name: "bad".into(), why: "why".into() }]);
    }

    #[test]
    fn a_source_by_its_place() {
        let of = |kind| ConfigSource { kind, initial_fetch_timeout: None };
        let file = ConfigSourceKind::File { path: PathBuf::from("/a/b.yaml"), watched_directory: None };
        assert_eq!(&*source(&of(file)), "/a/b.yaml");
        assert_eq!(&*source(&of(ConfigSourceKind::Ads)), "ads");
    }
}

//! A secret by its name and source.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use arc_swap::ArcSwapOption;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::feed::{Answer, Feed};
use super::material::Loaded;
use crate::xds::Subscription;

/// Whoever builds something of a secret's content.
pub trait Subscriber: Send + Sync {
    /// The content has changed. An error leaves the last good one in use and counts the update as rejected.
    fn changed(&self) -> Result<(), String>;
}

pub struct Slot {
    pub name: Arc<str>,
    pub origin: Origin,
    content: ArcSwapOption<Loaded>,
    /// What the content is of; before there is any, what the source has said last.
    answer: ArcSwapOption<Answer>,
    /// It has its first content, or that is not waited for any longer.
    settled: watch::Sender<bool>,
    /// How often what peers are judged by has been replaced.
    replaced: watch::Sender<u64>,
    subscribers: Mutex<Vec<Weak<dyn Subscriber>>>,
    supply: OnceLock<Supply>,
}

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The bootstrap's static secrets.
    Static,
    /// As that, but there is none of that name.
    Unknown,
    File(PathBuf),
    /// A control plane, in words.
    Server(Arc<str>),
    /// Whoever has made the slot.
    Own,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static => f.write_str("the bootstrap"),
            Self::Unknown => f.write_str("nowhere"),
            Self::File(path) => path.display().fmt(f),
            Self::Server(name) => f.write_str(name),
            Self::Own => f.write_str("its owner"),
        }
    }
}

/// What keeps the content current, while the slot lives.
pub(super) struct Supply {
    pub(super) follow: AbortHandle,
    pub(super) _feed: Arc<Feed>,
    pub(super) _subscription: Subscription,
}

impl Drop for Supply {
    fn drop(&mut self) {
        self.follow.abort();
    }
}

impl Slot {
    pub fn new(name: Arc<str>) -> Self {
        Self::of(name, Origin::Own)
    }

    pub(super) fn of(name: Arc<str>, origin: Origin) -> Self {
        Self {
            name,
            origin,
            content: ArcSwapOption::empty(),
            answer: ArcSwapOption::empty(),
            settled: watch::Sender::new(false),
            replaced: watch::Sender::new(0),
            subscribers: Mutex::default(),
            supply: OnceLock::new(),
        }
    }

    pub(super) fn keep(&self, supply: Supply) {
        // Once, by who has made it.
        let _ = self.supply.set(supply);
    }

    /// `None` until it was supplied.
    pub fn content(&self) -> Option<Arc<Loaded>> {
        self.content.load_full()
    }

    /// What the content is of; before there is any, what its source has said last. `None` where that is nothing, or
    /// the secret is static.
    pub fn answer(&self) -> Option<Arc<Answer>> {
        self.answer.load_full()
    }

    pub(super) fn set_answer(&self, answer: Arc<Answer>) {
        self.answer.store(Some(answer));
    }

    /// Replaces the content and tells the subscribers; says what they refuse. Where all refuse it, the content before
    /// stays. A subscriber that refuses it goes on with what it has.
    pub fn supply(&self, content: Arc<Loaded>) -> Result<(), String> {
        let judges = matches!(*content, Loaded::Validation(_));
        let before = self.content.swap(Some(content));
        let subscribers = self.subscribers();
        let refused: Vec<_> = subscribers.iter().filter_map(|one| one.changed().err()).collect();
        if refused.is_empty() || refused.len() < subscribers.len() {
            if judges && before.is_some() {
                self.replaced.send_modify(|times| *times += 1);
            }
            self.settled.send_replace(true);
        } else if before.is_some() {
            self.content.store(before);
        }
        // A first content stays: it may be another secret that the subscribers refuse.
        if refused.is_empty() { Ok(()) } else { Err(refused.join("; ")) }
    }

    fn subscribers(&self) -> Vec<Arc<dyn Subscriber>> {
        let mut known = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|subscriber| subscriber.strong_count() > 0);
        known.iter().filter_map(Weak::upgrade).collect()
    }

    pub fn subscribe(&self, subscriber: &Arc<dyn Subscriber>) {
        let mut known = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        known.push(Arc::downgrade(subscriber));
    }

    /// Its first content is not waited for any longer.
    pub fn give_up(&self) {
        self.settled.send_replace(true);
    }

    pub fn is_settled(&self) -> bool {
        *self.settled.borrow()
    }

    pub async fn settled(&self) {
        // The sender is here.
        let _ = self.settled.subscribe().wait_for(|settled| *settled).await;
    }

    /// Changes when what peers are judged by is replaced.
    pub(super) fn replaced(&self) -> watch::Receiver<u64> {
        self.replaced.subscribe()
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "secret {} of {}", self.name, self.origin)
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("name", &self.name).field("origin", &self.origin).finish_non_exhaustive()
    }
}

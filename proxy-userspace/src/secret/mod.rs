//! Secrets: certificates, what peers are judged by, and ticket keys, each with its content read.
//!
//! A [`Slot`] is a secret by its name and source: it holds the last good content, and tells who uses it when that
//! changes. [`Secrets`] knows all of them, those of the bootstrap and those of SDS.

pub mod material;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwapOption;
use proxy_config::model::tls::SecretRef;
use tokio::sync::watch;

pub use self::material::{Loaded, Material};

/// Whoever builds something of a secret's content.
pub trait Subscriber: Send + Sync {
    /// The content has changed. An error leaves the last good one in use and counts the update as rejected.
    fn changed(&self) -> Result<(), String>;
}

pub struct Slot {
    pub name: Arc<str>,
    content: ArcSwapOption<Loaded>,
    /// It has its first content, or that is not waited for any longer.
    settled: watch::Sender<bool>,
    subscribers: Mutex<Vec<Weak<dyn Subscriber>>>,
}

impl Slot {
    pub fn new(name: Arc<str>) -> Self {
        Self {
            name,
            content: ArcSwapOption::empty(),
            settled: watch::Sender::new(false),
            subscribers: Mutex::default(),
        }
    }

    /// `None` until it was supplied.
    pub fn content(&self) -> Option<Arc<Loaded>> {
        self.content.load_full()
    }

    /// Replaces the content and tells the subscribers; says what they refuse.
    pub fn supply(&self, content: Arc<Loaded>) -> Result<(), String> {
        let before = self.content.swap(Some(content));
        let subscribers: Vec<_> = {
            let mut known = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|subscriber| subscriber.strong_count() > 0);
            known.iter().filter_map(Weak::upgrade).collect()
        };
        let refused: Vec<_> = subscribers.iter().filter_map(|one| one.changed().err()).collect();
        if refused.is_empty() {
            self.settled.send_replace(true);
            return Ok(());
        }
        self.content.store(before);
        Err(refused.join("; "))
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
}

/// All secrets of one proxy.
#[derive(Default)]
pub struct Secrets {
    slots: Mutex<HashMap<SecretRef, Weak<Slot>>>,
}

impl Secrets {
    /// The slot of a secret, followed from now on while somebody holds it.
    pub fn slot(&self, of: &SecretRef) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(of).and_then(Weak::upgrade) {
            return slot;
        }
        let slot = Arc::new(Slot::new(of.name.clone()));
        slots.insert(of.clone(), Arc::downgrade(&slot));
        slot
    }
}

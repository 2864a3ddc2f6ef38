//! Where a connection manager finds its routes: inline ones are there from the start, those of RDS come and change.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwapOption;

use super::Routes;

/// One route configuration, of now.
#[derive(Default)]
pub struct RouteSlot(ArcSwapOption<Routes>);

/// Those that connection managers share, by what names them.
pub struct RouteSlots<K>(Mutex<HashMap<K, Weak<RouteSlot>>>);

impl RouteSlot {
    pub fn of(routes: Arc<Routes>) -> Arc<Self> {
        Arc::new(Self(ArcSwapOption::from(Some(routes))))
    }

    /// None before the first has come.
    pub fn now(&self) -> Option<Arc<Routes>> {
        self.0.load_full()
    }

    /// Streams that have begun keep what they found.
    pub fn publish(&self, routes: Option<Arc<Routes>>) {
        self.0.store(routes);
    }
}

impl<K> Default for RouteSlots<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash> RouteSlots<K> {
    /// The slot of that name and source, for whoever serves by it and for whoever follows it.
    pub fn slot(&self, key: &K) -> Arc<RouteSlot> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(key).and_then(Weak::upgrade) {
            return slot;
        }
        slots.retain(|_, slot| slot.strong_count() > 0);
        let slot = Arc::<RouteSlot>::default();
        slots.insert(key.clone(), Arc::downgrade(&slot));
        slot
    }
}

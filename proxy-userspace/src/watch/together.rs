//! Tasks that many share: thousands of idle clusters have no task, timer or file of their own.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// Groups by what their task does. A group ends with the last of its members.
pub struct Together<K, M> {
    groups: Mutex<HashMap<K, Weak<Group<M>>>>,
}

/// The members that one task works for.
pub struct Group<M> {
    members: Mutex<Members<M>>,
    joined: Arc<Notify>,
    task: Mutex<Option<AbortHandle>>,
}

struct Members<M> {
    old: Vec<Weak<M>>,
    new: Vec<Weak<M>>,
}

impl<K, M> Default for Together<K, M> {
    fn default() -> Self {
        Self { groups: Mutex::default() }
    }
}

impl<M> Default for Group<M> {
    fn default() -> Self {
        let members = Members { old: Vec::new(), new: Vec::new() };
        Self { members: Mutex::new(members), joined: Arc::default(), task: Mutex::default() }
    }
}

impl<K: Eq + Hash, M> Together<K, M> {
    /// The group of `key`, which the member is now in; whoever keeps it keeps its task. `start` is for the first.
    pub fn join(
        &self,
        key: K,
        member: &Arc<M>,
        start: impl FnOnce(Weak<Group<M>>) -> AbortHandle,
    ) -> Arc<Group<M>> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let known = groups.get(&key).and_then(Weak::upgrade);
        let group = known.unwrap_or_else(|| {
            let group = Arc::<Group<M>>::default();
            *group.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(start(Arc::downgrade(&group)));
            groups.retain(|_, group| group.strong_count() > 0);
            groups.insert(key, Arc::downgrade(&group));
            group
        });
        group.members.lock().unwrap_or_else(PoisonError::into_inner).new.push(Arc::downgrade(member));
        group.joined.notify_one();
        group
    }
}

impl<M> Group<M> {
    /// Is notified when members join. A task waits without the group, which ends when no member keeps it.
    pub fn joined(&self) -> Arc<Notify> {
        self.joined.clone()
    }

    /// Those that have joined since the last call.
    pub fn newcomers(&self) -> Vec<Arc<M>> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let new = std::mem::take(&mut members.new);
        let found = new.iter().filter_map(Weak::upgrade).collect();
        members.old.extend(new);
        found
    }

    /// All that still live.
    pub fn members(&self) -> Vec<Arc<M>> {
        self.newcomers();
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.old.retain(|member| member.strong_count() > 0);
        members.old.iter().filter_map(Weak::upgrade).collect()
    }
}

impl<M> Drop for Group<M> {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

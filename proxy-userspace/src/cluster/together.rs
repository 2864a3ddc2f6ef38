//! Tasks that many clusters share: thousands of idle ones have no task, timer or file of their own.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::Cluster;

/// Groups by what their task does. A group ends with the last of its clusters.
pub(super) struct Together<K> {
    groups: Mutex<HashMap<K, Weak<Group>>>,
}

/// The clusters of one task.
#[derive(Default)]
pub(super) struct Group {
    members: Mutex<Members>,
    joined: Arc<Notify>,
    task: Mutex<Option<AbortHandle>>,
}

#[derive(Default)]
struct Members {
    old: Vec<Weak<Cluster>>,
    new: Vec<Weak<Cluster>>,
}

impl<K> Default for Together<K> {
    fn default() -> Self {
        Self { groups: Mutex::default() }
    }
}

impl<K: Eq + Hash> Together<K> {
    /// The group of `key`, which the cluster is now in; whoever keeps it keeps its task. `start` is for the first.
    pub(super) fn join(
        &self,
        key: K,
        cluster: &Arc<Cluster>,
        start: impl FnOnce(Weak<Group>) -> AbortHandle,
    ) -> Arc<Group> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let known = groups.get(&key).and_then(Weak::upgrade);
        let group = known.unwrap_or_else(|| {
            let group = Arc::<Group>::default();
            *group.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(start(Arc::downgrade(&group)));
            groups.retain(|_, group| group.strong_count() > 0);
            groups.insert(key, Arc::downgrade(&group));
            group
        });
        group.members.lock().unwrap_or_else(PoisonError::into_inner).new.push(Arc::downgrade(cluster));
        group.joined.notify_one();
        group
    }
}

impl Group {
    /// Is notified when clusters join. A task waits without the group, which ends when no cluster keeps it.
    pub(super) fn joined(&self) -> Arc<Notify> {
        self.joined.clone()
    }

    /// Those that have joined since the last call.
    pub(super) fn newcomers(&self) -> Vec<Arc<Cluster>> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let new = std::mem::take(&mut members.new);
        let clusters = new.iter().filter_map(Weak::upgrade).collect();
        members.old.extend(new);
        clusters
    }

    /// All that still live.
    pub(super) fn clusters(&self) -> Vec<Arc<Cluster>> {
        self.newcomers();
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        members.old.retain(|cluster| cluster.strong_count() > 0);
        members.old.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

//! What a server has said that was accepted.

use std::collections::HashMap;
use std::sync::Arc;

use proxy_config::xds::RawResource;

use crate::clock::Instant;

#[derive(Debug, Default)]
pub(super) struct Known {
    by_name: HashMap<Arc<str>, One>,
}

#[derive(Debug)]
struct One {
    version: Arc<str>,
    /// For those that ask later, and for heartbeats; not of all resources of a type that is taken as a whole.
    resource: Option<RawResource>,
    expires: Option<Instant>,
}

impl Known {
    /// `keep`: also what it says. `moved` hears of its last moment, before and now.
    pub(super) fn insert(
        &mut self,
        resource: &RawResource,
        keep: bool,
        expires: Option<Instant>,
        moved: impl FnOnce(Option<Instant>, Option<Instant>),
    ) {
        let one = One {
            version: resource.version.clone(),
            resource: (keep || expires.is_some()).then(|| resource.clone()),
            expires,
        };
        let before = self.by_name.insert(resource.name.clone(), one);
        moved(before.and_then(|before| before.expires), expires);
    }

    /// News of a resource that is as it was.
    pub(super) fn refresh(
        &mut self,
        name: &str,
        expires: Option<Instant>,
        moved: impl FnOnce(Option<Instant>, Option<Instant>),
    ) {
        if let Some(one) = self.by_name.get_mut(name) {
            moved(std::mem::replace(&mut one.expires, expires), expires);
        }
    }

    pub(super) fn remove(&mut self, name: &str, moved: impl FnOnce(Option<Instant>, Option<Instant>)) {
        if let Some(one) = self.by_name.remove(name) {
            moved(one.expires, None);
        }
    }

    /// Whether it was there.
    pub(super) fn forget(&mut self, name: &str) -> bool {
        self.by_name.remove(name).is_some()
    }

    pub(super) fn resource(&self, name: &str) -> Option<&RawResource> {
        self.by_name.get(name)?.resource.as_ref()
    }

    /// Names and versions, by name.
    pub(super) fn versions(&self, wanted: impl Fn(&str) -> bool) -> Vec<(Arc<str>, Arc<str>)> {
        let wanted = self.by_name.iter().filter(|(name, _)| wanted(name));
        let mut found: Vec<_> = wanted.map(|(name, one)| (name.clone(), one.version.clone())).collect();
        found.sort();
        found
    }
}

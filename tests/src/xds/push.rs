//! A response that a test writes itself.

use std::collections::BTreeMap;
use std::time::Duration;

use super::resource::{Resource, Type};

/// What is said, in either protocol.
#[derive(Clone, Debug)]
pub struct Push {
    pub(super) of: Type,
    pub(super) version: Option<String>,
    pub(super) nonce: Option<String>,
    pub(super) type_url: Option<String>,
    pub(super) resources: Vec<Resource>,
    /// Of single resources, in a delta.
    pub(super) versions: BTreeMap<String, String>,
    pub(super) removed: Vec<String>,
    pub(super) heartbeats: Vec<(String, Duration)>,
}

impl Push {
    pub fn new(of: Type) -> Self {
        Self {
            of,
            version: None,
            nonce: None,
            type_url: None,
            resources: Vec::new(),
            versions: BTreeMap::new(),
            removed: Vec::new(),
            heartbeats: Vec::new(),
        }
    }

    pub fn resource(mut self, resource: Resource) -> Self {
        self.resources.push(resource);
        self
    }

    /// `version_info`, `system_version_info`.
    pub fn version(mut self, version: &str) -> Self {
        self.version = Some(version.to_owned());
        self
    }

    /// Instead of the next number.
    pub fn nonce(mut self, nonce: &str) -> Self {
        self.nonce = Some(nonce.to_owned());
        self
    }

    /// It claims to be of another type.
    pub fn typed(mut self, url: &str) -> Self {
        self.type_url = Some(url.to_owned());
        self
    }

    /// Of a delta.
    pub fn remove(mut self, name: &str) -> Self {
        self.removed.push(name.to_owned());
        self
    }

    /// A resource without content, to be kept for that long.
    pub fn heartbeat(mut self, name: &str, ttl: Duration) -> Self {
        self.heartbeats.push((name.to_owned(), ttl));
        self
    }
}

//! What is decoded already: the same bytes are the same model, in however many configurations of one process.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::{Decoded, Discover, Kind};
use crate::diagnostic::Diagnostic;
use crate::lower::Reference;
use crate::model::Raw;
use crate::model::bootstrap::Resource;

/// Keeps nothing alive: what nobody uses any more is forgotten.
#[derive(Default)]
pub struct Store {
    hasher: RandomState,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// By the hash of kind and bytes.
    entries: HashMap<u64, Vec<Entry>>,
    count: usize,
    /// What was left after the last look for the forgotten.
    swept: usize,
}

struct Entry {
    kind: Kind,
    bytes: Weak<[u8]>,
    model: Weak<dyn Any + Send + Sync>,
    found: Found,
}

/// What was said of it: the same for all.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) warnings: Arc<[Diagnostic]>,
    /// Clusters that must be there, which depends on who asks.
    pub(super) references: Arc<[Reference]>,
}

/// So many entries may be of no use before they are looked for; and a quarter of all.
const FORGOTTEN: usize = 256;

impl Store {
    /// How many resources are in use.
    pub fn len(&self) -> usize {
        let mut known = self.known();
        known.sweep();
        known.count
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn find<T: Discover>(&self, bytes: &[u8]) -> Option<(Resource<T>, Found)> {
        let hash = self.hash(T::KIND, bytes);
        self.known().find(hash, T::KIND, bytes)
    }

    /// Keeps it, unless somebody else was faster: then theirs.
    pub(super) fn keep<T: Discover>(&self, model: T, bytes: &[u8], found: Found) -> (Resource<T>, Found) {
        let hash = self.hash(T::KIND, bytes);
        let mut known = self.known();
        if let Some(theirs) = known.find(hash, T::KIND, bytes) {
            return theirs;
        }
        if known.count >= known.swept + known.swept / 4 + FORGOTTEN {
            known.sweep();
        }
        let (model, bytes) = (Arc::new(model), Arc::<[u8]>::from(bytes));
        let entry = Entry {
            kind: T::KIND,
            bytes: Arc::downgrade(&bytes),
            model: Arc::downgrade(&model) as Weak<dyn Any + Send + Sync>,
            found: found.clone(),
        };
        known.entries.entry(hash).or_default().push(entry);
        known.count += 1;
        (Resource { model, raw: Raw::whole(bytes) }, found)
    }

    fn hash(&self, kind: Kind, bytes: &[u8]) -> u64 {
        self.hasher.hash_one((kind, bytes))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing panics while it is held.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn find<T: Discover>(&self, hash: u64, kind: Kind, bytes: &[u8]) -> Option<(Resource<T>, Found)> {
        self.entries.get(&hash)?.iter().find_map(|entry| {
            let same = entry.bytes.upgrade().filter(|known| entry.kind == kind && **known == *bytes)?;
            let model = entry.model.upgrade()?.downcast().ok()?;
            Some((Resource { model, raw: Raw::whole(same) }, entry.found.clone()))
        })
    }

    fn sweep(&mut self) {
        self.entries.retain(|_, entries| {
            entries.retain(|entry| entry.model.strong_count() > 0 && entry.bytes.strong_count() > 0);
            !entries.is_empty()
        });
        self.count = self.entries.values().map(Vec::len).sum();
        self.swept = self.count;
        self.entries.shrink_to(2 * self.count);
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("entries", &self.known().count).finish_non_exhaustive()
    }
}

impl Found {
    /// As an answer to one who has these clusters.
    pub(super) fn answer<T>(
        self,
        resource: Resource<T>,
        there: impl Fn(&Reference) -> bool,
    ) -> Result<Decoded<T>, Vec<Diagnostic>> {
        self.missing(there).map(|found| Decoded { resource, warnings: found.warnings.to_vec() })
    }

    /// `Err` where a cluster is missing.
    pub(super) fn missing(self, there: impl Fn(&Reference) -> bool) -> Result<Self, Vec<Diagnostic>> {
        let missing = self.references.iter().filter(|reference| !there(reference));
        let missing: Vec<_> = missing.map(|reference| reference.diagnostic.clone()).collect();
        if missing.is_empty() { Ok(self) } else { Err(missing) }
    }
}

#[cfg(test)]
mod tests {
    use crate::model::{Cluster, LoadAssignment};
    use crate::xds::{Decoder, RawResource, file::Reader};

    use super::*;

    fn cluster(name: &str) -> RawResource {
        let text = format!("resources: [{{'@type': {}, name: {name}}}]", Kind::Cluster.type_url());
        Reader::new(Kind::Cluster).read(&text).unwrap().resources.remove(0)
    }

    fn decoder(store: &Arc<Store>) -> Decoder {
        Decoder { store: Some(store.clone()), ..Decoder::default() }
    }

    #[test]
    fn the_same_bytes_are_one_model_for_all_decoders() {
        let store = Arc::new(Store::default());
        let one = decoder(&store).decode::<Cluster>(&cluster("a")).unwrap().resource;
        let two = decoder(&store).decode::<Cluster>(&cluster("a")).unwrap().resource;
        let other = decoder(&store).decode::<Cluster>(&cluster("b")).unwrap().resource;
        assert!(Arc::ptr_eq(&one.model, &two.model) && one == two);
        assert!(!Arc::ptr_eq(&one.model, &other.model));
        assert_eq!(store.len(), 2);
        drop((one, other));
        assert_eq!(store.len(), 1, "two still uses it");
        drop(two);
        assert!(store.is_empty());
    }

    #[test]
    fn what_is_used_by_nobody_is_forgotten_without_a_call() {
        let store = Arc::new(Store::default());
        let kept = decoder(&store).decode::<Cluster>(&cluster("kept")).unwrap().resource;
        for index in 0..20 * FORGOTTEN {
            decoder(&store).decode::<Cluster>(&cluster(&format!("c{index}"))).unwrap();
        }
        assert!(store.known().count <= FORGOTTEN + 2, "{}", store.known().count);
        let again = decoder(&store).decode::<Cluster>(&cluster("kept")).unwrap().resource;
        assert!(Arc::ptr_eq(&kept.model, &again.model));
    }

    #[test]
    fn threads_get_one_model() {
        let store = Arc::new(Store::default());
        let raw: Vec<_> = (0..50).map(|index| cluster(&format!("c{index}"))).collect();
        let decode = || -> Vec<_> {
            raw.iter().map(|raw| decoder(&store).decode::<Cluster>(raw).unwrap().resource).collect()
        };
        let all: Vec<Vec<_>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(decode)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for theirs in &all {
            assert!(theirs.iter().zip(&all[0]).all(|(a, b)| Arc::ptr_eq(&a.model, &b.model)));
        }
        assert_eq!(store.len(), 50);
    }

    #[test]
    fn a_cluster_that_one_has_and_another_has_not_is_said_to_each() {
        let text = format!(
            "resources: [{{'@type': {}, name: e, type: EDS, eds_cluster_config: {{eds_config: {{api_config_source: \
             {{api_type: GRPC, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}}}}}}}]",
            Kind::Cluster.type_url()
        );
        let raw = Reader::new(Kind::Cluster).read(&text).unwrap().resources.remove(0);
        let store = Arc::new(Store::default());
        let with = |names: &[&str]| Decoder {
            clusters: Some(Arc::new(names.iter().map(|name| Arc::from(*name)).collect())),
            ..decoder(&store)
        };
        let one = with(&["xds"]).decode::<Cluster>(&raw).unwrap();
        let refused = with(&["other"]).decode::<Cluster>(&raw).unwrap_err();
        assert!(refused[0].why.contains("no cluster 'xds'"), "{refused:?}");
        let again = with(&["xds", "more"]).decode::<Cluster>(&raw).unwrap();
        assert!(Arc::ptr_eq(&one.resource.model, &again.resource.model));
    }

    #[test]
    fn the_same_bytes_of_another_type_are_another_resource() {
        let store = Arc::new(Store::default());
        let raw = cluster("a");
        let assignment = RawResource { type_url: Kind::Endpoints.type_url().into(), ..raw.clone() };
        let one = decoder(&store).decode::<Cluster>(&raw).unwrap();
        let other = decoder(&store).decode::<LoadAssignment>(&assignment).unwrap();
        assert_eq!((&*one.resource.model.name, &*other.resource.model.cluster_name), ("a", "a"));
        assert_eq!(store.len(), 2);
    }
}

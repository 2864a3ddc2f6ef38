//! All secrets of one proxy.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use proxy_config::model::bootstrap::Resource;
use proxy_config::model::config_source::{ConfigSource, ConfigSourceKind};
use proxy_config::model::tls::{Secret, SecretRef};
use proxy_config::xds::{Decoder, Kind};

use super::feed::Feed;
use super::follow::{Follow, Supplied};
use super::material::{self, LoadError};
use super::slot::{Origin, Slot, Supply};
use crate::task::Tasks;
use crate::telemetry::stats::{SdsStats, Stats};
use crate::watch::{Changes, Directories};
use crate::xds::{Consumer, Names, Subscribe};

#[derive(Default)]
pub struct Secrets {
    statics: HashMap<Arc<str>, Arc<Slot>>,
    slots: Mutex<HashMap<SecretRef, Weak<Slot>>>,
    /// None where a configuration is only checked, and in tests that supply the slots themselves.
    sources: Option<Sources>,
}

/// What follows the sources of SDS.
struct Sources {
    stats: Arc<Stats>,
    tasks: Tasks,
    directories: Arc<Directories>,
    sources: Arc<dyn Subscribe>,
    decoder: Decoder,
}

/// A static secret that cannot be had: the start fails.
#[derive(Debug, thiserror::Error)]
pub enum StaticError {
    #[error("static secret {name}: {source}")]
    Load { name: Arc<str>, source: LoadError },
    #[error("static secret {0}: the name is given twice")]
    Twice(Arc<str>),
}

impl Secrets {
    /// Reads the static secrets; follows those of SDS.
    pub fn new(
        statics: &[Resource<Secret>],
        (stats, tasks): (&Arc<Stats>, &Tasks),
        directories: &Arc<Directories>,
        sources: &Arc<dyn Subscribe>,
    ) -> Result<Self, StaticError> {
        let sources = Sources {
            stats: stats.clone(),
            tasks: tasks.clone(),
            directories: directories.clone(),
            sources: sources.clone(),
            decoder: Decoder::default(),
        };
        Ok(Self { sources: Some(sources), ..Self::fixed(statics)? })
    }

    /// With what reads those that come.
    #[must_use]
    pub fn read_by(self, decoder: &Decoder) -> Self {
        let sources = self.sources.map(|sources| Sources { decoder: decoder.clone(), ..sources });
        Self { sources, ..self }
    }

    /// The static secrets alone: those of SDS stay without content.
    pub fn fixed(statics: &[Resource<Secret>]) -> Result<Self, StaticError> {
        let mut known: HashMap<_, Arc<Slot>> = HashMap::new();
        for secret in statics {
            let name = secret.model.name.clone();
            let loaded = material::load(&secret.model.kind)
                .map_err(|source| StaticError::Load { name: name.clone(), source })?;
            let slot = Slot::of(name.clone(), Origin::Static);
            // Nobody is there yet to refuse it.
            let _ = slot.supply(Arc::new(loaded));
            if known.insert(name.clone(), Arc::new(slot)).is_some() {
                return Err(StaticError::Twice(name));
            }
        }
        Ok(Self { statics: known, ..Self::default() })
    }

    /// The slot of a secret, followed from now on while somebody holds it.
    pub fn slot(&self, of: &SecretRef) -> Arc<Slot> {
        if of.source.is_none()
            && let Some(slot) = self.statics.get(&of.name)
        {
            return slot.clone();
        }
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(of).and_then(Weak::upgrade) {
            return slot;
        }
        let slot = match (&of.source, &self.sources) {
            (Some(source), Some(sources)) => sources.follow(&of.name, source),
            (Some(_), None) => Arc::new(Slot::new(of.name.clone())),
            (None, _) => Arc::new(Slot::of(of.name.clone(), Origin::Unknown)),
        };
        slots.retain(|_, slot| slot.strong_count() > 0);
        slots.insert(of.clone(), Arc::downgrade(&slot));
        slot
    }

    /// Those of SDS that somebody holds, by name.
    pub fn dynamic(&self) -> Vec<Arc<Slot>> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let mut live: Vec<_> = slots.values().filter_map(Weak::upgrade).collect();
        live.retain(|slot| slot.origin != Origin::Unknown);
        live.sort_by(|one, other| one.name.cmp(&other.name));
        live
    }
}

impl Sources {
    fn follow(&self, name: &Arc<str>, source: &ConfigSource) -> Arc<Slot> {
        let slot = Arc::new(Slot::of(name.clone(), origin(source)));
        let (feed, updates) = Feed::new(name.clone(), self.decoder.coming_from(&source.kind));
        let stats = SdsStats::of(&self.stats, name);
        // As Envoy: to ask a server is an attempt too; a file is read.
        if !source.is_file() {
            stats.update_attempt.inc();
        }
        let follow = Follow {
            slot: Arc::downgrade(&slot),
            updates,
            changes: Changes::new(&self.directories, &self.tasks),
            stats,
            answer: None,
            supplied: Supplied::default(),
        };
        let follow = self.tasks.spawn("secret", follow.run()).abort_handle();
        let consumer: Arc<dyn Consumer> = feed.clone();
        let subscription = self.sources.subscribe(source, Kind::Secret, Names::One(name.clone()), &consumer);
        slot.keep(Supply { follow, _feed: feed, _subscription: subscription });
        slot
    }
}

fn origin(source: &ConfigSource) -> Origin {
    match &source.kind {
        ConfigSourceKind::File { path, .. } => Origin::File(path.clone()),
        ConfigSourceKind::Ads | ConfigSourceKind::Same => Origin::Server("ads".into()),
        ConfigSourceKind::Api(api) => Origin::Server(api.service.target.to_string().into()),
    }
}

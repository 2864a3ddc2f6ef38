//! The buckets of a limit: its own, and those of descriptors.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use proxy_config::model::http::filters::{HttpLocalRateLimit as Model, LocalDescriptor};

use super::Descriptor;
use crate::listener::TokenBucket;

pub(super) struct Limiter {
    own: Option<Arc<TokenBucket>>,
    descriptors: Vec<Described>,
    always_own: bool,
}

struct Described {
    model: LocalDescriptor,
    buckets: Buckets,
}

enum Buckets {
    One(Arc<TokenBucket>),
    /// Of a descriptor with values that are not given: one for each value, the least recently used first.
    Each {
        most: usize,
        known: Mutex<VecDeque<(Descriptor, Arc<TokenBucket>)>>,
    },
}

/// What became of a question.
pub(super) struct Answer {
    pub(super) allowed: bool,
    /// The one that counts.
    pub(super) bucket: Option<Arc<TokenBucket>>,
    /// How many refusals were only counted.
    pub(super) shadowed: u64,
}

impl Limiter {
    pub(super) fn new(model: &Model) -> Self {
        let most = model.max_dynamic_descriptors.max(1) as usize;
        Self {
            own: model.token_bucket.map(|bucket| Arc::new(TokenBucket::new(bucket))),
            descriptors: model.descriptors.iter().map(|one| Described::new(one, most)).collect(),
            always_own: model.always_consume_default_token_bucket,
        }
    }

    /// The tightest bucket is asked first, and what is refused by one takes nothing of the next.
    pub(super) fn ask(&self, descriptors: &[Descriptor]) -> Answer {
        let mut matched: Vec<_> = descriptors.iter().filter_map(|asked| self.find(asked)).collect();
        matched.sort_by(|(_, a, _), (_, b, _)| rate(a).total_cmp(&rate(b)));
        let mut shadowed = 0;
        for (bucket, model, hits) in &matched {
            if bucket.take_many(*hits) {
                continue;
            }
            if !model.shadow_mode {
                return Answer { allowed: false, bucket: Some(bucket.clone()), shadowed };
            }
            shadowed += 1;
        }
        let first = matched.first().map(|(bucket, _, _)| bucket.clone());
        let own = self.own.as_ref().filter(|_| matched.is_empty() || self.always_own);
        match own {
            Some(own) if !own.take() => Answer { allowed: false, bucket: Some(own.clone()), shadowed },
            own => Answer { allowed: true, bucket: first.or_else(|| own.cloned()), shadowed },
        }
    }

    fn find(&self, asked: &Descriptor) -> Option<(Arc<TokenBucket>, &LocalDescriptor, u64)> {
        let exact = self.descriptors.iter().find(|one| one.is_exactly(asked));
        let found = exact.or_else(|| self.descriptors.iter().find(|one| one.covers(asked)))?;
        Some((found.bucket(asked), &found.model, asked.hits))
    }
}

fn rate(model: &LocalDescriptor) -> f64 {
    let bucket = &model.token_bucket;
    f64::from(bucket.tokens_per_fill) / bucket.fill_interval.as_secs_f64().max(1e-9)
}

impl Described {
    fn new(model: &LocalDescriptor, most: usize) -> Self {
        let open = model.entries.iter().any(|(_, value)| value.is_empty());
        let buckets = match open {
            true => Buckets::Each { most, known: Mutex::default() },
            false => Buckets::One(Arc::new(TokenBucket::new(model.token_bucket))),
        };
        Self { model: model.clone(), buckets }
    }

    fn is_exactly(&self, asked: &Descriptor) -> bool {
        self.model.entries.len() == asked.entries.len()
            && self
                .model
                .entries
                .iter()
                .zip(&asked.entries)
                .all(|(known, (key, value))| *known.0 == **key && *known.1 == **value)
    }

    fn covers(&self, asked: &Descriptor) -> bool {
        self.model.entries.len() == asked.entries.len()
            && self
                .model
                .entries
                .iter()
                .zip(&asked.entries)
                .all(|(known, (key, value))| *known.0 == **key && (known.1.is_empty() || *known.1 == **value))
    }

    fn bucket(&self, asked: &Descriptor) -> Arc<TokenBucket> {
        let (most, known) = match &self.buckets {
            Buckets::One(bucket) => return bucket.clone(),
            Buckets::Each { most, known } => (*most, known),
        };
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let at = known.iter().position(|(descriptor, _)| descriptor.entries == asked.entries);
        let found = at.and_then(|at| known.remove(at));
        let entry =
            found.unwrap_or_else(|| (asked.clone(), Arc::new(TokenBucket::new(self.model.token_bucket))));
        let bucket = entry.1.clone();
        known.push_back(entry);
        if known.len() > most {
            known.pop_front();
        }
        bucket
    }
}

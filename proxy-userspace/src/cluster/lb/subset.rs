//! Subsets: the endpoints that share metadata, each with a balancer of its own, and what happens where none fits.
//!
//! Subsets are found by hashing the wanted metadata; no request looks at hosts.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use proxy_config::model::cluster::{
    MetadataFallback, SelectorFallback, Subset, SubsetFallback, SubsetSelector,
};
use proxy_config::model::metadata::{Struct, Value};

use super::balancer::Balancer;
use super::{Build, Members};
use crate::cluster::host::Host;
use crate::cluster::{Cluster, NoHost, Want};

/// Of the wanted metadata, with FALLBACK_LIST: further wants, tried in order.
const FALLBACK_LIST: &str = "fallback_list";

pub(super) struct Subsets {
    /// By all keys of a selector, with the values of some host.
    by_metadata: HashMap<Struct, Balancer>,
    /// The hosts of `default_subset`, where a policy can fall back to it.
    default: Option<Balancer>,
    config: Subset,
}

/// KEYS_SUBSET may lead from selector to selector; a configuration that leads in circles ends here.
const MAX_STEPS: usize = 16;

impl Subsets {
    pub(super) fn build(build: &Build<'_>, config: &Subset, levels: &[Members]) -> Self {
        let balancer = |keep: &dyn Fn(&Host) -> bool| {
            let members = levels.iter().map(|level| scaled(config, level, level.filter(keep))).collect();
            Balancer::build(build, members, config.locality_weight_aware)
        };
        let mut by_metadata = HashMap::new();
        for (key, hosts) in groups(config, levels) {
            by_metadata.insert(key, balancer(&|host| hosts.contains(&std::ptr::from_ref(host))));
        }
        let wants_default = config.fallback_policy == SubsetFallback::DefaultSubset
            || config.selectors.iter().any(|s| s.fallback_policy == SelectorFallback::DefaultSubset);
        let default = wants_default.then(|| balancer(&|host| matches(config, &config.default_subset, host)));
        Self { by_metadata, default, config: config.clone() }
    }

    pub(super) fn choose(
        &self,
        all: &Balancer,
        want: &Want<'_>,
        cluster: &Cluster,
    ) -> Result<Arc<Host>, NoHost> {
        let pick = Pick { subsets: self, all, want, cluster };
        let wanted = want.metadata_match;
        let list = match (self.config.metadata_fallback_policy, wanted.and_then(|w| w.get(FALLBACK_LIST))) {
            (MetadataFallback::FallbackList, Some(Value::List(list))) => list,
            (MetadataFallback::FallbackList | MetadataFallback::None, _) => return pick.once(wanted, 0),
        };
        let mut base = wanted.cloned().unwrap_or_default();
        base.remove(FALLBACK_LIST);
        if list.is_empty() {
            return pick.once(Some(&base), 0);
        }
        for fallback in list {
            let mut merged = base.clone();
            if let Value::Struct(fields) = fallback {
                merged.extend(fields.clone());
            }
            if let Ok(host) = pick.once(Some(&merged), 0) {
                return Ok(host);
            }
        }
        Err(NoHost::NoSubset)
    }

    pub(super) fn active(&self) -> u64 {
        self.by_metadata.len() as u64
    }

    /// How many subsets are new, and how many gone.
    pub(super) fn difference(&self, before: Option<&Self>) -> (u64, u64) {
        let missing = |from: Option<&Self>, of: Option<&Self>| -> u64 {
            let has = |key| from.is_some_and(|s| s.by_metadata.contains_key(key));
            of.map_or(0, |s| s.by_metadata.keys().filter(|key| !has(key)).count() as u64)
        };
        (missing(before, Some(self)), missing(Some(self), before))
    }

    /// The subset of exactly these keys and values; with `allow_redundant_keys`, of as many of them as possible.
    fn find(&self, wanted: &Struct) -> Option<&Balancer> {
        if !self.config.allow_redundant_keys {
            return self.by_metadata.get(wanted);
        }
        let mut selectors: Vec<_> = self.config.selectors.iter().map(|s| &s.keys).collect();
        selectors.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        let part = |keys: &BTreeSet<String>| only(wanted, keys).filter(|part| part.len() == keys.len());
        selectors.into_iter().filter_map(part).find_map(|part| self.by_metadata.get(&part))
    }

    fn selector(&self, wanted: &Struct) -> Option<&SubsetSelector> {
        self.config.selectors.iter().find(|selector| selector.keys.iter().eq(wanted.keys()))
    }
}

/// One choice.
struct Pick<'a> {
    subsets: &'a Subsets,
    all: &'a Balancer,
    want: &'a Want<'a>,
    cluster: &'a Cluster,
}

impl Pick<'_> {
    fn once(&self, wanted: Option<&Struct>, step: usize) -> Result<Arc<Host>, NoHost> {
        let wanted = wanted.filter(|wanted| !wanted.is_empty());
        if let Some(balancer) = wanted.and_then(|wanted| self.subsets.find(wanted)) {
            self.cluster.stats.lb_subsets_selected.inc();
            return balancer.choose(self.want, self.cluster).ok_or(NoHost::NoHealthy);
        }
        let selector = wanted.and_then(|wanted| self.subsets.selector(wanted));
        let from = |balancer: Option<&Balancer>| {
            balancer.and_then(|b| b.choose(self.want, self.cluster)).ok_or(NoHost::NoSubset)
        };
        match selector.map(|s| (s.fallback_policy, &s.fallback_keys_subset)) {
            Some((SelectorFallback::NoFallback, _)) => Err(NoHost::NoSubset),
            Some((SelectorFallback::AnyEndpoint, _)) => from(Some(self.all)),
            Some((SelectorFallback::DefaultSubset, _)) => from(self.subsets.default.as_ref()),
            Some((SelectorFallback::KeysSubset, keys)) if step < MAX_STEPS => {
                self.once(wanted.and_then(|wanted| only(wanted, keys)).as_ref(), step + 1)
            }
            Some((SelectorFallback::KeysSubset, _)) => Err(NoHost::NoSubset),
            Some((SelectorFallback::NotDefined, _)) | None => self.fall_back(),
        }
    }

    /// By the cluster's policy.
    fn fall_back(&self) -> Result<Arc<Host>, NoHost> {
        let stats = &self.cluster.stats;
        let balancer = match self.subsets.config.fallback_policy {
            SubsetFallback::NoFallback => None,
            SubsetFallback::AnyEndpoint => Some(self.all),
            SubsetFallback::DefaultSubset => self.subsets.default.as_ref(),
        };
        if let Some(host) = balancer.and_then(|b| b.choose(self.want, self.cluster)) {
            stats.lb_subsets_fallback.inc();
            return Ok(host);
        }
        let panic = balancer.is_some() && self.subsets.config.panic_mode_any;
        match panic.then(|| self.all.choose(self.want, self.cluster)).flatten() {
            Some(host) => {
                stats.lb_subsets_fallback_panic.inc();
                Ok(host)
            }
            None => Err(NoHost::NoSubset),
        }
    }
}

/// The part of `wanted` under these keys.
fn only(wanted: &Struct, keys: &BTreeSet<String>) -> Option<Struct> {
    let part: Struct =
        wanted.iter().filter(|(key, _)| keys.contains(*key)).map(|(k, v)| (k.clone(), v.clone())).collect();
    (!part.is_empty()).then_some(part)
}

/// The hosts of each subset. With `single_host_per_subset` only the first of them.
fn groups(config: &Subset, levels: &[Members]) -> HashMap<Struct, HashSet<*const Host>> {
    let mut groups: HashMap<Struct, HashSet<*const Host>> = HashMap::new();
    for host in levels.iter().flat_map(|level| level.hosts.iter()) {
        let metadata = host.metadata();
        let Some(own) = metadata.of("envoy.lb") else { continue };
        for selector in &config.selectors {
            for key in combinations(config, selector, own) {
                let hosts = groups.entry(key).or_default();
                if hosts.is_empty() || !selector.single_host_per_subset {
                    hosts.insert(Arc::as_ptr(host));
                }
            }
        }
    }
    groups
}

/// A host's values of a selector's keys; several where a list stands for each of its elements.
fn combinations(config: &Subset, selector: &SubsetSelector, own: &Struct) -> Vec<Struct> {
    let mut all = vec![Struct::new()];
    for key in &selector.keys {
        let values: &[Value] = match own.get(key) {
            None => return Vec::new(),
            Some(Value::List(list)) if config.list_as_any => list,
            Some(value) => std::slice::from_ref(value),
        };
        let with = |base: &Struct, value: &Value| {
            let mut one = base.clone();
            one.insert(key.clone(), value.clone());
            one
        };
        all = all.iter().flat_map(|base| values.iter().map(|value| with(base, value))).collect();
    }
    if selector.keys.is_empty() { Vec::new() } else { all }
}

fn matches(config: &Subset, want: &Struct, host: &Host) -> bool {
    let metadata = host.metadata();
    let own = metadata.of("envoy.lb");
    want.iter().all(|(key, value)| match own.and_then(|own| own.get(key)) {
        Some(Value::List(list)) if config.list_as_any => list.contains(value),
        found => found == Some(value),
    })
}

/// `scale_locality_weight`: a locality of which the subset has few hosts weighs less.
fn scaled(config: &Subset, all: &Members, mut part: Members) -> Members {
    if !config.locality_weight_aware || !config.scale_locality_weight {
        return part;
    }
    let sizes = |members: &Members| members.groups().map(|(_, hosts)| hosts.len()).collect::<Vec<_>>();
    let (whole, left) = (sizes(all), sizes(&part));
    for (span, (whole, left)) in part.localities.iter_mut().zip(whole.iter().zip(left)) {
        let ratio = left as f64 / (*whole).max(1) as f64;
        // Never to nothing: a locality with a host and a weight keeps some.
        let weight = (f64::from(span.weight) * ratio).round();
        span.weight = if span.weight > 0 && left > 0 { (weight as u32).max(1) } else { 0 };
    }
    part
}

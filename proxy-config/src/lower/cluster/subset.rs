//! `lb_subset_config`, and the load balancing policy of the same meaning.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::cluster::v3::LoadBalancingPolicy;
use envoy_types::pb::envoy::config::cluster::v3::cluster::LbSubsetConfig;
use envoy_types::pb::envoy::config::cluster::v3::cluster::lb_subset_config::{
    LbSubsetFallbackPolicy, LbSubsetMetadataFallbackPolicy, LbSubsetSelector,
    lb_subset_selector::LbSubsetSelectorFallbackPolicy,
};
use envoy_types::pb::envoy::extensions::load_balancing_policies::subset::v3 as policy;

use crate::lower::registry::registry;
use crate::lower::value::structure;
use crate::lower::{Cx, IsSet};
use crate::model::cluster as model;

registry! { LbSubsetConfig, LbSubsetSelector, policy::Subset }

lower! { "envoy.config.cluster.v3.Cluster.LbSubsetConfig" LbSubsetConfig => Option<Box<model::Subset>>, cx;
    read {
        fallback_policy, default_subset, subset_selectors, locality_weight_aware, scale_locality_weight,
        panic_mode_any, list_as_any, metadata_fallback_policy,
    }
    {
        let enabled = !subset_selectors.is_empty();
        if !enabled {
            let unused = [
                ("fallback_policy", fallback_policy.is_set()),
                ("default_subset", default_subset.is_set()),
                ("locality_weight_aware", locality_weight_aware),
                ("scale_locality_weight", scale_locality_weight),
                ("panic_mode_any", panic_mode_any),
                ("list_as_any", list_as_any),
                ("metadata_fallback_policy", metadata_fallback_policy.is_set()),
            ];
            for (name, _) in unused.into_iter().filter(|(_, set)| *set) {
                cx.warn(name, "has no effect: subsets need subset_selectors");
            }
        }
        let selectors = cx.list("subset_selectors", subset_selectors);
        let subset = model::Subset {
            fallback_policy: fallback(cx, fallback_policy)?,
            default_subset: default_subset.map(structure).unwrap_or_default(),
            selectors,
            locality_weight_aware,
            scale_locality_weight,
            panic_mode_any,
            list_as_any,
            metadata_fallback_policy: metadata_fallback(cx, metadata_fallback_policy)?,
            allow_redundant_keys: false,
        };
        Some(enabled.then(|| Box::new(subset)))
    }
}

lower! { "envoy.extensions.load_balancing_policies.subset.v3.Subset"
    policy::Subset => (Option<Box<model::Subset>>, LoadBalancingPolicy), cx;
    read {
        fallback_policy, default_subset, subset_selectors, allow_redundant_keys, locality_weight_aware,
        scale_locality_weight, panic_mode_any, list_as_any, metadata_fallback_policy, subset_lb_policy,
    }
    {
        let old = LbSubsetConfig {
            fallback_policy,
            default_subset,
            subset_selectors: subset_selectors.into_iter().map(selector_from_policy).collect(),
            locality_weight_aware,
            scale_locality_weight,
            panic_mode_any,
            list_as_any,
            metadata_fallback_policy,
        };
        let lowered = old.lower(cx)?;
        if allow_redundant_keys && lowered.is_none() {
            cx.warn("allow_redundant_keys", "has no effect: subsets need subset_selectors");
        }
        if subset_lb_policy.is_none() {
            cx.reject("subset_lb_policy", "is required");
        }
        let subset = lowered.map(|subset| Box::new(model::Subset { allow_redundant_keys, ..*subset }));
        Some((subset, subset_lb_policy?))
    }
}

fn selector_from_policy(selector: policy::subset::LbSubsetSelector) -> LbSubsetSelector {
    let policy::subset::LbSubsetSelector {
        keys,
        single_host_per_subset,
        fallback_policy,
        fallback_keys_subset,
    } = selector;
    LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset }
}

fn fallback(cx: &mut Cx, value: i32) -> Option<model::SubsetFallback> {
    Some(match cx.variant("fallback_policy", value)? {
        LbSubsetFallbackPolicy::NoFallback => model::SubsetFallback::NoFallback,
        LbSubsetFallbackPolicy::AnyEndpoint => model::SubsetFallback::AnyEndpoint,
        LbSubsetFallbackPolicy::DefaultSubset => model::SubsetFallback::DefaultSubset,
    })
}

fn metadata_fallback(cx: &mut Cx, value: i32) -> Option<model::MetadataFallback> {
    Some(match cx.variant("metadata_fallback_policy", value)? {
        LbSubsetMetadataFallbackPolicy::MetadataNoFallback => model::MetadataFallback::None,
        LbSubsetMetadataFallbackPolicy::FallbackList => model::MetadataFallback::FallbackList,
    })
}

lower! { "envoy.config.cluster.v3.Cluster.LbSubsetConfig.LbSubsetSelector" LbSubsetSelector => model::SubsetSelector, cx;
    read { keys, single_host_per_subset, fallback_policy, fallback_keys_subset }
    {
        let keys: BTreeSet<String> = keys.into_iter().collect();
        let fallback_keys_subset: BTreeSet<String> = fallback_keys_subset.into_iter().collect();
        let fallback_policy = selector_fallback(cx, fallback_policy)?;
        if keys.is_empty() {
            cx.warn_here("selects nothing: it has no keys");
        }
        check_fallback_keys(cx, &keys, fallback_policy, &fallback_keys_subset);
        Some(model::SubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset })
    }
}

fn selector_fallback(cx: &mut Cx, value: i32) -> Option<model::SelectorFallback> {
    Some(match cx.variant("fallback_policy", value)? {
        LbSubsetSelectorFallbackPolicy::NotDefined => model::SelectorFallback::NotDefined,
        LbSubsetSelectorFallbackPolicy::NoFallback => model::SelectorFallback::NoFallback,
        LbSubsetSelectorFallbackPolicy::AnyEndpoint => model::SelectorFallback::AnyEndpoint,
        LbSubsetSelectorFallbackPolicy::DefaultSubset => model::SelectorFallback::DefaultSubset,
        LbSubsetSelectorFallbackPolicy::KeysSubset => model::SelectorFallback::KeysSubset,
    })
}

/// Each step of a KEYS_SUBSET fallback must lose a key, or it would never end.
fn check_fallback_keys(
    cx: &mut Cx,
    keys: &BTreeSet<String>,
    policy: model::SelectorFallback,
    fallback: &BTreeSet<String>,
) {
    let name = "fallback_keys_subset";
    if policy != model::SelectorFallback::KeysSubset {
        if !fallback.is_empty() {
            cx.reject(name, "can be set with fallback_policy KEYS_SUBSET only");
        }
    } else if fallback.is_empty() {
        cx.reject(name, "cannot be empty with fallback_policy KEYS_SUBSET");
    } else if fallback == keys {
        cx.reject(name, "cannot be equal to keys");
    } else if !fallback.is_subset(keys) {
        cx.reject(name, "must be a subset of keys");
    }
}

//! The example of Envoy's documentation, and every fallback.

use std::collections::BTreeSet;
use std::sync::Arc;

use proxy_config::model;
use proxy_config::model::cluster::{
    MetadataFallback, SelectorFallback, Subset, SubsetFallback, SubsetSelector,
};
use proxy_config::model::endpoint::Endpoint;
use proxy_config::model::metadata::{Struct, Value};

use crate::cluster::testing::*;
use crate::cluster::{Cluster, NoHost, Want};

fn keys(text: &str) -> BTreeSet<String> {
    text.split(',').filter(|key| !key.is_empty()).map(str::to_owned).collect()
}

fn selector(text: &str, fallback_policy: SelectorFallback, fallback: &str) -> SubsetSelector {
    SubsetSelector {
        keys: keys(text),
        single_host_per_subset: false,
        fallback_policy,
        fallback_keys_subset: keys(fallback),
    }
}

fn plain(text: &str) -> SubsetSelector {
    selector(text, SelectorFallback::NotDefined, "")
}

fn subset(selectors: Vec<SubsetSelector>) -> Subset {
    Subset {
        fallback_policy: SubsetFallback::NoFallback,
        default_subset: Struct::new(),
        selectors,
        locality_weight_aware: false,
        scale_locality_weight: false,
        panic_mode_any: false,
        list_as_any: false,
        metadata_fallback_policy: MetadataFallback::None,
        allow_redundant_keys: false,
    }
}

/// e1 to e7 of Envoy's example, on the ports 1 to 7.
fn example(config: Subset) -> Arc<Cluster> {
    let endpoints = [
        "stage=prod,version=1.0,type=std,xlarge=true",
        "stage=prod,version=1.0,type=std",
        "stage=prod,version=1.1,type=std",
        "stage=prod,version=1.1,type=std",
        "stage=prod,version=1.0,type=bigmem",
        "stage=prod,version=1.1,type=bigmem",
        "stage=dev,version=1.2-pre,type=std",
    ];
    let with = |(port, text): (u16, &str)| Endpoint {
        metadata: lb_metadata(text),
        ..endpoint(&format!("127.0.0.1:{port}"))
    };
    let endpoints = (1..).zip(endpoints).map(with).collect();
    cluster(model::Cluster { subset: Some(Box::new(config)), ..model(endpoints) })
}

fn documented() -> Subset {
    Subset {
        fallback_policy: SubsetFallback::DefaultSubset,
        default_subset: fields("stage=prod,version=1.0,type=std"),
        ..subset(vec![plain("stage,type"), plain("stage,version"), plain("version"), plain("version,xlarge")])
    }
}

/// The ports that a want can come to.
fn reach(cluster: &Cluster, wanted: &Struct) -> Vec<u16> {
    let want = Want { metadata_match: Some(wanted), ..Want::default() };
    let chosen = (0..50).filter_map(|_| cluster.choose(&want).ok());
    chosen.map(|host| port(&host)).collect::<BTreeSet<_>>().into_iter().collect()
}

#[test]
fn the_table_of_envoys_documentation() {
    let cluster = example(documented());
    for (wanted, ports) in [
        ("stage=prod,type=std", &[1, 2, 3, 4][..]),
        ("stage=prod,type=bigmem", &[5, 6]),
        ("stage=dev,type=std", &[7]),
        ("stage=prod,version=1.0", &[1, 2, 5]),
        ("stage=prod,version=1.1", &[3, 4, 6]),
        ("stage=dev,version=1.2-pre", &[7]),
        ("version=1.0", &[1, 2, 5]),
        ("version=1.1", &[3, 4, 6]),
        ("version=1.2-pre", &[7]),
        ("version=1.0,xlarge=true", &[1]),
        // Nothing of the kind, keys of no selector, nothing wanted: the default subset.
        ("version=9", &[1, 2]),
        ("other=1", &[1, 2]),
        ("stage=prod,version=1.0,type=std", &[1, 2]),
        ("", &[1, 2]),
    ] {
        assert_eq!(reach(&cluster, &fields(wanted)), ports, "{wanted}");
    }
    let stats = &cluster.stats;
    assert_eq!(stats.lb_subsets_active.value(), 10);
    assert_eq!(stats.lb_subsets_created.value(), 10);
    assert_eq!(stats.lb_subsets_selected.value(), 500);
    assert_eq!(stats.lb_subsets_fallback.value(), 200);
}

#[test]
fn the_clusters_fallbacks() {
    for (policy, ports) in [
        (SubsetFallback::NoFallback, &[][..]),
        (SubsetFallback::AnyEndpoint, &[1, 2, 3, 4, 5, 6, 7]),
        (SubsetFallback::DefaultSubset, &[1, 2]),
    ] {
        let cluster = example(Subset { fallback_policy: policy, ..documented() });
        assert_eq!(reach(&cluster, &fields("version=9")), ports, "{policy:?}");
    }
    let none = example(Subset { fallback_policy: SubsetFallback::NoFallback, ..documented() });
    assert_eq!(none.choose(&Want::default()).unwrap_err(), NoHost::NoSubset);
    assert_eq!(none.stats.upstream_cx_none_healthy.value(), 1);
}

#[test]
fn a_selectors_fallback_goes_first() {
    let with = |policy, fallback: &str| {
        let selectors = vec![selector("stage,version", policy, fallback), plain("stage")];
        example(Subset { selectors, ..documented() })
    };
    let wanted = fields("stage=dev,version=1.0");
    for (policy, fallback, ports) in [
        (SelectorFallback::NotDefined, "", &[1, 2][..]),
        (SelectorFallback::NoFallback, "", &[]),
        (SelectorFallback::AnyEndpoint, "", &[1, 2, 3, 4, 5, 6, 7]),
        (SelectorFallback::DefaultSubset, "", &[1, 2]),
        (SelectorFallback::KeysSubset, "stage", &[7]),
    ] {
        assert_eq!(reach(&with(policy, fallback), &wanted), ports, "{policy:?}");
    }
    // Round in a circle: it ends.
    assert!(reach(&with(SelectorFallback::KeysSubset, "stage,version"), &wanted).is_empty());
}

#[test]
fn a_list_of_fallbacks_is_tried_in_order() {
    let config = Subset { metadata_fallback_policy: MetadataFallback::FallbackList, ..documented() };
    let cluster = example(Subset { fallback_policy: SubsetFallback::NoFallback, ..config });
    let list = |texts: &[&str]| Value::List(texts.iter().map(|text| Value::Struct(fields(text))).collect());
    let mut wanted = fields("stage=prod");
    wanted.insert("fallback_list".to_owned(), list(&["version=9", "version=1.1"]));
    assert_eq!(reach(&cluster, &wanted), [3, 4, 6]);
    wanted.insert("fallback_list".to_owned(), list(&["version=9"]));
    assert!(reach(&cluster, &wanted).is_empty());
    wanted = Struct::from([("fallback_list".to_owned(), list(&["version=1.2-pre"]))]);
    assert_eq!(reach(&cluster, &wanted), [7]);
}

#[test]
fn lists_stand_for_each_of_their_elements() {
    for (list_as_any, ports) in [(false, &[][..]), (true, &[1])] {
        let mut one = endpoint("127.0.0.1:1");
        let values = ["a", "b"].map(|v| Value::String(v.to_owned())).to_vec();
        let own = Struct::from([("app".to_owned(), Value::List(values))]);
        one.metadata = Arc::new(model::Metadata([("envoy.lb".to_owned(), own)].into()));
        let config = Subset { list_as_any, ..subset(vec![plain("app")]) };
        let cluster = cluster(model::Cluster { subset: Some(Box::new(config)), ..model(vec![one]) });
        assert_eq!(reach(&cluster, &fields("app=a")), ports);
        assert_eq!(reach(&cluster, &fields("app=b")), ports);
    }
}

#[test]
fn one_host_for_a_subset() {
    let selectors = vec![SubsetSelector { single_host_per_subset: true, ..plain("stage") }];
    let cluster = example(Subset { selectors, ..documented() });
    assert_eq!(reach(&cluster, &fields("stage=prod")).len(), 1);
}

#[test]
fn redundant_keys_take_the_most_specific() {
    let config = Subset { allow_redundant_keys: true, ..documented() };
    let cluster = example(config);
    assert_eq!(reach(&cluster, &fields("stage=prod,type=bigmem,x=1")), [5, 6]);
    assert_eq!(reach(&cluster, &fields("version=1.1,x=1")), [3, 4, 6]);
}

#[test]
fn a_default_subset_without_hosts_panics_on_wish() {
    for (panic_mode_any, count) in [(false, 0), (true, 7)] {
        let default_subset = fields("stage=nowhere");
        let cluster = example(Subset { panic_mode_any, default_subset, ..documented() });
        assert_eq!(reach(&cluster, &fields("version=9")).len(), count);
        assert_eq!(cluster.stats.lb_subsets_fallback_panic.value() > 0, panic_mode_any);
    }
}

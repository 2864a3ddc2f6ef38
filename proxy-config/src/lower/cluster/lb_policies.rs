//! `envoy.extensions.load_balancing_policies.*`.

use envoy_types::pb::envoy::config::cluster::v3::LoadBalancingPolicy;
use envoy_types::pb::envoy::extensions::load_balancing_policies as pb;
use envoy_types::pb::google::protobuf::Any;

use super::common_lb::Hashing;
use super::lb::{Balancing, maglev, pick, ring, usable_bias};
use crate::diagnostic::Segment;
use crate::lower::Cx;
use crate::lower::extension::Extension;
use crate::lower::registry::registry;
use crate::lower::value::{flag, number};
use crate::model::cluster as model;

registry! {
    pb::round_robin::v3::RoundRobin, pb::least_request::v3::LeastRequest, pb::random::v3::Random,
    pb::ring_hash::v3::RingHash, pb::maglev::v3::Maglev, pb::wrr_locality::v3::WrrLocality,
}

pub enum Tried {
    /// `None` inside: it is known, and has an error.
    Known(Option<Box<Balancing>>),
    Unknown,
}

/// One entry of a list, by the type of its configuration.
pub fn lower(cx: &mut Cx, name: &str, any: Option<Any>, depth: usize) -> Tried {
    let Some(any) = any else {
        cx.reject("typed_config", format!("\"{name}\": is required"));
        return Tried::Known(None);
    };
    let Some(extension) = Extension::unpack(cx, &any) else { return Tried::Known(None) };
    let short =
        extension.type_name.strip_prefix("envoy.extensions.load_balancing_policies.").unwrap_or_default();
    let balancing = match short {
        "round_robin.v3.RoundRobin" => extension.lower::<pb::round_robin::v3::RoundRobin>(cx),
        "least_request.v3.LeastRequest" => extension.lower::<pb::least_request::v3::LeastRequest>(cx),
        "random.v3.Random" => extension.lower::<pb::random::v3::Random>(cx),
        "ring_hash.v3.RingHash" => extension.lower::<pb::ring_hash::v3::RingHash>(cx),
        "maglev.v3.Maglev" => extension.lower::<pb::maglev::v3::Maglev>(cx),
        "cluster_provided.v3.ClusterProvided" => Some(model::LbPolicy::ClusterProvided.into()),
        "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin" => {
            cx.warn_here("weights come with HTTP responses only: without them hosts are picked in turn");
            Some(model::LbPolicy::RoundRobin.into())
        }
        "wrr_locality.v3.WrrLocality" => wrr_locality(cx, &extension, depth),
        "subset.v3.Subset" => subset(cx, &extension, depth),
        _ => {
            let type_name = &extension.type_name;
            cx.warn_here(format!("\"{name}\": {type_name} is not implemented: the next policy is tried"));
            return Tried::Unknown;
        }
    };
    Tried::Known(balancing.map(Box::new))
}

/// Localities by their weights, hosts by the policy inside.
fn wrr_locality(cx: &mut Cx, extension: &Extension, depth: usize) -> Option<Balancing> {
    let child = extension.lower::<pb::wrr_locality::v3::WrrLocality>(cx)?;
    let picked = cx.field("typed_config", |cx| {
        at_child(cx, "WrrLocality", "endpoint_picking_policy", |cx| {
            let picked = pick(cx, child, depth + 1)?;
            if picked.lb == model::LbPolicy::ClusterProvided || picked.subset.is_some() {
                cx.reject_here(
                    "has to pick an endpoint of a locality: neither a subset nor the cluster's own",
                );
                return None;
            }
            Some(picked)
        })
    })?;
    Some(Balancing { locality: Some(model::LocalityLb::Weighted), ..picked })
}

fn subset(cx: &mut Cx, extension: &Extension, depth: usize) -> Option<Balancing> {
    let (subset, child) = extension.lower::<pb::subset::v3::Subset>(cx)?;
    let picked = cx.field("typed_config", |cx| {
        at_child(cx, "Subset", "subset_lb_policy", |cx| {
            let picked = pick(cx, child, depth + 1)?;
            if picked.lb == model::LbPolicy::ClusterProvided || picked.subset.is_some() {
                cx.reject_here(
                    "subsets of subsets, or of hosts that the cluster provides, are not implemented",
                );
                return None;
            }
            Some(picked)
        })
    })?;
    Some(Balancing { subset, ..picked })
}

fn at_child<T>(cx: &mut Cx, kind: &str, field: &'static str, f: impl FnOnce(&mut Cx) -> T) -> T {
    cx.within(Segment::Type(kind.to_owned()), |cx| cx.field(field, f))
}

lower! { "envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality"
    pb::wrr_locality::v3::WrrLocality => LoadBalancingPolicy, cx;
    read { endpoint_picking_policy }
    {
        if endpoint_picking_policy.is_none() {
            cx.reject("endpoint_picking_policy", "is required");
        }
        endpoint_picking_policy
    }
}

lower! { "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin"
    pb::round_robin::v3::RoundRobin => Balancing, cx;
    read { slow_start_config, locality_lb_config }
    {
        Some(Balancing {
            slow_start: slow_start_config.and_then(|config| cx.lower("slow_start_config", config)),
            locality: locality_lb_config.and_then(|config| cx.lower("locality_lb_config", config)),
            ..model::LbPolicy::RoundRobin.into()
        })
    }
}

lower! { "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest"
    pb::least_request::v3::LeastRequest => Balancing, cx;
    read { choice_count, active_request_bias, slow_start_config, locality_lb_config, selection_method, enable_full_scan }
    {
        use pb::least_request::v3::least_request::SelectionMethod;
        let choice_count = number(choice_count).unwrap_or(2);
        if choice_count < 2 {
            cx.warn("choice_count", format!("{choice_count} is less than 2: a random host is picked"));
        }
        if cx.variant::<SelectionMethod>("selection_method", selection_method)? == SelectionMethod::FullScan {
            cx.warn("selection_method", "FULL_SCAN is not implemented: the best of choice_count is picked");
        }
        if flag(enable_full_scan, false) {
            cx.warn("enable_full_scan", "is not implemented: the best of choice_count is picked");
        }
        let bias = active_request_bias.and_then(|bias| cx.lower("active_request_bias", bias));
        let active_request_bias = usable_bias(cx, bias);
        let lb = model::LbPolicy::LeastRequest { choice_count: choice_count.max(1), active_request_bias };
        Some(Balancing {
            slow_start: slow_start_config.and_then(|config| cx.lower("slow_start_config", config)),
            locality: locality_lb_config.and_then(|config| cx.lower("locality_lb_config", config)),
            ..lb.into()
        })
    }
}

lower! { "envoy.extensions.load_balancing_policies.random.v3.Random" pb::random::v3::Random => Balancing, cx;
    read { locality_lb_config }
    {
        let locality = locality_lb_config.and_then(|config| cx.lower("locality_lb_config", config));
        Some(Balancing { locality, ..model::LbPolicy::Random.into() })
    }
}

lower! { "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash"
    pb::ring_hash::v3::RingHash => Balancing, cx;
    read {
        hash_function, minimum_ring_size, maximum_ring_size, use_hostname_for_hashing, hash_balance_factor,
        consistent_hashing_lb_config, locality_weighted_lb_config,
    }
    {
        use pb::ring_hash::v3::ring_hash::HashFunction;
        let hash = match cx.variant("hash_function", hash_function)? {
            HashFunction::DefaultHash | HashFunction::XxHash => model::HashFunction::XxHash,
            HashFunction::MurmurHash2 => model::HashFunction::MurmurHash2,
        };
        let lb = ring(cx, minimum_ring_size.map(|v| v.value), maximum_ring_size.map(|v| v.value), hash)?;
        let hashing = match consistent_hashing_lb_config {
            Some(config) => cx.lower("consistent_hashing_lb_config", config)?,
            None => Hashing { use_hostname: use_hostname_for_hashing, balance_factor: number(hash_balance_factor) },
        };
        Some(Balancing {
            hashing: Some(hashing),
            locality: locality_weighted_lb_config.map(|_| model::LocalityLb::Weighted),
            ..lb.into()
        })
    }
}

lower! { "envoy.extensions.load_balancing_policies.maglev.v3.Maglev" pb::maglev::v3::Maglev => Balancing, cx;
    read { table_size, consistent_hashing_lb_config, locality_weighted_lb_config }
    {
        let lb = maglev(cx, table_size.map(|v| v.value))?;
        Some(Balancing {
            hashing: consistent_hashing_lb_config.and_then(|config| cx.lower("consistent_hashing_lb_config", config)),
            locality: locality_weighted_lb_config.map(|_| model::LocalityLb::Weighted),
            ..lb.into()
        })
    }
}

//! Which load balancer: `lb_policy` with its configuration, or the first usable of `load_balancing_policy`.

use envoy_types::pb::envoy::config::cluster::v3::cluster as pb;
use envoy_types::pb::envoy::config::cluster::v3::load_balancing_policy::Policy;
use envoy_types::pb::envoy::config::cluster::v3::{LoadBalancingPolicy, cluster};
use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;

use super::common_lb::Hashing;
use super::lb_policies;
use super::scalars::{at_least, at_most};
use crate::lower::Cx;
use crate::lower::registry::registry;
use crate::lower::value::number;
use crate::model::cluster as model;

registry! { pb::RingHashLbConfig, pb::MaglevLbConfig, pb::LeastRequestLbConfig, pb::RoundRobinLbConfig }

/// A policy with what it says about itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Balancing {
    pub lb: model::LbPolicy,
    pub slow_start: Option<Box<model::SlowStart>>,
    /// `None` where `common_lb_config` decides.
    pub locality: Option<model::LocalityLb>,
    pub hashing: Option<Hashing>,
    pub subset: Option<Box<model::Subset>>,
}

impl From<model::LbPolicy> for Balancing {
    fn from(lb: model::LbPolicy) -> Self {
        Self { lb, slow_start: None, locality: None, hashing: None, subset: None }
    }
}

/// The fields of a cluster that say how to balance.
pub struct Fields {
    pub lb_policy: i32,
    /// Without `original_dst_lb_config`, which is about discovery.
    pub lb_config: Option<cluster::LbConfig>,
    pub lb_subset_config: Option<pb::LbSubsetConfig>,
    pub load_balancing_policy: Option<LoadBalancingPolicy>,
}

pub fn balancing(cx: &mut Cx, fields: Fields, common: &model::CommonLb) -> Option<Balancing> {
    let Fields { lb_policy, lb_config, lb_subset_config, load_balancing_policy } = fields;
    let policy = cx.variant::<cluster::LbPolicy>("lb_policy", lb_policy)?;
    let config = lb_config.and_then(|config| configured(cx, config));
    let Some(list) = load_balancing_policy else {
        return by_name(cx, policy, config, lb_subset_config);
    };
    if !matches!(policy, cluster::LbPolicy::LoadBalancingPolicyConfig | cluster::LbPolicy::RoundRobin) {
        cx.warn("lb_policy", "has no effect: load_balancing_policy decides");
    }
    if let Some((name, _)) = config {
        cx.warn(name, "has no effect: load_balancing_policy decides");
    }
    if lb_subset_config.is_some() {
        cx.reject("lb_subset_config", "cannot be combined with load_balancing_policy");
    }
    if common.locality != model::LocalityLb::None
        || common.use_hostname_for_hashing
        || common.hash_balance_factor.is_some()
    {
        cx.reject(
            "common_lb_config",
            "zone_aware_lb_config, locality_weighted_lb_config and consistent_hashing_lb_config cannot be combined \
             with load_balancing_policy",
        );
    }
    cx.field("load_balancing_policy", |cx| pick(cx, list, 0))
}

/// By `lb_policy`, which has to fit the configuration that is there.
fn by_name(
    cx: &mut Cx,
    policy: cluster::LbPolicy,
    config: Option<(&'static str, Balancing)>,
    subset: Option<pb::LbSubsetConfig>,
) -> Option<Balancing> {
    let (default, field) = match policy {
        cluster::LbPolicy::RoundRobin => (model::LbPolicy::RoundRobin, "round_robin_lb_config"),
        cluster::LbPolicy::LeastRequest => (LEAST_REQUEST, "least_request_lb_config"),
        cluster::LbPolicy::RingHash => (RING_HASH, "ring_hash_lb_config"),
        cluster::LbPolicy::Random => (model::LbPolicy::Random, ""),
        cluster::LbPolicy::Maglev => (MAGLEV, "maglev_lb_config"),
        cluster::LbPolicy::ClusterProvided => (model::LbPolicy::ClusterProvided, ""),
        cluster::LbPolicy::LoadBalancingPolicyConfig => {
            cx.reject("load_balancing_policy", "is required by lb_policy LOAD_BALANCING_POLICY_CONFIG");
            return None;
        }
    };
    let mut balancing = match config {
        Some((name, balancing)) if name == field => balancing,
        Some((name, _)) => {
            cx.warn(name, format!("has no effect with lb_policy {}", policy.as_str_name()));
            default.into()
        }
        None => default.into(),
    };
    balancing.subset = subset.and_then(|subset| cx.lower("lb_subset_config", subset)).flatten();
    if balancing.subset.is_some() && policy == cluster::LbPolicy::ClusterProvided {
        cx.reject("lb_subset_config", "LB policy CLUSTER_PROVIDED cannot be combined with lb_subset_config");
    }
    Some(balancing)
}

pub const LEAST_REQUEST: model::LbPolicy =
    model::LbPolicy::LeastRequest { choice_count: 2, active_request_bias: 1.0 };
pub const RING_HASH: model::LbPolicy = model::LbPolicy::RingHash {
    minimum_ring_size: 1024,
    maximum_ring_size: MAX_RING,
    hash: model::HashFunction::XxHash,
};
pub const MAGLEV: model::LbPolicy = model::LbPolicy::Maglev { table_size: 65_537 };
/// The most entries of a ring.
const MAX_RING: u64 = 8 * 1024 * 1024;
const MAX_MAGLEV: u64 = 5_000_011;

/// The configuration's own name, since it may not be the policy's.
fn configured(cx: &mut Cx, config: cluster::LbConfig) -> Option<(&'static str, Balancing)> {
    use cluster::LbConfig as Kind;
    let (name, balancing) = match config {
        Kind::RingHashLbConfig(config) => ("ring_hash_lb_config", cx.lower("ring_hash_lb_config", config)),
        Kind::MaglevLbConfig(config) => ("maglev_lb_config", cx.lower("maglev_lb_config", config)),
        Kind::LeastRequestLbConfig(config) => {
            ("least_request_lb_config", cx.lower("least_request_lb_config", config))
        }
        Kind::RoundRobinLbConfig(config) => {
            ("round_robin_lb_config", cx.lower("round_robin_lb_config", config))
        }
        Kind::OriginalDstLbConfig(_) => return None,
    };
    balancing.map(|balancing| (name, balancing))
}

lower! { "envoy.config.cluster.v3.Cluster.RoundRobinLbConfig" pb::RoundRobinLbConfig => Balancing, cx;
    read { slow_start_config }
    {
        let slow_start = slow_start_config.and_then(|config| cx.lower("slow_start_config", config));
        Some(Balancing { slow_start, ..model::LbPolicy::RoundRobin.into() })
    }
}

lower! { "envoy.config.cluster.v3.Cluster.LeastRequestLbConfig" pb::LeastRequestLbConfig => Balancing, cx;
    read { choice_count, active_request_bias, slow_start_config }
    {
        let choice_count = at_least(cx, "choice_count", number(choice_count), 2).unwrap_or(2);
        let bias = active_request_bias.and_then(|bias| cx.lower("active_request_bias", bias));
        let active_request_bias = usable_bias(cx, bias);
        let slow_start = slow_start_config.and_then(|config| cx.lower("slow_start_config", config));
        Some(Balancing { slow_start, ..model::LbPolicy::LeastRequest { choice_count, active_request_bias }.into() })
    }
}

/// Envoy replaces one that is negative or no number.
pub fn usable_bias(cx: &mut Cx, bias: Option<f64>) -> f64 {
    match bias {
        Some(bias) if bias >= 0.0 => bias,
        Some(bias) => {
            cx.warn("active_request_bias", format!("{bias} is less than 0: 1 is taken"));
            1.0
        }
        None => 1.0,
    }
}

lower! { "envoy.config.cluster.v3.Cluster.RingHashLbConfig" pb::RingHashLbConfig => Balancing, cx;
    read { minimum_ring_size, hash_function, maximum_ring_size }
    {
        use pb::ring_hash_lb_config::HashFunction;
        let hash = match cx.variant("hash_function", hash_function)? {
            HashFunction::XxHash => model::HashFunction::XxHash,
            HashFunction::MurmurHash2 => model::HashFunction::MurmurHash2,
        };
        ring(cx, minimum_ring_size.map(|v| v.value), maximum_ring_size.map(|v| v.value), hash).map(Into::into)
    }
}

pub fn ring(
    cx: &mut Cx,
    minimum: Option<u64>,
    maximum: Option<u64>,
    hash: model::HashFunction,
) -> Option<model::LbPolicy> {
    let minimum_ring_size = at_most(cx, "minimum_ring_size", minimum.or(Some(1024)), MAX_RING)?;
    let maximum_ring_size = at_most(cx, "maximum_ring_size", maximum.or(Some(MAX_RING)), MAX_RING)?;
    if minimum_ring_size > maximum_ring_size {
        cx.reject(
            "minimum_ring_size",
            format!("minimum_ring_size ({minimum_ring_size}) > maximum_ring_size ({maximum_ring_size})"),
        );
        return None;
    }
    if minimum_ring_size == 0 {
        cx.warn("minimum_ring_size", "0 makes an empty ring, in which no host is found");
    }
    Some(model::LbPolicy::RingHash { minimum_ring_size, maximum_ring_size, hash })
}

lower! { "envoy.config.cluster.v3.Cluster.MaglevLbConfig" pb::MaglevLbConfig => Balancing, cx;
    read { table_size }
    {
        maglev(cx, table_size.map(|v| v.value)).map(Into::into)
    }
}

pub fn maglev(cx: &mut Cx, table_size: Option<u64>) -> Option<model::LbPolicy> {
    let Some(table_size) = table_size else { return Some(MAGLEV) };
    let table_size = at_most(cx, "table_size", Some(table_size), MAX_MAGLEV)?;
    if !is_prime(table_size) {
        cx.reject("table_size", format!("{table_size} is not a prime number"));
        return None;
    }
    Some(model::LbPolicy::Maglev { table_size })
}

fn is_prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

/// Deeper than a subset of weighted localities of a policy nothing nests that works.
const MAX_DEPTH: usize = 3;

/// The first that is known, as Envoy does.
pub fn pick(cx: &mut Cx, list: LoadBalancingPolicy, depth: usize) -> Option<Balancing> {
    if depth >= MAX_DEPTH {
        cx.reject_here("load balancing policies are nested too deeply");
        return None;
    }
    let LoadBalancingPolicy { policies } = list;
    let mut names = Vec::new();
    for (i, Policy { typed_extension_config }) in policies.into_iter().enumerate() {
        let Some(TypedExtensionConfig { name, typed_config }) = typed_extension_config else { continue };
        let tried = cx.field("policies", |cx| {
            cx.index(i, |cx| {
                cx.field("typed_extension_config", |cx| lb_policies::lower(cx, &name, typed_config, depth))
            })
        });
        match tried {
            lb_policies::Tried::Known(balancing) => return balancing.map(|b| *b),
            lb_policies::Tried::Unknown => names.push(name),
        }
    }
    cx.reject("policies", format!("no load balancing policy is implemented of [{}]", names.join(", ")));
    None
}

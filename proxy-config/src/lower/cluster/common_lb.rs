//! What all load balancers share: localities, panic, slow start, hashing by host name.

use envoy_types::pb::envoy::config::cluster::v3::cluster as pb;
use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config as old;
use envoy_types::pb::envoy::extensions::load_balancing_policies::common::v3 as new;
use envoy_types::pb::envoy::extensions::load_balancing_policies::common::v3::locality_lb_config as new_locality;

use super::scalars::{at_least, percent};
use crate::lower::Cx;
use crate::lower::registry::registry;
use crate::lower::value::number;
use crate::model::cluster as model;

/// Why zones do not count.
const ZONES: &str = "zone-aware routing is not implemented: the endpoints of all zones are taken alike";

registry! {
    pb::CommonLbConfig, old::ZoneAwareLbConfig, old::ConsistentHashingLbConfig, pb::SlowStartConfig,
    new::LocalityLbConfig, new_locality::ZoneAwareLbConfig, new::ConsistentHashingLbConfig, new::SlowStartConfig,
}

/// `ConsistentHashingLbConfig`, of either kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hashing {
    pub use_hostname: bool,
    pub balance_factor: Option<u32>,
}

lower! { "envoy.config.cluster.v3.Cluster.CommonLbConfig" pb::CommonLbConfig => model::CommonLb, cx;
    read {
        healthy_panic_threshold, ignore_new_hosts_until_first_hc,
        close_connections_on_host_set_change, consistent_hashing_lb_config, locality_config_specifier,
    }
    warn {
        override_host_status: "hosts are overridden by stateful sessions, which are HTTP's",
        update_merge_window: "each update of the endpoints is applied at once",
    }
    {
        use old::LocalityConfigSpecifier as Kind;
        let default = model::CommonLb::default();
        let locality = match locality_config_specifier {
            Some(Kind::ZoneAwareLbConfig(zone)) => cx.lower("zone_aware_lb_config", zone)?,
            Some(Kind::LocalityWeightedLbConfig(old::LocalityWeightedLbConfig {})) => model::LocalityLb::Weighted,
            None => model::LocalityLb::None,
        };
        cx.duration("update_merge_window", update_merge_window);
        let hashing = consistent_hashing_lb_config.and_then(|h| cx.lower("consistent_hashing_lb_config", h));
        let Hashing { use_hostname, balance_factor } = hashing.unwrap_or_default();
        Some(model::CommonLb {
            healthy_panic_threshold: percent(cx, "healthy_panic_threshold", healthy_panic_threshold)
                .unwrap_or(default.healthy_panic_threshold),
            locality,
            ignore_new_hosts_until_first_hc,
            close_connections_on_host_set_change,
            use_hostname_for_hashing: use_hostname,
            hash_balance_factor: balance_factor,
        })
    }
}

lower! { "envoy.config.cluster.v3.Cluster.CommonLbConfig.ZoneAwareLbConfig"
    old::ZoneAwareLbConfig => model::LocalityLb, cx;
    read {}
    warn { routing_enabled: ZONES, min_cluster_size: ZONES, fail_traffic_on_panic: ZONES }
    {
        percent(cx, "routing_enabled", routing_enabled);
        Some(model::LocalityLb::ZoneAware)
    }
}

lower! { "envoy.config.cluster.v3.Cluster.CommonLbConfig.ConsistentHashingLbConfig"
    old::ConsistentHashingLbConfig => Hashing, cx;
    read { use_hostname_for_hashing, hash_balance_factor }
    {
        let balance_factor = at_least(cx, "hash_balance_factor", number(hash_balance_factor), 100);
        Some(Hashing { use_hostname: use_hostname_for_hashing, balance_factor })
    }
}

lower! { "envoy.config.cluster.v3.Cluster.SlowStartConfig" pb::SlowStartConfig => Box<model::SlowStart>, cx;
    read { slow_start_window, aggression, min_weight_percent }
    {
        let window = cx.duration("slow_start_window", slow_start_window).unwrap_or_default();
        if window.is_zero() {
            cx.warn("slow_start_window", "without it nothing starts slowly");
        }
        let aggression = aggression.and_then(|a| cx.lower("aggression", a)).unwrap_or(1.0);
        Some(Box::new(model::SlowStart {
            window,
            aggression: usable_aggression(cx, aggression),
            min_weight_percent: percent(cx, "min_weight_percent", min_weight_percent).unwrap_or(10.0),
        }))
    }
}

/// Envoy takes any number here, and ignores a useless one when it picks a host.
fn usable_aggression(cx: &mut Cx, aggression: f64) -> f64 {
    if aggression > 0.0 {
        return aggression;
    }
    cx.warn("aggression", format!("{aggression} is not more than 0: 1 is taken"));
    1.0
}

lower! { "envoy.extensions.load_balancing_policies.common.v3.SlowStartConfig"
    new::SlowStartConfig => Box<model::SlowStart>, cx;
    read { slow_start_window, aggression, min_weight_percent }
    {
        crate::lower::Lower::lower(pb::SlowStartConfig { slow_start_window, aggression, min_weight_percent }, cx)
    }
}

lower! { "envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig"
    new::LocalityLbConfig => model::LocalityLb, cx;
    read { locality_config_specifier }
    {
        use new_locality::LocalityConfigSpecifier as Kind;
        match locality_config_specifier {
            Some(Kind::ZoneAwareLbConfig(zone)) => cx.lower("zone_aware_lb_config", zone),
            Some(Kind::LocalityWeightedLbConfig(new_locality::LocalityWeightedLbConfig {})) => {
                Some(model::LocalityLb::Weighted)
            }
            None => {
                cx.reject("locality_config_specifier", "zone_aware_lb_config or locality_weighted_lb_config is required");
                None
            }
        }
    }
}

lower! { "envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig.ZoneAwareLbConfig"
    new_locality::ZoneAwareLbConfig => model::LocalityLb, cx;
    read {}
    warn {
        routing_enabled: ZONES,
        min_cluster_size: ZONES,
        fail_traffic_on_panic: ZONES,
        force_locality_direct_routing: ZONES,
        force_local_zone: ZONES,
        locality_basis: ZONES,
    }
    {
        percent(cx, "routing_enabled", routing_enabled);
        Some(model::LocalityLb::ZoneAware)
    }
}

lower! { "envoy.extensions.load_balancing_policies.common.v3.ConsistentHashingLbConfig"
    new::ConsistentHashingLbConfig => Hashing, cx;
    read { use_hostname_for_hashing, hash_balance_factor }
    warn { hash_policy: "hashes a request, which is HTTP's; that of a tcp_proxy is its own" }
    {
        let balance_factor = at_least(cx, "hash_balance_factor", number(hash_balance_factor), 100);
        Some(Hashing { use_hostname: use_hostname_for_hashing, balance_factor })
    }
}

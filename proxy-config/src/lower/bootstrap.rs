//! `config.bootstrap.v3`. Listeners, clusters and secrets are not lowered here but one by one, by [`crate::load`], which
//! keeps what each of them was made of.

mod runtime;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use envoy_types::pb::envoy::config::bootstrap::v3 as pb;
use envoy_types::pb::envoy::config::metrics::v3 as metrics;

use super::Cx;
use super::registry::registry;
use super::value::structure;
use crate::model::Bootstrap;
use crate::model::address::Address;
use crate::model::bootstrap::{
    Admin, DynamicResources, HistogramBuckets, StatsConfig, StatsMatcher, TagSpecifier, TraceReports,
};
use crate::model::metadata::Struct;

registry! {
    pb::Bootstrap, pb::bootstrap::StaticResources, pb::Admin, pb::ClusterManager,
    pb::LayeredRuntime, pb::RuntimeLayer, metrics::StatsConfig,
    metrics::StatsMatcher, metrics::TagSpecifier, metrics::HistogramBucketSettings,
}

const MILLISECOND: Duration = Duration::from_millis(1);
const STATS_FLUSH_LIMIT: Duration = Duration::from_secs(300);

lower! { "envoy.config.bootstrap.v3.Bootstrap" pb::Bootstrap => Bootstrap, cx;
    read {
        node, static_resources, dynamic_resources, cluster_manager, stats_config, layered_runtime, admin, tracing,
        stats_eviction,
    }
    reject {
        hds_config: "the health discovery service is not implemented",
        config_sources: "authorities (xdstp) are not implemented: use dynamic_resources",
        default_config_source: "authorities (xdstp) are not implemented: use dynamic_resources",
        default_socket_interface: "there is one socket interface",
        certificate_provider_instances: "certificate providers are not implemented",
        xds_delegate_extension: "extensions of the xDS client are not implemented",
        xds_config_tracker_extension: "extensions of the xDS client are not implemented",
    }
    warn {
        node_context_params: "xDS resource locators are not implemented",
        flags_path: "there are no feature flags",
        stats_sinks: "stats are served by the admin interface and not pushed",
        deferred_stat_options: "stats of idle clusters are small already",
        watchdog: "there is no watchdog",
        watchdogs: "there is no watchdog",
        overload_manager: "there is no overload manager: its limits do not hold",
        enable_dispatcher_stats: "there is no dispatcher to have stats",
        header_prefix: "the headers of Envoy are called x-envoy-…",
        stats_server_version_override: "server.version is that of this build",
        use_tcp_for_dns_lookups: "is set on each cluster",
        dns_resolution_config: "is set on each cluster",
        typed_dns_resolver_config: "is set on each cluster",
        bootstrap_extensions: "bootstrap extensions are not implemented; what needs one is refused where it is used",
        fatal_actions: "there are no crash handlers",
        inline_headers: "headers need not be registered",
        perf_tracing_file_path: "there are no performance traces",
        default_regex_engine: "there is one engine, with the syntax of RE2",
        listener_manager: "there is one listener manager",
        application_log_config: "is set by --log-format",
        grpc_async_client_manager_config: "its clients are made as they are needed",
        memory_allocator_manager: "memory is given back to the system without it",
        enable_worker_cpu_affinity: "workers are placed by the kernel",
        stats_flush: "stats are counted when they are read",
        stats_flush_interval: "stats are counted when they are read",
    }
    {
        if let Some(resources) = static_resources {
            cx.lower("static_resources", resources);
        }
        if let Some(manager) = cluster_manager {
            cx.lower("cluster_manager", manager);
        }
        let mut stats: StatsConfig =
            stats_config.and_then(|stats| cx.lower("stats_config", stats)).unwrap_or_default();
        if let Some(pb::bootstrap::StatsEviction::StatsEvictionInterval(interval)) = stats_eviction {
            stats.eviction_interval = cx.timeout("stats_eviction_interval", Some(interval), None);
        }
        let flush = cx.duration_from("stats_flush_interval", stats_flush_interval, MILLISECOND);
        if flush.is_some_and(|interval| interval >= STATS_FLUSH_LIMIT) {
            cx.reject("stats_flush_interval", "must be less than 300s");
        }
        let dynamic = match dynamic_resources {
            Some(resources) => cx.lower("dynamic_resources", resources)?,
            None => DynamicResources::default(),
        };
        let runtime = layered_runtime.and_then(|r| cx.lower("layered_runtime", r)).unwrap_or_default();
        let Runtime { layers: runtime, reports } = runtime;
        Some(Bootstrap {
            node: cx.lower("node", node.unwrap_or_default())?,
            admin: admin.and_then(|admin| cx.lower("admin", admin)).flatten(),
            listeners: Vec::new(),
            clusters: Vec::new(),
            secrets: Vec::new(),
            dynamic,
            stats,
            runtime,
            tracing: tracing.and_then(|tracing| cx.lower("tracing", tracing)).flatten(),
            reports,
        })
    }
}

lower! { "envoy.config.bootstrap.v3.Bootstrap.StaticResources" pb::bootstrap::StaticResources => (), cx;
    read { listeners, clusters, secrets }
    {
        let _ = (cx, listeners, clusters, secrets);
        Some(())
    }
}

lower! { "envoy.config.bootstrap.v3.Admin" pb::Admin => Option<Admin>, cx;
    read { address, allow_paths }
    warn {
        access_log: "requests of the admin interface are not logged",
        access_log_path: "requests of the admin interface are not logged",
        profile_path: "there is no profiler",
        socket_options: "have no effect on the socket of the admin interface",
        ignore_global_conn_limit: "there is no global connection limit",
    }
    {
        let allow_paths = cx.list("allow_paths", allow_paths);
        let Some(address) = address else {
            cx.warn("address", "is not given: there is no admin interface");
            return Some(None);
        };
        let address = cx.lower("address", address)?;
        if let Address::Host(host) = &address {
            cx.reject("address", format!("malformed IP address: {}", host.host));
        }
        Some(Some(Admin { address, allow_paths }))
    }
}

lower! { "envoy.config.bootstrap.v3.ClusterManager" pb::ClusterManager => (), cx;
    read {}
    reject { upstream_bind_config: "a bind config for all clusters is not implemented: set it on each cluster" }
    warn {
        local_cluster_name: "zone-aware routing is not implemented: the endpoints of all zones are taken alike",
        outlier_detection: "ejections are counted, and not logged to a file",
        load_stats_config: "the load reporting service is not implemented",
        enable_deferred_cluster_creation: "clusters are small: they are made at once",
    }
    {
        let _ = cx;
        Some(())
    }
}

/// `layered_runtime`, and what is read of it.
#[derive(Debug, Default)]
pub struct Runtime {
    layers: BTreeMap<String, Struct>,
    reports: TraceReports,
}

lower! { "envoy.config.bootstrap.v3.LayeredRuntime" pb::LayeredRuntime => Runtime, cx;
    read { layers }
    {
        let layers = cx.list("layers", layers);
        let mut seen = HashSet::new();
        for (name, _) in &layers {
            if !seen.insert(name.clone()) {
                cx.reject("layers", format!("duplicate layer name: {name}"));
            }
        }
        let reports = runtime::reports(layers.iter().map(|(_, values)| values));
        Some(Runtime { layers: layers.into_iter().collect(), reports })
    }
}

lower! { "envoy.config.bootstrap.v3.RuntimeLayer" pb::RuntimeLayer => (String, Struct), cx;
    read { name, layer_specifier }
    {
        use pb::runtime_layer::LayerSpecifier;
        let name = cx.non_empty("name", name);
        let values = match layer_specifier {
            Some(LayerSpecifier::StaticLayer(values)) => {
                let values = structure(values);
                let ignored = runtime::ignored(&values);
                if !ignored.is_empty() {
                    let which = ignored.join(", ");
                    cx.warn("static_layer", format!("{which}: shown by /runtime without effect: defaults hold"));
                }
                values
            }
            Some(LayerSpecifier::AdminLayer(_)) => {
                cx.warn("admin_layer", "the runtime cannot be changed by the admin interface");
                Struct::new()
            }
            Some(LayerSpecifier::DiskLayer(_)) => {
                cx.reject("disk_layer", "runtime values from a directory are not implemented");
                return None;
            }
            Some(LayerSpecifier::RtdsLayer(_)) => {
                cx.reject("rtds_layer", "the runtime discovery service is not implemented");
                return None;
            }
            None => {
                cx.reject("layer_specifier", "is required");
                return None;
            }
        };
        Some((name?, values))
    }
}

lower! { "envoy.config.metrics.v3.StatsConfig" metrics::StatsConfig => StatsConfig, cx;
    read { stats_tags, use_all_default_tags, stats_matcher, histogram_bucket_settings }
    warn { allow_default_tag_overrides: "a tag of the configuration always comes before a default one" }
    {
        let tags = cx.list("stats_tags", stats_tags);
        Some(StatsConfig {
            tags,
            use_all_default_tags: use_all_default_tags.map(|v| v.value),
            matcher: stats_matcher.and_then(|m| cx.lower("stats_matcher", m)).unwrap_or_default(),
            histogram_buckets: cx.list("histogram_bucket_settings", histogram_bucket_settings),
            eviction_interval: None,
        })
    }
}

lower! { "envoy.config.metrics.v3.StatsMatcher" metrics::StatsMatcher => StatsMatcher, cx;
    read { stats_matcher }
    {
        use metrics::stats_matcher::StatsMatcher as Kind;
        match stats_matcher {
            Some(Kind::RejectAll(true)) => Some(StatsMatcher::None),
            Some(Kind::RejectAll(false)) => Some(StatsMatcher::All),
            Some(Kind::ExclusionList(list)) => cx.lower("exclusion_list", list).map(StatsMatcher::Exclusion),
            Some(Kind::InclusionList(list)) => cx.lower("inclusion_list", list).map(StatsMatcher::Inclusion),
            None => {
                cx.reject("stats_matcher", "reject_all, exclusion_list or inclusion_list is required");
                None
            }
        }
    }
}

lower! { "envoy.config.metrics.v3.TagSpecifier" metrics::TagSpecifier => TagSpecifier, cx;
    read { tag_name, tag_value }
    {
        use metrics::tag_specifier::TagValue;
        match tag_value {
            Some(TagValue::Regex(regex)) => {
                check_tag_regex(cx, &regex)?;
                let regex = Some(regex).filter(|regex| !regex.is_empty());
                Some(TagSpecifier::Regex { name: tag_name, regex })
            }
            Some(TagValue::FixedValue(value)) => Some(TagSpecifier::Fixed { name: tag_name, value }),
            None => Some(TagSpecifier::Regex { name: tag_name, regex: None }),
        }
    }
}

fn check_tag_regex(cx: &mut Cx, regex: &str) -> Option<()> {
    if regex.len() > 1024 {
        cx.reject("regex", "must not be longer than 1024 bytes");
        return None;
    }
    if let Err(error) = regex::Regex::new(regex) {
        cx.reject("regex", error.to_string());
        return None;
    }
    Some(())
}

lower! { "envoy.config.metrics.v3.HistogramBucketSettings" metrics::HistogramBucketSettings => HistogramBuckets, cx;
    read { r#match, buckets }
    warn { bins: "histograms have their own resolution" }
    {
        let matcher = cx.required("match", r#match);
        if buckets.iter().any(|bucket| *bucket <= 0.0 || bucket.is_nan()) {
            cx.reject("buckets", "must be greater than 0");
        }
        let mut buckets = buckets;
        buckets.sort_by(f64::total_cmp);
        if buckets.windows(2).any(|pair| matches!(pair, [a, b] if a == b)) {
            cx.reject("buckets", "must be unique");
        }
        Some(HistogramBuckets { matcher: matcher?, buckets })
    }
}

#[cfg(test)]
mod tests;

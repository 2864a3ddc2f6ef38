//! `config.cluster.v3.Cluster`: the table of its fields, and what has to fit together.

pub mod circuit_breakers;
pub mod common_lb;
pub mod discovery;
pub mod health;
pub mod http;
pub mod lb;
pub mod lb_policies;
pub mod outlier;
pub mod scalars;
pub mod subset;

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, LbConfig};
use envoy_types::pb::envoy::config::cluster::v3::{Cluster, UpstreamConnectionOptions, cluster};
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;

use super::endpoint;
use super::registry::{Message, registry};
use super::value::{flag, number, structure};
use super::{Cx, Lower, Side};
use crate::model::address::Address;
use crate::model::cluster as model;
use crate::model::{DEFAULT_BUFFER_LIMIT, LoadAssignment};
use scalars::positive;

registry! { Cluster, cluster::TransportSocketMatch, UpstreamConnectionOptions }

/// Of this file and of those below it.
pub(super) const ALL_MESSAGES: &[&[Message]] = &[
    MESSAGES,
    circuit_breakers::MESSAGES,
    common_lb::MESSAGES,
    discovery::MESSAGES,
    health::MESSAGES,
    http::MESSAGES,
    lb::MESSAGES,
    lb_policies::MESSAGES,
    outlier::MESSAGES,
    scalars::MESSAGES,
    subset::MESSAGES,
    endpoint::MESSAGES,
];

lower! { "envoy.config.cluster.v3.Cluster" Cluster => model::Cluster, cx;
    read {
        transport_socket_matches, name, alt_stat_name, eds_cluster_config, connect_timeout,
        per_connection_buffer_limit_bytes, lb_policy, load_assignment, health_checks, circuit_breakers,
        typed_extension_protocol_options, dns_refresh_rate, dns_jitter, dns_failure_refresh_rate, respect_dns_ttl,
        dns_lookup_family, dns_resolvers, use_tcp_for_dns_lookups, dns_resolution_config, typed_dns_resolver_config,
        wait_for_warm_on_init, outlier_detection, upstream_bind_config, lb_subset_config,
        common_lb_config, transport_socket, metadata, upstream_connection_options,
        close_connections_on_host_health_failure, ignore_health_on_host_removal, filters, load_balancing_policy,
        cluster_discovery_type, lb_config, protocol_selection, http_protocol_options,
        http2_protocol_options, common_http_protocol_options, upstream_http_protocol_options,
        max_requests_per_connection, preconnect_policy, upstream_config, connection_pool_per_downstream_connection,
    }
    reject {
        transport_socket_matcher: "is not implemented: use transport_socket_matches",
    }
    warn {
        stats_matcher: "is not implemented: all stats of the cluster are kept",
        per_connection_buffer_high_watermark_timeout:
            "is not implemented: a reader that is too slow stops the other side for as long as it takes",
        lrs_server: "load reports are not implemented",
        lrs_report_endpoint_metrics: "load reports are not implemented",
        track_timeout_budgets: "is not implemented: timeout budgets are not kept",
        track_cluster_stats: "is not implemented: neither timeout budgets nor sizes nor stats per endpoint are kept",
        queuing_policies: "is not implemented: requests wait in their order",
        cleanup_interval: "no host of an ORIGINAL_DST cluster outlives its connection: nothing is cleaned up",
    }
    {
        let name = cx.name("name", name)?;
        let old = http::Old {
            selection: protocol_selection,
            http1: http_protocol_options,
            http2: http2_protocol_options,
            common: common_http_protocol_options,
            upstream: upstream_http_protocol_options,
            max_requests_per_connection,
        };
        let http = http::options(cx, old, typed_extension_protocol_options);
        http::upstream_config(cx, upstream_config);
        let metadata_exchange = http::filters(cx, filters);
        let common = common_lb_config.and_then(|config| cx.lower("common_lb_config", config)).unwrap_or_default();
        let (original_dst_lb_config, lb_config) = match lb_config {
            Some(LbConfig::OriginalDstLbConfig(config)) => (Some(config), None),
            other => (None, other),
        };
        let declared = declared_type(cluster_discovery_type.as_ref());
        let lb = lb::Fields { lb_policy, lb_config, lb_subset_config, load_balancing_policy };
        let has_list = lb.load_balancing_policy.is_some();
        let balancing = lb::balancing(cx, lb, &common);
        let discovery = discovery::discovery(cx, &name, discovery::Fields {
            kind: cluster_discovery_type,
            eds_cluster_config,
            original_dst_lb_config,
            dns: discovery::DnsFields {
                refresh_rate: dns_refresh_rate,
                jitter: dns_jitter,
                failure_refresh_rate: dns_failure_refresh_rate,
                respect_ttl: respect_dns_ttl,
                lookup_family: dns_lookup_family,
                resolvers: dns_resolvers,
                use_tcp: use_tcp_for_dns_lookups,
                resolution_config: dns_resolution_config,
                typed_resolver: typed_dns_resolver_config,
            },
        });
        let assignment = assignment(cx, discovery.as_ref(), load_assignment);
        if health_checks.len() > 1 {
            cx.reject("health_checks", "only one is supported");
        }
        let connect_timeout = positive(cx, "connect_timeout", connect_timeout);
        positive(cx, "cleanup_interval", cleanup_interval);
        let rest = model::Cluster {
            alt_stat_name: (!alt_stat_name.is_empty()).then(|| alt_stat_name.into()),
            name,
            discovery: model::Discovery::Static,
            load_assignment: Arc::default(),
            lb: model::LbPolicy::RoundRobin,
            slow_start: None,
            common_lb: common,
            http,
            preconnect: preconnect_policy.and_then(|policy| cx.lower("preconnect_policy", policy)).map(Box::new),
            connection_pool_per_downstream_connection,
            subset: None,
            connect_timeout: connect_timeout.unwrap_or(Duration::from_secs(5)),
            per_connection_buffer_limit_bytes: number(per_connection_buffer_limit_bytes)
                .unwrap_or(DEFAULT_BUFFER_LIMIT),
            circuit_breakers: circuit_breakers
                .and_then(|breakers| cx.lower("circuit_breakers", breakers))
                .unwrap_or_default(),
            outlier_detection: outlier_detection
                .and_then(|outlier| cx.lower("outlier_detection", outlier))
                .map(Box::new),
            health_checks: cx.list("health_checks", health_checks),
            bind: upstream_bind_config.and_then(|bind| cx.lower("upstream_bind_config", bind)).map(Box::new),
            tcp_keepalive: upstream_connection_options
                .and_then(|options| cx.lower("upstream_connection_options", options))
                .flatten(),
            transport_socket: transport_socket
                .and_then(|socket| cx.on(Side::Upstream, |cx| cx.lower("transport_socket", socket)))
                .unwrap_or_default(),
            transport_socket_matches: cx.on(Side::Upstream, |cx| {
                cx.list("transport_socket_matches", transport_socket_matches)
            }),
            close_connections_on_host_health_failure,
            ignore_health_on_host_removal,
            wait_for_warm_on_init: flag(wait_for_warm_on_init, true),
            metadata_exchange,
            metadata: crate::model::Packed::from(&super::core::metadata(cx, "metadata", metadata)),
        };
        let sockets = rest.transport_socket_matches.iter().map(|one| &one.transport_socket);
        let sockets: Vec<_> = sockets.chain([&rest.transport_socket]).collect();
        health::fits(cx, &rest);
        http::alpn_fits(cx, &rest.name, rest.http.as_deref(), &sockets);
        let (discovery, balancing) = (discovery?, balancing?);
        original_dst_fits(cx, &rest.name, &discovery, &balancing.lb, lb_policy, has_list);
        let cluster = model::Cluster { discovery, load_assignment: assignment, ..rest };
        let subset = balancing.subset.as_deref().filter(|_| !has_list);
        common_fits(cx, &cluster, subset, declared);
        Some(balanced(cluster, balancing))
    }
}

/// `STRICT_DNS` by its plain name, which alone may hash by host name.
fn declared_type(kind: Option<&ClusterDiscoveryType>) -> Option<DiscoveryType> {
    match kind {
        Some(ClusterDiscoveryType::Type(value)) => DiscoveryType::try_from(*value).ok(),
        Some(ClusterDiscoveryType::ClusterType(_)) | None => None,
    }
}

fn balanced(mut cluster: model::Cluster, balancing: lb::Balancing) -> model::Cluster {
    let lb::Balancing { lb, slow_start, locality, hashing, subset } = balancing;
    cluster.lb = lb;
    cluster.slow_start = slow_start;
    cluster.subset = subset;
    if let Some(locality) = locality {
        cluster.common_lb.locality = locality;
    }
    if let Some(hashing) = hashing {
        cluster.common_lb.use_hostname_for_hashing = hashing.use_hostname;
        cluster.common_lb.hash_balance_factor = hashing.balance_factor;
    }
    cluster
}

/// ORIGINAL_DST brings its own balancer, and nothing else does.
fn original_dst_fits(
    cx: &mut Cx,
    name: &str,
    discovery: &model::Discovery,
    lb: &model::LbPolicy,
    lb_policy: i32,
    has_list: bool,
) {
    let original_dst = matches!(discovery, model::Discovery::OriginalDst(_));
    let provided = *lb == model::LbPolicy::ClusterProvided;
    let at = if has_list { "load_balancing_policy" } else { "lb_policy" };
    if original_dst && lb_policy != i32::from(cluster::LbPolicy::ClusterProvided) {
        cx.reject("lb_policy", "only CLUSTER_PROVIDED is allowed with cluster type ORIGINAL_DST");
    } else if original_dst && !provided {
        cx.reject(at, format!("cluster '{name}' provides its load balancer: use cluster_provided"));
    } else if provided && !original_dst {
        cx.reject(at, format!("CLUSTER_PROVIDED specified, but cluster '{name}' does not provide one"));
    }
}

/// As Envoy has it: names of hosts are hashed in STRICT_DNS clusters only, unless `load_balancing_policy` says so.
fn common_fits(
    cx: &mut Cx,
    cluster: &model::Cluster,
    subset: Option<&model::Subset>,
    declared: Option<DiscoveryType>,
) {
    let strict = matches!(cluster.discovery, model::Discovery::StrictDns(_));
    if cluster.common_lb.use_hostname_for_hashing && !strict {
        let name = declared.map_or("another type", |kind| kind.as_str_name());
        cx.reject("common_lb_config", format!("use_hostname_for_hashing needs STRICT_DNS: this is {name}"));
    }
    let weighted = cluster.common_lb.locality == model::LocalityLb::Weighted;
    if subset.is_some_and(|subset| subset.locality_weight_aware) && !weighted {
        cx.reject("lb_subset_config", "locality_weight_aware needs a locality_weighted_lb_config");
    }
}

fn assignment(
    cx: &mut Cx,
    discovery: Option<&model::Discovery>,
    given: Option<ClusterLoadAssignment>,
) -> Arc<LoadAssignment> {
    let name = "load_assignment";
    let lowered = match (discovery, given) {
        (Some(model::Discovery::LogicalDns(_)), given) => {
            let single = given.as_ref().is_some_and(|given| match given.endpoints.as_slice() {
                [only] => only.lb_endpoints.len() == 1,
                _ => false,
            });
            if !single {
                cx.reject(
                    name,
                    "LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint",
                );
            }
            given.and_then(|given| cx.field(name, |cx| of_names(cx, given)))
        }
        (Some(model::Discovery::OriginalDst(_)), Some(_)) => {
            cx.reject(name, "ORIGINAL_DST clusters must have no load assignment configured");
            None
        }
        (Some(model::Discovery::Eds(_)), Some(given)) => {
            cx.warn(name, "has no effect: the endpoints of this cluster come from EDS");
            cx.lower(name, given);
            None
        }
        (Some(model::Discovery::StrictDns(_)), Some(given)) => cx.field(name, |cx| of_names(cx, given)),
        (Some(model::Discovery::Static), Some(given)) => {
            cx.field(name, |cx| endpoint::of_addresses(cx, given))
        }
        (None, Some(given)) => cx.lower(name, given),
        (_, None) => None,
    };
    lowered.map(Arc::new).unwrap_or_default()
}

/// Envoy takes a pipe in a DNS cluster, and then has nothing to resolve.
fn of_names(cx: &mut Cx, given: ClusterLoadAssignment) -> Option<LoadAssignment> {
    let lowered = given.lower(cx)?;
    let mut endpoints = lowered.localities.iter().flat_map(|locality| &locality.endpoints);
    if endpoints.any(|endpoint| matches!(endpoint.address, Address::Pipe { .. })) {
        cx.warn("endpoints", "a pipe has no name to resolve: it gets no traffic in a DNS cluster");
    }
    Some(lowered)
}

lower! { "envoy.config.cluster.v3.Cluster.TransportSocketMatch"
    cluster::TransportSocketMatch => model::TransportSocketMatch, cx;
    read { name, r#match, transport_socket }
    {
        let name = cx.name("name", name);
        let transport_socket = cx.required("transport_socket", transport_socket);
        Some(model::TransportSocketMatch {
            name: name?,
            match_: r#match.map(structure).unwrap_or_default(),
            transport_socket: transport_socket?,
        })
    }
}

lower! { "envoy.config.cluster.v3.UpstreamConnectionOptions"
    UpstreamConnectionOptions => Option<crate::model::TcpKeepalive>, cx;
    read { tcp_keepalive }
    warn {
        set_local_interface_name_on_upstream_connections: "is not implemented: nothing reads the interface's name",
        happy_eyeballs_config: "is not implemented: an endpoint is reached at its first address only",
    }
    {
        Some(tcp_keepalive.and_then(|keepalive| cx.lower("tcp_keepalive", keepalive)))
    }
}

#[cfg(test)]
mod tests;

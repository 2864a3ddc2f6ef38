//! Network filters, RBAC excepted: it has a file of its own.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network as ext;
use envoy_types::pb::envoy::r#type::v3 as pb_type;
use ext::tcp_proxy::v3::tcp_proxy as tcp;

use super::core::{inline_data, metadata as metadata_of};
use super::http::header;
use super::registry::registry;
use super::{Cx, extension};
use crate::model::Metadata;
use crate::model::listener_filter::LocalRateLimit;
use crate::model::metadata::Struct;
use crate::model::network_filter::{
    ConnectionLimit, HashPolicy, NetworkFilter, NetworkFilterConfig, TcpProxy, TunnelRequestId, Tunneling,
    WeightedCluster,
};

registry! {
    pb::Filter, ext::tcp_proxy::v3::TcpProxy, tcp::WeightedCluster, tcp::weighted_cluster::ClusterWeight,
    tcp::TunnelingConfig, tcp::TcpAccessLogOptions, pb_type::HashPolicy, pb_type::hash_policy::SourceIp,
    ext::sni_cluster::v3::SniCluster, ext::echo::v3::Echo, ext::connection_limit::v3::ConnectionLimit,
    ext::local_ratelimit::v3::LocalRateLimit, ext::direct_response::v3::Config,
}

const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Envoy refuses a bucket that is filled more often.
const LEAST_FILL_INTERVAL: Duration = Duration::from_millis(50);
const MILLISECOND: Duration = Duration::from_millis(1);

lower! { "envoy.config.listener.v3.Filter" pb::Filter => NetworkFilterConfig, cx;
    read { name, config_type }
    {
        use pb::filter::ConfigType;
        let name = cx.name("name", name)?;
        let any = match config_type {
            Some(ConfigType::TypedConfig(any)) => Some(any),
            Some(ConfigType::ConfigDiscovery(source)) => {
                let filter = NetworkFilter::Discovered(Box::new(cx.lower("config_discovery", source)?));
                return Some(NetworkFilterConfig { name, filter });
            }
            None => None,
        };
        let filter = extension::network_filter(cx, &name, any)?;
        Some(NetworkFilterConfig { name, filter })
    }
}

lower! { "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" ext::tcp_proxy::v3::TcpProxy => TcpProxy, cx;
    read {
        stat_prefix, cluster_specifier, metadata_match, idle_timeout, downstream_idle_timeout,
        upstream_idle_timeout, access_log, max_connect_attempts, backoff_options, hash_policy,
        tunneling_config, max_downstream_connection_duration, max_downstream_connection_duration_jitter_percentage,
        access_log_flush_interval, flush_access_log_on_connected, access_log_options, upstream_connect_mode
    }
    reject {
        on_demand: "clusters on demand are not implemented",
        max_early_data_bytes: "needs an upstream_connect_mode that is not implemented",
    }
    warn {
        proxy_protocol_tlvs: "the upstream header has the added_tlvs and pass_through_tlvs of its transport socket only",
        proxy_protocol_tlv_merge_policy: "has no effect without proxy_protocol_tlvs",
        check_drain_close: "connections are closed at the end of a drain, not while it lasts",
    }
    {
        use ext::tcp_proxy::v3::UpstreamConnectMode;
        match cx.variant("upstream_connect_mode", upstream_connect_mode) {
            Some(UpstreamConnectMode::OnDownstreamData) => {
                cx.reject("upstream_connect_mode", "ON_DOWNSTREAM_DATA is not implemented");
            }
            // A client's handshake is always waited for; without TLS both are the same.
            Some(UpstreamConnectMode::OnDownstreamTlsHandshake | UpstreamConnectMode::Immediate) | None => {}
        }
        let stat_prefix = cx.name("stat_prefix", stat_prefix);
        let outer = metadata_of(cx, "metadata_match", metadata_match);
        let clusters = clusters(cx, cluster_specifier, &outer);
        let flush = match access_log_options {
            Some(options) => {
                if access_log_flush_interval.is_some() {
                    cx.reject("access_log_flush_interval", "cannot be given with access_log_options");
                }
                if flush_access_log_on_connected {
                    cx.reject("flush_access_log_on_connected", "cannot be given with access_log_options");
                }
                cx.lower("access_log_options", options)?
            }
            None => Flush {
                interval: cx.duration_from("access_log_flush_interval", access_log_flush_interval, MILLISECOND),
                on_connected: flush_access_log_on_connected,
                on_start: false,
            },
        };
        let attempts = max_connect_attempts.map_or(1, |v| v.value);
        let attempts = cx.ranged("max_connect_attempts", attempts, 1..=u32::MAX);
        if hash_policy.len() > 1 {
            cx.reject("hash_policy", "must have at most one");
        }
        let jitter = max_downstream_connection_duration_jitter_percentage;
        Some(TcpProxy {
            idle_timeout: cx.timeout("idle_timeout", idle_timeout, Some(IDLE_TIMEOUT)),
            downstream_idle_timeout: cx.timeout("downstream_idle_timeout", downstream_idle_timeout, None),
            upstream_idle_timeout: cx.timeout("upstream_idle_timeout", upstream_idle_timeout, None),
            backoff: backoff_options.and_then(|b| cx.lower("backoff_options", b)),
            hash_policy: cx.list("hash_policy", hash_policy).into_iter().next().flatten(),
            tunneling: tunneling_config.and_then(|config| cx.lower("tunneling_config", config)).map(Box::new),
            max_downstream_connection_duration: cx.duration_from(
                "max_downstream_connection_duration",
                max_downstream_connection_duration,
                MILLISECOND,
            ),
            max_downstream_connection_duration_jitter: jitter
                .and_then(|j| cx.lower("max_downstream_connection_duration_jitter_percentage", j)),
            access_log: cx.list("access_log", access_log).into_iter().flatten().collect(),
            access_log_flush_interval: flush.interval,
            flush_access_log_on_connected: flush.on_connected,
            flush_access_log_on_start: flush.on_start,
            stat_prefix: stat_prefix?,
            clusters: clusters?,
            max_connect_attempts: attempts?,
        })
    }
}

fn clusters(
    cx: &mut Cx,
    specifier: Option<tcp::ClusterSpecifier>,
    outer: &Metadata,
) -> Option<Vec<WeightedCluster>> {
    match specifier {
        Some(tcp::ClusterSpecifier::Cluster(name)) => {
            Some(vec![WeightedCluster { name: name.into(), weight: 1, metadata_match: outer.clone() }])
        }
        Some(tcp::ClusterSpecifier::WeightedClusters(weighted)) => {
            let mut clusters = cx.lower("weighted_clusters", weighted)?;
            for cluster in &mut clusters {
                merge(&mut cluster.metadata_match, outer);
            }
            Some(clusters)
        }
        None => {
            cx.reject("cluster_specifier", "cluster or weighted_clusters is required");
            None
        }
    }
}

/// Adds what `inner` does not have: its own fields win.
pub(super) fn merge(inner: &mut Metadata, outer: &Metadata) {
    for (filter, fields) in &outer.0 {
        let own = inner.0.get_or_insert_with(filter, Struct::new);
        for (key, value) in fields {
            own.get_or_insert_with(key, || value.clone());
        }
    }
}

lower! { "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster"
    tcp::WeightedCluster => Vec<WeightedCluster>, cx;
    read { clusters }
    {
        if clusters.is_empty() {
            cx.reject("clusters", "must have at least one");
        }
        let clusters = cx.list("clusters", clusters);
        (!clusters.is_empty()).then_some(clusters)
    }
}

lower! { "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight"
    tcp::weighted_cluster::ClusterWeight => WeightedCluster, cx;
    read { name, weight, metadata_match }
    {
        let name = cx.name("name", name);
        let weight = cx.ranged("weight", weight, 1..=u32::MAX);
        let metadata_match = metadata_of(cx, "metadata_match", metadata_match);
        Some(WeightedCluster { name: name?, weight: weight?, metadata_match })
    }
}

lower! { "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TunnelingConfig"
    tcp::TunnelingConfig => Tunneling, cx;
    read {
        hostname, use_post, headers_to_add, propagate_response_headers, post_path, propagate_response_trailers,
        request_id_extension, request_id_header, request_id_metadata_key, formatters
    }
    {
        let more: Vec<_> = formatters
            .iter()
            .enumerate()
            .filter_map(|(i, f)| cx.field("formatters", |cx| cx.index(i, |cx| extension::formatter(cx, f))))
            .collect();
        let hostname = cx.non_empty("hostname", hostname)?;
        let hostname = header::format(cx, "hostname", &hostname, &more);
        if !post_path.is_empty() && !use_post {
            cx.reject("post_path", "Can't set a post path when POST method isn't used");
        }
        header::plain(cx, "post_path", &post_path);
        let id = request_id_extension.and_then(|extension| cx.lower("request_id_extension", extension));
        let id_header = header::optional_name(cx, "request_id_header", &request_id_header);
        let key = Some(Arc::<str>::from(request_id_metadata_key)).filter(|key| !key.is_empty());
        if id.is_none() && (id_header.is_some() || key.is_some()) {
            cx.warn("request_id_extension", "without it no request id is made");
        }
        Some(Tunneling {
            use_post,
            post_path: if post_path.is_empty() { "/".into() } else { post_path.into() },
            headers_to_add: header::added(cx, "headers_to_add", headers_to_add),
            propagate_response_headers,
            propagate_response_trailers,
            request_id: id.map(|_| TunnelRequestId {
                header: id_header.unwrap_or_else(|| "x-request-id".into()),
                metadata_key: key.unwrap_or_else(|| "tunnel_request_id".into()),
            }),
            hostname: hostname?,
        })
    }
}

/// When an access log is written besides at the end.
#[derive(Debug)]
pub struct Flush {
    interval: Option<Duration>,
    on_connected: bool,
    on_start: bool,
}

lower! { "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TcpAccessLogOptions"
    tcp::TcpAccessLogOptions => Flush, cx;
    read { access_log_flush_interval, flush_access_log_on_connected, flush_access_log_on_start }
    {
        Some(Flush {
            interval: cx.duration_from("access_log_flush_interval", access_log_flush_interval, MILLISECOND),
            on_connected: flush_access_log_on_connected,
            on_start: flush_access_log_on_start,
        })
    }
}

lower! { "envoy.type.v3.HashPolicy" pb_type::HashPolicy => Option<HashPolicy>, cx;
    read { policy_specifier }
    {
        use pb_type::hash_policy::PolicySpecifier;
        match policy_specifier {
            Some(PolicySpecifier::SourceIp(ip)) => cx.lower("source_ip", ip).map(Some),
            Some(PolicySpecifier::FilterState(pb_type::hash_policy::FilterState { key })) => {
                let key = cx.field("filter_state", |cx| cx.non_empty("key", key))?;
                cx.warn("filter_state", format!("nothing here writes \"{key}\": there is no hash"));
                Some(None)
            }
            None => {
                cx.reject("policy_specifier", "source_ip or filter_state is required");
                None
            }
        }
    }
}

lower! { "envoy.type.v3.HashPolicy.SourceIp" pb_type::hash_policy::SourceIp => HashPolicy, cx;
    read {}
    {
        let _ = cx;
        Some(HashPolicy::SourceIp)
    }
}

lower! { "envoy.extensions.filters.network.sni_cluster.v3.SniCluster"
    ext::sni_cluster::v3::SniCluster => NetworkFilter, cx;
    read {}
    {
        let _ = cx;
        Some(NetworkFilter::SniCluster)
    }
}

lower! { "envoy.extensions.filters.network.echo.v3.Echo" ext::echo::v3::Echo => NetworkFilter, cx;
    read {}
    {
        let _ = cx;
        Some(NetworkFilter::Echo)
    }
}

lower! { "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit"
    ext::connection_limit::v3::ConnectionLimit => NetworkFilter, cx;
    read { stat_prefix, max_connections, delay, runtime_enabled }
    {
        let stat_prefix = cx.name("stat_prefix", stat_prefix);
        let max_connections = match max_connections {
            Some(max) => cx.ranged("max_connections", max.value, 1..=u64::MAX),
            None => {
                cx.reject("max_connections", "is required");
                None
            }
        };
        let delay = cx.timeout("delay", delay, None);
        let runtime_enabled = enabled(cx, runtime_enabled);
        Some(NetworkFilter::ConnectionLimit(ConnectionLimit {
            stat_prefix: stat_prefix?,
            max_connections: max_connections?,
            delay,
            runtime_enabled: runtime_enabled?,
        }))
    }
}

fn enabled(cx: &mut Cx, flag: Option<core::RuntimeFeatureFlag>) -> Option<bool> {
    match flag {
        Some(flag) => cx.lower("runtime_enabled", flag),
        None => Some(true),
    }
}

lower! { "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit"
    ext::local_ratelimit::v3::LocalRateLimit => NetworkFilter, cx;
    read { stat_prefix, token_bucket, runtime_enabled, share_key }
    {
        let stat_prefix = cx.name("stat_prefix", stat_prefix);
        let token_bucket = cx.required("token_bucket", token_bucket);
        if token_bucket.as_ref().is_some_and(|bucket| bucket.fill_interval < LEAST_FILL_INTERVAL) {
            cx.field("token_bucket", |cx| cx.reject("fill_interval", "must be at least 50ms"));
        }
        let runtime_enabled = enabled(cx, runtime_enabled);
        Some(NetworkFilter::LocalRateLimit(LocalRateLimit {
            stat_prefix: stat_prefix?,
            token_bucket: token_bucket?,
            runtime_enabled: runtime_enabled?,
            share_key: Some(Arc::<str>::from(share_key)).filter(|key| !key.is_empty()),
        }))
    }
}

lower! { "envoy.extensions.filters.network.direct_response.v3.Config"
    ext::direct_response::v3::Config => NetworkFilter, cx;
    read { response }
    {
        let bytes = match response {
            Some(source) => inline_data(cx, "response", source)?,
            None => Vec::new(),
        };
        Some(NetworkFilter::DirectResponse(bytes))
    }
}

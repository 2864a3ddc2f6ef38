//! The blocks of the data path.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{Stats, stats_block};

stats_block! {
    /// `listener.<address or stat_prefix>.`: shared by the listeners of all workloads that bind the same address.
    pub struct ListenerStats {
        counter downstream_cx_total;
        gauge downstream_cx_active;
        counter downstream_cx_destroy;
        counter downstream_cx_overflow;
        counter downstream_cx_transport_socket_connect_timeout;
        counter downstream_pre_cx_timeout;
        gauge downstream_pre_cx_active;
        counter downstream_global_cx_overflow;
        counter downstream_listener_filter_remote_close;
        counter downstream_listener_filter_error;
        counter no_filter_chain_match;
        histogram downstream_cx_length_ms;
    }
}

stats_block! {
    /// `tcp.<stat_prefix>.`
    pub struct TcpStats {
        counter downstream_cx_total;
        counter downstream_cx_no_route;
        counter downstream_cx_tx_bytes_total;
        gauge downstream_cx_tx_bytes_buffered;
        counter downstream_cx_rx_bytes_total;
        gauge downstream_cx_rx_bytes_buffered;
        counter downstream_flow_control_paused_reading_total;
        counter downstream_flow_control_resumed_reading_total;
        counter idle_timeout;
        counter max_downstream_connection_duration;
        counter upstream_flush_total;
        gauge upstream_flush_active;
    }
}

stats_block! {
    /// `cluster.<name>.`
    pub struct ClusterStats {
        counter upstream_cx_total;
        gauge upstream_cx_active;
        counter upstream_cx_connect_fail;
        counter upstream_cx_connect_timeout;
        counter upstream_cx_connect_attempts_exceeded;
        counter upstream_cx_overflow;
        histogram upstream_cx_connect_ms;
        histogram upstream_cx_length_ms;
        counter upstream_cx_destroy;
        counter upstream_cx_destroy_local;
        counter upstream_cx_destroy_remote;
        counter upstream_cx_destroy_with_active_rq;
        counter upstream_cx_destroy_local_with_active_rq;
        counter upstream_cx_destroy_remote_with_active_rq;
        counter upstream_cx_idle_timeout;
        counter upstream_cx_none_healthy;
        counter upstream_cx_rx_bytes_total;
        gauge upstream_cx_rx_bytes_buffered;
        counter upstream_cx_tx_bytes_total;
        gauge upstream_cx_tx_bytes_buffered;
        counter upstream_cx_pool_overflow;
        counter upstream_cx_http1_total;
        counter upstream_cx_http2_total;
        counter upstream_cx_http3_total;
        counter upstream_cx_close_notify;
        counter upstream_cx_max_duration_reached;
        counter upstream_cx_max_requests;
        counter upstream_cx_protocol_error;
        counter upstream_http3_broken;
        counter upstream_internal_redirect_failed_total;
        counter upstream_internal_redirect_succeeded_total;
        counter upstream_rq_0rtt;
        counter upstream_rq_maintenance_mode;
        counter upstream_rq_max_duration_reached;
        counter upstream_rq_per_try_idle_timeout;
        counter upstream_rq_per_try_timeout;
        counter upstream_rq_retry;
        counter upstream_rq_retry_backoff_exponential;
        counter upstream_rq_retry_backoff_ratelimited;
        counter upstream_rq_retry_limit_exceeded;
        counter upstream_rq_retry_overflow;
        counter upstream_rq_retry_success;
        counter upstream_rq_rx_reset;
        counter upstream_rq_timeout;
        counter upstream_rq_tx_reset;
        counter upstream_rq_total;
        gauge upstream_rq_active;
        counter upstream_rq_pending_total;
        gauge upstream_rq_pending_active;
        counter upstream_rq_pending_overflow;
        counter upstream_rq_active_overflow;
        counter upstream_rq_pending_failure_eject;
        counter upstream_rq_cancelled;
        counter upstream_flow_control_paused_reading_total;
        counter upstream_flow_control_resumed_reading_total;
        counter upstream_flow_control_backed_up_total;
        counter upstream_flow_control_drained_total;
        counter bind_errors;
        counter original_dst_host_invalid;
        counter assignment_stale;
        counter assignment_timeout_received;
        counter assignment_use_cached;
        counter membership_change;
        gauge membership_total;
        gauge membership_healthy;
        gauge membership_degraded;
        gauge membership_excluded;
        gauge max_host_weight;
        gauge version;
        counter update_attempt;
        counter update_success;
        counter update_failure;
        counter update_empty;
        counter update_no_rebuild;
        counter lb_healthy_panic;
        counter lb_local_cluster_not_ok;
        counter lb_recalculate_zone_structures;
        counter lb_zone_cluster_too_small;
        counter lb_zone_no_capacity_left;
        counter lb_zone_routing_all_directly;
        counter lb_zone_routing_cross_zone;
        counter lb_zone_routing_sampled;
        gauge lb_subsets_active;
        counter lb_subsets_created;
        counter lb_subsets_fallback;
        counter lb_subsets_fallback_panic;
        counter lb_subsets_removed;
        counter lb_subsets_selected;
        counter retry_or_shadow_abandoned;
        /// Envoy's: endpoints that took the cluster's own socket and none of `transport_socket_matches`.
        counter default_total_match_count = "default.total_match_count";
        gauge warming_state;
        gauge circuit_breakers_default_cx_open = "circuit_breakers.default.cx_open";
        gauge circuit_breakers_default_cx_pool_open = "circuit_breakers.default.cx_pool_open";
        gauge circuit_breakers_default_rq_open = "circuit_breakers.default.rq_open";
        gauge circuit_breakers_default_rq_pending_open = "circuit_breakers.default.rq_pending_open";
        gauge circuit_breakers_default_rq_retry_open = "circuit_breakers.default.rq_retry_open";
        gauge circuit_breakers_high_cx_open = "circuit_breakers.high.cx_open";
        gauge circuit_breakers_high_cx_pool_open = "circuit_breakers.high.cx_pool_open";
        gauge circuit_breakers_high_rq_open = "circuit_breakers.high.rq_open";
        gauge circuit_breakers_high_rq_pending_open = "circuit_breakers.high.rq_pending_open";
        gauge circuit_breakers_high_rq_retry_open = "circuit_breakers.high.rq_retry_open";
    }
}

stats_block! {
    /// `cluster.<name>.<match>.`, of an entry of `transport_socket_matches`.
    pub struct SocketMatchStats {
        counter total_match_count;
    }
}

stats_block! {
    /// `cluster.<name>.`, of clusters whose endpoints come from a subscription.
    pub struct EdsStats {
        counter init_fetch_timeout;
        counter update_rejected;
        gauge update_time;
        text version_text;
    }
}

stats_block! {
    /// `listener_manager.`
    pub struct ListenerManagerStats {
        counter listener_added;
        counter listener_create_failure;
        counter listener_create_success;
        counter listener_in_place_updated;
        counter listener_modified;
        counter listener_removed;
        counter listener_stopped;
        gauge total_filter_chains_draining;
        gauge total_listeners_active;
        gauge total_listeners_draining;
        gauge total_listeners_warming;
        gauge workers_started;
    }
}

stats_block! {
    /// `cluster_manager.`
    pub struct ClusterManagerStats {
        gauge active_clusters;
        gauge warming_clusters;
        counter cluster_added;
        counter cluster_modified;
        counter cluster_removed;
        counter cluster_updated;
        counter cluster_updated_via_merge;
        counter update_merge_cancelled;
        counter update_out_of_merge_window;
    }
}

stats_block! {
    /// `listener_manager.lds.` and `cluster_manager.cds.`
    pub struct SubscriptionStats {
        counter init_fetch_timeout;
        counter update_attempt;
        counter update_failure;
        counter update_rejected;
        counter update_success;
        gauge update_time;
        gauge version;
        text version_text;
        histogram update_duration;
    }
}

stats_block! {
    /// `cluster_manager.cds.`: updates that changed something.
    pub struct ReloadStats {
        counter config_reload;
        gauge config_reload_time_ms;
    }
}

stats_block! {
    /// `extension_config_discovery.<network_filter or http_filter>.<name>.`
    pub struct ExtensionStats {
        counter config_conflict;
        counter config_fail;
        counter config_reload;
        gauge config_reload_time_ms;
    }
}

stats_block! {
    /// `http.<stat_prefix>.rds.<name>.`, beside those of its subscription.
    pub struct RdsStats {
        counter config_reload;
        counter update_empty;
        gauge config_reload_time_ms;
    }
}

stats_block! {
    /// `sds.<name>.`: of all secrets of that name, whatever their source.
    pub struct SdsStats {
        counter init_fetch_timeout;
        counter key_rotation_failed;
        counter update_attempt;
        counter update_failure;
        counter update_rejected;
        counter update_success;
        gauge update_time;
        gauge version;
        text version_text;
        histogram update_duration;
    }
}

stats_block! {
    /// `runtime.`
    pub struct RuntimeStats {
        gauge admin_overrides_active;
        counter deprecated_feature_use;
        gauge deprecated_feature_seen_since_process_start;
        counter load_error;
        counter load_success;
        gauge num_keys;
        gauge num_layers;
        counter override_dir_exists;
        counter override_dir_not_exists;
    }
}

stats_block! {
    /// `server.`
    pub struct ServerStats {
        gauge state;
        gauge live;
        gauge uptime;
        gauge concurrency;
        gauge memory_allocated;
        gauge memory_heap_size;
        gauge memory_physical_size;
        gauge total_connections;
        gauge parent_connections;
        gauge version;
        gauge days_until_first_cert_expiring;
        gauge seconds_until_first_ocsp_response_expiring;
        gauge hot_restart_epoch;
        gauge hot_restart_generation;
        counter debug_assertion_failures;
        counter dropped_stat_flushes;
        counter dynamic_unknown_fields;
        counter static_unknown_fields;
        counter wip_protos;
        counter envoy_bug_failures;
        histogram initialization_time_ms;
    }
}

stats_block! {
    /// `shunt.`: what Envoy has no name for.
    pub struct OwnStats {
        counter original_destination_is_listener;
        counter original_destination_is_admin;
        counter accept_errors;
        counter accept_exhausted;
        gauge splice_active;
        counter splice_total;
        /// Connections that `--drain-on-cert-expiry` has begun to drain.
        counter cert_expiry_drained;
    }
}

impl ListenerStats {
    /// Of a listener without a `stat_prefix`. Envoy has no colon in a stat name.
    pub fn of(stats: &Stats, address: SocketAddr) -> Arc<Self> {
        stats.block(format!("listener.{}", address.to_string().replace(':', "_")))
    }
}

impl TcpStats {
    pub fn of(stats: &Stats, prefix: &str) -> Arc<Self> {
        stats.block(format!("tcp.{prefix}"))
    }
}

impl ClusterStats {
    /// A colon of a cluster's name is an underscore in its stats.
    pub fn of(stats: &Stats, name: &str) -> Arc<Self> {
        stats.block(format!("cluster.{}", name.replace(':', "_")))
    }
}

impl ListenerManagerStats {
    pub fn of(stats: &Stats) -> Arc<Self> {
        stats.block("listener_manager")
    }
}

impl ClusterManagerStats {
    pub fn of(stats: &Stats) -> Arc<Self> {
        stats.block("cluster_manager")
    }
}

impl SubscriptionStats {
    /// `listener_manager.lds` or `cluster_manager.cds`.
    pub fn of(stats: &Stats, prefix: &str) -> Arc<Self> {
        stats.block(prefix)
    }
}

impl SdsStats {
    /// Envoy's: what separates a scheme, and every other colon, is an underscore.
    pub fn of(stats: &Stats, name: &str) -> Arc<Self> {
        let name = name.replace("://", "_").replace(":/", "_").replace(':', "_");
        stats.block(format!("sds.{name}"))
    }
}

impl RuntimeStats {
    pub fn of(stats: &Stats) -> Arc<Self> {
        stats.block("runtime")
    }
}

impl ServerStats {
    pub fn of(stats: &Stats) -> Arc<Self> {
        stats.block("server")
    }
}

impl OwnStats {
    pub fn of(stats: &Stats) -> Arc<Self> {
        stats.block("shunt")
    }
}

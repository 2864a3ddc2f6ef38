//! Messages that lower without an error: the base to which the reflection test adds one field after the other.

/// Full name, and proto JSON; a message that is not here is valid when it is empty.
pub(crate) const SAMPLES: &[(&str, &str)] = &[
    ("envoy.config.cluster.v3.Cluster", r#"{"name": "c"}"#),
    (
        "envoy.config.cluster.v3.Cluster.TransportSocketMatch",
        r#"{"name": "m", "transport_socket": {"name": "raw_buffer", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}}}"#,
    ),
    ("envoy.config.cluster.v3.Cluster.LbSubsetConfig", r#"{"subset_selectors": [{"keys": ["k"]}]}"#),
    ("envoy.config.cluster.v3.Cluster.LbSubsetConfig.LbSubsetSelector", r#"{"keys": ["k"]}"#),
    (
        "envoy.extensions.load_balancing_policies.subset.v3.Subset",
        r#"{"subset_selectors": [{"keys": ["k"]}], "subset_lb_policy": {}}"#,
    ),
    (
        "envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality",
        r#"{"endpoint_picking_policy": {}}"#,
    ),
    (
        "envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig",
        r#"{"locality_weighted_lb_config": {}}"#,
    ),
    (
        "envoy.config.cluster.v3.Cluster.EdsClusterConfig",
        r#"{"eds_config": {"path_config_source": {"path": "/etc/eds.yaml"}}}"#,
    ),
    ("envoy.config.cluster.v3.Cluster.RefreshRate", r#"{"base_interval": "1s"}"#),
    ("envoy.extensions.clusters.dns.v3.DnsCluster.RefreshRate", r#"{"base_interval": "1s"}"#),
    (
        "envoy.config.core.v3.DnsResolutionConfig",
        r#"{"resolvers": [{"socket_address": {"address": "127.0.0.1", "port_value": 53}}]}"#,
    ),
    (
        "envoy.config.core.v3.HealthCheck",
        r#"{"timeout": "1s", "interval": "1s", "unhealthy_threshold": 1, "healthy_threshold": 1,
            "tcp_health_check": {}}"#,
    ),
    ("envoy.config.core.v3.HealthCheck.HttpHealthCheck", r#"{"path": "/"}"#),
    ("envoy.config.core.v3.HealthCheck.Payload", r#"{"text": "00"}"#),
    ("envoy.config.core.v3.HeaderValueOption", r#"{"header": {"key": "k", "value": "v"}}"#),
    ("envoy.config.core.v3.HeaderValue", r#"{"key": "k"}"#),
    ("envoy.type.v3.Int64Range", r#"{"start": 200, "end": 300}"#),
    (
        "envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink",
        r#"{"event_log_path": "/dev/null"}"#,
    ),
    ("envoy.config.endpoint.v3.ClusterLoadAssignment", r#"{"cluster_name": "c"}"#),
    ("envoy.config.endpoint.v3.ClusterLoadAssignment.Policy.DropOverload", r#"{"category": "c"}"#),
    (
        "envoy.config.endpoint.v3.LbEndpoint",
        r#"{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}}}}"#,
    ),
    (
        "envoy.config.endpoint.v3.Endpoint",
        r#"{"address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}}}"#,
    ),
];

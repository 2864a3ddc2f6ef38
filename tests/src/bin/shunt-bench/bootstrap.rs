//! A bootstrap of the size that a large mesh has: 5,000 clusters are about 14 MB of YAML.

use std::fmt::Write as _;
use std::path::Path;

/// What the clusters are like.
#[derive(Clone, Copy)]
pub(crate) enum Shape<'a> {
    /// As istiod writes them; the endpoints of EDS clusters are in that file.
    Mesh(&'a Path),
    /// STATIC, two endpoints, no more than Envoy needs.
    Plain,
}

/// With its admin on that port.
pub(crate) fn bootstrap(clusters: usize, admin: u16, shape: Shape<'_>) -> String {
    let mut text = format!(
        "node:\n  id: sidecar~10.0.0.1~app.default~default.svc.cluster.local\n  cluster: app.default\n\
         admin:\n  address:\n    socket_address: {{address: 127.0.0.1, port_value: {admin}}}\n\
         static_resources:\n  clusters:{}\n",
        if clusters == 0 { " []" } else { "" },
    );
    for n in 0..clusters {
        match shape {
            Shape::Mesh(eds) => cluster(&mut text, n, eds),
            Shape::Plain => plain(&mut text, n),
        }
    }
    text
}

fn plain(text: &mut String, n: usize) {
    let name = format!("outbound|8080||service-{n}.namespace-{}.svc.cluster.local", n % 40);
    let at = |last: u8| {
        format!(
            "endpoint: {{address: {{socket_address: {{address: 10.{}.{}.{last}, port_value: 8080}}}}}}",
            n % 250,
            n / 250 % 250
        )
    };
    let _ = write!(
        text,
        "  - name: {name:?}\n    type: STATIC\n    connect_timeout: 10s\n    lb_policy: LEAST_REQUEST\n    \
         load_assignment:\n      cluster_name: {name:?}\n      endpoints:\n      - lb_endpoints:\n        \
         - {}\n        - {}\n",
        at(1),
        at(2),
    );
}

/// As istiod writes a service: mostly EDS, every fourth one with its endpoints.
fn cluster(text: &mut String, n: usize, eds: &Path) {
    let (port, namespace) = (8000 + n % 5 * 1000, n % 40);
    let host = format!("service-{n}.namespace-{namespace}.svc.cluster.local");
    let name = format!("outbound|{port}||{host}");
    let _ = write!(text, "  - name: {name:?}\n    alt_stat_name: \"{name};\"\n");
    if n.is_multiple_of(4) {
        text.push_str("    type: STATIC\n");
        load_assignment(text, &name, n);
    } else {
        from_file(text, &name, eds);
    }
    let _ = write!(text, "{COMMON}");
    let _ = write!(
        text,
        "    metadata:\n      filter_metadata:\n        istio:\n          default_original_port: {port}\n          \
         services:\n          - host: {host}\n            name: service-{n}\n            namespace: \
         namespace-{namespace}\n          config: /apis/networking.istio.io/v1alpha3/namespaces/namespace-{namespace}/\
         destination-rule/service-{n}\n          subset: v1\n"
    );
}

fn from_file(text: &mut String, name: &str, eds: &Path) {
    let directory = eds.parent().unwrap_or(eds);
    let _ = write!(
        text,
        "    type: EDS\n    eds_cluster_config:\n      service_name: {name:?}\n      eds_config:\n        \
         resource_api_version: V3\n        initial_fetch_timeout: 0s\n        path_config_source:\n          path: \
         {}\n          watched_directory:\n            path: {}\n",
        eds.display(),
        directory.display(),
    );
}

fn load_assignment(text: &mut String, name: &str, n: usize) {
    let _ = write!(
        text,
        "    load_assignment:\n      cluster_name: {name:?}\n      endpoints:\n      - locality:\n          region: \
         region1\n          zone: zone-{}\n          sub_zone: rack-{}\n        load_balancing_weight: 4\n        \
         lb_endpoints:\n",
        n % 3,
        n % 7
    );
    for endpoint in 0..4 {
        let _ = write!(
            text,
            "        - endpoint:\n            address:\n              socket_address:\n                address: \
             10.{}.{}.{}\n                port_value: 8080\n            health_check_config:\n              port_value: \
             15021\n          load_balancing_weight: 1\n          metadata:\n            filter_metadata:\n              \
             envoy.transport_socket_match:\n                tlsMode: istio\n              istio:\n                \
             workload: service-{n}-v1;namespace-{};service-{n};v1;cluster1\n",
            n / 250 % 250,
            n % 250,
            endpoint + 1,
            n % 40
        );
    }
}

const COMMON: &str = r#"    connect_timeout: 10s
    lb_policy: LEAST_REQUEST
    per_connection_buffer_limit_bytes: 32768
    circuit_breakers:
      thresholds:
      - max_connections: 4294967295
        max_pending_requests: 4294967295
        max_requests: 4294967295
        max_retries: 4294967295
        track_remaining: true
      - priority: HIGH
        max_connections: 1024
        max_pending_requests: 1024
        max_requests: 1024
        max_retries: 3
    common_lb_config:
      healthy_panic_threshold:
        value: 50
      update_merge_window: 1s
    outlier_detection:
      consecutive_5xx: 5
      interval: 10s
      base_ejection_time: 30s
      max_ejection_percent: 10
      enforcing_consecutive_5xx: 100
      enforcing_success_rate: 0
      consecutive_gateway_failure: 5
      enforcing_consecutive_gateway_failure: 0
    upstream_connection_options:
      tcp_keepalive:
        keepalive_probes: 9
        keepalive_time: 7200
        keepalive_interval: 75
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        common_http_protocol_options:
          idle_timeout: 3600s
          max_requests_per_connection: 10000
        explicit_http_config:
          http2_protocol_options:
            max_concurrent_streams: 1073741824
            initial_stream_window_size: 268435456
            allow_connect: true
    ignore_health_on_host_removal: true
"#;

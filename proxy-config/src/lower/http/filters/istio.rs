//! Istio's filters: `istio.alpn`, `istio.metadata_exchange`, `istio.stats`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::lower::Cx;
use crate::lower::registry::registry;
use crate::model::expression::Expression;
use crate::model::http::istio::{
    IstioAlpn, IstioMetric, IstioMetricDefinition, IstioMetricKind, IstioRotation, IstioStats,
    MetadataExchange, PeerDiscovery, PeerMetadata, PeerPropagation,
};
use crate::proto::pb::envoy::tcp::metadataexchange::config as mx;
use crate::proto::pb::io::istio::http::peer_metadata as peer;
use crate::proto::pb::istio::envoy::config::filter::http::alpn::v2alpha1 as alpn;
use crate::proto::pb::stats;
use peer::config::{discovery_method, propagation_method};

registry! {
    alpn::FilterConfig, alpn::filter_config::AlpnOverride, peer::Config, peer::config::DiscoveryMethod,
    peer::config::PropagationMethod, mx::MetadataExchange, stats::PluginConfig, stats::MetricConfig, stats::MetricDefinition,
}

/// As Istio's proxy has it.
const TCP_REPORTING: Duration = Duration::from_secs(5);
const GRACE_PERIOD: Duration = Duration::from_secs(300);

type Override = (alpn::filter_config::Protocol, Vec<Arc<str>>);

lower! { "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig" alpn::FilterConfig => IstioAlpn, cx;
    read { alpn_override }
    {
        use alpn::filter_config::Protocol;
        let mut lowered = IstioAlpn::default();
        for (protocol, protocols) in cx.list("alpn_override", alpn_override) {
            let slot = match protocol {
                Protocol::Http10 => &mut lowered.http10,
                Protocol::Http11 => &mut lowered.http11,
                Protocol::Http2 => &mut lowered.http2,
            };
            *slot = protocols;
        }
        Some(lowered)
    }
}

lower! { "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig.AlpnOverride"
    alpn::filter_config::AlpnOverride => Override, cx;
    read { upstream_protocol, alpn_override }
    {
        let protocol = cx.variant("upstream_protocol", upstream_protocol)?;
        if alpn_override.iter().any(|name| name.is_empty() || name.len() > 255) {
            cx.reject("alpn_override", "must be names of 1 to 255 bytes");
        }
        Some((protocol, alpn_override.into_iter().map(Into::into).collect()))
    }
}

lower! { "io.istio.http.peer_metadata.Config" peer::Config => PeerMetadata, cx;
    read { downstream_discovery, upstream_discovery, downstream_propagation, upstream_propagation, additional_labels }
    warn { shared_with_upstream: "has no effect: filter state is not shared with internal listeners" }
    {
        let upstream_discovery = flattened(cx.list("upstream_discovery", upstream_discovery));
        if upstream_discovery.contains(&PeerDiscovery::Baggage) {
            cx.warn("upstream_discovery", "baggage is only looked for in requests");
        }
        Some(PeerMetadata {
            downstream_discovery: flattened(cx.list("downstream_discovery", downstream_discovery)),
            upstream_discovery: upstream_discovery.into_iter().filter(|by| *by != PeerDiscovery::Baggage).collect(),
            downstream_propagation: cx.list("downstream_propagation", downstream_propagation),
            upstream_propagation: cx.list("upstream_propagation", upstream_propagation),
            additional_labels: additional_labels.into_iter().map(Into::into).collect(),
        })
    }
}

fn flattened<T>(list: Vec<Option<T>>) -> Vec<T> {
    list.into_iter().flatten().collect()
}

// `None`: it finds nobody here.
lower! { "io.istio.http.peer_metadata.Config.DiscoveryMethod"
    peer::config::DiscoveryMethod => Option<PeerDiscovery>, cx;
    read { method_specifier }
    {
        use discovery_method::MethodSpecifier;
        match method_specifier {
            Some(MethodSpecifier::IstioHeaders(peer::config::IstioHeaders { skip_external_clusters })) => {
                if skip_external_clusters {
                    cx.warn("istio_headers", "skip_external_clusters has no effect where peers are looked for");
                }
                Some(Some(PeerDiscovery::IstioHeaders))
            }
            Some(MethodSpecifier::WorkloadDiscovery(peer::config::WorkloadDiscovery {})) => {
                cx.warn("workload_discovery", "workloads are not discovered: peers are not known by their address");
                Some(None)
            }
            Some(MethodSpecifier::Baggage(peer::config::Baggage {})) => Some(Some(PeerDiscovery::Baggage)),
            Some(MethodSpecifier::UpstreamFilterState(peer::config::UpstreamFilterState { peer_metadata_key })) => {
                let why = format!("\"{peer_metadata_key}\": connections upstream have no filter state");
                cx.warn("upstream_filter_state", why);
                Some(None)
            }
            None => {
                cx.reject("method_specifier", "is required");
                None
            }
        }
    }
}

lower! { "io.istio.http.peer_metadata.Config.PropagationMethod"
    peer::config::PropagationMethod => PeerPropagation, cx;
    read { method_specifier }
    {
        match method_specifier {
            Some(propagation_method::MethodSpecifier::IstioHeaders(peer::config::IstioHeaders {
                skip_external_clusters,
            })) => Some(PeerPropagation::IstioHeaders { skip_external_clusters }),
            Some(propagation_method::MethodSpecifier::Baggage(peer::config::Baggage {})) => {
                Some(PeerPropagation::Baggage)
            }
            None => {
                cx.reject("method_specifier", "is required");
                None
            }
        }
    }
}

lower! { "envoy.tcp.metadataexchange.config.MetadataExchange" mx::MetadataExchange => MetadataExchange, cx;
    read { protocol, additional_labels }
    warn { enable_discovery: "workloads are not discovered: peers are not known by their address" }
    {
        let protocol = cx.name("protocol", protocol)?;
        Some(MetadataExchange {
            protocol,
            additional_labels: additional_labels.into_iter().map(Into::into).collect(),
        })
    }
}

lower! { "stats.PluginConfig" stats::PluginConfig => IstioStats, cx;
    read {
        disable_host_header_fallback, tcp_reporting_duration, metrics, definitions, reporter, rescoping_duration,
        scope_grace_period_duration
    }
    {
        let server_gateway = match cx.variant("reporter", reporter)? {
            stats::Reporter::Unspecified => false,
            stats::Reporter::ServerGateway => true,
        };
        let interval = cx.timeout("rescoping_duration", rescoping_duration, None);
        let grace_period = cx.duration("scope_grace_period_duration", scope_grace_period_duration);
        let rotation =
            interval.map(|interval| IstioRotation { interval, grace_period: grace_period.unwrap_or(GRACE_PERIOD) });
        if grace_period.is_some() && rotation.is_none() {
            cx.warn("scope_grace_period_duration", "has no effect without a rotation");
        }
        let reporting = cx.timeout("tcp_reporting_duration", tcp_reporting_duration, Some(TCP_REPORTING));
        Some(IstioStats {
            disable_host_header_fallback,
            tcp_reporting_duration: reporting,
            metrics: cx.list("metrics", metrics),
            definitions: flattened(cx.list("definitions", definitions)),
            server_gateway,
            rotation,
        })
    }
}

lower! { "stats.MetricConfig" stats::MetricConfig => IstioMetric, cx;
    read { dimensions, name, tags_to_remove, drop }
    warn { r#match: "has no effect, as in Istio's proxy: the override always holds" }
    {
        let dimensions: BTreeMap<_, _> = dimensions.into_iter().collect();
        let dimensions = dimensions.into_iter().map(|(label, text)| {
            let expression = expression(cx, "dimensions", &label, &text);
            (Arc::from(label), expression)
        });
        Some(IstioMetric {
            name: name.into(),
            dimensions: dimensions.collect(),
            tags_to_remove: tags_to_remove.into_iter().map(Into::into).collect(),
            drop,
        })
    }
}

// `None`: its value is not understood. As Istio's proxy, which then has no such metric.
lower! { "stats.MetricDefinition" stats::MetricDefinition => Option<IstioMetricDefinition>, cx;
    read { name, value, r#type }
    {
        let kind = match cx.variant("type", r#type)? {
            stats::MetricType::Counter => IstioMetricKind::Counter,
            stats::MetricType::Gauge => IstioMetricKind::Gauge,
            stats::MetricType::Histogram => IstioMetricKind::Histogram,
        };
        let name: Option<Arc<str>> = cx.name("name", name);
        let name = name?;
        let value = expression(cx, "value", &name, &value);
        Some(value.map(|value| IstioMetricDefinition { name, value, kind }))
    }
}

/// Says what of it is not understood. Nobody's requests depend on it.
fn expression(cx: &mut Cx, field: &'static str, whose: &str, text: &str) -> Option<Expression> {
    match Expression::parse(text) {
        Ok(expression) => {
            for name in expression.strangers() {
                cx.warn(
                    field,
                    format!("\"{whose}\": {text}: nothing is known of \"{name}\": its value is unknown"),
                );
            }
            Some(expression)
        }
        Err(why) => {
            cx.warn(field, format!("\"{whose}\": {text}: {why}"));
            None
        }
    }
}

/// What Istio asks its own by.
pub(in crate::lower) fn default_exchange() -> MetadataExchange {
    MetadataExchange { protocol: "istio-peer-exchange".into(), additional_labels: Vec::new() }
}

/// The filter that Istio's proxy has under a module's name.
pub(in crate::lower) fn default_stats() -> IstioStats {
    IstioStats {
        disable_host_header_fallback: false,
        tcp_reporting_duration: Some(TCP_REPORTING),
        metrics: Vec::new(),
        definitions: Vec::new(),
        server_gateway: false,
        rotation: None,
    }
}

/// As that module: by headers, both ways.
pub(in crate::lower) fn default_peer_metadata() -> PeerMetadata {
    let discovery = vec![PeerDiscovery::IstioHeaders];
    let propagation = vec![PeerPropagation::IstioHeaders { skip_external_clusters: false }];
    PeerMetadata {
        downstream_discovery: discovery.clone(),
        upstream_discovery: discovery,
        downstream_propagation: propagation.clone(),
        upstream_propagation: propagation,
        ..PeerMetadata::default()
    }
}

//! Istio's filters: `istio.alpn`, `istio.metadata_exchange`, `istio.stats`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::lower::registry::registry;
use crate::model::http::istio::{
    IstioAlpn, IstioMetric, IstioMetricDefinition, IstioMetricKind, IstioRotation, IstioStats, PeerDiscovery,
    PeerMetadata, PeerPropagation,
};
use crate::proto::pb::io::istio::http::peer_metadata as peer;
use crate::proto::pb::istio::envoy::config::filter::http::alpn::v2alpha1 as alpn;
use crate::proto::pb::stats;
use peer::config::{discovery_method, propagation_method};

registry! {
    alpn::FilterConfig, alpn::filter_config::AlpnOverride, peer::Config, peer::config::DiscoveryMethod,
    peer::config::PropagationMethod, stats::PluginConfig, stats::MetricConfig, stats::MetricDefinition,
}

const TCP_REPORTING: Duration = Duration::from_secs(15);

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
    read {
        downstream_discovery, upstream_discovery, downstream_propagation, upstream_propagation,
        shared_with_upstream, additional_labels
    }
    {
        let propagation = |found: Vec<PeerPropagation>| found.into_iter().next();
        Some(PeerMetadata {
            downstream_discovery: flattened(cx.list("downstream_discovery", downstream_discovery)),
            upstream_discovery: flattened(cx.list("upstream_discovery", upstream_discovery)),
            downstream_propagation: propagation(cx.list("downstream_propagation", downstream_propagation)),
            upstream_propagation: propagation(cx.list("upstream_propagation", upstream_propagation)),
            shared_with_upstream,
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
                Some(Some(PeerDiscovery::IstioHeaders { skip_external_clusters }))
            }
            Some(MethodSpecifier::WorkloadDiscovery(peer::config::WorkloadDiscovery {})) => {
                Some(Some(PeerDiscovery::Workload))
            }
            Some(MethodSpecifier::Baggage(peer::config::Baggage {})) => {
                cx.warn("baggage", "peers are not known by their baggage");
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
            })) => Some(PeerPropagation { skip_external_clusters }),
            None => {
                cx.reject("method_specifier", "istio_headers is required");
                None
            }
        }
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
        let rotation = interval.map(|interval| IstioRotation { interval, grace_period: grace_period.unwrap_or(interval) });
        if grace_period.is_some() && rotation.is_none() {
            cx.warn("scope_grace_period_duration", "has no effect without a rotation");
        }
        let reporting = cx.timeout("tcp_reporting_duration", tcp_reporting_duration, Some(TCP_REPORTING));
        Some(IstioStats {
            disable_host_header_fallback,
            tcp_reporting_duration: reporting.unwrap_or(TCP_REPORTING),
            metrics: cx.list("metrics", metrics),
            definitions: cx.list("definitions", definitions),
            server_gateway,
            rotation,
        })
    }
}

lower! { "stats.MetricConfig" stats::MetricConfig => IstioMetric, cx;
    read { dimensions, name, tags_to_remove, r#match, drop }
    {
        let _ = cx;
        let dimensions: BTreeMap<_, _> =
            dimensions.into_iter().map(|(label, expression)| (label.into(), expression.into())).collect();
        Some(IstioMetric {
            name: name.into(),
            dimensions,
            tags_to_remove: tags_to_remove.into_iter().map(Into::into).collect(),
            condition: r#match.into(),
            drop,
        })
    }
}

lower! { "stats.MetricDefinition" stats::MetricDefinition => IstioMetricDefinition, cx;
    read { name, value, r#type }
    {
        let kind = match cx.variant("type", r#type)? {
            stats::MetricType::Counter => IstioMetricKind::Counter,
            stats::MetricType::Gauge => IstioMetricKind::Gauge,
            stats::MetricType::Histogram => IstioMetricKind::Histogram,
        };
        let name: Option<Arc<str>> = cx.name("name", name);
        Some(IstioMetricDefinition { name: name?, value: value.into(), kind })
    }
}

/// The filter that Istio's proxy has under a module's name.
pub(in crate::lower) fn default_stats() -> IstioStats {
    IstioStats {
        disable_host_header_fallback: false,
        tcp_reporting_duration: TCP_REPORTING,
        metrics: Vec::new(),
        definitions: Vec::new(),
        server_gateway: false,
        rotation: None,
    }
}

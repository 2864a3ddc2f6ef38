//! Parts of a configuration in few words, for people.

use proxy_config::model::cluster::Discovery;
use proxy_config::model::listener::{ChainMatch, SourceType};
use proxy_config::model::network_filter::NetworkFilter;
use proxy_config::model::tls::{CommonTls, SecretRef, ValidationSource};
use proxy_config::model::{Cidr, FilterChain, TransportSocket};
use serde_json::{Map, Value, json};

/// The conditions of a chain; those that it does not have are left out.
pub(super) fn criteria(criteria: &ChainMatch) -> Value {
    let ChainMatch {
        destination_port,
        prefix_ranges,
        server_names,
        transport_protocol,
        application_protocols,
        direct_source_prefix_ranges,
        source_type,
        source_prefix_ranges,
        source_ports,
    } = criteria;
    let cidrs = |ranges: &[Cidr]| -> Value {
        ranges.iter().map(|cidr| format!("{}/{}", cidr.address, cidr.prefix)).collect()
    };
    let texts = |texts: &[std::sync::Arc<str>]| -> Value { texts.iter().map(|text| &**text).collect() };
    let source = match source_type {
        SourceType::Any => "",
        SourceType::SameIpOrLoopback => "SAME_IP_OR_LOOPBACK",
        SourceType::External => "EXTERNAL",
    };
    let all = [
        ("destination_port", destination_port.map_or(Value::Null, |port| json!(port))),
        ("prefix_ranges", cidrs(prefix_ranges)),
        ("server_names", texts(server_names)),
        ("transport_protocol", json!(**transport_protocol)),
        ("application_protocols", texts(application_protocols)),
        ("direct_source_prefix_ranges", cidrs(direct_source_prefix_ranges)),
        ("source_type", json!(source)),
        ("source_prefix_ranges", cidrs(source_prefix_ranges)),
        ("source_ports", json!(source_ports)),
    ];
    let given = all.into_iter().filter(|(_, value)| {
        !(value.is_null() || *value == json!("") || value.as_array().is_some_and(Vec::is_empty))
    });
    Value::Object(given.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

/// `tls (default, ROOTCA)`: with the secrets that come by SDS; what wraps another has it in brackets.
pub(super) fn transport(socket: &TransportSocket) -> String {
    let own = match socket {
        TransportSocket::RawBuffer => return "raw_buffer".to_owned(),
        TransportSocket::DownstreamTls(tls) => return with("tls", &secrets(&tls.common)),
        TransportSocket::UpstreamTls(tls) => {
            let mut facts = secrets(&tls.common);
            if !tls.sni.is_empty() {
                facts.push(format!("sni {}", tls.sni));
            }
            return with("tls", &facts);
        }
        TransportSocket::DownstreamStartTls(tls) => return with("starttls", &secrets(&tls.common)),
        TransportSocket::UpstreamStartTls(tls) => return with("starttls", &secrets(&tls.common)),
        TransportSocket::UpstreamProxyProtocol(_) => "upstream_proxy_protocol",
        TransportSocket::Tap(_) => "tap",
        TransportSocket::TcpStats(_) => "tcp_stats",
    };
    with(own, &socket.inner().map(transport).into_iter().collect::<Vec<_>>())
}

fn with(name: &str, facts: &[String]) -> String {
    if facts.is_empty() { name.to_owned() } else { format!("{name} ({})", facts.join(", ")) }
}

fn secrets(common: &CommonTls) -> Vec<String> {
    let validation = match &common.validation {
        ValidationSource::None | ValidationSource::Context(_) => None,
        ValidationSource::Secret(secret) | ValidationSource::Combined { secret, .. } => Some(secret),
    };
    let name = |secret: &SecretRef| secret.name.to_string();
    common.certificate_secrets.iter().chain(validation).map(name).collect()
}

/// Envoy's name of a filter, without what all of them begin with.
pub(super) fn filter(filter: &NetworkFilter) -> &str {
    match filter {
        NetworkFilter::TcpProxy(_) => "tcp_proxy",
        NetworkFilter::Http(_) => "http_connection_manager",
        NetworkFilter::Rbac(_) => "rbac",
        NetworkFilter::SniCluster => "sni_cluster",
        NetworkFilter::ConnectionLimit(_) => "connection_limit",
        NetworkFilter::LocalRateLimit(_) => "local_ratelimit",
        NetworkFilter::DirectResponse(_) => "direct_response",
        NetworkFilter::Echo => "echo",
        NetworkFilter::MetadataExchange(_) => "metadata_exchange",
        NetworkFilter::IstioStats(_) => "istio.stats",
        NetworkFilter::PostgresProxy(_) => "postgres_proxy",
        NetworkFilter::SmtpStarttls(_) => "smtp_starttls",
        NetworkFilter::Discovered(_) => "config_discovery",
        NetworkFilter::Unserved(unserved) => {
            unserved.extension.strip_prefix("envoy.filters.network.").unwrap_or(&unserved.extension)
        }
    }
}

/// Where endpoints come from, by Envoy's name.
pub(super) fn discovery(discovery: &Discovery) -> &'static str {
    match discovery {
        Discovery::Static => "STATIC",
        Discovery::StrictDns(_) => "STRICT_DNS",
        Discovery::LogicalDns(_) => "LOGICAL_DNS",
        Discovery::Eds(_) => "EDS",
        Discovery::OriginalDst(_) => "ORIGINAL_DST",
    }
}

/// The clusters that a chain may send connections to, each with its weight.
pub(super) fn clusters(chain: &FilterChain) -> Vec<(&str, u32)> {
    let mut found = Vec::new();
    for config in &chain.filters {
        if let NetworkFilter::TcpProxy(proxy) = &config.filter {
            found.extend(proxy.clusters.iter().map(|cluster| (&*cluster.name, cluster.weight)));
        }
    }
    found
}

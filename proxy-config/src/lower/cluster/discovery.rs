//! Where a cluster's endpoints come from: `type` or `cluster_type`, and what belongs to each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::cluster as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily as NewFamily;
use envoy_types::pb::envoy::extensions::clusters::dns::v3::{DnsCluster, dns_cluster};
use envoy_types::pb::envoy::extensions::clusters::original_dst::v3::OriginalDstCluster;
use envoy_types::pb::envoy::extensions::network::dns_resolver as resolver;
use envoy_types::pb::google::protobuf::Duration as PbDuration;

use super::scalars::{at_most, refresh_rate};
use crate::lower::extension::Extension;
use crate::lower::http::header::optional_name;
use crate::lower::registry::registry;
use crate::lower::value::number;
use crate::lower::{Cx, IsSet, Lower};
use crate::model::address::Address;
use crate::model::cluster as model;
use crate::model::config_source::ConfigSource;

registry! {
    pb::EdsClusterConfig, pb::OriginalDstLbConfig, pb::RefreshRate, OriginalDstCluster, DnsCluster,
    dns_cluster::RefreshRate, core::DnsResolutionConfig, core::DnsResolverOptions,
    resolver::cares::v3::CaresDnsResolverConfig, resolver::getaddrinfo::v3::GetAddrInfoDnsResolverConfig,
}

/// Envoy's header that names a destination.
const ORIGINAL_DST_HOST: &str = "x-envoy-original-dst-host";

/// The fields of a cluster that are about discovery.
pub struct Fields {
    pub kind: Option<pb::ClusterDiscoveryType>,
    pub eds_cluster_config: Option<pb::EdsClusterConfig>,
    pub original_dst_lb_config: Option<pb::OriginalDstLbConfig>,
    pub dns: DnsFields,
}

/// The deprecated ones, which `envoy.clusters.dns` replaces.
pub struct DnsFields {
    pub refresh_rate: Option<PbDuration>,
    pub jitter: Option<PbDuration>,
    pub failure_refresh_rate: Option<pb::RefreshRate>,
    pub respect_ttl: bool,
    pub lookup_family: i32,
    pub resolvers: Vec<core::Address>,
    pub use_tcp: bool,
    pub resolution_config: Option<core::DnsResolutionConfig>,
    pub typed_resolver: Option<core::TypedExtensionConfig>,
}

/// What was asked for.
enum Kind {
    Type(pb::DiscoveryType),
    Dns(Box<model::Dns>),
    OriginalDst(model::OriginalDst),
}

pub fn discovery(cx: &mut Cx, name: &Arc<str>, fields: Fields) -> Option<model::Discovery> {
    let Fields { kind, eds_cluster_config, original_dst_lb_config, dns } = fields;
    let kind = match kind {
        None => Some(Kind::Type(pb::DiscoveryType::Static)),
        Some(pb::ClusterDiscoveryType::Type(value)) => cx.variant("type", value).map(Kind::Type),
        Some(pb::ClusterDiscoveryType::ClusterType(custom)) => {
            cx.field("cluster_type", |cx| custom_type(cx, custom))
        }
    };
    let is_eds = matches!(kind, Some(Kind::Type(pb::DiscoveryType::Eds)));
    if eds_cluster_config.is_some() && !is_eds && kind.is_some() {
        cx.reject("eds_cluster_config", "is set in a cluster that is not EDS");
    }
    let original = original_dst_lb_config.and_then(|config| cx.lower("original_dst_lb_config", config));
    if original.is_some() && !matches!(kind, Some(Kind::Type(pb::DiscoveryType::OriginalDst))) {
        cx.warn("original_dst_lb_config", "has an effect with type ORIGINAL_DST only");
    }
    let by_fields =
        matches!(kind, Some(Kind::Type(pb::DiscoveryType::StrictDns | pb::DiscoveryType::LogicalDns)));
    let dns = dns_fields(cx, dns, by_fields);
    Some(match kind? {
        Kind::Dns(dns) if dns.all_addresses_in_single_endpoint => model::Discovery::LogicalDns(dns),
        Kind::Dns(dns) => model::Discovery::StrictDns(dns),
        Kind::OriginalDst(original) => model::Discovery::OriginalDst(original),
        Kind::Type(pb::DiscoveryType::Static) => model::Discovery::Static,
        Kind::Type(pb::DiscoveryType::StrictDns) => model::Discovery::StrictDns(dns),
        Kind::Type(pb::DiscoveryType::LogicalDns) => model::Discovery::LogicalDns(dns),
        Kind::Type(pb::DiscoveryType::OriginalDst) => {
            model::Discovery::OriginalDst(original.unwrap_or_default())
        }
        Kind::Type(pb::DiscoveryType::Eds) => {
            let (service_name, source) = cx.required("eds_cluster_config", eds_cluster_config)?;
            // Istio gives every cluster its own name once more.
            let service_name = service_name.filter(|own: &Arc<str>| *own != *name);
            let service_name = service_name.unwrap_or_else(|| Arc::clone(name));
            model::Discovery::Eds(Box::new(model::Eds { service_name, source }))
        }
    })
}

/// `cluster_type`: by the configuration's type where there is one, else by name.
fn custom_type(cx: &mut Cx, custom: pb::CustomClusterType) -> Option<Kind> {
    let pb::CustomClusterType { name, typed_config } = custom;
    let name = cx.non_empty("name", name)?;
    if let Some(any) = typed_config.filter(|any| !any.type_url.is_empty()) {
        let extension = Extension::unpack(cx, &any)?;
        return match extension.type_name.as_str() {
            "envoy.extensions.clusters.dns.v3.DnsCluster" => {
                extension.lower::<DnsCluster>(cx).map(Box::new).map(Kind::Dns)
            }
            "envoy.extensions.clusters.original_dst.v3.OriginalDstCluster" => {
                extension.lower::<OriginalDstCluster>(cx).map(Kind::OriginalDst)
            }
            other => {
                cx.reject("typed_config", format!("\"{name}\": {other} is not implemented"));
                None
            }
        };
    }
    let short = name.strip_prefix("envoy.cluster.").or_else(|| name.strip_prefix("envoy.clusters."));
    match short {
        Some("static") => Some(Kind::Type(pb::DiscoveryType::Static)),
        Some("strict_dns") => Some(Kind::Type(pb::DiscoveryType::StrictDns)),
        Some("logical_dns") => Some(Kind::Type(pb::DiscoveryType::LogicalDns)),
        Some("eds") => Some(Kind::Type(pb::DiscoveryType::Eds)),
        Some("original_dst") => Some(Kind::Type(pb::DiscoveryType::OriginalDst)),
        Some("dns") => DnsCluster::default().lower(cx).map(Box::new).map(Kind::Dns),
        Some(_) | None => {
            cx.reject("name", format!("no cluster type \"{name}\" is implemented"));
            None
        }
    }
}

/// Checked in every cluster; `used` in those that resolve names by these fields.
fn dns_fields(cx: &mut Cx, fields: DnsFields, used: bool) -> Box<model::Dns> {
    let given = [
        ("dns_refresh_rate", fields.refresh_rate.is_set()),
        ("dns_jitter", fields.jitter.is_set()),
        ("dns_failure_refresh_rate", fields.failure_refresh_rate.is_set()),
        ("respect_dns_ttl", fields.respect_ttl),
        ("dns_lookup_family", fields.lookup_family.is_set()),
        ("dns_resolvers", fields.resolvers.is_set()),
        ("use_tcp_for_dns_lookups", fields.use_tcp),
        ("dns_resolution_config", fields.resolution_config.is_set()),
        ("typed_dns_resolver_config", fields.typed_resolver.is_set()),
    ];
    for (name, _) in given.into_iter().filter(|(_, set)| *set && !used) {
        cx.warn(name, "has an effect with type STRICT_DNS and LOGICAL_DNS only");
    }
    let family = match cx.variant("dns_lookup_family", fields.lookup_family) {
        Some(pb::DnsLookupFamily::Auto) | None => model::DnsFamily::Auto,
        Some(pb::DnsLookupFamily::V4Only) => model::DnsFamily::V4Only,
        Some(pb::DnsLookupFamily::V6Only) => model::DnsFamily::V6Only,
        Some(pb::DnsLookupFamily::V4Preferred) => model::DnsFamily::V4Preferred,
        Some(pb::DnsLookupFamily::All) => model::DnsFamily::All,
    };
    let rate = refresh_rate(cx, "dns_refresh_rate", fields.refresh_rate);
    let jitter = cx.duration("dns_jitter", fields.jitter);
    let failure = fields.failure_refresh_rate.and_then(|rate| cx.lower("dns_failure_refresh_rate", rate));
    let resolution = match (fields.typed_resolver, fields.resolution_config) {
        (typed, Some(_)) if used && typed.is_some() => {
            cx.warn("dns_resolution_config", "has no effect: typed_dns_resolver_config decides");
            typed.and_then(|typed| typed_resolver(cx, typed))
        }
        (Some(typed), _) if used => typed_resolver(cx, typed),
        (_, Some(config)) => cx.lower("dns_resolution_config", config),
        (_, None) => {
            let resolvers = addresses(cx, "dns_resolvers", fields.resolvers);
            Some(Resolution { resolvers, use_tcp: fields.use_tcp, no_default_search_domain: false })
        }
    };
    Box::new(dns(rate, jitter, failure, fields.respect_ttl, family, resolution.unwrap_or_default()))
}

fn dns(
    rate: Option<Duration>,
    jitter: Option<Duration>,
    failure_refresh_rate: Option<(Duration, Duration)>,
    respect_ttl: bool,
    family: model::DnsFamily,
    resolution: Resolution,
) -> model::Dns {
    model::Dns {
        refresh_rate: rate.unwrap_or(Duration::from_secs(5)),
        failure_refresh_rate,
        jitter: jitter.unwrap_or_default(),
        respect_ttl,
        family,
        resolvers: resolution.resolvers,
        use_tcp: resolution.use_tcp,
        no_default_search_domain: resolution.no_default_search_domain,
        all_addresses_in_single_endpoint: false,
    }
}

/// Whom to ask, and how.
#[derive(Debug, Default, PartialEq)]
pub struct Resolution {
    resolvers: Vec<SocketAddr>,
    use_tcp: bool,
    no_default_search_domain: bool,
}

fn typed_resolver(cx: &mut Cx, typed: core::TypedExtensionConfig) -> Option<Resolution> {
    let core::TypedExtensionConfig { name, typed_config } = typed;
    cx.field("typed_dns_resolver_config", |cx| {
        let Some(any) = typed_config else {
            cx.reject("typed_config", format!("\"{name}\": is required"));
            return None;
        };
        let extension = Extension::unpack(cx, &any)?;
        match extension.type_name.strip_prefix("envoy.extensions.network.dns_resolver.") {
            Some("cares.v3.CaresDnsResolverConfig") => {
                extension.lower::<resolver::cares::v3::CaresDnsResolverConfig>(cx)
            }
            Some("getaddrinfo.v3.GetAddrInfoDnsResolverConfig") => {
                extension.lower::<resolver::getaddrinfo::v3::GetAddrInfoDnsResolverConfig>(cx)
            }
            Some(_) | None => {
                let type_name = &extension.type_name;
                cx.reject("typed_config", format!("\"{name}\": {type_name} is not implemented"));
                None
            }
        }
    })
}

lower! { "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"
    resolver::cares::v3::CaresDnsResolverConfig => Resolution, cx;
    read { resolvers, dns_resolver_options }
    warn {
        use_resolvers_as_fallback: "is not implemented: the resolvers given are asked first",
        filter_unroutable_families: "is not implemented: dns_lookup_family chooses",
        udp_max_queries: "tunes a library that is not used here",
        query_timeout_seconds: "is not implemented: the resolver's own time-out holds",
        query_tries: "is not implemented: the resolver's own number of tries holds",
        rotate_nameservers: "is not implemented: resolvers are asked in order",
        edns0_max_payload_size: "tunes a library that is not used here",
        max_udp_channel_duration: "tunes a library that is not used here",
        reinit_channel_on_timeout: "tunes a library that is not used here",
        qcache_max_ttl: "tunes a library that is not used here",
    }
    {
        let options = dns_resolver_options.and_then(|options| cx.lower("dns_resolver_options", options));
        Some(Resolution { resolvers: addresses(cx, "resolvers", resolvers), ..options.unwrap_or_default() })
    }
}

lower! { "envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig"
    resolver::getaddrinfo::v3::GetAddrInfoDnsResolverConfig => Resolution, cx;
    read {}
    warn {
        num_retries: "is not implemented: a failed lookup is repeated at the next refresh",
        num_resolver_threads: "is not implemented: lookups run on the runtime's threads",
    }
    {
        let _ = cx;
        Some(Resolution::default())
    }
}

lower! { "envoy.config.core.v3.DnsResolutionConfig" core::DnsResolutionConfig => Resolution, cx;
    read { resolvers, dns_resolver_options }
    {
        if resolvers.is_empty() {
            cx.reject("resolvers", "at least one is required");
        }
        let options = dns_resolver_options.and_then(|options| cx.lower("dns_resolver_options", options));
        Some(Resolution { resolvers: addresses(cx, "resolvers", resolvers), ..options.unwrap_or_default() })
    }
}

lower! { "envoy.config.core.v3.DnsResolverOptions" core::DnsResolverOptions => Resolution, cx;
    read { use_tcp_for_dns_lookups, no_default_search_domain }
    {
        let _ = cx;
        Some(Resolution { resolvers: vec![], use_tcp: use_tcp_for_dns_lookups, no_default_search_domain })
    }
}

/// Resolvers are IP addresses: who would resolve their names?
fn addresses(cx: &mut Cx, field: &'static str, given: Vec<core::Address>) -> Vec<SocketAddr> {
    let lowered = cx.list(field, given);
    let mut ips = Vec::with_capacity(lowered.len());
    for address in lowered {
        match address {
            Address::Ip(ip) if ip.port() == 0 => ips.push(SocketAddr::new(ip.ip(), 53)),
            Address::Ip(ip) => ips.push(ip),
            Address::Host(host) => cx.reject(field, format!("malformed IP address: {}", host.host)),
            Address::Pipe { .. } => cx.reject(field, "a resolver has an IP address"),
        }
    }
    ips
}

lower! { "envoy.config.cluster.v3.Cluster.RefreshRate" pb::RefreshRate => (Duration, Duration), cx;
    read { base_interval, max_interval }
    {
        if base_interval.is_none() {
            cx.reject("base_interval", "is required");
        }
        let base = refresh_rate(cx, "base_interval", base_interval);
        let given = refresh_rate(cx, "max_interval", max_interval);
        let base = base?;
        let max = given.unwrap_or_else(|| base.saturating_mul(10));
        if max < base {
            cx.reject("max_interval", "must not be less than base_interval");
        }
        Some((base, max))
    }
}

lower! { "envoy.extensions.clusters.dns.v3.DnsCluster.RefreshRate"
    dns_cluster::RefreshRate => (Duration, Duration), cx;
    read { base_interval, max_interval }
    {
        pb::RefreshRate { base_interval, max_interval }.lower(cx)
    }
}

lower! { "envoy.extensions.clusters.dns.v3.DnsCluster" DnsCluster => model::Dns, cx;
    read {
        dns_refresh_rate, dns_failure_refresh_rate, respect_dns_ttl, dns_jitter, typed_dns_resolver_config,
        dns_lookup_family, all_addresses_in_single_endpoint,
    }
    warn { dns_min_refresh_rate: "is not implemented: a time to live is taken as it comes" }
    {
        let family = match cx.variant("dns_lookup_family", dns_lookup_family)? {
            NewFamily::Unspecified | NewFamily::Auto => model::DnsFamily::Auto,
            NewFamily::V4Only => model::DnsFamily::V4Only,
            NewFamily::V6Only => model::DnsFamily::V6Only,
            NewFamily::V4Preferred => model::DnsFamily::V4Preferred,
            NewFamily::All => model::DnsFamily::All,
        };
        let rate = refresh_rate(cx, "dns_refresh_rate", dns_refresh_rate);
        let jitter = cx.duration("dns_jitter", dns_jitter);
        let failure = dns_failure_refresh_rate.and_then(|rate| cx.lower("dns_failure_refresh_rate", rate));
        let resolution = typed_dns_resolver_config.and_then(|typed| typed_resolver(cx, typed)).unwrap_or_default();
        let dns = dns(rate, jitter, failure, respect_dns_ttl, family, resolution);
        Some(model::Dns { all_addresses_in_single_endpoint, ..dns })
    }
}

lower! { "envoy.config.cluster.v3.Cluster.EdsClusterConfig"
    pb::EdsClusterConfig => (Option<Arc<str>>, ConfigSource), cx;
    read { eds_config, service_name }
    {
        let source = cx.required("eds_config", eds_config)?;
        Some(((!service_name.is_empty()).then(|| service_name.into()), source))
    }
}

lower! { "envoy.config.cluster.v3.Cluster.OriginalDstLbConfig" pb::OriginalDstLbConfig => model::OriginalDst, cx;
    read { upstream_port_override, use_http_header, http_header_name }
    reject { metadata_key: "an original destination from metadata is not implemented" }
    {
        if !http_header_name.is_empty() && !use_http_header {
            cx.reject("http_header_name", "needs use_http_header");
        }
        let name = optional_name(cx, "http_header_name", &http_header_name);
        let port = at_most(cx, "upstream_port_override", number(upstream_port_override), 65_535);
        Some(model::OriginalDst {
            upstream_port_override: port.and_then(|port| u16::try_from(port).ok()),
            http_header: use_http_header.then(|| name.unwrap_or_else(|| ORIGINAL_DST_HOST.into())),
        })
    }
}

lower! { "envoy.extensions.clusters.original_dst.v3.OriginalDstCluster" OriginalDstCluster => model::OriginalDst, cx;
    read { use_http_header, http_header_name, upstream_port_override, metadata_key }
    {
        pb::OriginalDstLbConfig { use_http_header, http_header_name, upstream_port_override, metadata_key }.lower(cx)
    }
}

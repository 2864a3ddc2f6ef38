//! `config.core.v3`: what other messages are made of.

use std::path::PathBuf;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as pb;
use envoy_types::pb::envoy::r#type::v3 as pb_type;
use envoy_types::pb::envoy::r#type::v3::SemanticVersion;
use envoy_types::pb::google::protobuf::Struct;
use prost::Message as _;

use super::registry::registry;
use super::value::{flag, number, structure};
use super::{Cx, transport};
use crate::model;
use crate::model::address::{
    Address, BindConfig, Cidr, HostPort, SocketOption, SocketOptionValue, SocketState,
};
use crate::model::bootstrap::Node;
use crate::model::endpoint::Locality;
use crate::model::metadata::Metadata;
use crate::model::network_filter::Backoff;
use crate::model::tls::DataSource;
use crate::model::{FractionalPercent, TransportSocket};

registry! {
    pb::Address, pb::SocketAddress, pb::Pipe,  pb::CidrRange, pb::TcpKeepalive,
    pb::SocketOption, pb::SocketOptionsOverride, pb::ExtraSourceAddress, pb::BindConfig, pb::Metadata,
    pb::RuntimeFractionalPercent, pb::RuntimeFeatureFlag, pb_type::FractionalPercent, pb_type::Percent,
    pb::Locality, pb::Node, pb::BackoffStrategy,
    pb::TransportSocket, pb::DataSource,
}

/// An IP address and port, or a name and port.
#[derive(Debug, PartialEq)]
pub struct SocketAddress {
    pub address: Address,
    pub ipv4_compat: bool,
}

lower! { "envoy.config.core.v3.Address" pb::Address => Address, cx;
    read { address }
    {
        use pb::address::Address as Kind;
        match address {
            Some(Kind::SocketAddress(socket)) => {
                let lowered = cx.lower("socket_address", socket)?;
                if lowered.ipv4_compat {
                    cx.field("socket_address", |cx| {
                        cx.warn("ipv4_compat", "has an effect on the address of a listener only");
                    });
                }
                Some(lowered.address)
            }
            Some(Kind::Pipe(pipe)) => cx.lower("pipe", pipe),
            Some(Kind::EnvoyInternalAddress(_)) => {
                cx.reject("envoy_internal_address", "internal listeners are not implemented");
                None
            }
            None => {
                cx.reject("address", "is required");
                None
            }
        }
    }
}

lower! { "envoy.config.core.v3.SocketAddress" pb::SocketAddress => SocketAddress, cx;
    read { protocol, address, ipv4_compat, port_specifier }
    reject {
        resolver_name: "custom address resolvers are not implemented",
        network_namespace_filepath: "listening or connecting in another network namespace is not implemented",
    }
    {
        use pb::socket_address::{PortSpecifier, Protocol};
        match cx.variant("protocol", protocol)? {
            Protocol::Tcp => {}
            Protocol::Udp => cx.reject("protocol", "UDP is not implemented yet"),
        }
        let address = cx.non_empty("address", address);
        let port = match port_specifier {
            Some(PortSpecifier::PortValue(port)) => cx.port("port_value", port),
            Some(PortSpecifier::NamedPort(_)) => {
                cx.reject("named_port", "named ports are not implemented: they need a custom resolver");
                None
            }
            None => {
                cx.reject("port_specifier", "port_value is required");
                None
            }
        };
        let (address, port) = (address?, port?);
        let address = match address.parse() {
            Ok(ip) => Address::Ip(std::net::SocketAddr::new(ip, port)),
            Err(_) => Address::Host(HostPort { host: address.into(), port }),
        };
        Some(SocketAddress { address, ipv4_compat })
    }
}

lower! { "envoy.config.core.v3.Pipe" pb::Pipe => Address, cx;
    read { path, mode }
    {
        let path = cx.non_empty("path", path);
        let mode = cx.ranged("mode", mode, 0..=511);
        Some(Address::Pipe { path: PathBuf::from(path?), mode: mode? })
    }
}

lower! { "envoy.config.core.v3.CidrRange" pb::CidrRange => Cidr, cx;
    read { address_prefix, prefix_len }
    {
        let address = cx.non_empty("address_prefix", address_prefix)?;
        let address = cx.ip("address_prefix", &address)?;
        // No length is a length of 0 in Envoy, and one that is too long for the family is the longest.
        let len = cx.ranged("prefix_len", number(prefix_len).unwrap_or(0), 0..=128)?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        u8::try_from(len.min(longest)).ok().and_then(|len| Cidr::new(address, len))
    }
}

lower! { "envoy.config.core.v3.TcpKeepalive" pb::TcpKeepalive => model::TcpKeepalive, cx;
    read { keepalive_probes, keepalive_time, keepalive_interval }
    {
        let _ = cx;
        let seconds = |value: u32| Duration::from_secs(value.into());
        Some(model::TcpKeepalive {
            probes: number(keepalive_probes),
            time: number(keepalive_time).map(seconds),
            interval: number(keepalive_interval).map(seconds),
        })
    }
}

lower! { "envoy.config.core.v3.SocketOption" pb::SocketOption => SocketOption, cx;
    read { level, name, state, value }
    reject { ip_version: "socket options of one IP version only are not implemented" }
    warn {
        description: "is a comment",
        r#type: "sockets here are streams: the option is set on them",
    }
    {
        use pb::socket_option::{SocketState as State, Value};
        let value = match value {
            Some(Value::IntValue(value)) => narrow(cx, "int_value", value).map(SocketOptionValue::Int),
            Some(Value::BufValue(bytes)) => Some(SocketOptionValue::Bytes(bytes)),
            None => {
                cx.reject("value", "int_value or buf_value is required");
                None
            }
        };
        let (level, name) = (narrow(cx, "level", level), narrow(cx, "name", name));
        let state = match cx.variant("state", state)? {
            State::StatePrebind => SocketState::PreBind,
            State::StateBound => SocketState::Bound,
            State::StateListening => SocketState::Listening,
        };
        Some(SocketOption { level: level?, name: name?, value: value?, state })
    }
}

/// The kernel takes C integers.
fn narrow(cx: &mut Cx, field: &'static str, value: i64) -> Option<i32> {
    let narrow = i32::try_from(value).ok();
    if narrow.is_none() {
        cx.reject(field, "does not fit the 32 bits that the kernel takes");
    }
    narrow
}

lower! { "envoy.config.core.v3.SocketOptionsOverride" pb::SocketOptionsOverride => Vec<SocketOption>, cx;
    read { socket_options }
    {
        Some(cx.list("socket_options", socket_options))
    }
}

lower! { "envoy.config.core.v3.ExtraSourceAddress" pb::ExtraSourceAddress => std::net::SocketAddr, cx;
    read { address }
    reject { socket_options: "socket options of one source address are not implemented; use those of the bind config" }
    {
        let address = cx.required("address", address)?;
        source_ip(cx, "address", address)
    }
}

lower! { "envoy.config.core.v3.BindConfig" pb::BindConfig => BindConfig, cx;
    read { source_address, freebind, socket_options, extra_source_addresses, additional_source_addresses,
           local_address_selector }
    reject { validate_network_namespaces: "network namespaces of addresses are not implemented" }
    {
        let given = source_address.is_some();
        let source = source_address
            .and_then(|address| cx.lower("source_address", address))
            .and_then(|address| source_ip(cx, "source_address", address));
        if !extra_source_addresses.is_empty() && !additional_source_addresses.is_empty() {
            cx.reject("additional_source_addresses", "cannot be given with extra_source_addresses");
        }
        let mut extra_sources = cx.list("extra_source_addresses", extra_source_addresses);
        let additional = cx.list("additional_source_addresses", additional_source_addresses);
        extra_sources.extend(
            additional.into_iter().filter_map(|a| source_ip(cx, "additional_source_addresses", a)),
        );
        if !extra_sources.is_empty() && !given {
            cx.reject("source_address", "is required where there are extra source addresses");
        }
        if let [extra] = extra_sources.as_slice()
            && source.is_some_and(|source| source.is_ipv4() == extra.is_ipv4())
        {
            cx.reject("extra_source_addresses", "must be of the other IP version than source_address");
        }
        if extra_sources.len() > 1 {
            cx.reject("extra_source_addresses", "at most one is allowed, of the other IP version");
        }
        if let Some(selector) = local_address_selector {
            local_address_selector_of(cx, &selector);
        }
        Some(BindConfig {
            source,
            extra_sources,
            freebind: flag(freebind, false),
            socket_options: cx.list("socket_options", socket_options),
        })
    }
}

fn source_ip(cx: &mut Cx, field: &'static str, address: SocketAddress) -> Option<std::net::SocketAddr> {
    match address.address {
        Address::Ip(ip) => {
            if address.ipv4_compat {
                cx.warn(field, "ipv4_compat has an effect on the address of a listener only");
            }
            Some(ip)
        }
        Address::Host(HostPort { host, .. }) => {
            cx.reject(field, format!("malformed IP address: {host}"));
            None
        }
        Address::Pipe { .. } => {
            cx.reject(field, "must be an IP address");
            None
        }
    }
}

/// The default one does what is done here: the source address of the other side's family.
fn local_address_selector_of(cx: &mut Cx, selector: &pb::TypedExtensionConfig) {
    const DEFAULT: &str = "envoy.config.upstream.local_address_selector.v3.DefaultLocalAddressSelector";
    match &selector.typed_config {
        Some(any) if any.type_url.ends_with(DEFAULT) => {
            cx.warn("local_address_selector", "the default selector is the only one, and always on");
        }
        Some(_) | None => cx.reject(
            "local_address_selector",
            format!("\"{}\": only the default local address selector is implemented", selector.name),
        ),
    }
}

lower! { "envoy.config.core.v3.Metadata" pb::Metadata => Metadata, cx;
    read { filter_metadata }
    warn { typed_filter_metadata: "typed metadata is read by extensions that are not implemented; filter_metadata is kept" }
    {
        let _ = cx;
        Some(Metadata(filter_metadata.into_iter().map(|(name, value)| (name, structure(value))).collect()))
    }
}

lower! { "envoy.config.core.v3.RuntimeFractionalPercent" pb::RuntimeFractionalPercent => FractionalPercent, cx;
    read { default_value }
    warn { runtime_key: "there is no runtime: the default value holds" }
    {
        cx.required("default_value", default_value)
    }
}

lower! { "envoy.config.core.v3.RuntimeFeatureFlag" pb::RuntimeFeatureFlag => bool, cx;
    read { default_value }
    warn { runtime_key: "there is no runtime: the default value holds" }
    {
        if default_value.is_none() {
            cx.reject("default_value", "is required");
        }
        default_value.map(|v| v.value)
    }
}

lower! { "envoy.type.v3.FractionalPercent" pb_type::FractionalPercent => FractionalPercent, cx;
    read { numerator, denominator }
    {
        use pb_type::fractional_percent::DenominatorType;
        let denominator = match cx.variant("denominator", denominator)? {
            DenominatorType::Hundred => 100,
            DenominatorType::TenThousand => 10_000,
            DenominatorType::Million => 1_000_000,
        };
        Some(FractionalPercent { numerator, denominator })
    }
}

lower! { "envoy.type.v3.Percent" pb_type::Percent => f64, cx;
    read { value }
    {
        cx.ranged("value", value, 0.0..=100.0)
    }
}

lower! { "envoy.config.core.v3.Locality" pb::Locality => Locality, cx;
    read { region, zone, sub_zone }
    {
        let _ = cx;
        Some(Locality { region: region.into(), zone: zone.into(), sub_zone: sub_zone.into() })
    }
}

lower! { "envoy.config.core.v3.Node" pb::Node => Node, cx;
    read { id, cluster, metadata, locality }
    warn {
        dynamic_parameters: "xDS resource locators are not implemented",
        user_agent_name: "is filled in by the proxy",
        extensions: "is filled in by the proxy",
        client_features: "is filled in by the proxy",
        listening_addresses: "is deprecated and not sent",
        user_agent_version_type: "is filled in by the proxy",
    }
    {
        let raw = told(&id, &cluster, metadata.as_ref(), locality.as_ref()).encode_to_vec().into();
        let locality = locality.and_then(|l| cx.lower("locality", l)).unwrap_or_default();
        Some(Node {
            id,
            cluster,
            region: locality.region.to_string(),
            zone: locality.zone.to_string(),
            sub_zone: locality.sub_zone.to_string(),
            metadata: metadata.map(structure).unwrap_or_default(),
            raw,
        })
    }
}

/// What a control plane is told of us: who we are by the configuration, and what we can do.
fn told(id: &str, cluster: &str, metadata: Option<&Struct>, locality: Option<&pb::Locality>) -> pb::Node {
    let number = |part: &str| part.parse().unwrap_or_default();
    let version = SemanticVersion {
        major_number: number(env!("CARGO_PKG_VERSION_MAJOR")),
        minor_number: number(env!("CARGO_PKG_VERSION_MINOR")),
        patch: number(env!("CARGO_PKG_VERSION_PATCH")),
    };
    let build = pb::BuildVersion { version: Some(version), metadata: None };
    pb::Node {
        id: id.to_owned(),
        cluster: cluster.to_owned(),
        metadata: metadata.cloned(),
        locality: locality.cloned(),
        user_agent_name: "shunt".to_owned(),
        user_agent_version_type: Some(pb::node::UserAgentVersionType::UserAgentBuildVersion(build)),
        client_features: CLIENT_FEATURES.map(str::to_owned).to_vec(),
        ..pb::Node::default()
    }
}

/// As Envoy's documentation names them: a `Resource` around a resource is opened also in the state of the world.
/// Over-provisioning and the answers to all clusters' load reports have names as well; the first says that it is
/// lacking, which it is not, and the second is not implemented.
const CLIENT_FEATURES: [&str; 1] = ["xds.config.resource-in-sotw"];

lower! { "envoy.config.core.v3.BackoffStrategy" pb::BackoffStrategy => Backoff, cx;
    read { base_interval, max_interval }
    {
        if base_interval.is_none() {
            cx.reject("base_interval", "is required");
        }
        let base = cx.duration_from("base_interval", base_interval, Duration::from_millis(1));
        let max = match max_interval {
            Some(_) => cx.duration_from("max_interval", max_interval, Duration::from_nanos(1)),
            None => base.map(|base| base * 10),
        };
        let (base, max) = (base?, max?);
        if max < base {
            cx.reject("max_interval", "must not be less than base_interval");
        }
        Some(Backoff { base, max })
    }
}

lower! { "envoy.config.core.v3.TransportSocket" pb::TransportSocket => TransportSocket, cx;
    read { name, config_type }
    {
        use pb::transport_socket::ConfigType;
        let name = cx.non_empty("name", name)?;
        let any = config_type.map(|ConfigType::TypedConfig(any)| any);
        transport::transport_socket(cx, &name, any)
    }
}

lower! { "envoy.config.core.v3.DataSource" pb::DataSource => DataSource, cx;
    read { specifier }
    warn { watched_directory: "is read beside what the file is for, and not here" }
    {
        use pb::data_source::Specifier;
        match specifier {
            Some(Specifier::Filename(path)) => {
                cx.non_empty("filename", path).map(|path| DataSource::File(path.into()))
            }
            Some(Specifier::InlineBytes(bytes)) => Some(DataSource::Inline(bytes.into())),
            Some(Specifier::InlineString(text)) => Some(DataSource::Inline(text.into_bytes().into())),
            Some(Specifier::EnvironmentVariable(name)) => {
                cx.name("environment_variable", name).map(DataSource::Environment)
            }
            None => {
                cx.reject("specifier", "is required");
                None
            }
        }
    }
}

/// Data that is said here and now; a file would have to be watched.
pub(super) fn inline_data(cx: &mut Cx, field: &'static str, source: pb::DataSource) -> Option<Vec<u8>> {
    let source = cx.lower(field, source)?;
    cx.field(field, |cx| match source {
        DataSource::Inline(bytes) => Some(bytes.to_vec()),
        DataSource::File(_) => {
            cx.reject("filename", "data from a file is not implemented here: use inline_string");
            None
        }
        DataSource::Environment(_) => {
            let why = "data from the environment is not implemented here: use inline_string";
            cx.reject("environment_variable", why);
            None
        }
    })
}

/// Metadata that may be absent.
pub(super) fn metadata(cx: &mut Cx, field: &'static str, metadata: Option<pb::Metadata>) -> Metadata {
    metadata.and_then(|metadata| cx.lower(field, metadata)).unwrap_or_default()
}

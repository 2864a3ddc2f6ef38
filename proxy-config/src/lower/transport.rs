//! Transport sockets other than TLS, and the way from an `Any` to each of them.
//!
//! A socket is for one side only where Envoy has it so: what is for clusters is refused in a filter chain.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets as ext;
use envoy_types::pb::google::protobuf::Any;

use super::extension::{Extension, by_name};
use super::registry::{Message, registry};
use super::{Cx, Lower, Side};
use crate::model::TransportSocket;
use crate::model::transport::{PassThroughTlvs, ProxyVersion, TcpStats, UpstreamProxyProtocol};

mod tap;

registry! {
    ext::raw_buffer::v3::RawBuffer, ext::starttls::v3::StartTlsConfig, ext::starttls::v3::UpstreamStartTlsConfig,
    ext::proxy_protocol::v3::ProxyProtocolUpstreamTransport, core::ProxyProtocolConfig, core::TlvEntry,
    ext::tcp_stats::v3::Config, ext::alts::v3::Alts,
}

pub(super) const ALL_MESSAGES: &[&[Message]] = &[MESSAGES, tap::MESSAGES];

/// `name` is what the configuration calls it.
pub(super) fn transport_socket(cx: &mut Cx, name: &str, any: Option<Any>) -> Option<TransportSocket> {
    use TransportSocket as Model;
    let Some(any) = any else {
        let raw = matches!(name, "envoy.transport_sockets.raw_buffer" | "raw_buffer");
        return by_name(cx, name, raw.then_some(Model::RawBuffer));
    };
    let e = Extension::unpack(cx, &any)?;
    match e.type_name.as_str() {
        ext::raw_buffer::v3::RawBuffer::NAME => e.lower::<ext::raw_buffer::v3::RawBuffer>(cx),
        ext::tls::v3::DownstreamTlsContext::NAME => {
            fits(cx, Side::Downstream, name, "UpstreamTlsContext")?;
            e.lower::<ext::tls::v3::DownstreamTlsContext>(cx).map(Arc::new).map(Model::DownstreamTls)
        }
        ext::tls::v3::UpstreamTlsContext::NAME => {
            fits(cx, Side::Upstream, name, "DownstreamTlsContext")?;
            e.lower::<ext::tls::v3::UpstreamTlsContext>(cx).map(Arc::new).map(Model::UpstreamTls)
        }
        ext::starttls::v3::StartTlsConfig::NAME => {
            fits(cx, Side::Downstream, name, "UpstreamStartTlsConfig")?;
            e.lower::<ext::starttls::v3::StartTlsConfig>(cx)
        }
        ext::starttls::v3::UpstreamStartTlsConfig::NAME => {
            fits(cx, Side::Upstream, name, "StartTlsConfig")?;
            e.lower::<ext::starttls::v3::UpstreamStartTlsConfig>(cx)
        }
        ext::proxy_protocol::v3::ProxyProtocolUpstreamTransport::NAME => {
            fits(cx, Side::Upstream, name, "the listener filter envoy.filters.listener.proxy_protocol")?;
            e.lower::<ext::proxy_protocol::v3::ProxyProtocolUpstreamTransport>(cx)
        }
        ext::tap::v3::Tap::NAME => e.lower::<ext::tap::v3::Tap>(cx).map(Box::new).map(Model::Tap),
        ext::tcp_stats::v3::Config::NAME => {
            e.lower::<ext::tcp_stats::v3::Config>(cx).map(Box::new).map(Model::TcpStats)
        }
        ext::alts::v3::Alts::NAME => {
            e.lower::<ext::alts::v3::Alts>(cx)?;
            e.refuse(cx)
        }
        _ => e.refuse(cx),
    }
}

/// Refuses a socket of the other side; `instead` is what this side has.
fn fits(cx: &mut Cx, side: Side, name: &str, instead: &str) -> Option<()> {
    let (is, here) = match side {
        Side::Downstream => ("downstream", "a cluster"),
        Side::Upstream => ("upstream", "a filter chain"),
    };
    if cx.side.is_some_and(|at| at != side) {
        cx.reject(
            "typed_config",
            format!("\"{name}\": this is its {is} configuration, and {here} takes {instead}"),
        );
        return None;
    }
    Some(())
}

lower! { "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
    ext::raw_buffer::v3::RawBuffer => TransportSocket, cx;
    read {}
    {
        let _ = cx;
        Some(TransportSocket::RawBuffer)
    }
}

lower! { "envoy.extensions.transport_sockets.starttls.v3.StartTlsConfig"
    ext::starttls::v3::StartTlsConfig => TransportSocket, cx;
    read { cleartext_socket_config, tls_socket_config }
    {
        // It has no fields: there is one clear-text socket.
        cleartext_socket_config.and_then(|raw| cx.lower("cleartext_socket_config", raw));
        cx.required("tls_socket_config", tls_socket_config).map(Arc::new).map(TransportSocket::DownstreamStartTls)
    }
}

lower! { "envoy.extensions.transport_sockets.starttls.v3.UpstreamStartTlsConfig"
    ext::starttls::v3::UpstreamStartTlsConfig => TransportSocket, cx;
    read { cleartext_socket_config, tls_socket_config }
    {
        cleartext_socket_config.and_then(|raw| cx.lower("cleartext_socket_config", raw));
        cx.required("tls_socket_config", tls_socket_config).map(Arc::new).map(TransportSocket::UpstreamStartTls)
    }
}

lower! { "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport"
    ext::proxy_protocol::v3::ProxyProtocolUpstreamTransport => TransportSocket, cx;
    read { config, transport_socket, allow_unspecified_address }
    warn { tlv_as_pool_key: "connections with a PROXY header are never shared" }
    {
        let config = match config {
            Some(config) => cx.lower("config", config),
            None => Some(ProxyProtocolConfig::default()),
        };
        let inner = cx.required("transport_socket", transport_socket)?;
        let ProxyProtocolConfig { version, pass_through_tlvs, added_tlvs } = config?;
        Some(TransportSocket::UpstreamProxyProtocol(Box::new(UpstreamProxyProtocol {
            version,
            pass_through_tlvs,
            added_tlvs,
            allow_unspecified_address,
            inner,
        })))
    }
}

#[derive(Debug, Default)]
pub struct ProxyProtocolConfig {
    pub(super) version: ProxyVersion,
    pub(super) pass_through_tlvs: PassThroughTlvs,
    pub(super) added_tlvs: Vec<(u8, Arc<[u8]>)>,
}

lower! { "envoy.config.core.v3.ProxyProtocolConfig" core::ProxyProtocolConfig => ProxyProtocolConfig, cx;
    read { version, pass_through_tlvs, added_tlvs }
    {
        use core::proxy_protocol_config::Version;
        let version = match cx.variant("version", version)? {
            Version::V1 => ProxyVersion::V1,
            Version::V2 => ProxyVersion::V2,
        };
        if version == ProxyVersion::V1 {
            let v1 = "has no effect with V1, whose header has no TLVs";
            if pass_through_tlvs.is_some() {
                cx.warn("pass_through_tlvs", v1);
            }
            if !added_tlvs.is_empty() {
                cx.warn("added_tlvs", v1);
            }
        }
        let pass_through_tlvs = match pass_through_tlvs {
            Some(tlvs) => cx.lower("pass_through_tlvs", tlvs)?,
            None => PassThroughTlvs::None,
        };
        Some(ProxyProtocolConfig { version, pass_through_tlvs, added_tlvs: cx.list("added_tlvs", added_tlvs) })
    }
}

lower! { "envoy.config.core.v3.TlvEntry" core::TlvEntry => (u8, Arc<[u8]>), cx;
    read { r#type, value }
    reject { format_string: "a TLV made of a connection's properties is not implemented: use value" }
    {
        let kind = cx.ranged("type", r#type, 0..=255).and_then(|kind| u8::try_from(kind).ok());
        if value.is_empty() {
            cx.reject("value", "must not be empty");
        }
        // A TLV has two bytes for its length.
        if value.len() > usize::from(u16::MAX) {
            cx.reject("value", "must not be longer than 65535 bytes");
        }
        Some((kind?, value.into()))
    }
}

lower! { "envoy.extensions.transport_sockets.tcp_stats.v3.Config" ext::tcp_stats::v3::Config => TcpStats, cx;
    read { transport_socket, update_period }
    {
        let inner = cx.required("transport_socket", transport_socket);
        let update_period = cx.duration_from("update_period", update_period, Duration::from_millis(1));
        Some(TcpStats { inner: inner?, update_period })
    }
}

/// What would have to be done before a byte may pass; there is nothing yet that does it.
#[derive(Debug)]
pub struct Alts {
    #[expect(dead_code, reason = "checked and shown; the handshake is not implemented")]
    handshaker_service: Arc<str>,
    #[expect(dead_code, reason = "as above")]
    peer_service_accounts: Vec<String>,
}

lower! { "envoy.extensions.transport_sockets.alts.v3.Alts" ext::alts::v3::Alts => Alts, cx;
    read { handshaker_service, peer_service_accounts }
    {
        Some(Alts { handshaker_service: cx.name("handshaker_service", handshaker_service)?, peer_service_accounts })
    }
}

#[cfg(test)]
mod tests;

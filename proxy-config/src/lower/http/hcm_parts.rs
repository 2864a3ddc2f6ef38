//! The parts of a connection manager: client addresses and certificates, upgrades, local replies, log options.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use envoy_types::pb::envoy::extensions::http::early_header_mutation::header_mutation::v3 as early;
use envoy_types::pb::envoy::extensions::http::original_ip_detection as detection;
use envoy_types::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use pb::http_connection_manager::{self as inner, proxy_status_config};

use super::filter::chain;
use super::hcm::{flush_interval, upgrade_type};
use super::header::{added, header_name};
use crate::lower::access_log::body_format;
use crate::lower::extension::{Extension, by_name};
use crate::lower::registry::registry;
use crate::lower::value::{flag, number};
use crate::lower::{Cx, Lower};
use crate::model::address::Cidr;
use crate::model::http::hcm::{
    ClientCert, ForwardClientCert, ForwardProto, InternalAddresses, IpDetection, LocalReplies, ProxyName,
    ProxyStatus, RequestId, ResponseMapper, SchemeHeader, UpgradeConfig,
};
use crate::model::http::header::HeaderMutation;

registry! {
    inner::InternalAddressConfig, inner::SetCurrentClientCertDetails, inner::UpgradeConfig,
    inner::ProxyStatusConfig, inner::HcmAccessLogOptions, pb::LocalReplyConfig, pb::ResponseMapper,
    pb::ForwardProtoConfig, pb::RequestIdExtension, UuidRequestIdConfig, core::SchemeHeaderTransformation,
    detection::xff::v3::XffConfig, detection::xff::v3::XffTrustedCidrs,
    detection::custom_header::v3::CustomHeaderConfig, early::HeaderMutation,
}

lower! { "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.InternalAddressConfig"
    inner::InternalAddressConfig => InternalAddresses, cx;
    read { cidr_ranges }
    warn {
        unix_sockets: "no client comes by a unix socket: listeners have IP addresses here",
    }
    {
        Some(InternalAddresses { ranges: cx.list("cidr_ranges", cidr_ranges) })
    }
}

lower! { "envoy.config.core.v3.SchemeHeaderTransformation" core::SchemeHeaderTransformation => SchemeHeader, cx;
    read { match_upstream, transformation }
    {
        use core::scheme_header_transformation::Transformation;
        match transformation {
            Some(Transformation::SchemeToOverwrite(scheme)) => {
                if match_upstream {
                    cx.warn("match_upstream", "has no effect beside scheme_to_overwrite");
                }
                if scheme != "http" && scheme != "https" {
                    cx.reject("scheme_to_overwrite", "must be http or https");
                }
                Some(SchemeHeader::Overwrite(scheme.into()))
            }
            None if match_upstream => Some(SchemeHeader::MatchUpstream),
            None => Some(SchemeHeader::AsReceived),
        }
    }
}

lower! { "envoy.extensions.filters.network.http_connection_manager.v3.ForwardProtoConfig"
    pb::ForwardProtoConfig => ForwardProto, cx;
    read { https_destination_ports, http_destination_ports }
    {
        let https_ports = ports(cx, "https_destination_ports", &https_destination_ports);
        let http_ports = ports(cx, "http_destination_ports", &http_destination_ports);
        if https_ports.iter().any(|port| http_ports.contains(port)) {
            cx.warn("http_destination_ports", "has a port that is in https_destination_ports, which holds");
        }
        Some(ForwardProto { https_ports, http_ports })
    }
}

fn ports(cx: &mut Cx, field: &'static str, ports: &[u32]) -> Vec<u16> {
    ports.iter().filter_map(|port| cx.port_from_1(field, *port)).collect()
}

pub(super) fn ip_detection(cx: &mut Cx, extensions: Vec<core::TypedExtensionConfig>) -> Vec<IpDetection> {
    let mut lowered = Vec::new();
    for (index, extension) in extensions.into_iter().enumerate() {
        lowered.extend(cx.field("original_ip_detection_extensions", |cx| {
            cx.index(index, |cx| {
                let Some(any) = extension.typed_config else {
                    return by_name(cx, &extension.name, None);
                };
                let e = Extension::unpack(cx, &any)?;
                match e.type_name.as_str() {
                    detection::xff::v3::XffConfig::NAME => e.lower::<detection::xff::v3::XffConfig>(cx),
                    detection::custom_header::v3::CustomHeaderConfig::NAME => {
                        e.lower::<detection::custom_header::v3::CustomHeaderConfig>(cx)
                    }
                    _ => e.refuse(cx),
                }
            })
        }));
    }
    lowered
}

lower! { "envoy.extensions.http.original_ip_detection.xff.v3.XffConfig"
    detection::xff::v3::XffConfig => IpDetection, cx;
    read { xff_num_trusted_hops, xff_trusted_cidrs, skip_xff_append }
    {
        if xff_trusted_cidrs.is_some() && xff_num_trusted_hops > 0 {
            cx.reject("xff_num_trusted_hops", "Cannot set both xff_num_trusted_hops and xff_trusted_cidrs");
        }
        let trusted = xff_trusted_cidrs.and_then(|cidrs| cx.lower("xff_trusted_cidrs", cidrs));
        Some(IpDetection::Xff {
            num_trusted_hops: xff_num_trusted_hops,
            trusted,
            skip_append: flag(skip_xff_append, true),
        })
    }
}

lower! { "envoy.extensions.http.original_ip_detection.xff.v3.XffTrustedCidrs"
    detection::xff::v3::XffTrustedCidrs => Vec<Cidr>, cx;
    read { cidrs }
    {
        Some(cx.list("cidrs", cidrs))
    }
}

lower! { "envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig"
    detection::custom_header::v3::CustomHeaderConfig => IpDetection, cx;
    read { header_name, allow_extension_to_set_address_as_trusted, reject_with_status }
    {
        let name = self::header_name(cx, "header_name", &header_name);
        let reject_with = reject_with_status.map(|status| cx.lower("reject_with_status", status).filter(|s| (400..600).contains(s)).unwrap_or(403));
        Some(IpDetection::CustomHeader {
            name: name?,
            allow_trusted: allow_extension_to_set_address_as_trusted,
            reject_with,
        })
    }
}

pub(super) fn early_mutations(
    cx: &mut Cx,
    extensions: Vec<core::TypedExtensionConfig>,
) -> Vec<HeaderMutation> {
    let mut lowered = Vec::new();
    for (index, extension) in extensions.into_iter().enumerate() {
        let one = cx.field("early_header_mutation_extensions", |cx| {
            cx.index(index, |cx| {
                let Some(any) = extension.typed_config else {
                    return by_name(cx, &extension.name, None);
                };
                let e = Extension::unpack(cx, &any)?;
                if e.type_name != early::HeaderMutation::NAME {
                    return e.refuse(cx);
                }
                e.lower::<early::HeaderMutation>(cx)
            })
        });
        lowered.extend(one.into_iter().flatten());
    }
    lowered
}

lower! { "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation"
    early::HeaderMutation => Vec<HeaderMutation>, cx;
    read { mutations }
    {
        if mutations.is_empty() {
            cx.reject("mutations", "must have at least one");
        }
        Some(cx.list("mutations", mutations))
    }
}

lower! { "envoy.extensions.filters.network.http_connection_manager.v3.RequestIDExtension"
    pb::RequestIdExtension => RequestId, cx;
    read { typed_config }
    {
        // As in Envoy: the default one.
        let Some(any) = typed_config else { return Some(RequestId::default()) };
        let e = Extension::unpack(cx, &any)?;
        if e.type_name != UuidRequestIdConfig::NAME {
            return e.refuse(cx);
        }
        e.lower::<UuidRequestIdConfig>(cx)
    }
}

lower! { "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig" UuidRequestIdConfig => RequestId, cx;
    read { pack_trace_reason, use_request_id_for_trace_sampling }
    {
        let _ = cx;
        Some(RequestId {
            pack_trace_reason: flag(pack_trace_reason, true),
            use_for_trace_sampling: flag(use_request_id_for_trace_sampling, true),
            ..RequestId::default()
        })
    }
}

pub(super) fn client_cert(
    cx: &mut Cx,
    forward: i32,
    set: Option<inner::SetCurrentClientCertDetails>,
) -> Option<ClientCert> {
    use inner::ForwardClientCertDetails as Forward;
    let forward = match cx.variant("forward_client_cert_details", forward)? {
        Forward::Sanitize => ForwardClientCert::Sanitize,
        Forward::ForwardOnly => ForwardClientCert::ForwardOnly,
        Forward::AppendForward => ForwardClientCert::AppendForward,
        Forward::SanitizeSet => ForwardClientCert::SanitizeSet,
        Forward::AlwaysForwardOnly => ForwardClientCert::AlwaysForwardOnly,
    };
    let set = set.and_then(|set| cx.lower("set_current_client_cert_details", set)).unwrap_or_default();
    Some(ClientCert { forward, ..set })
}

lower! { "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.SetCurrentClientCertDetails"
    inner::SetCurrentClientCertDetails => ClientCert, cx;
    read { subject, cert, chain, dns, uri, issuer, format }
    {
        match cx.variant("format", format)? {
            inner::ForwardClientCertFormat::Text => {}
            inner::ForwardClientCertFormat::Json => {
                cx.reject("format", "JSON is not implemented: x-forwarded-client-cert is written as text");
            }
        }
        let forward = ForwardClientCert::default();
        Some(ClientCert { forward, subject: flag(subject, false), cert, chain, dns, uri, issuer })
    }
}

/// Each type once, in Envoy's words.
pub(super) fn upgrades(cx: &mut Cx, configs: Vec<inner::UpgradeConfig>) -> Vec<UpgradeConfig> {
    let lowered: Vec<UpgradeConfig> = cx.list("upgrade_configs", configs);
    for (index, one) in lowered.iter().enumerate() {
        if lowered.iter().take(index).any(|other| other.upgrade_type == one.upgrade_type) {
            let name = &one.upgrade_type;
            cx.reject(
                "upgrade_configs",
                format!("Error: multiple upgrade configs with the same name: '{name}'"),
            );
        }
    }
    lowered
}

lower! { "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig"
    inner::UpgradeConfig => UpgradeConfig, cx;
    read { upgrade_type, filters, enabled }
    {
        let upgrade_type = self::upgrade_type(cx, &upgrade_type);
        let filters = if filters.is_empty() { None } else { Some(chain(cx, "filters", filters)) };
        Some(UpgradeConfig { enabled: flag(enabled, true), filters, upgrade_type: upgrade_type? })
    }
}

lower! { "envoy.extensions.filters.network.http_connection_manager.v3.LocalReplyConfig"
    pb::LocalReplyConfig => LocalReplies, cx;
    read { mappers, body_format }
    {
        let mappers = cx.list("mappers", mappers);
        let body_format = body_format.and_then(|format| self::body_format(cx, "body_format", format));
        Some(LocalReplies { mappers, body_format })
    }
}

lower! { "envoy.extensions.filters.network.http_connection_manager.v3.ResponseMapper"
    pb::ResponseMapper => ResponseMapper, cx;
    read { filter, status_code, body, body_format_override, headers_to_add }
    {
        let filter = cx.required("filter", filter);
        let status = number(status_code)
            .and_then(|status| cx.ranged("status_code", status, 200..=599))
            .and_then(|status| u16::try_from(status).ok());
        Some(ResponseMapper {
            status,
            body: body.and_then(|body| cx.lower("body", body)).map(super::action::content),
            body_format: body_format_override.and_then(|f| body_format(cx, "body_format_override", f)),
            headers_to_add: added(cx, "headers_to_add", headers_to_add),
            filter: filter?,
        })
    }
}

lower! { "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.ProxyStatusConfig"
    inner::ProxyStatusConfig => ProxyStatus, cx;
    read {
        remove_details, remove_connection_termination_details, remove_response_flags,
        set_recommended_response_code, proxy_name
    }
    {
        let _ = cx;
        let proxy_name = match proxy_name {
            Some(proxy_status_config::ProxyName::UseNodeId(true)) => ProxyName::NodeId,
            Some(proxy_status_config::ProxyName::LiteralProxyName(name)) => ProxyName::Literal(name.into()),
            Some(proxy_status_config::ProxyName::UseNodeId(false)) | None => ProxyName::Server,
        };
        Some(ProxyStatus {
            remove_details,
            remove_connection_termination_details,
            remove_response_flags,
            set_recommended_response_code,
            proxy_name,
        })
    }
}

/// When lines are written, by the options or by the two deprecated fields.
pub(super) struct Logs {
    pub(super) interval: Option<envoy_types::pb::google::protobuf::Duration>,
    pub(super) on_new_request: bool,
    pub(super) options: Option<inner::HcmAccessLogOptions>,
}

/// When lines are written besides at the end.
#[derive(Debug, Default)]
pub struct Flush {
    pub(super) interval: Option<Duration>,
    pub(super) on_new_request: bool,
    pub(super) on_tunnel: bool,
}

impl Logs {
    pub(super) fn lower(self, cx: &mut Cx) -> Flush {
        let Self { interval, on_new_request, options } = self;
        let Some(options) = options else {
            let interval = flush_interval(cx, "access_log_flush_interval", interval);
            return Flush { interval, on_new_request, on_tunnel: false };
        };
        if interval.is_some() {
            cx.reject("access_log_flush_interval", "cannot be given with access_log_options");
        }
        if on_new_request {
            cx.reject("flush_access_log_on_new_request", "cannot be given with access_log_options");
        }
        cx.lower("access_log_options", options).unwrap_or_default()
    }
}

lower! { "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.HcmAccessLogOptions"
    inner::HcmAccessLogOptions => Flush, cx;
    read {
        access_log_flush_interval, flush_access_log_on_new_request, flush_log_on_tunnel_successfully_established
    }
    {
        Some(Flush {
            interval: flush_interval(cx, "access_log_flush_interval", access_log_flush_interval),
            on_new_request: flush_access_log_on_new_request,
            on_tunnel: flush_log_on_tunnel_successfully_established,
        })
    }
}

//! Extensions: from the `Any` of a filter to the message inside, or the reason why not.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::{async_data_source, data_source};
use envoy_types::pb::envoy::extensions::access_loggers as loggers;
use envoy_types::pb::envoy::extensions::filters::{listener as lf, network as nf};
use envoy_types::pb::envoy::extensions::wasm::v3::{PluginConfig, plugin_config};
use envoy_types::pb::google::protobuf::Any;
use nf::http_connection_manager::v3::HttpConnectionManager;
use prost::Message;

use super::access_log::Logger;
use super::http::filters::istio;
pub use super::refused::{Dynamic, REFUSED, Refused};
use super::{Cx, Lower, unserved};
use crate::decode::any;
use crate::diagnostic::Segment;
use crate::model::access_log::{LogFormat, LogSink};
use crate::model::listener_filter::{ListenerFilter, TlsInspector};
use crate::model::network_filter::NetworkFilter;
use crate::proto::pb::envoy::extensions::filters::network::postgres_proxy::v3alpha::PostgresProxy;
use crate::proto::pb::envoy::tcp::metadataexchange::config as mx;
use crate::proto::pb::shunt::filters::network::smtp_starttls::v1::SmtpStarttls;
use crate::proto::pb::stats;

/// An extension's configuration: its message's full name and its bytes.
#[derive(Debug)]
pub(super) struct Extension {
    pub(super) type_name: String,
    pub(super) value: Vec<u8>,
}

impl Extension {
    /// Unpacks `typed_config`; what cannot be has been reported.
    pub(super) fn unpack(cx: &mut Cx, any: &Any) -> Option<Self> {
        match any::unpack(&any.type_url, &any.value) {
            Ok((type_name, value)) => Some(Self { type_name, value: value.into_owned() }),
            Err(why) => {
                cx.reject("typed_config", why);
                None
            }
        }
    }

    /// Lowers it as the message `M`, whose name it has.
    pub(super) fn lower<M: Message + Default + Lower>(&self, cx: &mut Cx) -> Option<M::Model> {
        match M::decode(self.value.as_slice()) {
            Ok(message) => self.within(cx, |cx| message.lower(cx)),
            Err(error) => {
                cx.reject("typed_config", format!("malformed {}: {error}", self.type_name));
                None
            }
        }
    }

    pub(super) fn within<T>(&self, cx: &mut Cx, f: impl FnOnce(&mut Cx) -> T) -> T {
        let short = self.type_name.rsplit('.').next().unwrap_or_default().to_owned();
        cx.field("typed_config", |cx| cx.within(Segment::Type(short), f))
    }

    pub(super) fn refused(&self) -> Option<&'static Refused> {
        REFUSED.iter().find(|refused| refused.type_name == self.type_name)
    }

    /// Says why it cannot be had: by its own name where Envoy knows it.
    pub(super) fn why_not(&self) -> String {
        match self.refused() {
            Some(Refused { name, why, .. }) => format!("\"{name}\": {why}"),
            None => format!("unknown extension type \"{}\"", self.type_name),
        }
    }

    /// As [`Self::refuse`], where only the name says what was meant.
    pub(super) fn refuse_as<T>(&self, cx: &mut Cx, name: &str) -> Option<T> {
        cx.reject("typed_config", format!("\"{name}\": {}", self.why_not()));
        None
    }

    pub(super) fn refuse<T>(&self, cx: &mut Cx) -> Option<T> {
        cx.reject("typed_config", self.why_not());
        None
    }
}

/// What stands for an extension that has no `typed_config`, which Envoy refuses; `name` says which one is meant.
pub(super) fn by_name<T>(cx: &mut Cx, name: &str, known: Option<T>) -> Option<T> {
    match known {
        Some(_) => cx.warn_here(format!("\"{name}\" has no typed_config: its name is taken for its type")),
        None => cx.reject_here(format!("\"{name}\" needs a typed_config")),
    }
    known
}

pub(super) fn listener_filter(cx: &mut Cx, name: &str, any: Option<Any>) -> Option<ListenerFilter> {
    let Some(any) = any else {
        let known = match name {
            "envoy.filters.listener.original_dst" | "envoy.listener.original_dst" => {
                Some(ListenerFilter::OriginalDst)
            }
            "envoy.filters.listener.tls_inspector" | "envoy.listener.tls_inspector" => {
                Some(ListenerFilter::TlsInspector(TlsInspector::default()))
            }
            "envoy.filters.listener.http_inspector" | "envoy.listener.http_inspector" => {
                Some(ListenerFilter::HttpInspector)
            }
            _ => None,
        };
        return by_name(cx, name, known);
    };
    let e = Extension::unpack(cx, &any)?;
    match e.type_name.as_str() {
        lf::original_dst::v3::OriginalDst::NAME => e.lower::<lf::original_dst::v3::OriginalDst>(cx),
        lf::tls_inspector::v3::TlsInspector::NAME => e.lower::<lf::tls_inspector::v3::TlsInspector>(cx),
        lf::http_inspector::v3::HttpInspector::NAME => e.lower::<lf::http_inspector::v3::HttpInspector>(cx),
        lf::proxy_protocol::v3::ProxyProtocol::NAME => e.lower::<lf::proxy_protocol::v3::ProxyProtocol>(cx),
        lf::original_src::v3::OriginalSrc::NAME => e.lower::<lf::original_src::v3::OriginalSrc>(cx),
        lf::local_ratelimit::v3::LocalRateLimit::NAME => {
            e.lower::<lf::local_ratelimit::v3::LocalRateLimit>(cx)
        }
        _ => e.refuse(cx),
    }
}

pub(super) fn network_filter(cx: &mut Cx, name: &str, any: Option<Any>) -> Option<NetworkFilter> {
    let Some(any) = any else {
        let known = match name {
            "envoy.filters.network.sni_cluster" => Some(NetworkFilter::SniCluster),
            "envoy.filters.network.echo" | "envoy.echo" => Some(NetworkFilter::Echo),
            _ => None,
        };
        return by_name(cx, name, known);
    };
    let e = Extension::unpack(cx, &any)?;
    match e.type_name.as_str() {
        nf::tcp_proxy::v3::TcpProxy::NAME => {
            e.lower::<nf::tcp_proxy::v3::TcpProxy>(cx).map(Box::new).map(NetworkFilter::TcpProxy)
        }
        HttpConnectionManager::NAME => {
            e.lower::<HttpConnectionManager>(cx).map(Box::new).map(NetworkFilter::Http)
        }
        nf::rbac::v3::Rbac::NAME => e.lower::<nf::rbac::v3::Rbac>(cx).map(Box::new).map(NetworkFilter::Rbac),
        nf::sni_cluster::v3::SniCluster::NAME => e.lower::<nf::sni_cluster::v3::SniCluster>(cx),
        nf::echo::v3::Echo::NAME => e.lower::<nf::echo::v3::Echo>(cx),
        nf::connection_limit::v3::ConnectionLimit::NAME => {
            e.lower::<nf::connection_limit::v3::ConnectionLimit>(cx)
        }
        nf::local_ratelimit::v3::LocalRateLimit::NAME => {
            e.lower::<nf::local_ratelimit::v3::LocalRateLimit>(cx)
        }
        nf::direct_response::v3::Config::NAME => e.lower::<nf::direct_response::v3::Config>(cx),
        PostgresProxy::NAME => e.lower::<PostgresProxy>(cx).map(NetworkFilter::PostgresProxy),
        SmtpStarttls::NAME => e.lower::<SmtpStarttls>(cx).map(NetworkFilter::SmtpStarttls),
        mx::MetadataExchange::NAME => {
            e.lower::<mx::MetadataExchange>(cx).map(Arc::new).map(NetworkFilter::MetadataExchange)
        }
        stats::PluginConfig::NAME => {
            e.lower::<stats::PluginConfig>(cx).map(Box::new).map(NetworkFilter::IstioStats)
        }
        "envoy.extensions.filters.network.wasm.v3.Wasm" => {
            match wasm_config(&e).and_then(built_in_module).as_deref() {
                Some("envoy.wasm.stats") => Some(NetworkFilter::IstioStats(Box::new(istio::default_stats()))),
                Some("envoy.wasm.metadata_exchange") => {
                    Some(NetworkFilter::MetadataExchange(Arc::new(istio::default_exchange())))
                }
                Some(_) | None => e.refuse(cx),
            }
        }
        _ => match e.refused() {
            Some(refused) if cx.is_dynamic() && refused.dynamic == Dynamic::Closes => {
                Some(unserved::filter(cx, refused))
            }
            Some(_) | None => e.refuse_as(cx, name),
        },
    }
}

fn wasm_config(extension: &Extension) -> Option<PluginConfig> {
    nf::wasm::v3::Wasm::decode(extension.value.as_slice()).ok()?.config
}

/// The module of a Wasm filter that is compiled into Istio's proxy: its null runtime names it, no code is run.
pub(super) fn built_in_module(config: PluginConfig) -> Option<String> {
    let Some(plugin_config::Vm::VmConfig(vm)) = config.vm else { return None };
    let local = match vm.code?.specifier? {
        async_data_source::Specifier::Local(local) => local,
        async_data_source::Specifier::Remote(_) => return None,
    };
    match (vm.runtime.as_str(), local.specifier?) {
        ("envoy.wasm.runtime.null", data_source::Specifier::InlineString(module)) => Some(module),
        (_, _) => None,
    }
}

/// `Some(None)` for a logger that is left out.
pub(super) fn access_logger(cx: &mut Cx, name: &str, any: Option<Any>) -> Option<Option<Logger>> {
    let Some(any) = any else {
        let sink = match name {
            "envoy.access_loggers.stdout" | "envoy.stdout_access_log" => Some(LogSink::Stdout),
            "envoy.access_loggers.stderr" | "envoy.stderr_access_log" => Some(LogSink::Stderr),
            _ => None,
        };
        return by_name(cx, name, sink.map(|sink| Some((sink, LogFormat::Default))));
    };
    let e = Extension::unpack(cx, &any)?;
    match e.type_name.as_str() {
        loggers::file::v3::FileAccessLog::NAME => e.lower::<loggers::file::v3::FileAccessLog>(cx).map(Some),
        loggers::stream::v3::StdoutAccessLog::NAME => {
            e.lower::<loggers::stream::v3::StdoutAccessLog>(cx).map(Some)
        }
        loggers::stream::v3::StderrAccessLog::NAME => {
            e.lower::<loggers::stream::v3::StderrAccessLog>(cx).map(Some)
        }
        _ if e.refused().is_some_and(|refused| refused.dynamic == Dynamic::LeftOut) => {
            cx.warn("typed_config", format!("{}; this logger is left out", e.why_not()));
            Some(None)
        }
        _ => e.refuse(cx),
    }
}

/// The operator that a formatter brings to a format, if it is not one of [`crate::format`]'s own.
pub(super) fn formatter(cx: &mut Cx, extension: &core::TypedExtensionConfig) -> Option<&'static str> {
    let Some(any) = &extension.typed_config else {
        return by_name(cx, &extension.name, None);
    };
    let e = Extension::unpack(cx, any)?;
    match e.type_name.as_str() {
        "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery" => Some("REQ_WITHOUT_QUERY"),
        "envoy.extensions.formatter.metadata.v3.Metadata" => Some("METADATA"),
        _ => e.refuse(cx),
    }
}

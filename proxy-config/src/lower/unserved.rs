//! Network filters that a control plane sends and that are not implemented: what comes to them is closed, so that the
//! other chains of the listener serve.

use envoy_types::pb::envoy::extensions::filters::network as nf;
use nf::http_connection_manager::v3 as hcm;
use prost::Message as _;

use super::extension::Extension;
use super::refused::Refused;
use super::{Cx, Lower as _};
use crate::model::network_filter::{NetworkFilter, NetworkFilterConfig, RouteRef, Unserved};
use crate::proto::wire::{Fields, Value};

const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

pub(super) fn filter(cx: &mut Cx, extension: &Extension, refused: &Refused) -> Option<NetworkFilter> {
    let routes =
        if extension.type_name == HCM { extension.within(cx, |cx| routes(cx, extension))? } else { None };
    let Refused { name, why, .. } = refused;
    cx.warn("typed_config", format!("\"{name}\": {why}: connections that come to it are closed"));
    let unserved = Unserved { extension: (*name).into(), why: (*why).into(), routes };
    Some(NetworkFilter::Unserved(Box::new(unserved)))
}

/// The filters of a chain up to one that closes its connections: what follows sees none.
pub(super) fn reachable(mut filters: Vec<NetworkFilterConfig>) -> Vec<NetworkFilterConfig> {
    let closes = |f: &NetworkFilterConfig| matches!(f.filter, NetworkFilter::Unserved(_));
    if let Some(end) = filters.iter().position(closes) {
        filters.truncate(end + 1);
    }
    filters
}

/// `tcp_proxy`; one that tunnels through HTTP is checked as if it did not.
pub(super) fn tcp_proxy(cx: &mut Cx, extension: &Extension) -> Option<NetworkFilter> {
    let tunnels =
        cx.is_dynamic() && Fields(&extension.value).any(|field| matches!(field, Ok((TUNNELING, _))));
    if !tunnels {
        let lowered = extension.lower::<nf::tcp_proxy::v3::TcpProxy>(cx);
        return lowered.map(Box::new).map(NetworkFilter::TcpProxy);
    }
    let mut message = match nf::tcp_proxy::v3::TcpProxy::decode(extension.value.as_slice()) {
        Ok(message) => message,
        Err(error) => {
            cx.reject("typed_config", format!("malformed {}: {error}", extension.type_name));
            return None;
        }
    };
    message.tunneling_config = None;
    extension.within(cx, |cx| message.lower(cx))?;
    let why = "TCP over HTTP tunnels come with HTTP, which is not implemented yet";
    cx.warn("typed_config", format!("tunneling_config: {why}: connections that come to it are closed"));
    let unserved =
        Unserved { extension: "envoy.filters.network.tcp_proxy".into(), why: why.into(), routes: None };
    Some(NetworkFilter::Unserved(Box::new(unserved)))
}

/// `TcpProxy.tunneling_config`.
const TUNNELING: u32 = 12;
/// `HttpConnectionManager`'s `rds`, `route_config`, `scoped_routes`.
const RDS: u32 = 3;
const ROUTE_CONFIG: u32 = 4;
const SCOPED_ROUTES: u32 = 31;
/// `RouteConfiguration.vhds`.
const VHDS: u32 = 9;

/// The routes that it asks for: the control plane waits for the question. The rest is not looked at.
fn routes(cx: &mut Cx, extension: &Extension) -> Option<Option<RouteRef>> {
    let mut found = None;
    for field in Fields(&extension.value) {
        match field {
            Ok((RDS, Value::Bytes(bytes))) => found = Some(bytes),
            Ok((SCOPED_ROUTES, _)) => {
                cx.reject("scoped_routes", SRDS);
                return None;
            }
            Ok((ROUTE_CONFIG, Value::Bytes(bytes))) => {
                if Fields(bytes).any(|field| matches!(field, Ok((VHDS, _)))) {
                    cx.field("route_config", |cx| cx.reject("vhds", super::route::NO_VHDS));
                    return None;
                }
            }
            Ok(_) => {}
            Err(error) => {
                cx.reject_here(error.to_string());
                return None;
            }
        }
    }
    let Some(bytes) = found else { return Some(None) };
    match hcm::Rds::decode(bytes) {
        Ok(rds) => cx.lower("rds", rds).map(Some),
        Err(error) => {
            cx.reject("rds", error.to_string());
            None
        }
    }
}

const SRDS: &str = "the discovery of scoped routes (SRDS) is not implemented";

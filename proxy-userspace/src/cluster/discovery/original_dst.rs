//! ORIGINAL_DST: each connection goes where it was going. Its host lives as long as the connection, so there is
//! no table that grows.

use std::net::SocketAddr;
use std::sync::Arc;

use proxy_config::model::address::Address;
use proxy_config::model::cluster::OriginalDst;
use proxy_config::model::endpoint::{EndpointHealthCheck, HealthStatus};

use crate::cluster::NoHost;
use crate::cluster::host::{Host, Spec};

pub(in crate::cluster) fn host(how: &OriginalDst, to: Option<SocketAddr>) -> Result<Arc<Host>, NoHost> {
    let mut to = to.ok_or(NoHost::NoOriginalDst)?;
    if let Some(port) = how.upstream_port_override {
        to.set_port(port);
    }
    let spec = Spec {
        address: Address::Ip(to),
        at: None,
        hostname: "".into(),
        locality: Arc::default(),
        priority: 0,
        weight: 1,
        metadata: Arc::default(),
        health_status: HealthStatus::Unknown,
        health_check: EndpointHealthCheck::default(),
    };
    Ok(Arc::new(Host::new(spec, None, 0)))
}

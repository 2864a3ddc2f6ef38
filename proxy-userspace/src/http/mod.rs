//! HTTP: codecs, the connection manager, routes, filters and the way upstream.
//!
//! One task carries a client's connection; an exchange of HTTP/1 is all its own, from the request's first byte to the
//! response's last: the body of a response, when it is polled, reads the upstream's socket and sends what is left of the
//! request. HTTP/2 has a task for each stream beside the connection's.

pub mod body;
pub(crate) mod conn;
pub mod exchange;
pub mod filter;
pub mod filters;
pub mod h1;
pub mod h2;
pub mod hcm;
pub mod io;
pub(crate) mod manager;
pub mod message;
pub mod pool;
pub(crate) mod raw;
pub mod reset;
pub mod route;
pub mod router;
mod spare;
pub mod stream;
#[cfg(test)]
pub(crate) mod testing;

pub use self::body::{Body, Upload};
pub use self::exchange::{Interim, Observer, Progress, Sent};
pub use self::filter::{Filter, LocalReply, Step, Stop, StreamFilter};
pub use self::hcm::Hcm;
pub use self::io::Io;
pub(crate) use self::manager::fresh_request_id;
pub use self::message::{Case, Request, RequestHead, Response, ResponseHead, Scheme};
pub use self::reset::{Reset, ResetReason};
pub use self::route::{Routed, Routes};
pub use self::stream::{ConnCx, Stream};

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use proxy_config::model::Bootstrap;
use proxy_config::model::metadata::Struct;
use proxy_config::model::network_filter::RouteRef;

use crate::telemetry::trace::{Collectors, Node};

/// Among a stream's extensions: what is offered to its upstream by ALPN, instead of what the cluster says.
#[derive(Clone, Debug)]
pub struct UpstreamAlpn(pub Arc<[Arc<str>]>);

/// What the connection managers of one configuration share.
#[derive(Default)]
pub struct Common {
    /// Those of RDS.
    pub routes: route::RouteSlots<RouteRef>,
    /// Filters of ECDS.
    pub extensions: filters::discovered::Extensions,
    /// `/healthcheck/fail`.
    pub failing: Arc<AtomicBool>,
    /// Who this is, for traces.
    pub node: Node,
    pub node_metadata: Struct,
    pub tracing: Collectors,
}

impl Common {
    pub fn new(bootstrap: Option<&Bootstrap>) -> Self {
        let Some(bootstrap) = bootstrap else { return Self::default() };
        let told = &bootstrap.node;
        let node = Node {
            id: told.id.as_str().into(),
            cluster: told.cluster.as_str().into(),
            zone: told.zone.as_str().into(),
        };
        let (node_metadata, tracing) = (told.metadata.clone(), Collectors::new(bootstrap));
        Self { node, node_metadata, tracing, ..Self::default() }
    }
}

/// What only shows when a connection manager is built.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(pub String);

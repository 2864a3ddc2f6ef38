//! HTTP: codecs, the connection manager, routes, filters and the way upstream.
//!
//! One task carries a client's connection; an exchange of HTTP/1 is all its own, from the request's first byte to the
//! response's last: the body of a response, when it is polled, reads the upstream's socket and sends what is left of the
//! request. HTTP/2 has a task for each stream beside the connection's.

pub mod body;
pub mod call;
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
pub mod reset;
pub mod route;
pub mod router;
pub mod stream;
#[cfg(test)]
pub(crate) mod testing;

pub use self::body::Body;
pub use self::call::Caller;
pub use self::exchange::{Interim, Observer, Progress, Sent};
pub use self::filter::{Filter, LocalReply, Step, Stop, StreamFilter};
pub use self::hcm::Hcm;
pub use self::io::Io;
pub use self::message::{Case, Request, RequestHead, Response, ResponseHead, Scheme};
pub use self::reset::{Reset, ResetReason};
pub use self::route::{Routed, Routes};
pub use self::stream::{ConnCx, Stream};

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use proxy_config::model::bootstrap;
use proxy_config::model::network_filter::RouteRef;

use crate::telemetry::trace::Node;

/// What the connection managers of one configuration share.
#[derive(Default)]
pub struct Common {
    /// Those of RDS.
    pub routes: route::RouteSlots<RouteRef>,
    /// Who this is, for traces.
    pub node: Node,
    pub health: Health,
}

impl Common {
    pub fn new(node: Option<&bootstrap::Node>) -> Self {
        let common = Self::default();
        let Some(node) = node else { return common };
        // It is set once, here.
        let _ = common.health.cluster.set(node.cluster.as_str().into());
        let node = Node {
            id: node.id.as_str().into(),
            cluster: node.cluster.as_str().into(),
            zone: node.zone.as_str().into(),
        };
        Self { node, ..common }
    }
}

/// What the proxy says of itself where it is asked by HTTP.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// `/healthcheck/fail`.
    pub failing: Arc<AtomicBool>,
    /// The node's cluster, once it is known.
    pub cluster: Arc<OnceLock<Arc<str>>>,
}

/// What only shows when a connection manager is built.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(pub String);

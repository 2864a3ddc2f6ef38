//! Istio's own filters.

pub(super) mod alpn;
pub(super) mod peer_metadata;
pub(super) mod stats;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use proxy_config::model::metadata::{Struct, Value};

use crate::cluster::Cluster;
use crate::http::Stream;

/// Where the request goes, as far as the route says.
fn cluster(stream: &mut Stream) -> Option<Arc<Cluster>> {
    let route = stream.route()?;
    let name = route.cluster(stream.request())?;
    stream.conn.cluster(&name)
}

/// What Istio says of a cluster.
fn istio(cluster: &Cluster) -> Option<&Struct> {
    cluster.model.metadata.get().of("istio")
}

fn is_true(fields: &Struct, key: &str) -> bool {
    matches!(fields.get(key), Some(Value::Bool(true)))
}

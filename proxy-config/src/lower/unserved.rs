//! Network filters that a control plane sends and that are not implemented: what comes to them is closed, so that the
//! other chains of the listener serve.

use super::Cx;
use super::refused::Refused;
use crate::model::network_filter::{NetworkFilter, NetworkFilterConfig, Unserved};

pub(super) fn filter(cx: &mut Cx, refused: &Refused) -> NetworkFilter {
    let Refused { name, why, .. } = refused;
    cx.warn("typed_config", format!("\"{name}\": {why}: connections that come to it are closed"));
    NetworkFilter::Unserved(Box::new(Unserved { extension: (*name).into(), why: (*why).into() }))
}

/// The filters of a chain up to one that closes its connections: what follows sees none.
pub(super) fn reachable(mut filters: Vec<NetworkFilterConfig>) -> Vec<NetworkFilterConfig> {
    let closes = |f: &NetworkFilterConfig| matches!(f.filter, NetworkFilter::Unserved(_));
    if let Some(end) = filters.iter().position(closes) {
        filters.truncate(end + 1);
    }
    filters
}

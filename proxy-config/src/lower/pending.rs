//! Stands in for the listener and bootstrap tables until they are merged.

use envoy_types::pb::envoy::config::{bootstrap::v3::Bootstrap, listener::v3::Listener};

use super::{Cx, Lower, Status};
use crate::model;

impl Lower for Bootstrap {
    type Model = model::Bootstrap;
    const NAME: &'static str = "envoy.config.bootstrap.v3.Bootstrap";
    const FIELDS: &'static [(&'static str, Status)] = &[];

    fn lower(self, _: &mut Cx) -> Option<model::Bootstrap> {
        Some(model::Bootstrap::default())
    }
}

impl Lower for Listener {
    type Model = model::Listener;
    const NAME: &'static str = "envoy.config.listener.v3.Listener";
    const FIELDS: &'static [(&'static str, Status)] = &[];

    fn lower(self, cx: &mut Cx) -> Option<model::Listener> {
        cx.reject_here("listeners are not lowered yet");
        None
    }
}

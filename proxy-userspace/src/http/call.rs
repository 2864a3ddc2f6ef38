//! Requests of the proxy's own: spans, questions of filters, keys.

use std::sync::Arc;
use std::time::Duration;

use super::{ConnCx, Request, Reset, ResetReason, Response};
use crate::cluster::Cluster;
use crate::telemetry::Side;
use crate::world::Live;

/// By whose means they are sent.
#[derive(Clone)]
pub struct Caller {
    live: Arc<Live>,
}

impl Caller {
    pub fn of(cx: &ConnCx) -> Self {
        Self { live: cx.live.clone() }
    }

    pub fn cluster(&self, name: &str) -> Option<Arc<Cluster>> {
        self.live.cluster(name)
    }

    pub async fn call(
        &self,
        cluster: &Arc<Cluster>,
        request: Request,
        timeout: Duration,
    ) -> Result<Response, Reset> {
        let _ = (cluster, request, timeout);
        Err(Reset::new(Side::Internal, ResetReason::Local, "calls come with the pools"))
    }
}

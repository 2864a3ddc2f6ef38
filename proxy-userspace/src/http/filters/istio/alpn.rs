//! `istio.alpn`: what is offered to the upstream says which protocol is spoken, so that its sidecar need not look.

use std::sync::Arc;

use http::Version;
use proxy_config::model::http::istio::IstioAlpn;
use proxy_config::model::metadata::Value;

use super::{cluster, istio};
use crate::http::filter::{Filter, Step, StreamFilter};
use crate::http::{Stream, UpstreamAlpn};

#[derive(Clone)]
pub(in crate::http::filters) struct Alpn {
    http10: Arc<[Arc<str>]>,
    http11: Arc<[Arc<str>]>,
    http2: Arc<[Arc<str>]>,
}

impl Alpn {
    pub(in crate::http::filters) fn new(model: &IstioAlpn) -> Self {
        Self {
            http10: model.http10.as_slice().into(),
            http11: model.http11.as_slice().into(),
            http2: model.http2.as_slice().into(),
        }
    }
}

impl Filter for Alpn {
    fn begin(&self, _: &Stream) -> Option<Box<dyn StreamFilter>> {
        Some(Box::new(self.clone()))
    }
}

impl StreamFilter for Alpn {
    fn request<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let Some(cluster) = cluster(stream) else { return Step::Next };
        let own = istio(&cluster).and_then(|istio| istio.get("alpn_override"));
        if matches!(own, Some(Value::String(own)) if own == "false") {
            return Step::Next;
        }
        let offered = match cluster.pools().settings().version(stream.request().version) {
            Version::HTTP_10 => &self.http10,
            Version::HTTP_2 => &self.http2,
            _ => &self.http11,
        };
        if !offered.is_empty() {
            stream.extensions.insert(UpstreamAlpn(offered.clone()));
        }
        Step::Next
    }
}

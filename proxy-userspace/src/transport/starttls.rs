//! `starttls`: raw until a filter asks for TLS.

use std::sync::Arc;

use super::{Factory, Link, NotReady, Transport};

pub struct StartTls {
    tls: Arc<dyn Factory>,
}

impl StartTls {
    pub fn new(tls: Arc<dyn Factory>) -> Self {
        Self { tls }
    }
}

impl Factory for StartTls {
    fn create(&self, link: &Link<'_>) -> Result<Box<dyn Transport>, NotReady> {
        self.tls.create(link)
    }
}

//! `tap`: a copy of what passes, for people.

use std::sync::Arc;

use proxy_config::model::transport as model;

use super::{BuildError, Env, Factory, Link, NotReady, Transport};

/// Who may be asked at `/tap`.
#[derive(Debug, Default)]
pub struct Taps {}

pub struct Tap {
    model: model::Tap,
    inner: Arc<dyn Factory>,
}

impl Tap {
    pub fn new(
        model: &model::Tap,
        inner: Arc<dyn Factory>,
        prefix: &Arc<str>,
        env: &Env,
    ) -> Result<Self, BuildError> {
        let _ = (prefix, env);
        Ok(Self { model: model.clone(), inner })
    }
}

impl Factory for Tap {
    fn create(&self, link: &Link<'_>) -> Result<Box<dyn Transport>, NotReady> {
        let _ = &self.model;
        self.inner.create(link)
    }
}

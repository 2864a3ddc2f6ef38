//! TLS, on rustls.
//!
//! - `context`: from a model and its secrets to what handshakes run on; rebuilt when a secret changes.
//! - `verify`: whether a peer's certificate is good.
//! - `socket`: the bytes of one connection.

pub mod stats;

use std::sync::Arc;

use proxy_config::model::tls as model;

use super::{BuildError, Certificate, Env, Factory};

/// One entry of `/certs`: a context's trusted CAs and its own certificate chain.
#[derive(Clone, Debug, Default)]
pub struct CertificateSet {
    pub ca: Vec<(String, Certificate)>,
    pub chain: Vec<(String, Certificate)>,
}

pub fn downstream(
    model: &Arc<model::DownstreamTls>,
    prefix: &Arc<str>,
    env: &Env,
) -> Result<Arc<dyn Factory>, BuildError> {
    let _ = (model, prefix, env);
    Err(BuildError("TLS is not implemented yet".to_owned()))
}

pub fn upstream(
    model: &Arc<model::UpstreamTls>,
    prefix: &Arc<str>,
    env: &Env,
) -> Result<Arc<dyn Factory>, BuildError> {
    let _ = (model, prefix, env);
    Err(BuildError("TLS is not implemented yet".to_owned()))
}

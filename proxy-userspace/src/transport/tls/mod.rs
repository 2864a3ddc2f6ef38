//! TLS, on rustls.
//!
//! - `inputs`: what the configuration and the secrets say; `context`: from that to what handshakes run on, rebuilt
//!   when a secret changes; `server`, `client`: the two kinds of contexts; `provider`, `keys`, `session`, `key_log`:
//!   their parts.
//! - `peer`, `verify`: whether a peer's certificate is good.
//! - `socket`: the bytes of one connection.
//! - `names`, `error`: what rustls says, in OpenSSL's words.

mod buffers;
pub mod certificate;
mod client;
mod context;
mod error;
mod handshake;
mod hello;
mod inputs;
mod key_log;
mod keys;
mod names;
mod ocsp;
mod peer;
mod provider;
mod server;
mod session;
mod socket;
pub mod stats;
pub mod verify;

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
    Ok(Arc::new(server::Server::new(model, prefix, env)?))
}

pub fn upstream(
    model: &Arc<model::UpstreamTls>,
    prefix: &Arc<str>,
    env: &Env,
) -> Result<Arc<dyn Factory>, BuildError> {
    Ok(Arc::new(client::Client::new(model, prefix, env)?))
}

#[cfg(test)]
pub(super) mod tests;

//! An SDS file: the secrets that it has.

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;

use crate::diagnostic::Diagnostic;
use crate::discovery::{self, Response};
use crate::model::bootstrap::Resource;
use crate::model::tls::Secret;

/// What an SDS file or server says at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SecretUpdate {
    pub version: String,
    pub secrets: Vec<Resource<Secret>>,
    /// What was accepted without effect.
    pub warnings: Vec<Diagnostic>,
}

/// Reads a `DiscoveryResponse` of `Secret`s, YAML or JSON; all of it or nothing.
pub fn secrets(text: &str) -> Result<SecretUpdate, Vec<Diagnostic>> {
    let Response { version, resources, warnings } =
        discovery::response_of::<pb::Secret, _>(text, |secret, message| Resource {
            model: Arc::new(secret),
            raw: message.into(),
        })?;
    Ok(SecretUpdate { version, secrets: resources, warnings })
}

impl SecretUpdate {
    /// Everything that is wrong, as one text.
    pub fn problems(found: &[Diagnostic]) -> String {
        discovery::problems(found)
    }
}

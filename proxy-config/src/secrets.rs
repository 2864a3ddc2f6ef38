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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tls::SecretKind;

    #[test]
    fn a_response_is_read_or_refused_with_the_place() {
        let text = r#"
version_info: "7"
resources:
- "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
  name: server
  tls_certificate: {certificate_chain: {filename: /c}, private_key: {filename: /k}}
- "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
  name: ca
  validation_context: {trusted_ca: {filename: /ca}, no_such_field: 1}
"#;
        let read = secrets(text).unwrap();
        assert_eq!(read.version, "7");
        assert!(
            matches!(
                read.secrets.as_slice(),
                [
                    Secret { kind: SecretKind::Certificate(_), .. },
                    Secret { kind: SecretKind::Validation(_), .. },
                ]
            ),
            "{read:?}"
        );
        assert_eq!(read.warnings.len(), 1, "an unknown field: {:?}", read.warnings);
        let found = secrets(&text.replace("{filename: /k}", "{inline_bytes: \"\"}")).unwrap_err();
        let place = "resources[0]<Secret>.tls_certificate.private_key: must not be empty";
        assert!(SecretUpdate::problems(&found).contains(place), "{found:?}");
        assert!(secrets(&text.replace("tls.v3.Secret", "tls.v3.TlsCertificate")).is_err());
        // One secret by itself is not what Envoy reads either.
        assert!(secrets("name: server\ntls_certificate: {}\n").unwrap().secrets.is_empty());
    }
}

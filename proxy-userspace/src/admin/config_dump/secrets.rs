//! `SecretsConfigDump`: the bootstrap's secrets as they were given, those of SDS as they are in use. Keys are never
//! shown.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::super::view::SecretView;
use super::elements::message;
use crate::clock;
use crate::secret::Loaded;
use crate::secret::material::{CertificateMaterial, KeyMaterial, Material};

/// The message of a secret.
pub(super) const SECRET: &str = "envoy.extensions.transport_sockets.tls.v3.Secret";
const REDACTED: &str = "[redacted]";

/// A `DynamicSecret`.
pub(super) fn dynamic(secret: &SecretView) -> Value {
    let resource = &secret.resource;
    let mut shown = message(SECRET, &resource.raw.bytes(), true);
    match &secret.loaded {
        Some(loaded) => resolve(&mut shown, loaded),
        // Envoy's: what is not in use is not shown.
        None => shown = json!({"@type": format!("type.googleapis.com/{SECRET}"), "name": *resource.name}),
    }
    json!({
        "name": *resource.name,
        "version_info": *resource.version,
        "last_updated": clock::rfc3339(resource.updated),
        "secret": shown,
    })
}

/// What is in the files, in place of their names.
fn resolve(shown: &mut Value, loaded: &Loaded) {
    let (field, materials) = match loaded {
        Loaded::Certificate(material) => ("tls_certificate", of_certificate(material)),
        Loaded::Validation(material) => {
            ("validation_context", material.trusted_ca.iter().chain(&material.crl).collect())
        }
        Loaded::TicketKeys(_) | Loaded::Generic => return,
    };
    let by_origin: HashMap<&str, &Material> =
        materials.into_iter().map(|material| (&*material.origin, material)).collect();
    let Some(Value::Object(fields)) = shown.get_mut(field) else { return };
    for source in fields.values_mut() {
        let Value::Object(source) = source else { continue };
        if let Some(bytes) = content(source, &by_origin) {
            *source = Map::from_iter([("inline_bytes".to_owned(), json!(STANDARD.encode(bytes)))]);
        }
    }
}

/// What replaces a file of a `DataSource`. The name of a key's file was redacted with it.
fn content<'a>(source: &Map<String, Value>, by_origin: &HashMap<&str, &'a Material>) -> Option<&'a [u8]> {
    match source.get("filename")?.as_str()? {
        REDACTED => Some(REDACTED.as_bytes()),
        file => by_origin.get(file).map(|material| &*material.bytes),
    }
}

/// Of a certificate, what may be seen.
fn of_certificate(material: &CertificateMaterial) -> Vec<&Material> {
    let chain = match &material.key {
        KeyMaterial::Pem { chain, .. } => Some(chain),
        KeyMaterial::Pkcs12(_) => None,
    };
    chain.into_iter().chain(&material.ocsp_staple).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::super::super::view::ResourceView;
    use super::*;

    /// A field with a length, so nested messages can be written down.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).unwrap();
        [&[number << 3 | 2, length], content].concat()
    }

    fn material(text: &str, origin: &str) -> Material {
        Material { bytes: text.as_bytes().into(), origin: origin.into() }
    }

    #[test]
    fn the_certificate_is_shown_and_the_key_is_not() {
        // Secret { name: 1, tls_certificate: 2 { certificate_chain: 1 { filename: 1 }, private_key: 2 { … } } }
        let chain = field(1, &field(1, b"/c"));
        let key = field(2, &field(1, b"/k"));
        let raw = [field(1, b"mine"), field(2, &[chain, key].concat())].concat();
        let resource = ResourceView {
            name: "mine".into(),
            raw: raw.as_slice().into(),
            version: "7".into(),
            updated: SystemTime::UNIX_EPOCH + Duration::from_secs(1),
        };
        let key = KeyMaterial::Pem { chain: material("CHAIN", "/c"), key: material("KEY", "/k") };
        let loaded = Loaded::Certificate(CertificateMaterial { key, password: None, ocsp_staple: None });
        let mut view = SecretView { resource, loaded: Some(std::sync::Arc::new(loaded)) };
        let shown = dynamic(&view);
        assert_eq!(
            shown,
            json!({
                "name": "mine",
                "version_info": "7",
                "last_updated": "1970-01-01T00:00:01.000Z",
                "secret": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
                    "name": "mine",
                    "tls_certificate": {
                        "certificate_chain": {"inline_bytes": "Q0hBSU4="},
                        // As Envoy 1.40 shows it: "[redacted]".
                        "private_key": {"inline_bytes": "W3JlZGFjdGVkXQ=="},
                    },
                },
            })
        );
        view.loaded = None;
        let warming = dynamic(&view);
        assert_eq!(warming["secret"]["name"], "mine");
        assert!(warming["secret"].get("tls_certificate").is_none());
    }
}

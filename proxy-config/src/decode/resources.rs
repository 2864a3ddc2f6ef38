//! Files of dynamic resources: a `DiscoveryResponse`, as text or binary.

use bytes::Bytes;
use prost::Message as _;

use super::document::{Document, position};
use super::encode::Encoder;
use super::problem::Problems;
use super::special::root_type;
use crate::diagnostic::{Diagnostic, Path, Severity};
use crate::load::Options;

/// What a control plane or a file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    pub version_info: String,
    /// Of the whole response; may be empty in a file.
    pub type_url: String,
    pub nonce: String,
    pub resources: Vec<Resource>,
    /// Fields that the descriptors do not have, and what else was not honoured.
    pub warnings: Vec<Diagnostic>,
}

/// One resource as it came: [`super::any::unpack`] opens it.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    pub type_url: String,
    pub value: Bytes,
}

/// A file's bytes as text, or where they stop to be that.
pub fn text(bytes: &[u8]) -> Result<&str, Diagnostic> {
    std::str::from_utf8(bytes).map_err(|error| {
        let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
        Diagnostic {
            severity: Severity::Error,
            position: Some(position(&String::from_utf8_lossy(valid), valid.len())),
            path: Path::default(),
            why: "not UTF-8".into(),
        }
    })
}

/// A response in YAML or JSON. Dynamic configuration is lenient in Envoy: pass `allow_unknown_fields`.
pub fn resources(text: &str, options: Options) -> Result<Resources, Vec<Diagnostic>> {
    let mut problems = Problems::default();
    let bytes = Document::parse(text, &mut problems).and_then(|document| {
        let mut encoder = Encoder::new(&document, options.unknown_fields());
        let bytes = match root_type("envoy.service.discovery.v3.DiscoveryResponse") {
            Ok(message) => Some(encoder.encode(message, document.root(), Path::default())),
            Err(why) => {
                problems.error(None, Path::default(), why);
                None
            }
        };
        problems.extend(encoder.finish().0);
        bytes
    });
    let (errors, warnings) = problems.finish();
    match bytes {
        Some(bytes) if errors.is_empty() => Ok(Resources { warnings, ..resources_binary(&bytes)? }),
        Some(_) | None => Err(errors),
    }
}

/// A response in protobuf's own format, as in `.pb` files and on streams.
pub fn resources_binary(bytes: &[u8]) -> Result<Resources, Vec<Diagnostic>> {
    use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
    let response = DiscoveryResponse::decode(bytes).map_err(|error| {
        vec![Diagnostic {
            severity: Severity::Error,
            position: None,
            path: Path::default(),
            why: format!("not a DiscoveryResponse: {error}"),
        }]
    })?;
    let resource = |any: envoy_types::pb::google::protobuf::Any| Resource {
        type_url: any.type_url,
        value: any.value.into(),
    };
    Ok(Resources {
        version_info: response.version_info,
        type_url: response.type_url,
        nonce: response.nonce,
        resources: response.resources.into_iter().map(resource).collect(),
        warnings: Vec::new(),
    })
}

//! Files of dynamic resources: a `DiscoveryResponse`, as text or binary.

use bytes::Bytes;
use prost::Message as _;

use super::document::{Document, position};
use super::encode::Encoder;
use super::problem::Problems;
use crate::diagnostic::{Diagnostic, Path, Severity};
use crate::load::Options;
use crate::proto::schema;

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

/// A message in protobuf's own format.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Encoded {
    pub bytes: Bytes,
    pub warnings: Vec<Diagnostic>,
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
    let response = message("envoy.service.discovery.v3.DiscoveryResponse", text, options)?;
    Ok(Resources { warnings: response.warnings, ..resources_binary(&response.bytes)? })
}

/// One message of any type that the descriptors have, in YAML or JSON.
pub fn message(name: &str, text: &str, options: Options) -> Result<Encoded, Vec<Diagnostic>> {
    let mut problems = Problems::default();
    let bytes = match schema::message(name) {
        Some(message) => Document::parse(text, &mut problems).map(|document| {
            let mut encoder = Encoder::new(&document, options.unknown_fields());
            let bytes = encoder.encode(message, document.root(), Path::default());
            problems.extend(encoder.take_problems());
            bytes
        }),
        None => {
            problems.error(None, Path::default(), format!("no descriptor of {name}"));
            None
        }
    };
    let (mut errors, warnings) = problems.finish();
    if options.strict {
        errors.extend(warnings.iter().cloned().map(Diagnostic::refused));
    }
    match bytes {
        Some(bytes) if errors.is_empty() => Ok(Encoded { bytes: bytes.into(), warnings }),
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

//! The body of `POST /tap`: what to record, for whom.

use envoy_types::pb::envoy::admin::v3 as pb;
use prost::Message as _;

use crate::decode::message;
use crate::diagnostic::{Diagnostic, Path, Severity};
use crate::load::Options;
use crate::lower::{Cx, Lower};
use crate::model::transport::TapRequest;

/// Reads a `TapRequest`, YAML or JSON.
pub fn request(text: &str) -> Result<TapRequest, Vec<Diagnostic>> {
    let encoded = message(pb::TapRequest::NAME, text, Options::default())?;
    let mut cx = Cx::default();
    let decoded = pb::TapRequest::decode(encoded.bytes).map_err(|error| {
        let (severity, why) = (Severity::Error, error.to_string());
        vec![Diagnostic { severity, position: None, path: Path::default(), why }]
    })?;
    let lowered = decoded.lower(&mut cx);
    cx.diagnostics.retain(|found| found.severity == Severity::Error);
    match lowered {
        Some(request) if cx.diagnostics.is_empty() => Ok(request),
        Some(_) | None => Err(cx.diagnostics),
    }
}

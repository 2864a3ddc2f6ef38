//! The way in: a bootstrap as text becomes a [`model::Bootstrap`] or a list of everything that is wrong with it.

use crate::diagnostic::{Diagnostic, Severity};
use crate::model;

/// How strictly a file is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// A field that is accepted without effect is an error.
    pub strict: bool,
    /// `--allow-unknown-static-fields`: a field that Envoy's descriptors do not have is a warning.
    pub allow_unknown_fields: bool,
}

impl Options {
    /// What an unknown field is.
    pub(crate) fn unknown_fields(self) -> Severity {
        if self.allow_unknown_fields { Severity::Warning } else { Severity::Error }
    }
}

/// A configuration that can be run.
#[derive(Debug)]
pub struct Loaded {
    pub bootstrap: model::Bootstrap,
    /// The bootstrap message, encoded, without its static resources.
    pub raw: bytes::Bytes,
    /// What was accepted without effect.
    pub warnings: Vec<Diagnostic>,
}

/// Reads a bootstrap, YAML or JSON. `overlay` is merged over it, as `--config-yaml` over `-c`.
pub fn bootstrap(text: &str, overlay: Option<&str>, options: Options) -> Result<Loaded, Vec<Diagnostic>> {
    let _ = (text, overlay, options);
    Err(Vec::new())
}

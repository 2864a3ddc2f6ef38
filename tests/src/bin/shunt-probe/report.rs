//! Lines of JSON.

use std::io::{self, Write as _};

use nix::errno::Errno;
use serde_json::{Value, json};

/// Prints one line, at once and whole.
pub(crate) fn print(value: &Value) {
    let mut out = io::stdout().lock();
    // Nobody is left to be told.
    let _ = writeln!(out, "{value}");
    let _ = out.flush();
}

/// The name of an error: `ECONNREFUSED`.
pub(crate) fn errno(error: &io::Error) -> String {
    error
        .raw_os_error()
        .map_or_else(|| error.kind().to_string(), |code| format!("{:?}", Errno::from_raw(code)))
}

/// A failure of a step.
pub(crate) fn failure(step: &str, error: &io::Error) -> Value {
    json!({ "ok": false, "step": step, "errno": errno(error), "error": error.to_string() })
}

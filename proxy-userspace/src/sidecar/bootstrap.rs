//! Bootstraps as files: the daemon's own, and those of workloads.

use std::fmt::Display;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// The largest file that is read: far above any bootstrap, far below what would hurt.
const MOST: u64 = 256 << 20;

/// The text of a file. What is wrong with it begins with its name.
pub fn read(path: &Path) -> Result<String> {
    let shown = path.display();
    let size = std::fs::metadata(path).with_context(|| format!("{shown}"))?;
    if !size.is_file() && size.is_dir() {
        bail!("{shown}: is a directory");
    }
    if size.len() > MOST {
        bail!("{shown}: is {} MB; more than {} MB is not read", size.len() >> 20, MOST >> 20);
    }
    let bytes = std::fs::read(path).with_context(|| format!("{shown}"))?;
    String::from_utf8(bytes).map_err(|error| {
        let (valid, bytes) = (error.utf8_error().valid_up_to(), error.as_bytes());
        let line = bytes.iter().take(valid).filter(|byte| **byte == b'\n').count() + 1;
        anyhow::anyhow!("{shown}: line {line}: not UTF-8")
    })
}

/// Everything that is wrong, a line each, behind how much it is.
pub fn summary(problems: &[impl Display]) -> String {
    let lines: Vec<_> = problems.iter().map(|problem| format!("  {problem}")).collect();
    let count = problems.len();
    format!("{count} problem{}\n{}", if count == 1 { "" } else { "s" }, lines.join("\n"))
}

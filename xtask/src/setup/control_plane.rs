//! The control plane that nobody here wrote: `tests/control-plane`, built apart from the workspace.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Voice, log, say};
use crate::progress::Step;
use crate::workspace::{Workspace, is_executable};

/// Builds it once, and again when what it is built of has changed.
pub(crate) fn install(ws: &Workspace, voice: Voice) -> Result<()> {
    let (binary, stamp) =
        (ws.target.join("setup/bin/control-plane"), ws.target.join("setup/control-plane.stamp"));
    let source = ws.root.join("tests/control-plane");
    let mut of = String::new();
    for file in ["Cargo.toml", "Cargo.lock", "src/main.rs"] {
        of += &fs::read_to_string(source.join(file))
            .with_context(|| format!("no {file} of the control plane"))?;
    }
    if is_executable(&binary) && fs::read_to_string(&stamp).is_ok_and(|built| built == of) {
        say(voice, "control-plane", "present", true);
        return Ok(());
    }
    let target = ws.target.join("setup/control-plane");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--locked", "--manifest-path"]).arg(source.join("Cargo.toml"));
    command.arg("--target-dir").arg(&target);
    Step::start("building the control plane of the tests (a minute)")
        .run(&mut command, &log(ws, "control-plane.log"))
        .context("fix: crates.io must be reachable")?;
    fs::create_dir_all(ws.target.join("setup/bin"))?;
    fs::copy(target.join("debug/control-plane"), &binary)
        .context("the control plane is not where it was built")?;
    // What it was made of is large, and of no more use.
    fs::remove_dir_all(&target)?;
    Ok(fs::write(stamp, of)?)
}

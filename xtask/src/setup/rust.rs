//! rustup's components that the checks use.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use super::{Voice, log, say};
use crate::progress::Step;
use crate::workspace::{Workspace, find_program, is_executable, output};

const COMPONENTS: [(&str, &str); 2] = [("rustfmt", "cargo-fmt"), ("clippy", "cargo-clippy")];

pub(crate) fn components(ws: &Workspace, voice: Voice) -> Result<()> {
    let sysroot = PathBuf::from(output(Command::new("rustc").args(["--print", "sysroot"]))?.trim());
    for (component, program) in COMPONENTS {
        if is_executable(&sysroot.join("bin").join(program)) {
            say(voice, component, "present", true);
            continue;
        }
        if find_program("rustup").is_none() {
            bail!(
                "{component} is missing and there is no rustup\nfix: install {component} for this Rust toolchain"
            );
        }
        let mut command = Command::new("rustup");
        command.args(["component", "add", component]);
        Step::start(format!("adding {component}")).run(&mut command, &log(ws, "rustup.log"))?;
    }
    Ok(())
}

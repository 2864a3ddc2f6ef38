//! The tasks that hand over to one of our own binaries.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::setup::{self, Voice};
use crate::workspace::{Workspace, exec, is_root, run};

pub(crate) fn build(ws: &Workspace, release: bool) -> Result<()> {
    let mut args = vec!["build", "--package", "proxy-userspace"];
    args.extend(release.then_some("--release"));
    run(&mut ws.cargo(&args))
}

/// Sets up, builds and becomes the demonstration, which stays until Ctrl-C.
pub(crate) fn demo(ws: &Workspace, args: &[String]) -> Result<()> {
    require_root("run", "it loads BPF programs and makes network namespaces")?;
    setup::base(ws, Voice::Brief)?;
    shunt(ws, &["demo"], args)
}

pub(crate) fn maps(ws: &Workspace, args: &[String]) -> Result<()> {
    require_root("maps", "it opens pinned BPF maps")?;
    shunt(ws, &["maps"], args)
}

pub(crate) fn cleanup(ws: &Workspace) -> Result<()> {
    require_root("cleanup", "it removes pinned BPF links and maps")?;
    shunt(ws, &["cleanup"], &[])
}

pub(crate) fn bench(ws: &Workspace, name: &str, args: &[String]) -> Result<()> {
    require_root("bench", "it loads BPF programs and makes network namespaces")?;
    setup::base(ws, Voice::Brief)?;
    // The bench starts the daemon too, so both come from one build.
    run(&mut ws.cargo(&["build", "--release", "-p", "proxy-userspace", "-p", "shunt-tests", "--bins"]))?;
    if name == "match" {
        // Apart from them: an example is built with what tests need, such as a runtime whose clock can be stopped, and
        // a daemon from the same build would be measured with that.
        run(&mut ws.cargo(&["build", "--release", "-p", "proxy-userspace", "--example", "bench_match"]))?;
    }
    exec(Command::new(ws.target.join("release/shunt-bench")).arg(name).args(args))
}

fn shunt(ws: &Workspace, task: &[&str], args: &[String]) -> Result<()> {
    build(ws, true)?;
    exec(Command::new(ws.target.join("release/shunt")).args(task).args(args))
}

fn require_root(task: &str, why: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    // sudo resets PATH, and with it cargo.
    let sudo = if Path::new("/usr/bin/sudo").exists() { "sudo -E env \"PATH=$PATH\" " } else { "as root: " };
    bail!("`cargo xtask {task}` needs root: {why}\nfix: {sudo}cargo xtask {task}")
}

//! Packages by apt-get, without letting Debian start the services that it installs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::log;
use crate::progress::Step;
use crate::workspace::{Workspace, find_program, is_root};

pub(crate) struct Package {
    pub(crate) name: &'static str,
    /// Whether what we need of the package is on this machine, whoever installed it.
    pub(crate) found: fn() -> bool,
}

/// Installs the packages in one go; does nothing, and needs no root, when the list is empty.
pub(crate) fn install(ws: &Workspace, packages: &[&Package]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = packages.iter().map(|package| package.name).collect();
    let list = names.join(" ");
    if find_program("apt-get").is_none() {
        bail!("missing: {list}\nfix: install these with this system's package manager (apt-get is not here)");
    }
    if !is_root() {
        bail!("missing: {list}\nfix: run `apt-get install {list}` as root, or `cargo xtask setup` as root");
    }
    let _guard = ServiceGuard::set()?;
    Step::start("package lists").run(apt().arg("update"), &log(ws, "apt-update.log")).with_context(|| {
        format!("missing: {list}\nfix: `apt-get update` must work, or install these by hand")
    })?;
    let mut command = apt();
    command
        .args(["install", "-y", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confold"])
        .args(&names);
    let result = Step::start(format!("installing {list}")).run(&mut command, &log(ws, "apt-install.log"));
    let absent: Vec<_> = packages.iter().filter(|p| !(p.found)()).map(|p| p.name).collect();
    let absent = absent.join(" ");
    result.with_context(|| {
        format!("could not install: {absent}\nfix: try `apt-get install {absent}` by hand")
    })?;
    if !absent.is_empty() {
        bail!("apt-get installed {list}, but what we need of {absent} is still not found");
    }
    Ok(())
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-o", "DPkg::Lock::Timeout=120"]).env("DEBIAN_FRONTEND", "noninteractive");
    // Not all scripts of packages go through policy-rc.d; those look at the run level.
    command.env("RUNLEVEL", "1");
    command
}

const POLICY: &str = "/usr/sbin/policy-rc.d";
const SAVED: &str = "/usr/sbin/policy-rc.d.before-shunt";
/// 101 is "action forbidden by policy".
const FORBID: &str =
    "#!/bin/sh\n# Written by `cargo xtask setup` while it installs packages; safe to delete.\nexit 101\n";
/// Waits for the end of its input, then undoes the guard; $1 is the policy, $2 what was moved aside.
const RESTORE: &str = r#"
read -r _
if grep -qs 'Written by `cargo xtask setup`' "$1"; then rm -f "$1"; fi
if [ -e "$2" ]; then mv "$2" "$1"; fi
"#;

/// Forbids starting services until dropped. PostgreSQL, Redis and nginx would else sit on the ports of the tests.
///
/// A child holds the other end of a pipe and does the undoing, so that Ctrl-C or a kill leaves nothing behind: a
/// machine that silently starts no service any more would be a bad price for a test run.
struct ServiceGuard {
    restorer: Option<Child>,
}

impl ServiceGuard {
    fn set() -> Result<Self> {
        // A leftover of a machine that went down during a setup.
        finish(restorer()?)?;
        if forbids() {
            return Ok(Self { restorer: None });
        }
        let restorer = restorer()?;
        let guard = Self { restorer: Some(restorer) };
        if Path::new(POLICY).exists() {
            fs::rename(POLICY, SAVED).with_context(|| format!("cannot move {POLICY} aside"))?;
        }
        fs::write(POLICY, FORBID).with_context(|| format!("cannot write {POLICY}"))?;
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        Ok(guard)
    }
}

impl Drop for ServiceGuard {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.restorer.take().map(finish) {
            eprintln!("{POLICY} could not be restored: {error:#}");
        }
    }
}

fn restorer() -> Result<Child> {
    let mut command = Command::new("sh");
    command.args(["-c", RESTORE, "sh", POLICY, SAVED]).stdin(Stdio::piped());
    // Its own process group, so that a Ctrl-C does not reach it.
    command.process_group(0).spawn().context("cannot start sh")
}

fn finish(mut restorer: Child) -> Result<()> {
    drop(restorer.stdin.take());
    let status = restorer.wait()?;
    if !status.success() {
        bail!("the restoring shell failed: {status}");
    }
    Ok(())
}

/// A container image has often such a policy already.
fn forbids() -> bool {
    Command::new(POLICY)
        .args(["redis-server", "start"])
        .status()
        .is_ok_and(|status| status.code() == Some(101))
}

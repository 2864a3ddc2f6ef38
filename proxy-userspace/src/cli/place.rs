//! Making and removing what a run has to itself.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cgroup;
use crate::ebpf::Pins;

/// Runs iproute2's `ip` with arguments that hold no blanks.
pub(super) fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.context("cannot run `ip`: install iproute2")?;
    if !output.status.success() {
        bail!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Killed processes leave their cgroup a moment later.
pub(super) fn remove_cgroup(base: &Path) {
    for _ in 0..50 {
        match cgroup::remove(base) {
            Ok(()) => {
                let _ = base.parent().map(std::fs::remove_dir);
                return;
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    log::warn!("{}: cannot be removed, a process is left in it", base.display());
}

pub(super) fn remove_pins(root: &Path) {
    match Pins::existing(root) {
        Ok(Some(pins)) => pins.remove_all().unwrap_or_else(|e| log::warn!("{e}")),
        Ok(None) => {}
        Err(e) => log::warn!("{e}"),
    }
}

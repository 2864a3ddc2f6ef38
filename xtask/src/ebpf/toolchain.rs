//! Which compiler builds the kernel half: rustup's nightly where it is complete, else Debian's rustc.
//!
//! The committed object names the compiler and linker that made it, since only the same ones give the same bytes.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::workspace::{self, find_program, output};

/// Debian's compiler, of the packages `rustc-web` and `rust-web-src`.
pub(crate) const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/src/rust/library/core/Cargo.toml";

/// The two versions that decide the bytes of the object; also the content of `shunt.bpf.toolchain`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Versions {
    rustc: String,
    linker: String,
}

impl Versions {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        Some(Self { rustc: lines.next()?.to_owned(), linker: lines.next()?.to_owned() })
    }

    pub(crate) fn to_file(&self) -> String {
        format!("{}\n{}\n", self.rustc, self.linker)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {}", self.rustc, self.linker)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nightly,
    Debian,
}

/// A complete toolchain of this machine.
pub(crate) struct Toolchain {
    kind: Kind,
    pub(crate) versions: Versions,
    /// Where its own library sources are, which must not show in the object.
    pub(crate) sysroot: PathBuf,
}

impl Toolchain {
    /// The one that made the committed object if it is here, else the first that is complete.
    pub(crate) fn find(recorded: Option<&Versions>) -> Option<Self> {
        let mut found = available();
        let same = found.iter().position(|t| Some(&t.versions) == recorded);
        if found.is_empty() { None } else { Some(found.swap_remove(same.unwrap_or(0))) }
    }

    /// A `cargo` that compiles with this toolchain whatever toolchain runs this task.
    pub(crate) fn cargo(&self, root: &Path) -> Command {
        let mut command = match self.kind {
            Kind::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]).env_remove("RUSTC");
                command
            }
            Kind::Debian => {
                let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
                // Debian's rustc is a stable one; the standard library is built from its source by -Zbuild-std.
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command
            }
        };
        command.current_dir(root);
        for (key, _) in env::vars_os() {
            if key.to_str().is_some_and(is_hostile) {
                command.env_remove(key);
            }
        }
        if let Some(path) = path_with_cargo_bin() {
            command.env("PATH", path);
        }
        command
    }
}

/// Both toolchains need bpf-linker; without it none is complete.
fn available() -> Vec<Toolchain> {
    let Ok(linker) = linker_version() else { return Vec::new() };
    [nightly(&linker), debian(&linker)].into_iter().flatten().collect()
}

fn nightly(linker: &str) -> Option<Toolchain> {
    // Only a listed toolchain is asked: `rustup run` may else download one.
    let list = output(Command::new("rustup").args(["toolchain", "list"])).ok()?;
    list.lines().find(|line| line.starts_with("nightly-") || line.split(' ').next() == Some("nightly"))?;
    let rustc = |arg: &[&str]| {
        let out = output(Command::new("rustup").args(["run", "nightly", "rustc"]).args(arg)).ok()?;
        Some(out.trim().to_owned())
    };
    let sysroot = PathBuf::from(rustc(&["--print", "sysroot"])?);
    if !sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists() {
        return None;
    }
    let versions = Versions { rustc: rustc(&["-V"])?, linker: linker.to_owned() };
    Some(Toolchain { kind: Kind::Nightly, versions, sysroot })
}

fn debian(linker: &str) -> Option<Toolchain> {
    if !has_debian_rustc() {
        return None;
    }
    let rustc = output(Command::new(DEBIAN_RUSTC).arg("-V")).ok()?.trim().to_owned();
    let versions = Versions { rustc, linker: linker.to_owned() };
    Some(Toolchain { kind: Kind::Debian, versions, sysroot: "/usr".into() })
}

pub(crate) fn has_debian_rustc() -> bool {
    workspace::is_executable(Path::new(DEBIAN_RUSTC)) && Path::new(DEBIAN_CORE).exists()
}

pub(crate) fn linker_version() -> Result<String> {
    let mut command = Command::new("bpf-linker");
    if let Some(path) = path_with_cargo_bin() {
        command.env("PATH", path);
    }
    Ok(output(command.arg("--version"))?.trim().to_owned())
}

/// `cargo install` puts bpf-linker where a login shell, but not each CI shell, looks.
fn path_with_cargo_bin() -> Option<std::ffi::OsString> {
    if find_program("bpf-linker").is_some() {
        return None;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths(std::iter::once(cargo_home()?.join("bin")).chain(env::split_paths(&path))).ok()
}

pub(crate) fn cargo_home() -> Option<PathBuf> {
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home)
}

/// What the outer cargo, rustup or clippy left in the environment and would bend this build.
fn is_hostile(key: &str) -> bool {
    let prefixes = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_PROFILE_", "CLIPPY_", "CARGO_TARGET_"];
    let names = [
        "RUSTUP_TOOLCHAIN",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_INCREMENTAL",
        "LD_LIBRARY_PATH",
        "SYSROOT",
    ];
    names.contains(&key) || prefixes.iter().any(|prefix| key.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_round_trip() {
        let versions = Versions { rustc: "rustc 1.96.0".into(), linker: "bpf-linker 0.13.0".into() };
        assert!(Versions::parse(&versions.to_file()) == Some(versions));
        assert!(Versions::parse("rustc 1.96.0\n").is_none());
    }

    #[test]
    fn what_bends_the_build_is_removed() {
        assert!(is_hostile("RUSTC_WORKSPACE_WRAPPER"));
        assert!(is_hostile("CARGO_PKG_NAME"));
        assert!(!is_hostile("CARGO_HOME"));
        assert!(!is_hostile("PATH"));
    }
}

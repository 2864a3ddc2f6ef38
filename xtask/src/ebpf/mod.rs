//! `cargo xtask ebpf`: builds the kernel half and keeps the committed object equal to its source.

pub(crate) mod toolchain;

mod compare;
mod maps;
mod strip;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use self::toolchain::{Toolchain, Versions};
use crate::workspace::{self, Workspace};

const OBJECT: &str = "proxy-userspace/bpf/shunt.bpf.o";
const RECORD: &str = "proxy-userspace/bpf/shunt.bpf.toolchain";
const TARGET: &str = "bpfel-unknown-none";
/// What the kernel takes at most in one go is far more; a jump past this means debug sections came along.
const EXPECTED_MAX: usize = 256 * 1024;

/// Rebuilds the object and writes it, with the versions that made it.
pub(crate) fn write(ws: &Workspace) -> Result<()> {
    let before = recorded(ws);
    let (built, versions) = build(ws, before.as_ref())?;
    let object = ws.root.join(OBJECT);
    if let Some(dir) = object.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(&object, &built).with_context(|| format!("cannot write {OBJECT}"))?;
    fs::write(ws.root.join(RECORD), versions.to_file()).with_context(|| format!("cannot write {RECORD}"))?;
    println!("{OBJECT}: {} bytes, made by {versions}", built.len());
    if let Some(before) = before.filter(|before| *before != versions) {
        println!(
            "note: the last one was made by {before}; CI must have the toolchain of the one that you commit"
        );
    }
    Ok(())
}

/// Rebuilds the object and fails, naming the section, where the committed one has other code or maps.
pub(crate) fn check(ws: &Workspace) -> Result<()> {
    let committed = fs::read(ws.root.join(OBJECT))
        .with_context(|| format!("no {OBJECT}; `cargo xtask ebpf` makes it"))?;
    let recorded = recorded(ws).with_context(|| format!("no {RECORD}; `cargo xtask ebpf` makes it"))?;
    let (built, versions) = build(ws, Some(&recorded))?;
    if versions != recorded {
        let why = format!("{OBJECT} was made by {recorded}; this machine has {versions}");
        if workspace::in_ci() {
            bail!(
                "{why}\nfix: install the recorded toolchain, or run `cargo xtask ebpf` here and commit its result"
            );
        }
        println!("{why}: the source builds, but its code was not compared");
        return Ok(());
    }
    let differences = compare::differences(&committed, &built)?;
    if differences.is_empty() {
        println!("{OBJECT} is what the source gives ({versions})");
        return Ok(());
    }
    for difference in &differences {
        eprintln!("{OBJECT}: {difference}");
    }
    bail!(
        "{OBJECT} is not what proxy-ebpf's source gives\nfix: run `cargo xtask ebpf` and commit its result"
    );
}

/// The versions that made the committed object.
pub(crate) fn recorded(ws: &Workspace) -> Option<Versions> {
    Versions::parse(&fs::read_to_string(ws.root.join(RECORD)).ok()?)
}

fn build(ws: &Workspace, recorded: Option<&Versions>) -> Result<(Vec<u8>, Versions)> {
    let toolchain = Toolchain::find(recorded)
        .context("no toolchain for BPF here\nfix: `cargo xtask setup --ebpf` as root installs one")?;
    let target_dir = ws.target.join("bpf");
    let mut cargo = toolchain.cargo(&ws.root);
    cargo
        .args(["build", "--release", "--package", "proxy-ebpf", "--bin", "shunt-ebpf", "--target", TARGET])
        .args(["-Zbuild-std=core", "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(ws, &toolchain)?)
        // Link-time optimisation is bpf-linker's; and the daemon's release profile must not reach the kernel half.
        .envs([("LTO", "off"), ("CODEGEN_UNITS", "1"), ("DEBUG", "2")].map(profile));
    workspace::run(&mut cargo)?;
    let linked = target_dir.join(TARGET).join("release/shunt-ebpf");
    let data = fs::read(&linked).with_context(|| format!("cannot read {}", linked.display()))?;
    let object = strip::strip(&data)?;
    check_paths(&object, &ws.root)?;
    Ok((object, toolchain.versions))
}

fn profile((key, value): (&str, &'static str)) -> (String, &'static str) {
    (format!("CARGO_PROFILE_RELEASE_{key}"), value)
}

/// BTF carries the name of each source file, so the machine's own directories are mapped away.
fn rustflags(ws: &Workspace, toolchain: &Toolchain) -> Result<String> {
    let library = toolchain.sysroot.join("lib/rustlib/src/rust");
    let real_library = fs::canonicalize(&library)?;
    let mut remaps = vec![(library, "/rust"), (real_library, "/rust"), (ws.root.clone(), "/shunt")];
    remaps.extend(crate_dirs(&ws.metadata()?).into_iter().map(|dir| (dir, "/crates")));
    let mut flags = vec!["-Cdebuginfo=2".to_owned(), "-Clink-arg=--btf".to_owned()];
    flags.extend(remaps.into_iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())));
    Ok(flags.join("\x1f"))
}

/// Where downloaded crates lie unpacked, side by side; the directory is named after the registry.
fn crate_dirs(metadata: &Value) -> BTreeSet<PathBuf> {
    let packages = metadata["packages"].as_array().map_or(&[][..], Vec::as_slice);
    let downloaded = packages.iter().filter(|package| package["source"].is_string());
    let manifests = downloaded.filter_map(|package| package["manifest_path"].as_str());
    manifests.filter_map(|path| Some(Path::new(path).parent()?.parent()?.to_owned())).collect()
}

/// A path of this machine in the object would make it differ on the next one.
fn check_paths(object: &[u8], root: &Path) -> Result<()> {
    if object.len() > EXPECTED_MAX {
        bail!("the stripped BPF object has {} bytes, expected at most {EXPECTED_MAX}", object.len());
    }
    let home = toolchain::cargo_home();
    for dir in [Some(root), home.as_deref()].into_iter().flatten() {
        let needle = dir.as_os_str().as_encoded_bytes();
        if object.windows(needle.len()).any(|window| window == needle) {
            bail!("the BPF object names {}: --remap-path-prefix does not cover it", dir.display());
        }
    }
    Ok(())
}

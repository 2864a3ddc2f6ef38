//! Fuzzing with the stable toolchain: the coverage that libFuzzer goes by is a pass of LLVM's; nightly's sanitizers, which
//! look for what safe Rust has none of, are left out.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::workspace::{Workspace, output, run};

/// What cargo-fuzz asks rustc for, without a sanitizer. Overflows and debug assertions count as crashes.
const FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cdebug-assertions=on",
    "-Coverflow-checks=on",
];

/// Each of `targets` for that long; all of them where none is named.
pub(crate) fn fuzz(ws: &Workspace, targets: &[String], seconds: u32) -> Result<()> {
    let dir = ws.root.join("fuzz");
    let all = known(&dir)?;
    if let Some(other) = targets.iter().find(|target| !all.contains(target)) {
        bail!("there is no fuzz target {other}; there are {}", all.join(", "));
    }
    let targets = if targets.is_empty() { &all } else { targets };
    let built = build(ws, &dir, targets)?;
    for target in targets {
        let (found, crashes) = (ws.target.join("fuzz/corpus").join(target), ws.target.join("fuzz/crashes"));
        for dir in [&found, &crashes] {
            fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        let mut command = Command::new(built.join(target));
        command.args([format!("-max_total_time={seconds}"), "-print_final_stats=1".to_owned()]);
        command.arg(format!("-artifact_prefix={}/{target}-", crashes.display())).arg(found);
        let seeds = dir.join("corpus").join(target);
        command.args(seeds.is_dir().then_some(seeds));
        run(&mut command)?;
    }
    Ok(())
}

/// By the names of their files.
fn known(dir: &Path) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir.join("fuzz_targets"))? {
        let path = entry?.path();
        all.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    ensure!(!all.is_empty(), "{} has no targets", dir.display());
    all.sort();
    Ok(all)
}

/// For a target that is named, so that build scripts and macros are built without the flags.
fn build(ws: &Workspace, dir: &Path, targets: &[String]) -> Result<std::path::PathBuf> {
    // It is no member of the workspace, and is to have the same crates.
    fs::copy(ws.root.join("Cargo.lock"), dir.join("Cargo.lock"))?;
    let about = output(Command::new("rustc").arg("-vV"))?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let mut command = ws.cargo(&["build", "--release", "--target", host]);
    command.arg("--manifest-path").arg(dir.join("Cargo.toml"));
    for target in targets {
        command.args(["--bin", target]);
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    command.env("CARGO_TARGET_DIR", ws.target.join("fuzz"));
    run(&mut command)?;
    Ok(ws.target.join("fuzz").join(host).join("release"))
}

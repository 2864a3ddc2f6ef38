//! The toolchain of the kernel half, from Debian: its rustc with the library source, and bpf-linker on its LLVM.

use std::env;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::apt::{self, Package};
use super::{exists, log, say};
use crate::ebpf;
use crate::ebpf::toolchain::{self, Toolchain};
use crate::progress::Step;
use crate::setup::Voice;
use crate::workspace::{Workspace, in_ci};

const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
/// Part of what decides the bytes of the committed object, so never just the newest.
const LINKER_VERSION: &str = "0.13.0";

const COMPILER: &[Package] = &[
    Package { name: "rustc-web", found: toolchain::has_debian_rustc },
    Package { name: "rust-web-src", found: toolchain::has_debian_rustc },
];

const LLVM: &[Package] = &[
    Package { name: "llvm-22-dev", found: || exists("/usr/lib/llvm-22/bin/llvm-config") },
    Package { name: "libzstd-dev", found: || exists("/usr/include/zstd.h") },
    Package { name: "zlib1g-dev", found: || exists("/usr/include/zlib.h") },
];

/// Leaves a machine alone that has a toolchain; in CI it must be the one that made the committed object.
pub(crate) fn install(ws: &Workspace) -> Result<()> {
    let recorded = ebpf::recorded(ws);
    let present = Toolchain::find(recorded.as_ref());
    if let Some(toolchain) =
        present.filter(|t| !in_ci() || recorded.is_none() || Some(&t.versions) == recorded.as_ref())
    {
        say(Voice::Full, "BPF toolchain", &format!("present ({})", toolchain.versions), true);
        return Ok(());
    }
    let linker = toolchain::linker_version().is_ok_and(|version| version.ends_with(LINKER_VERSION));
    let wanted = COMPILER.iter().chain(if linker { &[] } else { LLVM });
    let missing: Vec<_> = wanted.filter(|package| !(package.found)()).collect();
    apt::install(ws, &missing)?;
    if !linker {
        install_linker(ws)?;
    }
    Toolchain::find(recorded.as_ref()).context("the BPF toolchain was installed but is not found").map(drop)
}

fn install_linker(ws: &Workspace) -> Result<()> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["install", "bpf-linker", "--locked", "--version", LINKER_VERSION])
        .args(["--no-default-features", "--features", "llvm-22"])
        .env("LLVM_PREFIX", LLVM_PREFIX);
    let label = format!("building bpf-linker {LINKER_VERSION} (some minutes)");
    Step::start(label)
        .run(&mut command, &log(ws, "bpf-linker.log"))
        .context("fix: bpf-linker needs llvm-22-dev, libzstd-dev, zlib1g-dev and a C++ linker")
}

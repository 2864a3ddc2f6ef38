//! `cargo xtask setup`: what a fresh Debian-like machine lacks for `run` and `test`, and nothing that it has.
//!
//! Each thing is looked for first, by file, so that a complete machine pays a fraction of a second.

mod apt;
mod bpf;
mod control_plane;
mod envoy;
mod python;
mod rust;

use std::path::Path;

use anyhow::Result;

use self::apt::Package;
use crate::workspace::{Workspace, find_program, is_executable};

/// How much `setup` says when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Voice {
    Full,
    Brief,
}

/// What `run` and `test` need.
pub(crate) fn base(ws: &Workspace, voice: Voice) -> Result<()> {
    let missing = report(PACKAGES, voice);
    apt::install(ws, &missing)?;
    rust::components(ws, voice)?;
    envoy::install(ws, voice)?;
    python::install(ws, voice)?;
    control_plane::install(ws, voice)?;
    if voice == Voice::Full {
        report_optional();
    } else {
        eprintln!("setup: everything is there");
    }
    Ok(())
}

/// What `ebpf` needs besides.
pub(crate) fn bpf_toolchain(ws: &Workspace) -> Result<()> {
    bpf::install(ws)
}

const PACKAGES: &[Package] = &[
    Package { name: "iproute2", found: || find_program("ip").is_some() },
    Package { name: "iptables", found: || find_program("iptables").is_some() },
    Package { name: "bpftool", found: || find_program("bpftool").is_some() },
    Package { name: "curl", found: || find_program("curl").is_some() },
    Package { name: "openssl", found: || find_program("openssl").is_some() },
    Package { name: "postgresql", found: has_postgres },
    Package { name: "postgresql-client", found: || find_program("psql").is_some() },
    Package { name: "redis-server", found: || find_program("redis-server").is_some() },
    Package { name: "redis-tools", found: || find_program("redis-cli").is_some() },
    Package { name: "nginx", found: || find_program("nginx").is_some() },
    // nginx speaks the PROXY protocol to plain TCP only with this.
    Package { name: "libnginx-mod-stream", found: || exists("/usr/lib/nginx/modules/ngx_stream_module.so") },
    Package { name: "nghttp2-client", found: || find_program("h2load").is_some() },
    Package { name: "wrk", found: || find_program("wrk").is_some() },
    Package { name: "hey", found: || find_program("hey").is_some() },
    Package { name: "haproxy", found: || find_program("haproxy").is_some() },
    // Its client connects by v4-mapped addresses as few others do.
    Package { name: "default-jdk-headless", found: || find_program("javac").is_some() },
    Package { name: "python3", found: || find_program("python3").is_some() },
    Package { name: "python3-venv", found: python::can_make_venv },
];

/// Programs that are used only where they are already installed.
const OPTIONAL: &[&str] = &["cargo-deny"];

/// Debian keeps the server out of PATH, in a directory of its version.
fn has_postgres() -> bool {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut servers = versions.map(|version| version.path().join("bin/postgres"));
    servers.any(|server| is_executable(&server)) || find_program("postgres").is_some()
}

fn report(packages: &'static [Package], voice: Voice) -> Vec<&'static Package> {
    let mut missing = Vec::new();
    for package in packages {
        let found = (package.found)();
        if !found {
            missing.push(package);
        }
        say(voice, package.name, if found { "present" } else { "missing, will be installed" }, found);
    }
    missing
}

fn report_optional() {
    for name in OPTIONAL {
        let state = if find_program(name).is_some() { "present" } else { "not present, not needed" };
        say(Voice::Full, name, state, true);
    }
}

/// A quiet setup speaks only of what is not as it should be.
fn say(voice: Voice, name: &str, state: &str, fine: bool) {
    if voice == Voice::Full || !fine {
        eprintln!("{name:<20} {state}");
    }
}

fn log(ws: &Workspace, name: &str) -> std::path::PathBuf {
    ws.target.join("setup/log").join(name)
}

fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

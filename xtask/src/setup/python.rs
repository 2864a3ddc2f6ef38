//! A Python environment of our own under `target/setup`, for what only Python's package index has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Voice, exists, log, say};
use crate::progress::Step;
use crate::workspace::{Workspace, find_program, is_executable};

/// A wheel of one version.
pub(super) struct Wheel {
    pub(super) name: &'static str,
    pub(super) version: &'static str,
}

/// A TLS implementation in plain Python, by the authors of tlsfuzzer: the tests build malformed handshakes from its
/// messages. (tlsfuzzer itself is in no package index.) What it depends on comes first, so that it is of this version.
const TLSLITE: &[Wheel] =
    &[Wheel { name: "ecdsa", version: "0.19.2" }, Wheel { name: "tlslite-ng", version: "0.8.2" }];

/// An SMTP server with STARTTLS, for the tests of the filter that stands before one.
const AIOSMTPD: &[Wheel] = &[
    Wheel { name: "attrs", version: "26.1.0" },
    Wheel { name: "atpublic", version: "9.0.0" },
    Wheel { name: "aiosmtpd", version: "1.4.6" },
];

/// HTTP/2 by other authors: the tests of conformance and abuse are written with its frames and header blocks.
const H2: &[Wheel] = &[
    Wheel { name: "hyperframe", version: "6.1.0" },
    Wheel { name: "hpack", version: "4.2.0" },
    Wheel { name: "h2", version: "4.4.1" },
];

/// gRPC's own client and server, and a client and a server of WebSocket: real peers of the HTTP proxy.
const PEERS: &[Wheel] = &[
    Wheel { name: "typing_extensions", version: "4.16.0" },
    Wheel { name: "grpcio", version: "1.85.1" },
    Wheel { name: "websockets", version: "17.4" },
];

/// Installs what the tests' Python scripts import.
pub(crate) fn install(ws: &Workspace, voice: Voice) -> Result<()> {
    for wheel in TLSLITE.iter().chain(AIOSMTPD).chain(H2).chain(PEERS) {
        if wheel.is_installed(ws) {
            say(voice, wheel.name, &format!("present ({})", wheel.version), true);
        } else {
            wheel.install(ws)?;
        }
    }
    Ok(())
}

impl Wheel {
    pub(super) fn is_installed(&self, ws: &Workspace) -> bool {
        // The name of a wheel's directory has no hyphens.
        let info = format!("{}-{}.dist-info", self.name.replace('-', "_"), self.version);
        packages(ws).is_some_and(|dir| dir.join(info).exists())
    }

    pub(super) fn install(&self, ws: &Workspace) -> Result<()> {
        let wheel = format!("{}=={}", self.name, self.version);
        pip_install(ws, &wheel).with_context(|| {
            format!("fix: `pip install {wheel}` must work on this machine (platform, package index, proxy)")
        })
    }
}

fn pip_install(ws: &Workspace, wheel: &str) -> Result<()> {
    let venv = venv(ws);
    if !is_executable(&venv.join("bin/pip")) {
        let mut make = Command::new(python());
        make.args(["-m", "venv", "--clear"]).arg(&venv);
        Step::start("python venv").run(&mut make, &log(ws, "venv.log"))?;
    }
    let mut pip = Command::new(venv.join("bin/pip"));
    pip.args(["install", "--no-input", "--progress-bar=off", wheel]);
    Step::start(format!("installing {wheel}")).run(&mut pip, &log(ws, "pip.log"))
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

fn venv(ws: &Workspace) -> PathBuf {
    ws.target.join("setup/venv")
}

/// Where the environment keeps its packages, once there is one.
pub(super) fn packages(ws: &Workspace) -> Option<PathBuf> {
    let versions = fs::read_dir(venv(ws).join("lib")).ok()?.flatten();
    versions.map(|version| version.path().join("site-packages")).find(|dir| dir.exists())
}

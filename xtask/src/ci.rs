//! `cargo xtask ci`: the definition of CI, as a list of named checks and then the tests.

use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::setup::{self, Voice};
use crate::workspace::{Workspace, run};
use crate::{deny, docs, ebpf, test};

type Check = fn(&Workspace) -> Result<()>;

/// Cheapest first, and clippy before the rest: it compiles what the later steps link.
const CHECKS: &[(&str, Check)] = &[
    ("setup", |ws| setup::base(ws, Voice::Full)),
    ("fmt", |ws| run(&mut ws.cargo(&["fmt", "--all", "--check"]))),
    ("deny", deny::check),
    ("clippy", |ws| run(&mut ws.cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))),
    ("docs", docs::check),
    ("protos", protos),
    ("BPF toolchain", setup::bpf_toolchain),
    ("ebpf", ebpf::check),
];

/// What is made of protobuf sources is what they say.
fn protos(ws: &Workspace) -> Result<()> {
    run(&mut ws.cargo(&["run", "-q", "-p", "proxy-config", "--example", "gen_protos", "--", "--check"]))
}

pub(crate) fn ci(ws: &Workspace) -> Result<()> {
    checks(ws)?;
    test::test(ws, &[])
}

/// All but the tests; the first that fails ends it.
pub(crate) fn checks(ws: &Workspace) -> Result<()> {
    for (name, check) in CHECKS {
        let started = Instant::now();
        eprintln!("== {name}");
        check(ws).with_context(|| format!("the check `{name}`"))?;
        eprintln!("== {name}: ok, {:.1} s", started.elapsed().as_secs_f64());
    }
    Ok(())
}

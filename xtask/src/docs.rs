//! `cargo xtask docs`: the tables under `docs/` that are generated from the code, written or compared.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::workspace::{Workspace, run};

/// An example of a package that writes files into the directory given as its argument.
struct Generator {
    package: &'static str,
    example: &'static str,
}

const GENERATORS: &[Generator] = &[
    Generator { package: "proxy-config", example: "gen_docs" },
    Generator { package: "proxy-config", example: "gen_config_docs" },
];

pub(crate) fn write(ws: &Workspace) -> Result<()> {
    for generator in present(ws) {
        generate(ws, generator, &ws.root.join("docs"))?;
    }
    Ok(())
}

/// Fails where a file under `docs/` is not what its generator writes.
pub(crate) fn check(ws: &Workspace) -> Result<()> {
    let mut stale = Vec::new();
    for generator in present(ws) {
        let fresh = ws.target.join("docs").join(generator.package).join(generator.example);
        // What an older generator wrote must not be compared.
        if fresh.exists() {
            fs::remove_dir_all(&fresh)?;
        }
        generate(ws, generator, &fresh)?;
        for file in files(&fresh)? {
            let name = file.strip_prefix(&fresh)?;
            if fs::read(ws.root.join("docs").join(name)).ok() != Some(fs::read(&file)?) {
                stale.push(format!("docs/{}", name.display()));
            }
        }
    }
    if !stale.is_empty() {
        bail!("out of date: {}\nfix: run `cargo xtask docs` and commit its result", stale.join(", "));
    }
    println!("docs/ is what the code says");
    Ok(())
}

fn present(ws: &Workspace) -> impl Iterator<Item = &'static Generator> {
    GENERATORS.iter().filter(|g| {
        let there = ws.has(&format!("{}/examples/{}.rs", g.package, g.example));
        if !there {
            println!("{} has no example {}: nothing to generate", g.package, g.example);
        }
        there
    })
}

fn generate(ws: &Workspace, generator: &Generator, out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let mut cargo = ws.cargo(&["run", "-q", "-p", generator.package, "--example", generator.example, "--"]);
    run(cargo.arg(out))
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() { dirs.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    Ok(found)
}

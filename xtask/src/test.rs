//! `cargo xtask test`: builds everything once, runs every test, and ends with one line of totals.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::process::Stdio;

use anyhow::{Context as _, Result};

use crate::setup::{self, Voice};
use crate::workspace::{Workspace, display, in_ci, run};

/// All but the kernel half, which has no tests of its own: its decisions are functions of proxy-common.
const MEMBERS: [&str; 3] = ["--workspace", "--exclude", "proxy-ebpf"];

pub(crate) fn test(ws: &Workspace, filter: &[String]) -> Result<()> {
    setup::base(ws, Voice::Brief)?;
    // The programs too: a build of their own would have other features, and so compile most of it twice.
    let mut no_run = ws.cargo(&["test", "--no-run"]);
    run(no_run.args(MEMBERS))?;

    let mut command = ws.cargo(&["test", "--no-fail-fast"]);
    command.args(MEMBERS).arg("--").args(filter);
    eprintln!("$ {}", display(&command));
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start cargo test")?;
    let mut totals = Totals::default();
    if let Some(out) = child.stdout.take() {
        totals.stream(out, std::io::stdout())?;
    }
    if !totals.finish(child.wait()?.success()) {
        // Not an error to be told: the totals stay the last line.
        std::process::exit(1);
    }
    Ok(())
}

/// Sums over all test binaries, as their output passes by.
#[derive(Default)]
struct Totals {
    passed: u64,
    failed: u64,
    skipped: u64,
    failures: BTreeSet<String>,
    skips: BTreeSet<String>,
}

impl Totals {
    fn stream(&mut self, out: impl Read, mut copy: impl Write) -> Result<()> {
        let mut out = BufReader::new(out);
        let mut line = Vec::new();
        while out.read_until(b'\n', &mut line)? > 0 {
            copy.write_all(&line)?;
            copy.flush()?;
            self.line(String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
        Ok(())
    }

    fn line(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.passed += count(result, "passed");
            self.failed += count(result, "failed");
            self.skipped += count(result, "ignored");
        } else if let Some(test) = line.strip_prefix("test ") {
            if let Some(name) = test.strip_suffix(" ... FAILED") {
                self.failures.insert(name.to_owned());
            } else if let Some((name, why)) = test.split_once(" ... ignored") {
                self.skips.insert(format!("{name}{why}"));
            }
        }
    }

    /// Says what failed and was left out, then the totals; whether all is well.
    fn finish(mut self, success: bool) -> bool {
        if !success && self.failed == 0 {
            // A test binary that dies prints no result.
            self.failed = 1;
            println!("cargo test failed without a failed test: a test binary did not build or died");
        }
        for name in &self.failures {
            println!("failed: {name}");
        }
        for name in &self.skips {
            println!("skipped: {name}");
        }
        if self.skipped > 0 {
            println!("{} skipped{}", self.skipped, if in_ci() { ", which is a failure in CI" } else { "" });
        }
        if success && self.passed == 0 {
            println!("no test ran: the filter matches none");
        }
        let bad = self.passed == 0 || self.failed > 0 || (self.skipped > 0 && in_ci());
        println!("{} passed, {} failed", self.passed, self.failed);
        !bad
    }
}

/// The number before a word in libtest's `ok. 3 passed; 0 failed; 1 ignored; …`.
fn count(result: &str, word: &str) -> u64 {
    let mut parts = result.split(['.', ';']).map(str::trim);
    parts.find_map(|part| part.strip_suffix(word)?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_of_two_binaries() {
        let out = "running 2 tests\ntest a::b ... ok\ntest a::c ... FAILED\ntest d ... ignored, needs a NIC\n\n\
                   test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.01s\n\
                   test result: ok. 40 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s\n";
        let mut totals = Totals::default();
        // Not to stdout: the outer run of these tests would count it.
        totals.stream(out.as_bytes(), std::io::sink()).expect("reads from memory");
        assert_eq!((totals.passed, totals.failed, totals.skipped), (41, 1, 1));
        assert_eq!(totals.failures.iter().collect::<Vec<_>>(), ["a::c"]);
        assert_eq!(totals.skips.iter().collect::<Vec<_>>(), ["d, needs a NIC"]);
    }
}

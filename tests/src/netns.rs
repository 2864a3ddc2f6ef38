//! Named network namespaces, as `ip netns` makes them, and veth pairs between them.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

pub(crate) const DIR: &str = "/run/netns";
/// Begins the name of every namespace of the tests; the pid follows.
pub(crate) const PREFIX: &str = "shunt-";

/// A namespace with lo up; deleted on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    pub(crate) fn make(name: &str) -> Result<Self> {
        ip(&["netns", "add", name])?;
        let netns = Self { name: name.to_owned() };
        netns.batch("link set lo up\n")?;
        Ok(netns)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        Path::new(DIR).join(&self.name)
    }

    /// Runs lines of `ip` commands inside.
    pub fn batch(&self, lines: &str) -> Result<()> {
        batch(&["-n", &self.name], lines)
    }

    /// On a thread of its own that is inside: sockets that it makes stay there.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let netns = File::open(self.path())?;
        let done = std::thread::scope(|scope| {
            let there = || {
                setns(netns, CloneFlags::CLONE_NEWNET)?;
                act()
            };
            scope.spawn(there).join()
        });
        done.map_err(|_| anyhow!("a thread in {} panicked", self.name))?
    }

    /// Sets sysctls inside, by their paths below /proc/sys.
    pub fn sysctl(&self, values: &[(&str, &str)]) -> Result<()> {
        let script: String =
            values.iter().map(|(path, value)| format!("echo {value} >/proc/sys/{path} && ")).collect();
        ip(&["netns", "exec", &self.name, "sh", "-c", &(script + "true")])
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

/// A veth pair between two namespaces; neither end is ever in the host's.
pub(crate) fn veth((a, a_end): (&Netns, &str), (b, b_end): (&Netns, &str)) -> Result<()> {
    ip(&["link", "add", a_end, "netns", &a.name, "type", "veth", "peer", "name", b_end, "netns", &b.name])
}

fn ip(args: &[&str]) -> Result<()> {
    let out = Command::new("ip")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("cannot run ip; fix: cargo xtask setup")?;
    check(&args.join(" "), &out)
}

fn batch(args: &[&str], lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command
        .args(args)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot run ip; fix: cargo xtask setup")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(lines.as_bytes()).context("cannot write to ip")?;
    }
    check(lines, &child.wait_with_output().context("cannot wait for ip")?)
}

fn check(what: &str, out: &std::process::Output) -> Result<()> {
    if !out.status.success() {
        bail!(
            "ip {what}: {}: {} (the tests need root)",
            out.status,
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(())
}

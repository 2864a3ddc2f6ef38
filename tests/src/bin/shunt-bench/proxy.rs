//! The two proxies, run by the same command line, and what the kernel says of their processes.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::{SysconfVar, sysconf};
use serde_json::{Value, json};
use shunt_tests::peer;

/// The columns of the tables.
pub(crate) const PROXIES: &[&str] = &["envoy", "shunt"];
pub(crate) const ENVOY: usize = 0;
/// Of both: Envoy's memory depends on it.
const WORKERS: &str = "2";
/// Envoy needs a while for a large configuration.
const LIMIT: Duration = Duration::from_secs(120);

pub(crate) struct Proxy {
    binary: PathBuf,
    /// What stands before Envoy's own flags.
    command: &'static [&'static str],
}

/// What a process took from start to end.
pub(crate) struct Took {
    pub(crate) seconds: f64,
    pub(crate) cpu: f64,
    /// The most memory that was resident, in bytes.
    pub(crate) peak: f64,
}

/// In the order of [`PROXIES`].
pub(crate) fn proxies() -> Result<[Proxy; 2]> {
    Ok([
        Proxy { binary: peer::find("envoy")?, command: &[] },
        Proxy { binary: peer::shunt()?, command: &["run"] },
    ])
}

/// A port that is free now.
pub(crate) fn port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

impl Proxy {
    /// `--mode validate`, in a process of its own: its parent's memory would count as its own before the exec.
    pub(crate) fn validate(&self, config: &Path) -> Result<Took> {
        let mut took = process::Command::new(std::env::current_exe()?);
        took.arg("took").arg(&self.binary).args(self.arguments(config)).args(["--mode", "validate"]);
        let out = took.stderr(Stdio::inherit()).output()?;
        ensure!(out.status.success(), "{} refuses {}", self.binary.display(), config.display());
        let answer: Value = serde_json::from_slice(&out.stdout)?;
        let value = |key: &str| answer[key].as_f64().with_context(|| format!("no {key} in {answer}"));
        Ok(Took { seconds: value("seconds")?, cpu: value("cpu")?, peak: value("peak")? })
    }

    /// Returns once `/ready` says 200, with how long that took.
    pub(crate) fn start(&self, config: &Path, admin: u16) -> Result<(Running, f64)> {
        let log = config.with_extension("log");
        let mut command = process::Command::new(&self.binary);
        command.args(self.arguments(config)).stdin(Stdio::null()).stdout(Stdio::null());
        let start = Instant::now();
        let child = command.stderr(File::create(&log)?).spawn().context("cannot start a proxy")?;
        let mut running = Running { child };
        loop {
            if ready(admin).unwrap_or(false) {
                return Ok((running, start.elapsed().as_secs_f64()));
            }
            crate::interrupt::check()?;
            if running.child.try_wait()?.is_some() || start.elapsed() > LIMIT {
                let text = fs::read_to_string(&log).unwrap_or_default();
                let tail: Vec<_> = text.lines().rev().take(5).collect();
                bail!("{} is not ready: {}", self.binary.display(), tail.join("\n"));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn arguments(&self, config: &Path) -> Vec<String> {
        let flags = ["--concurrency", WORKERS, "--disable-hot-restart", "-l", "error", "-c"];
        let fixed = self.command.iter().chain(&flags).map(|flag| (*flag).to_owned());
        fixed.chain([config.display().to_string()]).collect()
    }
}

fn ready(admin: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, admin)))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /ready HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(status == *b"HTTP/1.1 200")
}

/// Killed on drop.
pub(crate) struct Running {
    child: Child,
}

impl Running {
    /// A line of `/proc/PID/status`, in bytes: `VmRSS`, `VmHWM`.
    pub(crate) fn memory(&self, line: &str) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let value = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
        let kib: f64 = value.and_then(|v| v.trim().strip_suffix(" kB")).context("no such line")?.parse()?;
        Ok(kib * 1024.0)
    }

    /// CPU seconds so far.
    pub(crate) fn cpu(&self) -> Result<f64> {
        cpu_of(self.child.id())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU seconds of a process so far.
pub(crate) fn cpu_of(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may hold anything, the 12th and 13th are user and system time.
    let behind = text.rsplit_once(')').context("no name in stat")?.1;
    let ticks: Vec<f64> =
        behind.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no CLK_TCK")?;
    Ok(ticks.iter().sum::<f64>() / per_second as f64)
}

/// A command whose time and memory are measured: the kernel says it of all children of a process together.
#[derive(Args)]
pub(crate) struct Command {
    program: PathBuf,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl Command {
    pub(crate) fn run(&self) -> Result<()> {
        let start = Instant::now();
        let out = process::Command::new(&self.program).args(&self.args).stdin(Stdio::null()).output()?;
        let seconds = start.elapsed().as_secs_f64();
        if !out.status.success() {
            bail!("{}: {}", self.program.display(), String::from_utf8_lossy(&out.stderr));
        }
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let cpu = [usage.user_time(), usage.system_time()]
            .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
            .iter()
            .sum::<f64>();
        println!("{}", json!({"seconds": seconds, "cpu": cpu, "peak": usage.max_rss() * 1024}));
        Ok(())
    }
}

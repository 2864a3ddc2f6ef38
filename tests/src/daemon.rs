//! `shunt run` under test.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::access_log::AccessLog;
use crate::admin::Admin;
use crate::lab::Lab;
use crate::process::{Place, Process};
use crate::wait::{eventually, until};

const READY: Duration = Duration::from_secs(20);

/// The daemon, with a pin root, a run directory and a cgroup of the lab's.
pub struct Daemon<'l> {
    lab: &'l Lab,
    process: Process,
    args: Vec<String>,
    run_dir: PathBuf,
    cgroup: PathBuf,
}

impl<'l> Daemon<'l> {
    /// Starts it with entries of workloads and waits until all are ready.
    pub fn start(lab: &'l Lab, entries: &[String]) -> Result<Self> {
        Self::start_with(lab, entries, &[])
    }

    /// As [`Daemon::start`], with further arguments.
    pub fn start_with(lab: &'l Lab, entries: &[String], args: &[&str]) -> Result<Self> {
        let mut daemon = Self::launch(lab, entries, args)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Starts it without waiting.
    pub fn launch(lab: &'l Lab, entries: &[String], args: &[&str]) -> Result<Self> {
        let mut all: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        all.extend(entries.iter().flat_map(|entry| ["--workload".to_owned(), entry.clone()]));
        let run_dir = lab.dir().join("run");
        let cgroup = lab.cgroup().child("daemon")?;
        let process = spawn(lab, &all, &run_dir, &cgroup)?;
        Ok(Self { lab, process, args: all, run_dir, cgroup })
    }

    pub fn wait_ready(&mut self) -> Result<()> {
        let admin = self.admin();
        until("readiness of the daemon", READY, || {
            if let Some(status) = self.process.exited()? {
                bail!("the daemon ended ({status}): {}", self.process.stderr());
            }
            Ok(admin.get("/ready").ok().filter(|answer| answer.status == 200))
        })
        .with_context(|| format!("/ready says {:?}", admin.get("/ready").map(|a| a.body)))?;
        Ok(())
    }

    pub fn admin(&self) -> Admin {
        Admin::new(self.run_dir.join("admin.sock"))
    }

    pub fn access_log(&self) -> AccessLog {
        AccessLog::new(access_log(&self.run_dir))
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// SIGKILL, as a crash or the kernel's OOM killer would.
    pub fn kill(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGKILL)?;
        let status = self.process.wait(Duration::from_secs(5))?;
        ensure!(status.signal() == Some(Signal::SIGKILL as i32), "killed, it ended with {status}");
        Ok(())
    }

    /// SIGTERM: stops, and leaves the pins.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.stop(Signal::SIGTERM)
    }

    /// SIGINT: stops and detaches.
    pub fn interrupt(&mut self) -> Result<ExitStatus> {
        self.stop(Signal::SIGINT)
    }

    fn stop(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.process.signal(signal)?;
        self.process.wait(Duration::from_secs(20)).with_context(|| format!("after {signal}"))
    }

    /// Starts it anew with the same arguments and waits until it is ready.
    pub fn restart(&mut self) -> Result<()> {
        self.restart_with(&self.args.clone())
    }

    /// Starts it anew with other arguments.
    pub fn restart_with(&mut self, args: &[String]) -> Result<()> {
        self.process = spawn(self.lab, args, &self.run_dir, &self.cgroup)?;
        self.wait_ready()
    }

    /// The pinned maps, decoded.
    pub fn maps(&self) -> Result<Value> {
        maps(self.lab)
    }

    /// How often a rule decided.
    pub fn counter(&self, rule: &str) -> Result<u64> {
        counter(&self.maps()?, rule)
    }

    /// Waits until nothing is left of connections in the kernel.
    pub fn expect_no_flows(&self) -> Result<()> {
        eventually("an empty FLOWS", Duration::from_secs(5), || {
            let flows = self.maps()?["FLOWS"].clone();
            ensure!(flows.as_array().is_some_and(Vec::is_empty), "FLOWS holds {flows}");
            Ok(())
        })
    }

    /// `shunt policy explain`, whose output is for people.
    pub fn explain(&self, workload: &str, args: &[&str]) -> Result<String> {
        let spawn =
            self.lab.shunt(&Place::default())?.args(["policy", "explain", "--workload", workload]).args(args);
        Ok(with_dirs(self.lab, spawn, &self.run_dir).run()?.stdout)
    }
}

/// `shunt maps --json`, also without a daemon.
pub fn maps(lab: &Lab) -> Result<Value> {
    let spawn = lab.shunt(&Place::default())?.args(["maps", "--json", "--pin-root"]).arg(lab.pins().path());
    let out = spawn.run()?;
    serde_json::from_str(&out.stdout).with_context(|| format!("shunt maps --json printed {:?}", out.stdout))
}

pub fn counter(maps: &Value, rule: &str) -> Result<u64> {
    maps["COUNTERS"][rule].as_u64().with_context(|| format!("no counter {rule} in {}", maps["COUNTERS"]))
}

fn with_dirs(lab: &Lab, spawn: crate::process::Spawn, run_dir: &Path) -> crate::process::Spawn {
    spawn.arg("--pin-root").arg(lab.pins().path()).arg("--run-dir").arg(run_dir)
}

fn spawn(lab: &Lab, args: &[String], run_dir: &Path, cgroup: &Path) -> Result<Process> {
    let place = Place { cgroup: Some(cgroup.to_owned()), ..Place::default() };
    let spawn = with_dirs(lab, lab.shunt(&place)?.arg("run"), run_dir);
    let log = access_log(run_dir);
    let spawn = if args.iter().any(|arg| arg == "--proxy-cgroup") {
        spawn
    } else {
        spawn.args(["--proxy-cgroup", "self"])
    };
    spawn.arg("--access-log").arg(log).args(args).spawn()
}

/// Among the lab's logs, so that a failing test shows it.
fn access_log(run_dir: &Path) -> PathBuf {
    run_dir.with_file_name("log").join("access.log")
}

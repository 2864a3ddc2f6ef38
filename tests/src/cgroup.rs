//! cgroup v2 directories of a test, removed with whatever still runs in them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Begins the name of every cgroup of the tests; the pid follows.
pub(crate) const PREFIX: &str = "shunt-test-";

/// Where cgroup2 is mounted.
pub fn mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let cgroup2 = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let dir = words.next()?;
        (words.next()? == "cgroup2").then(|| PathBuf::from(dir))
    };
    mounts
        .lines()
        .find_map(cgroup2)
        .context("no cgroup2 is mounted; fix: mount -t cgroup2 none /sys/fs/cgroup")
}

/// A cgroup of its own, with children.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub fn make(name: &str) -> Result<Self> {
        let path = mount()?.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a child directory; it goes with its parent.
    pub fn child(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("the cgroup {} stays: {error:#}", self.path.display());
        }
    }
}

/// Kills what runs in a cgroup and below it, and removes it.
pub fn remove(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    let start = Instant::now();
    loop {
        for pid in processes(dir) {
            // Gone meanwhile is as good.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) if start.elapsed() < Duration::from_secs(5) => {
                std::thread::sleep(Duration::from_millis(5))
            }
            Err(error) => return Err(error).with_context(|| format!("cannot remove {}", dir.display())),
        }
    }
}

/// The processes of one cgroup.
pub fn processes(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    // 0 stands for a process outside of this pid namespace.
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

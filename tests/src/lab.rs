//! A test's own world: a node-like namespace outside, workloads attached to it, a directory, a cgroup, pins.

use std::cell::Cell;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::backend::Backend;
use crate::cgroup::Cgroup;
use crate::netns::{Netns, veth};
use crate::pins::PinRoot;
use crate::process::{Place, Spawn, tail};
use crate::{peer, sweep};

/// Runs a test in a lab of its own. On failure the logs' ends are printed.
pub fn lab(test: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let lab = Lab::make()?;
    let result = test(&lab);
    if result.is_err() {
        lab.print_logs();
    }
    lab.reported.set(true);
    result
}

/// Fields are dropped in order: processes first (by the cgroup), then what they used.
pub struct Lab {
    cgroup: Cgroup,
    outside: Netns,
    pins: PinRoot,
    dir: TempDir,
    name: String,
    pods: Cell<u8>,
    logs: Cell<u32>,
    reported: Cell<bool>,
}

impl Lab {
    fn make() -> Result<Self> {
        static SWEEP: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            bail!("the tests make network namespaces and load kernel programs: run them as root");
        }
        SWEEP.call_once(sweep::sweep);
        let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let prefix = format!("{}{name}-", crate::cgroup::PREFIX);
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir().context("no temporary directory")?;
        // Programs of other users run from here.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        fs::create_dir(dir.path().join("log"))?;
        Ok(Self {
            cgroup: Cgroup::make(&format!("{}{name}", crate::cgroup::PREFIX))?,
            outside: Netns::make(&format!("{}{name}-out", crate::netns::PREFIX))?,
            pins: PinRoot::new(&format!("{}{name}", crate::pins::PREFIX)),
            dir,
            name,
            pods: Cell::new(0),
            logs: Cell::new(0),
            reported: Cell::new(false),
        })
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    pub fn pins(&self) -> &PinRoot {
        &self.pins
    }

    /// The namespace that every workload is connected to: the node and the rest of the world.
    pub fn outside(&self) -> Place {
        Place { netns: Some(self.outside.path()), cgroup: self.cgroup.child("outside").ok(), user: None }
    }

    pub fn outside_netns(&self) -> &Netns {
        &self.outside
    }

    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.pod_with(name, PodOptions::default())
    }

    /// Makes a workload with its own link to the outside.
    pub fn pod_with(&self, name: &str, options: PodOptions) -> Result<Pod> {
        let n = self.pods.get() + 1;
        self.pods.set(n);
        let netns = Netns::make(&format!("{}{}-{name}", crate::netns::PREFIX, self.name))?;
        let cgroup = self.cgroup.child(name)?;
        let link = format!("p{n}");
        veth((&netns, "eth0"), (&self.outside, &link))?;
        let pod = Pod {
            name: name.to_owned(),
            place: Place { netns: Some(netns.path()), cgroup: Some(cgroup.clone()), user: None },
            netns,
            cgroup,
            v4: Ipv4Addr::new(10, 99, n, 2),
            v6: Ipv6Addr::new(0xfd99, u16::from(n), 0, 0, 0, 0, 0, 2),
            gateway4: Ipv4Addr::new(10, 99, n, 1),
            gateway6: Ipv6Addr::new(0xfd99, u16::from(n), 0, 0, 0, 0, 0, 1),
        };
        pod.configure(&self.outside, &link, options)?;
        Ok(pod)
    }

    /// A program of this system, found by [`peer::find`].
    pub fn program(&self, name: &str, place: &Place) -> Result<Spawn> {
        let program = peer::find(name)?;
        // What setup installed is as reachable as the workspace is.
        if name == "envoy" { self.reachable(&program, place) } else { Ok(self.path(&program, place)) }
    }

    /// The daemon's binary.
    pub fn shunt(&self, place: &Place) -> Result<Spawn> {
        self.reachable(&peer::shunt()?, place)
    }

    /// The test's own client and server.
    pub fn probe(&self, place: &Place) -> Result<Spawn> {
        self.built("shunt-probe", place)
    }

    /// A binary of this package.
    pub fn built(&self, name: &str, place: &Place) -> Result<Spawn> {
        self.reachable(&peer::built(name)?, place)
    }

    /// A program that another user may be unable to reach, such as one under root's home: those get a copy.
    fn reachable(&self, program: &Path, place: &Place) -> Result<Spawn> {
        if place.user.is_none() {
            return Ok(self.path(program, place));
        }
        let copy = self.dir().join(program.file_name().context("a program has a name")?);
        if !copy.exists() {
            let real = program.canonicalize().with_context(|| format!("no {}", program.display()))?;
            // A link is enough where the file system is the same.
            let copied = fs::hard_link(&real, &copy).or_else(|_| fs::copy(&real, &copy).map(drop));
            copied.with_context(|| format!("cannot copy {}", real.display()))?;
        }
        Ok(self.path(&copy, place))
    }

    pub fn path(&self, program: &Path, place: &Place) -> Spawn {
        let n = self.logs.get();
        self.logs.set(n + 1);
        let base = program.file_name().unwrap_or_default().to_string_lossy();
        Spawn::new(program, place, self.dir().join("log").join(format!("{n:03}-{base}.log")))
    }

    /// A multi-command server on a free port of every address of a place.
    pub fn serve(&self, place: &Place) -> Result<Backend> {
        Backend::start(self, place, &[])
    }

    fn print_logs(&self) {
        let mut logs: Vec<PathBuf> =
            fs::read_dir(self.dir().join("log")).into_iter().flatten().flatten().map(|e| e.path()).collect();
        logs.sort();
        for path in logs {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // The probe's own output is in the failure's text; the rest is context.
            let interesting = !name.contains("shunt-probe") || name.ends_with(".err");
            if let Some(text) = tail(&path, 4_000).filter(|text| interesting && !text.trim().is_empty()) {
                eprintln!("--- {name}\n{}", text.trim_end());
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.reported.get() {
            self.print_logs();
        }
    }
}

/// What a workload's namespace has.
#[derive(Clone, Copy, Debug)]
pub struct PodOptions {
    pub ipv6: bool,
    /// A second link to the outside, `eth1`: see [`Pod::second_gateway4`].
    pub second_link: bool,
}

impl Default for PodOptions {
    fn default() -> Self {
        Self { ipv6: true, second_link: false }
    }
}

/// A workload: its namespace and its cgroup.
pub struct Pod {
    pub name: String,
    pub netns: Netns,
    pub cgroup: PathBuf,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// The outside's end of the link.
    pub gateway4: Ipv4Addr,
    pub gateway6: Ipv6Addr,
    place: Place,
}

impl Pod {
    /// Inside the workload, as root.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The entry of the enrolment document.
    pub fn entry(&self, policy: &str) -> String {
        self.entry_named(&self.name, policy)
    }

    pub fn entry_named(&self, name: &str, policy: &str) -> String {
        let (cgroup, netns) = (self.cgroup.display(), self.netns.path());
        serde_json::json!({
            "name": name, "cgroup": cgroup.to_string(), "netns": netns, "policy": policy,
        })
        .to_string()
    }

    /// The outside's end of `eth1`, where the workload has one.
    pub fn second_gateway4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.v4.octets()[2], 1)
    }

    pub fn second_gateway6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, self.v6.segments()[1], 0, 0, 0, 0, 0, 1)
    }

    fn configure(&self, outside: &Netns, link: &str, options: PodOptions) -> Result<()> {
        let Self { v4, v6, gateway4, gateway6, .. } = self;
        if !options.ipv6 {
            self.netns.sysctl(&[("net/ipv6/conf/all/disable_ipv6", "1")])?;
        }
        let mut inside =
            format!("addr add {v4}/30 dev eth0\nlink set eth0 up\nroute add default via {gateway4}\n");
        let mut out = format!("addr add {gateway4}/30 dev {link}\nlink set {link} up\n");
        if options.ipv6 {
            inside += &format!("addr add {v6}/64 dev eth0 nodad\nroute add default via {gateway6}\n");
            out += &format!("addr add {gateway6}/64 dev {link} nodad\n");
        }
        if options.second_link {
            let (g4, g6) = (self.second_gateway4(), self.second_gateway6());
            let (link, n) = (link.replace('p', "q"), v4.octets()[2]);
            veth((&self.netns, "eth1"), (outside, &link))?;
            inside += &format!("addr add 10.77.{n}.2/30 dev eth1\nlink set eth1 up\n");
            out += &format!("addr add {g4}/30 dev {link}\nlink set {link} up\n");
            if options.ipv6 {
                inside += &format!("addr add fd77:{n:x}::2/64 dev eth1 nodad\n");
                out += &format!("addr add {g6}/64 dev {link} nodad\n");
            }
        }
        outside.batch(&out)?;
        self.netns.batch(&inside)
    }
}

//! A proxy run by a configuration file: the real Envoy or `shunt run`, started, asked and stopped in the same way.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::admin::Admin;
use crate::bootstrap::{DIR, NODE};
use crate::lab::Lab;
use crate::process::{Output, Place, Process, Spawn};
use crate::wait::until;

const READY: Duration = Duration::from_secs(15);

/// Set, it lets a second Envoy stand for shunt: how the tests are tested.
pub const TWIN: &str = "SHUNT_TESTS_TWIN";

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Envoy,
    Shunt,
}

impl Kind {
    pub const BOTH: [Self; 2] = [Self::Envoy, Self::Shunt];

    pub fn name(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Shunt => "shunt",
        }
    }

    /// Its program with the start of its command line: what follows is Envoy's for both.
    pub fn command(self, lab: &Lab, place: &Place) -> Result<Spawn> {
        match self {
            Self::Envoy => lab.program("envoy", place),
            // What fails with a twin is the test's own fault.
            Self::Shunt if std::env::var_os(TWIN).is_some() => lab.program("envoy", place),
            Self::Shunt => Ok(lab.shunt(place)?.arg("run")),
        }
    }

    /// Runs it to its end on a configuration.
    pub fn output(self, lab: &Lab, config: &str, args: &[&str]) -> Result<Output> {
        let dir = directory(lab, self)?;
        let file = write(&dir, self, config)?;
        self.command(lab, &Place::default())?.arg("-c").arg(file).args(args).output()
    }
}

/// A running proxy.
pub struct Proxy {
    pub kind: Kind,
    process: Process,
    dir: PathBuf,
    admin: Admin,
    listeners: BTreeMap<String, Vec<SocketAddr>>,
}

/// How to start one.
pub struct Start<'a> {
    pub kind: Kind,
    pub config: &'a str,
    pub args: &'a [&'a str],
    pub place: Place,
}

impl Proxy {
    /// Starts it on a configuration, whose [`DIR`] is a directory of the proxy's own, and waits until it is ready.
    pub fn start(lab: &Lab, kind: Kind, config: &str) -> Result<Self> {
        Self::start_with(lab, kind, config, &[])
    }

    /// As [`Proxy::start`], with further arguments.
    pub fn start_with(lab: &Lab, kind: Kind, config: &str, args: &[&str]) -> Result<Self> {
        Self::start_as(lab, &Start { kind, config, args, place: Place::default() })
    }

    pub fn start_as(lab: &Lab, start: &Start<'_>) -> Result<Self> {
        let mut proxy = Self::start_unready(lab, start)?;
        proxy.wait_ready()?;
        Ok(proxy)
    }

    /// As [`Proxy::start_as`], for one that is not ready soon: its admin answers, and its sockets are bound.
    pub fn start_unready(lab: &Lab, start: &Start<'_>) -> Result<Self> {
        let Start { kind, config, args, place } = start;
        let dir = directory(lab, *kind)?;
        let file = write(&dir, *kind, config)?;
        let addresses = dir.join("admin-address");
        let mut spawn =
            kind.command(lab, place)?.arg("-c").arg(&file).arg("--admin-address-path").arg(&addresses);
        if !args.contains(&"--concurrency") {
            // One worker: its load balancer's choices are in the order of the connections.
            spawn = spawn.args(["--concurrency", "1"]);
        }
        let spawn =
            spawn.args(["--disable-hot-restart", "--file-flush-interval-msec", "20", "-l", "warning"]);
        let mut process = spawn.args(*args).spawn()?;
        let admin = until("address of the admin", READY, || {
            if let Some(status) = process.exited()? {
                bail!("{} ended ({status}): {}{}", kind.name(), process.stdout(), process.stderr());
            }
            Ok(fs::read_to_string(&addresses).ok().and_then(|text| text.trim().parse().ok()))
        })?;
        let mut proxy =
            Self { kind: *kind, process, dir, admin: Admin::at(admin), listeners: BTreeMap::new() };
        proxy.read_listeners()?;
        Ok(proxy)
    }

    pub fn wait_ready(&mut self) -> Result<()> {
        let name = self.kind.name();
        until(&format!("readiness of {name}"), READY, || {
            if let Some(status) = self.process.exited()? {
                bail!("{name} ended ({status}): {}", self.process.stderr());
            }
            Ok(self.admin.get("/ready").ok().filter(|answer| answer.status == 200))
        })?;
        self.read_listeners()
    }

    /// Reads the listeners' addresses anew.
    pub fn read_listeners(&mut self) -> Result<()> {
        self.listeners = self.addresses()?;
        Ok(())
    }

    /// Where a listener is.
    pub fn at(&self, listener: &str) -> Result<SocketAddr> {
        self.all_at(listener).and_then(|all| all.first().copied().context("no address"))
    }

    /// Where a listener is that may have come, or moved, since.
    pub fn listening(&self, listener: &str) -> Result<SocketAddr> {
        until(&format!("listener {listener} of {}", self.kind.name()), READY, || {
            Ok(self.addresses()?.remove(listener).and_then(|all| all.first().copied()))
        })
    }

    /// All listeners that there are now.
    pub fn addresses(&self) -> Result<BTreeMap<String, Vec<SocketAddr>>> {
        let answer = self.admin.json("/listeners?format=json")?;
        let statuses = answer["listener_statuses"].as_array().map_or(&[] as &[_], Vec::as_slice);
        statuses.iter().map(addresses_of).collect()
    }

    /// Where a listener is, with its additional addresses.
    pub fn all_at(&self, listener: &str) -> Result<&[SocketAddr]> {
        let found = self.listeners.get(listener);
        Ok(found.with_context(|| format!("no listener {listener} in {:?}", self.listeners))?)
    }

    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Its own directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Resident memory now, in bytes.
    pub fn rss(&self) -> Result<u64> {
        self.process.rss()
    }

    /// Counters and gauges.
    pub fn stats(&self) -> Result<Stats> {
        let text = self.admin.ok("/stats")?;
        let stat = |line: &str| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Ok(Stats(text.lines().filter_map(stat).collect()))
    }

    /// One counter or gauge; one that was never made is 0.
    pub fn stat(&self, name: &str) -> Result<u64> {
        Ok(self.stats()?.of(name))
    }

    /// Waits until a counter or gauge is what it must be.
    pub fn expect_stat(&self, name: &str, wanted: u64) -> Result<()> {
        let mut last = 0;
        until(&format!("{name} = {wanted}"), Duration::from_secs(8), || {
            last = self.stat(name)?;
            Ok((last == wanted).then_some(()))
        })
        .context(self.kind.name())
    }

    /// The lines of one of its files, once there are so many.
    pub fn lines(&self, file: &str, count: usize) -> Result<Vec<String>> {
        let path = self.dir.join(file);
        let read = || fs::read_to_string(&path).unwrap_or_default();
        until(&format!("{count} lines in {} of {}", file, self.kind.name()), Duration::from_secs(15), || {
            let lines: Vec<String> = read().lines().map(str::to_owned).collect();
            Ok((lines.len() >= count).then_some(lines))
        })
        .with_context(|| format!("there is {:?}", read()))
    }

    /// Asks it to end, and waits.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(limit)
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        self.process.stdout() + &self.process.stderr()
    }
}

/// Counters and gauges by name.
#[derive(Clone, Debug, Default)]
pub struct Stats(BTreeMap<String, u64>);

impl Stats {
    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// What was added since, of some names. A name that ends with `*` stands for all that begin so.
    pub fn since(&self, before: &Self, names: &[&str]) -> Value {
        let wanted = |name: &str| {
            names.iter().any(|want| match want.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => *want == name,
            })
        };
        let of = |name: &str| self.of(name).wrapping_sub(before.of(name)).cast_signed();
        let mut delta: BTreeMap<&str, i64> =
            self.names().filter(|name| wanted(name)).map(|name| (name, of(name))).collect();
        for name in names.iter().filter(|name| !name.ends_with('*')) {
            delta.insert(name, of(name));
        }
        delta.retain(|name, value| *value != 0 || names.contains(name));
        serde_json::json!(delta)
    }
}

/// A directory that no other proxy of the lab has.
fn directory(lab: &Lab, kind: Kind) -> Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = lab.dir().join(format!("{}-{n}", kind.name()));
    fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

fn write(dir: &Path, kind: Kind, config: &str) -> Result<PathBuf> {
    let file = dir.join("envoy.yaml");
    fs::write(&file, config.replace(DIR, &dir.display().to_string()).replace(NODE, kind.name()))?;
    Ok(file)
}

fn addresses_of(status: &Value) -> Result<(String, Vec<SocketAddr>)> {
    let name = status["name"].as_str().with_context(|| format!("no name: {status}"))?;
    let more = status["additional_local_addresses"].as_array().map_or(&[] as &[_], Vec::as_slice);
    let parse = |address: &Value| {
        let address = &address["socket_address"];
        let ip = address["address"].as_str()?.parse().ok()?;
        let port = u16::try_from(address["port_value"].as_u64().unwrap_or_default()).ok()?;
        Some(SocketAddr::new(ip, port))
    };
    let all = std::iter::once(&status["local_address"]).chain(more).filter_map(parse).collect();
    Ok((name.to_owned(), all))
}

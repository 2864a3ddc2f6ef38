//! The modes, ready to be measured.
//!
//! Each mode has a network namespace of its own, so that conntrack is there only where iptables asks for it. The
//! iptables mode runs the same daemon with every hook of ours taken off again, also those on the daemon's own
//! cgroup: it must not pay for what it does not use. The client runs in a workload's cgroup and namespace in
//! every mode, the server outside of it, behind a veth pair.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use shunt_tests::{Daemon, Lab, Place, Pod, Process};

use crate::traffic::Kind;

pub(crate) const MODES: &[&str] = &["direct", "iptables", "ebpf"];
const DIRECT: usize = 0;
pub(crate) const IPTABLES: usize = 1;
const EBPF: usize = 2;

/// istio-init tells the proxy by its uid. The daemon is root, so that is the proxy's uid here.
const CLIENT_UID: u32 = 1000;

/// istio-init's rules with its defaults, for a proxy whose uid and gid are 0.
const ISTIO_INIT: &str = "\
    -N ISTIO_REDIRECT
    -N ISTIO_IN_REDIRECT
    -N ISTIO_INBOUND
    -N ISTIO_OUTPUT
    -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
    -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
    -A PREROUTING -p tcp -j ISTIO_INBOUND
    -A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
    -A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
    -A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
    -A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
    -A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
    -A OUTPUT -j ISTIO_OUTPUT
    -A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN
    -A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --uid-owner 0 -j ISTIO_IN_REDIRECT
    -A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 0 -j RETURN
    -A ISTIO_OUTPUT -m owner --uid-owner 0 -j RETURN
    -A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --gid-owner 0 -j ISTIO_IN_REDIRECT
    -A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 0 -j RETURN
    -A ISTIO_OUTPUT -m owner --gid-owner 0 -j RETURN
    -A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
    -A ISTIO_OUTPUT -j ISTIO_REDIRECT";

/// All modes, with the daemons and servers that they need.
pub(crate) struct Modes<'l> {
    modes: Vec<Mode<'l>>,
    ebpf: Daemon<'l>,
    iptables: Daemon<'l>,
    _servers: [Process; 2],
}

/// One mode.
pub(crate) struct Mode<'l> {
    lab: &'l Lab,
    pod: Pod,
    port: u16,
    /// The cgroup of the proxy.
    proxy: Option<PathBuf>,
}

/// One measurement: per second, and CPU seconds per unit.
pub(crate) struct Measured {
    pub(crate) count: u64,
    pub(crate) per_second: f64,
    pub(crate) proxy_cpu: f64,
    pub(crate) all_cpu: f64,
    /// Connections that the namespace tracks; absent where the kernel has no conntrack.
    conntrack: Option<u64>,
}

impl<'l> Modes<'l> {
    pub(crate) fn start(ours: &'l Lab, theirs: &'l Lab) -> Result<Self> {
        let (direct, ebpf, iptables) = (pod(ours, "direct")?, pod(ours, "ebpf")?, pod(theirs, "iptables")?);
        let our_daemon = Daemon::start(ours, &[ebpf.entry("")])?;
        let their_daemon = Daemon::start(theirs, &[iptables.entry("")])?;
        take_off_hooks(theirs, &[&iptables.cgroup, their_daemon.cgroup()])?;
        redirect(theirs, &iptables)?;
        let (our_server, ours_at) = serve(ours)?;
        let (their_server, theirs_at) = serve(theirs)?;
        let (ours_runs, theirs_runs) = (our_daemon.cgroup().to_owned(), their_daemon.cgroup().to_owned());
        let mode = |lab, pod, port, proxy| Mode { lab, pod, port, proxy };
        Ok(Self {
            modes: vec![
                mode(ours, direct, ours_at, None),
                mode(theirs, iptables, theirs_at, Some(theirs_runs)),
                mode(ours, ebpf, ours_at, Some(ours_runs)),
            ],
            ebpf: our_daemon,
            iptables: their_daemon,
            _servers: [our_server, their_server],
        })
    }

    pub(crate) fn get(&self, mode: usize) -> &Mode<'l> {
        &self.modes[mode]
    }

    pub(crate) fn ebpf(&self) -> &Mode<'l> {
        &self.modes[EBPF]
    }

    /// A mode that was not intercepted, was by the other means too, or paid for conntrack without need, would be
    /// worth nothing.
    pub(crate) fn check(&mut self) -> Result<()> {
        let tracked = |mode: &Mode<'_>| mode.measure(Kind::Connections, 0.1);
        for (mode, daemon) in [(EBPF, &self.ebpf), (IPTABLES, &self.iptables)] {
            let before = carried(daemon)?;
            let measured = tracked(&self.modes[mode])?;
            let through = carried(daemon)? - before;
            ensure!(through >= measured.count, "{}: {through} of {} proxied", MODES[mode], measured.count);
            let is_tracked = measured.conntrack.is_some_and(|n| n > 0);
            ensure!(is_tracked == (mode == IPTABLES), "{}: conntrack {:?}", MODES[mode], measured.conntrack);
        }
        let direct = tracked(&self.modes[DIRECT])?.conntrack;
        ensure!(direct.unwrap_or(0) == 0, "direct: conntrack {direct:?}");
        ensure!(self.ebpf.counter("flow_moved")? > 0, "the eBPF mode captured nothing");
        ensure!(self.iptables.counter("flow_moved")? == 0, "the iptables mode was captured by eBPF");
        Ok(())
    }
}

impl Mode<'_> {
    /// Runs a client for a while.
    pub(crate) fn measure(&self, kind: Kind, seconds: f64) -> Result<Measured> {
        let (proxy, all) = (self.proxy_cpu()?, cpu(self.lab.cgroup().path())?);
        let server = format!("{}:{}", self.pod.gateway4, self.port);
        let client = bench(self.lab, &self.pod.place().user(CLIENT_UID))?;
        let client = client.args(["client", kind.argument(), &server, &seconds.to_string()]);
        let answer = client.limit(Duration::from_secs_f64(seconds + 60.0)).run()?.json()?;
        let count = answer["count"].as_u64().context("the client counted nothing")?;
        // What the warm-up inside the client cost is part of the CPU time, so its count is, too.
        let all_count = answer["all_count"].as_u64().unwrap_or(count) as f64;
        Ok(Measured {
            count,
            per_second: answer["per_second"].as_f64().context("the client measured nothing")?,
            proxy_cpu: (self.proxy_cpu()? - proxy) / all_count,
            all_cpu: (cpu(self.lab.cgroup().path())? - all) / all_count,
            conntrack: answer["conntrack"].as_u64(),
        })
    }

    fn proxy_cpu(&self) -> Result<f64> {
        self.proxy.as_deref().map_or(Ok(f64::NAN), cpu)
    }
}

/// CPU seconds that a cgroup and those below it have used. The kernel counts them with or without a controller.
fn cpu(cgroup: &Path) -> Result<f64> {
    let path = cgroup.join("cpu.stat");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let usec = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
    Ok(usec.with_context(|| format!("no usage_usec in {}", path.display()))?.parse::<f64>()? / 1e6)
}

/// A workload that does not run out of source ports.
fn pod(lab: &Lab, name: &str) -> Result<Pod> {
    let pod = lab.pod(name)?;
    pod.netns.sysctl(&[("net/ipv4/ip_local_port_range", "16000 65000")])?;
    Ok(pod)
}

fn bench(lab: &Lab, place: &Place) -> Result<shunt_tests::Spawn> {
    lab.built("shunt-bench", place)
}

fn serve(lab: &Lab) -> Result<(Process, u16)> {
    let mut server = bench(lab, &lab.outside())?.arg("serve").spawn()?;
    let limit = Duration::from_secs(5);
    let port = server.wait_event("the server's port", 0, limit, |e| e["port"].as_u64())?;
    Ok((server, u16::try_from(port)?))
}

/// How many connections the proxy has carried.
fn carried(daemon: &Daemon<'_>) -> Result<u64> {
    let stats = daemon.admin().ok("/stats")?;
    let line = stats.lines().find_map(|l| l.strip_prefix("cluster.PassthroughCluster.upstream_cx_total: "));
    Ok(line.context("no upstream_cx_total in /stats")?.trim().parse()?)
}

/// Whether a pin is a link, not a map or a program.
pub(crate) fn is_link(pin: &Path) -> bool {
    pin.iter().any(|c| c == "links" || c == "proxy")
}

/// Removes the daemon's pins of links: its listeners stay, its hooks let go.
fn take_off_hooks(lab: &Lab, cgroups: &[&Path]) -> Result<()> {
    for pin in lab.pins().pins().into_iter().filter(|pin| is_link(pin)) {
        std::fs::remove_file(&pin).with_context(|| pin.display().to_string())?;
    }
    for cgroup in cgroups {
        let left = bpftool(lab, &["cgroup", "show", &cgroup.display().to_string()])?;
        if left.as_array().is_some_and(|programs| !programs.is_empty()) {
            bail!("hooks are left on {}: {left}", cgroup.display());
        }
    }
    Ok(())
}

pub(crate) fn bpftool(lab: &Lab, args: &[&str]) -> Result<Value> {
    let out = lab.program("bpftool", &Place::default())?.arg("-j").args(args).run()?;
    if out.stdout.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&out.stdout).with_context(|| format!("bpftool printed {}", out.stdout))
}

fn redirect(lab: &Lab, pod: &Pod) -> Result<()> {
    let place = Place { cgroup: None, ..pod.place().clone() };
    for rule in ISTIO_INIT.lines() {
        lab.program("iptables", &place)?.args(["-t", "nat"]).args(rule.split_whitespace()).run()?;
    }
    Ok(())
}

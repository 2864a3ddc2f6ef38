//! What interception costs: direct, iptables REDIRECT as istio-init does it, and eBPF, with the same proxy.
//!
//! Each mode has a network namespace of its own, so that conntrack is there only where iptables asks for it. The
//! iptables mode runs the same daemon with every hook of ours taken off again, also those on the daemon's own
//! cgroup: it must not pay for what it does not use.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;
use shunt_tests::{Daemon, Lab, Place, Pod, Process, lab};

use crate::figures::{Figures, Metric};
use crate::traffic::Kind;

#[derive(Args)]
pub(crate) struct Options {
    /// How often each mode is measured; the modes take turns.
    #[arg(long, default_value_t = 5)]
    repetitions: u32,
    /// How long each metric is measured, in seconds.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Writes every value here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// istio-init tells the proxy by its uid; here the client has one of its own, and the daemon is root.
const CLIENT_UID: u32 = 1000;
const MODES: &[&str] = &["direct", "iptables", "ebpf"];
const IPTABLES: usize = 1;

const METRICS: &[Metric] = &[
    Metric { name: "RTT 64 B /s", scale: 1.0, digits: 0 },
    Metric { name: "RTT 16 KiB /s", scale: 1.0, digits: 0 },
    Metric { name: "bulk GB/s", scale: 1e-9, digits: 2 },
    Metric { name: "connections/s", scale: 1.0, digits: 0 },
    Metric { name: "connections/s, 8 at once", scale: 1.0, digits: 0 },
    Metric { name: "proxy CPU ms/GB", scale: 1e12, digits: 0 },
    Metric { name: "proxy CPU us/connection", scale: 1e6, digits: 0 },
];
const KINDS: &[Kind] = &[Kind::Rtt64, Kind::Rtt16k, Kind::Bulk, Kind::Connections, Kind::Connections8];
const BULK: usize = 2;
const CONNECTIONS: usize = 3;
const CPU_BULK: usize = 5;
const CPU_CONNECTION: usize = 6;

/// One mode, ready to be measured.
struct Mode<'a> {
    pod: &'a Pod,
    lab: &'a Lab,
    port: u16,
    /// Whose CPU time counts.
    proxy: Option<i32>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    // Two labs: two daemons, so that one can lose its hooks.
    lab(|ours| lab(|theirs| measure(options, ours, theirs)))
}

fn measure(options: &Options, ours: &Lab, theirs: &Lab) -> Result<()> {
    let (direct, ebpf, iptables) = (ours.pod("direct")?, ours.pod("ebpf")?, theirs.pod("iptables")?);
    let mut our_daemon = Daemon::start(ours, &[ebpf.entry("")])?;
    let mut their_daemon = Daemon::start(theirs, &[iptables.entry("")])?;
    take_off_hooks(theirs)?;
    redirect(theirs, &iptables)?;
    let (our_server, our_port) = serve(ours)?;
    let (their_server, their_port) = serve(theirs)?;
    let modes = [
        Mode { pod: &direct, lab: ours, port: our_port, proxy: None },
        Mode { pod: &iptables, lab: theirs, port: their_port, proxy: Some(their_daemon.process().pid()) },
        Mode { pod: &ebpf, lab: ours, port: our_port, proxy: Some(our_daemon.process().pid()) },
    ];
    let mut figures = Figures::new(METRICS, MODES);
    // One round that does not count: code paths, caches, neighbours.
    for mode in &modes {
        mode.round(0.3, &mut |_, _| ())?;
    }
    for repetition in 1..=options.repetitions {
        for (i, mode) in modes.iter().enumerate() {
            eprintln!("repetition {repetition} of {}: {}", options.repetitions, MODES[i]);
            mode.round(options.seconds, &mut |metric, value| figures.push(i, metric, value))?;
        }
    }
    check(&mut our_daemon, &mut their_daemon, options.repetitions)?;
    drop((our_server, their_server));
    report(options, &figures)
}

/// A mode that was not intercepted, or was by the other means, would be worth nothing.
fn check(ours: &mut Daemon<'_>, theirs: &mut Daemon<'_>, repetitions: u32) -> Result<()> {
    let connects = u64::from(repetitions);
    if ours.counter("out_all")? < connects {
        bail!("the eBPF mode did not capture anything");
    }
    if theirs.counter("flow_moved")? != 0 {
        bail!("the iptables mode was captured by eBPF");
    }
    let stats = theirs.admin().get("/stats")?.body;
    let carried =
        stats.lines().find_map(|l| l.strip_prefix("cluster.PassthroughCluster.upstream_cx_total: "));
    match carried.and_then(|n| n.trim().parse::<u64>().ok()) {
        Some(n) if n >= connects => Ok(()),
        other => bail!("the iptables mode did not go through the proxy: {other:?}"),
    }
}

fn report(options: &Options, figures: &Figures) -> Result<()> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    println!(
        "Linux {}, {cores} cores, {} repetitions of {} s per metric, modes interleaved",
        release.trim(),
        options.repetitions,
        options.seconds
    );
    println!("median (min-max), and the ratio to iptables repetition by repetition: median (min-max)\n");
    println!("{}", figures.table(IPTABLES));
    if let Some(path) = &options.json {
        let all = json!({"kernel": release.trim(), "cores": cores, "modes": figures.json(IPTABLES)});
        std::fs::write(path, serde_json::to_vec_pretty(&all)?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

impl Mode<'_> {
    /// Every metric once.
    fn round(&self, seconds: f64, push: &mut dyn FnMut(usize, f64)) -> Result<()> {
        for (metric, kind) in KINDS.iter().enumerate() {
            let before = self.cpu()?;
            let (count, per_second) = self.client(*kind, seconds)?;
            push(metric, per_second);
            let cpu = (self.cpu()? - before) / count as f64;
            if metric == BULK {
                push(CPU_BULK, cpu);
            } else if metric == CONNECTIONS {
                push(CPU_CONNECTION, cpu);
            }
        }
        Ok(())
    }

    fn client(&self, kind: Kind, seconds: f64) -> Result<(u64, f64)> {
        let server = format!("{}:{}", self.pod.gateway4, self.port);
        let client = bench(self.lab, &self.pod.place().user(CLIENT_UID))?;
        let client = client.args(["client", kind.argument(), &server, &seconds.to_string()]);
        let answer = client.limit(Duration::from_secs(60)).run()?.json()?;
        let count = answer["count"].as_u64().context("the client counted nothing")?;
        let per_second = answer["per_second"].as_f64().context("the client measured nothing")?;
        Ok((count, per_second))
    }

    /// CPU seconds that the proxy has used so far.
    fn cpu(&self) -> Result<f64> {
        let Some(pid) = self.proxy else { return Ok(f64::NAN) };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The fields after the name, which may hold blanks; 14 and 15 of all are user and system ticks.
        let (_, rest) = stat.rsplit_once(')').context("no process name")?;
        let ticks =
            rest.split_whitespace().skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
        Ok(ticks / 100.0)
    }
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

/// Removes the daemon's pins of links: its listeners stay, its hooks let go.
fn take_off_hooks(lab: &Lab) -> Result<()> {
    let is_link = |p: &PathBuf| p.iter().any(|c| c == "links" || c == "proxy");
    for pin in lab.pins().pins().into_iter().filter(is_link) {
        std::fs::remove_file(&pin).with_context(|| pin.display().to_string())?;
    }
    Ok(())
}

/// istio-init's rule, for the client's uid.
fn redirect(lab: &Lab, pod: &Pod) -> Result<()> {
    let rule = format!(
        "-t nat -A OUTPUT -p tcp -d {}/32 -m owner --uid-owner {CLIENT_UID} -j REDIRECT --to-ports 15001",
        pod.gateway4
    );
    let place = Place { cgroup: None, ..pod.place().clone() };
    lab.program("iptables", &place)?.args(rule.split(' ')).run()?;
    Ok(())
}

//! HTTP: requests a second and CPU a request through one connection manager, beside Envoy; h2load in front, nginx behind.
//!
//! A relay that knows bytes alone is the floor: what two connections cost in the kernel no proxy is below. HAProxy and
//! nginx say how near to it others come.

mod servers;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::{Value, json};
use shunt_tests::bootstrap::{DIR, chain, extension, tcp_proxy};
use shunt_tests::{Bootstrap, Kind, Lab, Proxy, lab};

use self::servers::Server;

use crate::figures::{Figures, Metric, metric};
use crate::machine::Machine;
use crate::proxy::{ENVOY, cpu_of};

/// What is measured. `relay` is shunt's own `tcp_proxy`, between the same client and the same upstream.
const MODES: &[&str] = &["envoy", "relay", "shunt", "nginx", "haproxy"];
/// Those of each table that is printed.
const TABLES: [&[usize]; 2] = [&[0, 1, 2], &[2, 3, 4]];
const LISTENER: &str = "http";
const RELAYS: [&str; 2] = ["relay-h1", "relay-h2"];
/// Of an HTTP/2 connection.
const STREAMS: &str = "4";
/// The proxy's; what is around it has the others.
const PROXY_CPU: usize = 0;

#[derive(Args)]
pub(crate) struct Options {
    /// How often each is measured.
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// How long requests are made for, in seconds.
    #[arg(long, default_value_t = 3)]
    duration_s: u32,
    /// Write every value here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

struct Load {
    http1: bool,
    connections: u32,
}

const LOADS: [Load; 4] = [
    Load { http1: true, connections: 32 },
    Load { http1: true, connections: 256 },
    Load { http1: false, connections: 32 },
    Load { http1: false, connections: 256 },
];

/// Three for each load, in its order.
const METRICS: &[Metric] = &[
    metric("h1, 32 connections: requests / s", 1.0, 0),
    metric("h1, 32 connections: CPU us / request", 1.0, 1),
    metric("h1, 32 connections: p99 ms", 1e-3, 2),
    metric("h1, 256 connections: requests / s", 1.0, 0),
    metric("h1, 256 connections: CPU us / request", 1.0, 1),
    metric("h1, 256 connections: p99 ms", 1e-3, 2),
    metric("h2, 32 connections: requests / s", 1.0, 0),
    metric("h2, 32 connections: CPU us / request", 1.0, 1),
    metric("h2, 32 connections: p99 ms", 1e-3, 2),
    metric("h2, 256 connections: requests / s", 1.0, 0),
    metric("h2, 256 connections: CPU us / request", 1.0, 1),
    metric("h2, 256 connections: p99 ms", 1e-3, 2),
];

pub(crate) fn run(options: &Options) -> Result<()> {
    crate::interrupt::watch()?;
    let result = lab(|lab| measure(lab, options));
    if crate::interrupt::came() { Ok(()) } else { result }
}

fn measure(lab: &Lab, options: &Options) -> Result<()> {
    let nginx = servers::backend(lab)?;
    pin(nginx.process.pid(), &others())?;
    let mut figures = Figures::new(METRICS, MODES, ENVOY);
    for n in 0..=options.repetitions {
        eprintln!("repetition {n} of {} (0 does not count)", options.repetitions);
        // Each has processes of its own: one differs from another by a tenth, for as long as it lives.
        let mut proxies = start(lab, &nginx)?;
        for (at, load) in LOADS.iter().enumerate() {
            for which in (0..MODES.len()).map(|i| (i + n) % MODES.len()) {
                let (pid, to) = (proxies[which].pid(), proxies[which].at(load)?);
                let figure = requests((u32::try_from(pid)?, to), load, lab.dir(), options.duration_s)?;
                if n > 0 {
                    for (i, value) in figure.into_iter().enumerate() {
                        figures.push(which, 3 * at + i, value);
                    }
                }
            }
        }
    }
    report(options, &figures)
}

/// One of [`MODES`].
enum Running {
    Proxy(Proxy),
    Relay(Proxy),
    Peer(Server),
}

/// In the order of [`MODES`], each on the proxy's CPU.
fn start(lab: &Lab, nginx: &Server) -> Result<Vec<Running>> {
    let config = bootstrap(nginx.http1);
    let ours = |kind, config: &str| Proxy::start_with(lab, kind, config, &["--concurrency", "1"]);
    let mut all = vec![
        Running::Proxy(ours(Kind::Envoy, &config)?),
        Running::Relay(ours(Kind::Shunt, &relays([nginx.http1, nginx.http2]))?),
        Running::Proxy(ours(Kind::Shunt, &config)?),
        Running::Peer(servers::nginx_proxy(lab, nginx.http1)?),
        Running::Peer(servers::haproxy(lab, nginx.http1)?),
    ];
    for running in &mut all {
        pin(running.pid(), &[PROXY_CPU])?;
    }
    Ok(all)
}

impl Running {
    fn pid(&mut self) -> i32 {
        match self {
            Self::Proxy(proxy) | Self::Relay(proxy) => proxy.process().pid(),
            Self::Peer(server) => server.process.pid(),
        }
    }

    fn at(&self, load: &Load) -> Result<SocketAddr> {
        match self {
            Self::Proxy(proxy) => proxy.at(LISTENER),
            Self::Relay(proxy) => proxy.at(RELAYS[usize::from(!load.http1)]),
            Self::Peer(server) if load.http1 => Ok(server.http1),
            Self::Peer(server) => Ok(server.http2),
        }
    }
}

/// As a sidecar has it: access log, request ids, timeouts, stats.
fn bootstrap(nginx: SocketAddr) -> String {
    let router = extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", "");
    let log = extension(
        "envoy.access_loggers.file",
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        &format!("path: \"{DIR}/access.log\""),
    );
    let routes = "name: r, virtual_hosts: [ { name: all, domains: [ \"*\" ], routes: [ \
         { match: { prefix: /api }, route: { cluster: nginx, timeout: 5s } }, \
         { match: { prefix: / }, route: { cluster: nginx } } ] } ]";
    let manager = extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &format!(
            "stat_prefix: ingress, codec_type: AUTO, route_config: {{ {routes} }}, http_filters: [ {router} ], \
             access_log: [ {log} ], generate_request_id: true, stream_idle_timeout: 300s, \
             request_timeout: 60s, request_headers_timeout: 15s"
        ),
    );
    Bootstrap::new()
        .listener(LISTENER, &format!("filter_chains: [ {} ]", chain("", &[manager])))
        .static_cluster("nginx", &[nginx], "")
        .yaml()
}

/// What the client says goes to who speaks it.
fn relays(upstreams: [SocketAddr; 2]) -> String {
    let all = RELAYS.iter().zip(upstreams).fold(Bootstrap::new(), |all, (name, upstream)| {
        let proxy = tcp_proxy(name, &format!("cluster: {name}"));
        let listener = format!("filter_chains: [ {} ]", chain("", &[proxy]));
        all.listener(name, &listener).static_cluster(name, &[upstream], "")
    });
    all.yaml()
}

/// Requests a second, CPU microseconds of the proxy for each, and the 99th percentile of their times in microseconds.
fn requests((pid, to): (u32, SocketAddr), load: &Load, dir: &Path, seconds: u32) -> Result<[f64; 3]> {
    crate::interrupt::check()?;
    let log = dir.join("h2load.log");
    // It appends.
    let _ = fs::remove_file(&log);
    let mut command = Command::new("taskset");
    let cpus: Vec<String> = others().iter().map(ToString::to_string).collect();
    command.args(["-c", &cpus.join(","), "h2load", "-t", "1", "-c", &load.connections.to_string()]);
    command.args(if load.http1 { &["--h1"][..] } else { &["-m", STREAMS][..] });
    command.args(["-D", &seconds.to_string(), "--log-file"]).arg(&log).arg(format!("http://{to}/api/list"));
    let before = cpu_of(pid)?;
    let out = command.stdin(Stdio::null()).output().context("h2load: run `cargo xtask setup`")?;
    let cpu = cpu_of(pid)? - before;
    let text = String::from_utf8_lossy(&out.stdout);
    ensure!(out.status.success(), "h2load: {text}{}", String::from_utf8_lossy(&out.stderr));
    let mut times = Vec::new();
    for line in fs::read_to_string(&log)?.lines() {
        let mut fields = line.split('\t').skip(1);
        let status = fields.next().unwrap_or_default();
        ensure!(status == "200", "a response with status {status}");
        times.push(fields.next().context("no time")?.parse::<f64>()?);
    }
    if times.is_empty() {
        bail!("no request was answered: {text}");
    }
    times.sort_by(f64::total_cmp);
    let count = times.len() as f64;
    let p99 = times[(times.len() - 1) * 99 / 100];
    Ok([count / f64::from(seconds), cpu * 1e6 / count, p99])
}

/// The CPUs beside the proxy's, where there are any.
fn others() -> Vec<usize> {
    let cpus = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (0..cpus).filter(|cpu| *cpu != PROXY_CPU || cpus == 1).collect()
}

/// All threads of a process.
fn pin(pid: i32, cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let tid = task?.file_name().to_string_lossy().parse()?;
        sched_setaffinity(Pid::from_raw(tid), &set)?;
    }
    Ok(())
}

fn report(options: &Options, figures: &Figures) -> Result<()> {
    let machine = Machine::read();
    let Options { repetitions, duration_s, json } = options;
    println!("{}", machine.line());
    println!(
        "{repetitions} repetitions of {duration_s} s, one worker each on a CPU of its own, proxies interleaved; \
         median (min-max)",
    );
    for modes in TABLES {
        println!("\n{}", figures.table_of(modes));
    }
    let Some(path) = json else { return Ok(()) };
    let all: Value = json!({
        "machine": machine.json(),
        "repetitions": repetitions,
        "duration_s": duration_s,
        "modes": figures.json(),
    });
    fs::write(path, serde_json::to_vec_pretty(&all)?).with_context(|| path.display().to_string())
}

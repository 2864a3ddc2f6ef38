//! Dynamic configuration: loading thousands of clusters and listeners, how soon an update takes connections, and what
//! endpoints cost that change all the time. By files and by delta xDS, beside Envoy.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::{Value, json};
use shunt_tests::bootstrap::NODE;
use shunt_tests::proxy::Start;
use shunt_tests::xds::{Push, Resource, Type};
use shunt_tests::{Bootstrap, ControlPlane, Kind, Lab, Place, Proxy, Upstream, lab};

use crate::figures::{Figures, Metric, metric};
use crate::machine::Machine;
use crate::proxy::{self, ENVOY, PROXIES, cpu_of};

/// Envoy needs a while for a large configuration.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Args)]
pub(crate) struct Options {
    /// How often each proxy is measured.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// So many clusters, and as many listeners.
    #[arg(long, default_value_t = 5000)]
    size: usize,
    /// Updates of each measurement; the median counts.
    #[arg(long, default_value_t = 9)]
    updates: usize,
    /// Endpoints of the cluster that changes all the time.
    #[arg(long, default_value_t = 10_000)]
    endpoints: usize,
    /// How many changes of it there are.
    #[arg(long, default_value_t = 300)]
    changes: usize,
    /// Changes in a second.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Write every value here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

const METRICS: &[Metric] = &[
    metric("load, by file: s until ready", 1.0, 2),
    metric("load, by file: peak MB", 1e-6, 1),
    metric("update of a large one, by file: ms", 1e3, 2),
    metric("load, by delta: s until ready", 1.0, 2),
    metric("load, by delta: peak MB", 1e-6, 1),
    metric("update of a large one, by delta: ms", 1e3, 2),
    metric("update of a small one, by file: ms", 1e3, 2),
    metric("update of a small one, by delta: ms", 1e3, 2),
    metric("changing endpoints: CPU ms for a change", 1e3, 2),
    metric("changing endpoints: changes taken a second", 1.0, 1),
];

pub(crate) fn run(options: &Options) -> Result<()> {
    crate::interrupt::watch()?;
    let result = lab(|lab| measure(lab, options));
    if crate::interrupt::came() { Ok(()) } else { result }
}

fn measure(lab: &Lab, options: &Options) -> Result<()> {
    let world = World::new(options)?;
    let mut figures = Figures::new(METRICS, PROXIES, ENVOY);
    for n in 0..options.repetitions {
        eprintln!("repetition {} of {}", n + 1, options.repetitions);
        for which in (0..PROXIES.len()).map(|i| (i + n) % PROXIES.len()) {
            for (metric, value) in world.one(lab, Kind::BOTH[which])?.into_iter().enumerate() {
                figures.push(which, metric, value);
            }
        }
    }
    report(options, &figures)
}

/// What all measurements have in common.
struct World<'a> {
    options: &'a Options,
    backend: Upstream,
    large: Set,
    small: Set,
}

impl<'a> World<'a> {
    fn new(options: &'a Options) -> Result<Self> {
        let backend = Upstream::echo("backend")?;
        let (large, small) = (Set::new(options.size)?, Set::new(1)?);
        Ok(Self { options, backend, large, small })
    }

    /// In the order of [`METRICS`].
    fn one(&self, lab: &Lab, kind: Kind) -> Result<[f64; METRICS.len()]> {
        let (file_s, file_peak, file_update) = self.by_file(lab, kind, &self.large)?;
        let (delta_s, delta_peak, delta_update) = self.by_delta(lab, kind, &self.large)?;
        let (_, _, small_file) = self.by_file(lab, kind, &self.small)?;
        let (_, _, small_delta) = self.by_delta(lab, kind, &self.small)?;
        let (cpu, rate) = self.changing(lab, kind)?;
        let large = [file_s, file_peak, file_update, delta_s, delta_peak, delta_update];
        let [a, b, c, d, e, f] = large;
        Ok([a, b, c, d, e, f, small_file, small_delta, cpu, rate])
    }

    /// Seconds until ready, peak memory, and the median of the updates.
    fn by_file(&self, lab: &Lab, kind: Kind, set: &Set) -> Result<(f64, f64, f64)> {
        crate::interrupt::check()?;
        let dir = tempfile::Builder::new().prefix("bench-xds-").tempdir_in(lab.dir())?;
        let files = Files { dir: dir.path().to_owned() };
        files.prepare(set, &Extra::default())?;
        files.publish()?;
        let source = |file: &str| {
            let path = dir.path().join(file);
            format!("{{ path_config_source: {{ path: {path:?} }}, resource_api_version: V3 }}")
        };
        let (lds, cds) = (source("lds.yaml"), source("cds.yaml"));
        let config = Bootstrap::new()
            .top(&node())
            .top(&format!("dynamic_resources: {{ lds_config: {lds}, cds_config: {cds} }}"));
        let (proxy, ready) = started(lab, kind, &config.yaml(), set)?;
        let median = self.updates(|extra| {
            files.prepare(set, extra)?;
            let start = Instant::now();
            files.publish()?;
            Ok(start)
        })?;
        Ok((ready, memory(&proxy, "VmHWM")?, median))
    }

    fn by_delta(&self, lab: &Lab, kind: Kind, set: &Set) -> Result<(f64, f64, f64)> {
        crate::interrupt::check()?;
        let plane = ControlPlane::start()?;
        plane.set_all(set.clusters.iter().chain(&set.listeners).cloned());
        let (proxy, ready) = started(lab, kind, &by_ads(&plane).yaml(), set)?;
        for of in [Type::Cluster, Type::Listener] {
            plane.hold(of);
        }
        let median = self.updates(|extra| {
            let pushes = [(Type::Cluster, extra.cluster()?), (Type::Listener, extra.listener()?)]
                .map(|(of, resource)| Push::new(of).resource(resource));
            let start = Instant::now();
            for push in &pushes {
                plane.push(kind.name(), push)?;
            }
            Ok(start)
        })?;
        Ok((ready, memory(&proxy, "VmHWM")?, median))
    }

    /// Each update brings a cluster and a listener in front of it: the time until a connection there is answered.
    fn updates(&self, mut publish: impl FnMut(&Extra) -> Result<Instant>) -> Result<f64> {
        let mut seconds = Vec::new();
        for n in 0..=self.options.updates {
            crate::interrupt::check()?;
            let extra = Extra { n, port: proxy::port()?, backend: Some(self.backend.address) };
            let start = publish(&extra)?;
            answered(([127, 0, 0, 1], extra.port).into(), start)?;
            // The first is a rehearsal.
            if n > 0 {
                seconds.push(start.elapsed().as_secs_f64());
            }
            thread::sleep(Duration::from_millis(50));
        }
        seconds.sort_by(f64::total_cmp);
        seconds.get(seconds.len() / 2).copied().context("no updates were asked for")
    }

    /// CPU seconds for a change of a large cluster's endpoints, and how many of them are taken in a second.
    fn changing(&self, lab: &Lab, kind: Kind) -> Result<(f64, f64)> {
        crate::interrupt::check()?;
        let plane = ControlPlane::start()?;
        let eds = "type: EDS, eds_cluster_config: { eds_config: { ads: {}, resource_api_version: V3 } }";
        plane.set(Resource::new(Type::Cluster, &format!("{{ name: churn, connect_timeout: 1s, {eds} }}"))?);
        let variants = [endpoints(self.options.endpoints, 0)?, endpoints(self.options.endpoints, 1)?];
        plane.set(variants[0].clone());
        let config = by_ads(&plane);
        let (mut proxy, _) = started(lab, kind, &config.yaml(), &Set::default())?;
        proxy.expect_stat("cluster.churn.membership_total", self.options.endpoints as u64)?;
        plane.hold(Type::Endpoints);
        let pid = u32::try_from(proxy.process().pid())?;
        let (cpu, start) = (cpu_of(pid)?, Instant::now());
        let (mut last, pause) = (String::new(), Duration::from_secs(1) / self.options.rate);
        for n in 0..self.options.changes {
            let due = start + pause * u32::try_from(n)?;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let push = Push::new(Type::Endpoints).resource(variants[(n + 1) % 2].clone());
            last = plane.push(kind.name(), &push)?;
        }
        let acked = |plane: &ControlPlane| plane.requests(kind.name()).iter().any(|r| r.acks(&last));
        while !acked(&plane) {
            ensure!(start.elapsed() < LIMIT, "{}: the last change is not answered", kind.name());
            crate::interrupt::check()?;
            thread::sleep(Duration::from_millis(10));
        }
        let changes = self.options.changes as f64;
        Ok(((cpu_of(pid)? - cpu) / changes, changes / start.elapsed().as_secs_f64()))
    }
}

/// Clusters and listeners in front of them, to which connections are only handed.
#[derive(Default)]
struct Set {
    clusters: Vec<Resource>,
    listeners: Vec<Resource>,
    /// One line for each, as files have them.
    cds: String,
    lds: String,
}

impl Set {
    fn new(size: usize) -> Result<Self> {
        let mut set = Self::default();
        for n in 0..size {
            let name = format!("outbound|8080||service-{n}.namespace-{}.svc.cluster.local", n % 40);
            let ip = Ipv4Addr::from(u32::from_be_bytes([10, 1, 0, 0]) + u32::try_from(n)?);
            let cluster = cluster(&name, SocketAddr::new(ip.into(), 8080))?;
            let mut listener = listener(&format!("{ip}_8080"), SocketAddr::new(ip.into(), 8080), &name);
            listener["bind_to_port"] = json!(false);
            let listener = Resource::from_value(Type::Listener, listener)?;
            let _ = writeln!(set.cds, "- {}", cluster.json());
            let _ = writeln!(set.lds, "- {}", listener.json());
            set.clusters.push(cluster);
            set.listeners.push(listener);
        }
        Ok(set)
    }
}

/// What an update brings.
#[derive(Default)]
struct Extra {
    n: usize,
    port: u16,
    backend: Option<SocketAddr>,
}

impl Extra {
    fn cluster(&self) -> Result<Resource> {
        cluster(&format!("extra-{}", self.n), self.backend.context("nothing to add")?)
    }

    fn listener(&self) -> Result<Resource> {
        let at = ([127, 0, 0, 1], self.port).into();
        let name = format!("extra-{}", self.n);
        Resource::from_value(Type::Listener, listener(&name, at, &name))
    }
}

fn cluster(name: &str, to: SocketAddr) -> Result<Resource> {
    let endpoint = json!({ "endpoint": { "address": address(to) } });
    let assignment = json!({ "cluster_name": name, "endpoints": [ { "lb_endpoints": [ endpoint ] } ] });
    let value = json!({
        "name": name, "type": "STATIC", "connect_timeout": "10s", "lb_policy": "LEAST_REQUEST",
        "load_assignment": assignment,
    });
    Resource::from_value(Type::Cluster, value)
}

fn listener(name: &str, at: SocketAddr, cluster: &str) -> Value {
    let of_type = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    let filter = json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": { "@type": of_type, "stat_prefix": name, "cluster": cluster },
    });
    json!({ "name": name, "address": address(at), "filter_chains": [ { "filters": [ filter ] } ] })
}

fn address(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } })
}

/// So many; of each variant one in a hundred is another.
fn endpoints(count: usize, variant: u16) -> Result<Resource> {
    let endpoint = |n: usize| -> Result<Value> {
        let ip = Ipv4Addr::from(u32::from_be_bytes([10, 2, 0, 0]) + u32::try_from(n)?);
        let port = if n.is_multiple_of(100) { 9000 + variant } else { 8080 };
        Ok(json!({ "endpoint": { "address": address(SocketAddr::new(ip.into(), port)) } }))
    };
    let all = (0..count).map(endpoint).collect::<Result<Vec<_>>>()?;
    let value = json!({ "cluster_name": "churn", "endpoints": [ { "lb_endpoints": all } ] });
    Resource::from_value(Type::Endpoints, value)
}

/// The files of LDS and CDS: written aside, then put in place.
struct Files {
    dir: PathBuf,
}

impl Files {
    fn prepare(&self, set: &Set, extra: &Extra) -> Result<()> {
        let mut more = [String::new(), String::new()];
        if extra.backend.is_some() {
            more = [extra.cluster()?, extra.listener()?].map(|resource| format!("- {}\n", resource.json()));
        }
        for ((file, all), more) in [("cds.yaml", &set.cds), ("lds.yaml", &set.lds)].into_iter().zip(more) {
            let text = format!("version_info: \"{}\"\nresources:\n{all}{more}", extra.n + 1);
            fs::write(self.dir.join(file).with_extension("new"), text)?;
        }
        Ok(())
    }

    fn publish(&self) -> Result<()> {
        for file in ["cds.yaml", "lds.yaml"] {
            let path = self.dir.join(file);
            fs::rename(path.with_extension("new"), &path).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}

fn node() -> String {
    format!("node: {{ id: {NODE:?}, cluster: bench }}")
}

fn by_ads(plane: &ControlPlane) -> Bootstrap {
    let api = "{ api_type: DELTA_GRPC, transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: [ { envoy_grpc: { cluster_name: xds } } ] }";
    let ads = "{ ads: {}, resource_api_version: V3 }";
    Bootstrap::new()
        .top(&node())
        .top(&format!("dynamic_resources: {{ ads_config: {api}, lds_config: {ads}, cds_config: {ads} }}"))
        .cluster("xds", &plane.cluster())
}

/// Returns once `/ready` says 200 and all listeners are there, with how long that took.
fn started(lab: &Lab, kind: Kind, config: &str, set: &Set) -> Result<(Proxy, f64)> {
    let start = Instant::now();
    let args = ["--concurrency", "2"];
    let proxy = Proxy::start_unready(lab, &Start { kind, config, args: &args, place: Place::default() })?;
    while proxy.admin().get("/ready")?.status != 200 {
        ensure!(start.elapsed() < LIMIT, "{} is not ready: {}", kind.name(), proxy.log());
        crate::interrupt::check()?;
        thread::sleep(Duration::from_millis(2));
    }
    let seconds = start.elapsed().as_secs_f64();
    let active = proxy.stat("listener_manager.total_listeners_active")?;
    ensure!(active == set.listeners.len() as u64, "{}: {active} listeners are active", kind.name());
    Ok((proxy, seconds))
}

/// A line of `/proc/PID/status`, in bytes.
fn memory(proxy: &Proxy, line: &str) -> Result<f64> {
    let text = fs::read_to_string(Path::new("/proc").join(proxy.pid().to_string()).join("status"))?;
    let value = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
    let kib: f64 = value.and_then(|v| v.trim().strip_suffix(" kB")).context("no such line")?.parse()?;
    Ok(kib * 1024.0)
}

/// Tries until a line comes back.
fn answered(at: SocketAddr, start: Instant) -> Result<()> {
    let ask = || -> Result<bool> {
        let mut stream = TcpStream::connect(at)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(b"x\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line.ends_with(" x\n"))
    };
    while !ask().unwrap_or(false) {
        ensure!(start.elapsed() < LIMIT, "nobody answers at {at}");
        crate::interrupt::check()?;
        thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

fn report(options: &Options, figures: &Figures) -> Result<()> {
    let machine = Machine::read();
    let Options { repetitions, size, updates, endpoints, changes, rate, json } = options;
    println!("{}", machine.line());
    println!(
        "large: {size} clusters and {size} listeners; {updates} updates; {changes} changes of {endpoints} endpoints, {rate} a second"
    );
    println!("{repetitions} repetitions, proxies interleaved; median (min-max)\n\n{}", figures.table());
    let Some(path) = json else { return Ok(()) };
    let all = json!({
        "machine": machine.json(),
        "repetitions": repetitions,
        "size": size,
        "endpoints": endpoints,
        "changes": changes,
        "rate": rate,
        "proxies": figures.json(),
    });
    fs::write(path, serde_json::to_vec_pretty(&all)?).with_context(|| path.display().to_string())
}

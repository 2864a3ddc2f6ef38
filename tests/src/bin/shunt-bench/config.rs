//! What loading a configuration of thousands of clusters takes, and what they cost while nothing happens.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;

use crate::bootstrap::{Shape, bootstrap};
use crate::figures::{Figures, Metric, metric};
use crate::machine::Machine;
use crate::proxy::{self, ENVOY, PROXIES, Proxy};

#[derive(Args)]
pub(crate) struct Options {
    /// How often each proxy is measured.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// Clusters of the large bootstrap.
    #[arg(long, default_value_t = 5000)]
    clusters: usize,
    /// Plain clusters instead of those of a mesh: STATIC, two endpoints, nothing else.
    #[arg(long)]
    plain: bool,
    /// How long a proxy is left alone before its memory is read, in seconds.
    #[arg(long, default_value_t = 5.0)]
    idle_s: f64,
    /// Write every value here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave the large bootstrap in this directory and end.
    #[arg(long, value_name = "DIR")]
    write_only: Option<PathBuf>,
}

const METRICS: &[Metric] = &[
    metric("validate s", 1.0, 2),
    metric("validate, CPU s", 1.0, 2),
    metric("validate, peak MB", 1e-6, 1),
    metric("run until ready s", 1.0, 2),
    metric("run, peak MB", 1e-6, 1),
    metric("idle MB", 1e-6, 1),
    metric("idle MB without clusters", 1e-6, 1),
    metric("KB per idle cluster", 1e-3, 2),
];

/// A bootstrap in a file, and where its admin listens.
struct Config {
    path: PathBuf,
    admin: u16,
}

impl Config {
    fn write(dir: &Path, clusters: usize, plain: bool) -> Result<Self> {
        let (eds, path) = (dir.join("eds.yaml"), dir.join(format!("bootstrap-{clusters}.yaml")));
        // Envoy wants the file to be there. A cluster that it does not name has no endpoints.
        fs::write(&eds, "version_info: \"1\"\nresources: []\n")?;
        let admin = proxy::port()?;
        let shape = if plain { Shape::Plain } else { Shape::Mesh(&eds) };
        fs::write(&path, bootstrap(clusters, admin, shape))?;
        Ok(Self { path, admin })
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    crate::interrupt::watch()?;
    if let Some(dir) = &options.write_only {
        println!("{}", Config::write(dir, options.clusters, options.plain)?.path.display());
        return Ok(());
    }
    let result = measure(options);
    if crate::interrupt::came() { Ok(()) } else { result }
}

fn measure(options: &Options) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _instances = Instances::for_each(options.clusters)?;
    let (large, empty) = (
        Config::write(dir.path(), options.clusters, options.plain)?,
        Config::write(dir.path(), 0, options.plain)?,
    );
    let proxies = proxy::proxies()?;
    let mut figures = Figures::new(METRICS, PROXIES, ENVOY);
    for n in 0..options.repetitions {
        eprintln!("repetition {} of {}", n + 1, options.repetitions);
        for i in 0..proxies.len() {
            let which = (i + n) % proxies.len();
            for (metric, value) in one(&proxies[which], &large, &empty, options)?.into_iter().enumerate() {
                figures.push(which, metric, value);
            }
        }
    }
    report(options, &figures, fs::metadata(&large.path)?.len())
}

/// Envoy takes an inotify instance for every cluster with an EDS file, and aborts where there are no more.
struct Instances {
    before: String,
}

const INSTANCES: &str = "/proc/sys/fs/inotify/max_user_instances";

impl Instances {
    fn for_each(clusters: usize) -> Result<Self> {
        let before = fs::read_to_string(INSTANCES)?;
        let wanted = clusters + 1024;
        if before.trim().parse::<usize>()? < wanted {
            fs::write(INSTANCES, wanted.to_string()).with_context(|| format!("cannot write {INSTANCES}"))?;
        }
        Ok(Self { before })
    }
}

impl Drop for Instances {
    fn drop(&mut self) {
        if let Err(error) = fs::write(INSTANCES, self.before.trim()) {
            eprintln!("{INSTANCES} stays raised: {error}");
        }
    }
}

/// In the order of [`METRICS`].
fn one(proxy: &Proxy, large: &Config, empty: &Config, options: &Options) -> Result<[f64; METRICS.len()]> {
    crate::interrupt::check()?;
    let validate = proxy.validate(&large.path)?;
    let (ready, peak, idle) = idle(proxy, large, options.idle_s)?;
    let (_, _, without) = self::idle(proxy, empty, options.idle_s)?;
    let each = (idle - without) / options.clusters as f64;
    Ok([validate.seconds, validate.cpu, validate.peak, ready, peak, idle, without, each])
}

/// Seconds until ready, then the peak and what is resident after a while.
fn idle(proxy: &Proxy, config: &Config, seconds: f64) -> Result<(f64, f64, f64)> {
    let (running, ready) = proxy.start(&config.path, config.admin)?;
    thread::sleep(Duration::from_secs_f64(seconds));
    Ok((ready, running.memory("VmHWM")?, running.memory("VmRSS")?))
}

fn report(options: &Options, figures: &Figures, bytes: u64) -> Result<()> {
    let machine = Machine::read();
    println!("{}", machine.line());
    println!("{} clusters, {:.1} MB of YAML", options.clusters, bytes as f64 / 1e6);
    println!(
        "{} repetitions, proxies interleaved; median (min-max)\n\n{}",
        options.repetitions,
        figures.table()
    );
    let Some(path) = &options.json else { return Ok(()) };
    let all = json!({
        "machine": machine.json(),
        "repetitions": options.repetitions,
        "clusters": options.clusters,
        "bytes": bytes,
        "proxies": figures.json(),
    });
    fs::write(path, serde_json::to_vec_pretty(&all)?).with_context(|| path.display().to_string())
}

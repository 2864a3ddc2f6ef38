//! What finding a filter chain and handing a connection to another listener cost, with few and with many of them.
//!
//! The look-ups alone are timed inside of a program of ours; that they do not show is proved with connections.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use comfy_table::Table;
use serde_json::{Value, json};
use shunt_tests::peer;

use crate::figures::{Figures, Metric, Series, metric};
use crate::handoff::{Case, Kind};
use crate::machine::Machine;
use crate::proxy::{self, ENVOY, PROXIES, Running};

#[derive(Args)]
pub(crate) struct Options {
    /// How often everything is measured.
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// How long each measurement with connections takes, in seconds.
    #[arg(long, default_value_t = 1.5)]
    duration_s: f64,
    /// Only the look-ups, no connections.
    #[arg(long)]
    look_ups: bool,
    /// Write every value here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

const CASES: [Case; 4] = [
    Case { kind: Kind::Chains, many: 1 },
    Case { kind: Kind::Chains, many: 10_000 },
    Case { kind: Kind::Listeners, many: 10 },
    Case { kind: Kind::Listeners, many: 10_000 },
];

/// Rate and CPU of each case, then what many cost against few, then memory.
const METRICS: &[Metric] = &[
    metric("connections/s, 1 chain", 1.0, 0),
    metric("connections/s, 10,000 chains", 1.0, 0),
    metric("connections/s, 10 listeners", 1.0, 0),
    metric("connections/s, 10,000 listeners", 1.0, 0),
    metric("proxy CPU us, 1 chain", 1e6, 1),
    metric("proxy CPU us, 10,000 chains", 1e6, 1),
    metric("proxy CPU us, 10 listeners", 1e6, 1),
    metric("proxy CPU us, 10,000 listeners", 1e6, 1),
    metric("KB per chain", 1e-3, 2),
    metric("KB per listener", 1e-3, 2),
    metric("s until ready, 10,000 chains", 1.0, 2),
    metric("s until ready, 10,000 listeners", 1.0, 2),
];

/// A case, running in one proxy.
struct Subject {
    case: Case,
    port: u16,
    running: Running,
    ready: f64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    crate::interrupt::watch()?;
    let result = measure(options);
    if crate::interrupt::came() { Ok(()) } else { result }
}

fn measure(options: &Options) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut figures = Figures::new(METRICS, PROXIES, ENVOY);
    let mut look_ups = LookUps::default();
    let subjects = if options.look_ups { Vec::new() } else { subjects(dir.path(), &mut figures)? };
    for n in 0..options.repetitions {
        eprintln!("repetition {} of {}", n + 1, options.repetitions);
        look_ups.measure()?;
        for i in 0..CASES.len() {
            for which in (0..subjects.len()).map(|which| (which + n) % subjects.len()) {
                let (rate, cpu) = subjects[which][i].measure(options.duration_s)?;
                figures.push(which, i, rate);
                figures.push(which, CASES.len() + i, cpu);
            }
        }
    }
    report(options, &look_ups, &figures)
}

/// Every case in every proxy, in the order of [`PROXIES`].
fn subjects(dir: &std::path::Path, figures: &mut Figures) -> Result<Vec<Vec<Subject>>> {
    let mut all = Vec::new();
    for (which, proxy) in proxy::proxies()?.iter().enumerate() {
        let mut subjects = Vec::new();
        for (i, case) in CASES.into_iter().enumerate() {
            let (port, admin) = (proxy::port()?, proxy::port()?);
            let path = dir.join(format!("{}-{i}.json", PROXIES[which]));
            fs::write(&path, case.config(port, admin).to_string())?;
            let (running, ready) = proxy.start(&path, admin)?;
            subjects.push(Subject { case, port, running, ready });
        }
        for (metric, pair) in subjects.chunks_exact(2).enumerate() {
            let [few, many] = [&pair[0], &pair[1]];
            let bytes = many.running.memory("VmRSS")? - few.running.memory("VmRSS")?;
            figures.push(which, 2 * CASES.len() + metric, bytes / f64::from(many.case.many - few.case.many));
            figures.push(which, 2 * CASES.len() + 2 + metric, many.ready);
        }
        all.push(subjects);
    }
    Ok(all)
}

impl Subject {
    /// Connections a second, and the proxy's CPU seconds for each.
    fn measure(&self, seconds: f64) -> Result<(f64, f64)> {
        // What a first connection builds is not its work.
        self.case.connect(self.port, Duration::from_millis(100))?;
        let before = self.running.cpu()?;
        let (count, rate) = self.case.connect(self.port, Duration::from_secs_f64(seconds))?;
        Ok((rate, (self.running.cpu()? - before) / count as f64))
    }
}

/// Nanoseconds by what is looked up and among how many.
#[derive(Default)]
struct LookUps(BTreeMap<String, BTreeMap<u64, Series>>);

impl LookUps {
    fn measure(&mut self) -> Result<()> {
        let out = Command::new(peer::built("examples/bench_match")?).output()?;
        ensure!(out.status.success(), "bench_match: {}", String::from_utf8_lossy(&out.stderr));
        for line in String::from_utf8(out.stdout)?.lines() {
            let row: Value = serde_json::from_str(line)?;
            let (Some(what), Some(many), Some(ns)) =
                (row["what"].as_str(), row["many"].as_u64(), row["ns"].as_f64())
            else {
                anyhow::bail!("bench_match printed {line}");
            };
            self.0.entry(what.to_owned()).or_default().entry(many).or_default().push(ns);
        }
        Ok(())
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
        let sizes: Vec<u64> =
            self.0.values().next().into_iter().flat_map(|row| row.keys().copied()).collect();
        table.set_header(std::iter::once("ns among".to_owned()).chain(sizes.iter().map(u64::to_string)));
        for (what, row) in &self.0 {
            let cells = sizes.iter().map(|size| row.get(size).map_or_else(String::new, |s| s.cell(1.0, 0)));
            table.add_row(std::iter::once(what.clone()).chain(cells));
        }
        table
    }

    fn json(&self) -> Value {
        let row = |row: &BTreeMap<u64, Series>| -> Value {
            row.iter().map(|(many, series)| (many.to_string(), json!(series.median()))).collect()
        };
        self.0.iter().map(|(what, sizes)| (what.clone(), row(sizes))).collect()
    }
}

fn report(options: &Options, look_ups: &LookUps, figures: &Figures) -> Result<()> {
    let machine = Machine::read();
    println!("{}", machine.line());
    println!("{} repetitions; median (min-max)\n\n{}", options.repetitions, look_ups.table());
    if !options.look_ups {
        println!(
            "\nconnections for {} s each, proxies interleaved\n\n{}",
            options.duration_s,
            figures.table()
        );
    }
    let Some(path) = &options.json else { return Ok(()) };
    let all = json!({
        "machine": machine.json(),
        "repetitions": options.repetitions,
        "duration_s": options.duration_s,
        "look_ups": look_ups.json(),
        "proxies": figures.json(),
    });
    fs::write(path, serde_json::to_vec_pretty(&all)?).with_context(|| path.display().to_string())
}

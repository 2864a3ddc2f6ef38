//! What interception costs: direct, iptables REDIRECT as istio-init does it, and eBPF, with the same proxy.
//!
//! The three modes take turns on every metric, so that what else happens on the machine meets all of them.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::json;
use shunt_tests::{Lab, lab};

use crate::figures::{Figures, Metric, metric};
use crate::machine::Machine;
use crate::mode::{IPTABLES, MODES, Mode, Modes};
use crate::programs::{self, Cost};
use crate::traffic::Kind;

#[derive(Args)]
pub(crate) struct Options {
    /// How often each metric of each mode is measured.
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// How long each measurement takes, in seconds.
    #[arg(long, default_value_t = 1.5)]
    duration_s: f64,
    /// Write every value here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure only these.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Kind::ALL)]
    only: Vec<Kind>,
    /// Keep client, proxy and server on this one CPU. What is left is the work itself: how long another CPU takes
    /// to wake up, which on virtual machines outweighs it, is not in the figures then.
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
    /// At the end, also ask the kernel what each of our programs costs per connection.
    #[arg(long)]
    programs: bool,
}

/// What a measurement gives, beside its rate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Value {
    Rate,
    /// CPU time of the proxy, per unit of work.
    ProxyCpu,
    /// CPU time of client, proxy and server, per unit of work: the least sensitive to what else runs.
    AllCpu,
}

const METRICS: &[(Kind, Value, Metric)] = &[
    (Kind::Rtt64, Value::Rate, metric("RTT 64 B /s", 1.0, 0)),
    (Kind::Rtt16k, Value::Rate, metric("RTT 16 KiB /s", 1.0, 0)),
    (Kind::Bulk, Value::Rate, metric("bulk GB/s", 1e-9, 2)),
    (Kind::Connections, Value::Rate, metric("connections/s", 1.0, 0)),
    (Kind::Connections8, Value::Rate, metric("connections/s, 8 at once", 1.0, 0)),
    (Kind::Bulk, Value::ProxyCpu, metric("proxy CPU s/GB", 1e9, 3)),
    (Kind::Connections, Value::ProxyCpu, metric("proxy CPU us/connection", 1e6, 1)),
    (Kind::Rtt64, Value::AllCpu, metric("all CPU us/RTT 64 B", 1e6, 1)),
    (Kind::Bulk, Value::AllCpu, metric("all CPU s/GB", 1e9, 3)),
    (Kind::Connections, Value::AllCpu, metric("all CPU us/connection", 1e6, 1)),
];

pub(crate) fn run(options: &Options) -> Result<()> {
    crate::interrupt::watch()?;
    if let Some(cpu) = options.cpu {
        let mut only = CpuSet::new();
        only.set(cpu).and_then(|()| sched_setaffinity(Pid::this(), &only)).context("--cpu")?;
    }
    // Two labs: two daemons, so that one can lose its hooks.
    lab(|ours| lab(|theirs| unless_interrupted(measure(options, ours, theirs))))
}

/// After Ctrl-C nothing has failed, whatever the children say that it reached, too: no logs are shown.
fn unless_interrupted(result: Result<()>) -> Result<()> {
    if crate::interrupt::came() { Ok(()) } else { result }
}

fn measure(options: &Options, ours: &Lab, theirs: &Lab) -> Result<()> {
    let mut modes = Modes::start(ours, theirs)?;
    let metrics: Vec<_> = METRICS.iter().map(|(_, _, metric)| *metric).collect();
    let mut figures = Figures::new(&metrics, MODES, IPTABLES);
    // One repetition that does not count: code paths, caches, neighbours.
    eprintln!("warm-up");
    let kinds = &options.only;
    repetition(&modes, kinds, 0, options.duration_s.min(0.5), &mut |_, _, _| ())?;
    for n in 1..=options.repetitions {
        eprintln!("repetition {n} of {}", options.repetitions);
        repetition(&modes, kinds, n, options.duration_s, &mut |m, i, value| figures.push(m, i, value))?;
    }
    modes.check()?;
    let costs =
        options.programs.then(|| programs::measure(ours, modes.ebpf(), options.duration_s)).transpose()?;
    report(options, &figures, costs.as_deref())
}

/// Every metric of every mode once; who goes first changes.
fn repetition(
    modes: &Modes<'_>,
    kinds: &[Kind],
    n: usize,
    seconds: f64,
    push: &mut dyn FnMut(usize, usize, f64),
) -> Result<()> {
    for (turn, kind) in kinds.iter().enumerate() {
        for i in 0..MODES.len() {
            let mode = (i + turn + n) % MODES.len();
            measurement(modes.get(mode), *kind, seconds, &mut |i, value| push(mode, i, value))?;
        }
    }
    Ok(())
}

fn measurement(mode: &Mode<'_>, kind: Kind, seconds: f64, push: &mut dyn FnMut(usize, f64)) -> Result<()> {
    crate::interrupt::check()?;
    let measured = mode.measure(kind, seconds)?;
    for (i, (_, value, _)) in METRICS.iter().enumerate().filter(|(_, (of, _, _))| *of == kind) {
        let value = match value {
            Value::Rate => measured.per_second,
            Value::ProxyCpu => measured.proxy_cpu,
            Value::AllCpu => measured.all_cpu,
        };
        push(i, value);
    }
    Ok(())
}

fn report(options: &Options, figures: &Figures, costs: Option<&[Cost]>) -> Result<()> {
    let machine = Machine::read();
    println!("{}", machine.line());
    let pinned = options.cpu.map_or(String::new(), |cpu| format!(", all on CPU {cpu}"));
    println!("{} repetitions of {} s, modes interleaved{pinned}", options.repetitions, options.duration_s);
    println!("median (min-max); ratios are repetition by repetition\n\n{}", figures.table());
    if let Some(costs) = costs {
        println!("\n{}", programs::table(costs));
    }
    let Some(path) = &options.json else { return Ok(()) };
    let all = json!({
        "machine": machine.json(),
        "repetitions": options.repetitions,
        "duration_s": options.duration_s,
        "cpu": options.cpu,
        "modes": figures.json(),
        "programs": costs.map(|costs| costs.iter().map(Cost::json).collect::<Vec<_>>()),
    });
    std::fs::write(path, serde_json::to_vec_pretty(&all)?).with_context(|| path.display().to_string())
}

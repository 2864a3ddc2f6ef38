//! What each of our programs costs per connection, as the kernel counts it (`kernel.bpf_stats_enabled`).
//!
//! The counting itself costs some tens of nanoseconds a run, which are in the figures: they are for comparing
//! programs with each other and with themselves, and this pass is not part of the measured repetitions.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result};
use comfy_table::Table;
use serde_json::{Value, json};
use shunt_tests::Lab;

use crate::mode::{Mode, bpftool, is_link};
use crate::traffic::Kind;

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// One program over one pass.
pub(crate) struct Cost {
    name: String,
    runs: u64,
    ns: u64,
    connections: u64,
}

impl Cost {
    fn runs_per_connection(&self) -> f64 {
        self.runs as f64 / self.connections as f64
    }

    fn ns_per_run(&self) -> f64 {
        self.ns as f64 / self.runs as f64
    }

    fn ns_per_connection(&self) -> f64 {
        self.ns as f64 / self.connections as f64
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "program": self.name, "runs": self.runs, "ns": self.ns, "connections": self.connections,
            "ns_per_connection": self.ns_per_connection(),
        })
    }
}

/// Runs sequential connections and reads the programs' counters around them.
pub(crate) fn measure(lab: &Lab, mode: &Mode<'_>, seconds: f64) -> Result<Vec<Cost>> {
    let ids = program_ids(lab)?;
    let _counting = Counting::start()?;
    let before = counters(lab, &ids)?;
    let connections = mode.measure(Kind::Connections, seconds)?.count;
    let mut costs = Vec::new();
    for (name, (runs, ns)) in counters(lab, &ids)? {
        let (runs_before, ns_before) = before.get(&name).copied().unwrap_or_default();
        if runs > runs_before {
            costs.push(Cost { name, runs: runs - runs_before, ns: ns - ns_before, connections });
        }
    }
    costs.sort_by_key(|cost| std::cmp::Reverse(cost.ns));
    Ok(costs)
}

pub(crate) fn table(costs: &[Cost]) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(["program", "runs per connection", "ns per run", "ns per connection"]);
    for cost in costs {
        table.add_row([
            cost.name.clone(),
            format!("{:.2}", cost.runs_per_connection()),
            format!("{:.0}", cost.ns_per_run()),
            format!("{:.0}", cost.ns_per_connection()),
        ]);
    }
    let all: f64 = costs.iter().map(Cost::ns_per_connection).sum();
    table.add_row(["all".to_owned(), String::new(), String::new(), format!("{all:.0}")]);
    table
}

/// The programs under the links of this lab's daemon, whatever others run on this machine.
fn program_ids(lab: &Lab) -> Result<Vec<u64>> {
    let mut ids = Vec::new();
    for pin in lab.pins().pins().iter().filter(|pin| is_link(pin)) {
        let link = bpftool(lab, &["link", "show", "pinned", &pin.display().to_string()])?;
        ids.push(link["prog_id"].as_u64().with_context(|| format!("no prog_id in {link}"))?);
    }
    ids.sort_unstable();
    // One program is under several links: the workload's and the proxy's.
    ids.dedup();
    Ok(ids)
}

/// Runs and nanoseconds so far, by name.
fn counters(lab: &Lab, ids: &[u64]) -> Result<BTreeMap<String, (u64, u64)>> {
    let mut all = BTreeMap::new();
    for id in ids {
        let program = bpftool(lab, &["prog", "show", "id", &id.to_string()])?;
        let count = |key: &str| program[key].as_u64().unwrap_or_default();
        let name = program["name"].as_str().unwrap_or_default().to_owned();
        all.insert(name, (count("run_cnt"), count("run_time_ns")));
    }
    Ok(all)
}

/// Switches the kernel's counting on, and back to what it was on drop.
struct Counting {
    before: String,
}

impl Counting {
    fn start() -> Result<Self> {
        let before = fs::read_to_string(SWITCH).with_context(|| format!("cannot read {SWITCH}"))?;
        let counting = Self { before };
        fs::write(SWITCH, "1").with_context(|| format!("cannot write {SWITCH}"))?;
        Ok(counting)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        if let Err(error) = fs::write(SWITCH, self.before.trim()) {
            eprintln!("kernel.bpf_stats_enabled stays on: {error}");
        }
    }
}

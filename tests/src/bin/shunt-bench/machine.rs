//! What the figures depend on: without it a table says little.

use serde_json::{Value, json};

pub(crate) struct Machine {
    kernel: String,
    cpu: String,
    cores: usize,
    /// Of one, five and fifteen minutes: what else ran.
    load: String,
    congestion_control: String,
}

impl Machine {
    pub(crate) fn read() -> Self {
        let load = first_line("/proc/loadavg");
        Self {
            kernel: first_line("/proc/sys/kernel/osrelease"),
            cpu: cpu_model(),
            cores: std::fs::read_to_string("/proc/cpuinfo")
                .map_or(0, |text| text.matches("processor\t").count()),
            load: load.split(' ').take(3).collect::<Vec<_>>().join(" "),
            congestion_control: first_line("/proc/sys/net/ipv4/tcp_congestion_control"),
        }
    }

    pub(crate) fn line(&self) -> String {
        let Self { kernel, cpu, cores, load, congestion_control } = self;
        format!("Linux {kernel}, {cores} cores ({cpu}), {congestion_control}, load at the end {load}")
    }

    pub(crate) fn json(&self) -> Value {
        let Self { kernel, cpu, cores, load, congestion_control } = self;
        json!({
            "kernel": kernel, "cpu": cpu, "cores": cores, "load": load, "congestion_control": congestion_control,
        })
    }
}

fn first_line(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(String::new, |(_, name)| name.to_owned())
}

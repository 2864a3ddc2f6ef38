//! `shunt workload`: the admin API's workloads from the command line.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Subcommand;
use comfy_table::Table;
use hyper::Method;

use super::maps::plain;
use super::{Places, say};
use crate::admin;

#[derive(Subcommand)]
pub(super) enum WorkloadCommand {
    /// List every workload with its state.
    List {
        #[command(flatten)]
        places: Places,
        #[arg(long)]
        json: bool,
    },
    /// Enrol or change one: '{name: web, cgroup: DIR, netns: PATH, policy: "-o 5432"}'
    Add {
        #[command(flatten)]
        places: Places,
        #[arg(value_name = "YAML")]
        entry: String,
    },
    /// Take one out.
    Remove {
        #[command(flatten)]
        places: Places,
        name: String,
    },
}

pub(super) fn run(command: WorkloadCommand) -> Result<ExitCode> {
    let (places, method, path, body) = match &command {
        WorkloadCommand::List { places, .. } => (places, Method::GET, "/workloads".to_owned(), String::new()),
        WorkloadCommand::Add { places, entry } => {
            (places, Method::POST, "/workloads".to_owned(), entry.clone())
        }
        WorkloadCommand::Remove { places, name } => {
            (places, Method::DELETE, format!("/workloads/{name}"), String::new())
        }
    };
    let socket = places.run_dir.join("admin.sock");
    let reply = super::runtime()?.block_on(admin::request(&socket, method, &path, body))?;
    if !reply.status.is_success() {
        bail!("{}", reply.body.trim_end());
    }
    if matches!(command, WorkloadCommand::List { json: false, .. }) {
        say(table(&reply.body)?)?;
    } else {
        say(reply.body.trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(body: &str) -> Result<Table> {
    let all: Vec<serde_json::Value> = serde_json::from_str(body)?;
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header([
        "NAME",
        "STATE",
        "ORIGIN",
        "PORT",
        "CONFIG",
        "CONTROL PLANE",
        "UPDATED",
        "POLICY",
        "REASON",
    ]);
    for w in &all {
        let text = |key: &str| if w[key].is_null() { "-".to_owned() } else { plain(&w[key]) };
        let configuration = &w["configuration"];
        let reason = match configuration["problem"].as_str() {
            Some(problem) if w["reason"].is_null() => problem.to_owned(),
            Some(_) | None => text("reason"),
        };
        let [name, state, origin, port, policy] =
            ["name", "state", "origin", "outbound_port", "policy"].map(text);
        let own = |key: &str| configuration[key].as_str().unwrap_or("-").to_owned();
        let row = [name, state, origin, port, own("state"), control_planes(configuration), own("updated")];
        table.add_row(row.into_iter().chain([policy, reason]));
    }
    Ok(table)
}

/// Of its own configuration: one word where all are alike.
fn control_planes(configuration: &serde_json::Value) -> String {
    let all = configuration["control_planes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let connected = all.iter().filter(|one| one["connected"] == true).count();
    match (connected, all.len()) {
        (_, 0) => "-".to_owned(),
        (some, all) if some == all => "connected".to_owned(),
        (0, _) => "disconnected".to_owned(),
        (some, all) => format!("{some} of {all} connected"),
    }
}

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
    table.set_header(["NAME", "STATE", "ORIGIN", "PORT", "POLICY", "REASON"]);
    for w in &all {
        let text = |key: &str| if w[key].is_null() { "-".to_owned() } else { plain(&w[key]) };
        table.add_row(["name", "state", "origin", "outbound_port", "policy", "reason"].map(text));
    }
    Ok(table)
}

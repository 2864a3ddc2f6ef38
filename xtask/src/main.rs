//! `cargo xtask`: every chore of this repository, from a fresh machine to CI.

mod ebpf;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Chores of the shunt repository
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Rebuild the committed BPF object from proxy-ebpf
    Ebpf {
        /// Only compare it with the committed one, and fail where the code differs
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match Workspace::find().and_then(|ws| run(&ws, cli.task)) {
        Ok(()) => ExitCode::SUCCESS,
        // A user's mistake or a missing package is told in words; a backtrace would bury it.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(ws: &Workspace, task: Task) -> Result<()> {
    match task {
        Task::Ebpf { check: false } => ebpf::write(ws),
        Task::Ebpf { check: true } => ebpf::check(ws),
    }
}

//! `cargo xtask`: every chore of this repository, from a fresh machine to CI.

mod ci;
mod deny;
mod docs;
mod ebpf;
mod fuzz;
mod program;
mod progress;
mod setup;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::setup::Voice;
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
    /// Install what is missing to run and test (as root, Debian-like)
    Setup {
        /// Also the toolchain that builds the BPF object
        #[arg(long)]
        ebpf: bool,
    },
    /// Build the daemon
    Build {
        #[arg(long)]
        release: bool,
    },
    /// Set up, build and show the main job: a demo workload intercepted, until Ctrl-C (as root)
    Run {
        /// Passed on to `shunt demo`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Set up, build and run all tests; the last line is the total
    Test {
        /// Only tests whose name contains it, and flags of the test harness
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        filter: Vec<String>,
    },
    /// All of CI: the checks, then the tests
    Ci,
    /// The checks of CI without the tests: fmt, deny, clippy, docs, protos, ebpf
    Check,
    /// Rebuild the committed BPF object from proxy-ebpf
    Ebpf {
        /// Only compare it with the committed one, and fail where the code differs
        #[arg(long)]
        check: bool,
    },
    /// Rebuild the generated tables under docs/
    Docs {
        /// Only compare them with the committed ones
        #[arg(long)]
        check: bool,
    },
    /// Print the pinned BPF maps, decoded (as root)
    Maps {
        /// Passed on to `shunt maps`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run a benchmark in release mode (as root)
    Bench {
        /// Which one: intercept, config, match, tls, http or xds
        name: String,
        /// Passed on to the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Fuzz the parsers of what peers send
    Fuzz {
        /// Which ones: all by default
        targets: Vec<String>,
        /// How long each is fuzzed
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Remove everything of ours from the kernel (as root)
    Cleanup,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match Workspace::find().and_then(|ws| run(&ws, cli.task)) {
        Ok(()) => ExitCode::SUCCESS,
        // A user's mistake or a missing package is told in words; a backtrace would bury it.
        Err(error) => {
            eprintln!("error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("because: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(ws: &Workspace, task: Task) -> Result<()> {
    match task {
        Task::Setup { ebpf } => {
            setup::base(ws, Voice::Full)?;
            if ebpf { setup::bpf_toolchain(ws) } else { Ok(()) }
        }
        Task::Build { release } => program::build(ws, release),
        Task::Run { args } => program::demo(ws, &args),
        Task::Test { filter } => test::test(ws, &filter),
        Task::Ci => ci::ci(ws),
        Task::Check => ci::checks(ws),
        Task::Ebpf { check } => {
            setup::bpf_toolchain(ws)?;
            if check { ebpf::check(ws) } else { ebpf::write(ws) }
        }
        Task::Docs { check: false } => docs::write(ws),
        Task::Docs { check: true } => docs::check(ws),
        Task::Maps { args } => program::maps(ws, &args),
        Task::Bench { name, args } => program::bench(ws, &name, &args),
        Task::Fuzz { targets, seconds } => fuzz::fuzz(ws, &targets, seconds),
        Task::Cleanup => program::cleanup(ws),
    }
}

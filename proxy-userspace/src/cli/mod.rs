//! The command line: one module per command.

mod attach;
mod check;
mod config;
mod demo;
mod envoy;
mod exec;
mod explain;
mod maps;
mod place;
mod run;
mod workload;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use log::LevelFilter;
use proxy_config::policy::{self, Parsed, Policy};

/// Captures workloads with eBPF and carries their connections: Envoy and istio-init in one daemon per node.
#[derive(Parser)]
#[command(name = "shunt", version, about)]
struct Cli {
    /// Log level: trace, debug, info, warn, error or off.
    #[arg(short, long, global = true, value_name = "LEVEL", value_parser = level)]
    log_level: Option<LevelFilter>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon.
    Run(Box<run::RunArgs>),
    /// Say everything that is wrong with a configuration, and end.
    Check(Box<check::CheckArgs>),
    /// Run a command as a fresh workload and return its exit status: shunt exec [FLAGS] [POLICY FLAGS] -- CMD...
    Exec(exec::ExecArgs),
    /// Attach the hooks for a stock proxy (Envoy with istio-init's listeners) and leave them pinned.
    Attach(attach::AttachArgs),
    /// Undo `attach` for one workload.
    Detach(attach::DetachArgs),
    /// Remove everything of shunt's from the kernel: every workload is direct again.
    Cleanup(attach::CleanupArgs),
    /// Print the kernel maps, decoded.
    Maps(maps::MapsArgs),
    /// Ask about policies.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// List, add or remove the running daemon's workloads.
    #[command(subcommand)]
    Workload(workload::WorkloadCommand),
    /// Ask the running daemon about its configuration: which way connections go, and what updates change.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Make two namespaces and a workload, capture it, show what was captured, and stay until Ctrl-C.
    Demo(demo::DemoArgs),
}

#[derive(Subcommand)]
enum PolicyCommand {
    /// Say which rule decides about a connection, and why, from the maps as the kernel has them.
    Explain(explain::ExplainArgs),
    /// List every policy flag: istio-iptables' and shunt's own.
    Flags,
}

/// Where the kernel half and the state are kept.
#[derive(Args, Clone)]
struct Places {
    /// Pin directory on bpffs; must be root's with mode 0700.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/shunt", env = "SHUNT_PIN_ROOT")]
    pin_root: PathBuf,
    /// Directory of the admin socket and of the state file.
    #[arg(long, value_name = "DIR", default_value = "/run/shunt", env = "SHUNT_RUN_DIR")]
    run_dir: PathBuf,
}

/// The commands that take istio-iptables' flags beside their own.
const WITH_POLICY: &[&str] = &["exec", "attach", "demo"];

/// Parses the command line, runs the command, and turns its end into an exit status.
pub fn main() -> ExitCode {
    match parse(as_envoy(std::env::args_os().collect())).and_then(|(cli, flags)| dispatch(cli, &flags)) {
        Ok(code) => code,
        // Whoever read our output has had enough.
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            log::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

/// A link named `envoy` runs the daemon: a launcher's `binaryPath` can point to it.
fn as_envoy(mut args: Vec<OsString>) -> Vec<OsString> {
    let name = args.first().map(Path::new).and_then(Path::file_name);
    if name.is_some_and(|name| name == "envoy") && args.get(1).is_none_or(|arg| arg != "run") {
        args.insert(1, "run".into());
    }
    args
}

fn is_broken_pipe(e: &anyhow::Error) -> bool {
    e.chain().any(|c| {
        c.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// Prints a line on standard output; `println!` would panic once nobody reads it.
fn say(text: impl std::fmt::Display) -> Result<()> {
    use std::io::Write as _;
    writeln!(std::io::stdout(), "{text}").context("standard output")
}

/// Policy flags share letters with nothing of clap's only because they are taken out first.
fn parse(args: Vec<OsString>) -> Result<(Cli, Vec<String>)> {
    let has_policy = args.get(1).and_then(|a| a.to_str()).is_some_and(|a| WITH_POLICY.contains(&a));
    let help = args.iter().take_while(|a| *a != "--").any(|a| a == "--help" || a == "-h");
    let (flags, rest) = if has_policy && !help {
        let (head, tail) = args.split_at(2);
        let (flags, rest) = policy::take(tail.to_vec());
        (flags, [head.to_vec(), rest].concat())
    } else {
        (Vec::new(), args)
    };
    let mut command = Cli::command();
    for name in WITH_POLICY {
        command = command.mut_subcommand(name, |c| c.after_long_help(policy::help()));
    }
    let cli = Cli::from_arg_matches(&command.get_matches_from(rest)).unwrap_or_else(|e| e.exit());
    Ok((cli, flags))
}

fn dispatch(cli: Cli, flags: &[String]) -> Result<ExitCode> {
    let level = cli.log_level;
    crate::logging::start(level.unwrap_or(LevelFilter::Info));
    match cli.command {
        Command::Run(args) => run::run(*args),
        Command::Check(args) => check::run(&args),
        Command::Exec(args) => {
            crate::logging::start(level.unwrap_or(LevelFilter::Warn));
            exec::run(args, flags)
        }
        Command::Attach(args) => attach::attach(args, flags),
        Command::Detach(args) => attach::detach(&args),
        Command::Cleanup(args) => attach::cleanup(&args),
        Command::Maps(args) => maps::run(&args),
        Command::Policy(PolicyCommand::Explain(args)) => explain::run(&args),
        Command::Policy(PolicyCommand::Flags) => {
            say(policy::help())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Workload(command) => workload::run(command),
        Command::Config(command) => config::run(command),
        Command::Demo(args) => {
            crate::logging::start(level.unwrap_or(LevelFilter::Warn));
            demo::run(args, flags)
        }
    }
}

fn level(text: &str) -> Result<LevelFilter, String> {
    // Envoy's names of the levels that ours are called otherwise.
    let text = match text {
        "warning" => "warn",
        "critical" => "error",
        other => other,
    };
    text.parse().map_err(|_| "not a level".to_owned())
}

/// Policy flags and the ISTIO_* environment, with the notes on what has no effect printed.
fn parse_policy(flags: &[String]) -> Result<Parsed> {
    let parsed = match Policy::parse(flags, &|name| std::env::var(name).ok()) {
        Ok(parsed) => parsed,
        Err(all) => {
            let lines: Vec<String> = all.iter().map(|e| format!("  {e}")).collect();
            bail!("policy flags:\n{}", lines.join("\n"));
        }
    };
    for note in &parsed.notes {
        log::warn!("{note}");
    }
    Ok(parsed)
}

/// For what goes on beside the connections, which have workers of their own.
fn runtime() -> Result<tokio::runtime::Runtime> {
    let built = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    built.context("cannot start the runtime")
}

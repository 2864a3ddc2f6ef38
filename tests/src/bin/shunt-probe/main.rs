//! The client and the server that tests run inside workloads. Every report is one line of JSON on stdout.

mod attempt;
mod client;
mod load;
mod options;
mod report;
mod server;
mod socket;
mod steps;
mod udp;

use std::process::ExitCode;

use options::Options;

const USAGE: &str = "usage: shunt-probe serve|connect|load|udp|udp-serve|try [options]; see options.rs";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(mode) = args.next() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let args: Vec<String> = args.collect();
    match run(&mode, &args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("shunt-probe {mode}: {why}");
            ExitCode::from(2)
        }
    }
}

/// Whether all went as asked; an error is a wrong use.
fn run(mode: &str, args: &[String]) -> Result<bool, String> {
    if mode == "try" {
        return attempt::run(args);
    }
    let options = Options::parse(args)?;
    match mode {
        "serve" => server::run(&options),
        "connect" => client::run(&options, args),
        "load" => load::run(&options),
        "udp" => udp::query(&options),
        "udp-serve" => udp::serve(&options),
        other => Err(format!("unknown mode {other}; {USAGE}")),
    }
}

//! Benchmarks: shunt beside its peers, interleaved in one run, as ratios with medians and spread.
//!
//! No figure here passes or fails anything: machines are noisy, and a person reads the table.

mod bootstrap;
mod config;
mod figures;
mod floor;
mod handoff;
mod http;
mod intercept;
mod interrupt;
mod machine;
mod matching;
mod mode;
mod programs;
mod proxy;
mod tls;
mod traffic;
mod xds;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "shunt-bench", about = "Benchmarks of shunt beside its peers")]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Interception: direct, iptables REDIRECT with the same proxy, and eBPF.
    Intercept(intercept::Options),
    /// Loading: a bootstrap of thousands of clusters, beside Envoy.
    Config(config::Options),
    /// Matching: thousands of filter chains, and listeners that connections are handed to, beside Envoy.
    Match(matching::Options),
    /// TLS: handshakes for a CPU second, and bytes, beside Envoy and beside rustls alone.
    Tls(tls::Options),
    /// HTTP: requests a second and CPU a request, beside Envoy, nginx and HAProxy.
    Http(http::Options),
    /// Dynamic configuration: loads, updates and changing endpoints, by file and by delta xDS, beside Envoy.
    Xds(xds::Options),
    /// Runs one command and prints what it took.
    #[command(hide = true)]
    Took(proxy::Command),
    /// The server that the others talk to.
    #[command(hide = true)]
    Serve,
    /// rustls and two sockets.
    #[command(hide = true)]
    Relay(tls::Relay),
    /// rustls and an epoll loop.
    #[command(hide = true)]
    Floor(tls::Floor),
    /// One client, measuring for a while.
    #[command(hide = true)]
    Client(traffic::Client),
}

fn main() -> Result<ExitCode> {
    match Cli::parse().bench {
        Bench::Intercept(options) => intercept::run(&options)?,
        Bench::Config(options) => config::run(&options)?,
        Bench::Match(options) => matching::run(&options)?,
        Bench::Tls(options) => tls::run(&options)?,
        Bench::Http(options) => http::run(&options)?,
        Bench::Xds(options) => xds::run(&options)?,
        Bench::Relay(relay) => relay.run()?,
        Bench::Floor(floor) => floor.run()?,
        Bench::Took(command) => command.run()?,
        Bench::Serve => traffic::serve()?,
        Bench::Client(client) => client.run()?,
    }
    if interrupt::came() {
        eprintln!("interrupted; everything that was made is removed");
        // As a shell says of SIGINT.
        return Ok(ExitCode::from(130));
    }
    Ok(ExitCode::SUCCESS)
}

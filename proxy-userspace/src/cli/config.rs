//! `shunt config`: which way connections go, and what updates change, from the running daemon.

mod render;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::say;
use crate::admin::Daemon;

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Say which listener takes a connection, through which filter chain, to which clusters and endpoints; without
    /// a destination, list the listeners.
    Get(Box<GetArgs>),
    /// Say what the last update of each type has changed.
    Diff(DiffArgs),
    /// Follow updates, one line each, until Ctrl-C.
    Watch(WatchArgs),
}

/// Whom to ask, and how to tell.
#[derive(Args)]
struct Asked {
    /// Directory of the daemon's admin socket.
    #[arg(long, value_name = "DIR", default_value = "/run/shunt", env = "SHUNT_RUN_DIR")]
    run_dir: PathBuf,
    /// Ask this admin address instead of the socket.
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<String>,
    /// The workload whose own configuration is meant.
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Args)]
pub(super) struct GetArgs {
    #[command(flatten)]
    asked: Asked,
    /// Where the connection goes.
    #[arg(value_name = "IP:PORT")]
    destination: Option<SocketAddr>,
    /// The server name that the client asks for, in TLS.
    #[arg(long, requires = "destination")]
    sni: Option<String>,
    /// The protocols that the client offers in TLS, by commas.
    #[arg(long, requires = "destination")]
    alpn: Option<String>,
    /// The client begins with TLS.
    #[arg(long, requires = "destination")]
    tls: bool,
    /// The client begins with a request of HTTP/1.1.
    #[arg(long, requires = "destination", conflicts_with_all = ["sni", "alpn", "tls"])]
    http: bool,
    /// Where the connection comes from.
    #[arg(long, value_name = "IP[:PORT]", requires = "destination")]
    source: Option<String>,
    /// A connection that comes to the workload.
    #[arg(long, requires = "destination")]
    inbound: bool,
    /// The listener that the connection comes in by, where it is not the virtual one of its direction.
    #[arg(long, value_name = "NAME", requires = "destination")]
    listener: Option<String>,
}

#[derive(Args)]
pub(super) struct DiffArgs {
    #[command(flatten)]
    asked: Asked,
    /// Only resources of this type: CDS, EDS, LDS, RDS, SDS or ECDS.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// All updates that the daemon remembers.
    #[arg(long)]
    all: bool,
}

#[derive(Args)]
pub(super) struct WatchArgs {
    #[command(flatten)]
    asked: Asked,
    /// Only resources of this type: CDS, EDS, LDS, RDS, SDS or ECDS.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
}

pub(super) fn run(command: ConfigCommand) -> Result<ExitCode> {
    match command {
        ConfigCommand::Get(args) => get(&args)?,
        ConfigCommand::Diff(args) => {
            let mut path = Path::new(&args.asked, "/shunt/updates");
            path.add("type", args.kind.as_deref());
            path.flag("last", !args.all);
            let text = args.asked.get(&path)?;
            args.asked.tell(&text, render::updates)?;
        }
        ConfigCommand::Watch(args) => watch(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn get(args: &GetArgs) -> Result<()> {
    let Some(destination) = args.destination else {
        let text = args.asked.get(&Path::new(&args.asked, "/shunt/listeners"))?;
        return args.asked.tell(&text, render::listeners);
    };
    let mut path = Path::new(&args.asked, "/shunt/match");
    path.add("destination", Some(&destination.to_string()));
    path.add("sni", args.sni.as_deref());
    path.add("alpn", args.alpn.as_deref());
    path.add("source", args.source.as_deref());
    path.add("direction", args.inbound.then_some("inbound"));
    path.add("entry", args.listener.as_deref());
    path.flag("tls", args.tls);
    path.flag("http", args.http);
    let text = args.asked.get(&path)?;
    args.asked.tell(&text, render::way)
}

fn watch(args: &WatchArgs) -> Result<()> {
    let mut path = Path::new(&args.asked, "/shunt/watch");
    path.add("type", args.kind.as_deref());
    let told = |line: &str| match args.asked.output {
        Output::Json => say(line),
        Output::Table => say(render::line(&serde_json::from_str(line).context("the daemon's answer")?)),
    };
    let refused = super::runtime()?.block_on(args.asked.daemon().follow(&path.0, told))?;
    match refused {
        Some(reply) => bail!("{}", reply.body.trim_end()),
        None => bail!("the configuration is gone"),
    }
}

impl Asked {
    fn daemon(&self) -> Daemon {
        match &self.admin {
            Some(address) => Daemon::Address(address.clone()),
            None => Daemon::Socket(self.run_dir.join("admin.sock")),
        }
    }

    fn get(&self, path: &Path) -> Result<String> {
        let reply = super::runtime()?.block_on(self.daemon().get(&path.0))?;
        if !reply.status.is_success() {
            bail!("{}", reply.body.trim_end());
        }
        Ok(reply.body)
    }

    fn tell(&self, text: &str, render: impl FnOnce(&Value) -> String) -> Result<()> {
        match self.output {
            Output::Json => say(text.trim_end()),
            Output::Table => {
                say(render(&serde_json::from_str(text).context("the daemon's answer")?).trim_end())
            }
        }
    }
}

/// A path of the admin API with its query.
struct Path(String);

impl Path {
    fn new(asked: &Asked, path: &str) -> Self {
        Self(match &asked.workload {
            Some(name) => format!("/workloads/{}{path}", escaped(name)),
            None => path.to_owned(),
        })
    }

    fn add(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            let sign = if self.0.contains('?') { '&' } else { '?' };
            self.0 += &format!("{sign}{name}={}", escaped(value));
        }
    }

    fn flag(&mut self, name: &str, set: bool) {
        self.add(name, set.then_some(""));
    }
}

/// Percent-encoded, but for what a path or a query may hold as it is.
fn escaped(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b',' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_what_was_given() {
        let asked = |workload: Option<&str>| Asked {
            run_dir: PathBuf::new(),
            admin: None,
            workload: workload.map(str::to_owned),
            output: Output::Table,
        };
        let mut path = Path::new(&asked(None), "/shunt/match");
        path.add("destination", Some("[fd00::1]:80"));
        path.add("sni", None);
        path.add("alpn", Some("a b,c&d"));
        path.flag("http", false);
        path.flag("tls", true);
        assert_eq!(path.0, "/shunt/match?destination=%5Bfd00::1%5D:80&alpn=a%20b,c%26d&tls=");
        assert_eq!(Path::new(&asked(Some("ns/web")), "/shunt/watch").0, "/workloads/ns%2Fweb/shunt/watch");
    }
}

//! `shunt demo`: the main job on a machine that has nothing prepared.
//!
//! Two network namespaces joined by a veth pair: a workload in one, a server in the other. The daemon captures
//! the workload with istio-init's defaults; curl calls out of it and into it, over IPv4 and IPv6.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use comfy_table::Table;
use proxy_config::enrol::Workload;
use proxy_config::policy::Policy;

use super::place::{ip, remove_cgroup};
use super::{Places, say};
use crate::app::{self, Bound, Config};
use crate::sys::netns::Netns;
use crate::sys::process;
use crate::{cgroup, ebpf};

#[derive(Args)]
pub(super) struct DemoArgs {
    #[command(flatten)]
    places: Places,
    /// Show the tables and end, instead of staying until Ctrl-C.
    #[arg(long)]
    once: bool,
}

const WORKLOAD: &str = "demo";
const SERVER_PORT: u16 = 8080;
const WORKLOAD_PORT: u16 = 9090;
/// RFC 5737 and RFC 3849: addresses that no real network has.
const CLIENT4: &str = "192.0.2.1";
const SERVER4: &str = "192.0.2.2";
const CLIENT6: &str = "2001:db8::1";
const SERVER6: &str = "2001:db8::2";

pub(super) fn run(args: DemoArgs, flags: &[String]) -> Result<ExitCode> {
    ebpf::check_kernel()?;
    let policy = super::parse_policy(flags)?.policy;
    let world = World::make()?;
    super::runtime()?.block_on(async {
        let bound = app::start(world.config(&args, policy)?).await?;
        let shown = show(&world, &bound, &args).await;
        tokio::task::spawn_blocking(move || bound.stop(false)).await?;
        shown
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn show(world: &World, bound: &Bound, args: &DemoArgs) -> Result<()> {
    for call in world.calls() {
        call.make()?;
    }
    // A connection's line is written when it ends, a moment after curl has.
    tokio::time::sleep(Duration::from_millis(300)).await;
    say(format_args!("\nConnections captured:\n{}\n", connections(bound)))?;
    say(format_args!("Kernel decisions:\n{}\n", decisions(&args.places)?))?;
    if args.once {
        return Ok(());
    }
    world.hint(&args.places)?;
    super::run::wait().await?;
    say(format_args!("\nConnections captured, all:\n{}", connections(bound)))?;
    Ok(())
}

fn connections(bound: &Bound) -> Table {
    let mut table = plain([
        "DIRECTION",
        "FROM",
        "ORIGINAL DST",
        "CLUSTER",
        "UPSTREAM FROM",
        "RX",
        "TX",
        "MS",
        "ENDED BY",
    ]);
    let text = |a: Option<std::net::SocketAddr>| a.map_or_else(|| "-".to_owned(), |a| a.to_string());
    for e in bound.shared.access_log.snapshot() {
        table.add_row([
            e.origin.listener.to_string(),
            e.facts.remote.to_string(),
            text(e.original_dst),
            e.upstream.cluster.as_deref().unwrap_or("-").to_owned(),
            text(e.upstream.local),
            e.bytes.downstream_rx.to_string(),
            e.bytes.downstream_tx.to_string(),
            e.duration.as_millis().to_string(),
            e.outcome.details.to_string(),
        ]);
    }
    table
}

fn decisions(places: &Places) -> Result<Table> {
    let pins = ebpf::Pins::existing(&places.pin_root)?.context("nothing is pinned")?;
    let mut table = plain(["RULE", "COUNT", "WHY"]);
    for (rule, n) in ebpf::Maps::open(&pins)?.counters()? {
        if n > 0 {
            table.add_row([rule.name(), &n.to_string(), rule.why()]);
        }
    }
    Ok(table)
}

fn plain<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(header);
    table
}

/// What the demo makes, and removes when dropped.
struct World {
    client: String,
    server: String,
    cgroup: PathBuf,
}

/// One curl.
struct Call {
    what: String,
    url: String,
    command: Command,
}

impl World {
    fn make() -> Result<Self> {
        let pid = std::process::id();
        let cgroup = ebpf::cgroup2_mount()?.join(format!("shunt/demo-{pid}"));
        let this = Self { client: format!("shunt-demo-{pid}"), server: format!("shunt-peer-{pid}"), cgroup };
        cgroup::make(&this.cgroup)?;
        let (c, s) = (&this.client, &this.server);
        let steps = [
            format!("netns add {c}"),
            format!("netns add {s}"),
            format!("link add eth0 netns {c} type veth peer name eth0 netns {s}"),
            format!("-n {c} addr add {CLIENT4}/24 dev eth0"),
            format!("-n {s} addr add {SERVER4}/24 dev eth0"),
            format!("-n {c} addr add {CLIENT6}/64 dev eth0 nodad"),
            format!("-n {s} addr add {SERVER6}/64 dev eth0 nodad"),
            format!("-n {c} link set lo up"),
            format!("-n {s} link set lo up"),
            format!("-n {c} link set eth0 up"),
            format!("-n {s} link set eth0 up"),
        ];
        for step in &steps {
            ip(step)?;
        }
        serve(&netns_path(s), SERVER_PORT, "hello from the server\n")?;
        serve(&netns_path(c), WORKLOAD_PORT, "hello from the workload\n")?;
        Ok(this)
    }

    fn config(&self, args: &DemoArgs, policy: Policy) -> Result<Config> {
        let workload = Workload::new(WORKLOAD, self.cgroup.clone(), netns_path(&self.client), policy);
        let workload = workload.map_err(anyhow::Error::msg)?;
        Ok(Config::of(&args.places.pin_root, &args.places.run_dir, workload))
    }

    fn calls(&self) -> Vec<Call> {
        let out = |host: &str| Call {
            what: "workload -> server".to_owned(),
            url: format!("http://{host}:{SERVER_PORT}/"),
            command: self.curl(&self.client, true),
        };
        let into = |host: &str| Call {
            what: "server -> workload".to_owned(),
            url: format!("http://{host}:{WORKLOAD_PORT}/"),
            command: self.curl(&self.server, false),
        };
        vec![out(SERVER4), out(&format!("[{SERVER6}]")), into(CLIENT4), into(&format!("[{CLIENT6}]"))]
    }

    fn curl(&self, netns: &str, captured: bool) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", netns, "curl", "-sS", "--max-time", "10"]);
        if captured && let Err(e) = process::start_in(&mut command, &self.cgroup, None) {
            log::error!("{}: {e}", self.cgroup.display());
        }
        command
    }

    fn hint(&self, places: &Places) -> Result<()> {
        let args = format!("--pin-root {} --run-dir {}", places.pin_root.display(), places.run_dir.display());
        say("Captured until Ctrl-C. From another terminal:")?;
        say(format_args!("  shunt policy explain {args} --workload {WORKLOAD} --to {SERVER4}:443"))?;
        say(format_args!("  shunt maps {args}"))?;
        say(format_args!(
            "  sh -c 'echo $$ > {}/cgroup.procs; exec ip netns exec {} curl http://{SERVER4}:{SERVER_PORT}/'",
            self.cgroup.display(),
            self.client
        ))
    }
}

impl Call {
    fn make(mut self) -> Result<()> {
        let output = self.command.arg(&self.url).output().context("cannot run curl under `ip netns exec`")?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("{}: {}: {}", self.what, self.url, String::from_utf8_lossy(&output.stderr).trim());
        }
        say(format_args!("{}: {} answers: {}", self.what, self.url, said.trim()))?;
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in [&self.client, &self.server] {
            if netns_path(name).exists() {
                ip(&format!("netns del {name}")).unwrap_or_else(|e| log::warn!("{e}"));
            }
        }
        remove_cgroup(&self.cgroup);
    }
}

fn netns_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// A thread that answers every connection in a namespace with one text.
fn serve(netns: &Path, port: u16, text: &'static str) -> Result<()> {
    let netns = Netns::open(netns).with_context(|| netns.display().to_string())?;
    // Dual-stack: [::] takes IPv4 too.
    let listener = netns.enter(|| TcpListener::bind(("::", port)))?.context("cannot serve")?;
    std::thread::Builder::new().name("demo-server".to_owned()).spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            let _ = stream.read(&mut [0; 4096]);
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", text.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(text.as_bytes()));
        }
    })?;
    Ok(())
}

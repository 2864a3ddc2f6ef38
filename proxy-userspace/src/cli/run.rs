//! `shunt run`: the daemon.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use proxy_config::enrol::Workload;
use proxy_config::load::Loaded;
use tokio::signal::unix::{SignalKind, signal};

use super::envoy::{EnvoyArgs, Mode};
use super::{Places, check};
use crate::admin::View as _;
use crate::app::{self, Bound, Config, Interception, ProxyCgroup};

#[derive(Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    places: Places,
    /// A workload, as YAML: '{name: web, cgroup: /sys/fs/cgroup/web, netns: /run/netns/web, policy: "-o 5432"}'.
    /// Repeat for more.
    #[arg(long, value_name = "YAML")]
    workload: Vec<String>,
    /// A file of workloads (`workloads: [...]`), followed: a change takes effect at once.
    #[arg(long, value_name = "FILE")]
    enrolment: Option<PathBuf>,
    /// Policy flags for workloads that have none of their own, as one string.
    #[arg(long, value_name = "FLAGS")]
    policy: Option<String>,
    /// Shorthand for --policy "--outbound-traffic-policy ...": what happens to unknown destinations.
    #[arg(long, value_name = "ALLOW_ANY|REGISTRY_ONLY")]
    outbound_traffic_policy: Option<String>,
    /// The cgroup that the kernel knows the proxy by: `own` makes one, `self` is the one this process was
    /// started in (a container's), or a directory to move into.
    #[arg(long, value_name = "own|self|DIR", default_value = "own")]
    proxy_cgroup: String,
    /// Serve the admin API, read only, on this TCP address too. No workload may connect to it through the proxy.
    #[arg(long, value_name = "IP:PORT")]
    admin_address: Option<SocketAddr>,
    /// Where each connection's line goes, beside the configuration's own access logs: a file, or - for standard
    /// output. Default: standard output when workloads are captured, else nowhere.
    #[arg(long, value_name = "PATH")]
    access_log: Option<String>,
    /// Whether to capture workloads: `auto` does unless there is a configuration and no workload for it.
    #[arg(long, value_enum, default_value_t = Intercept::Auto)]
    intercept: Intercept,
    #[command(flatten)]
    envoy: EnvoyArgs,
    /// Debug logs of the kernel programs.
    #[arg(long)]
    bpf_log: bool,
    /// How long established connections of a workload that is taken out may go on, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    drain_time_s: u64,
    /// Do not let connections outlive what they were let in by. A connection is drained when a certificate that was
    /// shown in its handshake expires, its own or its peer's, on either side; and when the SDS secret that its peer
    /// was checked against is replaced. Drained: it goes on for --drain-time-s, to end by itself, and is then reset.
    /// Without the flag a rotation takes effect for new connections only.
    #[arg(long)]
    drain_on_cert_expiry: bool,
    /// What happens to captured workloads at exit: `keep` leaves them captured, and so closed, for the next
    /// daemon; `detach` lets them connect directly. Default: SIGTERM keeps, SIGINT (Ctrl-C) detaches.
    #[arg(long)]
    on_exit: Option<OnExit>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Intercept {
    Auto,
    On,
    Off,
}

#[derive(Clone, Copy, ValueEnum)]
enum OnExit {
    Keep,
    Detach,
}

pub(super) fn run(args: RunArgs) -> Result<ExitCode> {
    if let Some(path) = &args.envoy.log_path {
        crate::logging::append_to(path).with_context(|| format!("--log-path {}", path.display()))?;
    }
    if let Some(levels) = &args.envoy.component_log_level {
        crate::logging::set_components(levels).with_context(|| format!("--component-log-level {levels}"))?;
    }
    for (flag, why) in args.envoy.ignored.named() {
        log::info!("{flag} has no effect: {why}");
    }
    let bootstrap = if args.envoy.configured() { Some(check::load(&args.envoy, false)?) } else { None };
    if args.envoy.mode == Mode::Validate {
        return check::verdict(&args.envoy, bootstrap.as_ref());
    }
    let on_exit = args.on_exit;
    let address_path = args.envoy.admin_address_path.clone();
    let runtime = super::runtime()?;
    let config = config(args, bootstrap)?;
    runtime.block_on(async {
        let bound = app::start(config).await?;
        if let (Some(path), Some(address)) = (&address_path, bound.bootstrap_admin) {
            // The daemon runs: whoever waits for the file is told why it does not come.
            let written = std::fs::write(path, address.to_string());
            written.unwrap_or_else(|e| log::error!("--admin-address-path {}: {e}", path.display()));
        }
        announce(&bound).await;
        reopen_on_request(&bound)?;
        // `None`: by /quitquitquit, which ends at once, as Envoy's does.
        let asked = tokio::select! {
            asked = wait() => Some(asked?),
            () = bound.own.status.quit_asked() => None,
        };
        if asked.is_some() {
            tokio::select! {
                () = bound.own.status.drain() => {}
                // Whoever asks twice does not want to wait.
                _ = wait() => log::info!("asked again: not waiting for connections"),
                () = bound.own.status.quit_asked() => {}
            }
        }
        let keep = match on_exit {
            Some(OnExit::Keep) => true,
            Some(OnExit::Detach) => false,
            None => asked.unwrap_or(true),
        };
        tokio::task::spawn_blocking(move || bound.stop(keep)).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// SIGUSR1 opens the access logs anew, after a rotation.
fn reopen_on_request(bound: &Bound) -> Result<()> {
    let mut asked = signal(SignalKind::user_defined1())?;
    let status = bound.own.status.clone();
    bound.shared.tasks.spawn("reopen logs", async move {
        while asked.recv().await.is_some() {
            status.reopen_logs();
        }
    });
    Ok(())
}

impl RunArgs {
    /// A configuration without a workload is Envoy's own job: no privilege, nothing of the kernel's.
    fn intercepts(&self) -> bool {
        match self.intercept {
            Intercept::On => true,
            Intercept::Off => false,
            Intercept::Auto => {
                !self.envoy.configured() || !self.workload.is_empty() || self.enrolment.is_some()
            }
        }
    }
}

fn config(args: RunArgs, bootstrap: Option<Loaded>) -> Result<Config> {
    let mut defaults = args.policy.clone().unwrap_or_default();
    if let Some(policy) = &args.outbound_traffic_policy {
        defaults.push_str(&format!(" --outbound-traffic-policy {policy}"));
    }
    let intercept = args.intercepts();
    let access_log = args.access_log.or_else(|| intercept.then(|| "-".to_owned()));
    let proxy_cgroup = match args.proxy_cgroup.as_str() {
        "own" => ProxyCgroup::Own,
        "self" => ProxyCgroup::Current,
        path => ProxyCgroup::At(path.into()),
    };
    let interception = Interception {
        pin_root: args.places.pin_root,
        proxy_cgroup,
        workloads: workloads(&args.workload, &defaults)?,
        enrolment: args.enrolment,
        default_policy: defaults,
        kernel_log: args.bpf_log,
        host_outbound: false,
        dial_from_host: false,
    };
    Ok(Config {
        interception: intercept.then_some(interception),
        bootstrap,
        options: args.envoy.options(false),
        run_dir: args.places.run_dir,
        admin_address: args.admin_address,
        access_log,
        drain_time: Duration::from_secs(args.drain_time_s),
        drain_on_cert_expiry: args.drain_on_cert_expiry,
        workers: args.envoy.workers(),
        log_flush_interval: Duration::from_millis(args.envoy.file_flush_interval_msec),
        command_line: args.envoy.shown(args.drain_time_s),
    })
}

fn workloads(entries: &[String], defaults: &str) -> Result<Vec<Workload>> {
    let mut out: Vec<Workload> = Vec::new();
    let mut problems = Vec::new();
    for entry in entries {
        match Workload::parse_with(entry, defaults) {
            Ok(w) if out.iter().any(|o| o.name == w.name) => {
                problems.push(format!("  --workload '{entry}': the name {} is given twice", w.name));
            }
            Ok(w) => out.push(w),
            Err(all) => problems.extend(all.iter().map(|p| format!("  --workload '{entry}': {p}"))),
        }
    }
    if problems.is_empty() { Ok(out) } else { bail!("workloads:\n{}", problems.join("\n")) }
}

async fn announce(bound: &Bound) {
    for (name, address) in bound.own.status.addresses() {
        log::info!("listener {name} on {address}");
    }
    let Some(control) = bound.control() else { return };
    let all = control.list().await.unwrap_or_default();
    let ready = all.iter().filter(|w| w.status == crate::workload::Status::Ready).count();
    let admin = bound.admin_socket().unwrap_or(Path::new("-")).display();
    log::info!("running: {ready} of {} workloads captured; admin API at {admin}", all.len());
}

/// Waits for the signal to stop. True for the one that an orchestrator sends.
pub(super) async fn wait() -> Result<bool> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok(true),
        _ = interrupt.recv() => Ok(false),
    }
}

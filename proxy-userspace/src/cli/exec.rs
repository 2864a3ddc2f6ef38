//! `shunt exec`: one command as a workload of its own, with a proxy that lives as long as it does.
//!
//! It captures by the command's cgroup, outbound only, so it is safe in the host's network namespace: nothing
//! outside that cgroup is touched. The pins are its own too, so that a killed `shunt exec` leaves its command
//! refused, not direct; the next one, or `shunt cleanup`, sweeps what such a one left.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy_config::enrol::Workload;
use proxy_config::policy::Policy;
use tokio::signal::unix::{SignalKind, signal};

use super::place::{ip, remove_cgroup, remove_pins};
use crate::app::{self, Bound, Config};
use crate::cgroup;
use crate::ebpf;
use crate::sys::process;
use crate::workload::Status;

#[derive(Args)]
pub(super) struct ExecArgs {
    /// `host` (default): this network namespace. `new`: one of its own, joined to this one by a veth pair; its
    /// connections leave from here, and what arrives at it is captured too.
    #[arg(long, value_name = "host|new", default_value = "host", value_parser = ["host", "new"])]
    netns: String,
    /// Run the command as this user.
    #[arg(long, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Where each connection's line goes: a file, or - for standard output. Default: nowhere.
    #[arg(long, value_name = "PATH")]
    access_log: Option<String>,
    /// Debug logs of the kernel programs.
    #[arg(long)]
    bpf_log: bool,
    /// The command and its arguments, after `--`.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// As `env`, `nohup` and `timeout` have them.
const FAILED: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

pub(super) fn run(args: ExecArgs, flags: &[String]) -> Result<ExitCode> {
    let done = super::runtime()?.block_on(async {
        let place = Place::new(args.netns == "new")?;
        let result = in_place(&args, flags, &place).await;
        // Undone in any case: a failed start leaves nothing behind.
        place.remove();
        result
    });
    match done {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(e) => {
            log::error!("{e:#}");
            Ok(ExitCode::from(FAILED))
        }
    }
}

async fn in_place(args: &ExecArgs, flags: &[String], place: &Place) -> Result<u8> {
    let mut policy = super::parse_policy(flags)?.policy;
    if policy.envoy_port == Policy::default().envoy_port {
        // Another one may run beside this one in the same namespace.
        policy.envoy_port = 0;
    }
    let bound = app::start(place.config(args, policy)?).await?;
    let outcome = match captured(&bound).await {
        Ok(()) => run_command(args, place).await,
        Err(e) => Err(e),
    };
    tokio::task::spawn_blocking(move || bound.stop(false)).await?;
    outcome
}

async fn captured(bound: &Bound) -> Result<()> {
    let all = bound.control().context("no interception")?.list().await.context("the daemon has stopped")?;
    match all.first().map(|w| &w.status) {
        Some(Status::Ready) => Ok(()),
        Some(Status::Pending { reason }) => bail!("cannot capture: {reason}"),
        None => bail!("cannot capture: the workload is missing"),
    }
}

async fn run_command(args: &ExecArgs, place: &Place) -> Result<u8> {
    let program = &args.command[0];
    let mut command = Command::new(program);
    command.args(&args.command[1..]);
    process::start_in(&mut command, &place.app, place.netns_file()?.as_ref())?;
    if let Some(user) = &args.user {
        let (uid, gid) = parse_user(user)?;
        std::os::unix::process::CommandExt::gid(&mut command, gid);
        std::os::unix::process::CommandExt::uid(&mut command, uid);
    }
    let mut child = match tokio::process::Command::from(command).spawn() {
        Ok(child) => child,
        Err(e) => {
            log::error!("{}: {e}", program.to_string_lossy());
            let missing = e.kind() == std::io::ErrorKind::NotFound;
            return Ok(if missing { NOT_FOUND } else { NOT_EXECUTABLE });
        }
    };
    let pid = child.id().map(|id| Pid::from_raw(id as i32));
    let mut terminate = signal(SignalKind::terminate())?;
    // The terminal sends it to the command too: it decides, and we wait for it.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        let pass_on = tokio::select! {
            status = child.wait() => return Ok(code(status?)),
            _ = terminate.recv() => Some(Signal::SIGTERM),
            _ = hangup.recv() => Some(Signal::SIGHUP),
            _ = interrupt.recv() => None,
        };
        if let (Some(s), Some(pid)) = (pass_on, pid) {
            let _ = kill(pid, s);
        }
    }
}

fn code(status: ExitStatus) -> u8 {
    let signalled = status.signal().map(|s| 128 + s);
    status.code().or(signalled).and_then(|c| u8::try_from(c).ok()).unwrap_or(FAILED)
}

fn parse_user(text: &str) -> Result<(u32, u32)> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    let number = |s: &str| s.parse().with_context(|| format!("--user {text}: '{s}' is not a number"));
    Ok((number(uid)?, number(gid)?))
}

/// What one run has to itself: cgroups, pins, a run directory, maybe a network namespace.
struct Place {
    name: String,
    base: PathBuf,
    app: PathBuf,
    pin_root: PathBuf,
    run_dir: PathBuf,
    netns: Option<NewNetns>,
}

impl Place {
    fn new(own_netns: bool) -> Result<Self> {
        ebpf::check_kernel()?;
        let pid = std::process::id();
        let name = format!("exec-{pid}");
        let base = ebpf::cgroup2_mount()?.join("shunt").join(&name);
        let pins = Path::new("/sys/fs/bpf");
        sweep(&pins.join("shunt"));
        let place = Self {
            app: base.join("app"),
            base,
            pin_root: pins.join(format!("shunt-{name}")),
            run_dir: Path::new("/run/shunt").join(&name),
            netns: own_netns.then(|| NewNetns::make(pid)).transpose()?,
            name,
        };
        cgroup::make(&place.app)?;
        Ok(place)
    }

    fn netns_file(&self) -> Result<Option<File>> {
        let open = |n: &NewNetns| File::open(n.path()).with_context(|| n.path().display().to_string());
        self.netns.as_ref().map(open).transpose()
    }

    fn config(&self, args: &ExecArgs, policy: Policy) -> Result<Config> {
        let netns = self.netns.as_ref().map_or_else(|| "/proc/self/ns/net".into(), NewNetns::path);
        let workload = Workload::new(&self.name, self.app.clone(), netns, policy);
        let mut config = Config::of(&self.pin_root, &self.run_dir, workload.map_err(anyhow::Error::msg)?);
        config.access_log.clone_from(&args.access_log);
        if let Some(interception) = &mut config.interception {
            interception.kernel_log = args.bpf_log;
            interception.host_outbound = self.netns.is_none();
            interception.dial_from_host = self.netns.is_some();
        }
        Ok(config)
    }

    /// What the command left running is ended with it: without the proxy it could only fail.
    fn remove(&self) {
        let _ = std::fs::write(self.app.join("cgroup.kill"), "1");
        remove_cgroup(&self.base);
        let _ = std::fs::remove_dir_all(&self.run_dir);
        remove_pins(&self.pin_root);
        if let Some(netns) = &self.netns {
            netns.remove();
        }
    }
}

/// Removes what runs that were killed have left: their command is gone too, or this leaves it alone.
pub(super) fn sweep(pin_root: &Path) {
    let Some(dir) = pin_root.parent() else { return };
    let Ok(mount) = ebpf::cgroup2_mount() else { return };
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix("shunt-exec-").and_then(|p| p.parse::<u32>().ok()) else {
            continue;
        };
        let base = mount.join(format!("shunt/exec-{pid}"));
        let running = Path::new(&format!("/proc/{pid}")).exists();
        if running || !cgroup::all_processes(&base).is_empty() {
            continue;
        }
        log::info!("removing what a killed `shunt exec` (process {pid}) has left");
        remove_pins(&entry.path());
        let _ = cgroup::remove(&base);
        let _ = std::fs::remove_dir_all(format!("/run/shunt/exec-{pid}"));
        NewNetns { pid }.remove();
    }
}

/// A namespace of the command's own: a veth pair with 100.64.0.0/10 addresses (RFC 6598, which no network of
/// the host's should use) and a default route over it.
struct NewNetns {
    pid: u32,
}

impl NewNetns {
    fn make(pid: u32) -> Result<Self> {
        let this = Self { pid };
        let (name, outer) = (this.name(), this.outer());
        let (host, own) = this.addresses();
        let steps = [
            format!("netns add {name}"),
            format!("link add {outer} type veth peer name eth0 netns {name}"),
            format!("addr add {host}/30 dev {outer}"),
            format!("link set {outer} up"),
            format!("-n {name} addr add {own}/30 dev eth0"),
            format!("-n {name} link set lo up"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} route add default via {host}"),
        ];
        for step in &steps {
            if let Err(e) = ip(step) {
                this.remove();
                return Err(e);
            }
        }
        Ok(this)
    }

    fn name(&self) -> String {
        format!("shunt-exec-{}", self.pid)
    }

    fn outer(&self) -> String {
        format!("shunt{}", self.pid)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(self.name())
    }

    /// One /30 of the range for each pid.
    fn addresses(&self) -> (std::net::Ipv4Addr, std::net::Ipv4Addr) {
        let base = 0x6440_0000 + (self.pid % (1 << 20)) * 4;
        ((base + 1).into(), (base + 2).into())
    }

    fn remove(&self) {
        if self.path().exists() {
            // The pair goes with its inner end.
            let _ = ip(&format!("netns del {}", self.name()));
            let _ = ip(&format!("link del {}", self.outer()));
        }
    }
}

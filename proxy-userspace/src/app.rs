//! Builds everything and hands back what is bound: the daemon, and tests, start here.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use proxy_config::enrol::Workload;
use tokio::runtime::Handle;

use crate::control::{self, Control};
use crate::ebpf::{self, Kernel, Pins};
use crate::net::{Options, Shared};
use crate::telemetry::stats::Stats;
use crate::telemetry::{AccessLog, access_log};
use crate::workload::{Origin, Registry, Settings, StateFile};
use crate::admin::{self, Admin};
use crate::{cgroup, enrolment};

/// Which cgroup the daemon, as the proxy, is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProxyCgroup {
    /// One of its own, made below `shunt` and removed at exit.
    Own,
    /// The one that it was started in: a container's, which must not hold a workload.
    Current,
    /// An existing one, to move into.
    At(PathBuf),
}

/// How the daemon is started.
pub struct Config {
    pub pin_root: PathBuf,
    /// Holds `admin.sock` and the state file; mode 0700.
    pub run_dir: PathBuf,
    pub proxy_cgroup: ProxyCgroup,
    pub workloads: Vec<Workload>,
    pub enrolment: Option<PathBuf>,
    /// Flags of entries of the file that have no policy.
    pub default_policy: String,
    pub admin_address: Option<SocketAddr>,
    /// A path, `-` for standard output, or none.
    pub access_log: Option<String>,
    /// Debug logs of the kernel programs.
    pub kernel_log: bool,
    pub drain_time: Duration,
    pub host_outbound: bool,
    pub dial_from_host: bool,
}

impl Config {
    /// A daemon for one workload that lasts as long as a command: no log, no waiting at its end.
    pub fn of(pin_root: &Path, run_dir: &Path, workload: Workload) -> Self {
        Self {
            pin_root: pin_root.to_owned(),
            run_dir: run_dir.to_owned(),
            proxy_cgroup: ProxyCgroup::Own,
            workloads: vec![workload],
            enrolment: None,
            default_policy: String::new(),
            admin_address: None,
            access_log: None,
            kernel_log: false,
            drain_time: Duration::ZERO,
            host_outbound: false,
            dial_from_host: false,
        }
    }
}

/// The running daemon.
pub struct Bound {
    pub control: Control,
    pub shared: Arc<Shared>,
    pub admin_socket: PathBuf,
    pub admin_address: Option<SocketAddr>,
    _admin: Admin,
    pins: Pins,
    thread: std::thread::JoinHandle<()>,
    home: Home,
}

/// The last connections that are kept for a table.
const RING: usize = 256;

/// Starts the daemon. Everything that can fail at the start fails here.
pub async fn start(config: Config) -> Result<Bound> {
    ebpf::check_kernel()?;
    raise_open_files();
    let cgroup2 = ebpf::cgroup2_mount()?;
    let state = StateFile::open(&config.run_dir)?;
    let pins = Pins::open(&config.pin_root)?;
    let home = Home::enter(&config.proxy_cgroup, &cgroup2)?;
    let open = || -> Result<Kernel, ebpf::Error> {
        let kernel = Kernel::open(pins.clone(), config.kernel_log)?;
        kernel.attach_proxy(&home.cgroup)?;
        Ok(kernel)
    };
    let mut kernel = state.alone(open)??;
    if let Some(object) = kernel.take_log_source() {
        crate::kernel_log::drain(object)?;
    }
    let shared = shared(config.access_log.as_deref())?;
    let settings = Settings {
        proxy_cgroup: cgroup::id(&home.cgroup)?,
        admin: config.admin_address.into_iter().collect(),
        drain_time: config.drain_time,
        host_outbound: config.host_outbound,
        dial_from_host: config.dial_from_host,
    };
    let registry = Registry::new(kernel, state, settings, shared.clone(), Handle::current())?;
    let (control, thread) = control::start(registry)?;
    control.replace(Origin::CommandLine, config.workloads);
    if let Some(file) = &config.enrolment {
        enrolment::follow(file, &config.default_policy, &control)?;
    }
    if let Some(result) = control.drop_unwanted().await {
        result?;
    }
    let view = Arc::new(admin::Plain::new());
    let context = admin::Context { control: control.clone(), shared: shared.clone(), cgroup2, view };
    let admin = Admin::start(Arc::new(context)).context("admin thread")?;
    let admin_socket = config.run_dir.join("admin.sock");
    admin.unix(&admin_socket).with_context(|| format!("admin socket {}", admin_socket.display()))?;
    let admin_address = match config.admin_address {
        Some(address) => {
            let bound = admin.tcp(address, admin::Access::ReadOnly);
            Some(bound.with_context(|| format!("admin address {address}"))?)
        }
        None => None,
    };
    Ok(Bound { control, shared, admin_socket, admin_address, _admin: admin, pins, thread, home })
}

impl Bound {
    /// Stops. `keep` leaves the workloads captured, and so closed, for the next daemon; else nothing of ours is
    /// left in the kernel, unless `shunt attach` put it there.
    pub fn stop(self, keep: bool) {
        self.control.stop(keep);
        if self.thread.join().is_err() {
            log::error!("the control thread has panicked");
        }
        let _ = std::fs::remove_file(&self.admin_socket);
        self.shared.access_log.flush(Duration::from_secs(2));
        if !keep && self.pins.workloads().is_empty() {
            self.pins.remove_all().unwrap_or_else(|e| log::error!("{e}"));
        }
        self.home.leave();
    }
}

fn shared(access_log: Option<&str>) -> Result<Arc<Shared>> {
    let stats = Arc::new(Stats::default());
    let sink = match access_log {
        Some(path) => {
            let sink = access_log::open(path);
            Some(sink.with_context(|| format!("access log {path}"))?)
        }
        None => None,
    };
    let log = AccessLog::start(sink, RING, &stats)?;
    Ok(Arc::new(Shared::new(stats, log, Options::default())))
}

/// Two descriptors per connection, and whatever the hard limit allows.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(e) = raised {
        log::warn!("cannot raise the limit of open files: {e}");
    }
}

/// The cgroup that this process lives in while it is the proxy.
struct Home {
    cgroup: PathBuf,
    /// Where it came from, if it moved.
    before: Option<PathBuf>,
    /// Made by us, so removed by us.
    made: bool,
}

impl Home {
    fn enter(choice: &ProxyCgroup, mount: &Path) -> Result<Self> {
        let pid = std::process::id() as i32;
        let here = cgroup::of_process(mount, pid).context("cannot read this process's cgroup")?;
        let (cgroup, made) = match choice {
            ProxyCgroup::Current => return Ok(Self { cgroup: here, before: None, made: false }),
            ProxyCgroup::At(path) => (path.clone(), false),
            ProxyCgroup::Own => {
                let base = mount.join("shunt");
                sweep(&base);
                (base.join(format!("proxy-{pid}")), true)
            }
        };
        if made {
            cgroup::make(&cgroup)?;
        }
        cgroup::join(&cgroup)?;
        Ok(Self { cgroup, before: Some(here), made })
    }

    fn leave(self) {
        let Some(before) = self.before else { return };
        let left = cgroup::join(&before);
        if self.made {
            let removed = left.and_then(|()| cgroup::remove(&self.cgroup));
            removed.unwrap_or_else(|e| log::warn!("{e}"));
            // The parent is shared; the last one removes it.
            let _ = self.cgroup.parent().map(std::fs::remove_dir);
        }
    }
}

/// Removes the cgroups of daemons that were killed. One that is in use cannot be removed.
fn sweep(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("proxy-") {
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

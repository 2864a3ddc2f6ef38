//! Builds everything and hands back what is bound: the daemon, and tests, start here.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context as _, Result};
use proxy_config::enrol::Workload;
use proxy_config::load::{Loaded, Options};
use tokio::runtime::Handle;

use crate::admin::{self, Admin};
use crate::control::{self, Control};
use crate::ebpf::{self, Kernel, Pins};
use crate::net::{self, Place, Shared};
use crate::secret::Expiry;
use crate::sidecar::{Common, Sidecar, Sidecars};
use crate::task::Workers;
use crate::telemetry::AccessLog;
use crate::telemetry::access_log;
use crate::workload::{Origin, Registry, Settings, StateFile};
use crate::world::bind;
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
    /// The kernel half; without it, the proxy alone.
    pub interception: Option<Interception>,
    /// Envoy's configuration.
    pub bootstrap: Option<Loaded>,
    /// How workloads' bootstraps are read.
    pub options: Options,
    /// Holds `admin.sock` and the state file; mode 0700. Only with interception.
    pub run_dir: PathBuf,
    pub admin_address: Option<SocketAddr>,
    /// One line of JSON per connection: a path, `-` for standard output, or none.
    pub access_log: Option<String>,
    /// How long connections may go on when their listener is let go: when a workload is taken out, and when the
    /// daemon stops.
    pub drain_time: Duration,
    /// Drain connections whose certificates have expired, or whose peer was judged by what has been replaced.
    pub drain_on_cert_expiry: bool,
    /// Threads that carry connections; a listener with `reuse_port` has a socket for each.
    pub workers: usize,
    /// How long lines of the configuration's access logs may gather.
    pub log_flush_interval: Duration,
    /// For `/server_info`.
    pub command_line: serde_json::Value,
}

/// What the kernel half captures, and how.
pub struct Interception {
    pub pin_root: PathBuf,
    pub proxy_cgroup: ProxyCgroup,
    pub workloads: Vec<Workload>,
    pub enrolment: Option<PathBuf>,
    /// Flags of entries of the file that have no policy.
    pub default_policy: String,
    /// Debug logs of the kernel programs.
    pub kernel_log: bool,
    pub host_outbound: bool,
    pub dial_from_host: bool,
}

impl Config {
    /// A daemon for one workload that lasts as long as a command: no log, no waiting at its end.
    pub fn of(pin_root: &Path, run_dir: &Path, workload: Workload) -> Self {
        let interception = Interception {
            pin_root: pin_root.to_owned(),
            proxy_cgroup: ProxyCgroup::Own,
            workloads: vec![workload],
            enrolment: None,
            default_policy: String::new(),
            kernel_log: false,
            host_outbound: false,
            dial_from_host: false,
        };
        Self {
            interception: Some(interception),
            bootstrap: None,
            options: Options::default(),
            run_dir: run_dir.to_owned(),
            admin_address: None,
            access_log: None,
            drain_time: Duration::ZERO,
            drain_on_cert_expiry: false,
            workers: available_parallelism().map_or(1, usize::from),
            log_flush_interval: Duration::from_secs(10),
            command_line: serde_json::json!({}),
        }
    }
}

/// The running daemon.
pub struct Bound {
    pub shared: Arc<Shared>,
    /// The daemon's own configuration.
    pub own: Arc<Sidecar>,
    /// Of `--admin-address`.
    pub admin_address: Option<SocketAddr>,
    /// Of the bootstrap's admin.
    pub bootstrap_admin: Option<SocketAddr>,
    half: Option<KernelHalf>,
    _admin: Admin,
    _workers: Workers,
}

/// The kernel half, running.
struct KernelHalf {
    control: Control,
    admin_socket: PathBuf,
    pins: Pins,
    thread: std::thread::JoinHandle<()>,
    home: Home,
}

/// The last connections that are kept for a table.
const RING: usize = 256;

/// Starts the daemon. Everything that can fail at the start fails here.
pub async fn start(mut config: Config) -> Result<Bound> {
    raise_open_files();
    let admin_model = config.bootstrap.as_ref().and_then(|loaded| loaded.bootstrap.admin.clone());
    // Kept once, by the status.
    let loaded = config.bootstrap.take();
    let workers = Workers::start(config.workers).context("cannot start the workers")?;
    let common = Common { crew: workers.crew(), ..common(&config) };
    let (shared, own) = build(&config, loaded, &common)?;
    if let Some(world) = &own.world {
        world.bind(Arc::new(bind::Own { workers: common.crew.len() })).map_err(all)?;
    }
    // The admin's addresses first: where a port was left to the kernel, only now it is known what no connection
    // may be carried to.
    let context = Arc::new(admin::Context {
        control: OnceLock::new(),
        own: admin::Subject::of(&own),
        sidecars: Arc::default(),
        tasks: shared.tasks.clone(),
        cgroup2: ebpf::cgroup2_mount().unwrap_or_default(),
    });
    let admin = Admin::start(context.clone()).context("admin thread")?;
    let read_only = |address| {
        admin.tcp(address, admin::Access::ReadOnly).with_context(|| format!("admin address {address}"))
    };
    let admin_address = config.admin_address.map(read_only).transpose()?;
    let bootstrap_admin = match &admin_model {
        Some(model) => admin.bootstrap(model).context("the bootstrap's admin address")?,
        None => None,
    };
    let forbidden: Vec<SocketAddr> = admin_address.into_iter().chain(bootstrap_admin).collect();
    let half = match config.interception {
        Some(wanted) => {
            let ours = (&shared, &own, &context.sidecars);
            let half = intercept(wanted, &config.run_dir, common, &forbidden, ours).await?;
            // Nobody else sets it.
            let _ = context.control.set(half.control.clone());
            let socket = &half.admin_socket;
            admin.unix(socket).with_context(|| format!("admin socket {}", socket.display()))?;
            Some(half)
        }
        None => None,
    };
    serve(&shared, forbidden, &own);
    Ok(Bound { shared, own, admin_address, bootstrap_admin, half, _admin: admin, _workers: workers })
}

fn all<E: std::fmt::Display>(errors: Vec<E>) -> anyhow::Error {
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    anyhow::anyhow!("{}", lines.join("\n"))
}

/// Accepts once every cluster knows its endpoints and nothing is waited for, as Envoy's workers do.
fn serve(shared: &Arc<Shared>, admin: Vec<SocketAddr>, own: &Arc<Sidecar>) {
    let Some(world) = &own.world else {
        own.status.set_warm();
        return;
    };
    let place = Arc::new(Place::own(admin, world.live.clone(), shared.clone()));
    let own = own.clone();
    shared.tasks.spawn("listeners", async move {
        own.warmed("").await;
        own.accept(place);
        // Loading leaves many times as much behind as it made.
        crate::sys::process::give_back_memory();
        log::info!("all clusters are warm: connections are accepted");
    });
}

async fn intercept(
    wanted: Interception,
    run_dir: &Path,
    common: Common,
    admin: &[SocketAddr],
    (shared, own, sidecars): (&Arc<Shared>, &Arc<Sidecar>, &Arc<Sidecars>),
) -> Result<KernelHalf> {
    ebpf::check_kernel()?;
    let cgroup2 = ebpf::cgroup2_mount()?;
    let state = StateFile::open(run_dir)?;
    let pins = Pins::open(&wanted.pin_root)?;
    let home = Home::enter(&wanted.proxy_cgroup, &cgroup2)?;
    let open = || -> Result<Kernel, ebpf::Error> {
        let kernel = Kernel::open(pins.clone(), wanted.kernel_log)?;
        kernel.attach_proxy(&home.cgroup)?;
        Ok(kernel)
    };
    let mut kernel = state.alone(open)??;
    if let Some(object) = kernel.take_log_source() {
        crate::kernel_log::drain(object)?;
    }
    let settings = Settings {
        proxy_cgroup: cgroup::id(&home.cgroup)?,
        admin: admin.to_vec(),
        host_outbound: wanted.host_outbound,
        dial_from_host: wanted.dial_from_host,
        live: own.world.as_ref().map(|world| world.live.clone()),
        common,
        sidecars: sidecars.clone(),
    };
    let (shared, runtime) = (shared.clone(), Handle::current());
    let registry = |wake| Registry::new(kernel, state, settings, shared, (runtime, wake));
    let (control, thread) = control::start(registry)?;
    control.replace(Origin::CommandLine, wanted.workloads);
    if let Some(file) = &wanted.enrolment {
        enrolment::follow(file, &wanted.default_policy, &control)?;
    }
    if let Some(result) = control.drop_unwanted().await {
        result?;
    }
    let admin_socket = run_dir.join("admin.sock");
    Ok(KernelHalf { control, admin_socket, pins, thread, home })
}

impl Bound {
    /// The captured workloads' control; none without interception.
    pub fn control(&self) -> Option<&Control> {
        self.half.as_ref().map(|half| &half.control)
    }

    pub fn admin_socket(&self) -> Option<&Path> {
        self.half.as_ref().map(|half| half.admin_socket.as_path())
    }

    /// Stops. `keep` leaves the workloads captured, and so closed, for the next daemon; else nothing of ours is
    /// left in the kernel, unless `shunt attach` put it there.
    pub fn stop(self, keep: bool) {
        if let Some(half) = self.half {
            half.stop(keep, &self.shared);
        }
        self.shared.access_log.flush(Duration::from_secs(2));
        self.own.flush(Duration::from_secs(2));
    }
}

impl KernelHalf {
    fn stop(self, keep: bool, shared: &Shared) {
        self.control.stop(keep);
        if self.thread.join().is_err() {
            log::error!("the control thread has panicked");
        }
        let _ = std::fs::remove_file(&self.admin_socket);
        shared.access_log.flush(Duration::from_secs(2));
        if !keep && self.pins.workloads().is_empty() {
            self.pins.remove_all().unwrap_or_else(|e| log::error!("{e}"));
        }
        self.home.leave();
    }
}

fn common(config: &Config) -> Common {
    Common {
        options: config.options,
        workers: config.workers,
        drain_time: config.drain_time,
        log_flush_interval: config.log_flush_interval,
        command_line: config.command_line.clone(),
        ..Common::default()
    }
}

fn build(config: &Config, loaded: Option<Loaded>, common: &Common) -> Result<(Arc<Shared>, Arc<Sidecar>)> {
    let own = Sidecar::new(loaded, Arc::new(net::HostDial), common)?;
    let sink = match &config.access_log {
        Some(path) => {
            let sink = access_log::open(path);
            Some(sink.with_context(|| format!("access log {path}"))?)
        }
        None => None,
    };
    let log = AccessLog::start(sink, RING, own.stats())?;
    let mut shared = Shared::new(log, net::Options::default(), config.interception.is_some(), &own.parts())?;
    shared.expiry = config.drain_on_cert_expiry.then(|| Expiry {
        drain_time: config.drain_time,
        tasks: shared.tasks.clone(),
        stats: shared.own.clone(),
    });
    Ok((Arc::new(shared), Arc::new(own)))
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

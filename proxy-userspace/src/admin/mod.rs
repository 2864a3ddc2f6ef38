//! The admin API: HTTP/1.1 on a unix socket, on the address of the bootstrap, and read only where asked.
//!
//! It has a thread of its own, so that no answer waits for the data path nor the data path for an answer. Answers
//! are made while they are read. What they tell of the rest of the daemon comes through [`View`].
//!
//! The unix socket takes every change, but only from root outside every enrolled workload: a workload that runs as
//! root in the same mount namespace must not switch its own capture off. The bootstrap's address takes what
//! Envoy's takes; workloads are no business of it.
//!
//! What a workload's own Envoy would answer is below `/workloads/NAME/`, for those that bring a bootstrap: nothing
//! listens for it inside the workload.

mod body;
mod certs;
mod client;
mod clusters;
mod config_dump;
mod help;
mod matching;
mod query;
mod routes;
mod server;
mod stats;
#[cfg(test)]
mod testing;
mod updates;
pub mod view;
mod workloads;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proxy_config::model::{self, StringMatcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::mpsc;

pub use client::{Daemon, Reply, request};
pub use server::Memory;
pub use view::View;

use crate::cgroup;
use crate::control::Control;
use crate::sidecar::{Sidecar, Sidecars};
use crate::task::Tasks;
use crate::telemetry::stats::Stats;
use crate::transport::tap::Taps;

/// What the handlers answer from.
pub struct Context {
    /// Of the captured workloads; none without interception, and until that has started.
    pub control: OnceLock<Control>,
    /// The daemon's own configuration.
    pub own: Subject,
    /// Those of workloads.
    pub sidecars: Arc<Sidecars>,
    pub tasks: Tasks,
    /// The cgroup v2 mount, to tell which cgroup a client is in.
    pub cgroup2: PathBuf,
}

/// Whose state a request is about: a configuration's, as it runs.
#[derive(Clone)]
pub struct Subject {
    pub view: Arc<dyn View>,
    pub stats: Arc<Stats>,
    pub taps: Arc<Taps>,
}

impl Subject {
    pub fn of(sidecar: &Sidecar) -> Self {
        let env = &sidecar.env;
        Self { view: sidecar.status.clone(), stats: env.stats.clone(), taps: env.transport.taps.clone() }
    }
}

/// What a client may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    /// Envoy's mutations.
    Envoy,
    /// These, and workloads.
    Workloads,
}

/// The admin's thread. It stops with this.
pub struct Admin {
    listeners: mpsc::UnboundedSender<(Socket, Terms)>,
}

enum Socket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// What holds for the clients of one socket.
#[derive(Clone)]
struct Terms {
    access: Access,
    /// Only root outside of workloads.
    checked: bool,
    /// Paths that may be asked for; none: all.
    allow: Arc<[StringMatcher]>,
}

impl Admin {
    /// Starts the thread; sockets are added after.
    pub fn start(context: Arc<Context>) -> io::Result<Self> {
        let (listeners, mut added) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serve = move || {
            runtime.block_on(async {
                while let Some((socket, terms)) = added.recv().await {
                    let accepting = accept(socket, terms, context.clone());
                    context.tasks.spawn("admin", accepting);
                }
            });
            // An answer that nobody reads must not hold the daemon up.
            runtime.shutdown_background();
        };
        std::thread::Builder::new().name("admin".to_owned()).spawn(serve)?;
        Ok(Self { listeners })
    }

    /// Serves the daemon's own socket at `path`, mode 0600.
    pub fn unix(&self, path: &Path) -> io::Result<()> {
        let listener = bind_unix(path, 0o600)?;
        let terms = Terms { access: Access::Workloads, checked: true, allow: Arc::default() };
        self.add(Socket::Unix(listener), terms)
    }

    /// Serves a TCP address; says what it is bound to.
    pub fn tcp(&self, address: SocketAddr, access: Access) -> io::Result<SocketAddr> {
        self.tcp_with(address, Terms { access, checked: false, allow: Arc::default() })
    }

    /// Serves the address of a bootstrap with all that Envoy's takes; says what it is bound to, if it is TCP.
    pub fn bootstrap(&self, admin: &model::bootstrap::Admin) -> io::Result<Option<SocketAddr>> {
        let terms = Terms { access: Access::Envoy, checked: false, allow: admin.allow_paths.clone().into() };
        match &admin.address {
            model::Address::Ip(address) => self.tcp_with(*address, terms).map(Some),
            model::Address::Pipe { path, mode } => {
                let listener = bind_unix(path, if *mode == 0 { 0o600 } else { *mode })?;
                self.add(Socket::Unix(listener), terms).map(|()| None)
            }
            model::Address::Host(host) => {
                let text = format!("admin address {}: not an IP address", host.host);
                Err(io::Error::new(io::ErrorKind::InvalidInput, text))
            }
        }
    }

    fn tcp_with(&self, address: SocketAddr, terms: Terms) -> io::Result<SocketAddr> {
        let listener = std::net::TcpListener::bind(address)?;
        let bound = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        self.add(Socket::Tcp(listener), terms)?;
        Ok(bound)
    }

    fn add(&self, socket: Socket, terms: Terms) -> io::Result<()> {
        self.listeners.send((socket, terms)).map_err(|_| io::Error::other("the admin thread has stopped"))
    }
}

fn bind_unix(path: &Path, mode: u32) -> io::Result<std::os::unix::net::UnixListener> {
    // A socket file that nobody serves any more is in the way; one that is served is another daemon's.
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            let text = format!("{}: another daemon serves this socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        std::fs::remove_file(path)?;
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn accept(socket: Socket, terms: Terms, context: Arc<Context>) {
    match socket {
        Socket::Tcp(listener) => match TcpListener::from_std(listener) {
            Ok(listener) => tcp_clients(&listener, &terms, &context).await,
            Err(error) => log::error!("admin: {error}"),
        },
        Socket::Unix(listener) => match UnixListener::from_std(listener) {
            Ok(listener) => unix_clients(&listener, &terms, &context).await,
            Err(error) => log::error!("admin: {error}"),
        },
    }
}

async fn tcp_clients(listener: &TcpListener, terms: &Terms, context: &Arc<Context>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let served = serve(stream, context.clone(), terms.clone());
                context.tasks.spawn("admin connection", served);
            }
            Err(error) => pause(&error).await,
        }
    }
}

async fn unix_clients(listener: &UnixListener, terms: &Terms, context: &Arc<Context>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let served = unix_client(stream, context.clone(), terms.clone());
                context.tasks.spawn("admin connection", served);
            }
            Err(error) => pause(&error).await,
        }
    }
}

/// Out of descriptors, most likely: some will come back.
async fn pause(error: &io::Error) {
    log::error!("admin: accept: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn unix_client(stream: UnixStream, context: Arc<Context>, terms: Terms) {
    let refused = if terms.checked { refusal(&stream, &context).await } else { None };
    match refused {
        None => serve(stream, context, terms).await,
        Some(why) => log::warn!("admin: refused: {why}"),
    }
}

/// Why a client on the unix socket is not let in. What cannot be told is a reason too.
async fn refusal(stream: &UnixStream, context: &Context) -> Option<String> {
    let Ok(peer) = stream.peer_cred() else { return Some("its credentials cannot be read".to_owned()) };
    if peer.uid() != 0 {
        return Some(format!("uid {}", peer.uid()));
    }
    // Without interception there is no workload to be in.
    let control = context.control.get()?;
    let Some(workloads) = control.list().await else { return Some("stopping".to_owned()) };
    let Some(dir) = peer.pid().and_then(|pid| cgroup::of_process(&context.cgroup2, pid)) else {
        return Some("its cgroup cannot be read".to_owned());
    };
    if dir.components().any(|c| c == std::path::Component::ParentDir) {
        return Some(format!("its cgroup {} is outside this cgroup namespace", dir.display()));
    }
    let inside = workloads.iter().find(|w| dir.starts_with(&w.cgroup))?;
    Some(format!("process {} is in workload {}", peer.pid().unwrap_or(0), inside.name))
}

async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    context: Arc<Context>,
    terms: Terms,
) {
    let answer = move |request| routes::answer(request, context.clone(), terms.access, terms.allow.clone());
    let service = service_fn(answer);
    if let Err(e) = http1::Builder::new().serve_connection(TokioIo::new(io), service).await {
        log::debug!("admin: {e}");
    }
}

#[cfg(test)]
mod tests;

//! The admin API: HTTP/1.1 on a unix socket, and on a TCP address where asked.
//!
//! The unix socket is the only one that changes anything, and only for root outside every enrolled workload:
//! a workload that runs as root in the same mount namespace must not switch its own capture off.

mod client;
mod routes;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};

pub use client::{Reply, request};

use crate::cgroup;
use crate::control::Control;
use crate::net::Shared;

/// What the handlers answer from.
pub struct Context {
    pub control: Control,
    pub shared: Arc<Shared>,
    /// The cgroup v2 mount, to tell which cgroup a client is in.
    pub cgroup2: PathBuf,
}

/// Whether a client may change things.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Full,
    ReadOnly,
}

/// Serves the unix socket at `path`, mode 0600.
pub async fn serve_unix(path: &Path, context: Arc<Context>) -> std::io::Result<()> {
    // A socket file that nobody serves any more is in the way; one that is served is another daemon's.
    if path.exists() {
        if UnixStream::connect(path).await.is_ok() {
            let text = format!("{}: another daemon serves this socket", path.display());
            return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, text));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let tasks = context.clone();
    tasks.shared.tasks.spawn("admin", async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let context = context.clone();
                    let tasks = context.clone();
                    tasks.shared.tasks.spawn("admin connection", unix_client(stream, context));
                }
                Err(e) => {
                    log::error!("admin: accept: {e}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(())
}

async fn unix_client(stream: UnixStream, context: Arc<Context>) {
    match refusal(&stream, &context).await {
        None => serve(stream, context, Access::Full).await,
        Some(why) => log::warn!("admin: refused: {why}"),
    }
}

/// Why a client on the unix socket is not let in. What cannot be told is a reason too.
async fn refusal(stream: &UnixStream, context: &Context) -> Option<String> {
    let Ok(peer) = stream.peer_cred() else { return Some("its credentials cannot be read".to_owned()) };
    if peer.uid() != 0 {
        return Some(format!("uid {}", peer.uid()));
    }
    let Some(workloads) = context.control.list().await else { return Some("stopping".to_owned()) };
    let Some(dir) = peer.pid().and_then(|pid| cgroup::of_process(&context.cgroup2, pid)) else {
        return Some("its cgroup cannot be read".to_owned());
    };
    if dir.components().any(|c| c == std::path::Component::ParentDir) {
        return Some(format!("its cgroup {} is outside this cgroup namespace", dir.display()));
    }
    let inside = workloads.iter().find(|w| dir.starts_with(&w.cgroup))?;
    Some(format!("process {} is in workload {}", peer.pid().unwrap_or(0), inside.name))
}

/// Serves a TCP address, read only: anybody who reaches it may read.
pub async fn serve_tcp(address: SocketAddr, context: Arc<Context>) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let tasks = context.clone();
    tasks.shared.tasks.spawn("admin", async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let served = serve(stream, context.clone(), Access::ReadOnly);
                    context.shared.tasks.spawn("admin connection", served);
                }
                Err(e) => {
                    log::error!("admin: accept: {e}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(bound)
}

async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    context: Arc<Context>,
    access: Access,
) {
    let service = service_fn(move |request| routes::answer(request, context.clone(), access));
    if let Err(e) = http1::Builder::new().serve_connection(TokioIo::new(io), service).await {
        log::debug!("admin: {e}");
    }
}

//! Workloads: what is enrolled, and what that means in the kernel and in sockets.
//!
//! A [`Workload`](proxy_config::enrol::Workload) comes in as configuration. [`install`] puts it into the kernel,
//! for the daemon and for `shunt attach` alike; [`Registry`] adds the daemon's listeners and keeps all of it in
//! step with the world; [`StateFile`] remembers across processes.

mod install;
mod listeners;
mod registry;
mod state;

pub use install::{Installed, adopt_stock_listeners, environment, install};
pub use listeners::Dialer;
pub(crate) use registry::respecify;
pub use registry::{Configuration, ConfigurationState, Origin, Registry, Settings, Status, Summary, Wake};
pub use state::{Owner, Record, State, StateFile};

use std::io;
use std::path::PathBuf;

use crate::world::bind;

/// Why a workload cannot be enrolled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Kernel(#[from] crate::ebpf::Error),
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::Error),
    #[error("network namespace {path}: {source}", path = path.display())]
    Netns { path: PathBuf, source: io::Error },
    #[error(
        "{path} is the host's own network namespace: capturing it would capture the node. \
         Use `shunt exec` to capture one command there",
        path = .0.display()
    )]
    HostNetns(PathBuf),
    #[error("the network namespace {path} is enrolled already, as workload {other}", path = path.display())]
    Taken { path: PathBuf, other: String },
    #[error("cannot listen on {address} in the workload's network namespace: {source}")]
    Listen { address: std::net::SocketAddr, source: io::Error },
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Bind(Vec<bind::BindError>),
    #[error("state file {path}: {source}", path = path.display())]
    State { path: PathBuf, source: io::Error },
    #[error("no workload {0} is enrolled")]
    Unknown(String),
    #[error("workload {0} is enrolled by `shunt attach`; use `shunt detach`")]
    Attached(String),
}

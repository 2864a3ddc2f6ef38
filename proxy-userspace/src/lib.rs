//! The daemon `shunt`, as a library.
//!
//! [`app`] builds everything. [`control`] owns the workloads ([`workload`]) and, through [`ebpf`], the kernel
//! half. The path of a connection: [`net::accept::run`] -> [`net::conn::serve`] -> `network::tcp_proxy::run` ->
//! [`net::copy::relay`] -> [`telemetry::ConnRecord::finish`]. [`admin`] answers the person on call, [`cli`] is
//! the command line.
#![deny(unsafe_code)]
// Futures of the data path hold each other ten deep: whether they are `Send` is asked that often.
#![recursion_limit = "256"]

pub mod admin;
pub mod app;
pub mod cgroup;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod control;
pub mod drain;
pub mod ebpf;
mod enrolment;
pub mod http;
pub mod istio;
mod kernel_log;
pub mod listener;
pub mod logging;
pub mod net;
pub mod network;
pub mod secret;
pub mod shards;
pub mod sidecar;
pub mod sys;
pub mod task;
pub mod telemetry;
pub mod transport;
pub mod watch;
pub mod workload;
pub mod world;
pub mod xds;

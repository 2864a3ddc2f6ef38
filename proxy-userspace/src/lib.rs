//! The daemon as a library.
//!
//! The path of a connection: [`net::accept::run`] -> [`net::conn::serve`] -> `network::tcp_proxy::run` ->
//! [`net::copy::relay`] -> [`telemetry::ConnRecord::finish`].
#![deny(unsafe_code)]

pub mod clock;
pub mod drain;
pub mod ebpf;
pub mod net;
pub mod network;
pub mod sys;
pub mod task;
pub mod telemetry;

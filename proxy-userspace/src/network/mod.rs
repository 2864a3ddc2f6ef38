//! Network filters: what is done with a connection's bytes.

pub mod tcp_proxy;

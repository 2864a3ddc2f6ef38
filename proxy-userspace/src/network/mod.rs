//! Network filters: what is done with a connection's bytes.
//!
//! A chain is some gatekeepers ([`Gates`]) and then one filter that ends it: [`tcp_proxy`], [`direct_response`] or
//! [`echo`].

pub mod connection_limit;
pub mod direct_response;
pub mod echo;
pub mod gates;
pub mod local_ratelimit;
pub mod rbac;
pub mod tcp_proxy;

pub use self::gates::{Close, Entered, Gates, Verdict};

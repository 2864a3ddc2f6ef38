//! The suites: what shunt must do, shown on the real daemon, real network namespaces and real programs.

mod common;
mod harness;
mod inbound;
mod lifecycle;
mod outbound;
mod policy;

//! The suites: what shunt must do, shown on the real daemon, real network namespaces and real programs.

mod attach;
mod bpftool;
mod common;
mod dns;
mod examples;
mod exec;
mod harness;
mod inbound;
mod interception;
mod kernel_log;
mod lifecycle;
mod machine;
mod moves;
mod outbound;
mod peers;
mod policy;
mod security;

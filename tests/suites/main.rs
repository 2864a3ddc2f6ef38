//! The suites: what shunt must do, shown on the real daemon, real network namespaces and real programs.

mod access_log;
mod admin;
mod attach;
mod bpftool;
mod clusters;
mod common;
mod config;
mod dns;
mod examples;
mod exec;
mod harness;
mod inbound;
mod interception;
mod kernel_log;
mod lifecycle;
mod listener_filters;
mod listeners;
mod machine;
mod moves;
mod network_filters;
mod outbound;
mod peers;
mod policy;
mod relay;
mod security;
mod shutdown;

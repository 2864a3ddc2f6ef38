//! The daemon.
pub mod ebpf;
pub mod sys;

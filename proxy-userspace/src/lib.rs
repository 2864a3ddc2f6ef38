//! The daemon `shunt`.
//!
//! [`app`] builds everything; [`workload`] enrols; [`ebpf`] is the kernel half; [`net`] and [`network`] carry
//! connections; [`admin`] answers the person on call.

pub mod cgroup;
pub mod ebpf;
pub mod sys;
pub mod workload;

//! The only `unsafe` of the daemon: system calls that no library wraps.

pub(crate) mod bpf;
pub mod netns;
pub(crate) mod process;

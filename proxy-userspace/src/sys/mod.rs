//! The only `unsafe` of the daemon: system calls that no library wraps.
#![expect(unsafe_code, reason = "this module is where it is allowed")]

pub(crate) mod bpf;
pub mod netns;
pub(crate) mod process;
pub mod sock;
pub mod tcp_info;
pub(crate) mod time;

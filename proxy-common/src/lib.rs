//! What the kernel programs and the daemon must agree on.
//!
//! [`abi`] owns the layout of every map; [`verdict`] owns every decision. The hooks in `proxy-ebpf` only read
//! their context and ask; the daemon asks the same functions to explain a decision, and tests run them on the
//! host, because the kernel has no test run for cgroup socket hooks.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod verdict;

pub use abi::*;

//! Configuration: parses and lowers, never does I/O.
//!
//! [`policy`] turns istio-iptables' flags into a model, the model into kernel tables, and a verdict into words.
//! [`enrol`] reads the document that says which workloads exist.
#![forbid(unsafe_code)]

pub mod enrol;
pub mod policy;

//! Configuration: parses and lowers, never does I/O.
//!
//! [`policy`] turns istio-iptables' flags into a model, the model into kernel tables, and a verdict into words.
//! [`enrol`] reads the document that says which workloads exist.
//!
//! Envoy's configuration goes `text -> [`decode`] -> protobuf -> [`lower`] -> [`model`]`, and [`load`] is the way in.
//! Problems on the way are [`diagnostic`]s. Nothing outside of this crate sees protobuf.
#![forbid(unsafe_code)]

pub mod authz;
pub mod decode;
pub mod diagnostic;
pub mod dump;
pub mod enrol;
pub mod format;
pub mod load;
pub mod lower;
pub mod model;
pub mod policy;
pub mod proto;
pub mod tap;
pub mod xds;

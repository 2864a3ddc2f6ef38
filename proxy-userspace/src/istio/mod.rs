//! What Istio's proxy adds to Envoy: peers tell each other who they are, and are counted by that.
//!
//! - [`Peer`] is a workload as its peers know it, [`wire`] how it is told.
//! - [`Exchange`] tells it before the first byte of a connection, by ALPN (`istio.metadata_exchange`); in HTTP the
//!   filter of peer metadata does, by headers.
//! - [`Recorder`] counts requests and connections by who their peers are (`istio.stats`).
//! - [`expression`] is what overrides of its labels are made of.

pub mod exchange;
pub mod expression;
mod local;
pub mod peer;
pub mod stats;
pub mod wire;

pub use self::exchange::{Exchange, Slot};
pub use self::local::Local;
pub use self::peer::{Peer, Peers};
pub use self::stats::{Recorder, Report};

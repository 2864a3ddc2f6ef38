//! The router and its pools beside the real Envoy: the same requests through both, to backends that do what they are
//! told; compared are the answers, the access log, what the backends saw, and what was counted.

mod balancing;
mod early;
mod filters;
mod hosts;
mod limits;
mod mirrors;
mod pools;
mod protocols;
mod redirects;
mod retries;
mod rig;
mod tallies;
mod timeouts;
mod wire;

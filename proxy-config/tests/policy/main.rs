//! The crate's public API: flags in, tables, verdicts and words out.

mod chain;
mod enrol;
mod explain;
mod flags;
mod reference;
mod tables;
mod world;

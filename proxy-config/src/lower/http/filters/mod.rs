//! The configuration of each HTTP filter.

pub(in crate::lower) mod cors;
pub(super) mod router;

//! The configuration of each HTTP filter.

pub(super) mod compressor;
pub(in crate::lower) mod cors;
pub(super) mod ext_authz;
pub(super) mod fault;
pub(in crate::lower) mod istio;
pub(super) mod jwt;
pub(super) mod local_ratelimit;
pub(super) mod lua;
pub(super) mod rbac;
pub(in crate::lower) mod router;
pub(super) mod simple;

//! The suites: what shunt must do, shown on the real daemon, real network namespaces and real programs.

mod harness;

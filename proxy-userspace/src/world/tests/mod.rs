//! Worlds on loopback, driven by hand.

mod clusters;
mod extensions;
mod http_extensions;
mod listeners;
mod rig;
mod routes;

//! Worlds on loopback, driven by hand.

mod clusters;
mod listeners;
mod rig;

//! Secrets: certificates, what peers are judged by, and ticket keys, each with its content read.
//!
//! - [`Slot`]: a secret by its name and source. It holds the last good content, and tells who uses it when that
//!   changes.
//! - [`Secrets`]: all of them, those of the bootstrap and those of SDS.
//! - [`feed`]: what a source of SDS tells its slots; [`follow`] reads the files that a secret names, and again when
//!   they change.
//! - [`Expiry`]: connections that outlive what they were let in by.

mod expiry;
mod feed;
mod follow;
mod hub;
pub mod material;
mod slot;
#[cfg(test)]
mod tests;

pub use self::expiry::{Expiry, Lease};
pub use self::feed::Answer;
pub use self::hub::{Secrets, StaticError};
pub use self::material::{Loaded, Material};
pub use self::slot::{Origin, Slot, Subscriber};

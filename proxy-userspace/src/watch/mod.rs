//! Files and directories, followed: what clusters and secrets read again when it changes.
//!
//! - [`Directories`]: one inotify instance for all, because the system allows few.
//! - [`Changes`]: what one follower wants to hear of.
//! - [`Files`]: files that are read once for all that follow them.
//! - [`Together`]: who shares a task.

mod changes;
mod directories;
mod file;
#[cfg(test)]
mod tests;
mod together;

pub use self::changes::{Changes, directory_of};
pub use self::directories::Directories;
pub use self::file::{Files, Parse, Reader, Unusable};
pub use self::together::{Group, Together};

//! The kernel half, seen from the daemon: where it is pinned, how it is loaded, attached and read.
//!
//! Everything lives in one pin directory ([`Pins`]). [`Kernel`] opens it, loads what is missing, and attaches
//! workloads; [`Maps`] are the tables by their pins, so that a command can read and undo without the object.

mod kernel;
mod maps;
mod pins;
mod probe;

use std::io;
use std::path::{Path, PathBuf};

pub use kernel::{Kernel, Target, detach};
pub(crate) use maps::ip16;
pub use maps::{Maps, ReadTables};
pub use pins::Pins;
pub use probe::{cgroup2_mount, check as check_kernel};

/// What can go wrong between the daemon and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {what}: {source}", path = path.display())]
    Path { path: PathBuf, what: &'static str, source: io::Error },
    #[error("{path} is not a directory of root's with mode 0700 ({found}): another user could have put \
             maps or programs there. Remove it, or name another place with --pin-root", path = path.display())]
    Untrusted { path: PathBuf, found: String },
    #[error("{what}: {why}. {fix}")]
    Missing { what: String, why: String, fix: &'static str },
    #[error("cannot load the kernel programs: {0}")]
    Object(Box<aya::EbpfError>),
    #[error("the kernel refuses program {name}: {source}")]
    Program { name: String, source: Box<aya::programs::ProgramError> },
    #[error("cannot attach {program} to {path}: {source}{hint}", path = path.display())]
    Attach { program: &'static str, path: PathBuf, source: io::Error, hint: &'static str },
    #[error("kernel map {map}: {source}")]
    Map { map: &'static str, source: io::Error },
}

impl Error {
    fn path(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Path { path: path.to_owned(), what, source }
    }

    fn map(map: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Map { map, source }
    }
}

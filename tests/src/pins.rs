//! The pin root of a test, on bpffs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The mount point that the daemon uses by default.
pub const BPFFS: &str = "/sys/fs/bpf";
/// Begins the name of every pin root of the tests; the pid follows.
pub(crate) const PREFIX: &str = "shunt-t";

/// A path that the daemon makes; removed with all pins at the end.
#[derive(Debug)]
pub struct PinRoot {
    path: PathBuf,
}

impl PinRoot {
    pub(crate) fn new(name: &str) -> Self {
        Self { path: Path::new(BPFFS).join(name) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Makes it as another user would, for the daemon to refuse.
    pub fn make_with_mode(&self, mode: u32, uid: u32) -> Result<()> {
        fs::create_dir(&self.path).with_context(|| format!("cannot make {}", self.path.display()))?;
        fs::set_permissions(&self.path, fs::Permissions::from_mode(mode))?;
        std::os::unix::fs::chown(&self.path, Some(uid), Some(uid))?;
        Ok(())
    }

    /// Every file under the root.
    pub fn pins(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(&self.path, &mut found);
        found
    }

    /// The pin of a map, in whatever version of the layout.
    pub fn map(&self, name: &str) -> Result<PathBuf> {
        let map = |p: &PathBuf| {
            p.file_name().is_some_and(|f| f == name) && p.parent().is_some_and(|d| d.ends_with("maps"))
        };
        self.pins()
            .into_iter()
            .find(map)
            .with_context(|| format!("no pinned map {name} under {}", self.path.display()))
    }
}

impl Drop for PinRoot {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("the pins {} stay: {error:#}", self.path.display());
        }
    }
}

pub(crate) fn remove(root: &Path) -> Result<()> {
    if !root.exists() {
        return Ok(());
    }
    fs::remove_dir_all(root).with_context(|| format!("cannot remove {}", root.display()))
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) { walk(&path, found) } else { found.push(path) }
    }
}

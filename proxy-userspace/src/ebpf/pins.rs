//! The pin directory: `<root>/v<layout>/{maps,progs/<object>,links/<workload>,proxy}` on bpffs.
//!
//! bpffs's root is world-writable on many systems, so the root directory is ours only if it is root's with mode
//! 0700. Pins outlive the daemon: they are what keeps a workload captured, and so closed, while it is away.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::Error;
use proxy_common::LAYOUT;

/// A trusted pin directory.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    dir: PathBuf,
}

impl Pins {
    /// Opens `root`, mounting bpffs and making directories where absent.
    pub fn open(root: &Path) -> Result<Self, Error> {
        mount_bpffs(root)?;
        make_dir(root)?;
        trust(root)?;
        let pins = Self::at(root);
        for dir in [&pins.dir, &pins.dir.join("maps"), &pins.dir.join("progs"), &pins.links_dir()] {
            make_dir(dir)?;
        }
        Ok(pins)
    }

    /// Opens `root` if it is there; makes nothing.
    pub fn existing(root: &Path) -> Result<Option<Self>, Error> {
        if !root.exists() {
            return Ok(None);
        }
        trust(root)?;
        let pins = Self::at(root);
        Ok(pins.dir.exists().then_some(pins))
    }

    fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), dir: root.join(format!("v{LAYOUT}")) }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.dir.join("maps").join(name)
    }

    pub(super) fn programs(&self, object: &str) -> PathBuf {
        self.dir.join("progs").join(object)
    }

    pub(super) fn links_dir(&self) -> PathBuf {
        self.dir.join("links")
    }

    /// The links of one workload.
    pub(super) fn links(&self, workload: &str) -> PathBuf {
        self.links_dir().join(workload)
    }

    /// The links on the proxy's own cgroup.
    pub(super) fn proxy_links(&self) -> PathBuf {
        self.dir.join("proxy")
    }

    /// The workloads that have links.
    pub fn workloads(&self) -> Vec<String> {
        list(&self.links_dir())
    }

    /// Removes the pins of programs that are not of `object`: links keep what they need.
    pub(super) fn drop_other_programs(&self, object: &str) {
        for name in list(&self.dir.join("progs")) {
            if name != object {
                remove_tree(&self.dir.join("progs").join(name));
            }
        }
    }

    /// Removes everything under the root: every hook of ours lets go.
    pub fn remove_all(&self) -> Result<(), Error> {
        // Links first, so that no hook outlives its maps' names.
        remove_tree(&self.links_dir());
        remove_tree(&self.proxy_links());
        remove_tree(&self.root);
        if self.root.exists() {
            let e = io::Error::other("not empty after removing every pin");
            return Err(Error::path(&self.root, "cannot remove the pin directory")(e));
        }
        Ok(())
    }
}

/// Removes a directory of pins.
pub(super) fn remove_tree(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let removed = match entry.file_type() {
            Ok(t) if t.is_dir() => {
                remove_tree(&path);
                continue;
            }
            _ => fs::remove_file(&path),
        };
        if let Err(e) = removed {
            log::warn!("cannot remove {}: {e}", path.display());
        }
    }
    if let Err(e) = fs::remove_dir(dir) {
        log::warn!("cannot remove {}: {e}", dir.display());
    }
}

fn list(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

pub(super) fn make_dir(dir: &Path) -> Result<(), Error> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(Error::path(dir, "cannot make")(e)),
        _ => Ok(()),
    }
}

fn trust(dir: &Path) -> Result<(), Error> {
    // A symbolic link could lead anywhere by the time it is used.
    let meta = fs::symlink_metadata(dir).map_err(Error::path(dir, "cannot read"))?;
    let mode = meta.mode() & 0o7777;
    if meta.is_dir() && meta.uid() == 0 && mode == 0o700 {
        return Ok(());
    }
    let kind = if meta.is_dir() { "directory" } else { "not a directory" };
    Err(Error::Untrusted {
        path: dir.to_owned(),
        found: format!("{kind}, uid {}, mode {mode:04o}", meta.uid()),
    })
}

/// Mounts bpffs at /sys/fs/bpf if the root lies there and nothing is mounted yet.
fn mount_bpffs(root: &Path) -> Result<(), Error> {
    let parent = root.parent().unwrap_or(root);
    let is_bpffs = |p: &Path| statfs(p).is_ok_and(|s| s.filesystem_type() == BPF_FS_MAGIC);
    if is_bpffs(parent) {
        return Ok(());
    }
    let standard = Path::new("/sys/fs/bpf");
    if parent == standard {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("bpf"), standard, Some("bpf"), flags, Some("mode=0700"))
            .map_err(|e| Error::path(standard, "cannot mount bpffs")(e.into()))?;
        return Ok(());
    }
    Err(Error::Missing {
        what: format!("{} is not on bpffs", parent.display()),
        why: "pins can live only there".to_owned(),
        fix: "Use the default --pin-root, or mount one: mount -t bpf bpf DIR",
    })
}

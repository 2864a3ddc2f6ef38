//! cgroup v2 directories: their ids, their processes, and which one this process lives in.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// Why a cgroup cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {what}: {source}", path = path.display())]
    Io { path: PathBuf, what: &'static str, source: io::Error },
    #[error("{path} is not a cgroup v2 directory", path = .0.display())]
    NotCgroup2(PathBuf),
}

fn io_error(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { path: path.to_owned(), what, source }
}

/// The id that the kernel's hooks see: the directory's inode number.
pub fn id(path: &Path) -> Result<u64, Error> {
    let meta = fs::metadata(path).map_err(io_error(path, "cannot find the cgroup"))?;
    let kind = statfs(path).map_err(|e| io_error(path, "cannot read")(e.into()))?;
    if !meta.is_dir() || kind.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Err(Error::NotCgroup2(path.to_owned()));
    }
    Ok(meta.ino())
}

/// Makes a cgroup and its parents. Another run that ends just now may remove a parent again: so more than once.
pub fn make(path: &Path) -> Result<(), Error> {
    const TRIES: usize = 10;
    let gone = |r: &io::Result<()>| matches!(r, Err(e) if e.kind() == io::ErrorKind::NotFound);
    let mut made = fs::create_dir_all(path);
    for _ in 1..TRIES {
        if !gone(&made) {
            break;
        }
        made = fs::create_dir_all(path);
    }
    made.map_err(io_error(path, "cannot make the cgroup"))
}

/// Moves this process into a cgroup.
pub fn join(path: &Path) -> Result<(), Error> {
    let procs = path.join("cgroup.procs");
    fs::write(&procs, "0").map_err(io_error(&procs, "cannot join the cgroup"))
}

/// The processes of a cgroup, without those of its children.
pub fn processes(path: &Path) -> Vec<i32> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|l| l.parse().ok()).collect()
}

/// The processes of a cgroup and of all cgroups below it.
pub fn all_processes(path: &Path) -> Vec<i32> {
    let mut out = processes(path);
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            out.extend(all_processes(&entry.path()));
        }
    }
    out
}

/// Removes a cgroup and its children, if no process is left in them.
pub fn remove(path: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error(path, "cannot remove the cgroup")(e)),
        _ => Ok(()),
    }
}

/// The cgroup v2 directory of a process, below `mount`. `None` once the process is gone.
pub fn of_process(mount: &Path, pid: i32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|l| l.strip_prefix("0::"))?;
    Some(mount.join(path.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_system_is_refused_by_name() {
        let e = id(Path::new("/tmp")).unwrap_err();
        assert_eq!(e.to_string(), "/tmp is not a cgroup v2 directory");
        assert!(id(Path::new("/nowhere")).unwrap_err().to_string().contains("/nowhere"));
    }
}

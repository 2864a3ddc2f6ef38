//! Processes: their sockets, and starting one inside a cgroup and a network namespace.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use nix::sched::{CloneFlags, setns};

/// Gives the allocator's free pages back to the system, which glibc keeps otherwise. Not for a busy moment.
pub(crate) fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer; the allocator is the system's, with its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The real uid of a process.
pub(crate) fn uid(pid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()
}

/// Copies of a process's listening TCP sockets on `port`; true for IPv6.
pub(crate) fn listening_sockets(pid: i32, port: u16) -> Vec<(bool, OwnedFd)> {
    let mut out = Vec::new();
    let Ok(pidfd) = pidfd_open(pid) else { return out };
    for (v6, table) in [(false, "tcp"), (true, "tcp6")] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for inode in listening_inodes(&text, port) {
            let Some(fd) = descriptor_of(pid, &inode) else { continue };
            match pidfd_getfd(pidfd.as_fd(), fd) {
                Ok(copy) => out.push((v6, copy)),
                Err(e) => log::warn!("cannot copy descriptor {fd} of process {pid}: {e}"),
            }
        }
    }
    out
}

/// The inode column of the lines in state LISTEN on a port.
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    let parse = |line: &str| {
        let f: Vec<&str> = line.split_whitespace().collect();
        let local = f.get(1)?.rsplit(':').next()?;
        let matches = u16::from_str_radix(local, 16).ok()? == port && *f.get(3)? == LISTEN;
        matches.then(|| f.get(9).map(|i| (*i).to_owned())).flatten()
    };
    table.lines().skip(1).filter_map(parse).collect()
}

fn descriptor_of(pid: i32, inode: &str) -> Option<i32> {
    let wanted = format!("socket:[{inode}]");
    fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten().find_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        (target.as_os_str() == wanted.as_str()).then(|| entry.file_name().to_str()?.parse().ok()).flatten()
    })
}

fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Makes `command` start inside a cgroup and, if given, a network namespace.
pub(crate) fn start_in(command: &mut Command, cgroup: &Path, netns: Option<&File>) -> io::Result<()> {
    let procs = File::options().write(true).open(cgroup.join("cgroup.procs"))?;
    let netns = netns.map(File::try_clone).transpose()?;
    // SAFETY: runs between fork and exec: one write and one setns on descriptors opened before, no allocation,
    // no lock.
    unsafe {
        command.pre_exec(move || {
            (&procs).write_all(b"0")?;
            if let Some(ns) = &netns {
                setns(ns.as_fd(), CloneFlags::CLONE_NEWNET)?;
            }
            Ok(())
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_socket_of_a_process_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
        let inodes = listening_inodes(&table, port);
        assert_eq!(inodes.len(), 1);
        let found = descriptor_of(std::process::id() as i32, &inodes[0]);
        assert_eq!(found, Some(socket.as_raw_fd()));
    }
}

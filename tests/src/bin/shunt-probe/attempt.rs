//! `try ACTION ARGUMENT…`: does one thing that should perhaps be refused, and says how that went.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;

use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::report::{failure, print};

pub(crate) fn run(args: &[String]) -> Result<bool, String> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["listen", address] => listen(parse(address)?, Protocol::TCP),
        ["listen-mptcp", address] => listen(parse(address)?, Protocol::MPTCP),
        ["write", path, text] => write(path, text),
        ["unlink", path] => fs::remove_file(path),
        ["list", path] => fs::read_dir(path).map(drop),
        ["unix", path] => UnixStream::connect(path).map(drop),
        ["bpf-get", path] => bpf_object(path),
        ["setns", path] => setns(path),
        _ => return Err(format!("unknown action {words:?}")),
    };
    let ok = result.is_ok();
    print(&match result {
        Ok(()) => json!({ "ok": true }),
        Err(error) => failure(words[0], &error),
    });
    Ok(ok)
}

fn parse(address: &str) -> Result<SocketAddr, String> {
    address.parse().map_err(|error| format!("{address}: {error}"))
}

fn listen(address: SocketAddr, protocol: Protocol) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol))?;
    socket.bind(&address.into())?;
    socket.listen(1)
}

fn write(path: &str, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

fn setns(path: &str) -> io::Result<()> {
    let file = fs::File::open(path)?;
    Ok(nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?)
}

/// BPF_OBJ_GET: a pinned map or link, to change or to release it.
fn bpf_object(path: &str) -> io::Result<()> {
    const BPF_OBJ_GET: libc::c_long = 7;
    let path = std::ffi::CString::new(path)?;
    // The start of `union bpf_attr` for this command: pathname, bpf_fd, file_flags.
    let attr = [path.as_ptr() as u64, 0];
    // SAFETY: the attribute and the path it points to outlive the call; the size is the attribute's.
    match unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, attr.as_ptr(), size_of_val(&attr)) } {
        fd if fd >= 0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

//! Network namespaces: entering one for a moment, and what the kernel says about it.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};

const THREAD_NETNS: &str = "/proc/thread-self/ns/net";
const SO_NETNS_COOKIE: libc::c_int = 71;

/// A network namespace, held open.
pub struct Netns {
    file: File,
    /// The way back: opened once, because entering is on the path of every upstream connection.
    home: File,
    path: PathBuf,
    identity: (u64, u64),
    cookie: u64,
    /// Whether it is the one that this process lives in: no need to enter.
    own: bool,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEntry {
    pub prefix: IpAddr,
    pub length: u8,
    pub interface: String,
}

impl Netns {
    /// Opens the namespace at `path`: a bind mount as `ip netns` makes it, or `/proc/PID/ns/net`. The calling
    /// thread must be at home: in the namespace that all threads of this process live in.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        let identity = (meta.dev(), meta.ino());
        let own = std::fs::metadata("/proc/self/ns/net").is_ok_and(|m| (m.dev(), m.ino()) == identity);
        let home = File::open(THREAD_NETNS)?;
        let mut ns = Self { file, home, path: path.to_owned(), identity, cookie: 0, own };
        ns.cookie = ns.enter(cookie)??;
        Ok(ns)
    }

    /// The namespace of this process.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/self/ns/net"))
    }

    /// The kernel's number for this namespace, unique until reboot: the key of the kernel maps.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is the namespace of the node itself (PID 1's) or of this process.
    pub fn is_host(&self) -> bool {
        self.own || std::fs::metadata("/proc/1/ns/net").is_ok_and(|m| (m.dev(), m.ino()) == self.identity)
    }

    /// Whether the path still leads to this namespace. We hold it open ourselves, so only the path can tell
    /// that its owner is gone.
    pub fn is_there(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity)
    }

    /// Runs `f` with this thread inside the namespace. `f` must not await or block for long.
    pub fn enter<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        if self.own {
            return Ok(f());
        }
        setns(&self.file, CloneFlags::CLONE_NEWNET)?;
        let back = Back { home: &self.home };
        let out = f();
        drop(back);
        Ok(out)
    }

    /// The addresses of its interfaces; 127.0.0.0/8 and ::1 are left out, another address of `lo` is not.
    pub fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        let mut out = self.enter(interface_addresses)??;
        out.sort_unstable();
        out.dedup();
        Ok(out)
    }

    /// Its interfaces' names and indexes.
    pub fn interfaces(&self) -> io::Result<Vec<(String, u32)>> {
        self.enter(|| {
            let all = nix::net::if_::if_nameindex()?;
            Ok(all.iter().map(|i| (i.name().to_string_lossy().into_owned(), i.index())).collect())
        })?
    }

    /// The routes of its main table.
    pub fn routes(&self) -> io::Result<Vec<RouteEntry>> {
        self.enter(|| {
            let mut out = parse_v4_routes(&read_proc("route")?);
            // Absent where IPv6 is off.
            out.extend(parse_v6_routes(&read_proc("ipv6_route").unwrap_or_default()));
            Ok(out)
        })?
    }

    /// Adds ::6 to `lo`, the IPv6 source of inbound passthrough connections: unlike 127.0.0.6, it is no
    /// address of `lo` by itself. Without IPv6 there is nothing to add.
    pub fn add_passthrough_source(&self) -> io::Result<()> {
        self.enter(add_v6_loopback_address)?
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Brings the thread home, also when `f` panics. A thread that cannot go home would open sockets in a
/// workload's namespace from now on, so that ends the process.
struct Back<'a> {
    home: &'a File,
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        if let Err(e) = setns(self.home, CloneFlags::CLONE_NEWNET) {
            log::error!("cannot return from a workload's network namespace: {e}");
            std::process::abort();
        }
    }
}

fn cookie() -> io::Result<u64> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    let mut value = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option is a u64; `value` and `len` live across the call.
    let r = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

fn interface_addresses() -> io::Result<Vec<IpAddr>> {
    let mut out = Vec::new();
    for i in getifaddrs()? {
        let Some(address) = i.address else { continue };
        if let Some(v4) = address.as_sockaddr_in() {
            out.push(IpAddr::V4(v4.ip()));
        } else if let Some(v6) = address.as_sockaddr_in6() {
            out.push(IpAddr::V6(v6.ip()));
        }
    }
    out.retain(|ip| !ip.is_loopback());
    Ok(out)
}

fn read_proc(file: &str) -> io::Result<String> {
    let mut text = String::new();
    File::open(format!("/proc/thread-self/net/{file}"))?.read_to_string(&mut text)?;
    Ok(text)
}

/// Columns: interface, destination, gateway, flags, …, mask; addresses are hex words in host order.
fn parse_v4_routes(text: &str) -> Vec<RouteEntry> {
    let parse = |line: &str| {
        let f: Vec<&str> = line.split_whitespace().collect();
        let word = |i: usize| u32::from_str_radix(f.get(i)?, 16).ok();
        Some(RouteEntry {
            prefix: IpAddr::V4(Ipv4Addr::from(u32::from_be(word(1)?))),
            length: word(7)?.count_ones() as u8,
            interface: (*f.first()?).to_owned(),
        })
    };
    text.lines().skip(1).filter_map(parse).collect()
}

/// Columns: destination, its prefix length, source, …, interface (last); local and unreachable ones are left
/// out by their flags.
fn parse_v6_routes(text: &str) -> Vec<RouteEntry> {
    const RTF_REJECT: u32 = 0x0200;
    const RTF_LOCAL: u32 = 0x8000_0000;
    let parse = |line: &str| {
        let f: Vec<&str> = line.split_whitespace().collect();
        let flags = u32::from_str_radix(f.get(8)?, 16).ok()?;
        if flags & (RTF_REJECT | RTF_LOCAL) != 0 {
            return None;
        }
        Some(RouteEntry {
            prefix: IpAddr::V6(Ipv6Addr::from(u128::from_str_radix(f.first()?, 16).ok()?)),
            length: u8::from_str_radix(f.get(1)?, 16).ok()?,
            interface: (*f.get(9)?).to_owned(),
        })
    };
    text.lines().filter_map(parse).collect()
}

const PASSTHROUGH_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

fn add_v6_loopback_address() -> io::Result<()> {
    /// `struct in6_ifreq`
    #[repr(C)]
    struct Request {
        address: [u8; 16],
        prefix_len: u32,
        interface: i32,
    }
    let Ok(index) = nix::net::if_::if_nametoindex("lo") else { return Ok(()) };
    let Ok(socket) = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None) else {
        return Ok(());
    };
    let request = Request { address: PASSTHROUGH_V6.octets(), prefix_len: 128, interface: index as i32 };
    // SAFETY: the request is what this ioctl takes on an AF_INET6 socket, and lives across the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR, &raw const request) } == 0 {
        return Ok(());
    }
    let e = io::Error::last_os_error();
    match e.raw_os_error() {
        // There already, or IPv6 is disabled on this interface.
        Some(libc::EEXIST | libc::EACCES | libc::EPERM | libc::EADDRNOTAVAIL) => Ok(()),
        _ => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v4_routes_are_read() {
        let text = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
            eth0 00000000 0102000A 0003 0 0 0 00000000 0 0 0\n\
            eth1 0000630A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n";
        let routes = parse_v4_routes(text);
        assert_eq!(routes.len(), 2);
        assert_eq!((routes[0].prefix, routes[0].length), ("0.0.0.0".parse().unwrap(), 0));
        assert_eq!((routes[1].prefix, routes[1].length), ("10.99.0.0".parse().unwrap(), 24));
        assert_eq!(routes[1].interface, "eth1");
    }

    #[test]
    fn v6_routes_leave_local_ones_out() {
        let line = |dst: &str, len: &str, flags: &str| {
            let zero = "0".repeat(32);
            format!("{dst} {len} {zero} 00 {zero} 00000100 00000001 00000000 {flags} eth0\n")
        };
        let net = "fd990000000000000000000000000000";
        let text = line(net, "40", "00000001") + &line("fd990000000000000000000000000001", "80", "80200001");
        let routes = parse_v6_routes(&text);
        assert_eq!(routes.len(), 1);
        assert_eq!((routes[0].prefix, routes[0].length), ("fd99::".parse().unwrap(), 64));
    }

    #[test]
    fn own_namespace_has_a_cookie_and_is_host() {
        let ns = Netns::current().unwrap();
        assert_ne!(ns.cookie(), 0);
        assert!(ns.is_host());
        assert!(ns.is_there());
    }
}

//! Socket options without a safe wrapper, and the abortive close.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;

/// `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST` share one number.
const ORIGINAL_DST: libc::c_int = 80;

/// Where the client was going before it was redirected: answered by our `cgroup/getsockopt` program, or by
/// netfilter behind an iptables rule. `None` where neither knows the connection.
///
/// `local` is what `getsockname` said of the same socket: it names the socket's family. An IPv4 client of a
/// dual-stack socket is asked for at both levels, because netfilter knows it only as IPv4.
pub fn original_dst(socket: &impl AsFd, local: SocketAddr) -> io::Result<Option<SocketAddr>> {
    match local {
        SocketAddr::V4(_) => original_dst_at(socket, libc::SOL_IP),
        SocketAddr::V6(local) => match original_dst_at(socket, libc::SOL_IPV6)? {
            None if local.ip().to_ipv4_mapped().is_some() => original_dst_at(socket, libc::SOL_IP),
            answer => Ok(answer),
        },
    }
}

/// Closing this socket will send RST instead of FIN, and drop what is unsent.
pub fn set_linger_reset(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// Lets `bind(ip, 0)` leave the choice of the port to `connect`: a port is then taken per 4-tuple, not per
/// address, so one source address carries more than 28,000 connections. Envoy sets it likewise.
pub fn set_bind_address_no_port(socket: &impl AsFd) -> io::Result<()> {
    setsockopt(socket, sockopt::IpBindAddressNoPort, &true).map_err(io::Error::from)
}

/// Any option, by its numbers: `socket_options` of a configuration.
pub fn set_option(socket: &impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let len = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: `value` is valid for `len` bytes for the whole call, and the kernel only reads it.
    let status = unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), len) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An address that the machine does not have (yet) can be bound.
pub fn set_freebind(socket: &impl AsFd, v6: bool) -> io::Result<()> {
    let (level, name) =
        if v6 { (libc::SOL_IPV6, libc::IPV6_FREEBIND) } else { (libc::SOL_IP, libc::IP_FREEBIND) };
    set_option(socket, level, name, &1_i32.to_ne_bytes())
}

/// Connections to, or from, addresses that are not the machine's own. Needs CAP_NET_ADMIN.
pub fn set_transparent(socket: &impl AsFd, v6: bool) -> io::Result<()> {
    let (level, name) =
        if v6 { (libc::SOL_IPV6, libc::IPV6_TRANSPARENT) } else { (libc::SOL_IP, libc::IP_TRANSPARENT) };
    set_option(socket, level, name, &1_i32.to_ne_bytes())
}

/// The socket is readable only with that many bytes, or at its end. Setting it signals readiness anew where it is
/// reached.
pub fn set_receive_low_water(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, &value.to_ne_bytes())
}

fn original_dst_at(socket: &impl AsFd, level: libc::c_int) -> io::Result<Option<SocketAddr>> {
    let mut storage = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    // No more than the answer needs: the kernel copies up to 32 bytes for a `cgroup/getsockopt` program without
    // an allocation.
    let mut len = match level {
        libc::SOL_IP => size_of::<libc::sockaddr_in>(),
        _ => size_of::<libc::sockaddr_in6>(),
    } as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `storage` is valid for `len` bytes for the whole call, and the kernel writes no more than that.
    let status = unsafe { libc::getsockopt(fd, level, ORIGINAL_DST, storage.as_mut_ptr().cast(), &mut len) };
    if status != 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOPROTOOPT | libc::EOPNOTSUPP) => Ok(None),
            _ => Err(error),
        };
    }
    // SAFETY: zeroed above, and any bytes are a valid `sockaddr_storage`.
    Ok(address(&unsafe { storage.assume_init() }))
}

fn address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let from: *const libc::sockaddr_storage = storage;
    let found = match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: `sockaddr_storage` is larger than and aligned for `sockaddr_in`, which the family names.
            let v4 = unsafe { &*from.cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            SocketAddr::from((ip, u16::from_be(v4.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: `sockaddr_storage` is larger than and aligned for `sockaddr_in6`, which the family names.
            let v6 = unsafe { &*from.cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr).to_canonical();
            SocketAddr::from((ip, u16::from_be(v6.sin6_port)))
        }
        _ => return None,
    };
    Some(found)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair(bind: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(bind).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn a_direct_connection_has_no_other_destination() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let (_client, server) = pair(bind);
            let local = server.local_addr().unwrap();
            // A machine with netfilter's connection tracking answers with the very same address.
            let answer = original_dst(&server, local).unwrap();
            assert!(answer.is_none() || answer == Some(local), "{answer:?}");
        }
    }

    #[test]
    fn addresses_of_both_families_and_mapped_ones() {
        let mut storage: libc::sockaddr_storage = zeroed();
        assert_eq!(address(&storage), None);
        storage.ss_family = libc::AF_INET as _;
        assert_eq!(address(&storage), Some("0.0.0.0:0".parse().unwrap()));
        storage.ss_family = libc::AF_INET6 as _;
        assert_eq!(address(&storage), Some("[::]:0".parse().unwrap()));
    }

    fn zeroed() -> libc::sockaddr_storage {
        // SAFETY: plain integers, for which zero is a value.
        unsafe { MaybeUninit::zeroed().assume_init() }
    }

    #[test]
    fn linger_zero_resets() {
        use std::io::Read;
        let (mut client, server) = pair("127.0.0.1:0");
        set_linger_reset(&server).unwrap();
        drop(server);
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}

//! Sockets with the options under test.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt::TcpFastOpenConnect};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::options::{FastOpen, Options};

/// Makes a socket as asked and connects it. Data that had to go with the SYN is `first`, else it is sent after.
pub(crate) fn open(options: &Options, to: SocketAddr, first: &[u8]) -> io::Result<TcpStream> {
    let socket = make(options, to)?;
    if let Some(before) = options.first {
        // Only what it leaves on the socket matters.
        let _ = socket.connect(&before.into());
        dissolve(&socket)?;
    }
    let mut sent = 0;
    match options.fast_open {
        Some(FastOpen::SendTo) => {
            sent = socket.send_to_with_flags(first, &to.into(), libc::MSG_FASTOPEN)?;
        }
        Some(FastOpen::Connect) => {
            setsockopt(&socket, TcpFastOpenConnect, &true)?;
            socket.connect(&to.into())?;
        }
        None if options.nonblock => connect_nonblocking(&socket, to, options.timeout)?,
        None => connect(&socket, to, options.timeout)?,
    }
    while sent < first.len() {
        sent += socket.send(&first[sent..])?;
    }
    Ok(socket.into())
}

fn make(options: &Options, to: SocketAddr) -> io::Result<Socket> {
    let protocol = if options.mptcp { Protocol::MPTCP } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol))?;
    if let Some(device) = &options.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if let Some(ip) = options.bind {
        socket.bind(&SockAddr::from(SocketAddr::new(ip, 0)))?;
    }
    Ok(socket)
}

fn connect(socket: &Socket, to: SocketAddr, timeout: Option<Duration>) -> io::Result<()> {
    // SO_SNDTIMEO limits a blocking connect.
    socket.set_write_timeout(timeout)?;
    socket.connect(&to.into())?;
    socket.set_write_timeout(None)
}

fn connect_nonblocking(socket: &Socket, to: SocketAddr, timeout: Option<Duration>) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
            let limit = timeout.unwrap_or(Duration::from_secs(10)).as_millis();
            let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(socket), PollFlags::POLLOUT)];
            if poll(&mut fds, limit)? == 0 {
                return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
            }
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
        }
        Err(error) => return Err(error),
    }
    socket.set_nonblocking(false)
}

/// connect(AF_UNSPEC): the socket may connect anew.
fn dissolve(socket: &Socket) -> io::Result<()> {
    let unspecified = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let len = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the address is valid for the length given, the descriptor is the socket's.
    match unsafe { libc::connect(socket.as_raw_fd(), &raw const unspecified, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A listening socket on every address, where the namespace has IPv6; else on every IPv4 address.
pub(crate) fn listen(port: u16) -> io::Result<Socket> {
    let bound = |domain, address: SocketAddr| {
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())?;
        socket.listen(1_024)?;
        Ok(socket)
    };
    let any6 = SocketAddr::from(([0u16; 8], port));
    bound(Domain::IPV6, any6).or_else(|_: io::Error| bound(Domain::IPV4, SocketAddr::from(([0u8; 4], port))))
}

/// Closes with RST instead of FIN.
pub(crate) fn reset(stream: TcpStream) -> io::Result<()> {
    let socket = Socket::from(stream);
    socket.set_linger(Some(Duration::ZERO))
}

pub(crate) fn finish(stream: &TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)
}

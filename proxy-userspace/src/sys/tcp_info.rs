//! `TCP_INFO`: what the kernel knows of a connection.
//!
//! libc's struct ends before the fields that Envoy's `tcp_stats` reports, so the bytes are read here by their places
//! in the kernel's (`include/uapi/linux/tcp.h`), which only ever grows at its end.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// As far as `tcpi_bytes_sent` goes, which is there since Linux 4.19.
const LEN: usize = 208;

/// Counts are since the connection began. A FIN counts as a received byte, as it takes a sequence number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// Sent, and not acknowledged so far.
    pub unacked: u32,
    /// Microseconds.
    pub rtt: u32,
    pub rttvar: u32,
    pub total_retrans: u32,
    pub bytes_received: u64,
    pub segs_out: u32,
    pub segs_in: u32,
    /// Written by us, and not sent so far.
    pub notsent_bytes: u32,
    pub data_segs_in: u32,
    pub data_segs_out: u32,
    /// With those that were sent again.
    pub bytes_sent: u64,
}

impl TcpInfo {
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        let mut bytes = [0_u8; LEN];
        let mut len = libc::socklen_t::try_from(LEN).map_err(io::Error::other)?;
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: `bytes` is valid for `len` bytes for the whole call, and the kernel writes no more than that.
        let status = unsafe {
            libc::getsockopt(fd, libc::SOL_TCP, libc::TCP_INFO, bytes.as_mut_ptr().cast(), &mut len)
        };
        // What an older kernel does not know stays zero.
        if status == 0 { Ok(Self::parse(&bytes)) } else { Err(io::Error::last_os_error()) }
    }

    fn parse(bytes: &[u8; LEN]) -> Self {
        Self {
            unacked: word(bytes, 24),
            rtt: word(bytes, 68),
            rttvar: word(bytes, 72),
            total_retrans: word(bytes, 100),
            bytes_received: long(bytes, 128),
            segs_out: word(bytes, 136),
            segs_in: word(bytes, 140),
            notsent_bytes: word(bytes, 144),
            data_segs_in: word(bytes, 152),
            data_segs_out: word(bytes, 156),
            bytes_sent: long(bytes, 200),
        }
    }
}

fn word(bytes: &[u8; LEN], at: usize) -> u32 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |word| u32::from_ne_bytes(*word))
}

fn long(bytes: &[u8; LEN], at: usize) -> u64 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |long| u64::from_ne_bytes(*long))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_was_sent_and_received() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(&[1; 3_000]).unwrap();
        server.read_exact(&mut [0; 3_000]).unwrap();
        server.write_all(b"answer").unwrap();
        client.read_exact(&mut [0; 6]).unwrap();
        let (ours, theirs) = (TcpInfo::of(&client).unwrap(), TcpInfo::of(&server).unwrap());
        assert_eq!((ours.bytes_sent, ours.bytes_received), (3_000, 6));
        assert_eq!((theirs.bytes_sent, theirs.bytes_received), (6, 3_000));
        assert_eq!(ours.data_segs_out, theirs.data_segs_in);
        assert_eq!((theirs.data_segs_out, ours.data_segs_in), (1, 1));
        // The three of the handshake come on top.
        assert!(ours.segs_out > ours.data_segs_out && ours.segs_in > 1, "{ours:?}");
        assert!(ours.rtt > 0 && ours.rttvar > 0, "{ours:?}");
        assert_eq!((ours.total_retrans, ours.notsent_bytes), (0, 0));
        drop(client);
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        assert_eq!(TcpInfo::of(&server).unwrap().bytes_received, 3_001, "a FIN counts");
    }

    #[test]
    fn what_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut written = 0;
        while let Ok(n) = client.write(&[0; 65_536]) {
            written += n as u64;
        }
        let info = TcpInfo::of(&client).unwrap();
        // What was sent again, because the receiver had no room, counts again.
        assert!(info.bytes_sent + u64::from(info.notsent_bytes) >= written, "{info:?} of {written}");
        assert!((1..written).contains(&info.notsent_bytes.into()), "{info:?} of {written}");
    }

    #[test]
    fn a_unix_socket_has_none() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert!(TcpInfo::of(&one).is_err());
    }
}

//! A test's own client: one connection, driven step by step, and how it ended.

use std::fmt;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use socket2::{Domain, SockRef, Socket, Type};

/// How long a client waits for what must come.
const LIMIT: Duration = Duration::from_secs(10);

/// How a direction of a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// FIN
    Eof,
    /// RST
    Reset,
    /// It has not: nothing came within the limit.
    Open,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eof => "FIN",
            Self::Reset => "RST",
            Self::Open => "open",
        })
    }
}

/// A connected client.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
}

impl Client {
    pub fn connect(to: SocketAddr) -> Result<Self> {
        Self::of(TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?)
    }

    /// From an address of its own, such as 127.0.0.9; port 0 takes a free one.
    pub fn connect_from(from: impl Into<IpAddr>, port: u16, to: SocketAddr) -> Result<Self> {
        let from = SocketAddr::new(from.into(), port);
        let socket = Socket::new(Domain::for_address(from), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into()).with_context(|| format!("cannot bind {from}"))?;
        socket.connect(&to.into()).with_context(|| format!("cannot connect from {from} to {to}"))?;
        Self::of(socket.into())
    }

    /// With a receive buffer too small to hide a reader that does not read.
    pub fn connect_narrow(to: SocketAddr) -> Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_recv_buffer_size(16 * 1024)?;
        socket.connect(&to.into()).with_context(|| format!("cannot connect to {to}"))?;
        Self::of(socket.into())
    }

    fn of(stream: TcpStream) -> Result<Self> {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    pub fn local(&self) -> Result<SocketAddr> {
        Ok(self.stream.local_addr()?)
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.stream.write_all(bytes.as_ref()).context("cannot send")
    }

    /// Each byte in a segment of its own.
    pub fn send_bytewise(&mut self, bytes: &[u8]) -> Result<()> {
        for byte in bytes {
            self.stream.write_all(&[*byte]).context("cannot send")?;
            std::thread::sleep(Duration::from_micros(300));
        }
        Ok(())
    }

    /// The next line, without its end.
    pub fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte) {
                Ok(0) => bail!("the end came before a line did: {:?}", String::from_utf8_lossy(&line)),
                Ok(_) if byte == *b"\n" => return Ok(String::from_utf8_lossy(&line).into_owned()),
                Ok(_) => line.push(byte[0]),
                Err(error) => {
                    let so_far = String::from_utf8_lossy(&line).into_owned();
                    return Err(error).with_context(|| format!("no line, only {so_far:?}"));
                }
            }
        }
    }

    /// Sends a line and reads one.
    pub fn ask(&mut self, line: &str) -> Result<String> {
        self.send(format!("{line}\n"))?;
        self.line()
    }

    pub fn exactly(&mut self, bytes: usize) -> Result<Vec<u8>> {
        let mut buf = vec![0; bytes];
        self.stream.read_exact(&mut buf).with_context(|| format!("fewer than {bytes} bytes"))?;
        Ok(buf)
    }

    /// Says FIN and goes on reading.
    pub fn half_close(&mut self) -> Result<()> {
        self.stream.shutdown(Shutdown::Write).context("cannot half-close")
    }

    /// Says RST.
    pub fn reset(self) -> Result<()> {
        reset(&self.stream)
    }

    /// Reads to the end: what came, and how it ended.
    pub fn end(&mut self) -> Result<(Vec<u8>, End)> {
        self.end_within(LIMIT)
    }

    pub fn end_within(&mut self, limit: Duration) -> Result<(Vec<u8>, End)> {
        self.stream.set_read_timeout(Some(limit))?;
        let mut all = Vec::new();
        let end = read_to_end(&self.stream, &mut |part| all.extend_from_slice(part))?;
        self.stream.set_read_timeout(Some(LIMIT))?;
        Ok((all, end))
    }

    /// As [`Client::end`], as text: `<what came> <how it ended>`.
    pub fn rest(&mut self) -> Result<String> {
        let (bytes, end) = self.end()?;
        Ok(format!("{} {end}", String::from_utf8_lossy(&bytes)))
    }
}

/// Ends a connection with RST, and lets its owner drop it.
pub(crate) fn reset(stream: &TcpStream) -> Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
    Ok(())
}

/// Passes on all that comes, and tells how it ended.
pub(crate) fn read_to_end(mut stream: &TcpStream, each: &mut dyn FnMut(&[u8])) -> Result<End> {
    let mut buf = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buf) {
            Ok(0) => return Ok(End::Eof),
            Ok(n) => each(&buf[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(End::Reset),
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {
                return Ok(End::Open);
            }
            Err(error) => return Err(error).context("cannot read"),
        }
    }
}

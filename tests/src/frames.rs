//! A client of HTTP/2 that says and sees each frame.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What a frame carries at most.
const FRAME: usize = 16_384;

/// `SETTINGS_INITIAL_WINDOW_SIZE`
pub const WINDOW: u16 = 4;

/// A connection.
pub struct Frames {
    stream: TcpStream,
    pending: Vec<u8>,
}

/// One that came.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frames {
    pub fn connect(to: SocketAddr, settings: &[(u16, u32)]) -> Result<Self> {
        let stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        let mut this = Self { stream, pending: Vec::new() };
        this.stream.write_all(PREFACE)?;
        let settings = settings.iter().flat_map(|(name, value)| {
            name.to_be_bytes().into_iter().chain(value.to_be_bytes()).collect::<Vec<u8>>()
        });
        this.send(SETTINGS, 0, 0, &settings.collect::<Vec<u8>>())?;
        Ok(this)
    }

    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<()> {
        let length = u32::try_from(payload.len())?.to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        Ok(self.stream.write_all(&[&head, payload].concat())?)
    }

    /// A GET without a body.
    pub fn get(&mut self, stream: u32, path: &str, headers: &[(&str, &str)]) -> Result<()> {
        let own = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", path)];
        let mut block = Vec::new();
        for (name, value) in own.iter().chain(headers) {
            // A literal that is not indexed, by a name that is none either.
            block.push(0);
            text(&mut block, name);
            text(&mut block, value);
        }
        let mut parts = block.chunks(FRAME);
        let first = parts.next().unwrap_or_default();
        let last = |parts: &std::slice::Chunks<'_, u8>| if parts.len() == 0 { END_HEADERS } else { 0 };
        self.send(HEADERS, END_STREAM | last(&parts), stream, first)?;
        while let Some(part) = parts.next() {
            self.send(CONTINUATION, last(&parts), stream, part)?;
        }
        Ok(())
    }

    /// What comes next; none: the connection has ended.
    pub fn next(&mut self, limit: Duration) -> Result<Option<Frame>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(frame) = self.take() {
                if frame.kind == SETTINGS && frame.flags & ACK == 0 {
                    self.send(SETTINGS, ACK, 0, &[])?;
                }
                if frame.kind == PING && frame.flags & ACK == 0 {
                    self.send(PING, ACK, 0, &frame.payload)?;
                }
                return Ok(Some(frame));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("no frame in {limit:?}");
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut buf = [0; 4096];
            match self.stream.read(&mut buf) {
                Ok(0) => return Ok(None),
                Ok(n) => self.pending.extend_from_slice(&buf[..n]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What comes until it is enough, or the connection ends: as text, and without what keeps it going. Pieces of one
    /// body are one.
    pub fn shown(&mut self, limit: Duration, mut enough: impl FnMut(&Frame) -> bool) -> Result<Vec<String>> {
        let (mut all, mut data): (Vec<String>, Option<(u32, usize)>) = (Vec::new(), None);
        let flush = |all: &mut Vec<String>, data: &mut Option<(u32, usize)>| {
            all.extend(data.take().map(|(stream, length)| format!("DATA {stream}: {length}")));
        };
        loop {
            let Some(frame) = self.next(limit)? else {
                flush(&mut all, &mut data);
                all.push("end".to_owned());
                return Ok(all);
            };
            match frame.kind {
                SETTINGS | PING | WINDOW_UPDATE => {}
                DATA => {
                    let before = data.filter(|(stream, _)| *stream == frame.stream).map_or(0, |(_, n)| n);
                    if before == 0 {
                        flush(&mut all, &mut data);
                    }
                    data = Some((frame.stream, before + frame.payload.len()));
                }
                _ => {
                    flush(&mut all, &mut data);
                    all.push(frame.to_string());
                }
            }
            if enough(&frame) {
                flush(&mut all, &mut data);
                return Ok(all);
            }
        }
    }

    fn take(&mut self) -> Option<Frame> {
        let (head, rest) = self.pending.split_at_checked(9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = rest.get(..length)?.to_vec();
        let frame = Frame { kind: head[3], flags: head[4], stream: number(&head[5..]), payload };
        self.pending.drain(..9 + length);
        Some(frame)
    }
}

impl Frame {
    /// The stream's last one of ours or theirs.
    pub fn ends(&self, stream: u32) -> bool {
        self.stream == stream
            && (self.kind == RST_STREAM
                || matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0)
    }
}

impl std::fmt::Display for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (stream, payload) = (self.stream, &self.payload);
        match self.kind {
            HEADERS => write!(f, "HEADERS {stream}"),
            RST_STREAM => write!(f, "RST_STREAM {stream}: {}", number(payload)),
            GOAWAY => write!(f, "GOAWAY: last {}, code {}", number(payload), number(&payload[4..])),
            kind => write!(f, "frame {kind} of {stream}"),
        }
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |all, byte| all << 8 | u32::from(*byte))
}

/// A text of HPACK as it is: its length takes 7 bits of the first byte, and more of further ones.
fn text(block: &mut Vec<u8>, text: &str) {
    match text.len().checked_sub(127) {
        None => block.push(text.len() as u8),
        Some(mut rest) => {
            block.push(127);
            while rest >= 128 {
                block.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            block.push(rest as u8);
        }
    }
    block.extend_from_slice(text.as_bytes());
}

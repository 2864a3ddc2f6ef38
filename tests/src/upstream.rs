//! Backends in the test's own process: what they do with a connection, and what they saw of it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::payload::{CHUNK, Digest, Pattern};
use crate::wait::until;
use crate::wire::{End, read_to_end, reset};

/// What a backend does with each connection.
#[derive(Clone, Debug)]
pub enum Does {
    /// Answers each line with its own name and the line, as Istio's tcp-echo-server does.
    Echo,
    /// Reads to the end, then answers `<name> <bytes> <hash>`.
    Sum,
    /// Sends a greeting and FIN, then reads to the end.
    Greet(String),
    /// Sends so many bytes of a pattern, then reads to the end.
    Pump(u64),
    /// Reads one line and says RST.
    Reset,
    /// Reads nothing for as long as it lives.
    Stall,
    /// Answers HTTP requests with [`Upstream::set_status`]'s status; the connection closes.
    Http,
    /// Answers an HTTP request with such a status and header; the connection closes.
    Says(u16, String),
}

/// What became of a connection.
#[derive(Clone, Debug)]
pub struct Seen {
    pub peer: SocketAddr,
    pub bytes: u64,
    /// The beginning of what came.
    pub head: Vec<u8>,
    pub end: End,
}

/// A backend on a port of its own; it ends when dropped.
pub struct Upstream {
    pub name: String,
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    status: AtomicU16,
    accepted: AtomicU16,
    seen: Mutex<Vec<Seen>>,
    open: Mutex<Vec<TcpStream>>,
}

impl Upstream {
    pub fn start(name: &str, does: Does) -> Result<Self> {
        Self::start_at(name, does, ([127, 0, 0, 1], 0).into())
    }

    pub fn echo(name: &str) -> Result<Self> {
        Self::start(name, Does::Echo)
    }

    pub fn start_at(name: &str, does: Does, address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        Self::on(name, does, listener)
    }

    /// On a socket that listens already, wherever it was made.
    pub fn on(name: &str, does: Does, listener: TcpListener) -> Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { status: AtomicU16::new(200), ..Shared::default() });
        let (ours, owned) = (Arc::clone(&shared), name.to_owned());
        let acceptor = std::thread::spawn(move || accept(&listener, &ours, &owned, &does));
        Ok(Self { name: name.to_owned(), address, shared, acceptor: Some(acceptor) })
    }

    /// What health checks are answered from now on.
    pub fn set_status(&self, status: u16) {
        self.shared.status.store(status, Ordering::Relaxed);
    }

    /// How many connections there were.
    pub fn accepted(&self) -> usize {
        usize::from(self.shared.accepted.load(Ordering::Relaxed))
    }

    /// The connections that ended, in that order.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many have ended, to look only at later ones.
    pub fn mark(&self) -> usize {
        self.seen().len()
    }

    /// The first connection that ended after a mark.
    pub fn ended(&self, mark: usize) -> Result<Seen> {
        let what = format!("end of a connection at {}", self.name);
        until(&what, Duration::from_secs(10), || Ok(self.seen().get(mark).cloned()))
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for stream in self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the acceptor.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, name: &str, does: &Does) {
    loop {
        let accepted = listener.accept();
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let Ok((stream, peer)) = accepted else { continue };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        let (shared, name, does) = (Arc::clone(shared), name.to_owned(), does.clone());
        std::thread::spawn(move || {
            // A broken connection shows in the client's result.
            let _ = serve((stream, peer), &shared, &name, &does);
        });
    }
}

fn serve((stream, peer): (TcpStream, SocketAddr), shared: &Shared, name: &str, does: &Does) -> Result<()> {
    // Of one that was reset before this thread had its turn there is an end to be told, too.
    let _ = stream.set_nodelay(true);
    let (mut bytes, mut head) = (0, Vec::new());
    let end = {
        let mut note = |part: &[u8]| {
            bytes += part.len() as u64;
            let room = 4_096_usize.saturating_sub(head.len()).min(part.len());
            head.extend_from_slice(&part[..room]);
        };
        match does {
            Does::Echo => echo(&stream, name, &mut note)?,
            Does::Sum => sum(&stream, name, &mut note)?,
            Does::Greet(text) => {
                (&stream).write_all(text.as_bytes())?;
                stream.shutdown(Shutdown::Write)?;
                read_to_end(&stream, &mut note)?
            }
            Does::Pump(len) => {
                pump(&stream, *len)?;
                stream.shutdown(Shutdown::Write)?;
                read_to_end(&stream, &mut note)?
            }
            Does::Reset => {
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line)?;
                note(line.as_bytes());
                reset(&stream)?;
                End::Open
            }
            Does::Stall => {
                shared.open.lock().unwrap_or_else(PoisonError::into_inner).push(stream.try_clone()?);
                return Ok(());
            }
            Does::Http => http(&stream, (shared.status.load(Ordering::Relaxed), ""), name, &mut note)?,
            Does::Says(status, header) => {
                http(&stream, (*status, &format!("{header}\r\n")), name, &mut note)?
            }
        }
    };
    let seen = Seen { peer, bytes, head, end };
    shared.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
    Ok(())
}

fn echo(mut stream: &TcpStream, name: &str, note: &mut dyn FnMut(&[u8])) -> Result<End> {
    let mut pending = Vec::new();
    let mut failed = false;
    let end = read_to_end(stream, &mut |part| {
        note(part);
        pending.extend_from_slice(part);
        while let Some(at) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=at).collect();
            let answer = [name.as_bytes(), b" ", &line].concat();
            failed |= stream.write_all(&answer).is_err();
        }
    })?;
    // The read tells of a reset, and a failed write has the same cause.
    Ok(if failed { End::Reset } else { end })
}

fn sum(mut stream: &TcpStream, name: &str, note: &mut dyn FnMut(&[u8])) -> Result<End> {
    let mut digest = Digest::default();
    let end = read_to_end(stream, &mut |part| {
        note(part);
        digest.update(part);
    })?;
    if end == End::Eof {
        writeln!(stream, "{name} {} {}", digest.bytes(), digest.hex())?;
    }
    Ok(end)
}

fn pump(mut stream: &TcpStream, len: u64) -> Result<()> {
    let (mut pattern, mut buf) = (Pattern::new(1, len), vec![0; CHUNK]);
    loop {
        match pattern.fill(&mut buf) {
            0 => return Ok(()),
            n => stream.write_all(&buf[..n])?,
        }
    }
}

fn http(
    mut stream: &TcpStream,
    (status, header): (u16, &str),
    name: &str,
    note: &mut dyn FnMut(&[u8]),
) -> Result<End> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Ok(End::Eof);
        }
        head.push(byte[0]);
    }
    note(&head);
    let len = name.len();
    write!(
        stream,
        "HTTP/1.1 {status} X\r\nConnection: close\r\n{header}Content-Length: {len}\r\n\r\n{name}"
    )?;
    Ok(End::Open)
}

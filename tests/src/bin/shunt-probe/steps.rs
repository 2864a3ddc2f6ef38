//! What both ends do on an open connection. A step's name and arguments are separated by colons.
//!
//! | step | client | server |
//! |---|---|---|
//! | `addr` | asks | tells its addresses |
//! | `echo:N` | sends N bytes while it reads them back | sends back |
//! | `hash:N` | sends N bytes and FIN, then reads | counts and hashes to EOF, then answers |
//! | `gen:N` | reads to EOF, then sends the hash and FIN | sends N bytes and FIN, then reads |
//! | `push:N:MS` | as `hash`; once blocked, waits MS and says `go` on another connection | reads after `go` |
//! | `pull:N:MS` | as `gen`, but reads MS after `stalled` was answered on another connection | as `gen` |
//! | `go`, `stalled` | (within `push` and `pull`) | lets `push` read; answers once `pull` is blocked |
//! | `rst:N` | reads N bytes, says so, expects RST | sends N bytes, then RST |
//! | `reset` | RST | reads to the end |
//! | `greet` | reads a line that it did not ask for | (on the greeting port) |
//! | `wait:MS` | waits | |

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use shunt_tests::payload::{CHUNK, Digest, Pattern};

use crate::report::{errno, failure};
use crate::socket::{finish, reset};

/// A write that makes no progress for this long counts as blocked.
const BLOCKED: Duration = Duration::from_millis(300);

/// A parsed step.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) len: u64,
    pub(crate) pause: Duration,
}

impl Step {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.trim().split(':');
        let name = parts.next().unwrap_or_default().to_owned();
        let mut number = || match parts.next() {
            None => Ok(0),
            Some(text) => text.parse::<u64>().map_err(|error| format!("{text}: {error}")),
        };
        let (first, second) = (number()?, number()?);
        // The only number of `wait` is a time.
        let (len, pause) = if name == "wait" { (0, first) } else { (first, second) };
        Ok(Self { name, len, pause: Duration::from_millis(pause) })
    }

    /// What the server is told, if anything.
    pub(crate) fn request(&self) -> Option<String> {
        match self.name.as_str() {
            "greet" | "wait" | "reset" => None,
            name => Some(format!("{name}:{}:{}\n", self.len, self.pause.as_millis())),
        }
    }
}

/// Does a client's step, after its request was sent. The stream is gone after the last one.
pub(crate) fn client(stream: &mut Option<TcpStream>, step: &Step, seed: u64) -> Value {
    let Some(open) = stream.as_ref() else {
        return failure(&step.name, &io::Error::other("the connection is closed"));
    };
    let done = match step.name.as_str() {
        "addr" => line(open).and_then(|text| serde_json::from_str(&text).map_err(io::Error::other)),
        "echo" => echo(open, step.len, seed),
        "hash" | "push" => push(open, step, seed),
        "gen" | "pull" => pull(open, step),
        "rst" => expect_reset(open, step.len),
        "greet" => line(open).map(|text| json!({ "greeting": text })),
        "wait" => {
            std::thread::sleep(step.pause);
            Ok(json!({}))
        }
        "reset" => stream.take().map_or(Ok(()), reset).map(|()| json!({})),
        other => Err(io::Error::other(format!("unknown step {other}"))),
    };
    match done {
        Ok(mut value) => {
            value["step"] = step.name.as_str().into();
            if value["ok"].is_null() {
                value["ok"] = true.into();
            }
            value
        }
        Err(error) => failure(&step.name, &error),
    }
}

fn echo(stream: &TcpStream, len: u64, seed: u64) -> io::Result<Value> {
    let mut writer = stream.try_clone()?;
    let sender = std::thread::spawn(move || send(&mut writer, Pattern::new(seed, len), &mut || ()).map(drop));
    let mut digest = Digest::default();
    let received = receive_exactly(stream, len, &mut digest);
    let sent = sender.join().map_err(|_| io::Error::other("the sender panicked"))?;
    // A reset is told once: to the writer or to the reader, who then sees an end.
    match (received, sent) {
        (Err(_), Err(error)) | (Ok(()), Err(error)) | (Err(error), Ok(())) => return Err(error),
        (Ok(()), Ok(())) => {}
    }
    let ok = digest.hex() == Digest::of(seed, len).hex();
    Ok(json!({ "ok": ok, "bytes": digest.bytes() }))
}

fn push(stream: &TcpStream, step: &Step, seed: u64) -> io::Result<Value> {
    let mut writer = stream.try_clone()?;
    let (to, pause) = (stream.peer_addr()?, step.pause);
    let mut released = step.name != "push";
    let mut release = || {
        if !std::mem::replace(&mut released, true) {
            std::thread::spawn(move || {
                std::thread::sleep(pause);
                control(to, "go")
            });
        }
    };
    let sent = send(&mut writer, Pattern::new(seed, step.len), &mut release)?;
    // Also where nothing held it back: that is for the test to judge.
    release();
    finish(stream)?;
    let (digest, answer) = (Digest::of(seed, step.len), line(stream)?);
    let ok = answer == format!("{} {}", step.len, digest.hex());
    let mut rest = Vec::new();
    (&*stream).read_to_end(&mut rest)?;
    Ok(json!({ "ok": ok && rest.is_empty(), "answer": answer, "blocked_at": sent.blocked_at }))
}

/// Another connection to the same server, for one word and its answer.
fn control(to: SocketAddr, word: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    writeln!(stream, "{word}")?;
    line(&stream).map(drop)
}

fn pull(stream: &TcpStream, step: &Step) -> io::Result<Value> {
    if step.name == "pull" {
        control(stream.peer_addr()?, "stalled")?;
        std::thread::sleep(step.pause);
    }
    let mut digest = Digest::default();
    let end = receive(stream, &mut digest)?;
    // The server has said FIN; this direction is still open.
    let text = format!("{}\n", digest.hex());
    (&*stream).write_all(text.as_bytes())?;
    finish(stream)?;
    let ok = digest.hex() == Digest::of(SERVER_SEED, step.len).hex();
    Ok(json!({ "ok": ok && end.is_none(), "bytes": digest.bytes(), "end": end }))
}

fn expect_reset(stream: &TcpStream, len: u64) -> io::Result<Value> {
    let mut digest = Digest::default();
    receive_exactly(stream, len, &mut digest)?;
    (&*stream).write_all(b"!")?;
    let end = receive(stream, &mut Digest::default())?;
    Ok(json!({ "ok": end.as_deref() == Some("ECONNRESET"), "end": end.as_deref().unwrap_or("EOF") }))
}

/// The stream that a server sends.
pub(crate) const SERVER_SEED: u64 = 99;

/// How a long write went.
pub(crate) struct Sent {
    /// Bytes that had been taken when it first made no progress for [`BLOCKED`].
    pub(crate) blocked_at: Option<u64>,
}

/// Writes a whole pattern. `blocked` is called each time that there is no progress.
pub(crate) fn send(
    stream: &mut TcpStream,
    mut pattern: Pattern,
    blocked: &mut dyn FnMut(),
) -> io::Result<Sent> {
    stream.set_write_timeout(Some(BLOCKED))?;
    let (mut buf, mut total, mut blocked_at) = (vec![0; CHUNK], 0, None);
    loop {
        let n = pattern.fill(&mut buf);
        if n == 0 {
            stream.set_write_timeout(None)?;
            return Ok(Sent { blocked_at });
        }
        let mut at = 0;
        while at < n {
            match stream.write(&buf[at..n]) {
                Ok(count) => at += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    blocked_at.get_or_insert(total + at as u64);
                    blocked();
                }
                Err(error) => return Err(error),
            }
        }
        total += n as u64;
    }
}

/// Reads to EOF, or to an error of the peer's, whose name it returns.
pub(crate) fn receive(mut stream: &TcpStream, digest: &mut Digest) -> io::Result<Option<String>> {
    let mut buf = vec![0; CHUNK];
    loop {
        match stream.read(&mut buf) {
            Ok(0) => return Ok(None),
            Ok(n) => digest.update(&buf[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Ok(Some(errno(&error))),
        }
    }
}

fn receive_exactly(mut stream: &TcpStream, len: u64, digest: &mut Digest) -> io::Result<()> {
    let mut buf = vec![0; CHUNK];
    while digest.bytes() < len {
        let want = usize::try_from(len - digest.bytes()).unwrap_or(CHUNK).min(CHUNK);
        match stream.read(&mut buf[..want])? {
            0 => return Err(io::Error::other(format!("EOF after {} of {len} bytes", digest.bytes()))),
            n => digest.update(&buf[..n]),
        }
    }
    Ok(())
}

/// Reads a line without its end, byte by byte: what follows is not ours. Empty at EOF.
pub(crate) fn line(mut stream: &TcpStream) -> io::Result<String> {
    let mut text = String::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        text.push(char::from(byte[0]));
    }
    Ok(text)
}

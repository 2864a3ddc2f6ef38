//! The multi-command server: a thread per connection; what it saw of each is an event on stdout.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use shunt_tests::payload::{CHUNK, Digest, Pattern};

use crate::options::Options;
use crate::report::{errno, print};
use crate::socket::{finish, listen, reset};
use crate::steps::{SERVER_SEED, Step, line, receive, send};

const STACK: usize = 256 * 1024;

pub(crate) fn run(options: &Options) -> Result<bool, String> {
    let port = options.listen.first().map_or(0, SocketAddr::port);
    let open = |port| listen(port).map(TcpListener::from).map_err(|error| format!("cannot listen: {error}"));
    let (main, greeting) = (open(port)?, open(0)?);
    let number = |l: &TcpListener| l.local_addr().map(|a| a.port()).map_err(|error| error.to_string());
    print(&json!({ "event": "listening", "port": number(&main)?, "greeting_port": number(&greeting)? }));
    let gates = Arc::new(Gates::default());
    let same = gates.clone();
    thread::spawn(move || accept(&greeting, true, &same));
    accept(&main, false, &gates);
    Ok(true)
}

/// What holds `push` and `pull` up, for one of each in the server's life.
#[derive(Default)]
struct Gates {
    go: Gate,
    stalled: Gate,
}

#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }

    /// Not forever: the other end may be gone.
    fn wait(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.opened.wait_timeout_while(open, Duration::from_secs(60), |open| !*open));
    }
}

fn accept(listener: &TcpListener, greet: bool, gates: &Arc<Gates>) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let gates = gates.clone();
                let serve = move || connection(stream, greet, &gates);
                if let Err(error) = thread::Builder::new().stack_size(STACK).spawn(serve) {
                    eprintln!("no thread: {error}");
                }
            }
            Err(error) => {
                eprintln!("accept: {error}");
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Serves one connection to its end.
fn connection(stream: TcpStream, greet: bool, gates: &Gates) {
    let (peer, local) = (stream.peer_addr().ok(), stream.local_addr().ok());
    let mut event = json!({
        "event": "end", "command": "none", "end": "EOF",
        "peer": peer.map(|a| a.to_string()), "local": local.map(|a| a.to_string()),
    });
    if let Err(error) = commands(stream, greet, gates, &mut event) {
        event["end"] = errno(&error).into();
    }
    print(&event);
}

fn commands(stream: TcpStream, greet: bool, gates: &Gates, event: &mut Value) -> io::Result<()> {
    if greet {
        (&stream).write_all(b"hello from the server\n")?;
    }
    loop {
        let text = line(&stream)?;
        if text.is_empty() {
            return Ok(());
        }
        let step = Step::parse(&text).map_err(io::Error::other)?;
        event["command"] = step.name.as_str().into();
        match step.name.as_str() {
            "addr" => tell_addresses(&stream)?,
            "echo" => echo(&stream, step.len)?,
            "hash" => return hash(&stream, event),
            "push" => {
                gates.go.wait();
                return hash(&stream, event);
            }
            "gen" | "pull" => return generate(&stream, &step, gates, event),
            "go" => {
                gates.go.open();
                (&stream).write_all(b"done\n")?;
            }
            "stalled" => {
                gates.stalled.wait();
                (&stream).write_all(b"done\n")?;
            }
            "rst" => return send_reset(stream, step.len),
            other => return Err(io::Error::other(format!("unknown command {other}"))),
        }
    }
}

fn tell_addresses(mut stream: &TcpStream) -> io::Result<()> {
    let (peer, local) = (stream.peer_addr()?.to_string(), stream.local_addr()?.to_string());
    writeln!(stream, "{}", json!({ "peer": peer, "local": local }))
}

fn echo(mut stream: &TcpStream, len: u64) -> io::Result<()> {
    let (mut buf, mut left) = (vec![0; CHUNK], len);
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let n = stream.read(&mut buf[..want])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        stream.write_all(&buf[..n])?;
        left -= n as u64;
    }
    Ok(())
}

fn hash(mut stream: &TcpStream, event: &mut Value) -> io::Result<()> {
    let mut digest = Digest::default();
    let end = receive(stream, &mut digest)?;
    event["received"] = digest.bytes().into();
    if let Some(end) = end {
        event["end"] = end.into();
        return Ok(());
    }
    // The client has said FIN; the answer goes the other way.
    writeln!(stream, "{} {}", digest.bytes(), digest.hex())
}

fn generate(stream: &TcpStream, step: &Step, gates: &Gates, event: &mut Value) -> io::Result<()> {
    let mut writer = stream.try_clone()?;
    let sent = send(&mut writer, Pattern::new(SERVER_SEED, step.len), &mut || gates.stalled.open())?;
    gates.stalled.open();
    event["blocked_at"] = sent.blocked_at.into();
    finish(stream)?;
    let answer = line(stream)?;
    event["answer_ok"] = (answer == Digest::of(SERVER_SEED, step.len).hex()).into();
    let end = receive(stream, &mut Digest::default())?;
    event["end"] = end.as_deref().unwrap_or("EOF").into();
    Ok(())
}

fn send_reset(mut stream: TcpStream, len: u64) -> io::Result<()> {
    send(&mut stream, Pattern::new(SERVER_SEED, len), &mut || ())?;
    // Not before the client has everything: RST may discard what is under way.
    stream.read_exact(&mut [0])?;
    reset(stream)
}

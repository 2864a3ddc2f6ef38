//! A backend that answers each request with the head that it got, and a client of plain HTTP/1.1.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};

/// Ends when it is dropped.
pub struct HttpEcho {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

/// One answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// In lower case, in their order.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

const LIMIT: Duration = Duration::from_secs(10);
/// A proxy may keep a connection that it has no use for.
const IDLE: Duration = Duration::from_secs(120);

impl HttpEcho {
    /// Its name is in the header `x-backend` of each answer.
    pub fn start(name: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let stop = Arc::<AtomicBool>::default();
        let (told, name) = (stop.clone(), name.to_owned());
        let acceptor = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if told.load(Ordering::SeqCst) {
                    return;
                }
                let name = name.clone();
                // A client that goes is no failure of the backend.
                std::thread::spawn(move || drop(serve(stream, &name)));
            }
        });
        Ok(Self { address, stop, acceptor: Some(acceptor) })
    }
}

impl Drop for HttpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            drop(acceptor.join());
        }
    }
}

fn serve(stream: TcpStream, name: &str) -> Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(reader.read_line(&mut head)? > 0, "the end");
        }
        let head = head.trim_end();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nx-backend: {name}\r\nx-of-upstream: 1\r\ncontent-length: {}\r\n\r\n{head}",
            head.len()
        );
        reader.get_mut().write_all(answer.as_bytes())?;
    }
}

/// Sends a request without a body on a connection of its own.
pub fn ask(to: SocketAddr, line: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut text = format!("{line} HTTP/1.1\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    stream.write_all((text + "\r\n").as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(reader.read_line(&mut head)? > 0, "the end after {head:?}");
    }
    let mut answer = Answer::parse(&head)?;
    if line.starts_with("HEAD ") || matches!(answer.status, 204 | 304) {
        return Ok(answer);
    }
    let length = answer.header("content-length").map_or(Ok(0), str::parse)?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).with_context(|| format!("{length} bytes after {head:?}"))?;
    answer.body = String::from_utf8_lossy(&body).into_owned();
    Ok(answer)
}

impl Answer {
    fn parse(head: &str) -> Result<Self> {
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status line")?;
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        let headers = lines.filter_map(header).collect();
        Ok(Self { status: status.parse()?, headers, body: String::new() })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Its headers by name, but for those that are each run's own.
    pub fn shown(&self) -> Value {
        json!({ "status": self.status, "headers": fields(&self.headers), "body": self.body })
    }

    /// The head that came to [`HttpEcho`]: its first line, and its headers by name.
    pub fn echoed(&self) -> Value {
        let mut lines = self.body.lines();
        let first = lines.next().unwrap_or_default();
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        json!({ "line": first, "headers": fields(&headers) })
    }
}

/// Several of one name are joined, as any proxy may do.
fn fields(headers: &[(String, String)]) -> Value {
    const OWN: &[&str] = &["date", "x-envoy-upstream-service-time", "x-request-id"];
    let mut all: Map<String, Value> = Map::new();
    for (name, value) in headers {
        let value = if OWN.contains(&name.as_str()) { "…" } else { value };
        let joined = match all.get(name) {
            Some(known) => format!("{},{value}", known.as_str().unwrap_or_default()),
            None => value.to_owned(),
        };
        all.insert(name.clone(), joined.into());
    }
    Value::Object(all)
}

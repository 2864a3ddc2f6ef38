//! A client of a proxy's admin, at a socket of the file system or at an address: one HTTP/1.1 request per connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

#[derive(Clone, Debug)]
pub struct Admin {
    place: Socket,
}

#[derive(Clone, Debug)]
enum Socket {
    File(PathBuf),
    Address(SocketAddr),
}

trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Admin {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { place: Socket::File(socket) }
    }

    pub(crate) fn at(address: SocketAddr) -> Self {
        Self { place: Socket::Address(address) }
    }

    /// Where it is, if that is an address.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.place {
            Socket::File(_) => None,
            Socket::Address(address) => Some(*address),
        }
    }

    pub fn get(&self, path: &str) -> Result<Answer> {
        self.request("GET", path, "")
    }

    /// GET that must be answered 200.
    pub fn ok(&self, path: &str) -> Result<String> {
        let answer = self.get(path)?;
        ensure!(answer.status == 200, "GET {path}: {answer:?}");
        Ok(answer.body)
    }

    /// The entries of `GET /workloads`.
    pub fn workloads(&self) -> Result<Vec<Value>> {
        let body = self.ok("/workloads")?;
        serde_json::from_str(&body).with_context(|| format!("GET /workloads: {body}"))
    }

    /// One workload's entry, if it is enrolled.
    pub fn workload(&self, name: &str) -> Result<Option<Value>> {
        Ok(self.workloads()?.into_iter().find(|w| w["name"] == name))
    }

    pub fn post(&self, path: &str, body: &str) -> Result<Answer> {
        self.request("POST", path, body)
    }

    pub fn delete(&self, path: &str) -> Result<Answer> {
        self.request("DELETE", path, "")
    }

    /// A JSON answer, of status 200.
    pub fn json(&self, path: &str) -> Result<Value> {
        let body = self.ok(path)?;
        serde_json::from_str(&body).with_context(|| format!("GET {path}: {body:.2000}"))
    }

    pub fn request(&self, method: &str, path: &str, body: &str) -> Result<Answer> {
        let mut stream = self.connect().with_context(|| format!("cannot connect to {:?}", self.place))?;
        let len = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n{body}"
        )?;
        let mut raw = String::new();
        stream.read_to_string(&mut raw).with_context(|| format!("{method} {path}: no answer"))?;
        parse(&raw).with_context(|| format!("{method} {path}: {raw:.2000?}"))
    }

    fn connect(&self) -> Result<Box<dyn Stream>> {
        let limit = Some(Duration::from_secs(20));
        match &self.place {
            Socket::File(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(limit)?;
                Ok(Box::new(stream))
            }
            Socket::Address(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_read_timeout(limit)?;
                Ok(Box::new(stream))
            }
        }
    }
}

fn parse(raw: &str) -> Result<Answer> {
    let (head, body) = raw.split_once("\r\n\r\n").context("no end of the head")?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no status")?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { dechunk(body)? } else { body.to_owned() };
    Ok(Answer { status, body })
}

fn dechunk(mut rest: &str) -> Result<String> {
    let mut out = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").context("no chunk size")?;
        let size = usize::from_str_radix(size.trim(), 16).context("bad chunk size")?;
        if size == 0 {
            return Ok(out);
        }
        let Some((chunk, tail)) = after.split_at_checked(size) else { bail!("short chunk") };
        out += chunk;
        rest = tail.strip_prefix("\r\n").context("no end of the chunk")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined() {
        let raw = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let answer = parse(raw).expect("valid");
        assert_eq!((answer.status, answer.body.as_str()), (200, "abcde"));
    }
}

//! A client that says exactly what it is told to, and a server that tells what it was asked.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(20);

/// A message as it came.
pub(crate) struct Message {
    pub(crate) first: String,
    pub(crate) headers: BTreeMap<String, Vec<String>>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// A request, or a response, with a body or without.
    pub(crate) fn read(from: &mut impl BufRead, end: Option<bool>) -> Result<Option<Self>> {
        let mut first = String::new();
        if from.read_line(&mut first)? == 0 {
            return Ok(None);
        }
        let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        loop {
            let mut line = String::new();
            from.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.entry(name.to_ascii_lowercase()).or_default().push(value.trim().to_owned());
        }
        let mut message = Self { first: first.trim_end().to_owned(), headers, body: Vec::new() };
        if end != Some(false) {
            message.read_body(from, end.is_some())?;
        }
        Ok(Some(message))
    }

    fn read_body(&mut self, from: &mut impl BufRead, ends_with_it: bool) -> Result<()> {
        if self.header("transfer-encoding") == Some("chunked") {
            loop {
                let mut size = String::new();
                from.read_line(&mut size)?;
                let size = usize::from_str_radix(size.trim(), 16).context("a chunk's size")?;
                let mut chunk = vec![0; size + 2];
                from.read_exact(&mut chunk)?;
                chunk.truncate(size);
                self.body.append(&mut chunk);
                if size == 0 {
                    return Ok(());
                }
            }
        }
        match self.header("content-length").map(str::parse) {
            Some(length) => {
                self.body.resize(length?, 0);
                from.read_exact(&mut self.body)?;
            }
            None if ends_with_it => drop(from.read_to_end(&mut self.body)?),
            None => {}
        }
        Ok(())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|values| values.first()).map(String::as_str)
    }

    /// What is compared: nothing of it differs from one run to the next.
    pub(crate) fn compared(&self) -> Value {
        let mut headers = self.headers.clone();
        for name in
            ["date", "x-request-id", "x-envoy-upstream-service-time", "connection", "transfer-encoding"]
        {
            headers.remove(name);
        }
        if self.header("content-encoding").is_some() {
            headers.remove("content-length");
        }
        let body = match self.header("content-encoding") {
            Some(encoding) => format!("{encoding}: {} bytes or so", self.body.len() / 1_000 * 1_000),
            None => String::from_utf8_lossy(&self.body).into_owned(),
        };
        let status = self.first.split(' ').nth(1);
        json!({ "status": status, "headers": headers, "body": body })
    }
}

/// One request on a connection of its own.
pub(crate) fn ask(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Message> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: test.example\r\nconnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        text += &format!("content-length: {}\r\n", body.len());
    }
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(LONG))?;
    stream.write_all(&[text.as_bytes(), b"\r\n", body].concat())?;
    let mut reader = BufReader::new(stream);
    Message::read(&mut reader, Some(method != "HEAD"))?.context("no answer")
}

/// Answers with what it was asked; `x-want-…` headers say what else. It lives as long as the test.
pub(crate) fn server() -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(&stream));
        }
    });
    Ok(address)
}

fn serve(stream: &TcpStream) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = Message::read(&mut reader, None)? {
        let mut writer = stream;
        writer.write_all(&answer(&request))?;
    }
    Ok(())
}

fn answer(request: &Message) -> Vec<u8> {
    let mut seen = request.headers.clone();
    seen.retain(|name, _| !name.starts_with("x-want-") && name != "x-request-id");
    let times = request.header("x-want-times").and_then(|times| times.parse().ok()).unwrap_or(1);
    let told =
        json!({ "asked": request.first, "headers": seen, "body": String::from_utf8_lossy(&request.body) });
    let body = vec![told.to_string(); times].join("\n");
    let status = request.header("x-want-status").unwrap_or("200");
    let content_type = request.header("x-want-type").unwrap_or("application/json");
    let more = request.headers.get("x-want-header").cloned().unwrap_or_default();
    let more: String = more.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    let body = if request.first.starts_with("HEAD ") { "" } else { &body };
    format!(
        "HTTP/1.1 {status} Said\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n{more}\r\n{body}"
    )
    .into_bytes()
}

//! A client of HTTP/1.1 that says what it is told to, and tells how its answer came and ended.

mod h2;

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

pub use self::h2::Http2;

/// A request.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: String,
    pub path: String,
    pub host: String,
    pub headers: Vec<(String, String)>,
    pub body: Body,
    /// The client goes after so long, whatever it has.
    pub leaves: Option<Duration>,
}

/// What it brings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Body {
    #[default]
    None,
    /// So many bytes, with their length.
    Sized(usize),
    /// In chunks.
    Chunked(Vec<usize>),
    /// The first of these are sent, and then nothing for so long.
    Stalls(usize, usize, Duration),
}

const LONG: Duration = Duration::from_secs(15);

impl Ask {
    pub fn get(path: &str) -> Self {
        Self {
            method: "GET".into(),
            path: path.into(),
            host: "a.test".into(),
            headers: vec![],
            body: Body::None,
            leaves: None,
        }
    }

    pub fn post(path: &str, body: Body) -> Self {
        Self { method: "POST".into(), body, ..Self::get(path) }
    }

    pub fn host(self, host: &str) -> Self {
        Self { host: host.into(), ..self }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// What the backend is to do: `x-do`.
    pub fn plan(self, plan: &str) -> Self {
        self.header("x-do", plan)
    }

    pub fn grpc(self) -> Self {
        self.header("content-type", "application/grpc").header("te", "trailers")
    }

    pub fn leaves(self, after: Duration) -> Self {
        Self { leaves: Some(after), ..self }
    }

    /// On a connection of its own. What differs from one run to the next is not shown.
    pub fn send(&self, to: SocketAddr) -> Result<Value> {
        self.begin(to)?.answer()
    }

    /// The request is on its way.
    pub fn begin(&self, to: SocketAddr) -> Result<Begun<'_>> {
        let stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.leaves.unwrap_or(LONG)))?;
        // Who answers early may close before all of it is read.
        drop(self.write(&stream));
        Ok(Begun { ask: self, stream })
    }

    fn write(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let mut text = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", self.method, self.path, self.host);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        match &self.body {
            Body::None => {}
            Body::Sized(length) | Body::Stalls(_, length, _) => {
                text += &format!("content-length: {length}\r\n");
            }
            Body::Chunked(_) => text += "transfer-encoding: chunked\r\n",
        }
        text += "\r\n";
        // With the head: who answers at once would have the body already or not, by chance.
        match &self.body {
            Body::None => {}
            Body::Sized(length) => text += &"b".repeat(*length),
            Body::Chunked(sizes) => {
                for size in sizes {
                    text += &format!("{size:x}\r\n{}\r\n", "b".repeat(*size));
                }
                text += "0\r\n\r\n";
            }
            Body::Stalls(first, ..) => text += &"b".repeat(*first),
        }
        stream.write_all(text.as_bytes())?;
        if let Body::Stalls(first, length, pause) = &self.body {
            std::thread::sleep(*pause);
            stream.write_all(&vec![b'b'; length - first])?;
        }
        Ok(())
    }
}

/// A request whose answer is still to be read.
pub struct Begun<'a> {
    ask: &'a Ask,
    stream: TcpStream,
}

impl Begun<'_> {
    pub fn answer(self) -> Result<Value> {
        let Self { ask, stream } = self;
        if ask.leaves.is_some() {
            let mut all = Vec::new();
            drop((&stream).read_to_end(&mut all));
            stream.shutdown(Shutdown::Both)?;
            return Ok(json!("left"));
        }
        Answer::read(&mut BufReader::new(stream), ask.method == "HEAD").with_context(|| format!("{ask:?}"))
    }
}

/// A response, as it is shown.
struct Answer;

impl Answer {
    fn read(from: &mut BufReader<TcpStream>, is_head: bool) -> Result<Value> {
        let mut first = String::new();
        if let Err(error) = from.read_line(&mut first) {
            return Ok(json!({ "end": kind(&error) }));
        }
        if first.is_empty() {
            return Ok(json!({ "end": "closed" }));
        }
        let headers = fields(from)?;
        let status = first.split(' ').nth(1).unwrap_or_default().trim().to_owned();
        let (mut body, mut end, mut trailers) = (Vec::new(), "whole", Map::new());
        let has = |name: &str| headers.get(name).and_then(Value::as_str).map(str::to_owned);
        if is_head || matches!(&*status, "204" | "304") {
        } else if has("transfer-encoding").is_some() {
            match chunks(from, &mut body) {
                Ok(()) => trailers = fields(from)?,
                Err(_) => end = "cut off",
            }
        } else if let Some(length) = has("content-length") {
            let n = from.take(length.parse()?).read_to_end(&mut body).unwrap_or_default();
            if n.to_string() != length {
                end = "cut off";
            }
        } else {
            drop(from.read_to_end(&mut body));
        }
        Ok(json!({
            "status": status, "headers": own(headers), "body": shown(&body, end), "end": end,
            "trailers": own(trailers),
        }))
    }
}

fn kind(error: &std::io::Error) -> &'static str {
    let kind = error.kind();
    if matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut) {
        "nothing"
    } else if kind == ErrorKind::ConnectionReset {
        "reset"
    } else {
        "error"
    }
}

/// Of one that was cut off, how much came is a matter of chance.
fn shown(body: &[u8], end: &str) -> String {
    if end != "whole" {
        return "…".to_owned();
    }
    let text = String::from_utf8_lossy(body);
    if text.len() > 400 { format!("{} bytes", text.len()) } else { text.into_owned() }
}

fn chunks(from: &mut BufReader<TcpStream>, body: &mut Vec<u8>) -> Result<()> {
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim(), 16)?;
        if size == 0 {
            return Ok(());
        }
        let mut chunk = vec![0; size + 2];
        from.read_exact(&mut chunk)?;
        body.extend_from_slice(&chunk[..size]);
    }
}

/// In lower case; several of one name are joined.
fn fields(from: &mut BufReader<TcpStream>) -> Result<Map<String, Value>> {
    let mut all: Map<String, Value> = Map::new();
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { return Ok(all) };
        let (name, value) = (name.to_ascii_lowercase(), value.trim());
        let value = match all.get(&name).and_then(Value::as_str) {
            Some(known) => format!("{known},{value}"),
            None => value.to_owned(),
        };
        all.insert(name, value.into());
    }
}

fn own(mut headers: Map<String, Value>) -> Map<String, Value> {
    for name in ["date", "x-request-id", "x-envoy-upstream-service-time"] {
        if let Some(value) = headers.get_mut(name) {
            *value = "…".into();
        }
    }
    headers
}

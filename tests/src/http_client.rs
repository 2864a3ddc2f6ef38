//! A client of HTTP/1.1 and HTTP/2 that keeps its connection for as long as the server lets it, as real ones do.
//!
//! After `Connection: close`, and after a GOAWAY, it connects anew. A request that was never sent, or that the server
//! has said not to have looked at, is sent again; anything else that goes wrong is an error.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{CONNECTION, HOST};
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::TlsClient;

const LIMIT: Duration = Duration::from_secs(20);
/// A request is sent again so often at most: each time over another connection.
const TRIES: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http1,
    Http2,
}

/// One client, with one connection at a time.
pub struct HttpClient {
    to: SocketAddr,
    version: Version,
    tls: Option<Arc<rustls::ClientConfig>>,
    sender: Option<Sender>,
    /// How many there were.
    pub connections: usize,
    /// By the connection of now.
    asked: usize,
    since: Instant,
}

enum Sender {
    Http1(http1::SendRequest<String>),
    Http2(http2::SendRequest<String>),
}

/// What has come.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// What became of a request.
enum Sent {
    Reply(Reply),
    /// Nobody has seen it.
    Again,
}

impl HttpClient {
    pub fn new(to: SocketAddr, version: Version) -> Self {
        Self { to, version, tls: None, sender: None, connections: 0, asked: 0, since: Instant::now() }
    }

    /// Over TLS; any certificate will do.
    pub fn tls(self) -> Result<Self> {
        let protocol = match self.version {
            Version::Http1 => "http/1.1",
            Version::Http2 => "h2",
        };
        let tls = TlsClient::new().alpn(&[protocol]).ready()?.config();
        Ok(Self { tls: Some(tls), ..self })
    }

    /// The whole response.
    pub async fn get(&mut self, path: &str) -> Result<Reply> {
        let asked = async {
            for _ in 0..TRIES {
                if let Sent::Reply(reply) = self.once(path).await? {
                    return Ok(reply);
                }
                self.sender = None;
            }
            bail!("{TRIES} connections would not take a request")
        };
        timeout(LIMIT, asked).await.context("nothing has come in time")?
    }

    async fn once(&mut self, path: &str) -> Result<Sent> {
        let mut sender = match self.sender.take() {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let request = match self.version {
            Version::Http1 => Request::get(path).header(HOST, "h"),
            Version::Http2 => Request::get(format!("http://h{path}")),
        };
        self.asked += 1;
        let response = match sender.send(request.body(String::new())?).await {
            Ok(Some(response)) => response,
            Ok(None) => return Ok(Sent::Again),
            Err(error) => return Err(error).with_context(|| self.place("no response")),
        };
        let closes = response.headers().get(CONNECTION).is_some_and(|value| value == "close");
        let reply = read(response).await.with_context(|| self.place("an incomplete response"))?;
        self.since = Instant::now();
        if !closes {
            self.sender = Some(sender);
        }
        Ok(Sent::Reply(reply))
    }

    fn place(&self, what: &str) -> String {
        let Self { connections, asked, since, .. } = self;
        format!("{what}: request {asked} of connection {connections}, {:?} after the last", since.elapsed())
    }

    async fn connect(&mut self) -> Result<Sender> {
        self.connections += 1;
        (self.asked, self.since) = (0, Instant::now());
        let stream = TcpStream::connect(self.to).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => begin(stream, self.version).await,
            Some(tls) => {
                let name = std::net::Ipv4Addr::LOCALHOST.into();
                let stream = TlsConnector::from(tls.clone()).connect(name, stream).await;
                begin(stream.context("the handshake")?, self.version).await
            }
        }
    }
}

async fn begin<S>(stream: S, version: Version) -> Result<Sender>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    Ok(match version {
        Version::Http1 => {
            let (sender, connection) = http1::handshake(io).await?;
            // How it ends shows in what is asked on it.
            tokio::spawn(async move { drop(connection.await) });
            Sender::Http1(sender)
        }
        Version::Http2 => {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(async move { drop(connection.await) });
            Sender::Http2(sender)
        }
    })
}

impl Sender {
    /// None: it was not sent, or the server has not looked at it.
    async fn send(&mut self, request: Request<String>) -> Result<Option<Response<Incoming>>> {
        let sent = match self {
            Self::Http1(sender) => match sender.ready().await {
                Ok(()) => sender.try_send_request(request).await,
                Err(_) => return Ok(None),
            },
            Self::Http2(sender) => match sender.ready().await {
                Ok(()) => sender.try_send_request(request).await,
                Err(_) => return Ok(None),
            },
        };
        match sent {
            Ok(response) => Ok(Some(response)),
            Err(mut error) => {
                if error.take_message().is_some() {
                    return Ok(None);
                }
                let error = error.into_error();
                // Of those alone that come after the last one that the server has taken.
                let gone = format!("{error:?}");
                if gone.contains("GoAway") && gone.contains("NO_ERROR") {
                    Ok(None)
                } else {
                    Err(error.into())
                }
            }
        }
    }
}

async fn read(response: Response<Incoming>) -> Result<Reply> {
    let (head, mut body) = response.into_parts();
    let mut all = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            all.extend_from_slice(&data);
        }
    }
    Ok(Reply { status: head.status.as_u16(), headers: head.headers, body: all })
}

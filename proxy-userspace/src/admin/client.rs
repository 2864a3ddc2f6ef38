//! The other end of the admin API, for the command line.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// An answer of the admin API.
pub struct Reply {
    pub status: StatusCode,
    pub body: String,
}

/// Where a daemon is asked.
#[derive(Clone, Debug)]
pub enum Daemon {
    /// Its unix socket.
    Socket(PathBuf),
    /// `HOST:PORT`.
    Address(String),
}

/// Asks the daemon that serves `socket`.
pub async fn request(socket: &Path, method: Method, path: &str, body: String) -> Result<Reply> {
    let daemon = Daemon::Socket(socket.to_owned());
    daemon.exchange(method, path, body, whole).await
}

impl Daemon {
    pub async fn get(&self, path: &str) -> Result<Reply> {
        self.exchange(Method::GET, path, String::new(), whole).await
    }

    /// Hands each line of an answer on as it comes, until that ends. One that is no success is returned.
    pub async fn follow(&self, path: &str, line: impl FnMut(&str) -> Result<()>) -> Result<Option<Reply>> {
        self.exchange(Method::GET, path, String::new(), async |response| lines(response, line).await).await
    }

    async fn exchange<T>(
        &self,
        method: Method,
        path: &str,
        body: String,
        read: impl AsyncFnOnce(Response<Incoming>) -> Result<T>,
    ) -> Result<T> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "shunt")
            .body(Full::new(Bytes::from(body)))?;
        let hint = |at: &str| format!("{at}: is the daemon running? (shunt run)");
        match self {
            Self::Socket(path) => {
                let stream = UnixStream::connect(path).await;
                over(stream.with_context(|| hint(&path.display().to_string()))?, request, read).await
            }
            Self::Address(address) => {
                let stream = TcpStream::connect(address).await;
                over(stream.with_context(|| hint(address))?, request, read).await
            }
        }
    }
}

async fn over<T>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Full<Bytes>>,
    read: impl AsyncFnOnce(Response<Incoming>) -> Result<T>,
) -> Result<T> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        read(response).await
    };
    // The connection is driven here, not in a task: it ends with the answer.
    tokio::pin!(exchange, connection);
    tokio::select! {
        biased;
        reply = &mut exchange => reply,
        end = &mut connection => {
            end.context("the daemon closed the connection: only root outside every workload may ask")?;
            // What has come may not be read yet.
            exchange.await.context("the daemon closed the connection without an answer")
        }
    }
}

async fn whole(response: Response<Incoming>) -> Result<Reply> {
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok(Reply { status, body: String::from_utf8_lossy(&body).into_owned() })
}

async fn lines(
    response: Response<Incoming>,
    mut line: impl FnMut(&str) -> Result<()>,
) -> Result<Option<Reply>> {
    if !response.status().is_success() {
        return whole(response).await.map(Some);
    }
    let mut body = response.into_body();
    let mut rest: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        rest.extend_from_slice(&frame?.into_data().unwrap_or_default());
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let whole: Vec<u8> = rest.drain(..=end).collect();
            line(String::from_utf8_lossy(&whole).trim_end())?;
        }
    }
    Ok(None)
}

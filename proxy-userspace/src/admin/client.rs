//! The other end of the unix socket, for the command line.

use std::path::Path;

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// An answer of the admin API.
pub struct Reply {
    pub status: StatusCode,
    pub body: String,
}

/// Asks the daemon that serves `socket`.
pub async fn request(socket: &Path, method: Method, path: &str, body: String) -> Result<Reply> {
    let stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("{}: is the daemon running? (shunt run)", socket.display()))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, "shunt")
        .body(Full::new(Bytes::from(body)))?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Ok(Reply { status, body: String::from_utf8_lossy(&body).into_owned() })
    };
    // The connection is driven here, not in a task: it ends with the answer.
    tokio::select! {
        reply = exchange => reply,
        end = connection => {
            end.context("the daemon closed the connection: only root outside every workload may ask")?;
            anyhow::bail!("the daemon closed the connection without an answer")
        }
    }
}

//! A connection by which a host is asked in HTTP.

use std::convert::Infallible;
use std::io::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Frame;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::rt::Executor;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use proxy_config::model::address::Address;
use tokio::task::AbortHandle;

use super::tcp;
use crate::cluster::host::Host;
use crate::cluster::{Cluster, Env};
use crate::task::Tasks;

/// What is asked, without a length that is told, as Envoy does.
#[derive(Default)]
pub(super) struct Body(pub(super) Option<Bytes>);

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

/// An open connection, with the task that drives it.
pub(super) struct Connection {
    send: Send,
    task: AbortHandle,
}

enum Send {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

/// Where a check is asked.
pub(super) struct To<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) host: &'a Host,
    pub(super) address: &'a Address,
    pub(super) env: &'a Env,
    pub(super) http2: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl To<'_> {
    /// What the host is called where the check does not say.
    pub(super) fn authority<'a>(&'a self, of_check: &'a str) -> &'a str {
        let own = self.host.extra().map(|extra| &*extra.health_check.hostname);
        let of_check = if of_check.is_empty() { &*self.cluster.model.name } else { of_check };
        own.filter(|name| !name.is_empty()).unwrap_or(of_check)
    }

    /// The connection of the last check, if that is still there, or a new one.
    pub(super) async fn connect(&self, kept: &mut Option<Connection>) -> Option<Connection> {
        match kept.take().filter(Connection::is_ready) {
            Some(connection) => Some(connection),
            None => self.open().await,
        }
    }

    async fn open(&self) -> Option<Connection> {
        let Self { cluster, host, address, env, http2 } = *self;
        let stream = TokioIo::new(tcp::open(cluster, host, address, env.dial.as_ref()).await?);
        // How a connection ends shows in the next request.
        let (send, task) = if http2 {
            let builder = http2::Builder::new(Spawner(env.tasks.clone()));
            let (send, drive) = builder.handshake(stream).await.ok()?;
            (Send::Http2(send), env.tasks.spawn("health_check_connection", async { drop(drive.await) }))
        } else {
            let (send, drive) = http1::handshake(stream).await.ok()?;
            (Send::Http1(send), env.tasks.spawn("health_check_connection", async { drop(drive.await) }))
        };
        Some(Connection { send, task: task.abort_handle() })
    }
}

impl Connection {
    fn is_ready(&self) -> bool {
        match &self.send {
            Send::Http1(send) => send.is_ready(),
            Send::Http2(send) => send.is_ready(),
        }
    }

    pub(super) async fn ask(&mut self, request: Request<Body>) -> Result<Response<Incoming>, Error> {
        let response = match &mut self.send {
            Send::Http1(send) => send.send_request(request).await,
            Send::Http2(send) => send.send_request(request).await,
        };
        response.map_err(Error::other)
    }
}

/// Where the streams of HTTP/2 have their tasks.
#[derive(Clone)]
struct Spawner(Tasks);

impl<F: Future<Output: std::marker::Send> + std::marker::Send + 'static> Executor<F> for Spawner {
    fn execute(&self, future: F) {
        drop(self.0.spawn("health_check_stream", async { drop(future.await) }));
    }
}

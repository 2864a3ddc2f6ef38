//! The codec: what it refuses, and both of its ends against real sockets.

mod client;
mod corpus;
mod malformed;
mod random;
mod server;
mod tunnel;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::cluster::{self, Connected};
use crate::http::{Body, Io, Reset};
use crate::net::rig::LONG;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    client.set_nodelay(true).unwrap();
    (client, server)
}

async fn server(settings: Settings) -> (TcpStream, Server) {
    let (client, socket) = pair().await;
    let io = Io::Client { socket: Arc::new(socket), transport: None };
    (client, Server::new(io, Bytes::new(), Arc::new(settings)))
}

async fn client(settings: Settings) -> (TcpStream, Client) {
    let (socket, upstream) = pair().await;
    let io = cluster::Io::Tcp(socket);
    let io = Io::Upstream(Connected { io, transport: None, peer: None, took: Duration::ZERO });
    (upstream, Client::new(io, Arc::new(settings)))
}

async fn all(body: &mut Body) -> String {
    let mut data = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame.unwrap().into_data() {
            data.extend_from_slice(&piece);
        }
    }
    String::from_utf8(data).unwrap()
}

/// A body that comes as it is sent: dropped by its sender, it is at its end.
fn fed() -> (mpsc::UnboundedSender<Result<Frame<Bytes>, Reset>>, Body) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Body::stream(Fed(receiver)))
}

struct Fed(mpsc::UnboundedReceiver<Result<Frame<Bytes>, Reset>>);

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        self.0.poll_recv(cx)
    }
}

fn data(text: &'static str) -> Result<Frame<Bytes>, Reset> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

/// Reads until `end` has come, and whatever came with it.
async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut all = Vec::new();
    while !all.windows(end.len()).any(|window| window == end.as_bytes()) {
        let mut piece = [0; 4096];
        let n = timeout(LONG, stream.read(&mut piece)).await.unwrap().unwrap();
        assert!(n > 0, "it ended with {:?}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&piece[..n]);
    }
    String::from_utf8(all).unwrap()
}

/// Reads to the end.
async fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    timeout(LONG, stream.read_to_end(&mut all)).await.unwrap().unwrap();
    String::from_utf8(all).unwrap()
}

//! Server and client against each other, over real sockets.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::http::{Body, Io, Observer, Request, RequestHead, Response, ResponseHead, Sent};
use crate::task::Tasks;
use crate::telemetry::stats::Stats;

const LONG: Duration = Duration::from_secs(20);

pub(super) async fn sockets() -> (Io, Io) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    let io = |socket: TcpStream| Io::Client { socket: Arc::new(socket), transport: None };
    (io(server), io(client))
}

/// A client, and a server that hands each request to `serve` in a task of its own.
struct Rig {
    client: Client,
    end: Arc<Mutex<Option<Option<Reset>>>>,
}

impl Rig {
    async fn start<F, S>(settings: Settings, serve: S) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
        S: Fn(Request, Responder) -> F + Send + 'static,
    {
        let (server, client) = sockets().await;
        let tasks = Tasks::new(&Stats::new());
        let of_streams = tasks.clone();
        let of_server = Arc::new(settings.clone());
        tasks.spawn("server", async move {
            let mut server = Server::start(server, Bytes::new(), of_server).await.unwrap();
            while let Some(Ok((request, responder))) = server.next().await {
                let going = request.head.path == "/goaway";
                of_streams.spawn("stream", serve(request, responder));
                if going {
                    server.goaway();
                }
            }
        });
        let end = Arc::new(Mutex::new(None));
        let of_client = end.clone();
        let on_end = move |reset| *of_client.lock().unwrap() = Some(reset);
        let client = Client::start(client, &settings, &tasks, on_end).await.unwrap();
        Self { client, end }
    }

    async fn send(&self, head: &RequestHead, body: Body) -> Result<Response, (Reset, bool, Body)> {
        timeout(LONG, self.client.send(head, body, Observer::default())).await.unwrap()
    }

    async fn get(&self, path: &str) -> Result<Response, (Reset, bool, Body)> {
        self.send(&RequestHead::new(Method::GET, "a.test", path), Body::empty()).await
    }
}

async fn all(body: &mut Body) -> Result<(Vec<u8>, Option<HeaderMap>), Reset> {
    let (mut data, mut trailers) = (Vec::new(), None);
    while let Some(frame) = timeout(LONG, body.frame()).await.unwrap() {
        match frame?.into_data() {
            Ok(part) => data.extend_from_slice(&part),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((data, trailers))
}

fn frames(parts: Vec<Result<Frame<Bytes>, Reset>>) -> Body {
    Body::stream(StreamBody::new(tokio_stream::iter(parts)))
}

fn data(bytes: &'static str) -> Result<Frame<Bytes>, Reset> {
    Ok(Frame::data(Bytes::from_static(bytes.as_bytes())))
}

fn trailers(name: &'static str) -> Result<Frame<Bytes>, Reset> {
    Ok(Frame::trailers(HeaderMap::from_iter([(
        http::HeaderName::from_static(name),
        HeaderValue::from_static("1"),
    )])))
}

/// Answers with the request's body, and its trailers.
async fn echo(request: Request, mut responder: Responder) {
    let mut head = ResponseHead::new(StatusCode::OK);
    head.headers.insert("path", request.head.path.parse().unwrap());
    let mut sent = Sent::default();
    let _ = responder.respond(&head, request.body, &mut sent).await;
}

#[tokio::test]
async fn a_request_and_its_response_cross_with_bodies_and_trailers() {
    let rig = Rig::start(Settings::default(), echo).await;
    let head = RequestHead::new(Method::POST, "a.test", "/x?y=z");
    let mut response = rig.send(&head, frames(vec![data("one"), data("two"), trailers("t")])).await.unwrap();
    assert_eq!(response.head.headers["path"], "/x?y=z");
    let (data, trailers) = all(&mut response.body).await.unwrap();
    assert_eq!(data, b"onetwo");
    assert_eq!(trailers.unwrap()["t"], "1");
    assert_eq!(rig.client.streams(), 1);
    drop(response);
    assert_eq!(rig.client.streams(), 0);
}

#[tokio::test]
async fn a_body_larger_than_every_window_crosses() {
    let settings = Settings { initial_stream_window_size: 65_535, ..Settings::default() };
    let rig = Rig::start(settings, echo).await;
    let big = Bytes::from(vec![7; 5_000_000]);
    let head = RequestHead::new(Method::POST, "a.test", "/");
    let mut response = rig.send(&head, Body::full(big.clone())).await.unwrap();
    assert_eq!(all(&mut response.body).await.unwrap().0, big);
}

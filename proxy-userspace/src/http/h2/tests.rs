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
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
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
        let on_end = move |ended: Ended| *of_client.lock().unwrap() = Some(ended.broken);
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

#[tokio::test]
async fn interim_responses_come_before_the_final_one() {
    let serve = |request: Request, mut responder: Responder| async move {
        let mut hints = ResponseHead::new(StatusCode::EARLY_HINTS);
        hints.headers.insert("link", HeaderValue::from_static("</a>"));
        responder.inform(&ResponseHead::new(StatusCode::CONTINUE));
        responder.inform(&hints);
        echo(request, responder).await;
    };
    let rig = Rig::start(Settings::default(), serve).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let to = seen.clone();
    let interim = Box::new(move |head: ResponseHead| to.lock().unwrap().push(head));
    let on = Observer { interim: Some(interim), ..Observer::default() };
    let head = RequestHead::new(Method::GET, "a.test", "/");
    let response = timeout(LONG, rig.client.send(&head, Body::empty(), on)).await.unwrap().unwrap();
    assert_eq!(response.head.status, StatusCode::OK);
    let seen = seen.lock().unwrap();
    let statuses: Vec<_> = seen.iter().map(|head| head.status.as_u16()).collect();
    assert_eq!(statuses, [100, 103]);
    assert_eq!(seen[1].headers["link"], "</a>");
}

#[tokio::test]
async fn an_upgrade_is_a_get_with_101_on_both_ends() {
    let serve = |request: Request, mut responder: Responder| async move {
        assert_eq!(request.head.method, Method::GET);
        assert_eq!(request.head.upgrade.as_deref(), Some("websocket"));
        assert_eq!(request.head.path, "/chat");
        let head = ResponseHead::new(StatusCode::SWITCHING_PROTOCOLS);
        let _ = responder.respond(&head, request.body, &mut Sent::default()).await;
    };
    let rig = Rig::start(Settings { allow_connect: true, ..Settings::default() }, serve).await;
    let mut head = RequestHead::new(Method::GET, "a.test", "/chat");
    head.upgrade = Some("websocket".into());
    head.headers.insert("connection", HeaderValue::from_static("upgrade"));
    let mut response = rig.send(&head, frames(vec![data("hello")])).await.unwrap();
    assert_eq!(response.head.status, StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(all(&mut response.body).await.unwrap().0, b"hello");
}

#[tokio::test]
async fn a_plain_connect_has_an_authority_only() {
    let serve = |request: Request, responder: Responder| async move {
        assert!(request.head.is_connect());
        assert_eq!((request.head.authority.as_str(), request.head.path.as_str()), ("a.test:443", ""));
        echo(request, responder).await;
    };
    let rig = Rig::start(Settings::default(), serve).await;
    let head = RequestHead::new(Method::CONNECT, "a.test:443", "");
    let mut response = rig.send(&head, frames(vec![data("raw")])).await.unwrap();
    assert_eq!(response.head.status, StatusCode::OK);
    assert_eq!(all(&mut response.body).await.unwrap().0, b"raw");
}

#[tokio::test]
async fn a_refused_request_comes_back_with_its_body() {
    let serve = |request: Request, mut responder: Responder| async move {
        responder.reset(Reason::REFUSED_STREAM);
        drop(request);
    };
    let rig = Rig::start(Settings::default(), serve).await;
    let head = RequestHead::new(Method::POST, "a.test", "/");
    let never = Body::stream(StreamBody::new(tokio_stream::pending()));
    let (reset, untouched, body) = rig.send(&head, never).await.unwrap_err();
    assert_eq!((reset.reason, reset.side), (ResetReason::RemoteRefused, Side::Upstream));
    assert_eq!(reset.details, "http2.remote_refuse");
    assert!(untouched && !body.is_end());
}

#[tokio::test]
async fn resets_are_told_by_their_reason() {
    for (reason, expected) in [
        (Reason::CANCEL, ResetReason::Remote),
        (Reason::INTERNAL_ERROR, ResetReason::Remote),
        (Reason::ENHANCE_YOUR_CALM, ResetReason::Remote),
        (Reason::CONNECT_ERROR, ResetReason::Connect),
    ] {
        let serve = move |_, mut responder: Responder| async move { responder.reset(reason) };
        let rig = Rig::start(Settings::default(), serve).await;
        let (reset, untouched, _) = rig.get("/").await.unwrap_err();
        assert_eq!((reset.reason, untouched), (expected, false), "{reason:?}");
    }
}

#[tokio::test]
async fn a_response_that_breaks_is_reset_after_what_came_of_it() {
    let serve = |_, mut responder: Responder| async move {
        let broken = Reset::new(Side::Upstream, ResetReason::ConnectionTermination, "gone");
        let body = frames(vec![data("some"), Err(broken.clone())]);
        let mut sent = Sent::default();
        let result = responder.respond(&ResponseHead::new(StatusCode::OK), body, &mut sent).await;
        assert_eq!(result, Err(broken));
        assert!(sent.head && !sent.complete);
    };
    let rig = Rig::start(Settings::default(), serve).await;
    let mut response = rig.get("/").await.unwrap();
    let reset = all(&mut response.body).await.unwrap_err();
    assert_eq!((reset.side, reset.reason), (Side::Upstream, ResetReason::Remote));
}

#[tokio::test]
async fn an_early_response_is_whole_though_its_request_is_not() {
    let serve = |request: Request, mut responder: Responder| async move {
        drop(request);
        let head = ResponseHead::new(StatusCode::PAYLOAD_TOO_LARGE);
        responder.respond(&head, Body::full("too much"), &mut Sent::default()).await.unwrap();
    };
    let rig = Rig::start(Settings::default(), serve).await;
    let head = RequestHead::new(Method::POST, "a.test", "/");
    let never = Body::stream(StreamBody::new(tokio_stream::pending()));
    let mut response = rig.send(&head, never).await.unwrap();
    assert_eq!(response.head.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(all(&mut response.body).await.unwrap().0, b"too much");
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed() {
    let (tell, told) = tokio::sync::oneshot::channel();
    let tell = Arc::new(Mutex::new(Some(tell)));
    let serve = move |_, mut responder: Responder| {
        let tell = tell.clone();
        async move {
            let reset = responder.gone().await;
            let _ = tell.lock().unwrap().take().unwrap().send(reset);
        }
    };
    let rig = Rig::start(Settings::default(), serve).await;
    let head = RequestHead::new(Method::GET, "a.test", "/");
    let left = timeout(Duration::from_millis(50), rig.client.send(&head, Body::empty(), Observer::default()));
    assert!(left.await.is_err());
    let reset = timeout(LONG, told).await.unwrap().unwrap();
    assert_eq!((reset.side, reset.reason), (Side::Downstream, ResetReason::Remote));
}

#[tokio::test]
async fn after_goaway_streams_finish_and_new_requests_are_refused() {
    let rig = Rig::start(Settings::default(), echo).await;
    let head = RequestHead::new(Method::POST, "a.test", "/long");
    let (tx, rx) = tokio::sync::mpsc::channel(1);
    let slow = Body::stream(StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(rx)));
    let mut long = rig.send(&head, slow).await.unwrap();
    assert!(rig.client.capacity() > 0);
    rig.get("/goaway").await.unwrap();
    timeout(LONG, async {
        while !rig.client.is_closing() {
            tokio::task::yield_now().await
        }
    })
    .await
    .unwrap();
    assert_eq!(rig.client.capacity(), 0);
    let (reset, untouched, _) = rig.get("/late").await.unwrap_err();
    assert_eq!((reset.reason, untouched), (ResetReason::RemoteRefused, true));
    tx.send(data("late")).await.unwrap();
    drop(tx);
    assert_eq!(all(&mut long.body).await.unwrap().0, b"late");
    drop(long);
    timeout(LONG, async {
        while rig.end.lock().unwrap().is_none() {
            tokio::task::yield_now().await
        }
    })
    .await
    .unwrap();
    assert_eq!(*rig.end.lock().unwrap(), Some(None));
}

#[tokio::test]
async fn headers_of_a_hop_stay_behind_and_cookies_are_joined() {
    let serve = |request: Request, responder: Responder| async move {
        let headers = &request.head.headers;
        assert_eq!(headers["cookie"], "a=1; b=2");
        assert_eq!(headers.get_all("cookie").iter().count(), 1);
        assert!(!headers.contains_key("connection") && !headers.contains_key("te"));
        assert_eq!(headers["x_y"], "kept");
        echo(request, responder).await;
    };
    let rig = Rig::start(Settings::default(), serve).await;
    let mut head = RequestHead::new(Method::GET, "a.test", "/");
    for (name, value) in [
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("connection", "close"),
        ("keep-alive", "5"),
        ("transfer-encoding", "chunked"),
        ("te", "gzip"),
        ("x_y", "kept"),
    ] {
        head.headers.append(name, HeaderValue::from_static(value));
    }
    let response = rig.send(&head, Body::empty()).await.unwrap();
    assert_eq!(response.head.status, StatusCode::OK);
}

#[tokio::test]
async fn more_headers_than_allowed_are_a_reset() {
    let rig = Rig::start(Settings { max_headers: 2, ..Settings::default() }, echo).await;
    let mut head = RequestHead::new(Method::GET, "a.test", "/");
    for name in ["a", "b", "c"] {
        head.headers.append(name, HeaderValue::from_static("1"));
    }
    let (reset, ..) = rig.send(&head, Body::empty()).await.unwrap_err();
    assert_eq!(reset.reason, ResetReason::Remote);
}

#[tokio::test]
async fn a_peer_that_answers_no_ping_is_gone() {
    let (server, client) = sockets().await;
    let keepalive = Keepalive {
        interval: Some(Duration::from_millis(20)),
        timeout: Duration::from_millis(20),
        interval_jitter: 0.0,
    };
    let settings = Settings { keepalive: Some(keepalive), ..Settings::default() };
    let end = Arc::new(Mutex::new(None));
    let of_client = end.clone();
    let on_end = move |ended: Ended| *of_client.lock().unwrap() = Some(ended.broken);
    let _client = Client::start(client, &settings, &Tasks::new(&Stats::new()), on_end).await.unwrap();
    timeout(LONG, async {
        while end.lock().unwrap().is_none() {
            tokio::task::yield_now().await
        }
    })
    .await
    .unwrap();
    let reset = end.lock().unwrap().clone().flatten().unwrap();
    assert_eq!((reset.reason, &*reset.details), (ResetReason::ConnectionTermination, "http2.ping_timeout"));
    drop(server);
}

#[tokio::test]
async fn a_tunnel_waits_for_consent_and_its_directions_end_each_by_itself() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let serve = move |mut request: Request, mut responder: Responder| {
        let tell = tell.clone();
        async move {
            // Nothing has come with what may be refused.
            let early = timeout(std::time::Duration::from_millis(50), request.body.frame()).await;
            tell.send(early.is_err().to_string().into_bytes()).unwrap();
            let head = ResponseHead::new(StatusCode::OK);
            responder.respond(&head, Body::full("bye"), &mut Sent::default()).await.unwrap();
            tell.send(all(&mut request.body).await.unwrap().0).unwrap();
        }
    };
    let rig = Rig::start(Settings::default(), serve).await;
    let head = RequestHead::new(Method::CONNECT, "a.test:443", "");
    let on = Observer { tunnel: true, ..Observer::default() };
    let body = frames(vec![data("late"), data("r")]);
    let mut response = timeout(LONG, rig.client.send(&head, body, on)).await.unwrap().unwrap();
    assert_eq!(told.recv().await.unwrap(), b"true");
    let upload = response.body.take_upload().unwrap();
    assert_eq!(all(&mut response.body).await.unwrap().0, b"bye");
    drop(response);
    timeout(LONG, upload).await.unwrap().unwrap();
    assert_eq!(timeout(LONG, told.recv()).await.unwrap().unwrap(), b"later");
}

#[tokio::test]
async fn a_connect_that_is_refused_was_a_request_without_a_body() {
    let serve = |request: Request, mut responder: Responder| async move {
        let head = ResponseHead::new(StatusCode::FORBIDDEN);
        responder.respond(&head, Body::full("no"), &mut Sent::default()).await.unwrap();
        drop(request);
    };
    let rig = Rig::start(Settings::default(), serve).await;
    let head = RequestHead::new(Method::CONNECT, "a.test:443", "");
    let on = Observer { tunnel: true, ..Observer::default() };
    let never = Body::stream(StreamBody::new(tokio_stream::pending()));
    let mut response = timeout(LONG, rig.client.send(&head, never, on)).await.unwrap().unwrap();
    assert_eq!(all(&mut response.body).await.unwrap().0, b"no");
    let upload = response.body.take_upload();
    if let Some(upload) = upload {
        timeout(LONG, upload).await.unwrap().unwrap();
    }
}

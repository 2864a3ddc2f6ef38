//! What an upstream gets, and what is made of its answers.

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body::Frame;
use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::http::{Observer, Progress, RequestHead, ResetReason, Response};
use crate::telemetry::Side;

fn get() -> RequestHead {
    RequestHead::new(Method::GET, "h", "/")
}

/// A request and its answer, whatever it was.
async fn exchange(
    client: Client,
    peer: &mut TcpStream,
    head: &RequestHead,
    answer: &[u8],
) -> (Result<Response, Failed>, Option<mpsc::UnboundedReceiver<Client>>) {
    let (give, given) = mpsc::unbounded_channel();
    let sending = client.send(head, Body::empty(), Observer::default(), move |client| {
        let _ = give.send(client);
    });
    let answering = async {
        until(peer, "\r\n\r\n").await;
        peer.write_all(answer).await.unwrap();
    };
    let (response, ()) = timeout(LONG, async { tokio::join!(sending, answering) }).await.unwrap();
    (response, Some(given))
}

#[tokio::test]
async fn an_upstream_is_asked_twice() {
    let (mut peer, client) = client(Settings::default()).await;
    let (give, mut given) = mpsc::unbounded_channel();
    let head = RequestHead::new(Method::POST, "h", "/x");
    let progress = Arc::<Progress>::default();
    let observer = Observer { progress: progress.clone(), interim: None, tunnel: false };
    let sending = client.send(&head, Body::full("abc"), observer, move |client| {
        let _ = give.send(client);
    });
    let answering = async {
        let request = "POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabc";
        assert_eq!(until(&mut peer, "abc").await, request);
        peer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
            .await
            .unwrap();
    };
    let (response, ()) = tokio::join!(sending, answering);
    let mut response = response.unwrap();
    assert_eq!(all(&mut response.body).await, "abc");
    let count = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((count(&progress.request_head), count(&progress.request_body)), (48, 3));
    assert_eq!((count(&progress.response_head), count(&progress.response_body)), (47, 3));
    assert!(
        progress.first_sent() <= progress.last_sent() && progress.last_sent() <= progress.first_received()
    );
    assert!(progress.first_received() <= progress.last_received() && progress.first_sent().is_some());
    let client = given.try_recv().unwrap();
    let (response, _) =
        exchange(client, &mut peer, &get(), b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno").await;
    let mut response = response.unwrap();
    assert_eq!((response.head.status.as_u16(), all(&mut response.body).await.as_str()), (404, "no"));
}

#[tokio::test]
async fn interim_responses_are_told() {
    let (mut peer, client) = client(Settings::default()).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let interim: crate::http::Interim = Box::new(move |head| tell.send(head.status.as_u16()).unwrap());
    let observer = Observer { progress: Arc::default(), interim: Some(interim), tunnel: false };
    let head = get();
    let sending = client.send(&head, Body::empty(), observer, drop);
    let answering = async {
        until(&mut peer, "\r\n\r\n").await;
        peer.write_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
            .await
            .unwrap();
        assert_eq!((told.recv().await, told.recv().await), (Some(100), Some(103)));
        peer.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    };
    let (response, ()) = tokio::join!(sending, answering);
    assert_eq!(response.unwrap().head.status, StatusCode::NO_CONTENT);
}

/// Which answers leave a connection for another exchange.
#[tokio::test]
async fn a_connection_is_used_again_where_nothing_is_left_on_it() {
    let cases: [(&str, &[u8], bool); 10] = [
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true),
        ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", true),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n", true),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", true),
        ("GET", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", true),
        ("GET", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", false),
        ("GET", b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", false),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n", false),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\nok", false),
    ];
    for (method, answer, again) in cases {
        let (mut peer, client) = client(Settings::default()).await;
        let head = RequestHead::new(method.parse().unwrap(), "h", "/");
        let (response, given) = exchange(client, &mut peer, &head, answer).await;
        all(&mut response.unwrap().body).await;
        assert_eq!(given.unwrap().try_recv().is_ok(), again, "{}", String::from_utf8_lossy(answer));
    }
}

#[tokio::test]
async fn a_body_may_end_with_its_connection() {
    let (mut peer, client) = client(Settings::default()).await;
    let (response, given) = exchange(client, &mut peer, &get(), b"HTTP/1.1 200 OK\r\n\r\nok").await;
    drop(peer);
    assert_eq!(all(&mut response.unwrap().body).await, "ok");
    assert!(given.unwrap().try_recv().is_err());
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error() {
    let answers: [&[u8]; 3] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n",
    ];
    for answer in answers {
        let (mut peer, client) = client(Settings::default()).await;
        let (response, _) = exchange(client, &mut peer, &get(), answer).await;
        drop(peer);
        let mut body = response.unwrap().body;
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hel");
        let reset = body.frame().await.unwrap().unwrap_err();
        assert_eq!((reset.side, reset.reason), (Side::Upstream, ResetReason::Protocol));
        assert!(body.frame().await.is_none());
    }
}

#[tokio::test]
async fn no_response_says_whether_another_may_be_asked() {
    for (answer, untouched) in [("", true), ("HTTP/1.1 20", false)] {
        let (mut peer, client) = client(Settings::default()).await;
        let head = get();
        let sending = client.send(&head, Body::full("body"), Observer::default(), drop);
        let answering = async {
            until(&mut peer, "body").await;
            peer.write_all(answer.as_bytes()).await.unwrap();
            drop(peer);
        };
        let (response, ()) = tokio::join!(sending, answering);
        let failed = response.unwrap_err();
        assert_eq!(failed.reset.reason, ResetReason::ConnectionTermination);
        assert_eq!(failed.untouched, untouched);
    }
}

#[tokio::test]
async fn an_idle_connection_that_has_gone_is_not_used() {
    let (peer, client) = client(Settings::default()).await;
    drop(peer);
    // What a pool would see too.
    let mut client = client;
    std::future::poll_fn(|cx| client.poll_idle(cx)).await;
    let failed = client.send(&get(), Body::full("kept"), Observer::default(), drop).await.unwrap_err();
    assert!(failed.untouched);
    assert_eq!(failed.rest.exact_len(), Some(4));
}

#[tokio::test]
async fn an_early_response_ends_the_request() {
    let (mut peer, client) = client(Settings::default()).await;
    let (give, mut given) = mpsc::unbounded_channel::<Client>();
    let (feed, body) = fed();
    feed.send(data("some")).unwrap();
    let head = RequestHead::new(Method::POST, "h", "/");
    let sending = client.send(&head, body, Observer::default(), move |client| {
        let _ = give.send(client);
    });
    let answering = async {
        until(&mut peer, "4\r\nsome\r\n").await;
        peer.write_all(b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
    };
    let (response, ()) = tokio::join!(sending, answering);
    assert_eq!(all(&mut response.unwrap().body).await, "no");
    assert!(given.try_recv().is_err(), "the rest of the request would be taken for another");
    assert_eq!(rest(&mut peer).await, "");
}

#[tokio::test]
async fn request_and_response_go_on_together() {
    let (mut peer, client) = client(Settings { enable_trailers: true, ..Settings::default() }).await;
    let (feed, body) = fed();
    let head = RequestHead::new(Method::POST, "h", "/");
    let (give, mut given) = mpsc::unbounded_channel::<Client>();
    let sending = client.send(&head, body, Observer::default(), move |client| {
        let _ = give.send(client);
    });
    let answering = async {
        until(&mut peer, "\r\n\r\n").await;
        peer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n").await.unwrap();
    };
    let (response, ()) = tokio::join!(sending, answering);
    let mut body = response.unwrap().body;
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
    let talking = async {
        feed.send(data("ping")).unwrap();
        assert_eq!(until(&mut peer, "ping\r\n").await, "4\r\nping\r\n");
        let mut trailers = HeaderMap::new();
        trailers.insert("x", HeaderValue::from_static("y"));
        feed.send(Ok(Frame::trailers(trailers))).unwrap();
        assert_eq!(until(&mut peer, "y\r\n\r\n").await, "0\r\nx: y\r\n\r\n");
        peer.write_all(b"0\r\nStatus: 0\r\n\r\n").await.unwrap();
    };
    let (frame, ()) = timeout(LONG, async { tokio::join!(body.frame(), talking) }).await.unwrap();
    assert_eq!(frame.unwrap().unwrap().into_trailers().unwrap()["status"], "0");
    assert!(body.frame().await.is_none());
    assert!(given.try_recv().is_ok());
}

#[tokio::test]
async fn a_response_is_read_though_the_request_is_not_taken() {
    let (mut peer, client) = client(Settings::default()).await;
    let head = RequestHead::new(Method::POST, "h", "/");
    let body = Body::full(vec![b'x'; 8_000_000]);
    let sending = client.send(&head, body, Observer::default(), drop);
    let answering = async {
        until(&mut peer, "\r\n\r\n").await;
        peer.write_all(b"HTTP/1.1 413 Payload Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        // What it has not read makes this a reset.
        drop(peer);
    };
    let (response, ()) = timeout(LONG, async { tokio::join!(sending, answering) }).await.unwrap();
    assert_eq!(all(&mut response.unwrap().body).await, "no");
}

#[tokio::test]
async fn a_request_that_breaks_off_is_not_completed() {
    let (mut peer, client) = client(Settings::default()).await;
    let (feed, body) = fed();
    let head = RequestHead::new(Method::POST, "h", "/");
    let gone = Reset::new(Side::Downstream, ResetReason::ConnectionTermination, "");
    let sending = client.send(&head, body, Observer::default(), drop);
    let breaking = async {
        feed.send(data("some")).unwrap();
        until(&mut peer, "some\r\n").await;
        feed.send(Err(gone.clone())).unwrap();
    };
    let (response, ()) = tokio::join!(sending, breaking);
    assert_eq!(response.unwrap_err().reset, gone);
    assert_eq!(rest(&mut peer).await, "", "no last chunk");
}

#[tokio::test]
async fn an_upgrade_waits_for_consent() {
    let (mut peer, client) = client(Settings::default()).await;
    let mut head = get();
    head.upgrade = Some("websocket".to_owned());
    let (feed, body) = fed();
    feed.send(data("raw")).unwrap();
    let sending = client.send(&head, body, Observer::default(), drop);
    let answering = async {
        let request = "GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        assert_eq!(until(&mut peer, "\r\n\r\n").await, request);
        let mut byte = [0];
        assert!(
            timeout(Duration::from_millis(50), peer.read(&mut byte)).await.is_err(),
            "nothing of the rest"
        );
        peer.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi",
        )
        .await
        .unwrap();
    };
    let (response, ()) = tokio::join!(sending, answering);
    let Response { head, mut body } = response.unwrap();
    assert_eq!(
        (head.status.as_u16(), &head.headers["upgrade"]),
        (101, &HeaderValue::from_static("websocket"))
    );
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hi");
    drop(feed);
    let talking = async {
        assert_eq!(rest(&mut peer).await, "raw", "and a FIN");
        peer.write_all(b"bye").await.unwrap();
        drop(peer);
    };
    let (last, ()) = timeout(LONG, async { tokio::join!(all(&mut body), talking) }).await.unwrap();
    assert_eq!(last, "bye");
}

#[tokio::test]
async fn an_upgrade_that_is_refused_leaves_the_connection() {
    let (mut peer, client) = client(Settings::default()).await;
    let mut head = get();
    head.upgrade = Some("websocket".to_owned());
    let (feed, body) = fed();
    feed.send(data("GET /SMUGGLED HTTP/1.1\r\nHost: h\r\n\r\n")).unwrap();
    let (give, mut given) = mpsc::unbounded_channel::<Client>();
    let sending = client.send(&head, body, Observer::default(), move |client| {
        let _ = give.send(client);
    });
    let answering = async {
        until(&mut peer, "\r\n\r\n").await;
        peer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
            .await
            .unwrap();
    };
    let (response, ()) = tokio::join!(sending, answering);
    assert_eq!(all(&mut response.unwrap().body).await, "ok");
    drop(given.try_recv().unwrap());
    assert_eq!(rest(&mut peer).await, "");
}

#[tokio::test]
async fn a_tunnel_by_connect() {
    let (mut peer, client) = client(Settings::default()).await;
    let head = RequestHead::new(Method::CONNECT, "h:1", "");
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nraw, and more";
    let sending = client.send(&head, Body::full("up"), Observer::default(), drop);
    let answering = async {
        assert_eq!(until(&mut peer, "\r\n\r\n").await, "CONNECT h:1 HTTP/1.1\r\nhost: h:1\r\n\r\n");
        peer.write_all(answer).await.unwrap();
    };
    let (response, ()) = tokio::join!(sending, answering);
    let mut body = response.unwrap().body;
    let talking = async {
        assert_eq!(rest(&mut peer).await, "up");
        drop(peer);
    };
    let (down, ()) = timeout(LONG, async { tokio::join!(all(&mut body), talking) }).await.unwrap();
    assert_eq!(down, "raw, and more");
}

#[tokio::test]
async fn nobody_is_upgraded_unasked() {
    let (mut peer, client) = client(Settings::default()).await;
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    let (response, _) = exchange(client, &mut peer, &get(), answer).await;
    assert_eq!(response.unwrap_err().reset.reason, ResetReason::Protocol);
}

#[tokio::test]
async fn what_a_request_line_cannot_say_is_not_sent() {
    for (authority, path) in [("h", "/a b"), ("h", "/a\r\nX: y"), ("h\r\nX: y", "/"), ("h", "/\0")] {
        let (mut peer, client) = client(Settings::default()).await;
        let head = RequestHead::new(Method::GET, authority, path);
        let failed = client.send(&head, Body::empty(), Observer::default(), drop).await.unwrap_err();
        assert_eq!((failed.reset.side, failed.reset.reason), (Side::Internal, ResetReason::Local));
        assert_eq!(rest(&mut peer).await, "");
    }
}

#[tokio::test]
async fn how_requests_are_written() {
    let cases: [(&str, Body, &str); 6] = [
        ("GET", Body::empty(), ""),
        ("DELETE", Body::empty(), ""),
        ("POST", Body::empty(), "content-length: 0\r\n"),
        ("OPTIONS", Body::empty(), "content-length: 0\r\n"),
        ("GET", Body::full("ab"), "content-length: 2\r\n"),
        ("PUT", fed().1, "transfer-encoding: chunked\r\n"),
    ];
    for (method, body, framing) in cases {
        let (mut peer, client) =
            client(Settings { send_fully_qualified_url: true, ..Settings::default() }).await;
        let mut head = RequestHead::new(method.parse().unwrap(), "h", "/p");
        for (name, value) in
            [("connection", "x"), ("keep-alive", "5"), ("te", "trailers"), ("transfer-encoding", "gzip")]
        {
            head.headers.insert(name, HeaderValue::from_static(value));
        }
        let sending = client.send(&head, body, Observer::default(), drop);
        let answering = async {
            let request = until(&mut peer, "\r\n\r\n").await;
            let head = format!("{method} http://h/p HTTP/1.1\r\nhost: h\r\nte: trailers\r\n{framing}\r\n");
            assert!(request.starts_with(&head), "{request}");
            drop(peer);
        };
        let (_, ()) = tokio::join!(sending, answering);
    }
}

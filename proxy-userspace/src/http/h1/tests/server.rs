//! What a client gets.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::http::{Request, ResetReason, ResponseHead, Sent};
use crate::telemetry::Side;

fn ok() -> ResponseHead {
    ResponseHead::new(StatusCode::OK)
}

async fn respond(server: &mut Server, body: Body) {
    server.respond(&ok(), body, false, &mut Sent::default()).await.unwrap();
}

async fn next(server: &mut Server) -> Request {
    timeout(LONG, server.next()).await.unwrap().unwrap().unwrap()
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";

#[tokio::test]
async fn requests_follow_each_other() {
    let (mut peer, mut server) = server(Settings::default()).await;
    peer.write_all(b"GET /a HTTP/1.1\r\nHost: h\r\nX: y\r\n\r\nPOST /b HTTP/1.1\r\nhost: h:1\r\n")
        .await
        .unwrap();
    let Request { head, body } = next(&mut server).await;
    assert_eq!((head.path.as_str(), head.authority.as_str(), body.is_end()), ("/a", "h", true));
    assert_eq!(head.headers["x"], "y");
    let mut sent = Sent::default();
    server.respond(&ok(), Body::full("hello"), false, &mut sent).await.unwrap();
    assert_eq!(until(&mut peer, "hello").await, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
    assert!(sent.head && sent.complete && server.reusable());
    assert_eq!((sent.head_bytes, sent.body_bytes), (38, 5));
    assert!(server.started(), "the next head is here in part");
    peer.write_all(b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n").await.unwrap();
    let Request { head, mut body } = next(&mut server).await;
    assert_eq!((head.path.as_str(), all(&mut body).await.as_str()), ("/b", "abcde"));
    server.respond(&ok(), Body::empty(), true, &mut sent).await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(rest(&mut peer).await, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    assert!(server.next().await.unwrap().is_none());
}

#[tokio::test]
async fn between_requests_a_client_may_go() {
    let (peer, mut server) = server(Settings::default()).await;
    drop(peer);
    server.readable().await;
    assert!(!server.started());
    assert!(server.next().await.unwrap().is_none());
    assert!(!server.reusable());
}

#[tokio::test]
async fn http_1_0_is_kept_alive_where_it_asks() {
    let settings = Settings { accept_http_10: true, default_host: Some("d".into()), ..Settings::default() };
    let (mut peer, mut server) = server(settings).await;
    peer.write_all(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n").await.unwrap();
    assert_eq!(next(&mut server).await.head.authority, "d");
    respond(&mut server, Body::full("a")).await;
    let expected = "HTTP/1.0 200 OK\r\ncontent-length: 1\r\nconnection: keep-alive\r\n\r\na";
    assert_eq!(until(&mut peer, "\r\na").await, expected);
    next(&mut server).await;
    let (feed, body) = fed();
    feed.send(data("b")).unwrap();
    feed.send(data("c")).unwrap();
    drop(feed);
    respond(&mut server, body).await;
    assert!(!server.reusable(), "only its end ends the body");
    drop(server);
    assert_eq!(rest(&mut peer).await, "HTTP/1.0 200 OK\r\nconnection: close\r\n\r\nbc");
}

#[tokio::test]
async fn close_is_heard_in_each_way_to_say_it() {
    for header in ["Connection: close", "Connection: x, Close", "Proxy-Connection: close"] {
        let (mut peer, mut server) = server(Settings::default()).await;
        peer.write_all(format!("GET / HTTP/1.1\r\nHost: h\r\n{header}\r\n\r\n").as_bytes()).await.unwrap();
        assert!(next(&mut server).await.head.headers.is_empty());
        respond(&mut server, Body::empty()).await;
        assert!(!server.reusable(), "{header}");
    }
}

#[tokio::test]
async fn what_has_no_body_is_sent_none() {
    let cases = [
        ("HEAD", 200, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"),
        ("GET", 204, "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", 304, "HTTP/1.1 304 Not Modified\r\ncontent-length: 4\r\n\r\n"),
    ];
    for (method, status, expected) in cases {
        let (mut peer, mut server) = server(Settings::default()).await;
        peer.write_all(format!("{method} / HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).await.unwrap();
        next(&mut server).await;
        let mut head = ResponseHead::new(StatusCode::from_u16(status).unwrap());
        head.headers.insert("content-length", HeaderValue::from_static("4"));
        server.respond(&head, Body::full("body"), false, &mut Sent::default()).await.unwrap();
        assert!(server.reusable());
        drop(server);
        assert_eq!(rest(&mut peer).await, expected);
    }
}

#[tokio::test]
async fn a_body_of_unknown_length_is_chunked() {
    for (enable_trailers, end) in [(true, "0\r\nx-sum: 1\r\n\r\n"), (false, "0\r\n\r\n")] {
        let (mut peer, mut server) = server(Settings { enable_trailers, ..Settings::default() }).await;
        peer.write_all(GET).await.unwrap();
        next(&mut server).await;
        let (feed, body) = fed();
        let sending = async {
            feed.send(data("hello")).unwrap();
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
            assert_eq!(until(&mut peer, "hello\r\n").await, head, "it does not wait for more");
            feed.send(data("a longer one")).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", HeaderValue::from_static("1"));
            trailers.insert("content-length", HeaderValue::from_static("9"));
            feed.send(Ok(Frame::trailers(trailers))).unwrap();
            assert_eq!(until(&mut peer, end).await, format!("c\r\na longer one\r\n{end}"));
        };
        tokio::join!(respond(&mut server, body), sending);
        assert!(server.reusable());
    }
}

#[tokio::test]
async fn trailers_of_a_request_come_where_they_are_enabled() {
    let input = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: y\r\nHost: z\r\n\r\n";
    for enable_trailers in [true, false] {
        let (mut peer, mut server) = server(Settings { enable_trailers, ..Settings::default() }).await;
        peer.write_all(input).await.unwrap();
        let mut body = next(&mut server).await.body;
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
        let trailers = body.frame().await.map(|frame| frame.unwrap().into_trailers().unwrap());
        assert_eq!(trailers.is_some(), enable_trailers);
        if let Some(trailers) = trailers {
            assert_eq!((trailers.len(), &trailers["x"]), (1, &HeaderValue::from_static("y")));
        }
        assert!(body.frame().await.is_none());
        respond(&mut server, Body::empty()).await;
        assert!(server.reusable());
    }
}

#[tokio::test]
async fn a_client_that_goes_is_noticed() {
    let (mut peer, mut server) = server(Settings::default()).await;
    peer.write_all(GET).await.unwrap();
    next(&mut server).await;
    let going = async {
        tokio::task::yield_now().await;
        // As Envoy: half of a connection is none.
        peer.shutdown().await.unwrap();
    };
    let (reset, ()) = tokio::join!(timeout(LONG, server.gone()), going);
    let reset = reset.unwrap();
    assert_eq!((reset.side, reset.reason), (Side::Downstream, ResetReason::ConnectionTermination));
    let (_feed, body) = fed();
    let mut sent = Sent::default();
    let result = timeout(LONG, server.respond(&ok(), body, false, &mut sent)).await.unwrap();
    assert_eq!((result, sent.complete, server.reusable()), (Err(reset), false, false));
}

#[tokio::test]
async fn what_comes_early_waits_for_its_turn() {
    let (mut peer, mut server) = server(Settings::default()).await;
    peer.write_all(GET).await.unwrap();
    next(&mut server).await;
    let many = b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n".repeat(10_000);
    let waiting = timeout(Duration::from_millis(100), server.gone());
    let writing = timeout(Duration::from_millis(100), peer.write_all(&many));
    let (gone, _) = tokio::join!(waiting, writing);
    assert!(gone.is_err(), "it is still there");
    respond(&mut server, Body::empty()).await;
    for _ in 0..1000 {
        assert_eq!(next(&mut server).await.head.path, "/next");
        respond(&mut server, Body::empty()).await;
    }
}

#[tokio::test]
async fn a_body_that_nobody_reads_ends_the_connection() {
    let (mut peer, mut server) = server(Settings::default()).await;
    peer.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\nstart").await.unwrap();
    drop(next(&mut server).await);
    respond(&mut server, Body::full("no")).await;
    assert!(!server.reusable());
    assert!(until(&mut peer, "no").await.contains("\r\nconnection: close\r\n"));
    server.shutdown().await.unwrap();
    let draining = server.drain();
    let writing = async {
        peer.write_all(&[b'x'; 90_000]).await.unwrap();
        peer.shutdown().await.unwrap();
    };
    timeout(LONG, async { tokio::join!(draining, writing) }).await.unwrap();
    assert_eq!(rest(&mut peer).await, "", "and no reset");
}

#[tokio::test]
async fn a_body_that_is_here_is_passed_over() {
    let (mut peer, mut server) = server(Settings::default()).await;
    peer.write_all(
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloGET /2 HTTP/1.1\r\nHost: h\r\n\r\n",
    )
    .await
    .unwrap();
    let request = next(&mut server).await;
    respond(&mut server, Body::empty()).await;
    assert!(server.reusable());
    assert_eq!(next(&mut server).await.head.path, "/2");
    drop(request);
}

#[tokio::test]
async fn a_body_of_an_earlier_request_reads_nothing() {
    let (mut peer, mut server) = server(Settings::default()).await;
    peer.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhel").await.unwrap();
    let mut body = next(&mut server).await.body;
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hel");
    peer.write_all(b"loGET /2 HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    server.readable().await;
    respond(&mut server, Body::empty()).await;
    assert!(body.frame().await.unwrap().is_err());
}

#[tokio::test]
async fn a_response_goes_out_as_far_as_it_came() {
    let (mut peer, mut server) = server(Settings::default()).await;
    peer.write_all(GET).await.unwrap();
    next(&mut server).await;
    let (feed, body) = fed();
    let broken = Reset::new(Side::Upstream, ResetReason::Protocol, "");
    feed.send(data("hel")).unwrap();
    feed.send(Err(broken.clone())).unwrap();
    let mut sent = Sent::default();
    let result = server.respond(&ok(), body, false, &mut sent).await;
    assert_eq!(result, Err(broken));
    assert!(sent.head && !sent.complete && !server.reusable());
    drop(server);
    assert_eq!(rest(&mut peer).await, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n");
}

#[tokio::test]
async fn a_response_that_breaks_off_is_not_completed() {
    let (mut peer, mut server) = server(Settings::default()).await;
    peer.write_all(GET).await.unwrap();
    next(&mut server).await;
    let (feed, body) = fed();
    let mut sent = Sent::default();
    let breaking = async {
        feed.send(data("hel")).unwrap();
        until(&mut peer, "hel\r\n").await;
        feed.send(Err(Reset::new(Side::Upstream, ResetReason::ConnectionTermination, ""))).unwrap();
    };
    let head = ok();
    let (result, ()) = tokio::join!(server.respond(&head, body, false, &mut sent), breaking);
    assert!(result.is_err() && sent.head && !sent.complete && !server.reusable());
    drop(server);
    assert_eq!(rest(&mut peer).await, "", "no last chunk");
}

#[tokio::test]
async fn a_body_keeps_to_its_length() {
    for (text, fits) in [("hell", false), ("hello", true), ("hello!", false)] {
        let (mut peer, mut server) = server(Settings::default()).await;
        peer.write_all(GET).await.unwrap();
        next(&mut server).await;
        let mut head = ok();
        head.headers.insert("content-length", HeaderValue::from_static("5"));
        let (feed, body) = fed();
        feed.send(data(text)).unwrap();
        drop(feed);
        let result = server.respond(&head, body, false, &mut Sent::default()).await;
        assert_eq!(result.is_ok(), fits, "{text}");
    }
}

#[tokio::test]
async fn a_client_is_told_to_continue() {
    let (mut peer, mut server) = server(Settings::default()).await;
    peer.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        .await
        .unwrap();
    let Request { head, mut body } = next(&mut server).await;
    assert_eq!(head.headers["expect"], "100-continue");
    server.inform(&ResponseHead::new(StatusCode::CONTINUE));
    assert_eq!(until(&mut peer, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    peer.write_all(b"ok").await.unwrap();
    assert_eq!(all(&mut body).await, "ok");
    respond(&mut server, Body::empty()).await;
    assert!(server.reusable());
}

#[tokio::test]
async fn an_upgrade_turns_to_raw_bytes() {
    let (mut peer, mut server) = server(Settings::default()).await;
    peer.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\nearly")
        .await
        .unwrap();
    let Request { head, mut body } = next(&mut server).await;
    assert_eq!((head.upgrade.as_deref(), head.headers.len()), (Some("websocket"), 0));
    let (feed, response) = fed();
    let talking = async {
        let expected =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        assert_eq!(until(&mut peer, "\r\n\r\n").await, expected);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "early");
        feed.send(data("\0raw")).unwrap();
        assert_eq!(until(&mut peer, "raw").await, "\0raw");
        peer.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        peer.shutdown().await.unwrap();
        assert_eq!(all(&mut body).await, "GET / HTTP/1.1\r\n\r\n");
        // What goes in the other direction may go on.
        feed.send(data("end")).unwrap();
        drop(feed);
    };
    let head = ResponseHead::new(StatusCode::SWITCHING_PROTOCOLS);
    let mut sent = Sent::default();
    let (result, ()) = tokio::join!(server.respond(&head, response, false, &mut sent), talking);
    assert!(result.is_ok() && sent.complete && !server.reusable());
    drop((server, body));
    assert_eq!(rest(&mut peer).await, "end");
}

#[tokio::test]
async fn an_upgrade_that_is_refused_goes_on_without() {
    let (mut peer, mut server) = server(Settings::default()).await;
    peer.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .unwrap();
    let request = next(&mut server).await;
    assert!(request.head.is_upgrade());
    respond(&mut server, Body::full("plain")).await;
    assert!(server.reusable());
    assert_eq!(next(&mut server).await.head.path, "/2");
}

#[tokio::test]
async fn an_upgrade_with_a_body_is_none() {
    let (mut peer, mut server) = server(Settings::default()).await;
    peer.write_all(
        b"POST / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 2\r\n\r\nokGET /2 HTTP/1.1\r\nHost: h\r\n\r\n",
    )
    .await
    .unwrap();
    let Request { head, mut body } = next(&mut server).await;
    assert_eq!((head.upgrade, all(&mut body).await.as_str()), (None, "ok"));
    respond(&mut server, Body::empty()).await;
    assert_eq!(next(&mut server).await.head.path, "/2");
}

#[tokio::test]
async fn connect_is_a_tunnel_once_it_is_agreed_to() {
    let (mut peer, mut server) = server(Settings::default()).await;
    peer.write_all(b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\nhello").await.unwrap();
    let Request { head, mut body } = next(&mut server).await;
    assert_eq!((head.method, head.authority.as_str(), head.path.as_str()), (Method::CONNECT, "h:443", ""));
    let (feed, response) = fed();
    feed.send(data("welcome")).unwrap();
    drop(feed);
    respond(&mut server, response).await;
    assert_eq!(until(&mut peer, "welcome").await, "HTTP/1.1 200 OK\r\n\r\nwelcome");
    assert!(!server.reusable());
    assert_eq!(rest(&mut peer).await, "");
    // The client's direction goes on until its own end.
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
    peer.write_all(b" again").await.unwrap();
    peer.shutdown().await.unwrap();
    assert_eq!(all(&mut body).await, " again");
}

#[tokio::test]
async fn a_connect_that_is_refused_ends_its_connection() {
    let (mut peer, mut server) = server(Settings::default()).await;
    // What follows was meant for the tunnel, and may look like a request.
    peer.write_all(b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .unwrap();
    next(&mut server).await;
    let head = ResponseHead::new(StatusCode::FORBIDDEN);
    server.respond(&head, Body::full("no"), false, &mut Sent::default()).await.unwrap();
    assert!(!server.reusable());
    let answer = until(&mut peer, "\r\n\r\nno").await;
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn a_chunk_that_is_wrong_breaks_the_body() {
    let (mut peer, mut server) = server(Settings::default()).await;
    peer.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n")
        .await
        .unwrap();
    let mut body = next(&mut server).await.body;
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "abc");
    let reset = body.frame().await.unwrap().unwrap_err();
    assert_eq!(reset, Reset::new(Side::Downstream, ResetReason::Protocol, "http1.codec_error"));
    respond(&mut server, Body::empty()).await;
    assert!(!server.reusable());
}

#[tokio::test]
async fn what_cannot_be_read_is_answered_and_no_more() {
    let (mut peer, mut server) = server(Settings::default()).await;
    peer.write_all(b"GET / HTTP/1.1\nHost: h\r\n\r\nGET /SMUGGLED HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .unwrap();
    let bad = server.next().await.unwrap_err();
    assert_eq!(bad, BadRequest::codec());
    server.respond(&ResponseHead::new(bad.status), Body::empty(), false, &mut Sent::default()).await.unwrap();
    assert!(until(&mut peer, "\r\n\r\n").await.contains("connection: close\r\n"));
    assert!(server.next().await.unwrap().is_none());
}

#[tokio::test]
async fn much_goes_through_both_ways() {
    const LEN: usize = 3_000_000;
    let (peer, mut server) = server(Settings::default()).await;
    let (mut reading, mut writing) = peer.into_split();
    let text: Vec<u8> = (0..LEN).map(|at| (at % 251) as u8).collect();
    let client = async {
        writing
            .write_all(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {LEN}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        writing.write_all(&text).await.unwrap();
        writing
    };
    let echoing = async {
        let body = next(&mut server).await.body;
        assert_eq!(body.exact_len(), Some(LEN as u64));
        respond(&mut server, body).await;
        assert!(!server.reusable(), "its response began before the request was complete");
        drop(server);
    };
    let mut got = Vec::new();
    let (_writing, (), read) =
        timeout(LONG, async { tokio::join!(client, echoing, reading.read_to_end(&mut got)) }).await.unwrap();
    read.unwrap();
    assert!(got.ends_with(&text) && got.starts_with(b"HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn names_are_written_as_settings_say() {
    let settings = Settings { preserve_case: true, ..Settings::default() };
    let (mut peer, mut server) = server(settings).await;
    peer.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nX-cAsE: y\r\n\r\n").await.unwrap();
    let mut head = ok();
    let request = next(&mut server).await.head;
    (head.headers, head.case) = (request.headers, request.case);
    server.respond(&head, Body::empty(), false, &mut Sent::default()).await.unwrap();
    let expected = "HTTP/1.1 200 OK\r\nX-cAsE: y\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(until(&mut peer, "\r\n\r\n").await, expected);

    head.case = None;
    let (mut peer, mut server) = super::server(Settings { proper_case: true, ..Settings::default() }).await;
    peer.write_all(GET).await.unwrap();
    next(&mut server).await;
    server.respond(&head, Body::full(Bytes::from_static(b"a")), true, &mut Sent::default()).await.unwrap();
    let expected = "HTTP/1.1 200 OK\r\nX-Case: y\r\nContent-Length: 1\r\nConnection: close\r\n\r\na";
    assert_eq!(until(&mut peer, "\r\na").await, expected);
}

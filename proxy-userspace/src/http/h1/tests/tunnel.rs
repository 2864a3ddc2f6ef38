//! Tunnels through an upstream: each direction ends by itself.

use http::{Method, StatusCode};
use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::http::{Observer, RequestHead, Response, Upload};

type Feed = mpsc::UnboundedSender<Result<Frame<Bytes>, Reset>>;

/// Asks for one, and is answered so.
async fn asked(answer: &[u8]) -> (TcpStream, Feed, Response, bool) {
    let (mut peer, client) = client(Settings::default()).await;
    let (feed, body) = fed();
    let (give, mut given) = mpsc::unbounded_channel();
    let head = RequestHead::new(Method::CONNECT, "h:1", "");
    let observer = Observer { tunnel: true, ..Observer::default() };
    feed.send(data("early")).unwrap();
    let sending = client.send(&head, body, observer, move |client| {
        let _ = give.send(client);
    });
    let answering = async {
        assert_eq!(until(&mut peer, "\r\n\r\n").await, "CONNECT h:1 HTTP/1.1\r\nhost: h:1\r\n\r\n");
        peer.write_all(answer).await.unwrap();
    };
    let (response, ()) = timeout(LONG, async { tokio::join!(sending, answering) }).await.unwrap();
    (peer, feed, response.unwrap(), given.try_recv().is_ok())
}

async fn opened() -> (TcpStream, Feed, Body, Upload) {
    let (peer, feed, response, _) = asked(b"HTTP/1.1 200 OK\r\n\r\nhello").await;
    assert_eq!(response.head.status, StatusCode::OK);
    let mut body = response.body;
    let upload = body.take_upload().unwrap();
    (peer, feed, body, upload)
}

#[tokio::test]
async fn the_client_goes_on_after_the_servers_end() {
    let (mut peer, feed, mut body, upload) = opened().await;
    peer.shutdown().await.unwrap();
    assert_eq!(timeout(LONG, all(&mut body)).await.unwrap(), "hello");
    drop(body);
    feed.send(data(" late")).unwrap();
    drop(feed);
    let (sent, came) = tokio::join!(timeout(LONG, upload), rest(&mut peer));
    sent.unwrap().unwrap();
    assert_eq!(came, "early late");
}

#[tokio::test]
async fn the_server_goes_on_after_the_clients_end() {
    let (mut peer, feed, mut body, upload) = opened().await;
    drop(feed);
    timeout(LONG, upload).await.unwrap().unwrap();
    assert_eq!(rest(&mut peer).await, "early");
    peer.write_all(b", world").await.unwrap();
    drop(peer);
    assert_eq!(timeout(LONG, all(&mut body)).await.unwrap(), "hello, world");
}

#[tokio::test]
async fn a_tunnel_that_is_given_up_is_reset() {
    let (mut peer, feed, body, upload) = opened().await;
    drop((body, upload));
    let mut all = Vec::new();
    let error = timeout(LONG, peer.read_to_end(&mut all)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    drop(feed);
}

#[tokio::test]
async fn what_is_refused_is_no_tunnel_and_leaves_no_connection() {
    let (_peer, _feed, mut response, again) =
        asked(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
    assert_eq!(response.head.status, StatusCode::FORBIDDEN);
    assert!(response.body.take_upload().is_none() && !again);
    assert_eq!(all(&mut response.body).await, "no");
}

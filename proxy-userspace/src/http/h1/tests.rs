//! The codec against the other end of real sockets.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::cluster::{self, Connected};
use crate::http::{Body, Io, Observer, Request, RequestHead, ResponseHead, Sent};

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
    let io = Io::Upstream(Connected { io, transport: None, took: Duration::ZERO });
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

async fn received(stream: &mut TcpStream) -> String {
    let mut data = [0; 4096];
    let n = stream.read(&mut data).await.unwrap();
    String::from_utf8_lossy(&data[..n]).into_owned()
}

#[tokio::test]
async fn requests_follow_each_other() {
    let (mut peer, mut server) = server(Settings::default()).await;
    peer.write_all(b"GET /a HTTP/1.1\r\nHost: h\r\nX: y\r\n\r\nPOST /b HTTP/1.1\r\nhost: h:1\r\n")
        .await
        .unwrap();
    let Request { head, body } = server.next().await.unwrap().unwrap();
    assert_eq!((head.path.as_str(), head.authority.as_str(), body.is_end()), ("/a", "h", true));
    assert_eq!(head.headers["x"], "y");
    let mut sent = Sent::default();
    let response = ResponseHead::new(StatusCode::OK);
    server.respond(&response, Body::full("hello"), false, &mut sent).await.unwrap();
    assert_eq!(received(&mut peer).await, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
    assert!(sent.head && sent.complete && server.reusable());
    peer.write_all(b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n").await.unwrap();
    let Request { head, mut body } = server.next().await.unwrap().unwrap();
    assert_eq!((head.path.as_str(), all(&mut body).await.as_str()), ("/b", "abcde"));
    server.respond(&response, Body::empty(), true, &mut sent).await.unwrap();
    assert_eq!(
        received(&mut peer).await,
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    assert!(server.next().await.unwrap().is_none());
}

#[tokio::test]
async fn an_upstream_is_asked_twice() {
    let (mut peer, client) = client(Settings::default()).await;
    let (give, mut given) = tokio::sync::mpsc::unbounded_channel();
    let head = RequestHead::new(http::Method::POST, "h", "/x");
    let sending = client.send(&head, Body::full("abc"), Observer::default(), move |client| {
        let _ = give.send(client);
    });
    let answering = async {
        assert_eq!(received(&mut peer).await, "POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabc");
        peer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
            .await
            .unwrap();
    };
    let (response, ()) = tokio::join!(sending, answering);
    let mut response = response.unwrap();
    assert_eq!(all(&mut response.body).await, "abc");
    let client = given.try_recv().unwrap();
    let head = RequestHead::new(http::Method::GET, "h", "/y");
    let sending = client.send(&head, Body::empty(), Observer::default(), drop);
    let answering = async {
        assert_eq!(received(&mut peer).await, "GET /y HTTP/1.1\r\nhost: h\r\n\r\n");
        peer.write_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
            .await
            .unwrap();
    };
    let (response, ()) = tokio::join!(sending, answering);
    let mut response = response.unwrap();
    assert_eq!((response.head.status.as_u16(), all(&mut response.body).await.as_str()), (404, "no"));
}

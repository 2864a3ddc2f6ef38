//! The same by HTTP/2.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::{Ask, Body, LONG, own, shown};

/// A connection that is kept.
pub struct Http2 {
    requests: SendRequest<Bytes>,
    runtime: Runtime,
}

impl Http2 {
    pub fn connect(to: SocketAddr) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let requests = runtime.block_on(async {
            let (requests, connection) = h2::client::handshake(TcpStream::connect(to).await?).await?;
            tokio::spawn(async { drop(connection.await) });
            anyhow::Ok(requests)
        })?;
        Ok(Self { requests, runtime })
    }

    pub fn send(&self, ask: &Ask) -> Result<Value> {
        let (requests, own) = (self.requests.clone(), ask.clone());
        // On the connection's own thread: a request's body leaves with its head.
        let exchange = self.runtime.spawn(async move { timeout(LONG, exchange(requests, &own)).await });
        self.runtime.block_on(exchange)?.with_context(|| format!("{ask:?}"))?
    }
}

async fn exchange(requests: SendRequest<Bytes>, ask: &Ask) -> Result<Value> {
    let mut requests = requests.ready().await?;
    let mut request = Request::builder().method(&*ask.method).uri(format!("http://{}{}", ask.host, ask.path));
    for (name, value) in &ask.headers {
        request = request.header(name, value);
    }
    let pieces = match &ask.body {
        Body::None => vec![],
        Body::Sized(length) => vec![*length],
        // The rest does not come.
        Body::Stalls(first, ..) => vec![*first],
        Body::Chunked(sizes) => sizes.clone(),
    };
    let stalls = matches!(ask.body, Body::Stalls(..));
    let (response, mut stream) = requests.send_request(request.body(())?, pieces.is_empty())?;
    for (n, size) in pieces.iter().enumerate() {
        // What the peer does not want is its matter.
        drop(stream.send_data(vec![b'b'; *size].into(), n + 1 == pieces.len() && !stalls));
    }
    let response = match response.await {
        Ok(response) => response,
        Err(error) => return Ok(json!({ "end": format!("reset: {:?}", error.reason()) })),
    };
    let (head, mut body) = response.into_parts();
    let (mut data, mut end) = (Vec::new(), "whole".to_owned());
    while let Some(piece) = body.data().await {
        match piece {
            Ok(piece) => {
                drop(body.flow_control().release_capacity(piece.len()));
                data.extend_from_slice(&piece);
            }
            Err(error) => {
                end = format!("reset: {:?}", error.reason());
                break;
            }
        }
    }
    let trailers = body.trailers().await.ok().flatten().unwrap_or_default();
    if let Body::Stalls(_, _, pause) = ask.body {
        // Whether the server wants the rest.
        let told = timeout(pause, std::future::poll_fn(|cx| stream.poll_reset(cx))).await;
        end += &match told {
            Ok(Ok(reason)) => format!(", then {reason:?}"),
            Ok(Err(error)) => format!(", then {:?}", error.reason()),
            Err(_) => ", and waits".to_owned(),
        };
    }
    Ok(json!({
        "status": head.status.as_u16(), "headers": own(fields(&head.headers)), "body": shown(&data, &end),
        "end": end, "trailers": own(fields(&trailers)),
    }))
}

fn fields(headers: &HeaderMap) -> Map<String, Value> {
    let mut all = Map::new();
    for name in headers.keys() {
        let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        all.insert(name.to_string(), values.collect::<Vec<_>>().join(",").into());
    }
    all
}

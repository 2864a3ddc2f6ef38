//! `envoy.filters.network.direct_response`: some bytes, and the end.

use std::future::poll_fn;
use std::io;

use super::gates;
use crate::net::wire::Wire;
use crate::telemetry::Bytes;

/// Envoy's `%RESPONSE_CODE_DETAILS%` of it.
pub const DETAILS: &str = "direct_response";

/// Writes `body` and the end to the client, whatever it may have sent. The caller closes.
pub async fn run(wire: &mut Wire<'_>, body: &[u8], bytes: &mut Bytes) -> io::Result<()> {
    write_all(wire, body, bytes).await?;
    poll_fn(|cx| wire.poll_shutdown(cx)).await?;
    // It is not counted as received: Envoy does not read it.
    gates::discard(wire, &mut Bytes::default());
    Ok(())
}

/// Writes and flushes `body`; without one nothing is sent, and what waits to go with the first bytes goes on waiting.
pub(super) async fn write_all(wire: &mut Wire<'_>, body: &[u8], bytes: &mut Bytes) -> io::Result<()> {
    if body.is_empty() {
        return Ok(());
    }
    let mut rest = body;
    while !rest.is_empty() {
        let n = poll_fn(|cx| wire.poll_write(cx, rest)).await?;
        bytes.downstream_tx += n as u64;
        rest = rest.get(n..).unwrap_or_default();
    }
    poll_fn(|cx| wire.poll_flush(cx)).await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::net::socket::Socket;

    #[tokio::test]
    async fn the_body_and_a_clean_end_even_for_a_client_that_talks() {
        for (body, sent) in [(&b"hello"[..], &b""[..]), (b"hello", b"abc"), (b"", b"abc")] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (server, _) = listener.accept().await.unwrap();
            client.write_all(sent).await.unwrap();
            let mut bytes = Bytes::default();
            run(&mut Wire::new(Socket::Tcp(&server), None), body, &mut bytes).await.unwrap();
            drop(server);
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, body);
            let expected = Bytes { downstream_tx: body.len() as u64, ..Bytes::default() };
            assert_eq!(bytes, expected);
        }
    }
}

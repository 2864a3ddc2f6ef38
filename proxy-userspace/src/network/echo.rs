//! `envoy.filters.network.echo`: the client gets back what it sends.

use std::io;

use tokio::net::TcpStream;

use super::direct_response;
use crate::telemetry::Bytes;

const CHUNK: usize = 16 * 1024;

/// Until the client has said FIN and has all of its bytes back. Nothing is read while the client takes nothing.
/// The buffer is held only while there are bytes.
pub async fn run(stream: &TcpStream, bytes: &mut Bytes) -> io::Result<()> {
    loop {
        stream.readable().await?;
        let mut chunk = vec![0; CHUNK];
        match stream.try_read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                bytes.downstream_rx += n as u64;
                direct_response::write_all(stream, chunk.get(..n).unwrap_or_default(), bytes).await?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn all_bytes_back_then_the_end() {
        const LEN: usize = 8 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let serve = async move {
            let mut bytes = Bytes::default();
            run(&server, &mut bytes).await.unwrap();
            bytes
        };
        let (mut from, mut to) = client.into_split();
        let sent: Vec<u8> = (0..LEN).map(|i| (i % 251) as u8).collect();
        let send = async {
            to.write_all(&sent).await.unwrap();
            to.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (bytes, (), read) = tokio::join!(serve, send, from.read_to_end(&mut got));
        read.unwrap();
        assert!(got == sent);
        assert_eq!((bytes.downstream_rx, bytes.downstream_tx), (LEN as u64, LEN as u64));
    }
}

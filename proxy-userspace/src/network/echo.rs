//! `envoy.filters.network.echo`: the client gets back what it sends.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;

use super::direct_response;
use crate::net::wire::Wire;
use crate::telemetry::Bytes;

const CHUNK: usize = 16 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

/// Until the client has said FIN and has all of its bytes back; those of `first` were read, and counted, before.
/// Nothing is read while the client takes nothing.
pub async fn run(wire: &mut Wire<'_>, first: Vec<u8>, bytes: &mut Bytes) -> io::Result<()> {
    direct_response::write_all(wire, &first, bytes).await?;
    drop(first);
    loop {
        let chunk = read(wire).await?;
        if chunk.is_empty() {
            return Ok(());
        }
        bytes.downstream_rx += chunk.len() as u64;
        direct_response::write_all(wire, &chunk, bytes).await?;
    }
}

/// What the client has sent; empty at its end. Nothing is held while there are no bytes.
pub(super) async fn read(wire: &mut Wire<'_>) -> io::Result<Vec<u8>> {
    poll_fn(|cx| {
        SCRATCH.with_borrow_mut(|scratch| {
            let read = wire.poll_read(cx, scratch);
            read.map_ok(|n| scratch.get(..n).unwrap_or_default().to_vec())
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::net::socket::Socket;

    #[tokio::test]
    async fn all_bytes_back_then_the_end() {
        const LEN: usize = 8 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let serve = async move {
            let mut bytes = Bytes::default();
            run(&mut Wire::new(Socket::Tcp(&server), None), Vec::new(), &mut bytes).await.unwrap();
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

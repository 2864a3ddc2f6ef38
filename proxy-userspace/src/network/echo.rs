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
                direct_response::run(stream, chunk.get(..n).unwrap_or_default(), bytes).await?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

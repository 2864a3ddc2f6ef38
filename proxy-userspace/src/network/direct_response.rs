//! `envoy.filters.network.direct_response`: some bytes, and the end.

use std::io;

use tokio::net::TcpStream;

use crate::telemetry::Bytes;

/// Envoy's `%RESPONSE_CODE_DETAILS%` of it.
pub const DETAILS: &str = "direct_response";

/// Writes `body` to the client. The caller closes.
pub async fn run(stream: &TcpStream, body: &[u8], bytes: &mut Bytes) -> io::Result<()> {
    let mut rest = body;
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(n) => {
                bytes.downstream_tx += n as u64;
                rest = rest.get(n..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

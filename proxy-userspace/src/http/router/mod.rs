//! The router: what ends each filter chain and carries a request to where its route says.

use super::Stream;
use super::filter::Stop;

/// Makes the response: its head in the stream's entry, its body in [`Stream::response_body`].
pub async fn run(stream: &mut Stream) -> Result<(), Stop> {
    let _ = stream;
    Ok(())
}

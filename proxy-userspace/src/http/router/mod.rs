//! The router: what ends each filter chain and carries a request to where its route says.

use http::StatusCode;

use super::filter::Stop;
use super::{LocalReply, Stream, route};
use crate::telemetry::Flags;

/// Makes the response: its head in the stream's entry, its body in [`Stream::response_body`].
pub async fn run(stream: &mut Stream) -> Result<(), Stop> {
    let Some(routed) = stream.route() else {
        return Err(LocalReply::new(StatusCode::NOT_FOUND, "", Flags::NR, "route_not_found").into());
    };
    let reply = route::reply(stream, &routed, false).unwrap_or_else(|| {
        LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "", Flags::NC, "cluster_not_found")
    });
    Err(reply.into())
}

//! Names of headers with underscores, which some take for dashes.

use http::StatusCode;
use proxy_config::model::http::options::HeadersWithUnderscores;

use crate::http::filter::Stop;
use crate::http::{LocalReply, Stream};
use crate::telemetry::Flags;

pub(super) fn check(stream: &mut Stream, action: HeadersWithUnderscores) -> Result<(), Stop> {
    let has_one = |stream: &Stream| stream.request().headers.keys().any(|name| name.as_str().contains('_'));
    match action {
        HeadersWithUnderscores::Allow => {}
        HeadersWithUnderscores::DropHeader if has_one(stream) => {
            let headers = &mut stream.request_mut().headers;
            let names: Vec<_> = headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
            for name in names {
                headers.remove(name);
            }
        }
        HeadersWithUnderscores::RejectRequest if has_one(stream) => {
            let details = match stream.request().version {
                http::Version::HTTP_2 => "http2.unexpected_underscore",
                _ => "http1.unexpected_underscore",
            };
            // By the codec, in Envoy.
            stream.conn.hcm.stats.downstream_cx_protocol_error.inc();
            let reply = LocalReply::new(StatusCode::BAD_REQUEST, "Bad Request", Flags::DPE, details);
            return Err(reply.into());
        }
        HeadersWithUnderscores::DropHeader | HeadersWithUnderscores::RejectRequest => {}
    }
    Ok(())
}

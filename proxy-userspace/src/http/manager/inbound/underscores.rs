//! Names of headers with underscores, which some take for dashes.

use http::StatusCode;
use proxy_config::model::http::options::HeadersWithUnderscores;

use super::refusal;
use crate::http::Stream;
use crate::http::filter::Stop;

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
            return Err(refusal(StatusCode::BAD_REQUEST, details));
        }
        HeadersWithUnderscores::DropHeader | HeadersWithUnderscores::RejectRequest => {}
    }
    Ok(())
}

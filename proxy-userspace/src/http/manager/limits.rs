//! How long a stream may take, by its route.

use std::time::Duration;

use http::HeaderMap;
use proxy_config::model::http::action::MaxStreamDuration;

use super::watch::Limits;
use crate::clock::Instant;
use crate::http::Stream;

/// What the route says goes before what the connection manager says.
pub(super) fn of_route(limits: &mut Limits, stream: &Stream, start: Instant) {
    let Some(action) = stream.known_route().and_then(|route| route.action()) else { return };
    if let Some(idle) = action.idle_timeout {
        limits.idle = idle;
    }
    // Envoy says that a route's idle time-out stands in for it, and does not do so.
    if let Some(flush) = action.flush_timeout {
        limits.flush = flush;
    }
    if let Some(duration) = &action.max_stream_duration {
        let default = stream.conn.hcm.model.common.max_stream_duration;
        let limit = longest(duration, &stream.request().headers, default);
        limits.end = limit.and_then(|limit| start.checked_add(limit));
    }
}

/// A client of gRPC has the time that it asks for, where that is so configured.
pub(crate) fn longest(
    duration: &MaxStreamDuration,
    headers: &HeaderMap,
    default: Option<Duration>,
) -> Option<Duration> {
    let asked = headers.get("grpc-timeout").and_then(|value| grpc_timeout(value.as_bytes()));
    let (Some(asked), Some(most)) = (asked, duration.grpc_timeout_header_max) else {
        return duration.max.unwrap_or(default);
    };
    let limited = most.map_or(asked, |most| asked.min(most));
    Some(limited.saturating_sub(duration.grpc_timeout_header_offset))
}

/// `100m`.
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let digits = std::str::from_utf8(digits).ok().filter(|digits| (1..=8).contains(&digits.len()))?;
    let n: u64 = digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok())??;
    Some(match unit {
        b'H' => Duration::from_secs(n * 3_600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_of_grpc_ask_for() {
        let millis = |n| Some(Duration::from_millis(n));
        for (value, expected) in [
            ("100m", millis(100)),
            ("2S", millis(2_000)),
            ("1M", millis(60_000)),
            ("1H", millis(3_600_000)),
            ("", None),
            ("m", None),
            ("1x", None),
            ("-1m", None),
            ("123456789m", None),
        ] {
            assert_eq!(grpc_timeout(value.as_bytes()), expected, "{value}");
        }
        let duration = MaxStreamDuration {
            max: Some(millis(7)),
            grpc_timeout_header_max: Some(millis(50)),
            grpc_timeout_header_offset: Duration::from_millis(10),
        };
        let asks = |text: &'static str| {
            HeaderMap::from_iter([(http::HeaderName::from_static("grpc-timeout"), text.parse().unwrap())])
        };
        assert_eq!(longest(&duration, &HeaderMap::new(), None), millis(7));
        assert_eq!(longest(&duration, &asks("100m"), None), millis(40));
        assert_eq!(longest(&duration, &asks("20m"), None), millis(10));
        let unlimited = MaxStreamDuration { max: None, ..duration };
        assert_eq!(longest(&unlimited, &HeaderMap::new(), millis(3)), millis(3));
    }
}

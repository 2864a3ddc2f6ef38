//! `HttpProtocolOptions`, `Http1ProtocolOptions`, `Http2ProtocolOptions`: what both sides of a connection have.

use std::time::Duration;

use core::http1_protocol_options::{HeaderKeyFormat as PbKeyFormat, header_key_format};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::http::header_formatters::preserve_case::v3 as preserve;

use crate::lower::extension::Extension;
use crate::lower::registry::registry;
use crate::lower::value::{flag, number};
use crate::lower::{Cx, Lower};
use crate::model::http::options::{
    CommonHttpOptions, HeaderKeyFormat, HeadersWithUnderscores, Http1Options, Http2Options, Keepalive,
    StreamResetLimit,
};

registry! {
    core::HttpProtocolOptions, core::Http1ProtocolOptions, PbKeyFormat, core::Http2ProtocolOptions,
    core::KeepaliveSettings, preserve::PreserveCaseFormatterConfig,
}

/// PGV's bound of the sizes of all headers.
const MOST_KB: u32 = 8192;
/// HTTP/2's own bounds.
const LEAST_WINDOW: u32 = 65_535;
const MOST_31: u32 = (1 << 31) - 1;
const JITTER: f64 = 15.0;

lower! { "envoy.config.core.v3.HttpProtocolOptions" core::HttpProtocolOptions => CommonHttpOptions, cx;
    read {
        idle_timeout, max_connection_duration, max_connection_duration_jitter, max_headers_count,
        max_response_headers_kb, max_stream_duration, headers_with_underscores_action, max_requests_per_connection
    }
    {
        use core::http_protocol_options::HeadersWithUnderscoresAction as Action;
        let default = CommonHttpOptions::default();
        let headers_with_underscores = match cx.variant("headers_with_underscores_action", headers_with_underscores_action)? {
            Action::Allow => HeadersWithUnderscores::Allow,
            Action::RejectRequest => HeadersWithUnderscores::RejectRequest,
            Action::DropHeader => HeadersWithUnderscores::DropHeader,
        };
        let max_headers_count = number(max_headers_count).unwrap_or(default.max_headers_count);
        let max_response_headers_kb =
            number(max_response_headers_kb).and_then(|kb| cx.ranged("max_response_headers_kb", kb, 1..=MOST_KB));
        Some(CommonHttpOptions {
            idle_timeout: cx.timeout("idle_timeout", idle_timeout, default.idle_timeout),
            max_connection_duration: cx.timeout("max_connection_duration", max_connection_duration, None),
            max_connection_duration_jitter: max_connection_duration_jitter
                .and_then(|jitter| cx.lower("max_connection_duration_jitter", jitter)),
            max_headers_count: cx.ranged("max_headers_count", max_headers_count, 1..=u32::MAX)?,
            max_response_headers_kb,
            max_stream_duration: cx.timeout("max_stream_duration", max_stream_duration, None),
            headers_with_underscores,
            max_requests_per_connection: number(max_requests_per_connection).filter(|max| *max > 0),
        })
    }
}

/// Whether a bad message ends its stream alone is said here, or by the connection manager, as in Envoy.
pub(super) fn stream_error(own: Option<bool>, outer: Option<bool>) -> bool {
    own.or(outer).unwrap_or(false)
}

/// Options, and whether they say themselves what a bad message ends.
pub(in crate::lower) type Http1WithError = (Http1Options, Option<bool>);

lower! { "envoy.config.core.v3.Http1ProtocolOptions" core::Http1ProtocolOptions => Http1WithError, cx;
    read {
        allow_absolute_url, accept_http_10, default_host_for_http_10, header_key_format, enable_trailers,
        allow_chunked_length, override_stream_error_on_invalid_http_message, send_fully_qualified_url,
        allow_custom_methods, ignore_http_11_upgrade
    }
    warn {
        use_balsa_parser: "there is one parser here, which is neither of Envoy's two",
    }
    {
        super::header::plain(cx, "default_host_for_http_10", &default_host_for_http_10);
        let own = override_stream_error_on_invalid_http_message.map(|own| own.value);
        let options = Http1Options {
            allow_absolute_url: flag(allow_absolute_url, true),
            accept_http_10,
            default_host_for_http_10: (!default_host_for_http_10.is_empty()).then(|| default_host_for_http_10.into()),
            header_key_format: header_key_format
                .and_then(|format| cx.lower("header_key_format", format))
                .unwrap_or_default(),
            enable_trailers,
            allow_chunked_length,
            stream_error_on_invalid_http_message: stream_error(own, None),
            send_fully_qualified_url,
            allow_custom_methods,
            ignore_http_11_upgrade: cx.list("ignore_http_11_upgrade", ignore_http_11_upgrade),
        };
        Some((options, own))
    }
}

lower! { "envoy.config.core.v3.Http1ProtocolOptions.HeaderKeyFormat" PbKeyFormat => HeaderKeyFormat, cx;
    read { header_format }
    {
        use header_key_format::{HeaderFormat, ProperCaseWords};
        match header_format {
            Some(HeaderFormat::ProperCaseWords(ProperCaseWords {})) => Some(HeaderKeyFormat::ProperCaseWords),
            Some(HeaderFormat::StatefulFormatter(formatter)) => {
                cx.field("stateful_formatter", |cx| stateful(cx, formatter))
            }
            None => {
                cx.reject("header_format", "is required");
                None
            }
        }
    }
}

/// `envoy.http.stateful_header_formatters.preserve_case` is the only one.
fn stateful(cx: &mut Cx, formatter: core::TypedExtensionConfig) -> Option<HeaderKeyFormat> {
    let Some(any) = formatter.typed_config else {
        let known = matches!(
            formatter.name.as_str(),
            "preserve_case" | "envoy.http.stateful_header_formatters.preserve_case"
        );
        let format =
            HeaderKeyFormat::PreserveCase { forward_reason_phrase: false, proper_case_own_headers: false };
        return crate::lower::extension::by_name(cx, &formatter.name, known.then_some(format));
    };
    let e = Extension::unpack(cx, &any)?;
    if e.type_name != preserve::PreserveCaseFormatterConfig::NAME {
        return e.refuse(cx);
    }
    e.lower::<preserve::PreserveCaseFormatterConfig>(cx)
}

lower! { "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig"
    preserve::PreserveCaseFormatterConfig => HeaderKeyFormat, cx;
    read { forward_reason_phrase, formatter_type_on_envoy_headers }
    {
        use preserve::preserve_case_formatter_config::FormatterTypeOnEnvoyHeaders as Own;
        let own = cx.variant("formatter_type_on_envoy_headers", formatter_type_on_envoy_headers)?;
        let proper_case_own_headers = match own {
            Own::Default => false,
            Own::ProperCase => true,
        };
        Some(HeaderKeyFormat::PreserveCase { forward_reason_phrase, proper_case_own_headers })
    }
}

lower! { "envoy.config.core.v3.Http2ProtocolOptions" core::Http2ProtocolOptions => Http2Options, cx;
    read {
        hpack_table_size, max_concurrent_streams, initial_stream_window_size, initial_connection_window_size,
        allow_connect, max_outbound_control_frames, max_consecutive_inbound_frames_with_empty_payload,
        max_inbound_priority_frames_per_stream, max_inbound_window_update_frames_per_data_frame_sent,
        connection_keepalive, max_header_field_size_kb, disallow_obs_text, stream_reset_burst, stream_reset_rate
    }
    warn {
        allow_metadata: "METADATA frames are not implemented: they are passed over",
        custom_settings_parameters: "settings that HTTP/2 does not have are not sent",
        use_oghttp2_codec: "there is one codec here, which is neither of Envoy's two",
        max_metadata_size: "METADATA frames are not implemented",
        max_outbound_frames: "what waits for a peer is limited in bytes, by stream, and not in frames",
        stream_error_on_invalid_http_messaging: "a bad message ends its stream and not its connection, in any case",
        override_stream_error_on_invalid_http_message: "a bad message ends its stream and not its connection, in any case",
        enable_huffman_encoding: "headers are Huffman-encoded where that is shorter",
    }
    {
        let default = Http2Options::default();
        let streams = number(max_concurrent_streams).unwrap_or(default.max_concurrent_streams);
        let window = |cx: &mut Cx, field, size: Option<_>| match number(size) {
            Some(size) => cx.ranged(field, size, LEAST_WINDOW..=MOST_31).map(Some),
            None => Some(None),
        };
        let stream_window = window(cx, "initial_stream_window_size", initial_stream_window_size);
        let connection_window = window(cx, "initial_connection_window_size", initial_connection_window_size);
        let from_1 = |cx: &mut Cx, field, value: Option<_>, default| {
            cx.ranged(field, number(value).unwrap_or(default), 1..=u32::MAX)
        };
        let control = from_1(
            cx,
            "max_outbound_control_frames",
            max_outbound_control_frames,
            default.max_outbound_control_frames,
        );
        let updates = from_1(
            cx,
            "max_inbound_window_update_frames_per_data_frame_sent",
            max_inbound_window_update_frames_per_data_frame_sent,
            default.max_inbound_window_update_frames_per_data_frame_sent,
        );
        let field_kb = number(max_header_field_size_kb).unwrap_or(default.max_header_field_size_kb);
        let stream_reset = StreamResetLimit {
            burst: stream_reset_burst.map_or(default.stream_reset.burst, |v| v.value),
            per_second: stream_reset_rate.map_or(default.stream_reset.per_second, |v| v.value),
        };
        Some(Http2Options {
            hpack_table_size: number(hpack_table_size).unwrap_or(default.hpack_table_size),
            max_concurrent_streams: cx.ranged("max_concurrent_streams", streams, 1..=MOST_31)?,
            initial_stream_window_size: stream_window?,
            initial_connection_window_size: connection_window?,
            allow_connect,
            max_outbound_control_frames: control?,
            max_consecutive_inbound_frames_with_empty_payload: number(
                max_consecutive_inbound_frames_with_empty_payload,
            )
            .unwrap_or(default.max_consecutive_inbound_frames_with_empty_payload),
            max_inbound_priority_frames_per_stream: number(max_inbound_priority_frames_per_stream)
                .unwrap_or(default.max_inbound_priority_frames_per_stream),
            max_inbound_window_update_frames_per_data_frame_sent: updates?,
            connection_keepalive: connection_keepalive
                .and_then(|keepalive| cx.lower("connection_keepalive", keepalive)),
            max_header_field_size_kb: cx.ranged("max_header_field_size_kb", field_kb, 64..=256)?,
            disallow_obs_text: flag(disallow_obs_text, false),
            stream_reset,
        })
    }
}

lower! { "envoy.config.core.v3.KeepaliveSettings" core::KeepaliveSettings => Keepalive, cx;
    read { interval, timeout, interval_jitter }
    warn {
        connection_idle_interval: "PINGs go by interval alone, and not ahead of a request",
    }
    {
        const LEAST: Duration = Duration::from_millis(1);
        cx.duration_from("connection_idle_interval", connection_idle_interval, LEAST);
        if timeout.is_none() {
            cx.reject("timeout", "is required");
        }
        let timeout = cx.duration_from("timeout", timeout, LEAST);
        let interval = cx.duration_from("interval", interval, LEAST);
        let jitter = match interval_jitter {
            Some(jitter) => cx.lower("interval_jitter", jitter),
            None => Some(JITTER),
        };
        Some(Keepalive { interval, timeout: timeout?, interval_jitter: jitter? })
    }
}

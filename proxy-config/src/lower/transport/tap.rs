//! `config.tap.v3` and the messages around it: which connections are recorded, and where to.
//!
//! The same `TapConfig` comes in the body of `POST /tap`, which may ask for sinks that a file cannot.

use std::sync::Arc;

use envoy_types::pb::envoy::admin::v3 as admin;
use envoy_types::pb::envoy::config::common::matcher::v3 as matcher;
use envoy_types::pb::envoy::config::tap::v3 as pb;
use envoy_types::pb::envoy::extensions::common::tap::v3 as common;
use envoy_types::pb::envoy::extensions::transport_sockets::tap::v3 as ext;

use crate::lower::listener_filter::all;
use crate::lower::registry::registry;
use crate::lower::value::number;
use crate::lower::{Cx, Lower};
use crate::model::transport::{
    Tap, TapConfig, TapFormat, TapOutput, TapPredicate, TapRequest, TapSink, TapSource,
};

registry! {
    ext::Tap, ext::SocketTapConfig, common::CommonExtensionConfig, common::AdminConfig, pb::TapConfig,
    pb::MatchPredicate, pb::match_predicate::MatchSet, matcher::MatchPredicate, matcher::match_predicate::MatchSet,
    admin::TapRequest, pb::OutputConfig, pb::OutputSink, pb::StreamingAdminSink, pb::BufferedAdminSink, pb::FilePerTapSink,
}

/// Of a trace that is kept until its end.
const MOST_BUFFERED: u32 = 1024;
/// Where events are gathered at all, Envoy gathers so many bytes.
const LEAST_STREAMED: u32 = 9;

lower! { "envoy.extensions.transport_sockets.tap.v3.Tap" ext::Tap => Tap, cx;
    read { common_config, transport_socket, socket_tap_config }
    {
        let source = cx.required("common_config", common_config);
        let inner = cx.required("transport_socket", transport_socket);
        let (set_connection_per_event, stats_prefix) = match socket_tap_config {
            Some(config) => cx.lower("socket_tap_config", config)?,
            None => (false, Arc::default()),
        };
        Some(Tap { source: source?, inner: inner?, set_connection_per_event, stats_prefix })
    }
}

lower! { "envoy.extensions.transport_sockets.tap.v3.SocketTapConfig" ext::SocketTapConfig => (bool, Arc<str>), cx;
    read { set_connection_per_event, stats_prefix }
    {
        let _ = cx;
        Some((set_connection_per_event, stats_prefix.into()))
    }
}

lower! { "envoy.extensions.common.tap.v3.CommonExtensionConfig" common::CommonExtensionConfig => TapSource, cx;
    read { config_type }
    {
        use common::common_extension_config::ConfigType;
        match config_type {
            Some(ConfigType::AdminConfig(admin)) => cx.lower("admin_config", admin),
            Some(ConfigType::StaticConfig(config)) => {
                let config = cx.lower("static_config", config)?;
                match config.output.sink {
                    TapSink::FilePerTap { .. } => {}
                    TapSink::StreamingAdmin => only_by_request(cx, "streaming_admin"),
                    TapSink::BufferedAdmin { .. } => only_by_request(cx, "buffered_admin"),
                }
                Some(TapSource::Static(config))
            }
            None => {
                cx.reject("config_type", "admin_config or static_config is required");
                None
            }
        }
    }
}

fn only_by_request(cx: &mut Cx, sink: &'static str) {
    cx.field("static_config", |cx| {
        cx.field("output_config", |cx| {
            cx.field("sinks", |cx| {
                cx.index(0, |cx| {
                    cx.reject(sink, "answers a request to /tap: a static tap needs file_per_tap")
                });
            });
        });
    });
}

lower! { "envoy.extensions.common.tap.v3.AdminConfig" common::AdminConfig => TapSource, cx;
    read { config_id }
    {
        Some(TapSource::Admin { config_id: cx.name("config_id", config_id)? })
    }
}

lower! { "envoy.config.tap.v3.TapConfig" pb::TapConfig => TapConfig, cx;
    read { match_config, r#match, output_config, tap_enabled }
    {
        let predicate = match (r#match, match_config) {
            (Some(predicate), old) => {
                if old.is_some() {
                    cx.warn("match_config", "has no effect with match");
                }
                cx.lower("match", predicate)
            }
            (None, Some(predicate)) => cx.lower("match_config", predicate),
            (None, None) => {
                cx.reject("match", "is required");
                None
            }
        };
        let output = cx.required("output_config", output_config);
        let enabled = tap_enabled.map(|enabled| cx.lower("tap_enabled", enabled));
        let enabled = match enabled {
            Some(enabled) => Some(enabled?),
            None => None,
        };
        Some(TapConfig { predicate: predicate?, output: output?, enabled })
    }
}

lower! { "envoy.admin.v3.TapRequest" admin::TapRequest => TapRequest, cx;
    read { config_id, tap_config }
    {
        let config = cx.required("tap_config", tap_config);
        Some(TapRequest { config_id: cx.name("config_id", config_id)?, config: config? })
    }
}

/// What the two predicates have in common.
enum Rule<P, S> {
    Or(S),
    And(S),
    Not(Box<P>),
    Any(bool),
    Http(&'static str),
}

fn predicate<P, S>(cx: &mut Cx, rule: Option<Rule<P, S>>) -> Option<TapPredicate>
where
    P: Lower<Model = TapPredicate>,
    S: Lower<Model = Vec<TapPredicate>>,
{
    match rule {
        Some(Rule::Or(set)) => cx.lower("or_match", set).map(TapPredicate::Or),
        Some(Rule::And(set)) => cx.lower("and_match", set).map(TapPredicate::And),
        Some(Rule::Not(not)) => cx.lower("not_match", *not).map(Box::new).map(TapPredicate::Not),
        Some(Rule::Any(true)) => Some(TapPredicate::Any),
        Some(Rule::Any(false)) => {
            cx.reject("any_match", "must be true");
            None
        }
        Some(Rule::Http(field)) => {
            cx.warn(field, "the bytes of a connection have no HTTP in them: it does not match");
            Some(TapPredicate::Http)
        }
        None => {
            cx.reject("rule", "is required");
            None
        }
    }
}

fn set<P: Lower<Model = TapPredicate>>(cx: &mut Cx, rules: Vec<P>) -> Option<Vec<TapPredicate>> {
    if rules.len() < 2 {
        cx.reject("rules", "must have at least two");
    }
    all(cx, "rules", rules)
}

lower! { "envoy.config.common.matcher.v3.MatchPredicate" matcher::MatchPredicate => TapPredicate, cx;
    read { rule }
    {
        use matcher::match_predicate::Rule as Pb;
        let rule = rule.map(|rule| match rule {
            Pb::OrMatch(set) => Rule::<Self, _>::Or(set),
            Pb::AndMatch(set) => Rule::And(set),
            Pb::NotMatch(not) => Rule::Not(not),
            Pb::AnyMatch(any) => Rule::Any(any),
            Pb::HttpRequestHeadersMatch(_) => Rule::Http("http_request_headers_match"),
            Pb::HttpRequestTrailersMatch(_) => Rule::Http("http_request_trailers_match"),
            Pb::HttpResponseHeadersMatch(_) => Rule::Http("http_response_headers_match"),
            Pb::HttpResponseTrailersMatch(_) => Rule::Http("http_response_trailers_match"),
            Pb::HttpRequestGenericBodyMatch(_) => Rule::Http("http_request_generic_body_match"),
            Pb::HttpResponseGenericBodyMatch(_) => Rule::Http("http_response_generic_body_match"),
        });
        predicate(cx, rule)
    }
}

lower! { "envoy.config.common.matcher.v3.MatchPredicate.MatchSet" matcher::match_predicate::MatchSet => Vec<TapPredicate>, cx;
    read { rules }
    {
        set(cx, rules)
    }
}

lower! { "envoy.config.tap.v3.MatchPredicate" pb::MatchPredicate => TapPredicate, cx;
    read { rule }
    {
        use pb::match_predicate::Rule as Pb;
        let rule = rule.map(|rule| match rule {
            Pb::OrMatch(set) => Rule::<Self, _>::Or(set),
            Pb::AndMatch(set) => Rule::And(set),
            Pb::NotMatch(not) => Rule::Not(not),
            Pb::AnyMatch(any) => Rule::Any(any),
            Pb::HttpRequestHeadersMatch(_) => Rule::Http("http_request_headers_match"),
            Pb::HttpRequestTrailersMatch(_) => Rule::Http("http_request_trailers_match"),
            Pb::HttpResponseHeadersMatch(_) => Rule::Http("http_response_headers_match"),
            Pb::HttpResponseTrailersMatch(_) => Rule::Http("http_response_trailers_match"),
            Pb::HttpRequestGenericBodyMatch(_) => Rule::Http("http_request_generic_body_match"),
            Pb::HttpResponseGenericBodyMatch(_) => Rule::Http("http_response_generic_body_match"),
        });
        predicate(cx, rule)
    }
}

lower! { "envoy.config.tap.v3.MatchPredicate.MatchSet" pb::match_predicate::MatchSet => Vec<TapPredicate>, cx;
    read { rules }
    {
        set(cx, rules)
    }
}

lower! { "envoy.config.tap.v3.OutputConfig" pb::OutputConfig => TapOutput, cx;
    read { sinks, max_buffered_rx_bytes, max_buffered_tx_bytes, streaming, min_streamed_sent_bytes }
    {
        if sinks.len() != 1 {
            cx.reject("sinks", "must have exactly one");
        }
        let (sink, format) = cx.list("sinks", sinks).into_iter().next()?;
        Some(TapOutput {
            sink,
            format,
            max_buffered_rx_bytes: number(max_buffered_rx_bytes).unwrap_or(MOST_BUFFERED),
            max_buffered_tx_bytes: number(max_buffered_tx_bytes).unwrap_or(MOST_BUFFERED),
            streaming,
            min_streamed_sent_bytes: number(min_streamed_sent_bytes).map_or(0, |bytes| bytes.max(LEAST_STREAMED)),
        })
    }
}

lower! { "envoy.config.tap.v3.OutputSink" pb::OutputSink => (TapSink, TapFormat), cx;
    read { format, output_sink_type }
    {
        use pb::output_sink::{Format, OutputSinkType};
        let format = match cx.variant("format", format)? {
            Format::JsonBodyAsBytes => TapFormat::JsonBodyAsBytes,
            Format::JsonBodyAsString => TapFormat::JsonBodyAsString,
            Format::ProtoBinary => TapFormat::ProtoBinary,
            Format::ProtoBinaryLengthDelimited => TapFormat::ProtoBinaryLengthDelimited,
            Format::ProtoText => TapFormat::ProtoText,
        };
        let sink = match output_sink_type {
            Some(OutputSinkType::StreamingAdmin(sink)) => cx.lower("streaming_admin", sink),
            Some(OutputSinkType::FilePerTap(sink)) => cx.lower("file_per_tap", sink),
            Some(OutputSinkType::BufferedAdmin(sink)) => cx.lower("buffered_admin", sink),
            Some(OutputSinkType::StreamingGrpc(_)) => {
                cx.reject("streaming_grpc", "a gRPC tap sink is not implemented, as in Envoy");
                None
            }
            Some(OutputSinkType::CustomSink(sink)) => {
                cx.reject("custom_sink", format!("\"{}\": custom tap sinks are not implemented", sink.name));
                None
            }
            None => {
                cx.reject("output_sink_type", "is required");
                None
            }
        };
        Some((sink?, format))
    }
}

lower! { "envoy.config.tap.v3.StreamingAdminSink" pb::StreamingAdminSink => TapSink, cx;
    read {}
    {
        let _ = cx;
        Some(TapSink::StreamingAdmin)
    }
}

lower! { "envoy.config.tap.v3.BufferedAdminSink" pb::BufferedAdminSink => TapSink, cx;
    read { max_traces, timeout }
    {
        let timeout = cx.timeout("timeout", timeout, None);
        Some(TapSink::BufferedAdmin { max_traces: cx.ranged("max_traces", max_traces, 1..=u64::MAX)?, timeout })
    }
}

lower! { "envoy.config.tap.v3.FilePerTapSink" pb::FilePerTapSink => TapSink, cx;
    read { path_prefix }
    {
        Some(TapSink::FilePerTap { path_prefix: cx.name("path_prefix", path_prefix)? })
    }
}

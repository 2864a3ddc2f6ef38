//! `config.accesslog.v3` and the loggers. A log decides nothing: a logger that is not implemented is left out with a
//! warning.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::data::accesslog::v3::AccessLogType;
use envoy_types::pb::envoy::extensions::access_loggers as ext;
use envoy_types::pb::google::protobuf::Struct as PbStruct;
use ext::file::v3::file_access_log::AccessLogFormat as FileFormat;
use ext::stream::v3::{stderr_access_log, stdout_access_log};

use super::Cx;
use super::core::inline_data;
use super::extension;
use super::listener_filter::all;
use super::registry::registry;
use super::value::{flag, structure};
use crate::format;
use crate::model::access_log::{
    AccessLog, AccessLogFilter, Comparison, ComparisonOp, JsonFormat, LogFormat, LogSink,
};
use crate::model::http::action::BodyFormat;
use crate::model::metadata::Value;

registry! {
    pb::AccessLog, pb::AccessLogFilter, pb::StatusCodeFilter, pb::DurationFilter, pb::ComparisonFilter,
    pb::NotHealthCheckFilter, pb::TraceableFilter, pb::RuntimeFilter, pb::AndFilter, pb::OrFilter,
    pb::ResponseFlagFilter, pb::MetadataFilter, pb::LogTypeFilter, pb::HeaderFilter, pb::GrpcStatusFilter, core::RuntimeUInt32,
    ext::file::v3::FileAccessLog, ext::stream::v3::StdoutAccessLog, ext::stream::v3::StderrAccessLog,
    core::SubstitutionFormatString, core::JsonFormatOptions,
}

/// Envoy's short names, in the order of its own list.
const RESPONSE_FLAGS: &str = "LH UH UT LR UR UF UC UO NR DI FI RL UAEX RLSE DC URX SI IH DPE UMSDR RFCF NFCF DT UPE \
    NC OM DF DO DR UDO";

lower! { "envoy.config.accesslog.v3.AccessLog" pb::AccessLog => Option<AccessLog>, cx;
    read { name, filter, config_type }
    {
        let filtered = filter.is_some();
        let filter = filter.and_then(|filter| cx.lower("filter", filter));
        let any = config_type.map(|pb::access_log::ConfigType::TypedConfig(any)| any);
        let logger = extension::access_logger(cx, &name, any)?;
        if filtered && filter.is_none() {
            return None;
        }
        Some(logger.map(|(sink, format)| AccessLog { filter, sink, format }))
    }
}

lower! { "envoy.config.accesslog.v3.AccessLogFilter" pb::AccessLogFilter => AccessLogFilter, cx;
    read { filter_specifier }
    {
        use pb::access_log_filter::FilterSpecifier as Kind;
        match filter_specifier {
            Some(Kind::StatusCodeFilter(f)) => cx.lower("status_code_filter", f),
            Some(Kind::DurationFilter(f)) => cx.lower("duration_filter", f),
            Some(Kind::NotHealthCheckFilter(f)) => cx.lower("not_health_check_filter", f),
            Some(Kind::TraceableFilter(f)) => cx.lower("traceable_filter", f),
            Some(Kind::RuntimeFilter(f)) => cx.lower("runtime_filter", f),
            Some(Kind::AndFilter(f)) => cx.lower("and_filter", f),
            Some(Kind::OrFilter(f)) => cx.lower("or_filter", f),
            Some(Kind::ResponseFlagFilter(f)) => cx.lower("response_flag_filter", f),
            Some(Kind::MetadataFilter(f)) => cx.lower("metadata_filter", f),
            Some(Kind::LogTypeFilter(f)) => cx.lower("log_type_filter", f),
            Some(Kind::HeaderFilter(f)) => cx.lower("header_filter", f),
            Some(Kind::GrpcStatusFilter(f)) => cx.lower("grpc_status_filter", f),
            Some(Kind::ExtensionFilter(f)) => {
                let why = format!("\"{}\": access log filters by extension are not implemented", f.name);
                refuse(cx, "extension_filter", &why)
            }
            None => refuse(cx, "filter_specifier", "is required"),
        }
    }
}

fn refuse<T>(cx: &mut Cx, field: &'static str, why: &str) -> Option<T> {
    cx.reject(field, why);
    None
}

lower! { "envoy.config.accesslog.v3.StatusCodeFilter" pb::StatusCodeFilter => AccessLogFilter, cx;
    read { comparison }
    {
        cx.required("comparison", comparison).map(AccessLogFilter::StatusCode)
    }
}

lower! { "envoy.config.accesslog.v3.DurationFilter" pb::DurationFilter => AccessLogFilter, cx;
    read { comparison }
    {
        cx.required("comparison", comparison).map(AccessLogFilter::Duration)
    }
}

lower! { "envoy.config.accesslog.v3.ComparisonFilter" pb::ComparisonFilter => Comparison, cx;
    read { op, value }
    {
        use pb::comparison_filter::Op;
        let value = cx.required("value", value);
        let op = match cx.variant("op", op)? {
            Op::Eq => ComparisonOp::Equal,
            Op::Ge => ComparisonOp::AtLeast,
            Op::Le => ComparisonOp::AtMost,
            Op::Ne => ComparisonOp::NotEqual,
        };
        Some(Comparison { op, value: value? })
    }
}

lower! { "envoy.config.core.v3.RuntimeUInt32" core::RuntimeUInt32 => u32, cx;
    read { default_value }
    warn { runtime_key: "there is no runtime: the default value holds" }
    {
        let _ = cx;
        Some(default_value)
    }
}

lower! { "envoy.config.accesslog.v3.NotHealthCheckFilter" pb::NotHealthCheckFilter => AccessLogFilter, cx;
    read {}
    {
        let _ = cx;
        Some(AccessLogFilter::NotHealthCheck)
    }
}

lower! { "envoy.config.accesslog.v3.TraceableFilter" pb::TraceableFilter => AccessLogFilter, cx;
    read {}
    {
        let _ = cx;
        Some(AccessLogFilter::Traceable)
    }
}

lower! { "envoy.config.accesslog.v3.RuntimeFilter" pb::RuntimeFilter => AccessLogFilter, cx;
    read { runtime_key, percent_sampled }
    warn { use_independent_randomness: "randomness is always independent here" }
    {
        // There is no runtime to look the key up in: the percentage holds, which is none by default.
        cx.non_empty("runtime_key", runtime_key)?;
        cx.warn("runtime_key", "there is no runtime: percent_sampled holds");
        let percent = percent_sampled.unwrap_or_default();
        Some(AccessLogFilter::Runtime { percent: cx.lower("percent_sampled", percent)? })
    }
}

lower! { "envoy.config.accesslog.v3.AndFilter" pb::AndFilter => AccessLogFilter, cx;
    read { filters }
    {
        at_least_two(cx, &filters);
        all(cx, "filters", filters).map(AccessLogFilter::And)
    }
}

lower! { "envoy.config.accesslog.v3.OrFilter" pb::OrFilter => AccessLogFilter, cx;
    read { filters }
    {
        at_least_two(cx, &filters);
        all(cx, "filters", filters).map(AccessLogFilter::Or)
    }
}

fn at_least_two(cx: &mut Cx, filters: &[pb::AccessLogFilter]) {
    if filters.len() < 2 {
        cx.reject("filters", "must have at least two");
    }
}

lower! { "envoy.config.accesslog.v3.ResponseFlagFilter" pb::ResponseFlagFilter => AccessLogFilter, cx;
    read { flags }
    {
        for flag in &flags {
            if !RESPONSE_FLAGS.split_ascii_whitespace().any(|known| known == flag) {
                cx.reject("flags", format!("unknown response flag {flag:?}"));
            }
        }
        Some(AccessLogFilter::ResponseFlag(flags))
    }
}

lower! { "envoy.config.accesslog.v3.MetadataFilter" pb::MetadataFilter => AccessLogFilter, cx;
    read { matcher, match_if_key_not_found }
    {
        let matcher = cx.required("matcher", matcher)?;
        Some(AccessLogFilter::Metadata { matcher, match_if_key_not_found: flag(match_if_key_not_found, true) })
    }
}

lower! { "envoy.config.accesslog.v3.LogTypeFilter" pb::LogTypeFilter => AccessLogFilter, cx;
    read { types, exclude }
    {
        let types = types.into_iter();
        let types = types.filter_map(|t| cx.variant::<AccessLogType>("types", t));
        Some(AccessLogFilter::LogType { types: types.map(|t| t.as_str_name().to_owned()).collect(), exclude })
    }
}

lower! { "envoy.config.accesslog.v3.HeaderFilter" pb::HeaderFilter => AccessLogFilter, cx;
    read { header }
    {
        cx.required("header", header).map(AccessLogFilter::Header)
    }
}

lower! { "envoy.config.accesslog.v3.GrpcStatusFilter" pb::GrpcStatusFilter => AccessLogFilter, cx;
    read { statuses, exclude }
    {
        let mut numbers = Vec::new();
        for status in statuses {
            numbers.extend(cx.ranged("statuses", status, 0..=16).and_then(|status| u32::try_from(status).ok()));
        }
        Some(AccessLogFilter::GrpcStatus { statuses: numbers, exclude })
    }
}

/// Where lines go and how they look.
pub(super) type Logger = (LogSink, LogFormat);

lower! { "envoy.extensions.access_loggers.file.v3.FileAccessLog" ext::file::v3::FileAccessLog => Logger, cx;
    read { path, access_log_format }
    {
        let sink = file_sink(cx.non_empty("path", path)?);
        let format = match access_log_format {
            None => LogFormat::Default,
            Some(FileFormat::Format(text)) => text_format(cx, "format", text, &[], false)?,
            Some(FileFormat::JsonFormat(fields)) => json_format(cx, "json_format", fields, &[], false)?,
            Some(FileFormat::TypedJsonFormat(fields)) => {
                json_format(cx, "typed_json_format", fields, &[], false)?
            }
            Some(FileFormat::LogFormat(format)) => line_format(cx, "log_format", format)?,
        };
        Some((sink, format))
    }
}

/// The standard streams by their device names need no file of their own.
pub(super) fn file_sink(path: String) -> LogSink {
    match path.as_str() {
        "/dev/stdout" => LogSink::Stdout,
        "/dev/stderr" => LogSink::Stderr,
        _ => LogSink::File(PathBuf::from(path)),
    }
}

lower! { "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"
    ext::stream::v3::StdoutAccessLog => Logger, cx;
    read { access_log_format }
    {
        let format = match access_log_format {
            Some(stdout_access_log::AccessLogFormat::LogFormat(format)) => line_format(cx, "log_format", format)?,
            None => LogFormat::Default,
        };
        Some((LogSink::Stdout, format))
    }
}

lower! { "envoy.extensions.access_loggers.stream.v3.StderrAccessLog"
    ext::stream::v3::StderrAccessLog => Logger, cx;
    read { access_log_format }
    {
        let format = match access_log_format {
            Some(stderr_access_log::AccessLogFormat::LogFormat(format)) => line_format(cx, "log_format", format)?,
            None => LogFormat::Default,
        };
        Some((LogSink::Stderr, format))
    }
}

/// A format, and the type of what it makes.
#[derive(Debug)]
pub struct Formatted {
    pub(super) format: LogFormat,
    pub(super) content_type: String,
}

/// The format of a line.
pub(super) fn line_format(
    cx: &mut Cx,
    field: &'static str,
    format: core::SubstitutionFormatString,
) -> Option<LogFormat> {
    let Formatted { format, content_type } = cx.lower(field, format)?;
    if !content_type.is_empty() {
        cx.field(field, |cx| cx.warn("content_type", "has an effect on bodies only"));
    }
    Some(format)
}

/// The format of a body.
pub(super) fn body_format(
    cx: &mut Cx,
    field: &'static str,
    format: core::SubstitutionFormatString,
) -> Option<BodyFormat> {
    let Formatted { format, content_type } = cx.lower(field, format)?;
    let default = match &format {
        LogFormat::Json { .. } => "application/json",
        LogFormat::Default | LogFormat::Text { .. } => "text/plain",
    };
    let content_type = if content_type.is_empty() { default.into() } else { content_type.into() };
    // No text is the default line of a log, and no text of a body.
    let format = match format {
        LogFormat::Default => LogFormat::Text { format: "".into(), omit_empty_values: false },
        format @ (LogFormat::Text { .. } | LogFormat::Json { .. }) => format,
    };
    Some(BodyFormat { format, content_type })
}

lower! { "envoy.config.core.v3.SubstitutionFormatString" core::SubstitutionFormatString => Formatted, cx;
    read { omit_empty_values, formatters, json_format_options, format, content_type }
    {
        use core::substitution_format_string::Format;
        let operators: Vec<_> = formatters
            .iter()
            .enumerate()
            .filter_map(|(i, f)| cx.field("formatters", |cx| cx.index(i, |cx| extension::formatter(cx, f))))
            .collect();
        if let Some(options) = json_format_options {
            cx.lower("json_format_options", options);
        }
        let format = match format {
            Some(Format::TextFormat(text)) => text_format(cx, "text_format", text, &operators, omit_empty_values),
            Some(Format::JsonFormat(fields)) => json_format(cx, "json_format", fields, &operators, omit_empty_values),
            Some(Format::TextFormatSource(source)) => {
                let bytes = inline_data(cx, "text_format_source", source)?;
                let text = String::from_utf8_lossy(&bytes).into_owned();
                text_format(cx, "text_format_source", text, &operators, omit_empty_values)
            }
            None => refuse(cx, "format", "text_format, json_format or text_format_source is required"),
        };
        Some(Formatted { format: format?, content_type })
    }
}

lower! { "envoy.config.core.v3.JsonFormatOptions" core::JsonFormatOptions => (), cx;
    read {}
    warn { sort_properties: "the fields of a JSON line are always sorted" }
    {
        let _ = cx;
        Some(())
    }
}

fn text_format(
    cx: &mut Cx,
    field: &'static str,
    text: String,
    operators: &[&str],
    omit_empty_values: bool,
) -> Option<LogFormat> {
    if text.is_empty() {
        return Some(LogFormat::Default);
    }
    if let Err(why) = format::check_with(&text, operators) {
        return refuse(cx, field, &why);
    }
    Some(LogFormat::Text { format: text.into(), omit_empty_values })
}

fn json_format(
    cx: &mut Cx,
    field: &'static str,
    fields: PbStruct,
    operators: &[&str],
    omit_empty_values: bool,
) -> Option<LogFormat> {
    match json(Value::Struct(structure(fields)), operators) {
        Ok(format) => Some(LogFormat::Json { format, omit_empty_values }),
        Err(why) => refuse(cx, field, &why),
    }
}

fn json(value: Value, operators: &[&str]) -> Result<JsonFormat, String> {
    Ok(match value {
        Value::Null => JsonFormat::Null,
        Value::Bool(flag) => JsonFormat::Bool(flag),
        Value::Number(number) => JsonFormat::Number(number),
        Value::String(text) => {
            format::check_with(&text, operators)?;
            JsonFormat::Text(Arc::from(text))
        }
        Value::List(list) => {
            JsonFormat::List(list.into_iter().map(|v| json(v, operators)).collect::<Result<_, _>>()?)
        }
        Value::Struct(fields) => {
            let named = fields.into_iter().map(|(key, value)| {
                let value = json(value, operators).map_err(|why| format!("{key}: {why}"))?;
                Ok((key, value))
            });
            JsonFormat::Object(named.collect::<Result<BTreeMap<_, _>, String>>()?)
        }
    })
}

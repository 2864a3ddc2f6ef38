//! `/stats` and `/stats/prometheus`.

use hyper::StatusCode;
use regex::Regex;

use super::body::{Answer, JSON, TEXT, stream, text};
use super::query::Params;
use super::view::View;
use crate::telemetry::stats::json::Json;
use crate::telemetry::stats::prometheus::Prometheus;
use crate::telemetry::stats::tags::Extractor;
use crate::telemetry::stats::text::Text;
use crate::telemetry::stats::{Buckets, Kind, Mode, Query, Stats};

pub(super) fn answer(params: &Params, stats: &Stats, view: &dyn View, prometheus: bool) -> Answer {
    match parse(params, view, prometheus) {
        Ok((query, mode, format)) => render(&query, mode, format, stats, view),
        Err(why) => text(StatusCode::BAD_REQUEST, why),
    }
}

#[derive(Clone, Copy)]
enum Format {
    Text,
    Json,
    Prometheus,
}

fn render(query: &Query, mode: Mode, format: Format, stats: &Stats, view: &dyn View) -> Answer {
    view.refresh_stats();
    let config = view.stats_config();
    let buckets = Buckets(config.histogram_buckets.clone());
    match format {
        Format::Text => stream(TEXT, Text::new(stats.walk(query), mode, buckets)),
        Format::Json => stream(JSON, Json::new(stats.walk(query), mode, buckets)),
        Format::Prometheus => {
            let (summary, snapshot) = (mode == Mode::Summary, stats.snapshot(query));
            stream(TEXT, Prometheus::new(snapshot, Extractor::new(&config), buckets, summary))
        }
    }
}

/// In Envoy's words where it is wrong.
fn parse(params: &Params, view: &dyn View, prometheus: bool) -> Result<(Query, Mode, Format), String> {
    let format = match params.get("format") {
        _ if prometheus => Format::Prometheus,
        None | Some("text" | "html" | "active-html") => Format::Text,
        Some("json") => Format::Json,
        Some("prometheus") => Format::Prometheus,
        Some(_) => return Err("usage: /stats?format=(html|active-html|json|prometheus|text)\n\n".to_owned()),
    };
    let kind = match params.get("type") {
        None | Some("All") => None,
        Some("Counters") => Some(Kind::Counter),
        Some("Gauges") => Some(Kind::Gauge),
        Some("Histograms") => Some(Kind::Histogram),
        Some("TextReadouts") => Some(Kind::Text),
        Some(_) => return Err("invalid &type= param".to_owned()),
    };
    let mode = match params.get("histogram_buckets") {
        None if matches!(format, Format::Prometheus) => Mode::Cumulative,
        None | Some("" | "summary") => Mode::Summary,
        Some("cumulative") => Mode::Cumulative,
        Some("disjoint") => Mode::Disjoint,
        Some("detailed") => Mode::Detailed,
        Some(_) => {
            let usage =
                "usage: /stats?histogram_buckets=(cumulative|disjoint|detailed|summary|prometheusnative)\n";
            return Err(usage.to_owned());
        }
    };
    let regex = |text: &str| Regex::new(text).map_err(|_| format!("Invalid re2 regex: {text}"));
    let filter = params.get("filter").filter(|text| !text.is_empty()).map(regex).transpose()?;
    let matcher = view.stats_config().matcher;
    let (used_only, invert_filter) = (params.flag("usedonly"), params.flag("invert_filter"));
    Ok((Query { filter, invert_filter, used_only, kind, matcher }, mode, format))
}

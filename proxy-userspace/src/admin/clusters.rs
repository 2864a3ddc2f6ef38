//! `/clusters` and `/listeners`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::StatusCode;
use hyper::body::Bytes;
use proxy_config::model::Address;
use proxy_config::model::cluster::Discovery;
use proxy_config::model::metadata::Value as Meta;
use regex::Regex;
use serde_json::{Map, Value, json};

use super::body::{Answer, JSON, TEXT, indented, pretty, stream, text};
use super::query::Params;
use super::view::{ClusterView, Health, HostView, View};
use crate::cluster::address_text;

pub(super) fn listeners(params: &Params, view: &dyn View) -> Answer {
    let listeners = view.listeners();
    if params.get("format") != Some("json") {
        let mut out = String::new();
        for (listener, address) in listeners.iter().flat_map(|l| l.addresses.iter().map(move |a| (l, a))) {
            let _ = writeln!(out, "{}::{address}", listener.name);
        }
        return text(StatusCode::OK, out);
    }
    let status = listeners.iter().map(|listener| {
        let mut status = Map::from_iter([("name".to_owned(), json!(*listener.name))]);
        let mut addresses = listener.addresses.iter().map(|a| address(*a));
        status.extend(addresses.next().map(|first| ("local_address".to_owned(), first)));
        let more: Vec<_> = addresses.collect();
        if !more.is_empty() {
            status.insert("additional_local_addresses".to_owned(), Value::Array(more));
        }
        Value::Object(status)
    });
    pretty(&json!({"listener_statuses": status.collect::<Vec<_>>()}))
}

/// One cluster is asked for at a time, while the answer is read.
pub(super) fn clusters(params: &Params, view: &Arc<dyn View>) -> Answer {
    let filter = match params.get("filter").map(Regex::new).transpose() {
        Ok(filter) => filter,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("Invalid re2 regex: {error}\n")),
    };
    let mut names = view.cluster_names();
    names.retain(|name| filter.as_ref().is_none_or(|filter| filter.is_match(name)));
    let view = view.clone();
    let found = names.into_iter().filter_map(move |name| view.cluster(&name));
    if params.get("format") != Some("json") {
        return stream(TEXT, found.map(|cluster| Bytes::from(lines(&cluster))));
    }
    let head = std::iter::once(Bytes::from_static(b"{\n \"cluster_statuses\": ["));
    let body = found.enumerate().map(|(at, cluster)| {
        let comma = if at == 0 { "" } else { "," };
        Bytes::from(format!("{comma}\n  {}", indented(&status(&cluster), 2)))
    });
    stream(JSON, head.chain(body).chain(std::iter::once(Bytes::from_static(b"\n ]\n}\n"))))
}

fn lines(cluster: &ClusterView) -> String {
    let (mut out, model) = (String::new(), &cluster.model);
    let name = &model.name;
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = writeln!(out, "{name}::{text}");
    };
    line(format_args!("observability_name::{}", observability(cluster)));
    if model.outlier_detection.is_some() {
        let rates = cluster.success_rates;
        line(format_args!("outlier::success_rate_average::{}", rate(rates.average)));
        line(format_args!("outlier::success_rate_ejection_threshold::{}", rate(rates.ejection_threshold)));
        line(format_args!(
            "outlier::local_origin_success_rate_average::{}",
            rate(rates.local_origin_average)
        ));
        let threshold = rate(rates.local_origin_ejection_threshold);
        line(format_args!("outlier::local_origin_success_rate_ejection_threshold::{threshold}"));
    }
    let breakers = &model.circuit_breakers;
    for (priority, limits) in [("default", &breakers.default), ("high", &breakers.high)] {
        line(format_args!("{priority}_priority::max_connections::{}", limits.max_connections));
        line(format_args!("{priority}_priority::max_pending_requests::{}", limits.max_pending_requests));
        line(format_args!("{priority}_priority::max_requests::{}", limits.max_requests));
        line(format_args!("{priority}_priority::max_retries::{}", limits.max_retries));
    }
    line(format_args!("added_via_api::{}", cluster.added_via_api));
    if let Discovery::Eds(eds) = &model.discovery
        && eds.service_name != model.name
    {
        line(format_args!("eds_service_name::{}", eds.service_name));
    }
    for host in &cluster.hosts {
        host_lines(name, host, &mut out);
    }
    out
}

fn host_lines(cluster: &str, host: &HostView, out: &mut String) {
    let stats = &host.stats;
    let health = health_flags(host.health);
    let values: [(&str, &dyn std::fmt::Display); 19] = [
        ("cx_active", &stats.cx_active),
        ("cx_connect_fail", &stats.cx_connect_fail),
        ("cx_total", &stats.cx_total),
        ("rq_active", &stats.rq_active),
        ("rq_error", &stats.rq_error),
        ("rq_pending_active", &stats.rq_pending_active),
        ("rq_success", &stats.rq_success),
        ("rq_timeout", &stats.rq_timeout),
        ("rq_total", &stats.rq_total),
        ("hostname", &host.hostname),
        ("health_flags", &health),
        ("weight", &host.weight),
        ("region", &host.region),
        ("zone", &host.zone),
        ("sub_zone", &host.sub_zone),
        ("canary", &host.canary),
        ("priority", &host.priority),
        ("success_rate", &rate(host.success_rate)),
        ("local_origin_success_rate", &rate(host.local_origin_success_rate)),
    ];
    for (name, value) in values {
        let _ = writeln!(out, "{cluster}::{}::{name}::{value}", address_text(&host.address));
    }
}

fn rate(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-1".to_owned(), |rate| rate.to_string())
}

fn observability(cluster: &ClusterView) -> &str {
    cluster.model.alt_stat_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(&cluster.model.name)
}

/// Envoy's names, in the order of its flags.
fn health_flags(health: Health) -> String {
    let all = [
        (health.failed_active_hc, "/failed_active_hc"),
        (health.failed_outlier_check, "/failed_outlier_check"),
        (health.failed_eds_health, "/failed_eds_health"),
        (health.degraded_active_hc, "/degraded_active_hc"),
        (health.degraded_eds_health, "/degraded_eds_health"),
        (health.pending_dynamic_removal, "/pending_dynamic_removal"),
        (health.pending_active_hc, "/pending_active_hc"),
        (health.excluded_via_immediate_hc_fail, "/excluded_via_immediate_hc_fail"),
        (health.active_hc_timeout, "/active_hc_timeout"),
        (health.eds_status_draining, "/eds_status_draining"),
    ];
    let set: String = all.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    if set.is_empty() { "healthy".to_owned() } else { set }
}

/// `envoy.admin.v3.ClusterStatus`.
fn status(cluster: &ClusterView) -> Value {
    let model = &cluster.model;
    let breakers = &model.circuit_breakers;
    let thresholds = |limits: &proxy_config::model::cluster::Thresholds| {
        json!({
            "max_connections": limits.max_connections,
            "max_pending_requests": limits.max_pending_requests,
            "max_requests": limits.max_requests,
            "max_retries": limits.max_retries,
        })
    };
    let mut high = thresholds(&breakers.high);
    high["priority"] = json!("HIGH");
    let mut status = json!({
        "name": *model.name,
        "host_statuses": cluster.hosts.iter().map(host_status).collect::<Vec<_>>(),
        "circuit_breakers": {"thresholds": [thresholds(&breakers.default), high]},
        "observability_name": observability(cluster),
    });
    if cluster.hosts.is_empty() {
        let _ = status.as_object_mut().and_then(|status| status.remove("host_statuses"));
    }
    if cluster.added_via_api {
        status["added_via_api"] = json!(true);
    }
    if let Discovery::Eds(eds) = &model.discovery
        && eds.service_name != model.name
    {
        status["eds_service_name"] = json!(*eds.service_name);
    }
    status
}

fn host_status(host: &HostView) -> Value {
    let mut status = json!({
        "address": place(&host.address),
        "stats": host_stats(host),
        "health_status": health_status(host.health),
        "weight": host.weight,
        "locality": locality(host),
    });
    if !host.hostname.is_empty() {
        status["hostname"] = json!(*host.hostname);
    }
    if host.priority > 0 {
        status["priority"] = json!(host.priority);
    }
    for (field, value) in
        [("success_rate", host.success_rate), ("local_origin_success_rate", host.local_origin_success_rate)]
    {
        if let Some(value) = value {
            status[field] = json!({"value": value});
        }
    }
    status
}

/// Zeroes are left out, as proto JSON does; 64-bit numbers are strings there.
fn host_stats(host: &HostView) -> Vec<Value> {
    let stats = &host.stats;
    let counters = [
        ("cx_connect_fail", stats.cx_connect_fail),
        ("cx_total", stats.cx_total),
        ("rq_error", stats.rq_error),
        ("rq_success", stats.rq_success),
        ("rq_timeout", stats.rq_timeout),
        ("rq_total", stats.rq_total),
    ];
    let gauges = [
        ("cx_active", stats.cx_active),
        ("rq_active", stats.rq_active),
        ("rq_pending_active", stats.rq_pending_active),
    ];
    let stat = |(gauge, (name, value)): (bool, (&str, u64))| {
        let mut stat = json!({"name": name});
        if gauge {
            stat["type"] = json!("GAUGE");
        }
        if value > 0 {
            stat["value"] = json!(value.to_string());
        }
        stat
    };
    counters.map(|c| (false, c)).into_iter().chain(gauges.map(|g| (true, g))).map(stat).collect()
}

/// `envoy.admin.v3.HostHealthStatus`.
fn health_status(health: Health) -> Value {
    let mut status = json!({"eds_health_status": eds_health(health)});
    for (set, field) in [
        (health.failed_active_hc, "failed_active_health_check"),
        (health.failed_outlier_check, "failed_outlier_check"),
        (health.degraded_active_hc, "failed_active_degraded_check"),
        (health.pending_dynamic_removal, "pending_dynamic_removal"),
        (health.pending_active_hc, "pending_active_hc"),
        (health.excluded_via_immediate_hc_fail, "excluded_via_immediate_hc_fail"),
        (health.active_hc_timeout, "active_hc_timeout"),
    ] {
        if set {
            status[field] = json!(true);
        }
    }
    status
}

fn eds_health(health: Health) -> &'static str {
    if health.eds_status_draining {
        "DRAINING"
    } else if health.failed_eds_health {
        "UNHEALTHY"
    } else if health.degraded_eds_health {
        "DEGRADED"
    } else {
        "HEALTHY"
    }
}

pub(super) fn locality(host: &HostView) -> Value {
    let parts = [("region", &host.region), ("zone", &host.zone), ("sub_zone", &host.sub_zone)];
    let given = parts.into_iter().filter(|(_, text)| !text.is_empty());
    Value::Object(given.map(|(name, text)| (name.to_owned(), json!(**text))).collect())
}

pub(super) fn place(of: &Address) -> Value {
    match of {
        Address::Ip(ip) => address(*ip),
        Address::Host(host) => json!({"socket_address": {"address": *host.host, "port_value": host.port}}),
        Address::Pipe { path, .. } => json!({"pipe": {"path": path.display().to_string()}}),
    }
}

pub(super) fn address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

pub(super) fn meta(value: &Meta) -> Value {
    match value {
        Meta::Null => Value::Null,
        Meta::Bool(b) => json!(b),
        Meta::Number(n) if n.fract() == 0.0 && n.abs() < 1e15 => json!(*n as i64),
        Meta::Number(n) => json!(n),
        Meta::String(s) => json!(s),
        Meta::List(list) => Value::Array(list.iter().map(meta).collect()),
        Meta::Struct(fields) => fields_of(fields),
    }
}

pub(super) fn fields_of(fields: &proxy_config::model::metadata::Struct) -> Value {
    Value::Object(fields.iter().map(|(name, value)| (name.clone(), meta(value))).collect())
}

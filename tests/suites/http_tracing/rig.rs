//! Both proxies with a collector each, and what is compared of one request: its spans and the headers that went on.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::Result;
use serde_json::{Map, Value, json};
use shunt_tests::bootstrap::{chain, extension};
use shunt_tests::collector::{Collector, Speaks};
use shunt_tests::http_echo::{HttpEcho, ask};
use shunt_tests::ports::nobody;
use shunt_tests::{Bootstrap, Cases, Kind, Lab, Pair, Proxy};

/// How a configuration is made.
#[derive(Clone, Debug)]
pub(super) struct Config<'a> {
    pub speaks: Speaks,
    /// Of `tracing`.
    pub tracing: &'a str,
    /// Of the connection manager.
    pub manager: &'a str,
    pub routes: &'a [&'a str],
    /// Of the router.
    pub router: &'a str,
    /// Filters before the router.
    pub filters: &'a [String],
    /// Of the bootstrap.
    pub top: &'a str,
    /// How many spans make a report.
    pub enough: u32,
}

impl Default for Config<'_> {
    fn default() -> Self {
        Self {
            speaks: Speaks::Http1,
            tracing: "",
            manager: "",
            routes: &[],
            router: "",
            filters: &[],
            top: "",
            enough: 1,
        }
    }
}

/// One request, and how many spans it makes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub listener: &'a str,
    pub line: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    pub spans: usize,
}

/// What it must be for a case of one span.
pub(super) fn get<'a>(path: &'a str, headers: &'a [(&'a str, &'a str)]) -> Asked<'a> {
    Asked { listener: "in", line: path, headers, spans: 1 }
}

impl Asked<'_> {
    pub(super) fn out(self) -> Self {
        Self { listener: "out", ..self }
    }

    pub(super) fn makes(self, spans: usize) -> Self {
        Self { spans, ..self }
    }
}

pub(super) struct Rig {
    pub pair: Pair,
    envoy: Collector,
    shunt: Collector,
    _echo: HttpEcho,
}

/// Zipkin, with further fields.
pub(super) fn zipkin(fields: &str) -> String {
    let provider = extension(
        "envoy.tracers.zipkin",
        "envoy.config.trace.v3.ZipkinConfig",
        &format!(
            "collector_cluster: spans, collector_endpoint: /api/v2/spans, collector_endpoint_version: HTTP_JSON, \
             {fields}"
        ),
    );
    format!("provider: {provider}, ")
}

/// OpenTelemetry by gRPC, with further fields.
pub(super) fn otel(fields: &str) -> String {
    let provider = extension(
        "envoy.tracers.opentelemetry",
        "envoy.config.trace.v3.OpenTelemetryConfig",
        &format!("grpc_service: {{ envoy_grpc: {{ cluster_name: spans }} }}, {fields}"),
    );
    format!("provider: {provider}, ")
}

/// OpenTelemetry by HTTP.
pub(super) fn otel_http(fields: &str) -> String {
    let provider = extension(
        "envoy.tracers.opentelemetry",
        "envoy.config.trace.v3.OpenTelemetryConfig",
        &format!(
            "http_service: {{ http_uri: {{ uri: \"http://spans.example/v1/traces\", cluster: spans, timeout: 2s }}, \
             request_headers_to_add: [ {{ header: {{ key: x-key, value: secret }} }} ] }}, {fields}"
        ),
    );
    format!("provider: {provider}, ")
}

impl Rig {
    pub(super) fn start(lab: &Lab, config: &Config<'_>) -> Result<Self> {
        Self::start_with(lab, config, nobody()?)
    }

    /// With the cluster `other` there.
    pub(super) fn start_with(lab: &Lab, config: &Config<'_>, other: SocketAddr) -> Result<Self> {
        let echo = HttpEcho::start("echo")?;
        let (envoy, shunt) = (Collector::start(config.speaks)?, Collector::start(config.speaks)?);
        let gone = nobody()?;
        let start = |kind, spans: &Collector| {
            Proxy::start(lab, kind, &bootstrap(config, &echo, spans, [other, gone])?)
        };
        let pair = Pair { envoy: start(Kind::Envoy, &envoy)?, shunt: start(Kind::Shunt, &shunt)? };
        Ok(Self { pair, envoy, shunt, _echo: echo })
    }

    pub(super) fn collector(&self, proxy: &Proxy) -> &Collector {
        match proxy.kind {
            Kind::Envoy => &self.envoy,
            Kind::Shunt => &self.shunt,
        }
    }

    /// What a request is made of: the same for both.
    pub(super) fn same(&self, cases: &mut Cases, id: &str, asked: Asked<'_>) {
        self.pair.same(cases, format_args!("tracing, {id}"), |proxy| self.observe(proxy, asked));
    }

    pub(super) fn all(&self, cases: &mut Cases, id: &str, all: &[(&str, Asked<'_>)]) {
        for (name, asked) in all {
            self.same(cases, &format!("{id}: {name}"), *asked);
        }
    }

    pub(super) fn observe(&self, proxy: &Proxy, asked: Asked<'_>) -> Result<Value> {
        let mut headers = vec![("host", "test.example"), ("user-agent", "tests")];
        headers.extend(asked.headers);
        let line =
            if asked.line.starts_with('/') { format!("GET {}", asked.line) } else { asked.line.to_owned() };
        let answer = ask(proxy.at(asked.listener)?, &line, &headers)?;
        let spans = self.collector(proxy).spans(asked.spans)?;
        let mut names = Names::knowing(asked.headers);
        let mut sent = Map::new();
        let went = answer.body.lines().filter_map(|line| line.split_once(':'));
        for (name, value) in went.filter(|(name, _)| is_of_traces(name)) {
            sent.insert(name.to_owned(), value.trim().into());
        }
        let back: Map<String, Value> = answer
            .headers
            .iter()
            .filter(|(name, _)| is_of_traces(name))
            .map(|(name, value)| (name.clone(), value.as_str().into()))
            .collect();
        let mut seen = json!({ "status": answer.status, "sent": sent, "back": back });
        let mut spans: Vec<Value> = spans.into_iter().map(steady).collect();
        spans.sort_by_key(|span| {
            let again = span["tags"]["retry.count"].to_string();
            let status = span["tags"]["http.status_code"].to_string();
            (span["kind"].to_string(), span["name"].to_string(), again, span["parentId"].is_null(), status)
        });
        names.rename(&mut seen);
        let mut spans = Value::Array(spans);
        names.rename(&mut spans);
        seen["spans"] = spans;
        Ok(seen)
    }
}

fn bootstrap(
    config: &Config<'_>,
    echo: &HttpEcho,
    spans: &Collector,
    [other, gone]: [SocketAddr; 2],
) -> Result<String> {
    let Config { speaks, tracing, manager, routes, router, filters, top, enough } = config;
    let mut all: Vec<String> = routes.iter().map(|route| format!("{{ {route} }}")).collect();
    all.push("{ match: { prefix: / }, route: { cluster: up } }".to_owned());
    let mut filters = filters.to_vec();
    filters.push(extension(
        "envoy.filters.http.router",
        "envoy.extensions.filters.http.router.v3.Router",
        router,
    ));
    let fields = format!(
        "stat_prefix: ing, {manager} tracing: {{ {tracing} }}, route_config: {{ name: r, virtual_hosts: [ {{ name: v, \
         domains: [ \"*\" ], routes: [ {} ] }} ] }}, http_filters: [ {} ]",
        all.join(", "),
        filters.join(", "),
    );
    let of_type = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let hcm = extension("envoy.filters.network.http_connection_manager", of_type, &fields);
    let chain = chain("", &[hcm]);
    let http2 = match speaks {
        Speaks::Http1 => "",
        Speaks::Http2 => {
            "typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \"@type\": \
             type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: { \
             http2_protocol_options: {} } } }"
        }
    };
    let runtime = format!(
        "layered_runtime: {{ layers: [ {{ name: l, static_layer: {{ tracing.zipkin.min_flush_spans: {enough}, \
         tracing.opentelemetry.min_flush_spans: {enough}, tracing.opentelemetry.flush_interval_ms: 1000, \
         tracing.zipkin.flush_interval_ms: 1000 }} }} ] }}"
    );
    let metadata = "metadata: { filter_metadata: { of: { cluster: the-cluster } } }";
    let up = shunt_tests::bootstrap::endpoint(
        echo.address,
        "metadata: { filter_metadata: { of: { host: the-host } } }",
    );
    Ok(Bootstrap::new()
        .top("node: { id: the-node, cluster: the-service, locality: { zone: the-zone } }")
        .top(&runtime)
        .top(top)
        .assigned("up", &[shunt_tests::bootstrap::locality(&[up], "")], &format!("type: STATIC, {metadata}"))
        .static_cluster("gone", &[gone], "alt_stat_name: other")
        .static_cluster("none", &[], "")
        .static_cluster("spans", &[spans.address], http2)
        .static_cluster("other", &[other], "")
        .listener("in", &format!("filter_chains: [ {chain} ]"))
        .listener("out", &format!("traffic_direction: OUTBOUND, filter_chains: [ {chain} ]"))
        .yaml())
}

/// Headers that tell of a trace.
fn is_of_traces(name: &str) -> bool {
    let exact = [
        "b3",
        "traceparent",
        "tracestate",
        "x-request-id",
        "x-client-trace-id",
        "x-envoy-decorator-operation",
    ];
    exact.contains(&name) || name.starts_with("x-b3-") || name == "x-envoy-force-trace"
}

/// Times are there, and no more is said of them; who has made the span is a case of its own.
fn steady(mut span: Value) -> Value {
    if let Some(endpoint) = span["localEndpoint"].as_object_mut() {
        endpoint.retain(|name, _| name == "serviceName");
    }
    if let Some(resource) = span["resource"].as_object_mut() {
        resource.retain(|name, _| !name.starts_with("telemetry.sdk."));
    }
    if let Some(span) = span.as_object_mut() {
        span.remove("scope");
    }
    fn walk(value: &mut Value) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let time = matches!(key.as_str(), "timestamp" | "duration");
                    match value.as_u64().filter(|_| time) {
                        Some(time) => *value = if time == 0 { "zero" } else { "some" }.into(),
                        None => walk(value),
                    }
                }
            }
            Value::Array(list) => list.iter_mut().for_each(walk),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    walk(&mut span);
    span
}

/// Names for what is random, in the order of their first mention.
struct Names {
    known: String,
    given: BTreeMap<String, String>,
}

impl Names {
    fn knowing(headers: &[(&str, &str)]) -> Self {
        let known = headers.iter().map(|(_, value)| *value).collect::<Vec<_>>().join(" ");
        Self { known, given: BTreeMap::new() }
    }

    fn rename(&mut self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(list) => list.iter_mut().for_each(|value| self.rename(value)),
            Value::Object(map) => map.values_mut().for_each(|value| self.rename(value)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn text(&mut self, text: &str) -> String {
        let is_id = text.len() == 36 && text.bytes().filter(|byte| *byte == b'-').count() == 4;
        if is_id && !self.known.contains(&text[20..]) {
            return format!("an id of reason {}", &text[14..15]);
        }
        let mut out = String::new();
        for token in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
            let word = token.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            out += &match word.len() {
                16 => self.half(word),
                32 => format!("{}{}", self.half(&word[..16]), self.half(&word[16..])),
                _ => word.to_owned(),
            };
            out += &token[word.len()..];
        }
        out
    }

    fn half(&mut self, word: &str) -> String {
        let hex = word.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if !hex || self.known.contains(word) || word.bytes().all(|byte| byte == b'0') {
            return word.to_owned();
        }
        let next = format!("<{}>", self.given.len());
        self.given.entry(word.to_owned()).or_insert(next).clone()
    }
}

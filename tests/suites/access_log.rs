//! Access logs: every operator that a TCP connection has a value for, as text and as JSON, line by line.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_tests::bootstrap::{DIR, chain, extension, file_log, proxy_protocol, tcp_proxy, tls_inspector};
use shunt_tests::hello::client_hello;
use shunt_tests::ports::nobody;
use shunt_tests::{Bootstrap, Cases, Client, Does, Pair, Proxy, Upstream, lab};

/// Operators whose value is the same for the same traffic, but for ports of the run's own.
const OPERATORS: &[&str] = &[
    "BYTES_RECEIVED",
    "BYTES_SENT",
    "RESPONSE_FLAGS",
    "RESPONSE_FLAGS_LONG",
    "RESPONSE_CODE",
    "RESPONSE_CODE_DETAILS",
    "CONNECTION_TERMINATION_DETAILS",
    "UPSTREAM_TRANSPORT_FAILURE_REASON",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_CLUSTER_RAW",
    "UPSTREAM_HOST",
    "UPSTREAM_HOST_NAME",
    "UPSTREAM_REMOTE_ADDRESS",
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "UPSTREAM_REMOTE_PORT",
    "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    "UPSTREAM_WIRE_BYTES_RECEIVED",
    "UPSTREAM_WIRE_BYTES_SENT",
    "UPSTREAM_HEADER_BYTES_SENT",
    "UPSTREAM_PROTOCOL",
    "DOWNSTREAM_WIRE_BYTES_RECEIVED",
    "DOWNSTREAM_WIRE_BYTES_SENT",
    "DOWNSTREAM_HEADER_BYTES_RECEIVED",
    "DOWNSTREAM_LOCAL_ADDRESS",
    "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_LOCAL_PORT",
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS",
    "DOWNSTREAM_REMOTE_ADDRESS",
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_REMOTE_PORT",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
    "REQUESTED_SERVER_NAME",
    "PROTOCOL",
    "ROUTE_NAME",
    "VIRTUAL_CLUSTER_NAME",
    "FILTER_CHAIN_NAME",
    "ACCESS_LOG_TYPE",
    "GRPC_STATUS",
    "METADATA(CLUSTER:com.test:key)",
    "DYNAMIC_METADATA(istio.mixer:status)",
    "CLUSTER_METADATA(com.test:key)",
    "UPSTREAM_METADATA(com.test:zone)",
    "FILTER_STATE(no.such.state)",
    "REQ(:METHOD)",
    "REQ(X-ENVOY-ORIGINAL-PATH?:PATH)",
    "RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)",
    "TRAILER(grpc-status)",
    "DOWNSTREAM_PEER_SUBJECT",
    "DOWNSTREAM_TLS_VERSION",
    "DOWNSTREAM_PEER_URI_SAN",
    "UPSTREAM_TLS_CIPHER",
    "CUSTOM_FLAGS",
    "TRACE_ID",
    "ENVIRONMENT(SHUNT_NO_SUCH_VARIABLE:9)",
];

/// Operators that are different each time: what they look like is compared.
const SHAPED: &[&str] = &[
    "START_TIME",
    "START_TIME(%Y/%m/%dT%H:%M:%S%z)",
    "START_TIME(%s.%3f)",
    "START_TIME_LOCAL(%Y)",
    "EMIT_TIME",
    "DURATION",
    "COMMON_DURATION(DS_RX_BEG:US_CX_BEG:ms)",
    "REQUEST_DURATION",
    "RESPONSE_DURATION",
    "RESPONSE_TX_DURATION",
    "CONNECTION_ID",
    "UPSTREAM_CONNECTION_ID",
    "UPSTREAM_LOCAL_ADDRESS",
    "UPSTREAM_LOCAL_PORT",
    "STREAM_ID",
    "UNIQUE_ID",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "HOSTNAME",
];

/// Values in the order of the operators.
fn text_format() -> String {
    OPERATORS.iter().chain(SHAPED).map(|name| format!("%{name}%")).collect::<Vec<_>>().join(";;")
}

fn json_format() -> String {
    // A key is a format, too, where it has a percent sign.
    let entries = OPERATORS.iter().chain(SHAPED).map(|name| format!("{:?}: \"%{name}%\"", key(name)));
    let nested = "\"nested\": { \"two\": \"%BYTES_SENT% of %UPSTREAM_CLUSTER%\", \"fixed\": \"x\", \"number\": 7, \"list\": [ \"%RESPONSE_FLAGS%\" ] }";
    format!("{{ {}, {nested} }}", entries.collect::<Vec<_>>().join(", "))
}

fn json_log(file: &str, omit: bool) -> String {
    let of_type = "envoy.extensions.access_loggers.file.v3.FileAccessLog";
    let format = json_format();
    extension(
        "envoy.access_loggers.file",
        of_type,
        &format!(
            "path: \"{DIR}/{file}\", log_format: {{ json_format: {format}, omit_empty_values: {omit} }}"
        ),
    )
}

struct Backends {
    all: Vec<Upstream>,
}

impl Backends {
    fn start() -> Result<Self> {
        let does = [("echo", Does::Echo), ("sum", Does::Sum), ("reset", Does::Reset)];
        let all = does.into_iter().map(|(name, does)| Upstream::start(name, does)).collect::<Result<_>>()?;
        Ok(Self { all })
    }

    fn config(&self) -> Result<String> {
        let mut config = Bootstrap::new();
        for upstream in &self.all {
            let metadata = "metadata: { filter_metadata: { com.test: { key: value } } }";
            config = config.static_cluster(&upstream.name, &[upstream.address], metadata);
        }
        config = config.static_cluster("refused", &[nobody()?], "").static_cluster("empty", &[], "");
        let logs =
            [file_log("text.log", &text_format()), json_log("json.log", false), json_log("short.log", true)];
        for cluster in ["echo", "sum", "reset", "refused", "empty", "unknown"] {
            let (name, logs) = (cluster, logs.join(", "));
            let filters = [tcp_proxy(name, &format!("cluster: {cluster}, access_log: [ {logs} ]"))];
            let named = chain("", &filters).replacen('{', "{ name: the_chain, ", 1);
            let inspectors =
                [proxy_protocol("allow_requests_without_proxy_protocol: true"), tls_inspector()].join(", ");
            config = config
                .listener(name, &format!("listener_filters: [ {inspectors} ], filter_chains: [ {named} ]"));
        }
        Ok(config.yaml())
    }
}

const TRAFFIC: &[(&str, &str)] = &[
    ("a good connection", "sum"),
    ("with a PROXY header", "sum"),
    ("with a server name", "sum"),
    ("the client resets", "echo"),
    ("the upstream resets", "reset"),
    ("the upstream refuses", "refused"),
    ("no endpoint", "empty"),
    ("no such cluster", "unknown"),
];

/// Runs one kind of traffic; returns the client's own address.
fn run(proxy: &Proxy, what: &str, listener: &str) -> Result<String> {
    let mut client = Client::connect(proxy.at(listener)?)?;
    let own = client.local()?.to_string();
    // Only a whole first flight is certain to pass the inspectors before a FIN comes.
    match what {
        "with a PROXY header" => client.send("PROXY TCP4 192.0.2.1 10.9.8.7 4660 80\r\nhello\n")?,
        "with a server name" => client.send(client_hello(Some("a.example.com"), &["h2"]))?,
        _ => client.send("hello\n")?,
    }
    match what {
        "the client resets" => {
            client.line()?;
            client.reset()?;
        }
        _ if listener == "sum" => {
            proxy.expect_stat("cluster.sum.upstream_cx_active", 1)?;
            client.half_close()?;
            client.end()?;
        }
        _ => drop(client.end()?),
    }
    Ok(own)
}

/// A value without what is the run's own.
fn plain(name: &str, value: &str, own: &str, at: &str) -> String {
    let (own_port, at_port) = (own.rsplit(':').next().unwrap_or(own), at.rsplit(':').next().unwrap_or(at));
    if SHAPED.iter().any(|shaped| key(shaped) == name) {
        return shape(value);
    }
    match value {
        _ if value == own_port => "<client's port>".to_owned(),
        _ if value == at_port => "<listener's port>".to_owned(),
        _ => value.replace(own, "<client>").replace(at, "<listener>"),
    }
}

/// Digits become 0, and many of them as good as one.
fn shape(value: &str) -> String {
    let mut out = String::new();
    for c in value.chars() {
        let c = if c.is_ascii_hexdigit() && value.len() > 30 && value.matches('-').count() == 4 {
            'x'
        } else if c.is_ascii_digit() {
            '0'
        } else {
            c
        };
        if !(c == '0' && out.ends_with('0')) {
            out.push(c);
        }
    }
    out
}

/// An operator as a key.
fn key(name: &str) -> String {
    name.replace('%', "")
}

fn parse_text(line: &str, own: &str, at: &str) -> Value {
    let entries = OPERATORS
        .iter()
        .chain(SHAPED)
        .zip(line.split(";;"))
        .map(|(name, value)| (key(name), json!(plain(&key(name), value, own, at))));
    Value::Object(entries.collect())
}

fn parse_json(line: &str, own: &str, at: &str) -> Result<Value> {
    let value: Value = serde_json::from_str(line)?;
    let object = value.as_object().cloned().unwrap_or_default();
    let entries = object.into_iter().map(|(name, value)| {
        let same = match &value {
            Value::String(text) => json!(plain(&name, text, own, at)),
            // A number stays one.
            Value::Number(number) => json!(["number", plain(&name, &number.to_string(), own, at)]),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => value.clone(),
        };
        (name, same)
    });
    Ok(Value::Object(entries.collect()))
}

#[test]
fn every_operator_has_envoys_value() -> Result<()> {
    lab(|lab| {
        let backends = Backends::start()?;
        let pair = Pair::start(lab, &backends.config()?)?;
        let mut cases = Cases::new();
        for (n, (what, listener)) in TRAFFIC.iter().enumerate() {
            let mut own = Vec::new();
            let mut lines = |proxy: &Proxy, file: &str| -> Result<(String, String, String)> {
                let index = usize::from(proxy.kind == shunt_tests::Kind::Shunt);
                if own.len() <= index {
                    own.push(run(proxy, what, listener)?);
                }
                let line = proxy.lines(file, n + 1)?.remove(n);
                Ok((line, own[index].clone(), proxy.at(listener)?.to_string()))
            };
            pair.same(&mut cases, format_args!("access log, text: {what}"), |proxy| {
                let (line, own, at) = lines(proxy, "text.log")?;
                ensure!(line.split(";;").count() == OPERATORS.len() + SHAPED.len(), "{line}");
                Ok(parse_text(&line, &own, &at))
            });
            for file in ["json.log", "short.log"] {
                pair.same(&mut cases, format_args!("access log, {file}: {what}"), |proxy| {
                    let (line, own, at) = lines(proxy, file)?;
                    parse_json(&line, &own, &at)
                });
            }
        }
        let config = Bootstrap::new().listener(
            "reason",
            &format!(
                "listener_filters: [ {} ], filter_chains: [ {} ]",
                tls_inspector(),
                chain(
                    "",
                    &[tcp_proxy(
                        "r",
                        &format!(
                            "cluster: none, access_log: [ {} ]",
                            file_log("r.log", "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%")
                        )
                    )]
                )
            ),
        );
        let pair = Pair::start(lab, &config.yaml())?;
        pair.same(&mut cases, "access log: what tls_inspector thinks of plain text", |proxy| {
            run(proxy, "plain text", "reason")?;
            Ok(json!(proxy.lines("r.log", 1)?))
        });
        cases.finish()
    })
}

#[test]
fn shapes_keep_what_is_not_a_number() {
    assert_eq!(shape("2026-11-21T15:00:00.123Z"), "0-0-0T0:0:0.0Z");
    assert_eq!(shape("-"), "-");
}

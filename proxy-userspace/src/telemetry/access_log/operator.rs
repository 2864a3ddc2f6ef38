//! Command operators: each reads one value off an entry.
//!
//! What belongs to HTTP or tracing yields nothing on a TCP connection, as in Envoy.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proxy_config::model::address::Cidr;
use xxhash_rust::xxh64::xxh64;

use super::time::Format as TimeFormat;
use super::value::{Value, metadata};
use super::{http, tls};
use crate::clock;
use crate::telemetry::{Entry, Flags};

/// A compiled operator.
#[derive(Debug)]
pub(super) enum Operator {
    Field(fn(&Entry) -> Value<'_>),
    StartTime(TimeFormat),
    EmitTime(TimeFormat),
    /// An address without its port, perhaps masked.
    Ip {
        address: fn(&Entry) -> Option<SocketAddr>,
        prefix: Option<u8>,
    },
    CommonDuration {
        from: Point,
        to: Point,
        unit: Unit,
    },
    Metadata {
        of: Owner,
        path: Vec<String>,
    },
    Tls(tls::Operator),
    Http(http::Operator),
    /// Of a stream, else of its connection.
    Either(http::Operator, fn(&Entry) -> Value<'_>),
    Constant(String),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Owner {
    Dynamic,
    Cluster,
    Host,
    Listener,
    FilterChain,
    Route,
    VirtualHost,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Point {
    Start,
    End,
    UpstreamStart,
    UpstreamConnected,
    /// One that a TCP connection never passes.
    Never,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Unit {
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

impl Operator {
    pub(super) fn new(name: &str, argument: Option<&str>) -> Result<Self, String> {
        let of_connection = FIELDS.iter().find(|(field, _)| *field == name).map(|(_, read)| *read);
        match (http::Operator::new(name, argument)?, of_connection) {
            (Some(of_stream), Some(read)) => return Ok(Self::Either(of_stream, read)),
            (Some(of_stream), None) => return Ok(Self::Http(of_stream)),
            (None, Some(read)) => return Ok(Self::Field(read)),
            (None, None) => {}
        }
        if let Some((_, address)) = ADDRESSES.iter().find(|(field, _)| *field == name) {
            let prefix = argument.map(str::parse).transpose();
            let prefix = prefix.map_err(|_| format!("{name}: the prefix is no number"))?;
            return Ok(Self::Ip { address: *address, prefix });
        }
        let path = |text: &str| text.split(':').map(str::to_owned).collect();
        let text = argument.unwrap_or_default();
        Ok(match name {
            "START_TIME" => Self::StartTime(TimeFormat::new(argument, false)),
            "START_TIME_LOCAL" => Self::StartTime(TimeFormat::new(argument, true)),
            "EMIT_TIME" => Self::EmitTime(TimeFormat::new(argument, false)),
            "EMIT_TIME_LOCAL" => Self::EmitTime(TimeFormat::new(argument, true)),
            "COMMON_DURATION" => common_duration(text)?,
            "DYNAMIC_METADATA" => Self::Metadata { of: Owner::Dynamic, path: path(text) },
            "CLUSTER_METADATA" => Self::Metadata { of: Owner::Cluster, path: path(text) },
            "UPSTREAM_METADATA" => Self::Metadata { of: Owner::Host, path: path(text) },
            "METADATA" => {
                let (owner, rest) = text.split_once(':').unwrap_or((text, ""));
                Self::Metadata { of: Owner::parse(owner)?, path: path(rest) }
            }
            "HOSTNAME" => Self::Constant(hostname()),
            // Envoy's own `-`: it is there even where empty values are omitted.
            "ENVIRONMENT" => Self::Constant(std::env::var(text).unwrap_or_else(|_| "-".to_owned())),
            _ if EMPTY.contains(&name) => Self::Constant(String::new()),
            _ if ZERO.contains(&name) => Self::Field(|_| Value::Number(0)),
            _ if is_known(name) => {
                tls::Operator::new(name, argument).map_or(Self::Field(|_| Value::Missing), Self::Tls)
            }
            _ => return Err(format!("unknown operator {name}")),
        })
    }

    /// Its value, behind what is there. Whether there is any.
    pub(super) fn write(&self, entry: &Entry, out: &mut String) -> bool {
        match self {
            Self::StartTime(format) => format.write(entry.start, out),
            Self::EmitTime(format) => format.write(clock::wall(), out),
            Self::Field(_)
            | Self::Ip { .. }
            | Self::CommonDuration { .. }
            | Self::Metadata { .. }
            | Self::Tls(_)
            | Self::Http(_)
            | Self::Either(..)
            | Self::Constant(_) => return self.value(entry).push_to(out),
        }
        true
    }

    pub(super) fn value<'a>(&'a self, entry: &'a Entry) -> Value<'a> {
        match self {
            Self::Field(read) => read(entry),
            Self::StartTime(format) => Value::text(format.render(entry.start)),
            Self::EmitTime(format) => Value::text(format.render(clock::wall())),
            Self::Ip { address, prefix } => {
                address(entry).map_or(Value::Missing, |address| masked(address.ip(), *prefix))
            }
            Self::CommonDuration { from, to, unit } => match (from.at(entry), to.at(entry)) {
                (Some(from), Some(to)) => Value::Number(unit.of(to.saturating_sub(from))),
                (None | Some(_), _) => Value::Missing,
            },
            Self::Metadata { of, path } => of.metadata(entry, path),
            Self::Tls(operator) => operator.value(entry),
            Self::Http(operator) => operator.value(entry),
            Self::Either(of_stream, _) if entry.http.is_some() => of_stream.value(entry),
            Self::Either(_, read) => read(entry),
            Self::Constant(text) => Value::text(text.as_str()),
        }
    }
}

impl Owner {
    fn parse(name: &str) -> Result<Self, String> {
        Ok(match name {
            "DYNAMIC" => Self::Dynamic,
            "CLUSTER" => Self::Cluster,
            "UPSTREAM_HOST" => Self::Host,
            "LISTENER" => Self::Listener,
            "LISTENER_FILTER_CHAIN" => Self::FilterChain,
            "ROUTE" => Self::Route,
            "VIRTUAL_HOST" => Self::VirtualHost,
            other => return Err(format!("METADATA({other}) is not a type of metadata")),
        })
    }

    fn metadata<'a>(self, entry: &'a Entry, path: &[String]) -> Value<'a> {
        let (upstream, stream) = (&entry.upstream, entry.http.as_deref());
        let namespace = path.first().map_or("", String::as_str);
        let owned = match self {
            Self::Dynamic if stream.is_some_and(|http| http.dynamic_metadata.of(namespace).is_some()) => {
                stream.map(|http| &http.dynamic_metadata)
            }
            Self::Dynamic => entry.facts.extra.as_deref().map(|extra| &extra.dynamic_metadata),
            Self::Cluster => upstream.cluster_model.as_deref().map(|cluster| cluster.metadata.get()),
            Self::Host => upstream.host_metadata.as_deref(),
            Self::Listener => entry.listener_metadata.as_deref(),
            Self::FilterChain => entry.filter_chain_metadata.as_deref(),
            Self::Route => stream.and_then(|http| http.route_metadata.as_deref()),
            Self::VirtualHost => stream.and_then(|http| http.virtual_host_metadata.as_deref()),
        };
        metadata(owned, path)
    }
}

impl Point {
    fn parse(name: &str) -> Self {
        match name {
            // On TCP the first byte of a request is the connection's start to Envoy.
            "DS_CX_BEG" | "DS_RX_BEG" => Self::Start,
            "DS_CX_END" => Self::End,
            "US_CX_BEG" => Self::UpstreamStart,
            "US_CX_END" => Self::UpstreamConnected,
            _ => Self::Never,
        }
    }

    /// Since the connection's start.
    fn at(self, entry: &Entry) -> Option<Duration> {
        match self {
            Self::Start => Some(Duration::ZERO),
            Self::End => Some(entry.duration),
            Self::UpstreamStart => entry.upstream.connected_after.and(entry.upstream.connect_started),
            Self::UpstreamConnected => {
                Some(entry.upstream.connect_started? + entry.upstream.connected_after?)
            }
            Self::Never => None,
        }
    }
}

impl Unit {
    fn of(self, duration: Duration) -> u64 {
        let count = match self {
            Self::Milliseconds => duration.as_millis(),
            Self::Microseconds => duration.as_micros(),
            Self::Nanoseconds => duration.as_nanos(),
        };
        u64::try_from(count).unwrap_or(u64::MAX)
    }
}

fn common_duration(argument: &str) -> Result<Operator, String> {
    let parts: Vec<&str> = argument.split(':').collect();
    let &[from, to, unit] = parts.as_slice() else {
        return Err("COMMON_DURATION takes START:END:PRECISION".to_owned());
    };
    let unit = match unit {
        "ms" => Unit::Milliseconds,
        "us" => Unit::Microseconds,
        "ns" => Unit::Nanoseconds,
        other => return Err(format!("COMMON_DURATION has no precision {other}")),
    };
    Ok(Operator::CommonDuration { from: Point::parse(from), to: Point::parse(to), unit })
}

fn is_known(name: &str) -> bool {
    proxy_config::format::operators().any(|operator| operator.name == name)
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "-".to_owned(), |s| s.trim().to_owned())
}

fn masked<'a>(ip: IpAddr, prefix: Option<u8>) -> Value<'a> {
    match prefix.and_then(|prefix| Cidr::new(ip, prefix)) {
        Some(cidr) => Value::text(format!("{}/{}", cidr.address, cidr.prefix)),
        None => Value::Ip(ip),
    }
}

type Read = fn(&Entry) -> Value<'_>;
type ReadAddress = fn(&Entry) -> Option<SocketAddr>;

const ADDRESSES: &[(&str, ReadAddress)] = &[
    ("UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", |e| e.upstream.local),
    ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", connected_host),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", |e| Some(e.facts.remote)),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", |e| Some(e.facts.direct_remote)),
    ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", |e| Some(e.facts.local)),
    ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT", |e| Some(e.facts.direct_local)),
];

const EMPTY: &[&str] = &[
    "CUSTOM_FLAGS",
    "LOCAL_REPLY_BODY",
    "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID",
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID",
];

/// Of HTTP, but zero on TCP.
const ZERO: &[&str] = &[
    "RESPONSE_CODE",
    "REQUEST_HEADERS_BYTES",
    "RESPONSE_HEADERS_BYTES",
    "RESPONSE_TRAILERS_BYTES",
    "UPSTREAM_HEADER_BYTES_SENT",
    "UPSTREAM_HEADER_BYTES_RECEIVED",
    "UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT",
    "UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED",
    "DOWNSTREAM_HEADER_BYTES_SENT",
    "DOWNSTREAM_HEADER_BYTES_RECEIVED",
    "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT",
    "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED",
    "BYTES_RETRANSMITTED",
    "PACKETS_RETRANSMITTED",
];

const FIELDS: &[(&str, Read)] = &[
    ("BYTES_RECEIVED", |e| Value::Number(e.bytes.downstream_rx)),
    ("BYTES_SENT", |e| Value::Number(e.bytes.downstream_tx)),
    ("DOWNSTREAM_WIRE_BYTES_RECEIVED", |e| Value::Number(e.bytes.downstream_rx)),
    ("DOWNSTREAM_WIRE_BYTES_SENT", |e| Value::Number(e.bytes.downstream_tx)),
    ("UPSTREAM_WIRE_BYTES_RECEIVED", |e| Value::Number(e.bytes.upstream_rx)),
    ("UPSTREAM_WIRE_BYTES_SENT", |e| Value::Number(e.bytes.upstream_tx)),
    ("DURATION", |e| Value::Number(Unit::Milliseconds.of(e.duration))),
    ("UPSTREAM_CONNECTION_POOL_READY_DURATION", pool_ready),
    ("CONNECTION_ID", |e| Value::Number(e.origin.connection_id)),
    ("UPSTREAM_CONNECTION_ID", |e| Value::Number(e.upstream.connection_id)),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", |e| Value::Number(u64::from(e.upstream.attempts))),
    ("RESPONSE_FLAGS", |e| flags(e.outcome.flags)),
    ("RESPONSE_FLAGS_LONG", |e| Value::text(e.outcome.flags.long())),
    ("RESPONSE_CODE_DETAILS", |e| Value::option(e.outcome.response_code_details.as_deref())),
    ("CONNECTION_TERMINATION_DETAILS", |e| Value::option(e.outcome.termination_details.as_deref())),
    ("UPSTREAM_TRANSPORT_FAILURE_REASON", |e| failure(e.outcome.upstream_failure.as_deref())),
    ("DOWNSTREAM_TRANSPORT_FAILURE_REASON", |e| failure(e.outcome.downstream_failure.as_deref())),
    ("DOWNSTREAM_LOCAL_CLOSE_REASON", local_close),
    ("DOWNSTREAM_DETECTED_CLOSE_TYPE", |_| Value::text("Normal")),
    ("UPSTREAM_DETECTED_CLOSE_TYPE", |e| {
        let nobody = e.http.is_some() && e.upstream.host.is_none();
        Value::option((!nobody).then_some("Normal"))
    }),
    ("UPSTREAM_HOST", |e| address(e.upstream.host)),
    ("UPSTREAM_HOST_NAME", |e| host_name(e)),
    ("UPSTREAM_HOST_NAME_WITHOUT_PORT", |e| host_name_alone(e)),
    ("UPSTREAM_HOSTS_ATTEMPTED", |e| attempted(e, |host| host.to_string())),
    ("UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT", |e| attempted(e, |host| host.ip().to_string())),
    ("UPSTREAM_HOST_NAMES_ATTEMPTED", |e| host_name(e)),
    ("UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT", |e| host_name_alone(e)),
    ("UPSTREAM_CONNECTION_IDS_ATTEMPTED", |e| {
        Value::option((e.upstream.connection_id > 0).then(|| e.upstream.connection_id.to_string()))
    }),
    ("UPSTREAM_CLUSTER", cluster_name),
    ("UPSTREAM_CLUSTER_RAW", |e| Value::option(e.upstream.cluster.as_deref())),
    ("UPSTREAM_LOCAL_ADDRESS", |e| address(e.upstream.local)),
    ("UPSTREAM_LOCAL_PORT", |e| port(e.upstream.local)),
    ("UPSTREAM_REMOTE_ADDRESS", |e| address(connected_host(e))),
    ("UPSTREAM_REMOTE_PORT", |e| port(connected_host(e))),
    ("UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID", |e| Value::option(connected_host(e).map(|_| ""))),
    ("DOWNSTREAM_LOCAL_ADDRESS", |e| address(Some(e.facts.local))),
    ("DOWNSTREAM_LOCAL_PORT", |e| port(Some(e.facts.local))),
    ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS", |e| address(Some(e.facts.direct_local))),
    ("DOWNSTREAM_DIRECT_LOCAL_PORT", |e| port(Some(e.facts.direct_local))),
    ("DOWNSTREAM_REMOTE_ADDRESS", |e| address(Some(e.facts.remote))),
    ("DOWNSTREAM_REMOTE_PORT", |e| port(Some(e.facts.remote))),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", |e| address(Some(e.facts.direct_remote))),
    ("DOWNSTREAM_DIRECT_REMOTE_PORT", |e| port(Some(e.facts.direct_remote))),
    ("REQUESTED_SERVER_NAME", |e| Value::option(e.facts.server_name.as_deref())),
    ("FILTER_CHAIN_NAME", |e| Value::option(e.filter_chain.as_deref().filter(|name| !name.is_empty()))),
    ("ACCESS_LOG_TYPE", |e| Value::text(e.log_type.name())),
    ("STREAM_ID", |e| Value::text(stream_id(e))),
    ("UNIQUE_ID", |_| Value::text(uuid(rand::random(), rand::random()))),
];

/// There is no space in it, and none at all where the peer was merely gone.
fn failure<'a>(why: Option<&str>) -> Value<'a> {
    Value::option(why.filter(|why| !why.is_empty()).map(|why| why.replace(' ', "_")))
}

/// The host that a connection reached: one that refused has no remote address.
fn connected_host(entry: &Entry) -> Option<SocketAddr> {
    entry.upstream.local.and(entry.upstream.host)
}

fn address<'a>(address: Option<SocketAddr>) -> Value<'a> {
    address.map_or(Value::Missing, Value::Address)
}

fn flags<'a>(flags: Flags) -> Value<'a> {
    if flags.is_empty() { Value::text("-") } else { Value::text(flags.to_string()) }
}

fn port<'a>(address: Option<SocketAddr>) -> Value<'a> {
    address.map_or(Value::Missing, |address| Value::Number(u64::from(address.port())))
}

/// An endpoint without a name is named by its address.
fn host_name(entry: &Entry) -> Value<'_> {
    let named = entry.upstream.hostname.as_deref().filter(|name| !name.is_empty());
    named.map_or_else(|| address(entry.upstream.host), Value::text)
}

fn host_name_alone(entry: &Entry) -> Value<'_> {
    let named = entry.upstream.hostname.as_deref().filter(|name| !name.is_empty());
    let ip = || Value::option(entry.upstream.host.map(|host| host.ip().to_string()));
    named.map_or_else(ip, Value::text)
}

fn attempted(entry: &Entry, show: fn(&SocketAddr) -> String) -> Value<'_> {
    let upstream = &entry.upstream;
    let hosts: Vec<_> = match upstream.attempted.as_slice() {
        // Of HTTP, Envoy names those that a connection was made to.
        [] if entry.http.is_some() && upstream.connection_id == 0 => Vec::new(),
        [] => upstream.host.iter().map(show).collect(),
        hosts => hosts.iter().map(show).collect(),
    };
    Value::option((!hosts.is_empty()).then(|| hosts.join(",")))
}

/// Its name in stats, if it has one of its own.
fn cluster_name(entry: &Entry) -> Value<'_> {
    let model = entry.upstream.cluster_model.as_deref();
    let alt = model.and_then(|cluster| cluster.alt_stat_name.as_deref()).filter(|name| !name.is_empty());
    Value::option(alt.or(entry.upstream.cluster.as_deref()))
}

/// Envoy counts a failure as ready: the time until it was known.
fn pool_ready(entry: &Entry) -> Value<'_> {
    match (entry.upstream.connected_after, &entry.upstream.cluster) {
        (Some(after), _) => Value::Number(Unit::Milliseconds.of(after)),
        (None, Some(_)) => Value::Number(0),
        (None, None) => Value::Missing,
    }
}

/// Envoy's word and its spelling.
fn local_close(entry: &Entry) -> Value<'_> {
    let reasons = [(Flags::UF, 0), (Flags::UH, 1), (Flags::UO, 2), (Flags::NC, 3)];
    let code = reasons
        .iter()
        .find(|(flag, _)| entry.http.is_none() && entry.outcome.flags.contains(*flag))
        .map(|(_, code)| code);
    Value::option(code.map(|code| format!("tcp_initializion_failure:{code}")))
}

/// The same in every line of a connection, without a place in its memory.
fn stream_id(entry: &Entry) -> String {
    let since = entry.start.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let seed = entry.origin.connection_id;
    uuid(xxh64(&since.to_le_bytes(), seed), xxh64(&since.to_le_bytes(), !seed))
}

/// A version 4 UUID of these bits.
fn uuid(high: u64, low: u64) -> String {
    let high = high & !0xf000 | 0x4000;
    let low = low & !(0b11 << 62) | 0b10 << 62;
    let text = format!("{high:016x}{low:016x}");
    format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
}

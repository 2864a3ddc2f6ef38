//! Proxies that open tunnels, and proxies that end them.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use shunt_tests::bootstrap::{chain, extension, file_log, tcp_proxy};
use shunt_tests::{Bootstrap, Cases, Kind, Lab, Proxy, deviations};

/// How a tunnel is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Http1Connect,
    Http2Connect,
    Http2Post,
    /// Envoy 1.40 opens such ones too, and crashes when the response ends.
    Http1Post,
}

impl Way {
    /// Those that both proxies have.
    pub(super) const SHARED: [Self; 3] = [Self::Http1Connect, Self::Http2Connect, Self::Http2Post];
    pub(super) const ALL: [Self; 4] =
        [Self::Http1Connect, Self::Http2Connect, Self::Http2Post, Self::Http1Post];

    /// The listener's name, and its cluster's.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Http1Connect => "h1_connect",
            Self::Http2Connect => "h2_connect",
            Self::Http2Post => "h2_post",
            Self::Http1Post => "h1_post",
        }
    }

    pub(super) fn is_http2(self) -> bool {
        matches!(self, Self::Http2Connect | Self::Http2Post)
    }

    pub(super) fn is_post(self) -> bool {
        matches!(self, Self::Http2Post | Self::Http1Post)
    }
}

const START: &str = "%RESPONSE_FLAGS%|%BYTES_RECEIVED%|%BYTES_SENT%|%UPSTREAM_CLUSTER%|%UPSTREAM_HOST%|\
    %UPSTREAM_REQUEST_ATTEMPT_COUNT%|%UPSTREAM_TRANSPORT_FAILURE_REASON%|%PROTOCOL%|%RESPONSE_CODE%|\
    %FILTER_STATE(envoy.tcp_proxy.propagate_response_headers:PLAIN)%|\
    %FILTER_STATE(envoy.tcp_proxy.propagate_response_headers)%";
const END: &str = "%REQ(:METHOD)%|%REQ(:AUTHORITY)%|%REQ(:PATH)%|%PROTOCOL%|%RESPONSE_CODE%|%BYTES_RECEIVED%|\
    %BYTES_SENT%|%REQ(X-WHO)%|%UPSTREAM_HOST%|%UPSTREAM_CLUSTER%|%UPSTREAM_PROTOCOL%|%REQ(:SCHEME)%|\
    %UPSTREAM_WIRE_BYTES_SENT%|%UPSTREAM_WIRE_BYTES_RECEIVED%|%RESPONSE_FLAGS%|%RESPONSE_CODE_DETAILS%";

/// What opens tunnels: a listener and a cluster for each way. `more`: of its cluster.
pub(super) fn opens(to: SocketAddr, tunneling: &str, proxy: &str, more: &str) -> String {
    let mut all = Bootstrap::new();
    for way in Way::ALL {
        let name = way.name();
        let log = file_log(&format!("{name}.log"), START);
        let tunnel = format!(
            "hostname: \"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%:443\", use_post: {}, \
             propagate_response_headers: true, headers_to_add: [ {{ header: {{ key: x-who, \
             value: \"<%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%>\" }} }} ], {tunneling}",
            way.is_post()
        );
        let fields =
            format!("cluster: {name}, access_log: [ {log} ], tunneling_config: {{ {tunnel} }}, {proxy}");
        let chain = chain("", &[tcp_proxy(name, &fields)]);
        let protocol = if way.is_http2() { "http2_protocol_options" } else { "http_protocol_options" };
        all = all.listener(name, &format!("filter_chains: [ {chain} ]")).static_cluster(
            name,
            &[to],
            &format!("{}, {more}", protocol_options(protocol)),
        );
    }
    all.yaml()
}

/// A cluster's, explicitly.
pub(super) fn protocol_options(name: &str) -> String {
    let of_type = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    format!(
        "typed_extension_protocol_options: {{ envoy.extensions.upstreams.http.v3.HttpProtocolOptions: \
         {{ \"@type\": {of_type}, explicit_http_config: {{ {name}: {{}} }} }} }}"
    )
}

pub(super) const CONNECTS: &str = "match: { connect_matcher: {} }";
pub(super) const POSTS: &str =
    "match: { prefix: /, headers: [ { name: \":method\", string_match: { exact: POST } } ] }";

/// A connection manager with such routes.
pub(super) fn manager(name: &str, routes: &[String], more: &str) -> String {
    logged(name, END, routes, more)
}

/// As [`manager`], with a log of its own.
pub(super) fn logged(name: &str, format: &str, routes: &[String], more: &str) -> String {
    let router = extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", "");
    let log = file_log(&format!("{name}.log"), format);
    let routes = routes.join(", ");
    extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &format!(
            "stat_prefix: {name}, access_log: [ {log} ], http_filters: [ {router} ], \
             http2_protocol_options: {{ allow_connect: true }}, {more} \
             route_config: {{ virtual_hosts: [ {{ name: v, domains: [ \"*\" ], routes: [ {routes} ] }} ] }}"
        ),
    )
}

/// The routes of an end: to the cluster `up`, with these fields of `connect_config`.
pub(super) fn ending(config: &str) -> [String; 2] {
    [(CONNECTS, ""), (POSTS, "allow_post: true, ")].map(|(matching, post)| {
        format!(
            "{{ {matching}, route: {{ cluster: up, upgrade_configs: [ {{ upgrade_type: CONNECT, \
             connect_config: {{ {post}{config} }} }} ] }} }}"
        )
    })
}

/// What ends tunnels: listener `end`, cluster `up`. Listener `closed` refuses them.
pub(super) fn ends(up: SocketAddr, config: &str) -> String {
    let closed = [format!("{{ {CONNECTS}, route: {{ cluster: up }} }}")];
    let listener =
        |name, routes: &[String]| format!("filter_chains: [ {} ]", chain("", &[manager(name, routes, "")]));
    Bootstrap::new()
        .static_cluster("up", &[up], "")
        .listener("end", &listener("end", &ending(config)))
        .listener("closed", &listener("closed", &closed))
        .yaml()
}

/// Each kind at each end.
pub(super) struct Rig {
    pairs: Vec<(Proxy, usize)>,
    ends: Vec<Proxy>,
}

/// A tunnel's two ends.
#[derive(Clone, Copy)]
pub(super) struct Ends<'a> {
    pub(super) start: &'a Proxy,
    pub(super) end: &'a Proxy,
}

impl Ends<'_> {
    pub(super) fn name(&self) -> String {
        format!("{} to {}", self.start.kind.name(), self.end.kind.name())
    }

    pub(super) fn are_shunt(&self) -> bool {
        self.start.kind == Kind::Shunt && self.end.kind == Kind::Shunt
    }

    pub(super) fn at(&self, way: Way) -> Result<SocketAddr> {
        self.start.at(way.name())
    }
}

impl Rig {
    /// Tunnels to that listener of what ends them.
    pub(super) fn start(lab: &Lab, up: SocketAddr, listener: &str, proxy: &str) -> Result<Self> {
        let ends = Kind::BOTH.map(|kind| Proxy::start(lab, kind, &ends(up, "")));
        let ends = ends.into_iter().collect::<Result<Vec<_>>>()?;
        let mut pairs = Vec::new();
        for kind in Kind::BOTH {
            for (n, end) in ends.iter().enumerate() {
                let config = opens(end.at(listener)?, "", proxy, "");
                pairs.push((Proxy::start(lab, kind, &config).context(kind.name())?, n));
            }
        }
        Ok(Self { pairs, ends })
    }

    /// Envoy at both ends comes first.
    pub(super) fn all(&self) -> impl Iterator<Item = Ends<'_>> {
        self.pairs.iter().map(|(start, n)| Ends { start, end: &self.ends[*n] })
    }

    pub(super) fn shunt(&self) -> Result<Ends<'_>> {
        self.all().find(Ends::are_shunt).context("shunt at both ends")
    }

    /// What is observed must be as with Envoy at both ends, whoever is where.
    pub(super) fn same(
        &self,
        cases: &mut Cases,
        way: Way,
        what: &str,
        observe: impl Fn(Ends<'_>) -> Result<Value>,
    ) {
        let mut reference = None;
        for ends in self.all() {
            let id = format!("tunnels, {}, {what}: {}", way.name(), ends.name());
            cases.case(&id, || {
                let seen = observe(ends)?;
                let expected = reference.get_or_insert_with(|| seen.clone());
                deviations::check(&id, expected, &seen)
            });
        }
    }
}

/// A line's fields, without what differs from run to run: ports, dates.
pub(super) fn fields(line: &str) -> Value {
    let steady = |field: &str| match serde_json::from_str::<Value>(field) {
        Ok(Value::Object(state)) => {
            let headers = state["headers"].as_array().cloned().unwrap_or_default();
            // shunt keeps no header of a hop.
            let steady = |header: &Value| header["key"] != "date" && header["key"] != "connection";
            json!(headers.into_iter().filter(steady).collect::<Vec<_>>())
        }
        Ok(_) | Err(_) => match field.parse::<SocketAddr>() {
            Ok(address) if address.port() != 443 => json!(address.ip().to_string()),
            Ok(_) | Err(_) => json!(field),
        },
    };
    line.split('|').map(steady).collect()
}

/// The last line, once there are more than so many.
pub(super) fn line(proxy: &Proxy, file: &str, before: usize) -> Result<String> {
    proxy.lines(file, before + 1)?.pop().context("no line")
}

/// How many lines there are now.
pub(super) fn mark(proxy: &Proxy, file: &str) -> usize {
    std::fs::read_to_string(proxy.dir().join(file)).unwrap_or_default().lines().count()
}

//! Both proxies, their backends, and a case: some requests and all that can be observed of them.

use std::cell::Cell;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use shunt_tests::asked::{Ask, Http2};
use shunt_tests::bootstrap::{Bootstrap, chain, extension, file_log};
use shunt_tests::proxy::Stats;
use shunt_tests::{Cases, Lab, Pair, Proxy, Script, deviations, until};

const FORMAT: &str = "%REQ(x-id)% %REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL% code=%RESPONSE_CODE% flags=%RESPONSE_FLAGS% \
    details=%RESPONSE_CODE_DETAILS% attempts=%UPSTREAM_REQUEST_ATTEMPT_COUNT% cluster=%UPSTREAM_CLUSTER% \
    host=%UPSTREAM_HOST% in=%BYTES_RECEIVED% out=%BYTES_SENT% why=%UPSTREAM_TRANSPORT_FAILURE_REASON% \
    upstream=%UPSTREAM_PROTOCOL% route=%ROUTE_NAME% end=%CONNECTION_TERMINATION_DETAILS% grpc=%GRPC_STATUS% vcluster=%VIRTUAL_CLUSTER_NAME%";

/// What is compared of the stats, unless a test says otherwise.
const STATS: &[&str] = &["cluster.*", "http.ing.*", "vhost.*"];

/// What depends on the moment, or counts what is each proxy's own.
const UNSTABLE: &[&str] = &[
    // Of Envoy's codec.
    "http2.nghttp2_upstream_connections",
    // Of shunt's codec: it is counted when the connection begins with something else.
    "http2.rx_messaging_error",
    // Of shunt's: who closes says so.
    "http2.goaway_sent",
    // How a client's connection is closed depends on who is first.
    "downstream_cx_delayed_close_timeout",
    // A limit that Envoy does not count here shows as -1.
    "remaining_cx_pools",
    "_bytes_total",
    "_bytes_buffered",
    ".downstream_cx_destroy_local",
    "downstream_cx_destroy_remote",
    "downstream_cx_destroy",
    "downstream_cx_active",
    "downstream_cx_http1_active",
    "downstream_rq_active",
    ".default.total_match_count",
    "_active_rq",
    "http2.pending_send_bytes",
    "upstream_cx_rx_bytes_buffered",
];

/// How long shunt may take to count what Envoy has counted.
const SETTLE: Duration = Duration::from_millis(1500);

pub(super) struct Rig<'a> {
    pub pair: Pair,
    pub script: &'a Script,
    pub cases: Cases,
}

/// One proxy's turn at a case.
pub(super) struct Run<'a> {
    pub proxy: &'a Proxy,
    pub script: &'a Script,
    at: SocketAddr,
    asked: Cell<usize>,
}

/// A listener's fields: a connection manager with these virtual hosts, and further fields of its own.
pub(super) fn manager(hosts: &[String], more: &str) -> String {
    let router = extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", "");
    manager_with(&[router], hosts, more)
}

pub(super) fn manager_with(filters: &[String], hosts: &[String], more: &str) -> String {
    let hcm = extension(
        "http",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &format!(
            "stat_prefix: ing, access_log: [ {} ], route_config: {{ name: r, virtual_hosts: [ {} ], \
             validate_clusters: false }}, http_filters: [ {} ], {more}",
            file_log("log", FORMAT),
            hosts.join(", "),
            filters.join(", ")
        ),
    );
    format!("stat_prefix: l, filter_chains: [ {} ]", chain("", &[hcm]))
}

/// A virtual host of any name.
pub(super) fn host(routes: &[String], more: &str) -> String {
    named_host("v", "*", routes, more)
}

pub(super) fn named_host(name: &str, domain: &str, routes: &[String], more: &str) -> String {
    format!("{{ name: {name}, domains: [ {domain:?} ], routes: [ {} ], {more} }}", routes.join(", "))
}

/// A route by prefix; `action` is the rest of its `route`.
pub(super) fn route(prefix: &str, cluster: &str, action: &str) -> String {
    let name = prefix.trim_matches('/').replace('/', "-");
    format!(
        "{{ name: \"{name}\", match: {{ prefix: {prefix:?} }}, route: {{ cluster: {cluster:?}, {action} }} }}"
    )
}

/// A cluster's HttpProtocolOptions.
pub(super) fn options(fields: &str) -> String {
    let of_type = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    format!(
        "typed_extension_protocol_options: {{ {of_type}: {{ \"@type\": type.googleapis.com/{of_type}, {fields} }} }}"
    )
}

/// One host, one listener `l`.
pub(super) fn simple(routes: &[String]) -> Bootstrap {
    Bootstrap::new().listener("l", &manager(&[host(routes, "")], ""))
}

/// As `simple`, with what the virtual host says.
pub(super) fn hosted(routes: &[String], more: &str) -> Bootstrap {
    Bootstrap::new().listener("l", &manager(&[host(routes, more)], ""))
}

impl<'a> Rig<'a> {
    pub(super) fn start(lab: &Lab, script: &'a Script, config: &Bootstrap) -> Result<Self> {
        Ok(Self { pair: Pair::start(lab, &config.yaml())?, script, cases: Cases::new() })
    }

    /// What `traffic` returns is compared with the rest.
    pub(super) fn case(&mut self, id: &str, traffic: impl Fn(&Run<'_>) -> Result<Value>) {
        self.case_of(id, STATS, traffic);
    }

    /// As [`Self::case`], but for stats that end like these.
    pub(super) fn case_but(
        &mut self,
        id: &str,
        but: &[&'static str],
        traffic: impl Fn(&Run<'_>) -> Result<Value>,
    ) {
        let stats: Vec<String> = STATS.iter().map(|name| (*name).to_owned()).collect();
        let but: Vec<String> = but.iter().map(|end| format!("-{end}")).collect();
        let all: Vec<&str> = stats.iter().chain(&but).map(String::as_str).collect();
        self.case_of(id, &all, traffic);
    }

    /// As [`Self::asks`], whatever the connections are that they go by.
    pub(super) fn asks_by_any(&mut self, id: &str, asks: &[Ask]) {
        let but = [
            "@at",
            "upstream_cx_active",
            "upstream_cx_total",
            "upstream_cx_http1_total",
            "upstream_rq_pending_total",
            "upstream_cx_destroy",
            "upstream_cx_destroy_local",
        ];
        self.case_but(id, &but, |run| asks.iter().map(|ask| run.ask(ask)).collect());
    }

    /// Each of these requests, one after the other.
    pub(super) fn asks(&mut self, id: &str, asks: &[Ask]) {
        self.case(id, |run| asks.iter().map(|ask| run.ask(ask)).collect());
    }

    /// With these stats only.
    pub(super) fn case_of(&mut self, id: &str, stats: &[&str], traffic: impl Fn(&Run<'_>) -> Result<Value>) {
        let (pair, script) = (&self.pair, self.script);
        let id = format!("http_router {id}");
        self.cases.case(&id, || {
            let envoy = observe(&pair.envoy, script, stats, &traffic, None).context("envoy")?;
            let shunt = observe(&pair.shunt, script, stats, &traffic, Some(&envoy)).context("shunt")?;
            if std::env::var_os("SHUNT_TESTS_SHOW").is_some() {
                eprintln!("{id}: {envoy:#}");
            }
            deviations::check(&id, &envoy, &shunt)
        });
    }

    pub(super) fn finish(self) -> Result<()> {
        self.cases.finish()
    }
}

fn observe(
    proxy: &Proxy,
    script: &Script,
    names: &[&str],
    traffic: &impl Fn(&Run<'_>) -> Result<Value>,
    wanted: Option<&Value>,
) -> Result<Value> {
    script.clear();
    let path = proxy.dir().join("log");
    let lines = || -> Vec<String> {
        fs::read_to_string(&path).unwrap_or_default().lines().map(str::to_owned).collect()
    };
    let (known, before) = (lines().len(), proxy.stats()?);
    let run = Run { proxy, script, at: proxy.at("l")?, asked: Cell::new(0) };
    let said = traffic(&run)?;
    let asked = run.asked.get();
    until("lines of the log", Duration::from_secs(5), || Ok((lines().len() >= known + asked).then_some(())))?;
    let look = || -> Result<Value> {
        let mut log: Vec<String> = lines().drain(known..).collect();
        // Of those that run at the same time, any may end first.
        log.sort_by_key(|line| line.split(' ').next().and_then(|id| id.parse::<usize>().ok()));
        let log: Vec<Value> = log.iter().map(|line| shown(line)).collect();
        let counted = counted(&proxy.stats()?, &before, names);
        let mut seen = script.shown();
        if names.contains(&"-@at") {
            forget_connections(&mut seen);
        }
        Ok(json!({ "said": said, "log": log, "seen": seen, "stats": counted }))
    };
    settled(look, wanted)
}

/// But for what was asked.
fn forget_connections(seen: &mut Value) {
    seen["connections"] = Value::Null;
    for request in seen["requests"].as_array_mut().into_iter().flatten() {
        request["at"] = Value::Null;
    }
}

/// By its fields.
fn shown(line: &str) -> Value {
    let fields = line.split(' ').enumerate().map(|(n, field)| match field.split_once('=') {
        Some((name, value)) if n > 3 => (name.to_owned(), Value::from(value)),
        Some(_) | None => (format!("#{n}"), Value::from(field)),
    });
    Value::Object(fields.collect())
}

fn counted(now: &Stats, before: &Stats, names: &[&str]) -> Value {
    let but: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix('-')).collect();
    let names: Vec<&str> = names.iter().copied().filter(|name| !name.starts_with('-')).collect();
    let mut delta = now.since(before, &names);
    if let Some(all) = delta.as_object_mut() {
        let unstable = |name: &str| UNSTABLE.iter().chain(&but).any(|end| name.ends_with(end));
        all.retain(|name, _| !unstable(name) && !name.contains("flow_control") && !name.contains(".ssl."));
    }
    delta
}

/// A value that has stopped changing, or is the wanted one.
fn settled(look: impl Fn() -> Result<Value>, wanted: Option<&Value>) -> Result<Value> {
    let start = Instant::now();
    let mut last = look()?;
    let mut since = Instant::now();
    loop {
        let quiet = wanted.is_none() && since.elapsed() > Duration::from_millis(100);
        if quiet || wanted == Some(&last) || start.elapsed() > SETTLE {
            return Ok(last);
        }
        std::thread::sleep(Duration::from_millis(20));
        let next = look()?;
        if next != last {
            (last, since) = (next, Instant::now());
        }
    }
}

impl Run<'_> {
    /// Through the listener `l`.
    pub(super) fn ask(&self, ask: &Ask) -> Result<Value> {
        self.ask_as(ask, self.next())
    }

    /// By a connection that is there.
    pub(super) fn by_http2(&self, client: &Http2, ask: &Ask) -> Result<Value> {
        client.send(&ask.clone().header("x-id", &self.next().to_string()))
    }

    /// Where the listener is.
    pub(super) fn at(&self) -> SocketAddr {
        self.at
    }

    fn next(&self) -> usize {
        self.asked.set(self.asked.get() + 1);
        self.asked.get()
    }

    fn ask_as(&self, ask: &Ask, id: usize) -> Result<Value> {
        ask.clone().header("x-id", &id.to_string()).send(self.at)
    }

    /// So many at a time, each begun a little later than the one before.
    pub(super) fn together(&self, asks: &[Ask]) -> Result<Value> {
        let asks: Vec<Ask> =
            asks.iter().map(|ask| ask.clone().header("x-id", &self.next().to_string())).collect();
        std::thread::scope(|scope| {
            let mut running = Vec::new();
            for ask in &asks {
                let begun = ask.begin(self.at)?;
                running.push(scope.spawn(move || begun.answer()));
                std::thread::sleep(Duration::from_millis(40));
            }
            let joined = running.into_iter().map(|one| one.join().unwrap_or_else(|_| Ok(json!("panicked"))));
            joined.collect()
        })
    }

    /// Other requests than those by `ask` have lines in the log, too.
    pub(super) fn logged(&self, more: usize) {
        self.asked.set(self.asked.get() + more);
    }
}

/// A port that never answers.
pub(super) struct Mute {
    pub address: SocketAddr,
    _socket: socket2::Socket,
    _queue: Vec<socket2::Socket>,
}

impl Mute {
    /// Its queue is full.
    pub(super) fn new() -> Result<Self> {
        let new = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = new()?;
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
        socket.listen(0)?;
        let address = socket.local_addr()?;
        let queue = (0..4).map(|_| {
            let client = new()?;
            client.set_nonblocking(true)?;
            // In progress is all that it can be.
            drop(client.connect(&address));
            Ok(client)
        });
        let queue = queue.collect::<Result<Vec<_>>>()?;
        let address = address.as_socket().context("no address")?;
        Ok(Self { address, _socket: socket, _queue: queue })
    }
}

//! `envoy.filters.http.ext_authz`: the same requests through Envoy and through shunt, which ask the same service.

mod grpc;
mod http;
mod tls;

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::{Value, json};
use shunt_tests::bootstrap::{chain, extension, file_log};
use shunt_tests::{Bootstrap, Cases, Lab, Pair, Proxy};

use crate::http_filters::peer::{self, Message};

const FILTER: &str = "envoy.filters.http.ext_authz";
const OF_TYPE: &str = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";
const PER_ROUTE: &str = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute";

/// A listener with the filter.
struct Site {
    name: &'static str,
    /// The filter's fields.
    fields: String,
    /// Filters before it.
    before: Vec<String>,
    /// All before the one that takes what is left.
    routes: Vec<String>,
    /// What the virtual host says to the filter.
    of_host: String,
    /// More of the filter chain.
    chain: String,
}

/// A request: to which listener, method, path, headers, body.
struct Asked {
    site: &'static str,
    method: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    body: &'static [u8],
}

impl Site {
    fn new(name: &'static str, fields: impl Into<String>) -> Self {
        Self {
            name,
            fields: fields.into(),
            before: Vec::new(),
            routes: Vec::new(),
            of_host: String::new(),
            chain: String::new(),
        }
    }

    fn route(mut self, prefix: &str, said: &str) -> Self {
        self.routes.push(route(prefix, said, "route: { cluster: up }"));
        self
    }

    fn whole_route(mut self, route: &str) -> Self {
        self.routes.push(route.to_owned());
        self
    }

    fn host(mut self, said: &str) -> Self {
        self.of_host =
            format!("typed_per_filter_config: {{ {FILTER}: {{ \"@type\": {PER_ROUTE}, {said} }} }}");
        self
    }

    fn before(mut self, filter: String) -> Self {
        self.before.push(filter);
        self
    }

    fn listener(&self) -> String {
        let Self { name, fields, before, routes, of_host, chain: more } = self;
        let log = file_log(
            &format!("log-{name}"),
            "%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% \
             %BYTES_RECEIVED% %UPSTREAM_CLUSTER% \
             %FILTER_STATE(envoy.filters.http.ext_authz.shadow)%",
        );
        let mut routes = routes.clone();
        routes.push("{ match: { prefix: / }, route: { cluster: up } }".to_owned());
        let routes = routes.join(", ");
        let host = format!("{{ name: v, domains: [ \"*\" ], routes: [ {routes} ], {of_host} }}");
        let router =
            extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", "");
        let mut filters = before.clone();
        filters.extend([extension(FILTER, OF_TYPE, fields), router]);
        let manager = extension(
            "envoy.filters.network.http_connection_manager",
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            &format!(
                "stat_prefix: {name:?}, access_log: [ {log} ], http_filters: [ {} ], \
                 route_config: {{ name: r, virtual_hosts: [ {host} ] }}",
                filters.join(", ")
            ),
        );
        let chain = chain("", &[manager]);
        let chain = chain.strip_suffix('}').unwrap_or(&chain);
        format!("filter_chains: [ {chain}, {more} }} ]")
    }
}

fn route(prefix: &str, said: &str, action: &str) -> String {
    format!(
        "{{ match: {{ prefix: {prefix} }}, {action}, \
         typed_per_filter_config: {{ {FILTER}: {{ \"@type\": {PER_ROUTE}, {said} }} }} }}"
    )
}

fn get(site: &'static str, path: &'static str) -> Asked {
    Asked { site, method: "GET", path, headers: Vec::new(), body: b"" }
}

fn post(site: &'static str, path: &'static str, body: &'static [u8]) -> Asked {
    Asked { site, method: "POST", path, headers: Vec::new(), body }
}

impl Asked {
    fn with(mut self, headers: &[(&'static str, &'static str)]) -> Self {
        self.headers.extend_from_slice(headers);
        self
    }

    fn method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    fn send(&self, proxy: &Proxy) -> Result<Message> {
        peer::ask(proxy.at(self.site)?, self.method, self.path, &self.headers, self.body)
    }

    fn name(&self) -> String {
        let Self { site, method, path, headers, body } = self;
        let body = String::from_utf8_lossy(body);
        format!("ext_authz: {site}: {method} {path} {headers:?} {body}").trim_end().to_owned()
    }
}

fn bootstrap(up: SocketAddr, sites: &[Site], clusters: &[(&str, SocketAddr, &str)]) -> String {
    // By its metadata the node has labels.
    let top = "node: { id: here, cluster: there, metadata: { labels: { app: a, n: 1 } } }";
    let mut config = Bootstrap::new().top(top).static_cluster("up", &[up], "");
    for (name, at, fields) in clusters {
        config = config.static_cluster(name, &[*at], fields);
    }
    for site in sites {
        config = config.listener(site.name, &site.listener());
    }
    config.yaml()
}

/// What each request comes to, what the service was asked, then the logs and the stats of all.
fn compare(
    lab: &Lab,
    config: &str,
    sites: &[Site],
    asked: &[Asked],
    taken: impl Fn() -> Value,
) -> Result<()> {
    let pair = Pair::start(lab, config)?;
    let mut cases = Cases::new();
    let names: Vec<String> = sites.iter().map(|site| format!("http.{}.ext_authz.*", site.name)).collect();
    let clusters =
        ["cluster.up.ext_authz.*", "cluster.up.upstream_rq_4*", "cluster.up.internal.upstream_rq_4*"];
    let names: Vec<&str> = names.iter().map(String::as_str).chain(clusters).collect();
    let mut answers: Vec<Vec<Value>> = Vec::new();
    pair.same_stats(&mut cases, "ext_authz: stats", &names, |proxy| {
        let mut all = Vec::new();
        for one in asked {
            let answer = one.send(proxy);
            let answer = answer.map_or_else(|error| json!(format!("{error:#}")), |answer| answer.compared());
            all.push(json!({ "answer": answer, "asked": taken() }));
        }
        answers.push(all);
        Ok(())
    });
    for (n, one) in asked.iter().enumerate() {
        let mut each = answers.iter();
        pair.same(&mut cases, one.name(), |_| {
            Ok(each.next().and_then(|all| all.get(n)).cloned().unwrap_or_default())
        });
    }
    for site in sites {
        let count = asked.iter().filter(|one| one.site == site.name).count();
        pair.same(&mut cases, format_args!("ext_authz: {}: log", site.name), |proxy| {
            let lines = proxy.lines(&format!("log-{}", site.name), count)?;
            // How long a service took is not the same in both.
            let times = ["service-time\",\"value\":\"1\"", "service-time\",\"value\":\"2\""];
            let timeless = |line: &String| {
                let line = line.clone();
                times.iter().fold(line, |line, time| line.replace(time, "service-time\",\"value\":\"0\""))
            };
            Ok(json!(lines.iter().map(timeless).collect::<Vec<_>>()))
        });
    }
    cases.finish()
}

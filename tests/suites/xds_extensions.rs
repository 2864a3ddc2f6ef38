//! HTTP filters that come by ECDS: from a control plane and from files, under connections that stay, in both proxies.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::bootstrap::{chain, extension as typed};
use shunt_tests::http_client::{HttpClient, Version};
use shunt_tests::xds::{self, Resource, Type};
use shunt_tests::{Bootstrap, Cases, ControlPlane, Kind, Lab, Pair, Proxy, eventually, lab};
use tokio::runtime::Runtime;

use crate::sds::Mount;
use crate::xds_common::{LIMIT, Protocol, ads, dump, extension, listener, named};

const MUTATION: &str = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation";
const FAULT: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";
const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// Responses say which one they have passed.
fn version(version: u32) -> String {
    let header = format!("header: {{ key: x-version, value: \"{version}\" }}");
    let append = format!("append: {{ {header}, append_action: APPEND_IF_EXISTS_OR_ADD }}");
    format!(
        "{{ \"@type\": type.googleapis.com/{MUTATION}, mutations: {{ response_mutations: [ {{ {append} }} ] }} }}"
    )
}

fn discovered(name: &str, of_type: &str, source: &str, fields: &str) -> String {
    let types = format!("type_urls: [ \"type.googleapis.com/{of_type}\" ]");
    format!("{{ name: {name}, config_discovery: {{ config_source: {source}, {types}, {fields} }} }}")
}

/// The fields of a listener whose connection manager has these filters; it answers by itself.
fn manager(name: &str, filters: &[String]) -> String {
    let direct = |path: &str, more: &str| {
        format!(
            "{{ match: {{ path: {path} }}, direct_response: {{ status: 200, body: {{ inline_string: ok }} }}, {more} }}"
        )
    };
    let of_route = "type.googleapis.com/envoy.config.route.v3.FilterConfig";
    let routes = [
        direct("/", ""),
        direct(
            "/off",
            &format!("typed_per_filter_config: {{ gate: {{ \"@type\": {of_route}, disabled: true }} }}"),
        ),
    ];
    let host = format!("{{ name: v, domains: [ \"*\" ], routes: [ {} ] }}", routes.join(", "));
    let hcm = format!(
        "stat_prefix: {name}, http_filters: [ {} ], route_config: {{ virtual_hosts: [ {host} ] }}",
        filters.join(", ")
    );
    format!("filter_chains: [ {} ]", chain("", &[typed("http", HCM, &hcm)]))
}

fn router() -> String {
    typed("envoy.filters.http.router", ROUTER, "")
}

/// A client of each proxy that keeps its connection.
struct Clients {
    runtime: Runtime,
    all: BTreeMap<(&'static str, String), HttpClient>,
}

impl Clients {
    fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { runtime, all: BTreeMap::new() })
    }

    /// The status, and which versions of the filter have been passed.
    fn ask(&mut self, proxy: &Proxy, listener: &str, path: &str) -> Result<Value> {
        let key = (proxy.kind.name(), listener.to_owned());
        let client = match self.all.entry(key) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(new) => {
                new.insert(HttpClient::new(proxy.listening(listener)?, Version::Http1))
            }
        };
        let reply = self.runtime.block_on(client.get(path))?;
        let versions: Vec<_> =
            reply.headers.get_all("x-version").iter().filter_map(|value| value.to_str().ok()).collect();
        Ok(json!([reply.status, versions.join(","), String::from_utf8_lossy(&reply.body)]))
    }

    fn until(&mut self, proxy: &Proxy, listener: &str, wanted: &Value) -> Result<Value> {
        eventually(&format!("{wanted} behind {listener}"), LIMIT, || {
            let found = self.ask(proxy, listener, "/")?;
            ensure!(found == *wanted, "it is {found}");
            Ok(found)
        })
    }

    fn connections(&self, proxy: &Proxy, listener: &str) -> Result<usize> {
        let key = (proxy.kind.name(), listener.to_owned());
        Ok(self.all.get(&key).context("no client")?.connections)
    }
}

fn is(version: &str) -> Value {
    json!([200, version, "ok"])
}

fn counts(proxy: &Proxy, name: &str, stats: &[&str]) -> Result<Value> {
    let all = proxy.stats()?;
    let of =
        |stat: &&str| json!([stat, all.of(&format!("extension_config_discovery.http_filter.{name}.{stat}"))]);
    Ok(stats.iter().map(of).collect())
}

/// What `/config_dump` has: names, and types of their configurations.
fn dumped(proxy: &Proxy) -> Result<Value> {
    let section = dump(proxy, "EcdsConfigDump")?;
    let filters = section["ecds_filters"].as_array().cloned().unwrap_or_default();
    let mut all: Vec<_> = filters
        .iter()
        .map(|filter| {
            let config = &filter["ecds_filter"];
            format!("{} {} {}", config["@type"], config["name"], config["typed_config"]["@type"])
        })
        .collect();
    all.sort();
    Ok(json!(all))
}

#[test]
fn http_filters_that_are_discovered() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        let source = "{ ads: {}, resource_api_version: V3, initial_fetch_timeout: 0.5s }";
        for protocol in Protocol::BOTH {
            let plane = ControlPlane::start()?;
            let guarded = |name: &str, of: &str, fields: &str| {
                listener(name, &manager(name, &[discovered(of, MUTATION, source, fields), router()]))
            };
            let at_once =
                format!("default_config: {}, apply_default_config_without_warming: true", version(0));
            plane.set_all([
                guarded("in", "gate", "")?,
                guarded("same", "gate", "")?,
                guarded("default", "late", &at_once)?,
                extension("gate", &version(1))?,
            ]);
            // A delta says at once that there is no such thing, and Envoy then waits for it for ever.
            let mut names = vec!["in", "same", "default"];
            if protocol == Protocol::Sotw {
                names.push("missing");
                plane.set(guarded("missing", "nobody", "")?);
            }
            let pair = Pair::start(lab, &ads(&plane, protocol).yaml())?;
            let mut clients = Clients::new()?;
            let id = |what: &str| format!("{}, ECDS of HTTP filters: {what}", protocol.name());
            pair.same(&mut cases, id("at first"), |proxy| {
                names.iter().map(|name| clients.ask(proxy, name, "/")).collect()
            });
            pair.same(&mut cases, id("a route without it"), |proxy| clients.ask(proxy, "in", "/off"));
            plane.set(extension("gate", &version(2))?);
            pair.same(&mut cases, id("another configuration, the same connections"), |proxy| {
                clients.until(proxy, "in", &is("2"))?;
                clients.until(proxy, "same", &is("2"))?;
                let modified = proxy.stat("listener_manager.listener_modified")?;
                Ok(json!([modified, clients.connections(proxy, "in")?, clients.connections(proxy, "same")?]))
            });
            plane.set_all([extension("late", &version(3))?, extension("nobody", &version(3))?]);
            pair.same(&mut cases, id("all have come"), |proxy| {
                names[2..].iter().map(|name| clients.until(proxy, name, &is("3"))).collect()
            });
            pair.same(&mut cases, id("what is dumped"), dumped);
            pair.same(&mut cases, id("how changes are counted"), |proxy| {
                let stats = &["config_reload", "config_fail", "config_conflict"];
                Ok(json!([counts(proxy, "gate", stats)?, counts(proxy, "late", &["config_reload"])?]))
            });
            for (what, config) in [
                ("of a type that was not named", format!("{{ \"@type\": type.googleapis.com/{FAULT} }}")),
                ("that cannot be", version(9).replace("x-version", ":no name")),
            ] {
                plane.set(extension("gate", &config)?);
                pair.same(&mut cases, id(what), |proxy| {
                    let refused = plane.settled(proxy.kind.name())?;
                    let why = refused.get(&Type::Extension).is_some_and(|why| why.contains("gate"));
                    ensure!(why || proxy.kind == Kind::Envoy, "{refused:?} does not name it");
                    Ok(json!([refused.contains_key(&Type::Extension), clients.ask(proxy, "in", "/")?]))
                });
            }
            pair.same(&mut cases, id("how refusals are counted"), |proxy| {
                counts(proxy, "gate", &["config_fail", "config_conflict", "update_rejected"])
            });
            plane.set(extension("gate", &version(4))?);
            pair.same(&mut cases, id("good again"), |proxy| {
                clients.until(proxy, "in", &is("4"))?;
                Ok(json!(clients.connections(proxy, "in")?))
            });
            if protocol == Protocol::Delta {
                plane.remove(Type::Extension, "late");
                plane.remove(Type::Extension, "gate");
                pair.same(&mut cases, id("removed"), |proxy| {
                    let default = clients.until(proxy, "default", &is("0"))?;
                    let missing = clients.until(proxy, "in", &json!([500, "", ""]))?;
                    Ok(json!([default, missing, counts(proxy, "late", &["config_reload"])?]))
                });
            }
        }
        cases.finish()
    })
}

#[test]
fn the_last_filter_and_those_of_an_upgrade_are_discovered() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        let plane = ControlPlane::start()?;
        let source = "{ ads: {}, resource_api_version: V3 }";
        let end = discovered("end", ROUTER, source, "");
        plane.set_all([
            listener("in", &manager("in", &[discovered("gate", MUTATION, source, ""), end]))?,
            extension("gate", &version(1))?,
            extension("end", &format!("{{ \"@type\": type.googleapis.com/{ROUTER} }}"))?,
        ]);
        let pair = Pair::start(lab, &ads(&plane, Protocol::Delta).yaml())?;
        let mut clients = Clients::new()?;
        pair.same(&mut cases, "ECDS of the router", |proxy| clients.until(proxy, "in", &is("1")));
        cases.finish()
    })
}

fn path(file: &Path) -> String {
    format!("{{ path_config_source: {{ path: {file:?} }}, resource_api_version: V3 }}")
}

/// So many changes come from the file.
const CHANGES: u32 = 30;

/// Asks until it is over; what it sees never goes back.
async fn keep_asking(mut client: HttpClient, over: &AtomicBool) -> Result<(u32, usize, u32)> {
    let (mut last, mut asked) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        let reply = client.get("/").await?;
        ensure!(reply.status == 200, "{}", reply.status);
        let now: u32 = reply.header("x-version").context("without the filter")?.parse()?;
        ensure!(now >= last, "{now} after {last}");
        (last, asked) = (now, asked + 1);
    }
    Ok((last, client.connections, asked))
}

fn under_load(lab: &Lab, kind: Kind) -> Result<()> {
    let mount = Mount::new(lab, &format!("ecds-{}", kind.name()))?;
    let put = |version_info: u32, config: &str| -> Result<()> {
        let resource: Resource = extension("gate", config)?;
        mount.swap(&[("ecds.yaml", xds::file(&version_info.to_string(), &[resource]).as_bytes())])
    };
    put(1, &version(1))?;
    let gate = discovered("gate", MUTATION, &path(&mount.at("ecds.yaml")), "").replacen(
        "path_config_source: {",
        &format!("path_config_source: {{ watched_directory: {{ path: {:?} }},", mount.at("")),
        1,
    );
    let config: Bootstrap = named().listener("in", &manager("in", &[gate, router()]));
    let proxy = Proxy::start_with(lab, kind, &config.yaml(), &["--concurrency", "2"])?;
    let at = proxy.listening("in")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let over: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..16)
        .map(|n| {
            let version = if n % 2 == 0 { Version::Http1 } else { Version::Http2 };
            runtime.spawn(keep_asking(HttpClient::new(at, version), over))
        })
        .collect();
    let changed = (2..=CHANGES).try_for_each(|n| {
        put(n, &version(n))?;
        let seen = || proxy.stat("extension_config_discovery.http_filter.gate.config_reload");
        eventually("the change", LIMIT, || {
            ensure!(seen()? >= u64::from(n), "it has not been read");
            Ok(())
        })
    });
    // Garbage, and what is of another type: what was there goes on.
    let refused = changed.and_then(|()| {
        mount.swap(&[("ecds.yaml", b"resources: [ { no")])?;
        std::thread::sleep(Duration::from_millis(200));
        put(98, &format!("{{ \"@type\": type.googleapis.com/{FAULT} }}"))?;
        eventually("a refusal", LIMIT, || {
            ensure!(
                proxy.stat("extension_config_discovery.http_filter.gate.config_fail")? > 0,
                "nothing was refused"
            );
            Ok(())
        })?;
        std::thread::sleep(Duration::from_millis(200));
        Ok(())
    });
    over.store(true, Ordering::Relaxed);
    for (n, client) in clients.into_iter().enumerate() {
        let (last, connections, asked) =
            runtime.block_on(client)?.with_context(|| format!("client {n} of {}", kind.name()))?;
        ensure!(last == CHANGES, "client {n} has seen {last} last");
        ensure!(connections == 1, "client {n} had {connections} connections");
        ensure!(asked > CHANGES, "client {n} has asked {asked} times only");
    }
    refused
}

#[test]
fn an_http_filter_changes_under_load_by_its_file() -> Result<()> {
    lab(|lab| [Kind::Envoy, Kind::Shunt].into_iter().try_for_each(|kind| under_load(lab, kind)))
}

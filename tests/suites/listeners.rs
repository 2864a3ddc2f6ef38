//! Listeners: their addresses, hand-off to unbound ones, and which filter chain serves a connection.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::bootstrap::{
    address, chain, http_inspector, proxy_protocol, says, tcp_proxy, tls_inspector,
};
use shunt_tests::hello::client_hello;
use shunt_tests::{Bootstrap, Cases, Client, Pair, Place, Proxy, Upstream, lab};

/// What a client sends after its PROXY header, if it has one.
enum Speaks {
    Nothing,
    Junk,
    Http(&'static str),
    Tls(Option<&'static str>, &'static [&'static str]),
}

/// A PROXY header: source and destination.
type Via = Option<(&'static str, &'static str)>;

fn proxy_header(via: Via) -> Result<String> {
    let Some((from, to)) = via else { return Ok(String::new()) };
    let (from, to): (SocketAddr, SocketAddr) = (from.parse()?, to.parse()?);
    let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    Ok(format!("PROXY {family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port()))
}

/// What the proxy answers, and how it ends.
fn answer(proxy: &Proxy, listener: &str, via: Via, speaks: &Speaks) -> Result<Value> {
    let mut client = Client::connect(proxy.at(listener)?)?;
    client.send(proxy_header(via)?)?;
    let payload = match speaks {
        Speaks::Nothing => Vec::new(),
        Speaks::Junk => b"\x01\x02junk\r\n\r\n".to_vec(),
        Speaks::Http(text) => text.as_bytes().to_vec(),
        Speaks::Tls(name, protocols) => client_hello(*name, protocols),
    };
    client.send(payload)?;
    let (bytes, _) = client.end()?;
    Ok(json!(String::from_utf8_lossy(&bytes)))
}

/// One chain per row: its name and its match.
const CHAINS: &[(&str, &str)] = &[
    ("port", "destination_port: 8080"),
    (
        "port and prefix",
        "destination_port: 8080, prefix_ranges: [ { address_prefix: 10.1.0.0, prefix_len: 16 } ]",
    ),
    ("prefix", "prefix_ranges: [ { address_prefix: 10.1.0.0, prefix_len: 16 } ]"),
    ("long prefix", "prefix_ranges: [ { address_prefix: 10.1.2.0, prefix_len: 24 } ]"),
    (
        "prefix and name",
        "prefix_ranges: [ { address_prefix: 10.1.2.0, prefix_len: 24 } ], server_names: [ a.example.com ]",
    ),
    ("v6 prefix", "prefix_ranges: [ { address_prefix: \"2001:db8::\", prefix_len: 32 } ]"),
    ("wildcard name", "server_names: [ \"*.example.com\" ]"),
    ("longer wildcard", "server_names: [ \"*.b.example.com\", \"*.c.example.com\" ]"),
    ("exact name", "server_names: [ exact.b.example.com ]"),
    ("exact name and protocol", "server_names: [ exact.b.example.com ], application_protocols: [ h2 ]"),
    ("tls", "transport_protocol: tls"),
    ("tls and protocol", "transport_protocol: tls, application_protocols: [ h2, http/1.1 ]"),
    ("plain http", "transport_protocol: raw_buffer, application_protocols: [ http/1.1, http/1.0 ]"),
    (
        "direct source",
        "destination_port: 7000, direct_source_prefix_ranges: [ { address_prefix: 127.0.0.0, prefix_len: 8 } ]",
    ),
    (
        "another direct source",
        "destination_port: 7000, direct_source_prefix_ranges: [ { address_prefix: 192.0.2.0, prefix_len: 24 } ]",
    ),
    ("local", "destination_port: 7001, source_type: SAME_IP_OR_LOOPBACK"),
    ("external", "destination_port: 7001, source_type: EXTERNAL"),
    (
        "external prefix",
        "destination_port: 7001, source_type: EXTERNAL, source_prefix_ranges: [ { address_prefix: 192.0.2.0, prefix_len: 24 } ]",
    ),
    (
        "any type, longer prefix",
        "destination_port: 7001, source_prefix_ranges: [ { address_prefix: 192.0.2.128, prefix_len: 25 } ]",
    ),
    ("source port", "destination_port: 7002, source_ports: [ 1234, 1235 ]"),
    (
        "source prefix",
        "destination_port: 7002, source_prefix_ranges: [ { address_prefix: 192.0.2.0, prefix_len: 24 } ]",
    ),
    (
        "source prefix and port",
        "destination_port: 7002, source_prefix_ranges: [ { address_prefix: 192.0.2.0, prefix_len: 24 } ], source_ports: [ 1234 ]",
    ),
    ("port of names", "destination_port: 7003, server_names: [ only.example.org ]"),
    ("typed port", "destination_port: 7004, source_type: EXTERNAL"),
    ("ported", "destination_port: 7004, source_ports: [ 1234 ]"),
];

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// What is sent to the table above.
const CONNECTIONS: &[(&str, Via, Speaks)] = &[
    ("port", Some(("192.0.2.1:9", "10.9.0.1:8080")), Speaks::Junk),
    ("port and prefix", Some(("192.0.2.1:9", "10.1.0.1:8080")), Speaks::Junk),
    ("the port beats a longer prefix", Some(("192.0.2.1:9", "10.1.2.1:8080")), Speaks::Junk),
    ("prefix", Some(("192.0.2.1:9", "10.1.0.1:80")), Speaks::Junk),
    ("long prefix", Some(("192.0.2.1:9", "10.1.2.1:80")), Speaks::Junk),
    ("prefix and name", Some(("192.0.2.1:9", "10.1.2.1:80")), Speaks::Tls(Some("a.example.com"), &[])),
    ("prefix, another name", Some(("192.0.2.1:9", "10.1.2.1:80")), Speaks::Tls(Some("b.example.com"), &[])),
    ("v6 prefix", Some(("[2001:db8::9]:9", "[2001:db8::1]:80")), Speaks::Junk),
    ("another v6", Some(("[2001:db9::9]:9", "[2001:db9::1]:80")), Speaks::Junk),
    ("wildcard", None, Speaks::Tls(Some("x.example.com"), &[])),
    ("wildcard, upper case", None, Speaks::Tls(Some("X.Example.COM"), &[])),
    ("the wildcard's own name", None, Speaks::Tls(Some("example.com"), &[])),
    ("two labels under a wildcard", None, Speaks::Tls(Some("y.x.example.com"), &[])),
    ("longer wildcard", None, Speaks::Tls(Some("x.b.example.com"), &[])),
    ("its sibling", None, Speaks::Tls(Some("x.c.example.com"), &["h2"])),
    ("exact", None, Speaks::Tls(Some("exact.b.example.com"), &[])),
    ("exact and protocol", None, Speaks::Tls(Some("exact.b.example.com"), &["h2"])),
    ("exact and another protocol", None, Speaks::Tls(Some("exact.b.example.com"), &["foo"])),
    ("no such name", None, Speaks::Tls(Some("other.org"), &[])),
    ("no such name, a protocol", None, Speaks::Tls(Some("other.org"), &["foo", "http/1.1"])),
    ("no name", None, Speaks::Tls(None, &[])),
    ("plain http", None, Speaks::Http(GET)),
    ("plain http 1.0", None, Speaks::Http("GET / HTTP/1.0\r\n\r\n")),
    ("plain http 2", None, Speaks::Http("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
    ("plain junk", None, Speaks::Junk),
    ("direct source", Some(("192.0.2.1:9", "10.9.0.1:7000")), Speaks::Junk),
    ("external", Some(("198.51.100.1:9", "10.9.0.1:7001")), Speaks::Junk),
    ("same ip", Some(("10.9.0.1:9", "10.9.0.1:7001")), Speaks::Junk),
    ("loopback", Some(("127.0.0.5:9", "10.9.0.1:7001")), Speaks::Junk),
    ("external prefix", Some(("192.0.2.1:9", "10.9.0.1:7001")), Speaks::Junk),
    ("the type beats a longer prefix", Some(("192.0.2.200:9", "10.9.0.1:7001")), Speaks::Junk),
    ("source port", Some(("198.51.100.1:1235", "10.9.0.1:7002")), Speaks::Junk),
    ("no source port", Some(("198.51.100.1:99", "10.9.0.1:7002")), Speaks::Junk),
    ("source prefix", Some(("192.0.2.1:99", "10.9.0.1:7002")), Speaks::Junk),
    ("source prefix and port", Some(("192.0.2.1:1234", "10.9.0.1:7002")), Speaks::Junk),
    ("the prefix has not this port", Some(("192.0.2.1:1235", "10.9.0.1:7002")), Speaks::Junk),
    (
        "no way back from the port",
        Some(("192.0.2.1:1", "10.9.0.1:7003")),
        Speaks::Tls(Some("x.example.com"), &[]),
    ),
    ("the port's name", Some(("192.0.2.1:1", "10.9.0.1:7003")), Speaks::Tls(Some("only.example.org"), &[])),
    ("the type beats the source port", Some(("192.0.2.1:1234", "10.9.0.1:7004")), Speaks::Junk),
    ("local, by the source port", Some(("10.9.0.1:1234", "10.9.0.1:7004")), Speaks::Junk),
];

fn match_listener(default: &str) -> String {
    let chains: Vec<String> = CHAINS.iter().map(|(name, matching)| chain(matching, &[says(name)])).collect();
    let filters =
        [proxy_protocol("allow_requests_without_proxy_protocol: true"), tls_inspector(), http_inspector()];
    format!("listener_filters: [ {} ], filter_chains: [ {} ]{default}", filters.join(", "), chains.join(", "))
}

#[test]
fn filter_chain_match() -> Result<()> {
    lab(|lab| {
        let default = format!(", default_filter_chain: {}", chain("", &[says("default")]));
        let config = Bootstrap::new()
            .listener("match", &match_listener(&default))
            .listener("no default", &match_listener(""));
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for (name, via, speaks) in CONNECTIONS {
            for listener in ["match", "no default"] {
                pair.same(&mut cases, format_args!("chain match, {listener}: {name}"), |proxy| {
                    let chosen = answer(proxy, listener, *via, speaks)?;
                    ensure!(listener == "no default" || chosen != "", "no answer");
                    Ok(chosen)
                });
            }
        }
        pair.same_stats(
            &mut cases,
            "chain match: stats",
            &["listener.127.0.0.1_0.no_filter_chain_match"],
            |proxy| {
                let via = Some(("192.0.2.1:1", "10.9.0.1:7003"));
                answer(proxy, "no default", via, &Speaks::Junk).map(drop)
            },
        );
        cases.finish()
    })
}

#[test]
fn hand_off() -> Result<()> {
    lab(|lab| {
        let front = |fields: &str| {
            let own = chain("", &[says("itself")]);
            format!("listener_filters: [ {} ], filter_chains: [ {own} ], {fields}", proxy_protocol(""))
        };
        let unbound =
            |text: &str| format!("bind_to_port: false, filter_chains: [ {} ]", chain("", &[says(text)]));
        let config = Bootstrap::new()
            .listener("front", &front("use_original_dst: true"))
            .listener("no hand-off", &front("use_original_dst: false"))
            .listener_at("exact", &address("10.7.7.7", 80), &unbound("exact"))
            .listener_at("wildcard", &address("0.0.0.0", 80), &unbound("wildcard"))
            .listener_at("wildcard6", &address("::", 80), &unbound("wildcard6"))
            .listener_at("exact6", &address("2001:db8::7", 80), &unbound("exact6"))
            .listener_at("exact alone", &address("10.7.7.7", 82), &unbound("exact alone"));
        let pair = Pair::start(lab, &config.yaml())?;
        let destinations = [
            "10.7.7.7:80",
            "10.7.7.8:80",
            "10.7.7.7:81",
            "10.7.7.7:82",
            "10.7.7.8:82",
            "[2001:db8::7]:80",
            "[2001:db8::8]:80",
            "[2001:db8::7]:82",
        ];
        let mut cases = Cases::new();
        for listener in ["front", "no hand-off"] {
            for to in destinations {
                pair.same(&mut cases, format_args!("hand-off from {listener}, to {to}"), |proxy| {
                    let from = if to.starts_with('[') { "[2001:db8::1]:9" } else { "192.0.2.1:9" };
                    let chosen = answer(proxy, listener, Some((from, to)), &Speaks::Nothing)?;
                    ensure!(chosen != "" && (listener == "front" || chosen == "itself"), "{chosen}");
                    Ok(chosen)
                });
            }
        }
        cases.finish()
    })
}

#[test]
fn addresses_and_socket_options() -> Result<()> {
    lab(|lab| {
        let upstream = Upstream::echo("up")?;
        let relay = chain("", &[tcp_proxy("up", "cluster: up")]);
        let more = format!("additional_addresses: [ {{ address: {} }} ], ", address("127.0.0.2", 0));
        let config = Bootstrap::new()
            .listener("two", &format!("{more} filter_chains: [ {relay} ]"))
            .listener("one", &format!("enable_reuse_port: false, tcp_backlog_size: 77, filter_chains: [ {relay} ]"))
            .listener(
                "options",
                &format!("freebind: true, tcp_fast_open_queue_length: 5, tcp_keepalive: {{ keepalive_time: 9 }}, filter_chains: [ {relay} ]"),
            )
            .listener_at("dual", "{ socket_address: { address: \"::\", port_value: 0, ipv4_compat: true } }", &format!("filter_chains: [ {relay} ]"))
            .static_cluster("up", &[upstream.address], "");
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "additional_addresses", |proxy| {
            let all = proxy.all_at("two")?;
            let answers: Vec<String> =
                all.iter().map(|at| Client::connect(*at)?.ask("hello")).collect::<Result<_>>()?;
            ensure!(all.len() == 2 && all[1].ip().to_string() == "127.0.0.2", "{all:?}");
            Ok(json!(answers))
        });
        pair.same(&mut cases, "ipv4_compat", |proxy| {
            let port = proxy.at("dual")?.port();
            let answers = ["127.0.0.1", "::1"].map(|ip| -> Result<String> {
                Client::connect(SocketAddr::new(ip.parse()?, port))?.ask("hello")
            });
            Ok(json!(answers.into_iter().collect::<Result<Vec<_>>>()?))
        });
        pair.same(&mut cases, "the backlog", |proxy| {
            let port = format!(":{}", proxy.at("one")?.port());
            let out = lab.program("ss", &Place::default())?.args(["-ltnH", "sport", "=", &port]).run()?;
            let backlog = out.stdout.split_whitespace().nth(2).context("no line")?.to_owned();
            ensure!(backlog == "77", "{out:?}");
            Ok(json!(backlog))
        });
        pair.same(&mut cases, "keepalive, as the kernel shows it", |proxy| {
            let mut client = Client::connect(proxy.at("options")?)?;
            client.ask("hello")?;
            let port = format!(":{}", proxy.at("options")?.port());
            let args = ["-tnoH", "state", "established", "sport", "=", &port];
            let out = lab.program("ss", &Place::default())?.args(args).run()?;
            Ok(json!(out.stdout.contains("timer:(keepalive,")))
        });
        cases.finish()
    })
}

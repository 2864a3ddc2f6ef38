//! `examples/`: what each post says happens, happens.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_tests::bootstrap::DIR;
use shunt_tests::example::Example;
use shunt_tests::hello::client_hello;
use shunt_tests::ports::{free, nobody};
use shunt_tests::{Cases, Client, End, Kind, Lab, Mesh, Pair, Place, Proxy, Upstream, lab, mesh};

/// Envoy's stock binary has neither Istio's filters nor the hidden field's name, and takes no `1h`.
const NOT_FOR_ENVOY: [&str; 2] = ["sidecar-virtual_outbound.yaml", "tcp_proxy-general.yaml"];

/// Refused by shunt, by the name of what is not there.
const REFUSED: [&str; 1] = ["transport_socket-alts.yaml"];

/// Runs the post's listener on port 31400 of both proxies, with backends in place of ports.
fn gateway(lab: &Lab, name: &str, backends: &[(u16, &Upstream)]) -> Result<Pair> {
    Pair::start(lab, place(Example::load(name)?, backends)?.free(31_400)?.yaml())
}

fn place(example: Example, backends: &[(u16, &Upstream)]) -> Result<Example> {
    let mut example = example.free(15_000)?;
    for (port, upstream) in backends {
        example = example.backend(*port, upstream.address)?;
    }
    Ok(example)
}

const GATEWAY: &str = "0.0.0.0_31400";

/// Who answers a connection.
fn who(proxy: &Proxy, listener: &str) -> Result<String> {
    let answer = Client::connect(proxy.at(listener)?)?.ask("hello")?;
    Ok(answer.trim_end_matches(" hello").to_owned())
}

#[test]
fn every_example_is_valid_and_has_a_test() -> Result<()> {
    lab(|lab| {
        let tests = [
            include_str!("examples.rs"),
            include_str!("dynamic_examples.rs"),
            include_str!("http_examples.rs"),
            include_str!("interception.rs"),
            include_str!("transport_examples.rs"),
        ]
        .concat();
        let workload = Mesh::new(lab)?.workload("any", mesh::GATEWAY)?;
        let mut cases = Cases::new();
        for name in Example::names()? {
            cases.case(&name, || {
                let quoted = format!("\"{name}\"");
                // Once is the list of those that Envoy refuses.
                let lists = [&NOT_FOR_ENVOY[..], &REFUSED].concat();
                let listed = usize::from(lists.contains(&name.as_str()));
                ensure!(tests.matches(&quoted).count() > listed, "no test runs it");
                let example = workload.example(&name)?;
                let valid =
                    Kind::Envoy.output(lab, example.yaml(), &["--mode", "validate", "-l", "error"])?;
                ensure!(valid.status.success() != NOT_FOR_ENVOY.contains(&name.as_str()), "Envoy: {valid:?}");
                let file = lab.dir().join(&name);
                std::fs::write(&file, example.yaml().replace(DIR, &lab.dir().display().to_string()))?;
                let check = lab.shunt(&Place::default())?.args(["check", "-c"]).arg(&file).output()?;
                ensure!(check.status.success() != REFUSED.contains(&name.as_str()), "shunt: {check:?}");
                Ok(())
            });
        }
        cases.finish()
    })
}

#[test]
fn cluster() -> Result<()> {
    lab(|lab| {
        let (one, two) = (Upstream::echo("one")?, Upstream::echo("two")?);
        let pair = gateway(lab, "tcp_proxy-cluster.yaml", &[(9_000, &one), (9_100, &two)])?;
        for proxy in pair.both() {
            for _ in 0..10 {
                ensure!(who(proxy, GATEWAY)? == "two", "{}", proxy.kind.name());
            }
        }
        ensure!(one.accepted() == 0, "v1 was connected to");
        Ok(())
    })
}

#[test]
fn weighted_clusters() -> Result<()> {
    lab(|lab| {
        let (one, two) = (Upstream::echo("one")?, Upstream::echo("two")?);
        let pair = gateway(lab, "tcp_proxy-weighted_clusters.yaml", &[(9_000, &one), (9_100, &two)])?;
        for proxy in pair.both() {
            let mut ones = 0;
            for _ in 0..400 {
                ones += u32::from(who(proxy, GATEWAY)? == "one");
            }
            // Five standard deviations of 400 fair choices.
            ensure!((150..=250).contains(&ones), "{}: {ones} of 400", proxy.kind.name());
        }
        Ok(())
    })
}

#[test]
fn metadata_match() -> Result<()> {
    lab(|lab| {
        let (hema, taobao) = (Upstream::echo("hema")?, Upstream::echo("taobao")?);
        let backends = [(9_000, &hema), (9_100, &taobao)];
        let mut cases = Cases::new();
        for name in ["tcp_proxy-metadata_match.yaml", "tcp_proxy-weighted_clusters-metadata_match.yaml"] {
            for (asked, expected) in [("mark", "taobao"), ("hema", "hema"), ("taobao", "taobao")] {
                cases.case(format_args!("{name}, env {asked}"), || {
                    let example = place(Example::load(name)?, &backends)?.free(31_400)?;
                    let example = example.with("env: mark", &format!("env: {asked}"))?;
                    let pair = Pair::start(lab, example.yaml())?;
                    for proxy in pair.both() {
                        for _ in 0..6 {
                            let answered = who(proxy, GATEWAY)?;
                            ensure!(answered == expected, "{}: {answered}", proxy.kind.name());
                        }
                    }
                    Ok(())
                });
            }
        }
        cases.finish()
    })
}

/// The fields of a line in which quoted ones may have spaces.
fn fields(line: &str) -> Vec<String> {
    let quoted = line.split('"').enumerate();
    let parts = quoted.flat_map(|(n, part)| {
        if n % 2 == 1 { vec![part.to_owned()] } else { part.split_whitespace().map(str::to_owned).collect() }
    });
    parts.collect()
}

/// What two runs have in common of a line: numbers and ports of the run's own are named instead.
fn comparable(line: &str, client: &Client, proxy: &Proxy, listener: &str) -> Result<Vec<String>> {
    let (from, to) = (client.local()?.to_string(), proxy.at(listener)?.to_string());
    let upstream_local = |n: usize| n == 17;
    let named = fields(line).into_iter().enumerate().map(|(n, field)| match field {
        field if field.starts_with('[') => "[time]".to_owned(),
        field if field == from => "client".to_owned(),
        field if field == to => "listener".to_owned(),
        field if upstream_local(n) && field != "-" => "proxy".to_owned(),
        field => field,
    });
    let mut all: Vec<String> = named.collect();
    // %DURATION%
    if let Some(duration) = all.get_mut(9) {
        ensure!(duration.parse::<u64>().is_ok(), "no duration: {duration:?} in {line}");
        *duration = "duration".to_owned();
    }
    Ok(all)
}

#[test]
fn access_log() -> Result<()> {
    lab(|lab| {
        let one = Upstream::echo("one")?;
        let example = place(Example::load("tcp_proxy-access_log.yaml")?, &[(9_000, &one)])?.free(31_400)?;
        let pair = Pair::start(lab, example.with("/dev/stdout", "@DIR@/access.log")?.yaml())?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "the access log of post 002, 3.4", |proxy| {
            let mut client = Client::connect(proxy.at(GATEWAY)?)?;
            client.ask("hello")?;
            client.half_close()?;
            ensure!(client.end()?.1 == End::Eof, "no end");
            let line = proxy.lines("access.log", 1)?.remove(0);
            let seen = comparable(&line, &client, proxy, GATEWAY)?;
            ensure!(seen[7..9] == ["6", "10"] && seen[3] == "-", "{line}");
            ensure!(seen.contains(&one.address.to_string()), "{line}");
            Ok(json!(seen))
        });
        cases.finish()
    })
}

#[test]
fn hash_policy() -> Result<()> {
    lab(|lab| {
        let pods = [Upstream::echo("a")?, Upstream::echo("b")?, Upstream::echo("c")?];
        let backends = [(9_000, &pods[0]), (9_001, &pods[1]), (9_002, &pods[2])];
        let pair = gateway(lab, "tcp_proxy-hash_policy.yaml", &backends)?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "ring hash: the same source meets the same endpoint", |proxy| {
            let mut met = Vec::new();
            for n in 10..40 {
                let ask = || {
                    let source = Ipv4Addr::new(127, 0, 1, n);
                    Client::connect_from(source, 0, proxy.at(GATEWAY)?)?.ask("hello")
                };
                let first = ask()?;
                ensure!((0..3).all(|_| ask().is_ok_and(|again| again == first)), "127.0.1.{n} moved");
                met.push(first);
            }
            ensure!(met.iter().any(|name| *name != met[0]), "one endpoint has all");
            Ok(json!(met))
        });
        cases.finish()
    })
}

#[test]
fn general() -> Result<()> {
    lab(|lab| {
        let two = Upstream::echo("two")?;
        let written = || place(Example::load("tcp_proxy-general.yaml")?, &[(9_100, &two)])?.free(31_400);
        let mut cases = Cases::new();
        cases.case("as written", || {
            let proxy = Proxy::start(lab, Kind::Shunt, written()?.yaml())?;
            ensure!(who(&proxy, GATEWAY)? == "two", "no answer");
            Ok(())
        });
        // Shortened, so that the test need not wait for hours.
        let example = written()?.with("1h", "1s")?.with("10s", "2.5s")?;
        let pair = Pair::start(lab, example.yaml())?;
        for (name, talks, expected) in
            [("idle", false, 900..2_200), ("the longest duration", true, 2_200..3_900)]
        {
            pair.same(&mut cases, format_args!("tcp_proxy closes after: {name}"), |proxy| {
                let mut client = Client::connect(proxy.at(GATEWAY)?)?;
                client.ask("hello")?;
                let start = Instant::now();
                while talks && start.elapsed() < Duration::from_millis(2_200) {
                    client.ask("hello")?;
                    std::thread::sleep(Duration::from_millis(100));
                }
                let (_, end) = client.end()?;
                let after = start.elapsed().as_millis();
                ensure!(expected.contains(&after), "after {after} ms");
                Ok(json!(end.to_string()))
            });
        }
        let nobody = written()?.with("1h", "1s")?.port(two.address.port(), nobody()?.port())?;
        let pair = Pair::start(lab, nobody.yaml())?;
        let prefix = "cluster.outbound|9000|v2|tcp-echo.istio.svc.cluster.local.upstream_cx";
        let names = ["connect_fail", "connect_attempts_exceeded", "total"].map(|n| format!("{prefix}_{n}"));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        pair.same_stats(&mut cases, "one attempt to connect", &names, |proxy| {
            Client::connect(proxy.at(GATEWAY)?)?.end().map(drop)
        });
        cases.finish()
    })
}

/// The port at which the posts' tunnels end.
const TUNNEL: u16 = 10_001;

#[test]
fn tunnels() -> Result<()> {
    lab(|lab| {
        let app = Upstream::echo("app")?;
        let mut cases = Cases::new();
        let hello = [client_hello(Some("tcp-echo.example.com"), &[]), b"\n".to_vec()].concat();
        for (name, said) in [
            ("tcp_proxy-tunneling-http1_connect.yaml", &hello[..]),
            ("tcp_proxy-tunneling-http2_connect.yaml", b"hello\n"),
            ("tcp_proxy-tunneling-http2_post.yaml", b"hello\n"),
        ] {
            for kind in Kind::BOTH {
                cases.case(format_args!("{name}, {}", kind.name()), || {
                    let example = place(Example::load(name)?, &[(9_000, &app)])?.free(31_400)?;
                    let example = example.port(TUNNEL, free()?.port())?;
                    let proxy = Proxy::start(lab, kind, example.yaml())?;
                    let seen = app.mark();
                    let mut client = Client::connect(proxy.at(GATEWAY)?)?;
                    client.send(said)?;
                    let echo = client.line()?;
                    ensure!(echo.starts_with("app "), "{echo}");
                    drop(client);
                    ensure!(app.ended(seen)?.head == said, "other bytes");
                    proxy.expect_stat("http.ingress_http.downstream_rq_2xx", 1)?;
                    proxy.expect_stat("tcp.tcp_stats.downstream_cx_total", 1)
                });
            }
        }
        cases.finish()
    })
}

#[test]
fn sidecar_clusters() -> Result<()> {
    lab(|lab| {
        let app = Upstream::echo("app")?;
        let start = |name: &str, backends: &[(u16, &Upstream)]| {
            let example = place(Example::load(name)?, backends)?.free(15_080)?;
            Pair::start(lab, example.with("/dev/stdout", "@DIR@/access.log")?.yaml())
        };
        let mut cases = Cases::new();
        let hole = start("sidecar-blackhole.yaml", &[])?;
        hole.same(&mut cases, "BlackHoleCluster closes with UH", |proxy| {
            let mut client = Client::connect(proxy.at("blackhole")?)?;
            let end = client.end()?.1;
            let line = proxy.lines("access.log", 1)?.remove(0);
            let seen = fields(&line);
            ensure!(seen[3] == "UH", "{line}");
            // Without the time and %DURATION%.
            let stable = [&seen[1..8], &seen[9..]].concat();
            Ok(json!([json!(end.to_string()), without_ports(&json!(stable))]))
        });
        let inbound = start("sidecar-inbound.yaml", &[(9_080, &app)])?;
        inbound.same(&mut cases, "the inbound cluster reaches the application", |proxy| {
            let answer = who(proxy, "inbound_0.0.0.0_80")?;
            ensure!(answer == "app", "{answer}");
            Ok(json!(answer))
        });
        cases.finish()
    })
}

/// Addresses of the run's own, without their ports.
fn without_ports(value: &Value) -> Value {
    let short = |text: &str| match text.rsplit_once(':') {
        Some((ip, port)) if port.parse::<u16>().is_ok() => ip.to_owned(),
        _ => text.to_owned(),
    };
    match value {
        Value::String(text) => short(text).into(),
        Value::Array(all) => all.iter().map(without_ports).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.clone(),
    }
}

#[test]
fn eastwest_gateway() -> Result<()> {
    lab(|lab| {
        let hello = Upstream::echo("helloworld")?;
        let example = place(Example::load("eastwest-15443.yaml")?, &[(5_000, &hello)])?.free(15_443)?;
        let pair = Pair::start(lab, example.yaml())?;
        let mut cases = Cases::new();
        let name = "outbound_.5000_._.helloworld.sample.svc.cluster.local";
        let offers: [(&str, Option<&str>, &[&str], bool); 5] = [
            ("the service", Some(name), &["istio"], true),
            ("the second protocol", Some(name), &["h2", "istio-h2"], true),
            ("another service", Some("outbound_.80_._.other.local"), &["istio"], false),
            ("no name", None, &["istio"], false),
            ("no protocol of Istio's", Some(name), &["h2"], false),
        ];
        for (what, server_name, protocols, served) in offers {
            pair.same(&mut cases, format_args!("15443: {what}"), |proxy| {
                let mut client = Client::connect(proxy.at("0.0.0.0_15443")?)?;
                client.send(client_hello(server_name, protocols))?;
                // A ClientHello has the byte of a line's end.
                let rest = if served { client.line()? } else { client.rest()? };
                ensure!(rest.starts_with("helloworld ") == served, "{rest}");
                Ok(json!(rest))
            });
        }
        cases.finish()
    })
}

//! Peers that must be refused over TLS: each is counted under the right stat, and nothing of it reaches the backend.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rcgen::ExtendedKeyUsagePurpose;
use serde_json::{Value, json};
use shunt_tests::bootstrap::{chain, file_log, tcp_proxy, tls_inspector};
use shunt_tests::hello::client_hello;
use shunt_tests::pki::{Identity, Validity};
use shunt_tests::tls_context::{file, tls_chain};
use shunt_tests::{
    Bootstrap, Cases, Client, End, Kind, Leaf, Pair, Place, Proxy, TlsClient, TlsContext, TlsOptions,
    TlsServer, Upstream, lab, until,
};

use crate::tls_common::{CLIENT, Mesh, SERVER, secure, secure_with};

/// A way in that must stay shut.
struct Refusal<'a> {
    id: &'a str,
    listener: &'a str,
    /// The stat of `ssl.` that counts it.
    stat: &'a str,
}

impl Refusal<'_> {
    /// Both proxies refuse: the same stats count it, and the backend does not hear of it.
    fn check(
        &self,
        pair: &Pair,
        cases: &mut Cases,
        backend: &Upstream,
        attempt: impl Fn(&Proxy) -> Result<()>,
    ) {
        let prefix = format!("listener.{}.ssl", self.listener);
        let all = format!("{prefix}.*");
        pair.same_stats(cases, format_args!("tls, refused: {}", self.id), &[&all], |proxy| {
            let stat = format!("{prefix}.{}", self.stat);
            let (reached, counted) = (Reached::now(backend)?, proxy.stat(&stat)?);
            attempt(proxy)?;
            proxy.expect_stat(&stat, counted + 1)?;
            proxy.expect_stat(&format!("listener.{}.downstream_cx_active", self.listener), 0)?;
            reached.nothing_since(backend, proxy)
        });
    }
}

/// What had reached a backend.
struct Reached {
    accepted: usize,
    ended: usize,
}

impl Reached {
    /// Those of attempts before have ended.
    fn now(backend: &Upstream) -> Result<Self> {
        until("an end of all connections", Duration::from_secs(5), || {
            let now = Self { accepted: backend.accepted(), ended: backend.mark() };
            Ok((now.accepted == now.ended).then_some(now))
        })
    }

    /// No byte has come since. Envoy connects before the handshake is done; shunt does not.
    fn nothing_since(&self, backend: &Upstream, proxy: &Proxy) -> Result<()> {
        if proxy.kind == Kind::Shunt {
            ensure!(backend.accepted() == self.accepted, "it has connected to the backend");
        }
        let bytes: u64 = backend.seen().iter().skip(self.ended).map(|seen| seen.bytes).sum();
        ensure!(bytes == 0, "{bytes} bytes have reached the backend");
        Ok(())
    }
}

/// Contexts by listener, and who is to be refused there.
struct Door<'a> {
    listener: &'a str,
    context: TlsContext,
    bad: Vec<(&'a str, &'a str, Option<Identity>)>,
}

fn doors<'a>(mesh: &Mesh<'_>) -> Result<Vec<Door<'a>>> {
    let Mesh { pki, root, middle, .. } = mesh;
    let other = pki.root("other")?;
    let leaf = || Leaf::spiffe(CLIENT).dns("client.example.com");
    let issue = |name: &str, leaf: &Leaf| middle.issue(name, leaf).map(Some);
    let revoked = middle.issue("revoked", &leaf())?;
    let lists = [root.crl("root", &[])?, middle.crl("middle", &[&revoked])?];
    let lists = pki.bundle("lists", &[&lists[0], &lists[1]])?;
    let server_only = leaf().only_for(ExtendedKeyUsagePurpose::ServerAuth);
    Ok(vec![
        Door {
            listener: "chain",
            context: mesh.mutual(),
            bad: vec![
                ("no certificate", "fail_verify_no_cert", None),
                ("of another authority", "fail_verify_error", Some(other.issue("stranger", &leaf())?)),
                ("expired", "fail_verify_error", issue("expired", &leaf().valid(Validity::Past))?),
                ("not yet valid", "fail_verify_error", issue("future", &leaf().valid(Validity::Future))?),
                ("for servers only", "fail_verify_error", issue("server-only", &server_only)?),
            ],
        },
        Door {
            listener: "names",
            context: mesh.mutual().uri(CLIENT).san("DNS", "exact: client.example.com"),
            bad: vec![
                ("a wrong name", "fail_verify_san", issue("wrong", &Leaf::spiffe(SERVER))?),
                ("no name at all", "fail_verify_san", issue("nameless", &Leaf::new())?),
                (
                    "the name is the beginning of its own",
                    "fail_verify_san",
                    issue("longer", &Leaf::spiffe(&format!("{CLIENT}2")))?,
                ),
                (
                    "the name is the end of its own",
                    "fail_verify_san",
                    issue("prefixed", &Leaf::new().dns("evil-client.example.com"))?,
                ),
                (
                    "the name as one of another kind",
                    "fail_verify_san",
                    issue("kind", &Leaf::new().dns("spiffe.td").email("client.example.com"))?,
                ),
                (
                    "a NUL behind the name",
                    "fail_verify_san",
                    issue("nul", &Leaf::new().dns("client.example.com\0.evil.com"))?,
                ),
                (
                    "a NUL behind the URI",
                    "fail_verify_san",
                    issue("nul-uri", &Leaf::spiffe(&format!("{CLIENT}\0x")))?,
                ),
                (
                    "the good name of another authority",
                    "fail_verify_error",
                    Some(other.issue("impostor", &leaf())?),
                ),
            ],
        },
        Door {
            listener: "lists",
            context: mesh.mutual().validate(&format!("crl: {}", file(&lists))),
            bad: vec![("revoked", "fail_verify_error", Some(revoked))],
        },
        Door {
            listener: "hash",
            context: mesh
                .mutual()
                .validate(&format!("verify_certificate_hash: [ \"{}\" ]", mesh.client.hash())),
            bad: vec![("another hash", "fail_verify_cert_hash", issue("hash", &leaf())?)],
        },
        Door {
            listener: "spki",
            context: mesh
                .mutual()
                .validate(&format!("verify_certificate_spki: [ \"{}\" ]", mesh.client.spki())),
            bad: vec![("another key", "fail_verify_cert_hash", issue("spki", &leaf())?)],
        },
    ])
}

#[test]
fn clients_that_must_be_refused() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let backend = Upstream::echo("up")?;
        let doors = doors(&mesh)?;
        let mut config = Bootstrap::new().static_cluster("up", &[backend.address], "");
        for door in &doors {
            config = secure(config, door.listener, &door.context, "up");
        }
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for Door { listener, bad, .. } in &doors {
            for (id, stat, identity) in bad {
                for (version, client) in
                    [("1.2", TlsClient::new().tls12()), ("1.3", TlsClient::new().tls13())]
                {
                    let client = identity.iter().fold(client, TlsClient::identity);
                    let id = format!("{id}, TLS {version}");
                    Refusal { id: &id, listener, stat }.check(&pair, &mut cases, &backend, |proxy| {
                        client.refused(proxy.at(listener)?).map(drop)
                    });
                }
            }
            // The door is one: who may come in does.
            let good = TlsClient::new().identity(&mesh.client);
            let all = format!("listener.{listener}.ssl.*");
            pair.same_stats(&mut cases, format_args!("tls, let in: {listener}"), &[&all], |proxy| {
                let mut stream = good.connect(proxy.at(listener)?)?;
                ensure!(stream.ask("hello")? == "up hello", "another answer");
                Ok(())
            });
        }
        cases.finish()
    })
}

/// Servers that must be refused, by the cluster they are in.
fn servers(mesh: &Mesh<'_>) -> Result<Vec<(&'static str, &'static str, TlsServer, TlsContext)>> {
    let other = mesh.pki.root("other")?;
    let leaf = || Leaf::spiffe(SERVER).dns("a.example.com");
    let trusting = || TlsContext::new().trust(mesh.root.file()).field("sni: a.example.com");
    let named = || trusting().uri(SERVER);
    let revoked = mesh.middle.issue("revoked-server", &leaf())?;
    let lists = [mesh.root.crl("root", &[])?, mesh.middle.crl("middle", &[&revoked])?];
    let lists = mesh.pki.bundle("lists", &[&lists[0], &lists[1]])?;
    let issue = |name: &str, leaf: &Leaf| mesh.middle.issue(name, leaf);
    let mut all = Vec::new();
    let mut add = |id: &'static str, stat: &'static str, identity: &Identity, context: TlsContext| {
        TlsServer::echo("tls", &TlsOptions::new(identity)).map(|server| all.push((id, stat, server, context)))
    };
    add("wrong name", "fail_verify_san", &issue("w", &Leaf::spiffe(CLIENT))?, named())?;
    add("longer name", "fail_verify_san", &issue("l", &Leaf::spiffe(&format!("{SERVER}2")))?, named())?;
    add("NUL in a name", "fail_verify_san", &issue("n", &Leaf::spiffe(&format!("{SERVER}\0")))?, named())?;
    add("another authority", "fail_verify_error", &other.issue("o", &leaf())?, named())?;
    add("expired", "fail_verify_error", &issue("e", &leaf().valid(Validity::Past))?, named())?;
    add("not yet valid", "fail_verify_error", &issue("f", &leaf().valid(Validity::Future))?, named())?;
    let clients_only = leaf().only_for(ExtendedKeyUsagePurpose::ClientAuth);
    add("for clients only", "fail_verify_error", &issue("c", &clients_only)?, named())?;
    add("revoked", "fail_verify_error", &revoked, trusting().validate(&format!("crl: {}", file(&lists))))?;
    let pinned = trusting().validate(&format!("verify_certificate_hash: [ \"{}\" ]", mesh.server.hash()));
    add("another hash", "fail_verify_cert_hash", &issue("h", &leaf())?, pinned)?;
    let own_name = trusting().field("auto_sni_san_validation: true");
    add(
        "not the name that was said",
        "fail_verify_san",
        &issue("s", &Leaf::new().dns("b.example.com"))?,
        own_name,
    )?;
    Ok(all)
}

#[test]
fn servers_that_must_be_refused() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let servers = servers(&mesh)?;
        let good = TlsServer::echo("tls", &TlsOptions::new(&mesh.server))?;
        let context = TlsContext::new().trust(mesh.root.file()).uri(SERVER).field("sni: a.example.com");
        let mut config = Bootstrap::new();
        let all = servers.iter().map(|(id, _, server, context)| (*id, server, context));
        for (id, server, context) in all.chain([("good", &good, &context)]) {
            let log = file_log("access.log", "%RESPONSE_FLAGS% %UPSTREAM_TRANSPORT_FAILURE_REASON%");
            let fields = format!("cluster: {id:?}, max_connect_attempts: 1, access_log: [ {log} ]");
            let chain = chain("", &[tcp_proxy(id, &fields)]);
            config = config
                .listener(id, &format!("stat_prefix: {id:?}, filter_chains: [ {chain} ]"))
                .static_cluster(id, &[server.address], &context.cluster());
        }
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for (id, stat, server, _) in &servers {
            let names = [format!("cluster.{id}.ssl.*"), format!("cluster.{id}.upstream_cx_connect_fail")];
            let names = [names[0].as_str(), names[1].as_str()];
            pair.same_stats(&mut cases, format_args!("tls, refused server: {id}"), &names, |proxy| {
                let (mark, lines) = (server.mark(), proxy.lines("access.log", 0)?.len());
                let mut client = Client::connect(proxy.at(id)?)?;
                // The refusal may come before it is sent.
                let _ = client.send("hello\n");
                let (came, end) = client.end()?;
                ensure!(came.is_empty() && end != End::Open, "{came:?} {end}");
                proxy.expect_stat(&format!("cluster.{id}.ssl.{stat}"), 1)?;
                let seen = server.ended(mark)?;
                ensure!(seen.bytes == 0, "{seen:?}");
                let log = proxy.lines("access.log", lines + 1)?;
                let line = log.last().map_or("", String::as_str);
                ensure!(line.starts_with("UF") && line.split(' ').nth(1) != Some("-"), "{line}");
                Ok(())
            });
        }
        pair.same_stats(&mut cases, "tls, good server", &["cluster.good.ssl.*"], |proxy| {
            let answer = Client::connect(proxy.at("good")?)?.ask("hello")?;
            ensure!(answer == "tls hello", "{answer}");
            Ok(())
        });
        cases.finish()
    })
}

/// `max_verify_depth` from 0 to 3, each with chains of 0 to 3 intermediates, in both directions.
#[test]
fn a_chain_may_be_as_long_as_it_may() -> Result<()> {
    const LONGEST: usize = 3;
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let backend = Upstream::echo("up")?;
        let mut authority = mesh.root;
        let mut identities = Vec::new();
        for n in 0..=LONGEST {
            let leaf = Leaf::spiffe(CLIENT).dns("a.example.com");
            identities.push(authority.issue(&format!("leaf-{n}"), &leaf)?);
            authority = authority.intermediate(&format!("authority-{n}"))?;
        }
        let root = mesh.pki.dir().join("root.pem");
        let options = |identity| TlsServer::echo("tls", &TlsOptions::new(identity));
        let servers = identities.iter().map(options).collect::<Result<Vec<_>>>()?;
        let mut config = Bootstrap::new().static_cluster("up", &[backend.address], "");
        for depth in 0..=LONGEST {
            let context = || TlsContext::new().trust(&root).validate(&format!("max_verify_depth: {depth}"));
            let down = context().certificate(&mesh.server).require_client();
            config = secure(config, &format!("down-{depth}"), &down, "up");
            for (n, server) in servers.iter().enumerate() {
                let name = format!("up-{depth}-{n}");
                config =
                    config.relay(&name, &name).static_cluster(&name, &[server.address], &context().cluster());
            }
        }
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for depth in 0..=LONGEST {
            for (n, identity) in identities.iter().enumerate() {
                let id = format!("tls, a client's chain: depth {depth}, {n} intermediates");
                pair.same(&mut cases, &id, |proxy| {
                    let client = TlsClient::new().identity(identity);
                    let mut stream = client.connect(proxy.at(&format!("down-{depth}"))?)?;
                    Ok(json!(stream.ask("hello").is_ok()))
                });
            }
        }
        pair.same(&mut cases, "tls, a server's chain and max_verify_depth", |proxy| {
            let mut all = Vec::new();
            for depth in 0..=LONGEST {
                for n in 0..identities.len() {
                    let mut client = Client::connect(proxy.at(&format!("up-{depth}-{n}"))?)?;
                    all.push(json!([depth, n, client.ask("hello").is_ok()]));
                }
            }
            Ok(json!(all))
        });
        cases.case("the longest chain is refused where none may be", || {
            for proxy in pair.both() {
                let client = TlsClient::new().identity(&identities[LONGEST]);
                client.refused(proxy.at("down-0")?)?;
            }
            Ok(())
        });
        cases.finish()
    })
}

/// Waits for the end of a connection that says what is no TLS, or too little of it.
fn ends(proxy: &Proxy, listener: &str, bytes: &[u8]) -> Result<(End, Duration)> {
    let mut client = Client::connect(proxy.at(listener)?)?;
    let start = Instant::now();
    // The other side may have had enough before all is sent.
    let _ = client.send(bytes);
    let (_, end) = client.end_within(Duration::from_secs(8))?;
    Ok((end, start.elapsed()))
}

/// A handshake record with a ClientHello that says it is far longer than it will ever be.
fn endless_hello() -> Vec<u8> {
    let mut hello = client_hello(Some("a.example.com"), &[]);
    // The handshake's length: 16 MB.
    hello[6..9].copy_from_slice(&[0xff, 0xff, 0xff]);
    hello
}

#[test]
fn what_is_no_tls_is_refused() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let backend = Upstream::echo("up")?;
        let context = TlsContext::new().certificate(&mesh.server);
        let config = Bootstrap::new().static_cluster("up", &[backend.address], "");
        let config = secure(config, "tls", &context, "up");
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        let hello = client_hello(Some("a.example.com"), &[]);
        let oversized = [&[22, 3, 1, 0xff, 0xff][..], &vec![1; 0xffff]].concat();
        let version_11 = {
            // Of TLS 1.1, which says nothing of supported versions.
            let mut hello = client_hello(Some("a.example.com"), &[]);
            hello[9..11].copy_from_slice(&[3, 2]);
            let at = hello.windows(5).position(|w| w == [0, 43, 0, 5, 4]).unwrap_or_default();
            hello[at..at + 2].copy_from_slice(&[0xfa, 0xfa]);
            hello
        };
        let wrong: [(&str, Vec<u8>); 8] = [
            ("plain text", b"hello, is there anybody out there?\n".to_vec()),
            ("HTTP", b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n".to_vec()),
            ("an oversized record", oversized),
            ("a client of TLS 1.1", version_11),
            ("application data first", [&[23, 3, 3, 0, 5][..], b"hello"].concat()),
            ("empty records without an end", [22, 3, 1, 0, 0].repeat(100)),
            ("a garbled message", [&hello[..60], &[0xff; 80][..]].concat()),
            ("a record of an unknown kind", vec![99, 3, 3, 0, 1, 0]),
        ];
        for (id, bytes) in &wrong {
            Refusal { id, listener: "tls", stat: "connection_error" }.check(
                &pair,
                &mut cases,
                &backend,
                |proxy| {
                    let (end, _) = ends(proxy, "tls", bytes)?;
                    ensure!(end != End::Open, "{} leaves it open", proxy.kind.name());
                    Ok(())
                },
            );
        }
        cases.finish()
    })
}

#[test]
fn a_handshake_that_never_ends_is_cut_off() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let backend = Upstream::echo("up")?;
        let context = TlsContext::new().certificate(&mesh.server);
        let filters = || [tcp_proxy("timed", "cluster: up")];
        let timed = tls_chain("", &context.downstream(), &filters()).replacen(
            '{',
            "{ transport_socket_connect_timeout: 0.5s, ",
            1,
        );
        let config = Bootstrap::new()
            .static_cluster("up", &[backend.address], "")
            .listener("timed", &format!("stat_prefix: timed, filter_chains: [ {timed} ]"));
        let inspected = format!("listener_filters: [ {} ], listener_filters_timeout: 0.5s", tls_inspector());
        let config = secure_with(config, "inspected", &context, "up", &inspected);
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        let hello = client_hello(Some("a.example.com"), &[]);
        let parts: [(&str, Vec<u8>); 3] = [
            ("nothing is said", Vec::new()),
            ("half a hello", hello[..40].to_vec()),
            ("a hello without an end", endless_hello()),
        ];
        for (id, bytes) in &parts {
            let stat = "listener.timed.downstream_cx_transport_socket_connect_timeout";
            let names = [stat, "listener.timed.ssl.*"];
            pair.same_stats(&mut cases, format_args!("tls, too late: {id}"), &names, |proxy| {
                let (reached, before) = (Reached::now(&backend)?, proxy.stat(stat)?);
                let (end, took) = ends(proxy, "timed", bytes)?;
                ensure!(end != End::Open && took < Duration::from_secs(4), "{end} after {took:?}");
                if *id != "a hello without an end" {
                    proxy.expect_stat(stat, before + 1)?;
                    ensure!(took > Duration::from_millis(400), "after {took:?}");
                }
                reached.nothing_since(&backend, proxy)
            });
        }
        let stat = "listener.timed.downstream_cx_transport_socket_connect_timeout";
        pair.same_stats(
            &mut cases,
            "tls, too late: after the hello",
            &[stat, "listener.timed.ssl.*"],
            |proxy| {
                let (reached, before) = (Reached::now(&backend)?, proxy.stat(stat)?);
                let mut stream = TlsClient::new().ready()?.begin(proxy.at("timed")?)?;
                stream.greet()?;
                proxy.expect_stat(stat, before + 1)?;
                drop(stream);
                reached.nothing_since(&backend, proxy)
            },
        );
        for (id, bytes) in &parts {
            let names = ["listener.inspected.downstream_pre_cx_timeout", "listener.inspected.ssl.*"];
            pair.same_stats(&mut cases, format_args!("tls, inspected too late: {id}"), &names, |proxy| {
                let reached = Reached::now(&backend)?;
                let (end, took) = ends(proxy, "inspected", bytes)?;
                ensure!(end != End::Open && took < Duration::from_secs(4), "{end} after {took:?}");
                reached.nothing_since(&backend, proxy)
            });
        }
        pair.same(&mut cases, "tls, in time", |proxy| {
            let mut all = Vec::new();
            for listener in ["timed", "inspected"] {
                let mut stream = TlsClient::new().connect(proxy.at(listener)?)?;
                // Longer than either limit: these end with the handshake.
                std::thread::sleep(Duration::from_millis(700));
                all.push(stream.ask("hello")?);
            }
            Ok(json!(all))
        });
        cases.finish()
    })
}

/// Handshakes that are wrong in one way each, written by another implementation's messages: what a fuzzer of TLS tries
/// first. Both proxies refuse all of them.
#[test]
fn malformed_handshakes_are_refused() -> Result<()> {
    const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/suites/tls/handshakes.py");
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let backend = Upstream::echo("up")?;
        let config = Bootstrap::new().static_cluster("up", &[backend.address], "");
        let config = secure(config, "tls", &TlsContext::new().certificate(&mesh.server), "up");
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for proxy in pair.both() {
            let reached = Reached::now(&backend)?;
            let port = proxy.at("tls")?.port().to_string();
            let out = lab.program("python", &Place::default())?.args([SCRIPT, &port]).run()?;
            let lines = out.stdout.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
            ensure!(lines.len() >= 25, "only {} handshakes were tried", lines.len());
            for line in &lines {
                cases.case(format_args!("{}: {}", proxy.kind.name(), line["name"]), || {
                    ensure!(line["end"] != "open" && line["answered"] == false, "{line}");
                    Ok(())
                });
            }
            cases.case(format_args!("{}: each is counted", proxy.kind.name()), || {
                let counted = proxy.stat("listener.tls.ssl.connection_error")?;
                ensure!(counted >= lines.len() as u64 - 2, "{counted} of {}", lines.len());
                ensure!(proxy.stat("listener.tls.ssl.handshake")? == 0, "a handshake was done");
                proxy.expect_stat("listener.tls.downstream_cx_active", 0)?;
                reached.nothing_since(&backend, proxy)
            });
        }
        // They have survived all of that. Only now, as what is sent here does reach the backend.
        for proxy in pair.both() {
            cases.case(format_args!("{}: a good handshake", proxy.kind.name()), || {
                let mut stream = TlsClient::new().connect(proxy.at("tls")?)?;
                ensure!(stream.ask("hello")? == "up hello", "another answer");
                Ok(())
            });
        }
        cases.finish()
    })
}

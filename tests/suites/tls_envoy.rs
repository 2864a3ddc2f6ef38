//! TLS beside the real Envoy: either proxy at either end, and both on one configuration.

use std::fs;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::bootstrap::{assignment, chain, endpoint, file_log, locality, tcp_proxy};
use shunt_tests::payload::Digest;
use shunt_tests::tls_context::tls_chain;
use shunt_tests::{
    Bootstrap, Cases, Client, Does, Kind, Lab, Leaf, Pair, Proxy, TlsClient, TlsContext, TlsOptions,
    TlsServer, Upstream, lab, openssl, until,
};

use crate::tls_common::{CLIENT, Mesh, SERVER, secure};

/// Envoy prefers a key exchange that nobody else here has.
const CURVES: &str = "ecdh_curves: [ X25519 ]";

/// Two proxies in a row: plain text in, TLS between them, plain text out.
struct Row {
    front: Proxy,
    back: Proxy,
}

impl Row {
    fn start(lab: &Lab, [front, back]: [Kind; 2], mesh: &Mesh<'_>, backends: &[Upstream]) -> Result<Self> {
        let mut config = Bootstrap::new();
        for Upstream { name, address, .. } in backends {
            config = config.static_cluster(name, &[*address], "per_connection_buffer_limit_bytes: 65536");
            let context = mesh.mutual().uri(CLIENT).alpn(&["istio", "h2"]).params(CURVES);
            config = secure(config, name, &context, name);
        }
        let back = Proxy::start(lab, back, &config.yaml())?;
        let mut config = Bootstrap::new();
        for Upstream { name, .. } in backends {
            let context = TlsContext::new()
                .certificate(&mesh.client)
                .trust(mesh.root.file())
                .uri(SERVER)
                .alpn(&["istio"])
                .params(CURVES)
                .params("tls_maximum_protocol_version: TLSv1_3")
                .field("sni: outbound_.80_._.server.a.svc.cluster.local");
            let fields = format!("per_connection_buffer_limit_bytes: 65536, {}", context.cluster());
            config = config.relay(name, name).static_cluster(name, &[back.at(name)?], &fields);
        }
        Ok(Self { front: Proxy::start(lab, front, &config.yaml())?, back })
    }

    /// What both sides count of some traffic.
    fn counted(&self, name: &str, traffic: impl FnOnce(SocketAddr) -> Result<Value>) -> Result<Value> {
        let (front, back) = (self.front.stats()?, self.back.stats()?);
        let value = traffic(self.front.at(name)?)?;
        self.front.expect_stat(&format!("cluster.{name}.upstream_cx_active"), 0)?;
        self.back.expect_stat(&format!("listener.{name}.downstream_cx_active"), 0)?;
        let front = self.front.stats()?.since(&front, &[&format!("cluster.{name}.ssl.*")]);
        let back = self.back.stats()?.since(&back, &[&format!("listener.{name}.ssl.*")]);
        Ok(json!({ "value": value, "front": comparable(front), "back": comparable(back) }))
    }
}

/// Without what the other side's library decides: a rustls client asks for OCSP responses whether anybody reads them
/// or not, and of a session that is resumed rustls does not tell who had signed at its beginning, and how its first
/// keys were exchanged.
fn comparable(mut stats: Value) -> Value {
    if let Some(all) = stats.as_object_mut() {
        let resumed = all.keys().any(|name| name.ends_with(".ssl.session_reused"));
        let of_first = |name: &str| name.contains(".ssl.sigalgs.") || name.contains(".ssl.curves.");
        all.retain(|name, _| !(name.contains(".ssl.ocsp_staple_") || resumed && of_first(name)));
    }
    stats
}

/// What goes through a row, by the backend's name.
type Traffic<'a> = (&'a str, &'a str, &'a dyn Fn(SocketAddr) -> Result<Value>);

#[test]
fn either_proxy_at_either_end() -> Result<()> {
    const BULK: u64 = 30_000_000;
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let does = [
            ("echo", Does::Echo),
            ("sum", Does::Sum),
            ("greet", Does::Greet("welcome\n".to_owned())),
            ("reset", Does::Reset),
            ("pump", Does::Pump(BULK)),
        ];
        let backends =
            does.into_iter().map(|(name, does)| Upstream::start(name, does)).collect::<Result<Vec<_>>>()?;
        let traffic: [Traffic<'_>; 8] = [
            ("a first connection", "echo", &|to| Ok(json!(Client::connect(to)?.ask("hello")?))),
            ("one that resumes", "echo", &|to| Ok(json!(Client::connect(to)?.ask("hello")?))),
            ("the client half-closes", "sum", &|to| {
                let mut client = Client::connect(to)?;
                client.send(vec![b'x'; 3_000_000])?;
                client.half_close()?;
                Ok(json!(client.rest()?))
            }),
            ("the server half-closes", "greet", &|to| {
                let mut client = Client::connect(to)?;
                let rest = client.rest()?;
                client.send("after the end")?;
                client.half_close()?;
                Ok(json!(rest))
            }),
            ("bulk", "pump", &|to| {
                let (bytes, end) = Client::connect(to)?.end()?;
                let mut digest = Digest::default();
                digest.update(&bytes);
                ensure!(digest.hex() == Digest::of(1, BULK).hex(), "{} bytes, others", bytes.len());
                Ok(json!(end.to_string()))
            }),
            ("a slow reader", "pump", &|to| {
                let mut client = Client::connect_narrow(to)?;
                std::thread::sleep(Duration::from_millis(500));
                let (bytes, end) = client.end()?;
                let mut digest = Digest::default();
                digest.update(&bytes);
                ensure!(digest.hex() == Digest::of(1, BULK).hex(), "{} bytes, others", bytes.len());
                Ok(json!(end.to_string()))
            }),
            ("the server resets", "reset", &|to| {
                let mut client = Client::connect(to)?;
                client.send("hello\n")?;
                Ok(json!(client.rest()?))
            }),
            ("the client resets", "echo", &|to| {
                let mut client = Client::connect(to)?;
                client.ask("hello")?;
                client.reset()?;
                Ok(Value::Null)
            }),
        ];
        let mut cases = Cases::new();
        let wanted = Row::start(lab, [Kind::Envoy, Kind::Envoy], &mesh, &backends)?;
        let wanted = traffic
            .iter()
            .map(|(id, name, run)| wanted.counted(name, run).with_context(|| (*id).to_owned()))
            .collect::<Result<Vec<_>>>()?;
        for kinds in [[Kind::Shunt, Kind::Shunt], [Kind::Envoy, Kind::Shunt], [Kind::Shunt, Kind::Envoy]] {
            let row = Row::start(lab, kinds, &mesh, &backends)?;
            for ((id, name, run), wanted) in traffic.iter().zip(&wanted) {
                let id = format!("{} to {}: {id}", kinds[0].name(), kinds[1].name());
                cases.case(&id, || {
                    shunt_tests::deviations::check(&format!("row, {id}"), wanted, &row.counted(name, run)?)
                });
            }
        }
        cases.finish()
    })
}

/// The same client at both: what is agreed, and what is counted.
#[test]
fn what_is_agreed_and_counted() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let backend = Upstream::echo("up")?;
        let own = || TlsContext::new().certificate(&mesh.server);
        let names = "[ istio-peer-exchange, istio, istio-http/1.1, istio-h2, h2, http/1.1 ]";
        let spiffe = format!(
            "custom_validator_config: {{ name: envoy.tls.cert_validator.spiffe, typed_config: {{ \
             \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig, \
             trust_domains: [ {{ name: td, trust_bundle: {{ filename: {:?} }} }} ] }} }}",
            mesh.root.file().display().to_string()
        );
        let prefix = |san: &str| mesh.mutual().san("URI", san);
        let contexts: Vec<(&str, TlsContext)> = vec![
            ("own", own()),
            ("alpn", own().common(&format!("alpn_protocols: {names}"))),
            ("optional", own().trust(mesh.root.file())),
            ("mutual", mesh.mutual()),
            ("untrusted", mesh.mutual().validate("trust_chain_verification: ACCEPT_UNTRUSTED")),
            ("middle", own().trust(mesh.middle.file()).require_client()),
            ("expired", mesh.mutual().validate("allow_expired_certificate: true")),
            ("spiffe", own().require_client().validate(&spiffe)),
            ("prefix", prefix("prefix: \"spiffe://td/ns/a/\"")),
            ("suffix", prefix("suffix: /sa/client")),
            ("contains", prefix("contains: /ns/a/")),
            ("regex", prefix("safe_regex: { regex: \"spiffe://[^/]+/ns/a/sa/cl.*\" }")),
            ("ignore case", prefix("exact: \"SPIFFE://td/ns/a/sa/CLIENT\", ignore_case: true")),
            ("dns", mesh.mutual().san("DNS", "exact: client.example.com")),
            ("dns wildcard", mesh.mutual().san("DNS", "exact: w.wild.example.com")),
            ("ip", mesh.mutual().san("IP_ADDRESS", "exact: 127.0.0.9")),
            ("email", mesh.mutual().san("EMAIL", "exact: client@example.com")),
            (
                "either hash or key",
                mesh.mutual()
                    .validate(&format!("verify_certificate_hash: [ \"{}\" ]", mesh.server.hash()))
                    .validate(&format!("verify_certificate_spki: [ \"{}\" ]", mesh.client.spki())),
            ),
        ];
        let other = mesh.pki.root("other")?;
        let wild = Leaf::spiffe(CLIENT).dns("*.wild.example.com");
        let all = Leaf::spiffe(CLIENT).dns("x.org").ip([127, 0, 0, 9]).email("client@example.com");
        let identities = [
            ("nobody", None),
            ("client", Some(mesh.client.clone())),
            ("wild", Some(mesh.middle.issue("wild", &wild)?)),
            ("all", Some(mesh.root.issue("all", &all)?)),
            ("stranger", Some(other.issue("stranger", &Leaf::spiffe(CLIENT).dns("client.example.com"))?)),
            (
                "past",
                Some(
                    mesh.middle
                        .issue("past", &Leaf::spiffe(CLIENT).valid(shunt_tests::pki::Validity::Past))?,
                ),
            ),
            (
                "foreign domain",
                Some(mesh.middle.issue("foreign", &Leaf::spiffe("spiffe://other/ns/a/sa/client"))?),
            ),
            (
                "rsa",
                Some(mesh.middle.issue("rsa", &Leaf::spiffe(CLIENT).key(shunt_tests::pki::Key::Rsa2048))?),
            ),
            (
                "p384",
                Some(mesh.middle.issue("p384", &Leaf::spiffe(CLIENT).key(shunt_tests::pki::Key::P384))?),
            ),
        ];
        let mut config = Bootstrap::new().static_cluster("up", &[backend.address], "");
        for (name, context) in &contexts {
            config = secure(config, name, context, "up");
        }
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for (listener, _) in &contexts {
            for (who, identity) in &identities {
                let names = format!("listener.{listener}.ssl.*");
                pair.same(&mut cases, format_args!("agreed: {who} at {listener}"), |proxy| {
                    let before = proxy.stats()?;
                    let result = greet(proxy, listener, identity.as_ref())?;
                    Ok(json!([result, comparable(proxy.stats()?.since(&before, &[&names]))]))
                });
            }
        }
        let authority = mesh.middle.issue("authority", &Leaf::spiffe(CLIENT).ca())?;
        pair.same(&mut cases, "agreed: a client that is an authority", |proxy| {
            greet(proxy, "mutual", Some(&authority))
        });
        cases.finish()
    })
}

/// A first connection and one that offers to resume.
fn greet(proxy: &Proxy, listener: &str, identity: Option<&shunt_tests::pki::Identity>) -> Result<Value> {
    let client = TlsClient::new().name("a.example.com").alpn(&["istio-h2", "h2"]).sessions();
    let client = identity.into_iter().fold(client, TlsClient::identity).ready()?;
    let mut all = Vec::new();
    for _ in 0..2 {
        let once = || -> Result<Value> {
            let mut stream = client.connect(proxy.at(listener)?)?;
            let answer = stream.ask("hello")?;
            let agreed = stream.agreed()?;
            stream.half_close()?;
            let end = stream.rest()?;
            let chain = agreed.chain.len();
            Ok(json!([answer, agreed.version, agreed.suite, agreed.alpn, agreed.resumed, chain, end]))
        };
        all.push(once().unwrap_or_else(|_| json!("refused")));
    }
    proxy.expect_stat(&format!("listener.{listener}.downstream_cx_active"), 0)?;
    Ok(json!(all))
}

/// `transport_socket_matches` as istiod writes them.
#[test]
fn endpoints_choose_their_transport_by_metadata() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let plain = Upstream::echo("plain")?;
        let tls = TlsServer::echo(
            "tls",
            &TlsOptions::new(&mesh.server).clients(mesh.root.file()).alpn(&["istio"]),
        )?;
        let context =
            TlsContext::new().certificate(&mesh.client).trust(mesh.root.file()).uri(SERVER).alpn(&["istio"]);
        let raw = "{ name: envoy.transport_sockets.raw_buffer, typed_config: { \"@type\": \
                   type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer } }";
        let matches = format!(
            "transport_socket_matches: [ {{ name: tlsMode-istio, match: {{ tlsMode: istio }}, transport_socket: {} }}, \
             {{ name: tlsMode-disabled, match: {{}}, transport_socket: {raw} }} ]",
            context.upstream(),
        );
        let istio = "metadata: { filter_metadata: { envoy.transport_socket_match: { tlsMode: istio } } }";
        let endpoints = [endpoint(tls.address, istio), endpoint(plain.address, "")];
        let load = assignment("mixed", &[locality(&endpoints, "")], "");
        let wrong = [endpoint(plain.address, istio)];
        let wrong = assignment("wrong", &[locality(&wrong, "")], "");
        let config = Bootstrap::new()
            .relay("mixed", "mixed")
            .relay("wrong", "wrong")
            .cluster("mixed", &format!("type: STATIC, load_assignment: {load}, {matches}"))
            .cluster("wrong", &format!("type: STATIC, load_assignment: {wrong}, {matches}"));
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        let stats =
            ["handshake", "session_reused", "connection_error", "fail_verify_san", "fail_verify_error"];
        let stats = stats.map(|name| format!("cluster.mixed.ssl.{name}"));
        let stats: Vec<&str> = stats.iter().map(String::as_str).collect();
        let mut answers = Vec::new();
        pair.same_stats(&mut cases, "tlsMode, stats", &stats, |proxy| {
            let mut all = Vec::new();
            for _ in 0..4 {
                all.push(Client::connect(proxy.at("mixed")?)?.ask("hello")?);
            }
            all.sort();
            ensure!(all == ["plain hello", "plain hello", "tls hello", "tls hello"], "{all:?}");
            answers.push(all);
            Ok(())
        });
        pair.same(&mut cases, "tlsMode: an endpoint that says istio and speaks plain text", |proxy| {
            let mark = plain.mark();
            let mut client = Client::connect(proxy.at("wrong")?)?;
            let _ = client.send("a secret\n");
            let rest = client.rest()?;
            let seen = plain.ended(mark)?;
            let head = String::from_utf8_lossy(&seen.head).into_owned();
            ensure!(!head.contains("secret"), "{} sent plain text: {head:?}", proxy.kind.name());
            Ok(json!(rest.is_empty() || !rest.contains("secret")))
        });
        cases.finish()
    })
}

#[test]
fn health_checks_go_over_tls() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let good = TlsServer::echo("good", &TlsOptions::new(&mesh.server))?;
        let bad = mesh.middle.issue("bad", &Leaf::spiffe("spiffe://td/ns/a/sa/other"))?;
        let bad = TlsServer::echo("bad", &TlsOptions::new(&bad))?;
        let plain = Upstream::echo("plain")?;
        let context = TlsContext::new().trust(mesh.root.file()).uri(SERVER);
        // "68690a" is "hi\n".
        let check = "health_checks: [ { timeout: 1s, interval: 0.1s, unhealthy_threshold: 1, healthy_threshold: 1, \
                     no_traffic_interval: 0.1s, tcp_health_check: { send: { text: \"68690a\" }, receive: [ { text: \"6869\" } ] } } ]";
        let mut config = Bootstrap::new();
        for (name, address) in [("good", good.address), ("bad", bad.address), ("plain", plain.address)] {
            let fields = format!("{check}, {}", context.cluster());
            config = config.relay(name, name).static_cluster(name, &[address], &fields);
        }
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for (name, healthy) in [("good", 1), ("bad", 0), ("plain", 0)] {
            cases.case(format_args!("a health check over TLS: {name}"), || {
                for proxy in pair.both() {
                    let stat = if healthy == 1 { "success" } else { "failure" };
                    let stat = format!("cluster.{name}.health_check.{stat}");
                    until(&stat, Duration::from_secs(8), || Ok((proxy.stat(&stat)? >= 2).then_some(())))
                        .with_context(|| proxy.kind.name())?;
                    proxy.expect_stat(&format!("cluster.{name}.membership_healthy"), healthy)?;
                }
                Ok(())
            });
        }
        cases.finish()
    })
}

#[test]
fn tls_over_a_unix_socket() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let server = TlsServer::echo("tls", &TlsOptions::new(&mesh.server))?;
        let path = lab.dir().join("server.sock");
        let unix = path.display().to_string();
        bridge(UnixListener::bind(&path)?, server.address);
        let context = TlsContext::new().trust(mesh.root.file()).uri(SERVER);
        let endpoint = format!("{{ endpoint: {{ address: {{ pipe: {{ path: {unix:?} }} }} }} }}");
        let load = assignment("unix", &[locality(&[endpoint], "")], "");
        let fields = format!("type: STATIC, load_assignment: {load}, {}", context.cluster());
        let config = Bootstrap::new().relay("unix", "unix").cluster("unix", &fields);
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        pair.same_stats(&mut cases, "tls over a unix socket", &["cluster.unix.ssl.*"], |proxy| {
            let answer = Client::connect(proxy.at("unix")?)?.ask("hello")?;
            ensure!(answer == "tls hello", "{answer}");
            Ok(())
        });
        cases.finish()
    })
}

/// Carries what comes to a socket of the file system on to an address, for as long as the test lives.
fn bridge(listener: UnixListener, to: SocketAddr) {
    std::thread::spawn(move || -> std::io::Result<()> {
        for inside in listener.incoming() {
            let (inside, outside) = (inside?, TcpStream::connect(to)?);
            let (mut from, mut into) = (inside.try_clone()?, outside.try_clone()?);
            std::thread::spawn(move || {
                // An end that breaks ends the other.
                let _ = std::io::copy(&mut from, &mut into);
                into.shutdown(Shutdown::Write)
            });
            let (mut from, mut into) = (outside, inside);
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut into);
                into.shutdown(Shutdown::Write)
            });
        }
        Ok(())
    });
}

/// A TLS connection's ends, as a client of TLS sees them.
#[test]
fn every_end_of_a_tls_connection() -> Result<()> {
    const BULK: u64 = 20_000_000;
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let does = [
            ("echo", Does::Echo),
            ("sum", Does::Sum),
            ("greet", Does::Greet("welcome\n".to_owned())),
            ("reset", Does::Reset),
            ("pump", Does::Pump(BULK)),
        ];
        let backends =
            does.into_iter().map(|(name, does)| Upstream::start(name, does)).collect::<Result<Vec<_>>>()?;
        let backend = |name: &str| backends.iter().find(|b| b.name == name).context("no such backend");
        let mut config = Bootstrap::new();
        for Upstream { name, address, .. } in &backends {
            config = config.static_cluster(name, &[*address], "");
            config = secure(config, name, &TlsContext::new().certificate(&mesh.server), name);
        }
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for version in ["1.2", "1.3"] {
            let client =
                || if version == "1.2" { TlsClient::new().tls12() } else { TlsClient::new().tls13() };
            pair.same(
                &mut cases,
                format_args!("tls {version}: close_notify and FIN by the client"),
                |proxy| {
                    let mut stream = client().connect(proxy.at("sum")?)?;
                    stream.send(vec![b'x'; 2_000_000])?;
                    stream.half_close()?;
                    Ok(json!(stream.rest()?))
                },
            );
            pair.same(&mut cases, format_args!("tls {version}: close_notify alone by the client"), |proxy| {
                let mut stream = client().connect(proxy.at("sum")?)?;
                stream.send("hello\n")?;
                stream.notify()?;
                Ok(json!(stream.rest()?))
            });
            pair.same(&mut cases, format_args!("tls {version}: FIN alone by the client"), |proxy| {
                let mut stream = client().connect(proxy.at("sum")?)?;
                stream.send("hello\n")?;
                stream.truncate()?;
                Ok(json!(stream.rest()?))
            });
            pair.same(&mut cases, format_args!("tls {version}: the upstream says FIN first"), |proxy| {
                let upstream = backend("greet")?;
                let mark = upstream.mark();
                let mut stream = client().connect(proxy.at("greet")?)?;
                let rest = stream.rest()?;
                // Who has read the end of it may still have something to say.
                let sent = stream.send("after the end").is_ok();
                let _ = stream.half_close();
                let seen = upstream.ended(mark)?;
                Ok(json!([rest, sent, String::from_utf8_lossy(&seen.head), seen.end.to_string()]))
            });
            pair.same(&mut cases, format_args!("tls {version}: RST by the client"), |proxy| {
                let upstream = backend("echo")?;
                let mark = upstream.mark();
                let mut stream = client().connect(proxy.at("echo")?)?;
                stream.ask("hello")?;
                stream.reset()?;
                Ok(json!(upstream.ended(mark)?.end.to_string()))
            });
            pair.same(&mut cases, format_args!("tls {version}: RST by the upstream"), |proxy| {
                let mut stream = client().connect(proxy.at("reset")?)?;
                stream.send("hello\n")?;
                Ok(json!(stream.rest()?))
            });
            pair.same(&mut cases, format_args!("tls {version}: bulk to a slow reader"), |proxy| {
                let mut stream = client().connect(proxy.at("pump")?)?;
                std::thread::sleep(Duration::from_millis(400));
                let (bytes, end) = stream.end()?;
                let mut digest = Digest::default();
                digest.update(&bytes);
                ensure!(digest.hex() == Digest::of(1, BULK).hex(), "{} bytes, others", bytes.len());
                Ok(json!(end.to_string()))
            });
        }
        cases.finish()
    })
}

/// Operators of access logs that TLS has values for.
const OPERATORS: &[&str] = &[
    "DOWNSTREAM_TLS_VERSION",
    "DOWNSTREAM_TLS_CIPHER",
    "DOWNSTREAM_PEER_URI_SAN",
    "DOWNSTREAM_PEER_DNS_SAN",
    "DOWNSTREAM_PEER_IP_SAN",
    "DOWNSTREAM_PEER_EMAIL_SAN",
    "DOWNSTREAM_PEER_SUBJECT",
    "DOWNSTREAM_PEER_ISSUER",
    "DOWNSTREAM_PEER_SERIAL",
    "DOWNSTREAM_PEER_CERT_V_START",
    "DOWNSTREAM_PEER_CERT_V_END",
    "DOWNSTREAM_PEER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_FINGERPRINT_1",
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256",
    "DOWNSTREAM_PEER_CHAIN_SERIALS",
    "DOWNSTREAM_PEER_CERT",
    "DOWNSTREAM_LOCAL_URI_SAN",
    "DOWNSTREAM_LOCAL_DNS_SAN",
    "DOWNSTREAM_LOCAL_SUBJECT",
    "TLS_JA3_FINGERPRINT",
    "REQUESTED_SERVER_NAME",
    "UPSTREAM_TLS_VERSION",
    "UPSTREAM_TLS_CIPHER",
    "UPSTREAM_PEER_URI_SAN",
    "UPSTREAM_PEER_DNS_SAN",
    "UPSTREAM_PEER_SUBJECT",
    "UPSTREAM_PEER_ISSUER",
    "UPSTREAM_PEER_CERT_V_START",
    "UPSTREAM_PEER_CERT_V_END",
    "UPSTREAM_LOCAL_URI_SAN",
    "UPSTREAM_LOCAL_DNS_SAN",
    "RESPONSE_FLAGS",
    "CONNECTION_TERMINATION_DETAILS",
];

#[test]
fn access_logs_tell_of_both_sides() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let server = TlsServer::echo("tls", &TlsOptions::new(&mesh.server).clients(mesh.root.file()))?;
        let format: Vec<String> = OPERATORS.iter().map(|name| format!("%{name}%")).collect();
        let log = file_log("tls.log", &format.join(";;"));
        let failures = "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%;;%UPSTREAM_TRANSPORT_FAILURE_REASON%";
        let failures = file_log("failures.log", failures);
        let filters = [tcp_proxy("logged", &format!("cluster: up, access_log: [ {log}, {failures} ]"))];
        let context = mesh.mutual();
        let fields = format!(
            "stat_prefix: logged, access_log: [ {failures} ], filter_chains: [ {} ]",
            tls_chain("", &context.downstream(), &filters)
        );
        let upstream = TlsContext::new().certificate(&mesh.client).trust(mesh.root.file());
        let config = Bootstrap::new().listener("logged", &fields).static_cluster(
            "up",
            &[server.address],
            &upstream.cluster(),
        );
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        let rich = Leaf::spiffe(CLIENT).uri("https://x.org/?a,b").dns("a.org").dns("b.org");
        let rich = mesh.middle.issue("rich", &rich.ip([10, 0, 0, 1]).email("a@example.com"))?;
        let mut lines = 0;
        for (id, identity) in [("plain names", &mesh.client), ("many names", &rich)] {
            for version in ["1.2", "1.3"] {
                lines += 1;
                let mut logged = Vec::new();
                for proxy in pair.both() {
                    let client = TlsClient::new().name("a.example.com").identity(identity);
                    let client = if version == "1.2" { client.tls12() } else { client.tls13() };
                    let mut stream = client.connect(proxy.at("logged")?)?;
                    stream.ask("hello")?;
                    stream.half_close()?;
                    stream.rest()?;
                    let all = proxy.lines("tls.log", lines)?;
                    logged.push(all.last().cloned().unwrap_or_default());
                }
                let values = |line: &String| line.split(";;").map(str::to_owned).collect::<Vec<_>>();
                let (envoy, shunt) = (values(&logged[0]), values(&logged[1]));
                for ((name, envoy), shunt) in OPERATORS.iter().zip(&envoy).zip(&shunt) {
                    let id = format!("access log over TLS, {name}, {id}, TLS {version}");
                    cases.case(&id, || shunt_tests::deviations::check(&id, &json!(envoy), &json!(shunt)));
                }
            }
        }
        cases.case("a failed handshake has a reason", || {
            for proxy in pair.both() {
                let before = fs::read_to_string(proxy.dir().join("failures.log"))?.lines().count();
                TlsClient::new().refused(proxy.at("logged")?)?;
                let lines = proxy.lines("failures.log", before + 1)?;
                let last = lines.last().map_or("", String::as_str);
                ensure!(last.contains("TLS_error"), "{}: {last}", proxy.kind.name());
            }
            Ok(())
        });
        cases.finish()
    })
}

/// Renegotiation is what TLS 1.2 clients may ask for, and must not get.
#[test]
fn a_client_cannot_renegotiate() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let backend = Upstream::echo("up")?;
        let config = Bootstrap::new().static_cluster("up", &[backend.address], "");
        let config = secure(config, "tls", &TlsContext::new().certificate(&mesh.server), "up");
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for proxy in pair.both() {
            cases.case(format_args!("a client asks for another handshake, {}", proxy.kind.name()), || {
                let before = proxy.stat("listener.tls.ssl.handshake")?;
                let mut client = openssl::start(lab, proxy.at("tls")?, &["-tls1_2"])?;
                client.send("hello")?;
                until("answer", Duration::from_secs(5), || {
                    Ok(client.stdout().contains("up hello").then_some(()))
                })?;
                client.send("R")?;
                // Envoy ends the connection; rustls warns that it does not, and leaves it to the client.
                let limit = Duration::from_secs(2);
                let ended = until("end of the connection", limit, || Ok(client.exited()?.map(drop))).is_ok();
                ensure!(ended || proxy.kind == Kind::Shunt, "{}", client.stdout());
                ensure!(proxy.stat("listener.tls.ssl.handshake")? == before + 1, "another handshake");
                ensure!(!client.stdout().contains("verify return:1\nup"), "{}", client.stdout());
                Ok(())
            });
        }
        cases.finish()
    })
}

/// Chains are chosen by what a client says in its hello, each with its own context.
#[test]
fn filter_chains_have_contexts_of_their_own() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let (a, b) = (Upstream::echo("a")?, Upstream::echo("b")?);
        let other = mesh.middle.issue("b", &Leaf::new().dns("b.example.com"))?;
        let chains = [
            tls_chain(
                "server_names: [ a.example.com ]",
                &TlsContext::new().certificate(&mesh.server).downstream(),
                &[tcp_proxy("a", "cluster: a")],
            ),
            tls_chain(
                "server_names: [ b.example.com ]",
                &TlsContext::new().certificate(&other).trust(mesh.root.file()).require_client().downstream(),
                &[tcp_proxy("b", "cluster: b")],
            ),
            chain("transport_protocol: raw_buffer", &[tcp_proxy("raw", "cluster: b")]),
        ];
        let inspector = shunt_tests::bootstrap::tls_inspector();
        let fields = format!(
            "stat_prefix: chains, listener_filters: [ {inspector} ], filter_chains: [ {} ]",
            chains.join(", ")
        );
        let config = Bootstrap::new()
            .listener("chains", &fields)
            .static_cluster("a", &[a.address], "")
            .static_cluster("b", &[b.address], "");
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        let names = ["listener.chains.ssl.*", "listener.chains.no_filter_chain_match"];
        for (name, certificate) in [
            ("a.example.com", false),
            ("b.example.com", false),
            ("b.example.com", true),
            ("c.example.com", true),
        ] {
            let mut answers = Vec::new();
            let id = format!("{name}, {}", if certificate { "a certificate" } else { "none" });
            pair.same_stats(&mut cases, format_args!("chains over TLS, stats: {id}"), &names, |proxy| {
                let mut client = TlsClient::new().name(name);
                if certificate {
                    client = client.identity(&mesh.client);
                }
                let ask = || client.connect(proxy.at("chains")?)?.ask("hello");
                answers.push(ask().unwrap_or_else(|_| "refused".to_owned()));
                Ok(())
            });
            let mut answers = answers.into_iter();
            pair.same(&mut cases, format_args!("chains over TLS: {id}"), |_| Ok(json!(answers.next())));
        }
        pair.same(&mut cases, "chains over TLS: plain text", |proxy| {
            Ok(json!(Client::connect(proxy.at("chains")?)?.ask("hello")?))
        });
        cases.finish()
    })
}

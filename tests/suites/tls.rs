//! TLS with what nobody here wrote: OpenSSL's client and server at either side of both proxies.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_tests::openssl::{self, Said, Server};
use shunt_tests::pki::Key;
use shunt_tests::tls_context::file;
use shunt_tests::{Bootstrap, Cases, Client, Kind, Lab, Leaf, Pair, Pki, Proxy, TlsContext, Upstream, lab};

use crate::tls_common::{CLIENT, Mesh, SERVER, secure};

/// Where both sides have several ciphers, either may choose: see [`whose_order_of_ciphers_counts`].
const CIPHERS: [&str; 4] = [
    "-ciphersuites",
    "TLS_AES_128_GCM_SHA256",
    "-cipher",
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256",
];

/// The arguments of all, and those of the case, which come later and so count.
fn with<'a>(args: &[&'a str]) -> Vec<&'a str> {
    ["-showcerts"].iter().chain(&CIPHERS).chain(args).copied().collect()
}

/// What is the same for the same handshake.
fn agreed(said: &Said) -> Value {
    json!({
        "version": said.version(),
        "cipher": said.cipher(),
        "alpn": said.alpn(),
        "resumed": said.resumed(),
        "certificates": said.certificates(),
        "subject": said.subject(),
        "verified": said.verified(),
        "key": said.after("Server Temp Key:"),
        "signature": said.after("Peer signature type:"),
    })
}

/// A handshake that both proxies must do in the same way, and whose line must be answered.
fn same(lab: &Lab, pair: &Pair, cases: &mut Cases, id: &str, listener: &str, args: &[&str]) {
    let args = with(args);
    pair.same(cases, format_args!("s_client, {id}"), |proxy| {
        openssl::hello(lab, proxy.at(listener)?, &args).map(|said| agreed(&said))
    });
}

/// As [`same`], where a refusal is as good an outcome, if it is one of both.
fn alike(lab: &Lab, pair: &Pair, cases: &mut Cases, id: &str, listener: &str, args: &[&str]) {
    let args = with(args);
    pair.same(cases, format_args!("s_client, {id}"), |proxy| {
        let said = openssl::ask(lab, proxy.at(listener)?, &args, "hello", " hello")?;
        Ok(if said.text.contains(" hello") { agreed(&said) } else { json!("refused") })
    });
}

/// A client that both must refuse.
fn refused(lab: &Lab, pair: &Pair, cases: &mut Cases, id: &str, listener: &str, args: &[&str]) {
    cases.case(format_args!("s_client, refused: {id}"), || {
        for proxy in pair.both() {
            let said = openssl::ask(lab, proxy.at(listener)?, &with(args), "hello", " hello")?;
            let name = proxy.kind.name();
            ensure!(!said.text.contains(" hello"), "{name} answers: {}", said.text);
            ensure!(said.text.contains("alert") || said.code != 0, "{name} says nothing: {}", said.text);
        }
        Ok(())
    });
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn openssl_s_client_and_what_it_offers() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let rsa = mesh.middle.issue("rsa", &Leaf::new().dns("a.example.com").key(Key::Rsa2048))?;
        let backend = Upstream::echo("up")?;
        let config = Bootstrap::new().static_cluster("up", &[backend.address], "");
        let both = TlsContext::new().certificate(&mesh.server).certificate(&rsa).alpn(&["h2", "http/1.1"]);
        let config = secure(config, "both", &both, "up");
        let config = secure(config, "rsa", &TlsContext::new().certificate(&rsa), "up");
        let only_12 = TlsContext::new().certificate(&rsa).certificate(&mesh.server);
        let only_12 = only_12
            .params("tls_maximum_protocol_version: TLSv1_2")
            .params("cipher_suites: [ ECDHE-RSA-AES256-GCM-SHA384, ECDHE-ECDSA-CHACHA20-POLY1305 ]")
            .params("ecdh_curves: [ P-256 ]");
        let config = secure(config, "only 1.2", &only_12, "up");
        let only_13 = TlsContext::new().certificate(&rsa).params("tls_minimum_protocol_version: TLSv1_3");
        let config = secure(config, "only 1.3", &only_13, "up");
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        let root = text(mesh.root.file());
        same(lab, &pair, &mut cases, "nothing asked", "both", &["-CAfile", &root]);
        same(lab, &pair, &mut cases, "another root", "both", &["-CAfile", &text(&rsa.leaf)]);
        for cipher in ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"] {
            let args = ["-tls1_3", "-ciphersuites", cipher];
            same(lab, &pair, &mut cases, cipher, "both", &args);
        }
        for kind in ["ECDSA", "RSA"] {
            for cipher in ["AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305"] {
                let cipher = format!("ECDHE-{kind}-{cipher}");
                let args = ["-tls1_2", "-cipher", &cipher];
                same(lab, &pair, &mut cases, &cipher, "both", &args);
            }
        }
        for curve in ["X25519", "P-256", "P-384"] {
            alike(lab, &pair, &mut cases, &format!("key exchange by {curve}"), "both", &["-curves", curve]);
            let args = ["-tls1_2", "-curves", curve];
            alike(lab, &pair, &mut cases, &format!("TLS 1.2, key exchange by {curve}"), "both", &args);
        }
        for (offered, id) in [
            ("h2", "h2"),
            ("http/1.1,h2", "two"),
            ("istio", "none in common"),
            ("istio,http/1.1", "the second"),
        ] {
            same(lab, &pair, &mut cases, &format!("ALPN, {id}"), "both", &["-alpn", offered]);
        }
        same(lab, &pair, &mut cases, "ALPN where none is configured", "rsa", &["-alpn", "h2"]);
        for scheme in ["ecdsa_secp256r1_sha256", "rsa_pss_rsae_sha256", "rsa_pss_rsae_sha512"] {
            same(lab, &pair, &mut cases, &format!("signed by {scheme}"), "both", &["-sigalgs", scheme]);
        }
        same(
            lab,
            &pair,
            &mut cases,
            "TLS 1.2 signed by rsa_pkcs1_sha256",
            "rsa",
            &["-tls1_2", "-sigalgs", "rsa_pkcs1_sha256"],
        );
        let cipher = ["-cipher", "ECDHE-RSA-AES256-GCM-SHA384"];
        same(lab, &pair, &mut cases, "at most TLS 1.2", "only 1.2", &cipher);
        same(
            lab,
            &pair,
            &mut cases,
            "at most TLS 1.2, by ECDSA",
            "only 1.2",
            &["-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"],
        );
        same(lab, &pair, &mut cases, "at least TLS 1.3", "only 1.3", &[]);
        let old = ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"];
        for (id, listener, args) in [
            ("TLS 1.1", "both", &old[..]),
            ("TLS 1.2 where 1.3 is the least", "only 1.3", &["-tls1_2"]),
            ("TLS 1.3 where 1.2 is the most", "only 1.2", &["-tls1_3"]),
            ("a cipher that is not configured", "only 1.2", &["-cipher", "ECDHE-RSA-AES128-GCM-SHA256"]),
            ("a curve that is not configured", "only 1.2", &["-curves", "X25519"]),
            ("a key exchange without forward secrecy", "rsa", &["-tls1_2", "-cipher", "AES128-GCM-SHA256"]),
            ("a cipher without encryption", "rsa", &["-tls1_2", "-cipher", "NULL-SHA256:@SECLEVEL=0"]),
            ("ECDSA alone of an RSA key", "rsa", &["-sigalgs", "ecdsa_secp256r1_sha256"]),
        ] {
            refused(lab, &pair, &mut cases, id, listener, args);
        }
        cases.finish()
    })
}

#[test]
fn whose_order_of_ciphers_counts() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let backend = Upstream::echo("up")?;
        let context = TlsContext::new().certificate(&mesh.server);
        let ordered = "cipher_suites: [ ECDHE-ECDSA-AES256-GCM-SHA384, ECDHE-ECDSA-AES128-GCM-SHA256 ]";
        let config = Bootstrap::new().static_cluster("up", &[backend.address], "");
        let config = secure(config, "default", &context, "up");
        let config = secure(config, "ordered", &context.clone().params(ordered), "up");
        let context = context.params(ordered).field("prefer_client_ciphers: true");
        let config = secure(config, "client's", &context, "up");
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        let (aes128, aes256) = ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384");
        for (id, version, flag, ciphers) in [
            (
                "TLS 1.3, AES-256 first",
                "-tls1_3",
                "-ciphersuites",
                "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256",
            ),
            (
                "TLS 1.3, AES-128 first",
                "-tls1_3",
                "-ciphersuites",
                "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384",
            ),
            ("TLS 1.2, AES-256 first", "-tls1_2", "-cipher", &format!("{aes256}:{aes128}")),
            ("TLS 1.2, AES-128 first", "-tls1_2", "-cipher", &format!("{aes128}:{aes256}")),
        ] {
            for listener in ["default", "ordered", "client's"] {
                let args = [version, flag, ciphers];
                same(lab, &pair, &mut cases, &format!("whose ciphers: {id}, {listener}"), listener, &args);
            }
        }
        cases.finish()
    })
}

#[test]
fn openssl_s_client_names_the_server() -> Result<()> {
    lab(|lab| {
        let pki = Pki::new(lab)?;
        let root = pki.root("root")?;
        let backend = Upstream::echo("up")?;
        let issue = |name: &str, leaf: &Leaf| root.issue(name, leaf);
        let a = issue("a", &Leaf::new().dns("a.example.com"))?;
        let a_rsa = issue("a-rsa", &Leaf::new().dns("a.example.com").key(Key::Rsa2048))?;
        let b = issue("b", &Leaf::new().dns("*.b.example.com").dns("b.example.com"))?;
        let c = issue("c", &Leaf::new().dns("c.example.com").key(Key::Rsa2048))?;
        let all = || [&a, &a_rsa, &b, &c].into_iter().fold(TlsContext::new(), TlsContext::certificate);
        let config = Bootstrap::new().static_cluster("up", &[backend.address], "");
        let config = secure(config, "names", &all(), "up");
        let scan = all().field("full_scan_certs_on_sni_mismatch: true");
        let config = secure(config, "scan", &scan, "up");
        let config = secure(config, "required", &all().field("require_sni: true"), "up");
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        let names = [
            "a.example.com",
            "A.EXAMPLE.COM",
            "b.example.com",
            "x.b.example.com",
            "x.y.b.example.com",
            "c.example.com",
            "d.org",
        ];
        for listener in ["names", "scan"] {
            for name in names {
                for (kind, args) in [("any key", &[][..]), ("RSA", &["-sigalgs", "rsa_pss_rsae_sha256"][..])]
                {
                    let args: Vec<&str> = ["-servername", name].iter().chain(args).copied().collect();
                    let id = format!("the name {name}, {kind}, {listener}");
                    alike(lab, &pair, &mut cases, &id, listener, &args);
                }
            }
        }
        same(
            lab,
            &pair,
            &mut cases,
            "a name where one is required",
            "required",
            &["-servername", "a.example.com"],
        );
        alike(lab, &pair, &mut cases, "no name where one is required", "required", &[]);
        cases.finish()
    })
}

#[test]
fn openssl_s_client_shows_a_certificate() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let backend = Upstream::echo("up")?;
        let config = Bootstrap::new().static_cluster("up", &[backend.address], "");
        let config = secure(config, "mutual", &mesh.mutual().uri(CLIENT), "up");
        let optional = TlsContext::new().certificate(&mesh.server).trust(mesh.root.file());
        let config = secure(config, "optional", &optional, "up");
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        let (chain, leaf, key) = (text(&mesh.client.chain), text(&mesh.client.leaf), text(&mesh.client.key));
        let shown = ["-cert", &chain, "-cert_chain", &chain, "-key", &key];
        let alone = ["-cert", &leaf, "-key", &key];
        for version in ["-tls1_2", "-tls1_3"] {
            let args = [&[version][..], &shown].concat();
            for listener in ["mutual", "optional"] {
                same(
                    lab,
                    &pair,
                    &mut cases,
                    &format!("{version}, a certificate, {listener}"),
                    listener,
                    &args,
                );
            }
            same(lab, &pair, &mut cases, &format!("{version}, no certificate"), "optional", &[version]);
            let id = format!("{version}, no certificate");
            refused(lab, &pair, &mut cases, &id, "mutual", &[version]);
            let args = [&[version][..], &alone].concat();
            let id = format!("{version}, a certificate without its intermediate");
            refused(lab, &pair, &mut cases, &id, "mutual", &args);
            refused(lab, &pair, &mut cases, &format!("{id}, optional"), "optional", &args);
        }
        cases.finish()
    })
}

/// A session kept in a file by one connection and offered by the next.
fn resumes(lab: &Lab, proxies: [&Proxy; 2], listener: &str, args: &[&str]) -> Result<bool> {
    let session = proxies[0].dir().join("session.pem");
    // What an earlier case has left.
    let _ = std::fs::remove_file(&session);
    let path = text(&session);
    let kept = [args, &["-sess_out", &path]].concat();
    openssl::hello(lab, proxies[0].at(listener)?, &kept)?;
    if !session.exists() {
        return Ok(false);
    }
    let offered = [args, &["-sess_in", &path]].concat();
    Ok(openssl::hello(lab, proxies[1].at(listener)?, &offered)?.resumed())
}

#[test]
fn sessions_are_resumed_also_by_another_process_with_the_same_keys() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let backend = Upstream::echo("up")?;
        let keys = ["one", "two", "three"].iter().zip(1..);
        let keys = keys.map(|(name, seed)| mesh.pki.ticket_key(name, seed)).collect::<Result<Vec<_>>>()?;
        let shared = |keys: &[&Path]| {
            let keys: Vec<String> = keys.iter().map(|key| file(key)).collect();
            let field = format!("session_ticket_keys: {{ keys: [ {} ] }}", keys.join(", "));
            TlsContext::new().certificate(&mesh.server).field(&field)
        };
        let config = || Bootstrap::new().static_cluster("up", &[backend.address], "");
        let own = TlsContext::new().certificate(&mesh.server);
        let first = secure(config(), "shared", &shared(&[&keys[0]]), "up");
        let first = secure(first, "own", &own, "up");
        let disabled = own.clone().field("disable_stateless_session_resumption: true");
        let first = secure(first, "no tickets", &disabled, "up");
        let neither = disabled.clone().field("disable_stateful_session_resumption: true");
        let first = secure(first, "neither", &neither, "up");
        let mutual = mesh.mutual();
        let first = secure(first, "mutual", &mutual, "up").yaml();
        // The key of the first is there, but no longer the one that encrypts.
        let rotated = secure(config(), "shared", &shared(&[&keys[1], &keys[0]]), "up");
        let rotated = secure(rotated, "own", &own, "up").yaml();
        let foreign = secure(config(), "shared", &shared(&[&keys[2]]), "up").yaml();
        let mut cases = Cases::new();
        let mut all = Vec::new();
        for kind in Kind::BOTH {
            let start = |config: &str| Proxy::start(lab, kind, config);
            let (one, two, three) = (start(&first)?, start(&rotated)?, start(&foreign)?);
            let mut results = Vec::new();
            for version in ["-tls1_2", "-tls1_3"] {
                for (id, proxies, listener) in [
                    ("its own", [&one, &one], "own"),
                    ("shared keys, the same process", [&one, &one], "shared"),
                    ("shared keys, another process", [&one, &two], "shared"),
                    ("a key that decrypts no longer", [&two, &one], "shared"),
                    ("foreign keys", [&one, &three], "shared"),
                    ("another process with its own keys", [&one, &two], "own"),
                    ("no tickets", [&one, &one], "no tickets"),
                    ("neither tickets nor ids", [&one, &one], "neither"),
                ] {
                    results.push(json!([version, id, resumes(lab, proxies, listener, &[version])?]));
                }
                let (chain, key) = (text(&mesh.client.chain), text(&mesh.client.key));
                let args = [version, "-cert", &chain, "-cert_chain", &chain, "-key", &key];
                results.push(json!([version, "mutual", resumes(lab, [&one, &one], "mutual", &args)?]));
            }
            all.push(results);
        }
        for (envoy, shunt) in all[0].iter().zip(&all[1]) {
            cases.case(format_args!("resumption: {} {}", envoy[0], envoy[1]), || {
                let id = format!(
                    "resumption: {}, {}",
                    envoy[1].as_str().unwrap_or_default(),
                    envoy[0].as_str().unwrap_or_default()
                );
                shunt_tests::deviations::check(&id, envoy, shunt)
            });
        }
        cases.case("tickets are resumed", || {
            let resumed = |results: &Vec<Value>| results.iter().filter(|result| result[2] == true).count();
            ensure!(resumed(&all[1]) >= 8, "{:?}", all[1]);
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn an_ocsp_response_is_stapled() -> Result<()> {
    lab(|lab| {
        let pki = Pki::new(lab)?;
        let root = pki.root("root")?;
        let backend = Upstream::echo("up")?;
        let a = root.issue("a", &Leaf::new().dns("a.example.com"))?;
        let must = root.issue("must", &Leaf::new().dns("must.example.com").must_staple())?;
        let stapled = |identity, name: &str| -> Result<TlsContext> {
            let staple = format!("ocsp_staple: {}", file(&root.ocsp(name, identity, false)?));
            Ok(TlsContext::new().certificate_with(identity, &staple))
        };
        let mut config = Bootstrap::new().static_cluster("up", &[backend.address], "");
        for policy in ["LENIENT_STAPLING", "STRICT_STAPLING", "MUST_STAPLE"] {
            let policy = format!("ocsp_staple_policy: {policy}");
            config = secure(config, &policy, &stapled(&a, "a")?.field(&policy), "up");
        }
        config = secure(config, "must", &stapled(&must, "must")?, "up");
        config = secure(config, "none", &TlsContext::new().certificate(&a), "up");
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        let listeners = [
            "ocsp_staple_policy: LENIENT_STAPLING",
            "ocsp_staple_policy: STRICT_STAPLING",
            "ocsp_staple_policy: MUST_STAPLE",
            "must",
            "none",
        ];
        for listener in listeners {
            for (id, args) in [("asked", &["-status"][..]), ("not asked", &[][..])] {
                let mut stapled = Vec::new();
                let stats = [format!("listener.{listener}.ssl.*")];
                pair.same_stats(
                    &mut cases,
                    format_args!("OCSP stats, {listener}, {id}"),
                    &[&stats[0]],
                    |proxy| {
                        let said = openssl::ask(lab, proxy.at(listener)?, &with(args), "hello", " hello")?;
                        let good = said.text.contains("OCSP Response Status: successful");
                        stapled.push(json!([said.text.contains(" hello"), good]));
                        Ok(())
                    },
                );
                let mut stapled = stapled.into_iter();
                pair.same(&mut cases, format_args!("OCSP, {listener}, {id}"), |_| Ok(json!(stapled.next())));
            }
        }
        cases.case("a response is stapled", || {
            for proxy in pair.both() {
                let said = openssl::hello(lab, proxy.at(listeners[0])?, &["-status"])?;
                ensure!(said.text.contains("OCSP Response Status: successful"), "{}", said.text);
            }
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn openssl_s_server_behind_the_proxy() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let Mesh { server, client, root, .. } = &mesh;
        let start = |args: &[&str]| Server::start(lab, &server.chain, &server.key, args);
        let ca = text(root.file());
        let servers = [
            ("plain", start(&[])?),
            ("1.2", start(&["-tls1_2"])?),
            ("1.3", start(&["-tls1_3"])?),
            ("1.1", start(&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"])?),
            ("alpn", start(&["-alpn", "istio,h2"])?),
            ("p256", start(&["-curves", "P-256"])?),
            ("mutual", start(&["-Verify", "4", "-verify_return_error", "-CAfile", &ca])?),
            ("chacha", start(&["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"])?),
        ];
        let base = || TlsContext::new().trust(root.file()).uri(SERVER).field("sni: a.example.com");
        let base = || base().params("ecdh_curves: [ X25519, P-256 ]");
        let contexts: [(&str, &str, TlsContext); 11] = [
            ("plain", "plain", base()),
            ("TLS 1.2", "1.2", base().params("tls_maximum_protocol_version: TLSv1_3")),
            ("TLS 1.3", "1.3", base().params("tls_maximum_protocol_version: TLSv1_3")),
            ("TLS 1.1 alone", "1.1", base()),
            (
                "at least TLS 1.3",
                "1.2",
                base()
                    .params("tls_minimum_protocol_version: TLSv1_3")
                    .params("tls_maximum_protocol_version: TLSv1_3"),
            ),
            ("ALPN", "alpn", base().alpn(&["h2", "istio"])),
            ("another key exchange", "p256", base()),
            ("a certificate", "mutual", base().certificate(client)),
            ("no certificate", "mutual", base()),
            ("another name", "plain", TlsContext::new().trust(root.file()).uri(CLIENT)),
            ("ChaCha20", "chacha", base()),
        ];
        let mut config = Bootstrap::new();
        for (id, server, context) in &contexts {
            let server = servers.iter().find(|(name, _)| name == server).map_or(&servers[0].1, |(_, s)| s);
            config = config.relay(id, id).static_cluster(id, &[server.address], &context.cluster());
        }
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for (id, ..) in &contexts {
            let mut answers = Vec::new();
            let stats = format!("cluster.{id}.ssl.*");
            pair.same_stats(&mut cases, format_args!("s_server stats, {id}"), &[&stats], |proxy| {
                let mut client = Client::connect(proxy.at(id)?)?;
                answers.push(client.ask("hello").unwrap_or_else(|_| "closed".to_owned()));
                Ok(())
            });
            let mut answers = answers.into_iter();
            pair.same(&mut cases, format_args!("s_server, {id}"), |_| Ok(json!(answers.next())));
        }
        cases.case("what must work does, what must not does not", || {
            for proxy in pair.both() {
                let ask = |id: &str| Client::connect(proxy.at(id)?)?.ask("hello");
                for id in [
                    "plain",
                    "TLS 1.2",
                    "TLS 1.3",
                    "ALPN",
                    "another key exchange",
                    "a certificate",
                    "ChaCha20",
                ] {
                    ensure!(ask(id)? == "olleh", "{} {id}", proxy.kind.name());
                }
                for id in ["TLS 1.1 alone", "at least TLS 1.3", "no certificate", "another name"] {
                    ensure!(ask(id).is_err(), "{} {id}", proxy.kind.name());
                }
            }
            Ok(())
        });
        cases.finish()
    })
}

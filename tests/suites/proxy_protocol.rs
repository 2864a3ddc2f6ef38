//! `upstream_proxy_protocol`: what the next hop is told of a client, beside Envoy, and as Envoy, HAProxy and nginx
//! read it.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use shunt_tests::bootstrap::{chain, extension, file_log, proxy_protocol, tcp_proxy};
use shunt_tests::ports::free;
use shunt_tests::upstream::Seen;
use shunt_tests::{
    Bootstrap, Cases, Client, Does, End, Kind, Lab, Leaf, Pair, Pki, Place, Process, Proxy, TlsContext,
    Upstream, eventually, lab, until,
};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const GREETING: &str = "welcome\n";
const VERSIONS: [&str; 2] = ["V1", "V2"];

/// A cluster's field: a PROXY header before what an inner socket sends.
fn announced(config: &str, inner: &str) -> String {
    let fields = format!("config: {{ {config} }}, transport_socket: {inner}");
    let of_type = "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";
    format!(
        "transport_socket: {}",
        extension("envoy.transport_sockets.upstream_proxy_protocol", of_type, &fields)
    )
}

fn raw_buffer() -> String {
    let of_type = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
    extension("envoy.transport_sockets.raw_buffer", of_type, "")
}

/// A listener that takes headers where there are some, in front of a cluster.
fn relay(config: Bootstrap, name: &str, ip: &str) -> Bootstrap {
    let filter = proxy_protocol(
        "allow_requests_without_proxy_protocol: true, pass_through_tlvs: { match_type: INCLUDE_ALL }",
    );
    let chain = chain("", &[tcp_proxy(name, &format!("cluster: {name:?}"))]);
    let fields = format!("listener_filters: [ {filter} ], filter_chains: [ {chain} ]");
    config.listener_at(name, &shunt_tests::bootstrap::address(ip, 0), &fields)
}

/// A client's V2 header for 1.2.3.4:1111 to 5.6.7.8:2222.
fn header(tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    let mut body = vec![1, 2, 3, 4, 5, 6, 7, 8];
    body.extend([1_111_u16.to_be_bytes(), 2_222_u16.to_be_bytes()].concat());
    for (kind, value) in tlvs {
        body.push(*kind);
        body.extend((value.len() as u16).to_be_bytes());
        body.extend_from_slice(value);
    }
    [SIGNATURE, &[0x21, 0x11], &(body.len() as u16).to_be_bytes(), &body].concat()
}

/// What a backend that greets has seen of a connection that sends some bytes and FIN.
fn sent(to: SocketAddr, bytes: &[u8], upstream: &Upstream) -> Result<(SocketAddr, Seen)> {
    let mark = upstream.mark();
    let mut client = Client::connect(to)?;
    client.send(bytes)?;
    // Envoy drops a connection whose client ends before there is an upstream one.
    let (greeting, end) = client.end()?;
    ensure!(greeting == GREETING.as_bytes() && end == End::Eof, "{greeting:?}, ended by {end}");
    client.half_close()?;
    Ok((client.local()?, upstream.ended(mark)?))
}

#[test]
fn headers_are_envoys() -> Result<()> {
    lab(|lab| {
        let upstream = Upstream::start("up", Does::Greet(GREETING.into()))?;
        // "host" and "aa" in base64, and 60 zeroes.
        let (host, aa, zeroes) = ("aG9zdA==", "YWE=", "A".repeat(80));
        let twice =
            format!("added_tlvs: [ {{ type: 226, value: {host:?} }}, {{ type: 226, value: {aa:?} }} ]");
        let added = format!("added_tlvs: [ {{ type: 226, value: {aa:?} }} ]");
        let added_more =
            format!("added_tlvs: [ {{ type: 226, value: {aa:?} }}, {{ type: 227, value: {zeroes:?} }} ]");
        let clusters = [
            ("v1", "version: V1".to_owned()),
            ("default", String::new()),
            ("v2", "version: V2".to_owned()),
            ("v2, all", "version: V2, pass_through_tlvs: {}".to_owned()),
            (
                "v2, some",
                "version: V2, pass_through_tlvs: { match_type: INCLUDE, tlv_type: [ 229 ] }".to_owned(),
            ),
            ("v2, added twice", format!("version: V2, {twice}")),
            ("v2, all and added", format!("version: V2, pass_through_tlvs: {{}}, {added}")),
            ("v2, all and more added", format!("version: V2, pass_through_tlvs: {{}}, {added_more}")),
        ];
        let mut config = Bootstrap::new();
        for (name, fields) in &clusters {
            let field = announced(fields, &raw_buffer());
            config = config.static_cluster(name, &[upstream.address], &field);
            config = relay(config, name, "127.0.0.1");
        }
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        let (large, largest) = (vec![b'y'; 65_500], vec![b'y'; 65_520]);
        let clients: [(&str, Vec<u8>); 5] = [
            ("no TLV", header(&[])),
            ("three TLVs", header(&[(0xe2, b"x"), (0xe5, b"y"), (0xe5, b"")])),
            ("a large TLV and a small one", header(&[(0xe5, &large), (0xe6, b"z")])),
            ("as large as can be", header(&[(0xe5, &largest)])),
            ("v1", b"PROXY TCP6 2001:db8::1 2001:db8::2 1111 2222\r\n".to_vec()),
        ];
        for (cluster, _) in &clusters {
            for (client, bytes) in &clients {
                let id = format!("PROXY to the upstream, {cluster}: {client}");
                let stat = format!("cluster.{cluster}.upstream.proxyprotocol.*");
                let mut seen = Vec::new();
                pair.same_stats(&mut cases, format_args!("{id}, stats"), &[&stat], |proxy| {
                    let bytes = [bytes, &b"hello"[..]].concat();
                    let (_, received) = sent(proxy.at(cluster)?, &bytes, &upstream)?;
                    seen.push((received.bytes, String::from_utf8_lossy(&received.head).into_owned()));
                    Ok(())
                });
                let mut seen = seen.into_iter();
                pair.same(&mut cases, &id, |_| Ok(json!(seen.next().context("no connection")?)));
            }
        }
        cases.finish()
    })
}

#[test]
fn the_clients_own_addresses_are_told() -> Result<()> {
    lab(|lab| {
        let upstream = Upstream::start("up", Does::Greet(GREETING.into()))?;
        let mut config = Bootstrap::new();
        for version in VERSIONS {
            for ip in ["127.0.0.1", "::1"] {
                let name = format!("{version} {ip}");
                let field = announced(&format!("version: {version}"), &raw_buffer());
                config = config.static_cluster(&name, &[upstream.address], &field);
                config = relay(config, &name, ip);
            }
        }
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for (version, ip, proxy) in VERSIONS.into_iter().flat_map(|version| {
            let pair = &pair;
            ["127.0.0.1", "::1"].into_iter().flat_map(move |ip| pair.both().map(|proxy| (version, ip, proxy)))
        }) {
            cases.case(format_args!("{}: {version} {ip}", proxy.kind.name()), || {
                let to = proxy.at(&format!("{version} {ip}"))?;
                let (from, seen) = sent(to, b"hello", &upstream)?;
                let expected = [&written(version, from, to)[..], b"hello"].concat();
                ensure!(seen.head == expected, "{:?}", String::from_utf8_lossy(&seen.head));
                Ok(())
            });
        }
        cases.finish()
    })
}

/// A header without TLVs, put together anew.
fn written(version: &str, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    if version == "V1" {
        let (from_port, to_port) = (from.port(), to.port());
        return format!("PROXY {family} {} {} {from_port} {to_port}\r\n", from.ip(), to.ip()).into_bytes();
    }
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let kind: &[u8] = if from.is_ipv4() { b"\x21\x11\0\x0c" } else { b"\x21\x21\0\x24" };
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    [SIGNATURE, kind, &octets(from.ip()), &octets(to.ip()), &ports].concat()
}

#[test]
fn health_checks_are_the_proxys_own() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        // "hi" and a line's end; the answer has "hi".
        let check = "health_checks: [ { timeout: 2s, interval: 60s, healthy_threshold: 1, unhealthy_threshold: 1, reuse_connection: false, tcp_health_check: { send: { text: \"68690a\" }, receive: [ { text: \"6869\" } ] } } ]";
        for (version, kind) in VERSIONS.into_iter().flat_map(|v| Kind::BOTH.map(|kind| (v, kind))) {
            cases.case(format_args!("{}: {version}", kind.name()), || {
                let upstream = Upstream::echo("up")?;
                let fields = format!("{check}, {}", announced(&format!("version: {version}"), &raw_buffer()));
                let config = Bootstrap::new().static_cluster("up", &[upstream.address], &fields);
                let proxy = Proxy::start(lab, kind, &config.yaml())?;
                let seen = upstream.ended(0)?;
                let expected = match version {
                    "V1" => written("V1", seen.peer, upstream.address),
                    _ => [SIGNATURE, b"\x20\0\0\0"].concat(),
                };
                let expected = [&expected[..], b"hi\n"].concat();
                ensure!(seen.head == expected, "{:?}", String::from_utf8_lossy(&seen.head));
                proxy.expect_stat("cluster.up.membership_healthy", 1)
            });
        }
        cases.finish()
    })
}

/// A proxy that logs whom headers speak of.
fn reader(lab: &Lab, kind: Kind, upstream: &Upstream) -> Result<Proxy> {
    let rule = |kind: u32, key: &str| format!("{{ tlv_type: {kind}, on_tlv_present: {{ key: {key} }} }}");
    let filter = proxy_protocol(&format!("rules: [ {}, {} ]", rule(0xe2, "added"), rule(0xe5, "passed")));
    let namespace = "envoy.filters.listener.proxy_protocol";
    let format = format!(
        "%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DYNAMIC_METADATA({namespace}:added)% %DYNAMIC_METADATA({namespace}:passed)%"
    );
    let log = file_log("reader.log", &format);
    let chain = chain("", &[tcp_proxy("reader", &format!("cluster: up, access_log: [ {log} ]"))]);
    let fields = format!("listener_filters: [ {filter} ], filter_chains: [ {chain} ]");
    let config = Bootstrap::new().static_cluster("up", &[upstream.address], "").listener("reader", &fields);
    Proxy::start(lab, kind, &config.yaml())
}

/// A proxy that sends headers of both versions to an address.
fn writer(lab: &Lab, kind: Kind, to: SocketAddr) -> Result<Proxy> {
    let tlvs = "pass_through_tlvs: {}, added_tlvs: [ { type: 226, value: \"YWE=\" } ]";
    let mut config = Bootstrap::new();
    for version in VERSIONS {
        let tlvs = if version == "V2" { tlvs } else { "" };
        let field = announced(&format!("version: {version}, {tlvs}"), &raw_buffer());
        config = config.static_cluster(version, &[to], &field);
        config = relay(config, version, "127.0.0.1");
    }
    Proxy::start(lab, kind, &config.yaml())
}

/// A connection from 1.2.3.4 through a writer: it is answered, and its line in the reader's log.
fn heard(writer: &Proxy, version: &str, reader: &Proxy) -> Result<String> {
    let path = reader.dir().join("reader.log");
    let before = std::fs::read_to_string(path).unwrap_or_default().lines().count();
    let mut client = Client::connect(writer.at(version)?)?;
    client.send(header(&[(0xe5, b"own")]))?;
    ensure!(client.ask("hello")? == "up hello", "another answer");
    client.half_close()?;
    ensure!(client.end()?.1 == End::Eof, "no end");
    Ok(reader.lines("reader.log", before + 1)?.remove(before))
}

#[test]
fn envoy_and_shunt_read_what_the_other_writes() -> Result<()> {
    lab(|lab| {
        let upstream = Upstream::echo("up")?;
        let mut cases = Cases::new();
        for (from, to) in [(Kind::Shunt, Kind::Envoy), (Kind::Envoy, Kind::Shunt), (Kind::Shunt, Kind::Shunt)]
        {
            let reader = reader(lab, to, &upstream)?;
            let writer = writer(lab, from, reader.at("reader")?)?;
            for (version, tlvs) in [("V1", "- -"), ("V2", "\"aa\" \"own\"")] {
                cases.case(format_args!("{} to {}: {version}", from.name(), to.name()), || {
                    let line = heard(&writer, version, &reader)?;
                    ensure!(
                        line.replace("\"aa\"", "aa").replace("\"own\"", "own")
                            == format!("1.2.3.4:1111 5.6.7.8:2222 {}", tlvs.replace('"', "")),
                        "{line}"
                    );
                    Ok(())
                });
            }
        }
        cases.finish()
    })
}

/// Waits until a program listens.
fn listens(mut process: Process, at: SocketAddr) -> Result<Process> {
    until(&format!("listener at {at}"), Duration::from_secs(15), || {
        if let Some(status) = process.exited()? {
            bail!("it ended ({status}): {}{}", process.stdout(), process.stderr());
        }
        Ok(std::net::TcpStream::connect(at).is_ok().then_some(()))
    })?;
    Ok(process)
}

fn config_file(lab: &Lab, name: &str, text: &str) -> Result<std::path::PathBuf> {
    let path = lab.dir().join(name);
    std::fs::write(&path, text)?;
    Ok(path)
}

#[test]
fn haproxy_reads_and_writes_headers() -> Result<()> {
    lab(|lab| {
        let upstream = Upstream::echo("up")?;
        let reader = reader(lab, Kind::Shunt, &upstream)?;
        let (at, to) = (free()?, reader.at("reader")?);
        let servers = [("send-proxy", free()?), ("send-proxy-v2", free()?)];
        let mut text =
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n".to_owned();
        for (option, at) in servers {
            text += &format!("listen {option}\n bind {at} accept-proxy\n server up {to} {option}\n");
        }
        text += &format!("listen spare\n bind {at}\n server up {to}\n");
        let file = config_file(lab, "haproxy.cfg", &text)?;
        let process = lab.program("haproxy", &Place::default())?.args(["-db", "-f"]).arg(file).spawn()?;
        let _process = listens(process, at)?;
        let mut cases = Cases::new();
        for (option, at) in servers {
            let writer = writer(lab, Kind::Shunt, at)?;
            for version in VERSIONS {
                cases.case(format_args!("{version} to HAProxy, {option} back"), || {
                    let line = heard(&writer, version, &reader)?;
                    ensure!(line == "1.2.3.4:1111 5.6.7.8:2222 - -", "{line}");
                    Ok(())
                });
            }
        }
        cases.finish()
    })
}

#[test]
fn nginx_reads_and_writes_headers() -> Result<()> {
    lab(|lab| {
        let upstream = Upstream::echo("up")?;
        let reader = reader(lab, Kind::Shunt, &upstream)?;
        let (at, spare, to) = (free()?, free()?, reader.at("reader")?);
        let dir = lab.dir().display().to_string();
        let text = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n\
             daemon off;\nmaster_process off;\npid {dir}/nginx.pid;\nerror_log stderr;\n\
             events {{}}\n\
             stream {{\n\
               log_format seen '$proxy_protocol_addr:$proxy_protocol_port $proxy_protocol_server_addr:$proxy_protocol_server_port';\n\
               access_log {dir}/nginx.log seen;\n\
               server {{ listen {at} proxy_protocol; set_real_ip_from 127.0.0.1; proxy_protocol on; proxy_pass {to}; }}\n\
               server {{ listen {spare}; return ready; }}\n\
             }}\n"
        );
        let file = config_file(lab, "nginx.conf", &text)?;
        let process =
            lab.program("nginx", &Place::default())?.arg("-c").arg(file).arg("-p").arg(&dir).spawn()?;
        let _process = listens(process, spare)?;
        let mut cases = Cases::new();
        let writer = writer(lab, Kind::Shunt, at)?;
        for version in VERSIONS {
            cases.case(format_args!("{version} to nginx, V1 back"), || {
                let log = lab.dir().join("nginx.log");
                let before = lines(&log).len();
                let line = heard(&writer, version, &reader)?;
                // nginx passes on the client that it was told of, with its own address as the destination.
                ensure!(line == format!("1.2.3.4:1111 {at} - -"), "{line}");
                let seen = eventually("line of nginx", Duration::from_secs(5), || {
                    lines(&log).into_iter().skip(before).next_back().context("no line")
                })?;
                ensure!(seen == "1.2.3.4:1111 5.6.7.8:2222", "{seen}");
                Ok(())
            });
        }
        cases.finish()
    })
}

fn lines(file: &Path) -> Vec<String> {
    std::fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn the_header_comes_before_the_client_hello() -> Result<()> {
    lab(|lab| {
        let pki = Pki::new(lab)?;
        let ca = pki.root("root")?;
        let server = ca.issue("server", &Leaf::new().dns("a.example.com"))?;
        let mut cases = Cases::new();
        for (version, kind) in VERSIONS.into_iter().flat_map(|v| Kind::BOTH.map(|kind| (v, kind))) {
            cases.case(format_args!("{}: {version}", kind.name()), || {
                // What comes first on the wire.
                let tls = TlsContext::new().trust(ca.file()).field("sni: a.example.com");
                let plain = TcpListener::bind("127.0.0.1:0")?;
                let field = announced(&format!("version: {version}"), &tls.upstream());
                let config = Bootstrap::new().static_cluster("first", &[plain.local_addr()?], &field);
                let proxy = Proxy::start(lab, kind, &relay(config, "first", "127.0.0.1").yaml())?;
                let mut client = Client::connect(proxy.at("first")?)?;
                client.send(header(&[]))?;
                client.send("hello\n")?;
                let (mut stream, _) = plain.accept()?;
                stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                let expected = written(version, "1.2.3.4:1111".parse()?, "5.6.7.8:2222".parse()?);
                let mut seen = vec![0; expected.len() + 2];
                stream.read_exact(&mut seen)?;
                // A handshake's record follows.
                ensure!(seen == [&expected[..], &[0x16, 3]].concat(), "{:?}", String::from_utf8_lossy(&seen));
                Ok(())
            });
        }
        // With Envoy as the server: its listener filter takes the header off, its TLS the rest.
        let upstream = Upstream::echo("up")?;
        let context = TlsContext::new().certificate(&server).downstream();
        let log = file_log("tls.log", "%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_TLS_VERSION%");
        let inner = shunt_tests::tls_context::tls_chain(
            "",
            &context,
            &[tcp_proxy("tls", &format!("cluster: up, access_log: [ {log} ]"))],
        );
        let fields = format!("listener_filters: [ {} ], filter_chains: [ {inner} ]", proxy_protocol(""));
        let config = Bootstrap::new().static_cluster("up", &[upstream.address], "").listener("tls", &fields);
        let envoy = Proxy::start(lab, Kind::Envoy, &config.yaml())?;
        for (n, version) in VERSIONS.into_iter().enumerate() {
            cases.case(format_args!("shunt to Envoy: {version}"), || {
                let tls = TlsContext::new().trust(ca.file()).field("sni: a.example.com");
                let field = announced(&format!("version: {version}"), &tls.upstream());
                let config = Bootstrap::new().static_cluster("tls", &[envoy.at("tls")?], &field);
                let shunt = Proxy::start(lab, Kind::Shunt, &relay(config, "tls", "127.0.0.1").yaml())?;
                let mut client = Client::connect(shunt.at("tls")?)?;
                client.send(header(&[]))?;
                ensure!(client.ask("hello")? == "up hello", "another answer");
                client.half_close()?;
                ensure!(client.end()?.1 == End::Eof, "no end");
                let line = envoy.lines("tls.log", n + 1)?.remove(n);
                ensure!(line == "1.2.3.4:1111 TLSv1.2", "{line}");
                Ok(())
            });
        }
        cases.finish()
    })
}

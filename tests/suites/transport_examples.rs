//! `examples/transport_socket-*`: chapters 5.1 to 5.4 of the transport socket post, with real peers.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use shunt_tests::example::Example;
use shunt_tests::http_echo::{self, Answer, HttpEcho};
use shunt_tests::mesh::{GATEWAY, PRODUCTPAGE, Workload};
use shunt_tests::pki::Validity;
use shunt_tests::{
    Cases, Client, Does, End, Kind, Lab, Mesh, Pair, Place, Proxy, TlsClient, TlsOptions, TlsServer,
    Upstream, lab, until,
};

const LISTENER: &str = "0.0.0.0_8080";
const SNI: &str = "outbound_.9080_._.productpage.istio.svc.cluster.local";

/// The gateway's example in both proxies, with productpage at a backend's port.
fn gateway(lab: &Lab, workload: &Workload, name: &str, port: u16) -> Result<Pair> {
    Pair::start(lab, workload.example(name)?.free(8_080)?.port(9_080, port)?.yaml())
}

/// The post's `curl`.
fn get(proxy: &Proxy, listener: &str) -> Result<Answer> {
    http_echo::ask(proxy.at(listener)?, "GET /hello", &[("host", "productpage")])
}

fn ask(proxy: &Proxy, listener: &str) -> Result<()> {
    let answer = get(proxy, listener)?;
    ensure!(answer.status == 200 && served(&answer.body), "{answer:?}");
    Ok(())
}

/// By productpage.
fn served(text: &str) -> bool {
    text.contains("GET /hello HTTP/1.1") || text.ends_with("productpage")
}

/// A productpage that asks for a certificate of the mesh.
fn productpage(mesh: &Mesh<'_>, name: &str, id: &str, validity: Validity) -> Result<TlsServer> {
    let identity = mesh.issue(name, id, validity)?;
    TlsServer::start(
        "productpage",
        Does::Http,
        &TlsOptions::new(&identity).clients(mesh.ca.file()).alpn(&["http/1.1"]),
    )
}

/// A request through each proxy reaches productpage under TLS, from the gateway by its certificate.
fn secured(pair: &Pair, workload: &Workload, server: &TlsServer, name: Option<&str>) -> Result<()> {
    for proxy in pair.both() {
        let mark = server.mark();
        ask(proxy, LISTENER).context(proxy.kind.name())?;
        let seen = server.ended(mark)?;
        ensure!(seen.secure && seen.end == "close_notify", "{}: {seen:?}", proxy.kind.name());
        ensure!(seen.server_name.as_deref() == name, "{}: {:?}", proxy.kind.name(), seen.server_name);
        ensure!(seen.chain.first().is_some_and(|leaf| *leaf == workload.identity.der()), "another client");
        ensure!(seen.head.starts_with(b"GET /hello HTTP/1.1\r\n"), "{seen:?}");
    }
    Ok(())
}

/// Another workload at productpage's address hears nothing; the client gets 503, but for what is no GET.
fn refused(pair: &Pair, server: &TlsServer) -> Result<()> {
    for proxy in pair.both() {
        let mark = server.mark();
        let answer = get(proxy, LISTENER)?;
        ensure!(answer.status == 503, "{}: {answer:?}", proxy.kind.name());
        let post = http_echo::ask(proxy.at(LISTENER)?, "DELETE /", &[("host", "productpage")])?;
        ensure!(post.status == 404, "{}: {post:?}", proxy.kind.name());
        let seen = server.ended(mark)?;
        ensure!(seen.bytes == 0, "{}: {seen:?}", proxy.kind.name());
        proxy.expect_stat("cluster.my-productpage.ssl.fail_verify_san", 1)?;
    }
    Ok(())
}

#[test]
fn raw_buffer() -> Result<()> {
    lab(|lab| {
        let workload = Mesh::new(lab)?.workload("gateway", GATEWAY)?;
        let upstream = HttpEcho::start("productpage")?;
        let pair = gateway(lab, &workload, "transport_socket-raw_buffer.yaml", upstream.address.port())?;
        for proxy in pair.both() {
            ask(proxy, LISTENER).context(proxy.kind.name())?;
        }
        Ok(())
    })
}

#[test]
fn tls_upstream() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let workload = mesh.workload("gateway", GATEWAY)?;
        let name = "transport_socket-tls_upstream.yaml";
        let mut cases = Cases::new();
        for (what, id, validity) in [
            ("productpage", PRODUCTPAGE, Validity::Now),
            ("productpage with an expired certificate", PRODUCTPAGE, Validity::Past),
            ("another workload", "spiffe://cluster.local/ns/istio/sa/bookinfo-reviews", Validity::Now),
            ("a longer name", &format!("{PRODUCTPAGE}-2"), Validity::Now),
        ] {
            cases.case(what, || {
                let server = productpage(&mesh, &what.replace(' ', "-"), id, validity)?;
                let pair = gateway(lab, &workload, name, server.address.port())?;
                if id == PRODUCTPAGE {
                    secured(&pair, &workload, &server, Some(SNI))
                } else {
                    refused(&pair, &server)
                }
            });
        }
        cases.finish()
    })
}

#[test]
fn tcp_stats() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let workload = mesh.workload("gateway", GATEWAY)?;
        let server = productpage(&mesh, "productpage", PRODUCTPAGE, Validity::Now)?;
        let pair = gateway(lab, &workload, "transport_socket-tcp_stats.yaml", server.address.port())?;
        secured(&pair, &workload, &server, Some(SNI))?;
        pair.both().into_iter().try_for_each(measured)
    })
}

/// Bytes on the wire are more than the line that was sent: there was a handshake.
fn measured(proxy: &Proxy) -> Result<()> {
    let sent = until("statistics of the end", Duration::from_secs(8), || {
        let sent = proxy.stat("cluster.my-productpage.tcp_stats.cx_tx_bytes_sent")?;
        Ok((sent > 0).then_some(sent))
    })?;
    ensure!((500..10_000).contains(&sent), "{}: {sent} bytes", proxy.kind.name());
    Ok(())
}

/// The one file that a proxy's tap has written.
fn trace(proxy: &Proxy) -> Result<Vec<u8>> {
    let end = ".pb_length_delimited";
    let found = || -> Result<Vec<_>> {
        let entries = fs::read_dir(proxy.dir())?.collect::<std::io::Result<Vec<_>>>()?;
        Ok(entries.into_iter().map(|e| e.path()).filter(|p| p.to_string_lossy().ends_with(end)).collect())
    };
    let closed = |bytes: &Vec<u8>| contains(bytes, b"HTTP/1.1 200 OK");
    until("trace of a connection", Duration::from_secs(8), || {
        let files = found()?;
        ensure!(files.len() <= 1, "{}: {files:?}", proxy.kind.name());
        Ok(files.first().map(fs::read).transpose()?.filter(closed))
    })
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn tap() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let workload = mesh.workload("gateway", GATEWAY)?;
        // Any workload of the mesh will do.
        let server = productpage(
            &mesh,
            "reviews",
            "spiffe://cluster.local/ns/istio/sa/bookinfo-reviews",
            Validity::Now,
        )?;
        let pair = gateway(lab, &workload, "transport_socket-tap.yaml", server.address.port())?;
        secured(&pair, &workload, &server, None)?;
        for proxy in pair.both() {
            let trace = trace(proxy)?;
            ensure!(
                contains(&trace, b"GET /hello HTTP/1.1"),
                "{}: no request in the trace",
                proxy.kind.name()
            );
        }
        Ok(())
    })
}

#[test]
fn three_in_each_other() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let workload = mesh.workload("gateway", GATEWAY)?;
        let server = productpage(&mesh, "productpage", PRODUCTPAGE, Validity::Now)?;
        let pair = gateway(lab, &workload, "transport_socket-tap-tcp_stats.yaml", server.address.port())?;
        secured(&pair, &workload, &server, Some(SNI))?;
        for proxy in pair.both() {
            measured(proxy)?;
            ensure!(contains(&trace(proxy)?, b"GET /hello HTTP/1.1"), "{}: no request", proxy.kind.name());
        }
        let other = productpage(
            &mesh,
            "reviews",
            "spiffe://cluster.local/ns/istio/sa/bookinfo-reviews",
            Validity::Now,
        )?;
        let pair = gateway(lab, &workload, "transport_socket-tap-tcp_stats.yaml", other.address.port())?;
        refused(&pair, &other)
    })
}

#[test]
fn starttls_that_no_filter_drives_stays_plain_text() -> Result<()> {
    lab(|lab| {
        let workload = Mesh::new(lab)?.workload("gateway", GATEWAY)?;
        let upstream = HttpEcho::start("productpage")?;
        for name in
            ["transport_socket-matches-starttls_upstream.yaml", "transport_socket-starttls_downstream.yaml"]
        {
            let pair = gateway(lab, &workload, name, upstream.address.port())?;
            for proxy in pair.both() {
                ask(proxy, LISTENER).with_context(|| format!("{name}: {}", proxy.kind.name()))?;
            }
        }
        Ok(())
    })
}

#[test]
fn tls_downstream() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let workload = mesh.workload("gateway", GATEWAY)?;
        let upstream = HttpEcho::start("productpage")?;
        let example = workload.example("transport_socket-tls_downstream.yaml")?.free(8_443)?;
        let pair = Pair::start(lab, example.backend(9_080, upstream.address)?.yaml())?;
        let stranger = mesh.issue("stranger", "spiffe://cluster.local/ns/a/sa/b", Validity::Now)?;
        for proxy in pair.both() {
            let plain = TlsClient::new().alpn(&["http/1.1"]);
            for client in [plain.clone(), plain.identity(&stranger)] {
                let mut stream = client.connect(proxy.at("proxy")?)?;
                stream.send("GET /hello HTTP/1.1\r\nhost: productpage\r\nconnection: close\r\n\r\n")?;
                let agreed = stream.agreed()?;
                ensure!(agreed.alpn.as_deref() == Some("http/1.1"), "{}: {agreed:?}", proxy.kind.name());
                ensure!(
                    agreed.chain.first().is_some_and(|leaf| *leaf == workload.identity.der()),
                    "{agreed:?}"
                );
                let rest = stream.rest()?;
                let good = rest.starts_with("HTTP/1.1 200 OK\r\n") && rest.ends_with(" close_notify");
                ensure!(good && rest.contains("GET /hello"), "{}: {rest}", proxy.kind.name());
            }
            let url = format!("https://{}/hello", proxy.at("proxy")?);
            let args = ["-sk", "--http2", "-w", " by HTTP/%{http_version}", &url];
            let said = lab.program("curl", &Place::default())?.args(args).run()?.stdout;
            ensure!(served(&said) && said.ends_with(" by HTTP/2"), "{}: {said}", proxy.kind.name());
            // A client that does not speak TLS gets nothing, and nothing of it reaches productpage.
            let before = proxy.stat("cluster.my-productpage.upstream_rq_total")?;
            let mut client = Client::connect(proxy.at("proxy")?)?;
            client.send("GET /hello HTTP/1.1\r\nhost: productpage\r\n\r\n")?;
            let (bytes, end) = client.end()?;
            ensure!(!contains(&bytes, b"hello") && end != End::Open, "{}: {bytes:?}", proxy.kind.name());
            let after = proxy.stat("cluster.my-productpage.upstream_rq_total")?;
            ensure!(after == before, "{}: it was connected", proxy.kind.name());
        }
        Ok(())
    })
}

#[test]
fn upstream_proxy_protocol() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let upstream = HttpEcho::start("productpage")?;
        let (gateway, sidecar) = (mesh.workload("gateway", GATEWAY)?, mesh.workload("sidecar", PRODUCTPAGE)?);
        let inbound = "transport_socket-matches-upstream_proxy_protocol-inbound.yaml";
        let inbound = sidecar.example(inbound)?.free(15_006)?.with("/dev/stdout", "@DIR@/access.log")?;
        let inbound = inbound.backend(9_080, upstream.address)?;
        let outbound = "transport_socket-matches-upstream_proxy_protocol.yaml";
        let mut cases = Cases::new();
        for (from, to) in [(Kind::Shunt, Kind::Envoy), (Kind::Envoy, Kind::Shunt), (Kind::Shunt, Kind::Shunt)]
        {
            cases.case(format_args!("{} to {}", from.name(), to.name()), || {
                let inbound = Proxy::start(lab, to, inbound.yaml())?;
                let outbound =
                    gateway.example(outbound)?.free(8_080)?.backend(9_080, inbound.at("virtualInbound")?)?;
                let outbound = Proxy::start(lab, from, outbound.yaml())?;
                let mut client = Client::connect_from([127, 0, 0, 9], 0, outbound.at(LISTENER)?)?;
                client.send("GET /hello HTTP/1.1\r\nhost: productpage\r\nconnection: close\r\n\r\n")?;
                let rest = client.rest()?;
                ensure!(rest.starts_with("HTTP/1.1 200 OK\r\n") && rest.ends_with(" FIN"), "{rest}");
                ensure!(
                    rest.contains("\r\nserver: istio-envoy\r\n") || rest.contains("\r\nserver: envoy\r\n"),
                    "{rest}"
                );
                // productpage is told who it was.
                ensure!(rest.contains(&format!(";URI={GATEWAY}")), "{rest}");
                let line = inbound.lines("access.log", 1)?.remove(0);
                // Who connected, to which address of the gateway's, with which name.
                let expected = format!(" {} {} {SNI} default", outbound.at(LISTENER)?, client.local()?);
                ensure!(line.ends_with(&expected), "{line} does not end with {expected}");
                // Without a header there is no connection, though the certificate is good.
                let client = TlsClient::new().identity(&gateway.identity);
                client.refused(inbound.at("virtualInbound")?).map(drop)?;
                Ok(())
            });
        }
        cases.finish()
    })
}

#[test]
fn upstream_proxy_protocol_over_raw_buffer() -> Result<()> {
    lab(|lab| {
        let workload = Mesh::new(lab)?.workload("gateway", GATEWAY)?;
        let upstream = Upstream::start("productpage", Does::Http)?;
        let name = "transport_socket-matches-upstream_proxy_protocol-raw_buffer.yaml";
        let pair = gateway(lab, &workload, name, upstream.address.port())?;
        for proxy in pair.both() {
            let mark = upstream.mark();
            let mut client = Client::connect(proxy.at(LISTENER)?)?;
            client.send("GET /hello HTTP/1.1\r\nhost: productpage\r\nconnection: close\r\n\r\n")?;
            let rest = client.rest()?;
            ensure!(rest.starts_with("HTTP/1.1 200 OK\r\n") && rest.ends_with(" FIN"), "{rest}");
            let (from, to) = (client.local()?, proxy.at(LISTENER)?);
            let expected = format!(
                "PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\nGET /hello HTTP/1.1\r\n",
                from.port(),
                to.port()
            );
            let seen = upstream.ended(mark)?;
            ensure!(seen.head.starts_with(expected.as_bytes()), "{}: {seen:?}", proxy.kind.name());
        }
        Ok(())
    })
}

#[test]
fn alts_is_refused_by_name() -> Result<()> {
    lab(|lab| {
        let example = Example::load("transport_socket-alts.yaml")?.free(15_000)?.free(18_081)?;
        let file = lab.dir().join("alts.yaml");
        fs::write(&file, example.yaml())?;
        let check = lab.shunt(&Place::default())?.args(["check", "-c"]).arg(&file).output()?;
        let said = format!("{}{}", check.stdout, check.stderr);
        ensure!(!check.status.success() && said.contains("envoy.transport_sockets.alts"), "{said}");
        let run = Kind::Shunt.output(lab, example.yaml(), &[])?;
        ensure!(!run.status.success(), "it runs: {run:?}");
        Ok(())
    })
}

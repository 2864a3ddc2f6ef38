//! The exchange on connections of TCP.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use shunt_tests::bootstrap::{file_log, tcp_proxy};
use shunt_tests::{Client, Lab, TlsClient, Upstream, lab};

use super::rig::{BOTH, METADATA_ID, Sample, Sidecars, counted, exchange, expect, samples, sidecars, stats};
use crate::tls_common::{CLIENT, Mesh};

/// Both sides of a TCP service, with the exchange on them.
fn tcp_sidecars(lab: &Lab, mesh: &Mesh<'_>, app: SocketAddr, protocols: &[&str]) -> Result<Sidecars> {
    let log =
        file_log("log", "%FILTER_STATE(downstream_peer:FIELD:workload)% %FILTER_STATE(upstream_peer:PLAIN)%");
    let own = "tcp_reporting_duration: 1s, metrics: [ { name: tcp_connections_opened_total, dimensions: { role: \
               \"filter_state.downstream_peer.labels['role']\" } } ]";
    let proxy = |cluster: &str| tcp_proxy("t", &format!("cluster: {cluster:?}, access_log: [ {log} ]"));
    let inbound = [exchange("istio-peer-exchange"), stats(own), proxy("inbound|80||")];
    let outbound = [stats("tcp_reporting_duration: 1s"), proxy("outbound|80||ratings")];
    let fields = format!("filters: [ {} ]", exchange("istio-peer-exchange"));
    sidecars(lab, mesh, app, protocols, (&inbound, &outbound), &fields)
}

#[test]
fn peers_tell_each_other_before_the_first_byte_and_both_sidecars_count_them() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let app = Upstream::echo("app")?;
        let sidecars = tcp_sidecars(lab, &mesh, app.address, &["istio-peer-exchange", "istio"])?;
        let Sidecars { server, client } = &sidecars;
        let mut talk = Client::connect(client.at("out")?)?;
        let answer = talk.ask("hello")?;
        ensure!(answer.ends_with("hello"), "{answer}{}", client.log());
        // While it goes on.
        let labels = counted(server, "istio_tcp_connections_opened_total", 1.0)?;
        expect(&labels, &BOTH)?;
        expect(
            &labels,
            &[
                ("reporter", "destination"),
                ("request_protocol", "tcp"),
                ("response_flags", "-"),
                ("connection_security_policy", "mutual_tls"),
                ("role", "client"),
            ],
        )?;
        ensure!(!labels.contains_key("response_code"), "{labels:#?}");
        let labels = counted(client, "istio_tcp_connections_opened_total", 1.0)?;
        expect(&labels, &BOTH)?;
        expect(&labels, &[("reporter", "source"), ("connection_security_policy", "unknown")])?;
        let closed =
            |sample: &Sample| sample.name == "istio_tcp_connections_closed_total" && sample.value > 0.0;
        ensure!(!samples(server)?.iter().any(closed), "it is open still");
        drop(talk);
        for proxy in [server, client] {
            counted(proxy, "istio_tcp_connections_closed_total", 1.0)?;
            counted(proxy, "istio_tcp_received_bytes_total", 6.0)?;
            proxy.expect_stat("metadata_exchange.alpn_protocol_found", 1)?;
            proxy.expect_stat("metadata_exchange.metadata_added", 1)?;
            proxy.expect_stat("metadata_exchange.initial_header_not_found", 0)?;
        }
        ensure!(server.lines("log", 1)?[0] == "productpage-v1 -", "{:?}", server.lines("log", 1)?);
        let line = &client.lines("log", 1)?[0];
        ensure!(line.starts_with("- type=deployment,workload=ratings-v1,"), "{line}");
        Ok(())
    })
}

#[test]
fn peers_that_have_not_agreed_tell_nothing() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let app = Upstream::echo("app")?;
        let sidecars = tcp_sidecars(lab, &mesh, app.address, &["istio"])?;
        let Sidecars { server, client } = &sidecars;
        let answer = Client::connect(client.at("out")?)?.ask("hello")?;
        ensure!(answer.ends_with("hello"), "{answer}");
        for proxy in [server, client] {
            proxy.expect_stat("metadata_exchange.alpn_protocol_not_found", 1)?;
            counted(proxy, "istio_tcp_connections_closed_total", 1.0)?;
        }
        let labels = counted(server, "istio_tcp_connections_opened_total", 1.0)?;
        let expected =
            [("source_workload", "unknown"), ("source_workload_namespace", "a"), ("role", "unknown")];
        expect(&labels, &expected)?;
        expect(&labels, &[("source_principal", CLIENT), ("source_canonical_revision", "latest")])?;
        Ok(())
    })
}

#[test]
fn what_is_no_preamble_passes_and_one_that_is_too_long_does_not() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let app = Upstream::echo("app")?;
        let sidecars = tcp_sidecars(lab, &mesh, app.address, &["istio-peer-exchange"])?;
        let server = &sidecars.server;
        let client = TlsClient::new()
            .identity(&mesh.client)
            .trust(mesh.root.file())
            .name("a.example.com")
            .alpn(&["istio-peer-exchange"]);
        let ours = |stream: &mut shunt_tests::tls::TlsStream| -> Result<()> {
            let head = stream.exactly(8)?;
            ensure!(head[..4] == [0x3d, 0x23, 0x04, 0x67], "{head:02x?}");
            let length = u32::from_be_bytes(head[4..].try_into()?) as usize;
            let any = stream.exactly(length)?;
            let text = String::from_utf8_lossy(&any);
            for part in ["type.googleapis.com/google.protobuf.Struct", METADATA_ID, "ratings-v1", "NAMESPACE"]
            {
                ensure!(text.contains(part), "{part}: {text:?}");
            }
            ensure!(!text.contains("ISTIO_VERSION"), "{text:?}");
            Ok(())
        };
        // Shorter than a preamble's head, and told from one at once.
        let mut stream = client.connect(server.at("in")?)?;
        ours(&mut stream)?;
        let answer = stream.ask("hi")?;
        ensure!(answer.ends_with("hi"), "{answer}");
        server.expect_stat("metadata_exchange.initial_header_not_found", 1)?;
        // In pieces, and with somebody in it that nobody can read; what follows is the application's.
        let mut stream = client.connect(server.at("in")?)?;
        for piece in [&b"\x3d\x23"[..], b"\x04\x67\0\0\0", b"\x04ab", b"cd"] {
            stream.send(piece)?;
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        ours(&mut stream)?;
        let answer = stream.ask("after")?;
        ensure!(answer.ends_with("after"), "{answer}");
        server.expect_stat("metadata_exchange.header_not_found", 1)?;
        let mut stream = client.connect(server.at("in")?)?;
        ours(&mut stream)?;
        stream.send(b"\x3d\x23\x04\x67\xff\xff\xff\xff")?;
        let (rest, _) = stream.end()?;
        ensure!(rest.is_empty(), "{rest:?}");
        server.expect_stat("metadata_exchange.header_not_found", 2)?;
        Ok(())
    })
}

//! Istio's filters, between two sidecars with identities of one mesh: who tells whom what, and what both count.
//!
//! The real Envoy has none of them: what is expected is what the tests of Istio's own proxy expect.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use shunt_tests::bootstrap::{chain, extension, file_log, tcp_proxy};
use shunt_tests::http_echo::{self, HttpEcho};
use shunt_tests::tls_context::tls_chain;
use shunt_tests::{
    Bootstrap, Client, Kind, Lab, Proxy, TlsClient, TlsContext, TlsOptions, TlsServer, Upstream, lab, until,
};

use crate::tls_common::{CLIENT, Mesh, SERVER};

const METADATA: &str = "x-envoy-peer-metadata";
const METADATA_ID: &str = "x-envoy-peer-metadata-id";

/// An extension of Istio, as istiod sends it.
fn istio(name: &str, of_type: &str, value: &str) -> String {
    let fields = format!("type_url: type.googleapis.com/{of_type}, value: {{ {value} }}");
    extension(name, "udpa.type.v1.TypedStruct", &fields)
}

fn peer_metadata(value: &str) -> String {
    istio("istio.metadata_exchange", "io.istio.http.peer_metadata.Config", value)
}

fn stats(value: &str) -> String {
    istio("istio.stats", "stats.PluginConfig", value)
}

fn exchange(protocol: &str) -> String {
    let value = format!("protocol: {protocol}, additional_labels: [ role ]");
    istio("istio.metadata_exchange", "envoy.tcp.metadataexchange.config.MetadataExchange", &value)
}

fn inbound() -> String {
    peer_metadata(
        "downstream_discovery: [ { istio_headers: {} } ], downstream_propagation: [ { istio_headers: {} } ]",
    )
}

fn outbound() -> String {
    peer_metadata(
        "upstream_discovery: [ { istio_headers: {} } ], \
         upstream_propagation: [ { istio_headers: { skip_external_clusters: true } } ]",
    )
}

/// `istio.alpn`, as istiod configures it.
fn alpn() -> String {
    istio(
        "istio.alpn",
        "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
        "alpn_override: [ { alpn_override: [ istio-http/1.0, istio, http/1.0 ] }, \
         { upstream_protocol: HTTP11, alpn_override: [ istio-http/1.1, istio, http/1.1 ] }, \
         { upstream_protocol: HTTP2, alpn_override: [ istio-h2, istio, h2 ] } ]",
    )
}

/// A connection manager with one route to one cluster.
fn manager(filters: &[String], cluster: &str) -> String {
    let log = file_log(
        "log",
        "%RESPONSE_CODE% %FILTER_STATE(downstream_peer:FIELD:workload)% %FILTER_STATE(upstream_peer:FIELD:workload)%",
    );
    let router = extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", "");
    let filters: Vec<_> = filters.iter().cloned().chain([router]).collect();
    let routes = format!(
        "{{ name: r, virtual_hosts: [ {{ name: v, domains: [ \"*\" ], routes: [ {{ name: default, match: {{ prefix: / \
         }}, route: {{ cluster: {cluster:?} }} }} ] }} ] }}"
    );
    extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &format!(
            "stat_prefix: s, access_log: [ {log} ], route_config: {routes}, http_filters: [ {} ]",
            filters.join(", ")
        ),
    )
}

/// A workload as a node of the mesh.
fn node(config: Bootstrap, name: &str, app: &str) -> Bootstrap {
    let labels = format!(
        "app: {app}, version: v1, role: {name}, service.istio.io/canonical-name: {app}, \
         service.istio.io/canonical-revision: version-1"
    );
    config.top(&format!(
        "node: {{ id: \"sidecar~127.0.0.1~{name}\", cluster: {app}, metadata: {{ NAME: {app}-v1-abc, NAMESPACE: default, \
         WORKLOAD_NAME: {app}-v1, CLUSTER_ID: {name}-cluster, ISTIO_VERSION: 1.99.0, \
         OWNER: \"kubernetes://apis/apps/v1/namespaces/default/deployments/{app}-v1\", LABELS: {{ {labels} }} }} }}"
    ))
}

const SERVICE: &str = "metadata: { filter_metadata: { istio: { services: [ { host: ratings.default.svc.cluster.local, \
                       name: ratings, namespace: default } ] } } }";

/// One line of `/stats/prometheus`.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

fn samples(proxy: &Proxy) -> Result<Vec<Sample>> {
    let text = proxy.admin().ok("/stats/prometheus")?;
    text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(sample).collect()
}

fn sample(line: &str) -> Result<Sample> {
    let (name, rest) = line.split_once('{').with_context(|| line.to_owned())?;
    let (mut labels, mut rest) = (BTreeMap::new(), rest);
    while !rest.starts_with('}') {
        let (label, value) = rest.split_once("=\"").with_context(|| line.to_owned())?;
        let mut text = String::new();
        let mut chars = value.char_indices();
        let end = loop {
            match chars.next().with_context(|| line.to_owned())? {
                (at, '"') => break at + 1,
                (_, '\\') => text.extend(chars.next().map(|(_, char)| char)),
                (_, char) => text.push(char),
            }
        };
        labels.insert(label.trim_start_matches(',').to_owned(), text);
        rest = &value[end..];
    }
    let value = rest[1..].trim().parse().with_context(|| line.to_owned())?;
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// The only sample of that name and reporter, once it has that value; its labels.
fn counted(proxy: &Proxy, name: &str, value: f64) -> Result<BTreeMap<String, String>> {
    let mut last = Vec::new();
    let found = until(&format!("{name} = {value}"), std::time::Duration::from_secs(10), || {
        last = samples(proxy)?;
        last.retain(|sample| sample.name == name);
        Ok((last.len() == 1 && last[0].value == value).then(|| last[0].labels.clone()))
    });
    found.with_context(|| format!("{last:#?}{}", proxy.log()))
}

fn expect(labels: &BTreeMap<String, String>, expected: &[(&str, &str)]) -> Result<()> {
    for (label, value) in expected {
        let found = labels.get(*label).map(String::as_str);
        ensure!(found == Some(value), "{label} is {found:?}, not {value:?}: {labels:#?}");
    }
    Ok(())
}

/// What both reporters say of the two workloads.
const BOTH: [(&str, &str); 16] = [
    ("source_workload", "productpage-v1"),
    ("source_canonical_service", "productpage"),
    ("source_canonical_revision", "version-1"),
    ("source_app", "productpage"),
    ("source_version", "v1"),
    ("source_cluster", "client-cluster"),
    ("source_principal", CLIENT),
    ("destination_workload", "ratings-v1"),
    ("destination_principal", SERVER),
    ("destination_app", "ratings"),
    ("destination_version", "v1"),
    ("destination_service", "ratings.default.svc.cluster.local"),
    ("destination_canonical_service", "ratings"),
    ("destination_canonical_revision", "version-1"),
    ("destination_service_name", "ratings"),
    ("destination_cluster", "server-cluster"),
];

/// The server's sidecar, and the client's before it.
struct Sidecars {
    server: Proxy,
    client: Proxy,
}

/// `inbound` and `outbound` are the filters of the two listeners, `fields` more of the client's cluster.
fn sidecars(
    lab: &Lab,
    mesh: &Mesh<'_>,
    app: SocketAddr,
    protocols: &[&str],
    (inbound, outbound): (&[String], &[String]),
    fields: &str,
) -> Result<Sidecars> {
    let tls = tls_chain("", &mesh.mutual().alpn(protocols).downstream(), inbound);
    let config = Bootstrap::new()
        .static_cluster("inbound|80||", &[app], SERVICE)
        .listener("in", &format!("traffic_direction: INBOUND, filter_chains: [ {tls} ]"));
    let server = Proxy::start(lab, Kind::Shunt, &node(config, "server", "ratings").yaml())?;
    let context = TlsContext::new().certificate(&mesh.client).trust(mesh.root.file()).uri(SERVER);
    let context = context.alpn(protocols).cluster();
    let plain = chain("", outbound);
    let config = Bootstrap::new()
        .static_cluster(
            "outbound|80||ratings",
            &[server.at("in")?],
            &format!("{context}, {SERVICE}, {fields}"),
        )
        .listener("out", &format!("traffic_direction: OUTBOUND, filter_chains: [ {plain} ]"));
    let client = Proxy::start(lab, Kind::Shunt, &node(config, "client", "productpage").yaml())?;
    Ok(Sidecars { server, client })
}

#[test]
fn peers_tell_each_other_by_headers_and_both_sidecars_count_them() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let app = HttpEcho::start("app")?;
        let own = "metrics: [ { name: requests_total, dimensions: { host: request.host, odd: \"no | such\" }, \
                   tags_to_remove: [ response_flags ] }, { name: request_bytes, drop: true } ]";
        let inbound = [manager(&[inbound(), stats("")], "inbound|80||")];
        let outbound = [manager(&[outbound(), alpn(), stats(own)], "outbound|80||ratings")];
        let sidecars =
            sidecars(lab, &mesh, app.address, &["istio-http/1.1", "h2"], (&inbound, &outbound), "")?;
        let Sidecars { server, client } = &sidecars;
        for _ in 0..3 {
            let answer = http_echo::ask(client.at("out")?, "GET /", &[("host", "ratings")])?;
            ensure!(answer.status == 200, "{answer:?}{}", server.log());
            for name in [METADATA, METADATA_ID] {
                ensure!(!answer.body.contains(name), "the application was told: {}", answer.body);
                ensure!(answer.header(name).is_none(), "the client was told: {answer:?}");
            }
        }
        let labels = counted(server, "istio_requests_total", 3.0)?;
        expect(&labels, &BOTH)?;
        expect(
            &labels,
            &[
                ("reporter", "destination"),
                // As its certificate says.
                ("source_workload_namespace", "a"),
                ("destination_workload_namespace", "default"),
                ("destination_service_namespace", "default"),
                ("request_protocol", "http"),
                ("response_code", "200"),
                ("grpc_response_status", ""),
                ("response_flags", "-"),
                ("connection_security_policy", "mutual_tls"),
            ],
        )?;
        ensure!(labels.len() == 25, "{labels:#?}");
        let labels = counted(client, "istio_requests_total", 3.0)?;
        expect(&labels, &BOTH)?;
        expect(
            &labels,
            &[
                ("reporter", "source"),
                ("source_workload_namespace", "default"),
                ("destination_workload_namespace", "a"),
                ("destination_service_namespace", "default"),
                ("connection_security_policy", "unknown"),
                ("host", "ratings"),
            ],
        )?;
        ensure!(!labels.contains_key("response_flags") && !labels.contains_key("odd"), "{labels:#?}");
        counted(server, "istio_request_duration_milliseconds_count", 3.0)?;
        counted(server, "istio_response_bytes_count", 3.0)?;
        ensure!(!samples(client)?.iter().any(|sample| sample.name.starts_with("istio_request_bytes")));
        let build = counted(client, "istio_build", 1.0)?;
        expect(&build, &[("component", "proxy"), ("tag", "1.99.0")])?;
        let text = server.admin().ok("/stats?filter=istio_requests_total")?;
        let name = "istiocustom.istio_requests_total.reporter.destination.source_workload.productpage-v1.";
        ensure!(
            text.starts_with(name) && text.ends_with(".connection_security_policy.mutual_tls: 3\n"),
            "{text}"
        );
        let json = server.admin().json("/stats?format=json&filter=istio_requests_total")?;
        ensure!(json["stats"][0]["value"] == 3, "{json}");
        ensure!(server.lines("log", 3)?[0] == "200 productpage-v1 -", "{:?}", server.lines("log", 3)?);
        ensure!(client.lines("log", 3)?[0] == "200 - ratings-v1", "{:?}", client.lines("log", 3)?);
        Ok(())
    })
}

#[test]
fn the_server_tells_those_who_have_told_and_odd_headers_are_nobodys() -> Result<()> {
    lab(|lab| {
        let app = HttpEcho::start("app")?;
        let plain = chain("", &[manager(&[inbound(), stats("")], "inbound|80||")]);
        let config = Bootstrap::new()
            .static_cluster("inbound|80||", &[app.address], "")
            .listener("in", &format!("traffic_direction: INBOUND, filter_chains: [ {plain} ]"));
        let server = Proxy::start(lab, Kind::Shunt, &node(config, "server", "ratings").yaml())?;
        let ask = |headers: &[(&str, &str)]| -> Result<http_echo::Answer> {
            let headers: Vec<_> = [("host", "h")].iter().chain(headers).copied().collect();
            let answer = http_echo::ask(server.at("in")?, "GET /", &headers)?;
            ensure!(answer.status == 200, "{answer:?}");
            ensure!(!answer.body.contains(METADATA), "the application was told: {}", answer.body);
            Ok(answer)
        };
        let told = |answer: &http_echo::Answer| {
            (answer.header(METADATA_ID).map(str::to_owned), answer.header(METADATA).is_some())
        };
        let id = Some("sidecar~127.0.0.1~server".to_owned());
        ensure!(told(&ask(&[])?) == (None, false));
        ensure!(told(&ask(&[(METADATA_ID, "client")])?) == (id.clone(), false));
        // `WORKLOAD_NAME: w`, without padding.
        let good = "ChQKDVdPUktMT0FEX05BTUUSAxoBdw";
        ensure!(told(&ask(&[(METADATA_ID, "client"), (METADATA, good)])?) == (id, true));
        let huge = "A".repeat(40_000);
        for odd in ["!!!", "AAAA", "ChQKDVdPUktMT0FEX05BTUU", "////", "", &huge] {
            ask(&[(METADATA_ID, "client"), (METADATA, odd)])?;
        }
        let workloads = until("all requests", std::time::Duration::from_secs(10), || {
            let mut found = samples(&server)?;
            found.retain(|sample| sample.name == "istio_requests_total");
            let total: f64 = found.iter().map(|sample| sample.value).sum();
            Ok((total == 9.0).then_some(found))
        })?;
        let workloads: Vec<_> =
            workloads.iter().map(|sample| (sample.labels["source_workload"].clone(), sample.value)).collect();
        ensure!(workloads == [("unknown".to_owned(), 8.0), ("w".to_owned(), 1.0)], "{workloads:?}");
        Ok(())
    })
}

#[test]
fn clusters_outside_of_the_mesh_are_told_nothing() -> Result<()> {
    lab(|lab| {
        let app = HttpEcho::start("app")?;
        let plain = chain("", &[manager(&[outbound(), stats("")], "up")]);
        for (of_cluster, is_told) in
            [("", true), ("external: true", false), ("disable_mx: true", false), ("external: false", true)]
        {
            let metadata = format!("metadata: {{ filter_metadata: {{ istio: {{ {of_cluster} }} }} }}");
            let config = Bootstrap::new()
                .static_cluster("up", &[app.address], &metadata)
                .listener("out", &format!("traffic_direction: OUTBOUND, filter_chains: [ {plain} ]"));
            let client = Proxy::start(lab, Kind::Shunt, &node(config, "client", "productpage").yaml())?;
            let answer = http_echo::ask(client.at("out")?, "GET /", &[("host", "h:80")])?;
            ensure!(answer.body.contains(METADATA) == is_told, "{of_cluster}: {}", answer.body);
            let labels = counted(&client, "istio_requests_total", 1.0)?;
            expect(&labels, &[("destination_service", "h:80"), ("destination_workload", "unknown")])?;
        }
        Ok(())
    })
}

#[test]
fn the_upstream_is_offered_what_istio_alpn_says() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let options =
            TlsOptions::new(&mesh.server).alpn(&["istio-http/1.1", "istio-h2", "istio", "h2", "other"]);
        for (of_cluster, spoken) in [
            ("", Some("istio-http/1.1")),
            (
                "typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \
                 \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
                 explicit_http_config: { http2_protocol_options: {} } } }",
                Some("istio-h2"),
            ),
            ("metadata: { filter_metadata: { istio: { alpn_override: \"false\" } } }", Some("other")),
        ] {
            let server = TlsServer::echo("tls", &options)?;
            let context = TlsContext::new().trust(mesh.root.file()).alpn(&["other"]).cluster();
            let plain = chain("", &[manager(&[alpn()], "up")]);
            let config = Bootstrap::new()
                .static_cluster("up", &[server.address], &format!("{context}, {of_cluster}"))
                .listener("out", &format!("filter_chains: [ {plain} ]"));
            let proxy = Proxy::start(lab, Kind::Shunt, &config.yaml())?;
            let mark = server.mark();
            // It speaks no HTTP: what it agreed on is all that counts.
            let mut client = Client::connect(proxy.at("out")?)?;
            client.send("GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")?;
            let _ = client.end();
            let seen = server.ended(mark)?;
            ensure!(seen.alpn.as_deref() == spoken, "{of_cluster}: {seen:?}");
        }
        Ok(())
    })
}

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

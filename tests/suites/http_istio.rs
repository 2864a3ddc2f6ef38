//! Istio's filters, between two sidecars with identities of one mesh: who tells whom what, and what both count.
//!
//! The real Envoy has none of them: what is expected is what the tests of Istio's own proxy expect.

mod rig;
mod tcp;

use anyhow::{Result, ensure};
use shunt_tests::bootstrap::chain;
use shunt_tests::http_echo::{self, HttpEcho};
use shunt_tests::{Bootstrap, Client, Kind, Proxy, TlsContext, TlsOptions, TlsServer, lab, until};

use self::rig::{
    BOTH, METADATA, METADATA_ID, Sidecars, alpn, counted, expect, inbound, manager, node, outbound, samples,
    sidecars, stats,
};
use crate::tls_common::Mesh;

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

//! What a service is told of a client's TLS.

use std::collections::HashMap;

use anyhow::Result;
use serde_json::{Value, json};
use shunt_tests::authz::{Authz, compared};
use shunt_tests::{Cases, Leaf, Pair, Pki, TlsClient, TlsContext, lab};

use super::grpc::H2;
use super::{Site, bootstrap};
use crate::http_filters::peer::server;

#[test]
fn clients_with_certificates() -> Result<()> {
    lab(|lab| {
        let pki = Pki::new(lab)?;
        let ca = pki.root("ca")?;
        let own =
            ca.issue("server", &Leaf::spiffe("spiffe://a/server").dns("server.example").ip([127, 0, 0, 1]))?;
        let context = TlsContext::new().certificate(&own).trust(ca.file()).downstream();
        let context = format!("transport_socket: {context}");
        let service = |more: &str| {
            format!(
                "grpc_service: {{ envoy_grpc: {{ cluster_name: authz }}, timeout: 20s }}, include_tls_session: true, {more}"
            )
        };
        let mut sites = vec![
            Site::new("plain", service("")),
            Site::new("tls", service("include_peer_certificate: true")),
            Site::new("bare", service("")),
        ];
        for site in &mut sites[1..] {
            site.chain.clone_from(&context);
        }
        let (authz, up) = (Authz::start(HashMap::new())?, server()?);
        let config = bootstrap(up, &sites, &[("authz", authz.address, H2)]);
        let pair = Pair::start(lab, &config)?;
        let mut cases = Cases::new();
        let uri = ca.issue("uri", &Leaf::spiffe("spiffe://a/client").dns("client.example"))?;
        let dns = ca.issue("dns", &Leaf::new().dns("client.example").dns("second.example"))?;
        let subject = ca.issue("subject", &Leaf::new())?;
        let client = TlsClient::new().trust(ca.file());
        let named = client.clone().name("server.example");
        for (name, site, client) in [
            ("URI", "tls", named.clone().identity(&uri)),
            ("DNS", "tls", named.clone().identity(&dns)),
            ("subject", "tls", named.clone().identity(&subject)),
            ("no certificate", "tls", named.clone()),
            ("without the certificate", "bare", named.identity(&uri)),
            ("no name", "bare", client),
        ] {
            pair.same(&mut cases, format_args!("ext_authz: TLS: {name}"), |proxy| {
                let mut stream = client.ready()?.connect(proxy.at(site)?)?;
                stream.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
                let first = stream.line()?;
                let asked: Vec<Value> = authz.taken().iter().map(compared).collect();
                Ok(json!([first, asked]))
            });
        }
        cases.finish()
    })
}

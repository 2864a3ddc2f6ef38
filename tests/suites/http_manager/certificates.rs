//! What upstreams are told of clients' certificates, byte by byte.

use anyhow::Result;
use serde_json::json;
use shunt_tests::tls_context::tls_chain;
use shunt_tests::{Bootstrap, Cases, Leaf, Pair, TlsClient, TlsContext, lab};

use super::{backend, clusters, hcm, whole};
use crate::tls_common::{CLIENT, Mesh};

const MODES: &[&str] = &["SANITIZE", "FORWARD_ONLY", "APPEND_FORWARD", "SANITIZE_SET", "ALWAYS_FORWARD_ONLY"];
const SETS: &[(&str, &str)] = &[
    ("nothing", ""),
    ("subject", "subject: true"),
    ("names", "uri: true, dns: true"),
    ("all", "subject: true, cert: true, chain: true, dns: true, uri: true, issuer: true"),
];
const HEADERS: &[(&str, &str)] = &[
    ("none", ""),
    ("one", "x-forwarded-client-cert: By=spiffe://a;Hash=b;Subject=\"c,d\"\r\n"),
    ("two", "x-forwarded-client-cert: By=spiffe://a\r\nx-forwarded-client-cert: By=spiffe://b\r\n"),
];

#[test]
fn certificates_are_told_as_envoy_tells_them() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let many = Leaf::spiffe(CLIENT).uri("spiffe://td/second").dns("a.test").dns("b.test");
        let clients = [
            ("mesh", Some(mesh.client.clone())),
            ("many", Some(mesh.middle.issue("many", &many)?)),
            ("bare", Some(mesh.root.issue("bare", &Leaf::new())?)),
            ("without", None),
        ];
        let context = || TlsContext::new().certificate(&mesh.server).trust(mesh.root.file());
        let echo = backend::start()?;
        let mut all = Bootstrap::new();
        for mode in MODES {
            for (set, details) in SETS {
                let name = format!("{}-{set}", mode.to_lowercase());
                let more = format!(
                    "forward_client_cert_details: {mode}, set_current_client_cert_details: {{ {details} }}"
                );
                let chain = tls_chain("", &context().downstream(), &[hcm(&name, &more)]);
                all = all.listener(&name, &format!("filter_chains: [ {chain} ]"));
            }
        }
        let pair = Pair::start(lab, &clusters(all, echo).yaml())?;
        let mut cases = Cases::new();
        for (name, mode, set) in MODES.iter().flat_map(|mode| {
            SETS.iter().map(move |(set, _)| (format!("{}-{set}", mode.to_lowercase()), mode, set))
        }) {
            for (who, identity) in &clients {
                for (header, lines) in HEADERS {
                    pair.same(&mut cases, format!("http-xfcc-{mode}-{set}-{who}-{header}"), |proxy| {
                        let client = TlsClient::new();
                        let client = match identity {
                            Some(identity) => client.identity(identity),
                            None => client,
                        };
                        let mut stream = client.connect(proxy.at(&name)?)?;
                        stream.send(format!("GET /x HTTP/1.1\r\nhost: a\r\n{lines}\r\n"))?;
                        let (mut text, mut buf) = (String::new(), [0; 16384]);
                        while !whole(&text, false, 1) {
                            let n = stream.read(&mut buf)?;
                            anyhow::ensure!(n > 0, "the end after {text:?}");
                            text += &String::from_utf8_lossy(&buf[..n]);
                        }
                        let told = text.lines().filter(|line| line.starts_with("x-forwarded-client-cert"));
                        Ok(json!(told.collect::<Vec<_>>()))
                    });
                }
            }
        }
        cases.finish()
    })
}

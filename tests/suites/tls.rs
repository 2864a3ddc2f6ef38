//! TLS down- and upstream, with peers that nobody here wrote: OpenSSL, and the real Envoy at either end.

use anyhow::{Result, ensure};
use shunt_tests::bootstrap::tcp_proxy;
use shunt_tests::tls_context::tls_chain;
use shunt_tests::{
    Bootstrap, Kind, Leaf, Pki, Proxy, TlsClient, TlsContext, TlsOptions, TlsServer, Upstream, lab, openssl,
};

/// A listener with TLS in front of a cluster.
fn secure(config: Bootstrap, name: &str, context: &TlsContext, cluster: &str) -> Bootstrap {
    let chain = tls_chain("", &context.downstream(), &[tcp_proxy(name, &format!("cluster: {cluster:?}"))]);
    config.listener(name, &format!("filter_chains: [ {chain} ]"))
}

/// The harness itself, on what it is to compare with.
#[test]
fn the_real_envoy_speaks_with_the_peers() -> Result<()> {
    lab(|lab| {
        let pki = Pki::new(lab)?;
        let ca = pki.root("root")?.intermediate("middle")?;
        let server = ca.issue("server", &Leaf::new().dns("a.example.com").uri("spiffe://td/ns/a/sa/s"))?;
        let plain = Upstream::echo("plain")?;
        let tls = TlsServer::echo("tls", &TlsOptions::new(&server).alpn(&["istio"]))?;
        let rev = openssl::Server::start(lab, &server.chain, &server.key, &[])?;
        let upstream = TlsContext::new().field("sni: b.example.com").alpn(&["istio"]);
        let config = Bootstrap::new()
            .static_cluster("plain", &[plain.address], "")
            .static_cluster("tls", &[tls.address], &upstream.cluster())
            .static_cluster("rev", &[rev.address], &upstream.cluster());
        let context = TlsContext::new().certificate(&server).alpn(&["h2"]);
        let config = secure(config, "plain", &context, "plain");
        let config = secure(config, "tls", &context, "tls");
        let config = secure(config, "rev", &context, "rev");
        let envoy = Proxy::start(lab, Kind::Envoy, &config.yaml())?;
        let root = pki.dir().join("root.pem");

        let said = openssl::hello(
            lab,
            envoy.at("plain")?,
            &["-showcerts", "-alpn", "h2", "-CAfile", &root.display().to_string()],
        )?;
        ensure!(said.version() == Some("TLSv1.3") && said.alpn() == Some("h2"), "{said:?}");
        ensure!(said.certificates() == 2 && said.verified() == Some("0 (ok)"), "{}", said.text);

        let client = TlsClient::new().name("a.example.com").trust(&root).alpn(&["h2"]).sessions().ready()?;
        for resumed in [false, true] {
            let mut stream = client.connect(envoy.at("tls")?)?;
            ensure!(stream.ask("hello")? == "tls hello", "another answer");
            let agreed = stream.agreed()?;
            ensure!(agreed.alpn.as_deref() == Some("h2") && agreed.resumed == resumed, "{agreed:?}");
            stream.half_close()?;
            ensure!(stream.rest()? == " close_notify", "no close_notify");
            let seen = tls.ended(usize::from(resumed))?;
            ensure!(seen.server_name.as_deref() == Some("b.example.com"), "{seen:?}");
            ensure!(seen.alpn.as_deref() == Some("istio") && seen.end == "close_notify", "{seen:?}");
        }
        let mut stream = TlsClient::new().tls12().connect(envoy.at("rev")?)?;
        ensure!(stream.ask("hello")? == "olleh", "another answer");
        Ok(())
    })
}

//! One configuration for all peers: plain and mutual TLS towards both sides.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use shunt_tests::bootstrap::{chain, extension};
use shunt_tests::pki::{Ca, Identity};
use shunt_tests::process::{Process, Spawn};
use shunt_tests::tls_context::tls_chain;
use shunt_tests::{Bootstrap, Lab, Leaf, Pki, Place, TlsContext};

/// The name in every certificate.
pub(super) const NAME: &str = "proxy.test";

/// Who is who under TLS.
pub(super) struct Keys<'a> {
    pub ca: Ca<'a>,
    pub server: Identity,
    pub client: Identity,
}

impl<'a> Keys<'a> {
    pub(super) fn make(lab: &'a Lab) -> Result<Self> {
        let ca = Pki::new(lab)?.root("ca")?;
        let server = ca.issue("server", &Leaf::new().dns(NAME))?;
        let client = ca.issue("client", &Leaf::new().dns("client.test"))?;
        Ok(Self { ca, server, client })
    }

    /// `CERT KEY CA`, for a script.
    pub(super) fn files<'k>(&'k self, of: &'k Identity) -> [&'k Path; 3] {
        [&of.chain, &of.key, self.ca.file()]
    }
}

/// A route by a prefix.
pub(super) fn route(prefix: &str, fields: &str) -> String {
    format!("{{ match: {{ prefix: {prefix:?} }}, {fields} }}")
}

/// A connection manager with these routes.
pub(super) fn manager(routes: &[String], fields: &str) -> String {
    let router = "envoy.extensions.filters.http.router.v3.Router";
    let router = extension("envoy.filters.http.router", router, "");
    let of_type = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let fields = format!(
        "stat_prefix: ing, route_config: {{ name: r, virtual_hosts: [ {{ name: v, domains: [ \"*\" ], routes: [ {} ] }} ] \
         }}, http_filters: [ {router} ], {fields}",
        routes.join(", ")
    );
    extension("envoy.filters.network.http_connection_manager", of_type, &fields)
}

/// The listeners `plain` and `mtls` of one manager.
pub(super) fn listeners(bootstrap: Bootstrap, manager: &str, keys: &Keys<'_>) -> Bootstrap {
    let tls = TlsContext::new()
        .certificate(&keys.server)
        .trust(keys.ca.file())
        .require_client()
        .alpn(&["h2", "http/1.1"])
        .downstream();
    let plain = chain("", &[manager.to_owned()]);
    let secure = tls_chain("", &tls, &[manager.to_owned()]);
    bootstrap
        .listener("plain", &format!("filter_chains: [ {plain} ]"))
        .listener("mtls", &format!("filter_chains: [ {secure} ]"))
}

/// A cluster's fields: its protocol, and TLS of both sides.
pub(super) fn fields(http2: bool, keys: Option<&Keys<'_>>) -> String {
    let explicit = if http2 { "http2_protocol_options: {}" } else { "http_protocol_options: {}" };
    let http = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let tls = keys.map(|keys| {
        let alpn: &[&str] = if http2 { &["h2"] } else { &["http/1.1"] };
        let context = TlsContext::new().certificate(&keys.client).trust(keys.ca.file()).alpn(alpn);
        context.field(&format!("sni: {NAME}")).cluster()
    });
    format!(
        "typed_extension_protocol_options: {{ {http}: {{ \"@type\": type.googleapis.com/{http}, explicit_http_config: {{ \
         {explicit} }} }} }}, {}",
        tls.unwrap_or_default()
    )
}

/// A script of this directory.
pub(super) fn script(lab: &Lab, name: &str) -> Result<Spawn> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("suites/http_peers").join(name);
    Ok(lab.program("python", &Place::default())?.arg(path).limit(Duration::from_secs(90)))
}

/// A server that says its port; its input stays open for as long as it is to live.
pub(super) fn server(lab: &Lab, name: &str, files: &[&Path]) -> Result<(Process, SocketAddr)> {
    let mut process = script(lab, name)?.arg("server").args(files).with_stdin().spawn()?;
    let port = process.wait_event(name, 0, Duration::from_secs(30), |event| {
        event["port"].as_u64().and_then(|port| u16::try_from(port).ok())
    })?;
    Ok((process, SocketAddr::from(([127, 0, 0, 1], port))))
}

/// Each of the client's cases is as it is without a proxy.
pub(super) fn alike(direct: &Value, through: &Value) -> Result<()> {
    let mut wrong = Vec::new();
    for (name, wanted) in direct.as_object().into_iter().flatten() {
        let found = &through[name];
        if found != wanted {
            wrong.push(format!("{name}: {found} and not {wanted}"));
        }
    }
    ensure!(direct.as_object().is_some_and(|cases| !cases.is_empty()), "no case ran");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n    "));
    Ok(())
}

/// Pages of a server's directory, and what is put there.
pub(super) struct Pages {
    pub root: PathBuf,
    pub big: Vec<u8>,
}

impl Pages {
    pub(super) fn make(lab: &Lab) -> Result<Self> {
        let root = lab.dir().join("pages");
        std::fs::create_dir_all(root.join("put"))?;
        let big: Vec<u8> = (0..1_500_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        std::fs::write(root.join("big.bin"), &big)?;
        std::fs::write(root.join("index.html"), "an index\n")?;
        Ok(Self { root, big })
    }

    /// nginx' `server` block.
    pub(super) fn block(&self) -> String {
        format!(
            "root {}; keepalive_requests 100000; location /put/ {{ dav_methods PUT; client_max_body_size 0; }} \
             location /slow {{ return 503 \"no\"; }}",
            self.root.display()
        )
    }
}

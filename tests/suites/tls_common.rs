//! What the suites of TLS share: listeners and clusters over it, and a small mesh of identities.

use anyhow::Result;
use shunt_tests::bootstrap::tcp_proxy;
use shunt_tests::pki::{Ca, Identity};
use shunt_tests::tls_context::tls_chain;
use shunt_tests::{Bootstrap, Lab, Leaf, Pki, TlsContext};

pub(crate) const SERVER: &str = "spiffe://td/ns/a/sa/server";
pub(crate) const CLIENT: &str = "spiffe://td/ns/a/sa/client";

/// A listener with TLS in front of a cluster; its stats are under `listener.NAME.`.
pub(crate) fn secure(config: Bootstrap, name: &str, context: &TlsContext, cluster: &str) -> Bootstrap {
    secure_with(config, name, context, cluster, "")
}

/// As [`secure`], with further fields of the listener.
pub(crate) fn secure_with(
    config: Bootstrap,
    name: &str,
    context: &TlsContext,
    cluster: &str,
    fields: &str,
) -> Bootstrap {
    let filters = [tcp_proxy(name, &format!("cluster: {cluster:?}"))];
    let chain = tls_chain("", &context.downstream(), &filters);
    config.listener(name, &format!("stat_prefix: {name:?}, filter_chains: [ {chain} ], {fields}"))
}

/// One authority with an intermediate, a server and a client of it.
pub(crate) struct Mesh<'a> {
    pub(crate) pki: Pki<'a>,
    pub(crate) root: Ca<'a>,
    pub(crate) middle: Ca<'a>,
    pub(crate) server: Identity,
    pub(crate) client: Identity,
}

impl<'a> Mesh<'a> {
    pub(crate) fn new(lab: &'a Lab) -> Result<Self> {
        let pki = Pki::new(lab)?;
        let root = pki.root("root")?;
        let middle = root.intermediate("middle")?;
        let server = middle.issue("server", &Leaf::spiffe(SERVER).dns("a.example.com"))?;
        let client = middle.issue("client", &Leaf::spiffe(CLIENT).dns("client.example.com"))?;
        Ok(Self { pki, root, middle, server, client })
    }

    /// Of a server that asks its clients for certificates of this mesh.
    pub(crate) fn mutual(&self) -> TlsContext {
        TlsContext::new().certificate(&self.server).trust(self.root.file()).require_client()
    }
}

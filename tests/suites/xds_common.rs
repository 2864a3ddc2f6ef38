//! What the suites of dynamic configuration share: bootstraps, resources, and who answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use shunt_tests::bootstrap::{self, NODE, chain, endpoint, locality, says, tcp_proxy};
use shunt_tests::xds::{Resource, Type};
use shunt_tests::{Bootstrap, Client, ControlPlane, Pair, Proxy, eventually};

pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// How resources are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Sotw,
    Delta,
}

impl Protocol {
    pub(crate) const BOTH: [Self; 2] = [Self::Sotw, Self::Delta];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sotw => "GRPC",
            Self::Delta => "DELTA_GRPC",
        }
    }

    /// `api_config_source`, of the cluster `xds`.
    pub(crate) fn api(self) -> String {
        self.api_with("")
    }

    pub(crate) fn api_with(self, fields: &str) -> String {
        format!(
            "{{ api_type: {}, transport_api_version: V3, grpc_services: [ {{ envoy_grpc: {{ cluster_name: xds }} }} ], {fields} }}",
            self.name()
        )
    }
}

/// Everything by the one stream of ADS.
pub(crate) fn ads(plane: &ControlPlane, protocol: Protocol) -> Bootstrap {
    ads_with(plane, &protocol.api_with("set_node_on_first_message_only: true"), "")
}

/// `api` is the `ads_config`; `fields` are the cluster's.
pub(crate) fn ads_with(plane: &ControlPlane, api: &str, fields: &str) -> Bootstrap {
    let ads = "{ ads: {}, resource_api_version: V3 }";
    named()
        .top(&format!("dynamic_resources: {{ ads_config: {api}, lds_config: {ads}, cds_config: {ads} }}"))
        .cluster("xds", &format!("{}, {fields}", plane.cluster()))
}

/// LDS and CDS, each by a stream of its own.
pub(crate) fn separate(plane: &ControlPlane, protocol: Protocol) -> Bootstrap {
    let source = format!("{{ api_config_source: {}, resource_api_version: V3 }}", protocol.api());
    named()
        .top(&format!("dynamic_resources: {{ lds_config: {source}, cds_config: {source} }}"))
        .cluster("xds", &plane.cluster())
}

/// A bootstrap of a node that is called as the proxy is.
pub(crate) fn named() -> Bootstrap {
    Bootstrap::new().top(&format!("node: {{ id: {NODE:?}, cluster: test }}"))
}

/// A STATIC cluster.
pub(crate) fn cluster(name: &str, to: SocketAddr) -> Result<Resource> {
    let assignment = bootstrap::assignment(name, &[locality(&[endpoint(to, "")], "")], "");
    cluster_with(name, &format!("type: STATIC, load_assignment: {assignment}"))
}

/// An EDS cluster; its endpoints come as the cluster itself did.
pub(crate) fn eds_cluster(name: &str, fields: &str) -> Result<Resource> {
    let source = "eds_config: { ads: {}, resource_api_version: V3 }";
    cluster_with(name, &format!("type: EDS, eds_cluster_config: {{ {source} }}, {fields}"))
}

pub(crate) fn cluster_with(name: &str, fields: &str) -> Result<Resource> {
    Resource::new(Type::Cluster, &format!("{{ name: {name:?}, connect_timeout: 2s, {fields} }}"))
}

pub(crate) fn endpoints(cluster: &str, of: &[SocketAddr]) -> Result<Resource> {
    let all: Vec<String> = of.iter().map(|at| endpoint(*at, "")).collect();
    let assignment = bootstrap::assignment(cluster, &[locality(&all, "")], "");
    Resource::new(Type::Endpoints, &assignment)
}

/// A listener whose only chain is tcp_proxy to a cluster.
pub(crate) fn relay(name: &str, cluster: &str) -> Result<Resource> {
    let chain = chain("", &[tcp_proxy(name, &format!("cluster: {cluster:?}"))]);
    listener(name, &format!("filter_chains: [ {chain} ]"))
}

/// A listener that says a word.
pub(crate) fn speaker(name: &str, text: &str) -> Result<Resource> {
    listener(name, &format!("filter_chains: [ {} ]", chain("", &[says(text)])))
}

/// On a free port of 127.0.0.1.
pub(crate) fn listener(name: &str, fields: &str) -> Result<Resource> {
    listener_at(name, ([127, 0, 0, 1], 0).into(), fields)
}

pub(crate) fn listener_at(name: &str, at: SocketAddr, fields: &str) -> Result<Resource> {
    let address = bootstrap::address(&at.ip().to_string(), at.port());
    Resource::new(Type::Listener, &format!("{{ name: {name:?}, address: {address}, {fields} }}"))
}

/// A listener that cannot be: its tcp_proxy leads nowhere.
pub(crate) fn bad_listener(name: &str) -> Result<Resource> {
    listener(name, &format!("filter_chains: [ {} ]", chain("", &[tcp_proxy(name, "idle_timeout: 1s")])))
}

/// Who answers a new connection, or how it ended.
pub(crate) fn who(proxy: &Proxy, listener: &str) -> Result<String> {
    who_at(proxy.listening(listener)?)
}

pub(crate) fn who_at(at: SocketAddr) -> Result<String> {
    let Ok(mut client) = Client::connect(at) else { return Ok("refused".to_owned()) };
    Ok(match client.ask("x") {
        Ok(answer) => answer.trim_end_matches(" x").to_owned(),
        Err(_) => "closed".to_owned(),
    })
}

/// Waits until a new connection is answered by this one.
pub(crate) fn answers(proxy: &Proxy, listener: &str, name: &str) -> Result<()> {
    eventually(&format!("{name} behind {listener} of {}", proxy.kind.name()), LIMIT, || {
        let found = who(proxy, listener)?;
        ensure!(found == name, "it is {found}");
        Ok(())
    })
}

/// What a control plane received of a node, type by type: requests of one type have an order that both proxies must
/// have in common.
pub(crate) fn shapes(plane: &ControlPlane, node: &str, mark: usize) -> Value {
    let mut all: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for request in plane.requests(node).into_iter().skip(mark) {
        let of = request.type_url.rsplit('.').next().unwrap_or_default().to_owned();
        all.entry(format!("{} of {}", of, request.method)).or_default().push(request.shape());
    }
    serde_json::json!(all)
}

/// A section of `/config_dump`.
pub(crate) fn dump(proxy: &Proxy, section: &str) -> Result<Value> {
    let dump = proxy.admin().json("/config_dump?include_eds=on")?;
    let of_type = format!("type.googleapis.com/envoy.admin.v3.{section}");
    let all = dump["configs"].as_array().context("no configs")?;
    let found = all.iter().find(|config| config["@type"] == of_type.as_str());
    Ok(found.cloned().unwrap_or_default())
}

/// A connection of each proxy, kept while something changes.
pub(crate) struct Held(BTreeMap<&'static str, Client>);

impl Held {
    pub(crate) fn open(pair: &Pair, mut connect: impl FnMut(&Proxy) -> Result<Client>) -> Result<Self> {
        let all = pair.both().into_iter().map(|proxy| Ok((proxy.kind.name(), connect(proxy)?)));
        Ok(Self(all.collect::<Result<_>>()?))
    }

    /// Through a listener to an echo.
    pub(crate) fn through(pair: &Pair, listener: &str) -> Result<Self> {
        Self::open(pair, |proxy| {
            let mut client = Client::connect(proxy.listening(listener)?)?;
            client.ask("first")?;
            Ok(client)
        })
    }

    pub(crate) fn of(&mut self, proxy: &Proxy) -> Result<&mut Client> {
        self.0.get_mut(proxy.kind.name()).context("no connection")
    }

    /// Who answers on it, or how it has ended.
    pub(crate) fn who(&mut self, proxy: &Proxy) -> Result<String> {
        let client = self.of(proxy)?;
        Ok(match client.ask("again") {
            Ok(answer) => answer.trim_end_matches(" again").to_owned(),
            Err(_) => "closed".to_owned(),
        })
    }

    /// How it ended, within a while.
    pub(crate) fn end(&mut self, proxy: &Proxy, limit: Duration) -> Result<String> {
        Ok(self.of(proxy)?.end_within(limit)?.1.to_string())
    }
}

const RBAC: &str = "envoy.extensions.filters.network.rbac.v3.RBAC";

/// A network filter that is discovered: an RBAC.
pub(crate) fn discovered(name: &str, source: &str) -> String {
    discovered_with(name, source, "")
}

pub(crate) fn discovered_with(name: &str, source: &str, fields: &str) -> String {
    let types = format!("type_urls: [ \"type.googleapis.com/{RBAC}\" ]");
    format!("{{ name: {name}, config_discovery: {{ config_source: {source}, {types}, {fields} }} }}")
}

/// RBAC that lets everybody in, or nobody.
pub(crate) fn deny(all: bool) -> String {
    let action = if all { "DENY" } else { "ALLOW" };
    let everybody = "{ permissions: [ { any: true } ], principals: [ { any: true } ] }";
    format!(
        "{{ \"@type\": type.googleapis.com/{RBAC}, stat_prefix: acl, rules: {{ action: {action}, policies: {{ all: {everybody} }} }} }}"
    )
}

/// An extension's configuration, for ECDS.
pub(crate) fn extension(name: &str, config: &str) -> Result<Resource> {
    Resource::new(Type::Extension, &format!("{{ name: {name}, typed_config: {config} }}"))
}

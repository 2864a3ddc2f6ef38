//! Envoy bootstraps as text: every listener and the admin take a port from the kernel.

use std::fmt::Write as _;
use std::net::SocketAddr;

/// The prefix of every type URL.
const TYPE: &str = "type.googleapis.com/";

/// Replaced by the proxy's own directory.
pub const DIR: &str = "@DIR@";

/// Replaced by the proxy's name: by its node, a control plane tells one from the other.
pub const NODE: &str = "@NODE@";

/// A bootstrap under construction.
#[derive(Clone, Debug, Default)]
pub struct Bootstrap {
    top: String,
    listeners: String,
    clusters: String,
}

impl Bootstrap {
    pub fn new() -> Self {
        Self::default()
    }

    /// Further fields of the top level, such as `layered_runtime`.
    pub fn top(mut self, yaml: &str) -> Self {
        self.top += yaml;
        self.top.push('\n');
        self
    }

    /// A listener on a free port of 127.0.0.1; `fields` is the rest of it, in flow style.
    pub fn listener(self, name: &str, fields: &str) -> Self {
        self.listener_at(name, &address("127.0.0.1", 0), fields)
    }

    pub fn listener_at(mut self, name: &str, address: &str, fields: &str) -> Self {
        let _ = writeln!(self.listeners, "  - {{ name: {name:?}, address: {address}, {fields} }}");
        self
    }

    /// A listener whose only chain is tcp_proxy to a cluster.
    pub fn relay(self, name: &str, cluster: &str) -> Self {
        let chain = chain("", &[tcp_proxy(name, &format!("cluster: {cluster:?}"))]);
        self.listener(name, &format!("filter_chains: [ {chain} ]"))
    }

    /// A cluster; `fields` is all but its name, in flow style.
    pub fn cluster(mut self, name: &str, fields: &str) -> Self {
        let _ = writeln!(self.clusters, "  - {{ name: {name:?}, connect_timeout: 2s, {fields} }}");
        self
    }

    /// As [`Bootstrap::cluster`], with a time to connect of its own.
    pub fn slow_cluster(mut self, name: &str, connect_timeout: &str, fields: &str) -> Self {
        let _ =
            writeln!(self.clusters, "  - {{ name: {name:?}, connect_timeout: {connect_timeout}, {fields} }}");
        self
    }

    /// A STATIC cluster of endpoints, all alike.
    pub fn static_cluster(self, name: &str, endpoints: &[SocketAddr], fields: &str) -> Self {
        let all: Vec<String> = endpoints.iter().map(|at| endpoint(*at, "")).collect();
        let locality = locality(&all, "");
        self.assigned(name, &[locality], &format!("type: STATIC, {fields}"))
    }

    /// A cluster with localities.
    pub fn assigned(self, name: &str, localities: &[String], fields: &str) -> Self {
        let assignment = assignment(name, localities, "");
        self.cluster(name, &format!("load_assignment: {assignment}, {fields}"))
    }

    pub fn yaml(&self) -> String {
        let Self { top, listeners, clusters } = self;
        let admin = address("127.0.0.1", 0);
        let or_none = |list: &str| if list.is_empty() { " []\n".to_owned() } else { format!("\n{list}") };
        let (listeners, clusters) = (or_none(listeners), or_none(clusters));
        format!(
            "admin: {{ address: {admin} }}\n{top}static_resources:\n  listeners:{listeners}  clusters:{clusters}"
        )
    }
}

pub fn address(ip: &str, port: u16) -> String {
    format!("{{ socket_address: {{ address: {ip:?}, port_value: {port} }} }}")
}

pub fn endpoint(at: SocketAddr, fields: &str) -> String {
    let address = address(&at.ip().to_string(), at.port());
    format!("{{ endpoint: {{ address: {address} }}, {fields} }}")
}

pub fn locality(endpoints: &[String], fields: &str) -> String {
    format!("{{ lb_endpoints: [ {} ], {fields} }}", endpoints.join(", "))
}

/// A ClusterLoadAssignment.
pub fn assignment(cluster: &str, localities: &[String], fields: &str) -> String {
    format!("{{ cluster_name: {cluster:?}, endpoints: [ {} ], {fields} }}", localities.join(", "))
}

/// A filter chain; `chain_match` may be empty.
pub fn chain(chain_match: &str, filters: &[String]) -> String {
    let matching = if chain_match.is_empty() {
        String::new()
    } else {
        format!("filter_chain_match: {{ {chain_match} }}, ")
    };
    format!("{{ {matching}filters: [ {} ] }}", filters.join(", "))
}

/// An extension by name and type, without the type's prefix.
pub fn extension(name: &str, of_type: &str, fields: &str) -> String {
    format!("{{ name: {name}, typed_config: {{ \"@type\": {TYPE}{of_type}, {fields} }} }}")
}

pub fn tcp_proxy(stat_prefix: &str, fields: &str) -> String {
    let of_type = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    extension("envoy.filters.network.tcp_proxy", of_type, &format!("stat_prefix: {stat_prefix:?}, {fields}"))
}

/// `direct_response`: tells by its text which chain was chosen.
pub fn says(text: &str) -> String {
    let of_type = "envoy.extensions.filters.network.direct_response.v3.Config";
    extension(
        "envoy.filters.network.direct_response",
        of_type,
        &format!("response: {{ inline_string: {text:?} }}"),
    )
}

pub fn tls_inspector() -> String {
    let of_type = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
    extension("envoy.filters.listener.tls_inspector", of_type, "")
}

pub fn http_inspector() -> String {
    let of_type = "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector";
    extension("envoy.filters.listener.http_inspector", of_type, "")
}

pub fn proxy_protocol(fields: &str) -> String {
    let of_type = "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol";
    extension("envoy.filters.listener.proxy_protocol", of_type, fields)
}

/// A text access log in the proxy's directory.
pub fn file_log(file: &str, format: &str) -> String {
    let of_type = "envoy.extensions.access_loggers.file.v3.FileAccessLog";
    let source = format!("text_format_source: {{ inline_string: {:?} }}", format!("{format}\n"));
    extension(
        "envoy.access_loggers.file",
        of_type,
        &format!("path: \"{DIR}/{file}\", log_format: {{ {source} }}"),
    )
}

//! The labels of a request or of a connection, by who its peers are: Istio's standard ones, in their order.

use std::borrow::Cow;

use proxy_config::model::metadata::Value;

use crate::istio::{Local, Peer};
use crate::telemetry::access_log::http::grpc_or_http;
use crate::telemetry::{Entry, Flags, HttpEntry};
use crate::transport::{Certificate, TlsInfo};

/// Who reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reporter {
    /// The client's sidecar, and a gateway at the border.
    Source,
    /// The server's sidecar.
    Destination,
    /// A gateway for several workloads.
    Waypoint,
}

/// Names, in the order of their values. Those of HTTP are all of them; of the others see [`super::plan::Shape`].
pub(super) const NAMES: [&str; COUNT] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
];

pub(super) const COUNT: usize = 25;

/// How many of them say who it is.
pub(super) const PEERS: usize = 20;

pub(super) type Labels<'a> = [Cow<'a, str>; COUNT];

const UNKNOWN: &str = "unknown";

/// The destination's service, as far as it is known.
#[derive(Default)]
struct Service<'a> {
    host: &'a str,
    name: &'a str,
    namespace: &'a str,
}

/// The protocol that a request is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    Grpc,
    Tcp,
}

/// All of them. Little is allocated: most are known already.
pub(super) fn of<'a>(
    entry: &'a Entry,
    local: &'a Local,
    reporter: Reporter,
    host_fallback: bool,
    protocol: Protocol,
) -> Labels<'a> {
    let service = service(entry, host_fallback);
    let (peers, mutual) = match reporter {
        Reporter::Source => (source(entry, local, &service), None),
        Reporter::Destination => destination(entry, local, &service),
        Reporter::Waypoint => waypoint(entry, &service),
    };
    let mut labels = [const { Cow::Borrowed("") }; COUNT];
    let reporter = match reporter {
        Reporter::Source => "source",
        Reporter::Destination => "destination",
        Reporter::Waypoint => "waypoint",
    };
    for (label, value) in labels.iter_mut().zip([reporter].into_iter().chain(peers)) {
        *label = Cow::Borrowed(value);
    }
    let http = entry.http.as_deref();
    let (name, status): (_, Cow<'_, str>) = match protocol {
        Protocol::Http => ("http", "".into()),
        Protocol::Grpc => ("grpc", http.map_or("".into(), grpc_status)),
        Protocol::Tcp => ("tcp", "".into()),
    };
    let code = http.and_then(|http| http.response.as_ref()).map_or("0", |response| response.status.as_str());
    let flags = entry.outcome.flags;
    let flags = if flags == Flags::NONE { "-".into() } else { flags.to_string().into() };
    let policy = match mutual {
        None => UNKNOWN,
        Some(true) => "mutual_tls",
        Some(false) => "none",
    };
    let rest: [Cow<'_, str>; COUNT - PEERS] = [name.into(), code.into(), status, flags, policy.into()];
    for (label, value) in labels.iter_mut().skip(PEERS).zip(rest) {
        *label = value;
    }
    labels
}

fn grpc_status(http: &HttpEntry) -> Cow<'static, str> {
    const NUMBERS: [&str; 17] =
        ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"];
    match grpc_or_http(http) {
        None => "".into(),
        Some(status) => match NUMBERS.get(status as usize) {
            Some(number) => Cow::Borrowed(*number),
            None => status.to_string().into(),
        },
    }
}

fn or<'a>(value: &'a str, other: &'a str) -> &'a str {
    if value.is_empty() { other } else { value }
}

type Parts<'a> = [&'a str; PEERS - 1];

/// What the client's sidecar knows: itself, and a server by what that has told, or by its endpoint.
fn source<'a>(entry: &'a Entry, local: &'a Local, service: &Service<'a>) -> Parts<'a> {
    let told = entry.peers.upstream.as_ref().and_then(|slot| slot.peer()).map(|peer| &**peer);
    let tls = entry.upstream.tls.as_deref();
    let principal = or(san(tls, |tls| tls.peer.as_deref()), told_identity(entry));
    let own = san(tls, |tls| tls.local.as_deref());
    let endpoint = || {
        let istio = entry.upstream.host_metadata.as_deref()?.of("istio")?;
        endpoint_text(istio.get("workload")?)
    };
    let peer = if told.is_some() { peer_parts(told) } else { endpoint().unwrap_or([""; 7]) };
    let [workload, canonical, revision, namespace, app, version, cluster] = peer;
    let namespace = or(namespace_of(principal), namespace);
    let ours = &local.labels;
    [
        &ours.workload,
        &ours.canonical_name,
        &ours.canonical_revision,
        &ours.namespace,
        or(own, UNKNOWN),
        &ours.app,
        &ours.version,
        &ours.cluster,
        or(workload, UNKNOWN),
        or(namespace, UNKNOWN),
        or(principal, UNKNOWN),
        or(app, UNKNOWN),
        or(version, UNKNOWN),
        or(service.host, UNKNOWN),
        or(canonical, UNKNOWN),
        or(revision, "latest"),
        or(service.name, UNKNOWN),
        or(service.namespace, or(namespace, UNKNOWN)),
        or(cluster, UNKNOWN),
    ]
}

/// What the server's sidecar knows: a client by what it has told and by its certificate, and itself.
fn destination<'a>(entry: &'a Entry, local: &'a Local, service: &Service<'a>) -> (Parts<'a>, Option<bool>) {
    let (client, own, mutual) = client(entry);
    let [workload, canonical, revision, namespace, principal, app, version, cluster] = client;
    let ours = &local.labels;
    let parts = [
        workload,
        canonical,
        revision,
        namespace,
        principal,
        app,
        version,
        cluster,
        &ours.workload,
        &ours.namespace,
        or(own, UNKNOWN),
        &ours.app,
        &ours.version,
        or(service.host, &ours.canonical_name),
        &ours.canonical_name,
        &ours.canonical_revision,
        or(service.name, &ours.canonical_name),
        &ours.namespace,
        &ours.cluster,
    ];
    (parts, Some(mutual))
}

/// What a gateway before several workloads knows: both by what they have told.
fn waypoint<'a>(entry: &'a Entry, service: &Service<'a>) -> (Parts<'a>, Option<bool>) {
    let (client, _, mutual) = client(entry);
    let [workload, canonical, revision, namespace, principal, app, version, cluster] = client;
    let server = entry.peers.upstream.as_ref().and_then(|slot| slot.peer()).map(|peer| &**peer);
    let [to, to_canonical, to_revision, to_namespace, to_app, to_version, to_cluster] = peer_parts(server);
    let parts = [
        workload,
        canonical,
        revision,
        namespace,
        principal,
        app,
        version,
        cluster,
        or(to, UNKNOWN),
        or(to_namespace, UNKNOWN),
        or(told_identity(entry), UNKNOWN),
        or(to_app, UNKNOWN),
        or(to_version, UNKNOWN),
        or(service.host, UNKNOWN),
        or(to_canonical, UNKNOWN),
        or(to_revision, UNKNOWN),
        or(service.name, UNKNOWN),
        or(service.namespace, UNKNOWN),
        or(to_cluster, UNKNOWN),
    ];
    (parts, Some(mutual))
}

/// The source's labels as a server sees them, our own principal, and whether both have one.
fn client(entry: &Entry) -> ([&str; 8], &str, bool) {
    let peer = entry.peers.downstream.as_ref().and_then(|slot| slot.peer()).map(|peer| &**peer);
    let [workload, canonical, revision, namespace, app, version, cluster] = peer_parts(peer);
    let tls = entry.facts.tls.as_deref();
    let principal = san(tls, |tls| tls.peer.as_deref());
    let own = san(tls, |tls| tls.local.as_deref());
    let parts = [
        or(workload, UNKNOWN),
        or(canonical, UNKNOWN),
        or(revision, "latest"),
        or(or(namespace_of(principal), namespace), UNKNOWN),
        or(principal, UNKNOWN),
        or(app, UNKNOWN),
        or(version, UNKNOWN),
        or(cluster, UNKNOWN),
    ];
    (parts, own, !principal.is_empty() && !own.is_empty())
}

/// Workload, canonical name and revision, namespace, app, version, cluster.
fn peer_parts(peer: Option<&Peer>) -> [&str; 7] {
    peer.map_or([""; 7], |peer| {
        [
            &peer.workload,
            &peer.canonical_name,
            &peer.canonical_revision,
            &peer.namespace,
            &peer.app,
            &peer.version,
            &peer.cluster,
        ]
    })
}

/// The same, of `workload;namespace;canonical name;canonical revision;cluster`.
fn endpoint_text(value: &Value) -> Option<[&str; 7]> {
    let Value::String(text) = value else { return None };
    let mut parts = text.split(';');
    let mut next = || parts.next();
    let [workload, namespace, canonical, revision, cluster] = [next()?, next()?, next()?, next()?, next()?];
    Some([workload, canonical, revision, namespace, "", "", cluster])
}

fn told_identity(entry: &Entry) -> &str {
    let peer = entry.peers.upstream.as_ref().and_then(|slot| slot.peer());
    peer.map_or("", |peer| &peer.identity)
}

/// The first URI of a certificate.
fn san(tls: Option<&TlsInfo>, of: fn(&TlsInfo) -> Option<&Certificate>) -> &str {
    tls.and_then(of).and_then(|certificate| certificate.uri_sans.first()).map_or("", |san| san)
}

/// `spiffe://<domain>/ns/<namespace>/sa/<account>`.
fn namespace_of(principal: &str) -> &str {
    let behind = principal.split_once("/ns/").map_or("", |(_, behind)| behind);
    behind.split('/').next().unwrap_or_default()
}

const PASSED: [&str; 5] = [
    "BlackHoleCluster",
    "PassthroughCluster",
    "InboundPassthroughCluster",
    "InboundPassthroughClusterIpv4",
    "InboundPassthroughClusterIpv6",
];

/// By the cluster's metadata, else by the host that is asked for; nobody's own service where it is passed on.
fn service(entry: &Entry, host_fallback: bool) -> Service<'_> {
    let http = entry.http.as_deref();
    let host = http.filter(|_| host_fallback).map_or("", |http| http.request.authority.as_str());
    let fallback = Service { host, name: host, namespace: "" };
    match http.and_then(|http| http.route.as_deref()) {
        Some("block_all") => return Service { name: "BlackHoleCluster", ..fallback },
        Some("allow_any") => return Service { name: "PassthroughCluster", ..fallback },
        Some(_) | None => {}
    }
    let Some(cluster) = entry.upstream.cluster_model.as_deref() else { return fallback };
    if let Some(name) = PASSED.iter().find(|name| ***name == *cluster.name) {
        return Service { name, ..fallback };
    }
    let services = cluster.metadata.get().of("istio").and_then(|istio| istio.get("services"));
    let Some(Value::List(services)) = services else { return fallback };
    let Some(Value::Struct(service)) = services.first() else { return fallback };
    let text = |key: &str| match service.get(key) {
        Some(Value::String(text)) => Some(text.as_str()),
        Some(_) | None => None,
    };
    let host = text("host").unwrap_or(host);
    let name = text("name").unwrap_or_else(|| host.split('.').next().unwrap_or_default());
    Service { host, name, namespace: text("namespace").unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_of_principals() {
        assert_eq!(namespace_of("spiffe://cluster.local/ns/default/sa/client"), "default");
        assert_eq!(namespace_of("spiffe://cluster.local/ns/default"), "default");
        assert_eq!(namespace_of("spiffe://cluster.local/sa/client"), "");
        assert_eq!(namespace_of(""), "");
    }
}

//! What istiod pushes to a sidecar: all of it is taken, and what can be served is.
//!
//! Envoy's stock binary lacks Istio's own filters, so this is for shunt alone.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::proxy::Start;
use shunt_tests::xds::{Resource, Type};
use shunt_tests::{
    Bootstrap, Cases, Client, ControlPlane, Kind, Leaf, Pki, Place, Proxy, TlsOptions, TlsServer, Upstream,
    eventually, lab,
};

use crate::xds_common::{LIMIT, Protocol, dump};

const SIDECAR: &str = include_str!("../fixtures/istiod/sidecar.yaml");

/// What a push must have to be one of istiod's: the rows of its surface that shunt has to take.
const SURFACE: [&str; 37] = [
    "udpa.type.v1.TypedStruct",
    "envoy.tcp.metadataexchange.config.MetadataExchange",
    "io.istio.http.peer_metadata.Config",
    "stats.PluginConfig",
    "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
    "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
    "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    "initial_read_buffer_size: 512",
    "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
    "filter_disabled",
    "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
    "weighted_clusters",
    "hash_policy",
    "tunneling_config",
    "idle_timeout",
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
    "envoy.extensions.filters.http.fault.v3.HTTPFault",
    "envoy.extensions.filters.http.cors.v3.Cors",
    "envoy.extensions.filters.http.cors.v3.CorsPolicy",
    "envoy.extensions.filters.http.router.v3.Router",
    "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
    "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
    "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
    "tlsMode-istio",
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    "STRICT_DNS",
    "LOGICAL_DNS",
    "ORIGINAL_DST",
    "LEAST_REQUEST",
    "RING_HASH",
    "MAGLEV",
    "RANDOM",
    "ROUND_ROBIN",
    "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig",
    "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
    "envoy.extensions.access_loggers.file.v3.FileAccessLog",
];

/// All resources of the push.
fn resources(secure: SocketAddr, plain: SocketAddr) -> Result<Vec<Resource>> {
    let text =
        SIDECAR.replace("@SECURE@", &secure.port().to_string()).replace("@PLAIN@", &plain.port().to_string());
    let all: Value = serde_saphyr::from_str(&text)?;
    let mut resources = Vec::new();
    for (key, of) in [
        ("clusters", Type::Cluster),
        ("endpoints", Type::Endpoints),
        ("listeners", Type::Listener),
        ("routes", Type::Route),
    ] {
        for resource in all[key].as_array().with_context(|| format!("no {key}"))? {
            resources.push(Resource::from_value(of, resource.clone())?);
        }
    }
    Ok(resources)
}

/// Istio's own bootstrap, as far as it matters to discovery.
fn bootstrap(plane: &ControlPlane, agent: &ControlPlane) -> Bootstrap {
    let node = r#"node: { id: "sidecar~10.244.0.7~prodapi-7cc9555749-x6cct.myweb~myweb.svc.cluster.local", cluster: prodapi.myweb, locality: {}, metadata: { NAMESPACE: myweb, NAME: prodapi-7cc9555749-x6cct, ISTIO_VERSION: "1.27.0", INTERCEPTION_MODE: REDIRECT, LABELS: { app: prodapi }, INSTANCE_IPS: "10.244.0.7", PROXY_CONFIG: { discoveryAddress: "istiod.istio-system.svc:15012" }, MESH_ID: cluster.local, CLUSTER_ID: Kubernetes, ENVOY_PROMETHEUS_PORT: 15090, UNPRIVILEGED_POD: "true" } }"#;
    let ads = "{ ads: {}, initial_fetch_timeout: 0s, resource_api_version: V3 }";
    let api = Protocol::Delta.api_with("set_node_on_first_message_only: true");
    Bootstrap::new()
        .top(node)
        .top(&format!("dynamic_resources: {{ lds_config: {ads}, cds_config: {ads}, ads_config: {api} }}"))
        .cluster("xds", &plane.cluster())
        .cluster("sds-grpc", &agent.cluster())
}

const NODE: &str = "sidecar~10.244.0.7~prodapi-7cc9555749-x6cct.myweb~myweb.svc.cluster.local";

struct Agent {
    plane: ControlPlane,
    secure: TlsServer,
}

/// Istio's agent with this workload's secrets, and a server that asks for them.
fn agent(lab: &shunt_tests::Lab) -> Result<Agent> {
    let pki = Pki::new(lab)?;
    let root = pki.root("cluster.local")?;
    let own = root.issue("own", &Leaf::spiffe("spiffe://cluster.local/ns/myweb/sa/default"))?;
    let server = root.issue("server", &Leaf::spiffe("spiffe://cluster.local/ns/sample/sa/default"))?;
    let inline = |path| -> Result<_> { Ok(json!({ "inline_string": std::fs::read_to_string(path)? })) };
    let (chain, key) = (inline(&own.chain)?, inline(&own.key)?);
    let plane = ControlPlane::start_unix(&lab.dir().join("socket"))?;
    plane.set_all([
        Resource::from_value(
            Type::Secret,
            json!({ "name": "default", "tls_certificate": { "certificate_chain": chain, "private_key": key } }),
        )?,
        Resource::from_value(
            Type::Secret,
            json!({ "name": "ROOTCA", "validation_context": { "trusted_ca": { "inline_string": root.pem() } } }),
        )?,
    ]);
    // It takes no part in the exchange of peers' metadata: of what is offered it knows the second only.
    let options = TlsOptions::new(&server).clients(root.file()).alpn(&["istio"]);
    Ok(Agent { plane, secure: TlsServer::echo("secure", &options)? })
}

#[test]
fn everything_that_istiod_pushes_is_taken() -> Result<()> {
    lab(|lab| {
        for row in SURFACE {
            ensure!(SIDECAR.contains(row), "{row} is not in the push");
        }
        let (agent, plain, plane) = (agent(lab)?, Upstream::echo("plain")?, ControlPlane::start()?);
        let resources = resources(agent.secure.address, plain.address)?;
        plane.set_all(resources.clone());
        let config = bootstrap(&plane, &agent.plane).yaml();
        let start = Start { kind: Kind::Shunt, config: &config, args: &[], place: Place::default() };
        let mut proxy = Proxy::start_unready(lab, &start)?;
        let mut cases = Cases::new();
        cases.case("nothing is refused", || {
            eventually("all of it is asked for", LIMIT, || {
                let asked = |of: Type| plane.requests(NODE).iter().any(|request| request.is(of));
                ensure!([Type::Cluster, Type::Endpoints, Type::Listener, Type::Route].into_iter().all(asked));
                plane.accepted(NODE)
            })
        });
        cases.case("it becomes ready", || proxy.wait_ready());
        cases.case("routes are asked for by name", || {
            let mut names: Vec<String> = plane
                .requests(NODE)
                .into_iter()
                .filter(|request| request.is(Type::Route))
                .flat_map(|request| request.names)
                .collect();
            names.sort();
            names.dedup();
            ensure!(names == ["5000", "80"], "{names:?}");
            Ok(())
        });
        cases.case("all of it is shown", || shown(&proxy, &resources));
        let reach = |to: &str| -> Result<String> {
            let mut client = Client::connect(proxy.listening("virtualOutbound")?)?;
            client.send(format!("PROXY TCP4 10.244.0.7 {to}\r\n"))?;
            Ok(client.ask("hello").unwrap_or_else(|error| format!("{error:#}")))
        };
        cases.case("a service without a sidecar", || {
            let answer = reach("10.96.0.1 40000 443")?;
            ensure!(answer == "plain hello", "{answer}");
            Ok(())
        });
        cases.case("a service with a sidecar", || {
            let mark = agent.secure.mark();
            let answer = reach("10.96.88.88 40000 8080")?;
            ensure!(answer == "secure hello", "{answer}");
            let seen = agent.secure.ended(mark)?;
            let name = seen.server_name.unwrap_or_default();
            ensure!(name == "outbound_.8080_._.prodsvc.myweb.svc.cluster.local", "{name}");
            ensure!(seen.alpn.as_deref() == Some("istio"), "{:?}", seen.alpn);
            Ok(())
        });
        cases.case("an address that is not known", || {
            let answer = reach(&format!("127.0.0.1 40000 {}", plain.address.port()))?;
            ensure!(answer == "plain hello", "{answer}");
            Ok(())
        });
        cases.case("who it says it is", || {
            let node = plane.node(NODE)?;
            ensure!(node["metadata"]["INTERCEPTION_MODE"] == "REDIRECT", "{node}");
            ensure!(node["cluster"] == "prodapi.myweb", "{node}");
            Ok(())
        });
        cases.finish()
    })
}

/// Every resource that was pushed is in `/config_dump`.
fn shown(proxy: &Proxy, resources: &[Resource]) -> Result<()> {
    let listeners = dump(proxy, "ListenersConfigDump")?;
    let clusters = dump(proxy, "ClustersConfigDump")?;
    let has = |all: &Value, of: fn(&Value) -> &Value, name: &str| {
        all.as_array().into_iter().flatten().any(|one| of(one) == name)
    };
    for resource in resources {
        let found = match resource.of {
            Type::Listener => has(&listeners["dynamic_listeners"], |one| &one["name"], &resource.name),
            Type::Cluster => {
                has(&clusters["dynamic_active_clusters"], |one| &one["cluster"]["name"], &resource.name)
            }
            Type::Endpoints | Type::Route | Type::Secret | Type::Extension => continue,
        };
        ensure!(found, "{:?} {} is not in the dump", resource.of, resource.name);
    }
    Ok(())
}

#[test]
fn a_push_again_changes_nothing() -> Result<()> {
    lab(|lab| {
        let (agent, plain, plane) = (agent(lab)?, Upstream::echo("plain")?, ControlPlane::start()?);
        let resources = resources(agent.secure.address, plain.address)?;
        plane.set_all(resources.clone());
        let proxy = Proxy::start(lab, Kind::Shunt, &bootstrap(&plane, &agent.plane).yaml())?;
        let listener = proxy.listening("virtualOutbound")?;
        let mut client = Client::connect(listener)?;
        client.send("PROXY TCP4 10.244.0.7 10.96.0.1 40000 443\r\n")?;
        client.ask("first")?;
        // As istiod does after each change anywhere: everything again, under a new version.
        for of in [Type::Cluster, Type::Listener] {
            let again = resources.iter().filter(|resource| resource.of == of).cloned();
            let push = again.fold(shunt_tests::xds::Push::new(of), shunt_tests::xds::Push::resource);
            plane.push(NODE, &push.version("again"))?;
        }
        plane.accepted(NODE)?;
        let stats = proxy.stats()?;
        for name in ["listener_manager.listener_modified", "cluster_manager.cluster_modified"] {
            ensure!(stats.of(name) == 0, "{name} is {}", stats.of(name));
        }
        ensure!(client.ask("second")? == "plain second" && proxy.listening("virtualOutbound")? == listener);
        Ok(())
    })
}
